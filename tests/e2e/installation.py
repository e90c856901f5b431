"""An installation as it is run for others: PostgreSQL, S3 that checks signatures, a Redis by TLS, and accounts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from click.testing import CliRunner
from running_stack import Stack

from object_stores import Rclone, server
from patience import PATIENCE_SECONDS
from safelight.cli.main import group
from safelight_client import Client

# Tests let media be fetched from this machine.
LOOPBACK = {
    "SAFELIGHT_MEDIA_ALLOW_PRIVATE": "127.0.0.1/32",
    "SAFELIGHT_MEDIA_KEEP_FREE_BYTES": "0",
    "SAFELIGHT_MEDIA_IDLE_SECONDS": "120",
}


def make_key(environment: dict[str, str], data_dir: Path, owner: str, *options: str) -> str:
    """As an administrator does it; the secret."""
    wanted = ["keys", "create", "test", "--owner", owner, "--data-dir", str(data_dir), *options]
    done = CliRunner(env=environment).invoke(group, wanted)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def client_of(stack: Stack, secret: str) -> httpx.Client:
    return httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {secret}"}, timeout=PATIENCE_SECONDS)


class Installation:
    def __init__(self, data_dir: Path, database_url: str, redis_url: str) -> None:
        self.environment = {
            "SAFELIGHT_AUTH": "required",
            "SAFELIGHT_DATABASE_URL": database_url,
            "SAFELIGHT_REDIS_URL": redis_url,
            **server(Rclone).place().environment,
            **LOOPBACK,
        }
        self.data_dir = data_dir
        self.stack = Stack(data_dir, self.environment)

    def key(self, owner: str, *options: str) -> str:
        return make_key(self.environment, self.data_dir, owner, *options)

    def client(self, owner: str, *options: str) -> httpx.Client:
        return client_of(self.stack, self.key(owner, *options))


@dataclass(frozen=True)
class Ground:
    """A stack, and the key that is needed there."""

    stack: Stack
    key: str | None

    def client(self) -> Client:
        return Client(self.stack.url, api_key=self.key)

    def http(self, **options: Any) -> httpx.Client:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(headers=headers, timeout=PATIENCE_SECONDS, **options)
