"""An io worker as `safelight worker` starts it, with the benchmark's providers."""

import os
import sys

from benchmarks.systems import null_provider
from safelight.cli.settings import load_settings
from safelight.worker.process import run_worker

if __name__ == "__main__":
    null_provider.install()
    places = os.environ.get("BENCH_COMFYUI_PLACES")
    if places:
        from safelight.providers.comfyui import pool

        pool.PLACES = int(places)
    run_worker(load_settings(), kind="io", name=sys.argv[1])
