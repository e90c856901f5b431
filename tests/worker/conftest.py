from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from workshop import Workshop

from safelight.bootstrap import open_safelight
from safelight.config import Settings


@pytest.fixture
async def workshop(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Workshop]:
    given: dict[str, Any] = {
        "data_dir": tmp_path,
        "database_url": sqlite_url,
        "redis_url": f"unix://{tmp_path}/none",
        "mock_mode": False,
        "breaker_failures": 2,
    }
    async with open_safelight(Settings(**given)) as world:
        yield Workshop(world)
