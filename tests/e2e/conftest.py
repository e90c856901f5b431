"""Stacks that the session's tests share: each costs seconds of processor time to start."""

import os
from collections.abc import Iterator

import pytest
from installation import LOOPBACK, Ground, Installation
from running_stack import Stack

from servers import Postgres, ValkeyServer
from tls import certificate, fronted_in_a_thread, server_context


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, kept_running: set[int]) -> Iterator[Stack]:
    """`safelight up` as it comes: SQLite, files, a Valkey of its own."""
    stack = Stack(tmp_path_factory.mktemp("plain") / "data", LOOPBACK)
    kept_running.add(stack.process.pid)
    yield stack
    stack.close()


@pytest.fixture(scope="session")
def installation(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, kept_running: set[int]
) -> Iterator[Installation]:
    folder, name = tmp_path_factory.mktemp("installation"), f"safelight_installation_{os.getpid()}"
    pem, valkey = certificate(folder), ValkeyServer()
    with fronted_in_a_thread(valkey, server_context(pem, asks_for_one=True)) as port:
        url = f"rediss://localhost:{port}/5?ssl_ca_certs={pem}&ssl_certfile={pem}"
        installation = Installation(folder / "data", postgres.database(name), url)
        kept_running.add(installation.stack.process.pid)
        yield installation
        installation.stack.close()
    valkey.close()
    postgres.drop(name)


@pytest.fixture(scope="session", params=[pytest.param("plain", marks=pytest.mark.long), "installation"])
def ground(request: pytest.FixtureRequest) -> Ground:
    if request.param == "plain":
        return Ground(request.getfixturevalue("plain"), None)
    installation: Installation = request.getfixturevalue("installation")
    return Ground(installation.stack, installation.key("guest", "--scope", "admin", "--tier", "pro"))
