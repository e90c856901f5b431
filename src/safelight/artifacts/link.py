"""Links to stored files: URLs that work without credentials, in an `<img>` or for a provider that fetches an input.

The store signs them itself where it can (S3, Google Cloud, Azure), a public bucket needs no signature, and for the
rest the API serves files to whoever brings a token of ours. A token holds all that is needed to serve the file, and a
time at which it ends; nothing is looked up in the database.
"""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from itsdangerous import BadData, URLSafeSerializer

from safelight.errors import SafelightError, Unavailable
from safelight.storage import Storage

FILES_URL = "/api/v1/files"
KEY_BYTES = 32
PURPOSE = b"safelight file link 2"  # so that a signature made with this key for something else is none of ours


class ApiPath(str):
    """A path on this host. The API puts the path that it stands below itself before it as it answers."""

    __slots__ = ()


class BadLink(SafelightError):
    """This link is not one that was given out."""

    kind = "invalid"
    code: ClassVar[str] = "link_invalid"


class LinkExpired(BadLink):
    """This link has expired. Ask for a new one."""

    code = "link_expired"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it is served. `name` is what a browser saves it as."""

    key: str
    content_type: str
    name: str
    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Link:
    """A URL, or a path on this host. `expires_at` is None if it never does."""

    url: str
    expires_at: datetime | None


class Links:
    """Makes links to files of one storage, and reads its own again."""

    def __init__(
        self,
        storage: Storage,
        *,
        signing_key: Callable[[], bytes],
        public_url: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._storage = storage
        self._public_url = public_url.rstrip("/")
        self._load_key = signing_key
        self._now = now

    async def make(self, file: StoredFile, expires_in_seconds: int) -> Link:
        """The best link this storage has. Raises `StorageUnavailable`."""
        if self._public_url:
            return Link(f"{self._public_url}/{quote(file.key)}", None)
        expires = int(self._now().timestamp()) + expires_in_seconds
        url = await self._storage.link(file.key, expires_in_seconds)
        if url is None:
            url = ApiPath(f"{FILES_URL}/{self._serializer.dumps([expires, *astuple(file)])}")
        return Link(url, datetime.fromtimestamp(expires, UTC))

    def read(self, token: str) -> tuple[StoredFile, int]:
        """The file of a token and the seconds it still holds. Raises `BadLink`."""
        try:
            expires, *fields = self._serializer.loads(token)
        except BadData:
            raise BadLink from None
        left = expires - self._now().timestamp()
        if left <= 0:
            raise LinkExpired
        return StoredFile(*fields), int(left)

    @cached_property
    def _serializer(self) -> URLSafeSerializer:
        options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return URLSafeSerializer(self._load_key(), salt=PURPOSE, signer_kwargs=options)


def load_signing_key(folder: Path) -> bytes:
    """The installation's secret in its data directory, made by whoever needs it first, for its owner's eyes only."""
    path = folder / "signing.key"
    try:
        if not path.exists():
            _make_key(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise Unavailable(f"The signing key {path} cannot be read or made: {error.strerror}.") from error
    if len(key) < KEY_BYTES:
        raise SafelightError(f"The signing key {path} is damaged. Delete it: a new one is made, and old links end.")
    return key


def _make_key(path: Path) -> None:
    """Whole or not at all, and never over another process's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".signing-")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(KEY_BYTES).encode())
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):  # somebody else was quicker, and theirs counts
            os.link(draft, path)
    finally:
        Path(draft).unlink()
