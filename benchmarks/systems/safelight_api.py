"""The API as `safelight api` starts it, with the benchmark's providers; writes down how long each write took."""

import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.systems import null_provider
from safelight.api.server import serve
from safelight.cli.settings import load_settings
from safelight.db import Database

if __name__ == "__main__":
    null_provider.install()
    path = os.environ.get("BENCH_WRITE_TIMES")
    if path:
        times: list[float] = []
        written = Path(path)

        def timed(write: Any) -> Any:
            async def call(self: Database, fn: Any, *args: Any) -> Any:
                began = time.perf_counter()
                try:
                    return await write(self, fn, *args)
                finally:
                    times.append(time.perf_counter() - began)

            return call

        close: Any = Database.close

        def close_and_tell(self: Database) -> None:
            close(self)
            written.write_text(json.dumps(times))

        Database.write, Database.write_one = timed(Database.write), timed(Database.write_one)
        Database.close = close_and_tell
    serve(load_settings())
