"""A host of media, and importers that leave nothing behind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from importing import LOOPBACK, Make, programs_in

from safelight.artifacts import find_ffmpeg
from safelight.providers.base import Limits
from safelight.providers.media_import import MediaImport, Workspace
from stand_ins.media_host import MediaHost


@pytest.fixture(scope="module")
def shared_host() -> Iterator[MediaHost]:
    host = MediaHost()
    yield host
    host.close()


@pytest.fixture
def host(shared_host: MediaHost) -> MediaHost:
    shared_host.reset()
    return shared_host


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[MediaImport] = []

    def make(keep_free_bytes: int = 0, quota_bytes: int | None = None, **changes: Any) -> MediaImport:
        workspace = Workspace(tmp_path / "imports", keep_free_bytes=keep_free_bytes, quota_bytes=quota_bytes)
        given: dict[str, Any] = {
            "networks": [LOOPBACK],
            "ffmpeg": find_ffmpeg(),
            "limits": Limits(60, 70),
            "probe_seconds": 110,
        } | changes
        made.append(MediaImport(workspace=workspace, **given))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No partial file and no program, whatever a test did."""
    yield
    assert not list((tmp_path / "imports").rglob("*"))
    assert not programs_in(tmp_path)
