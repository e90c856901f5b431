"""CPU seconds that a process needs to import what a command runs: `python -m benchmarks.systems.import_of COMMAND`."""

import importlib
import sys
import time

from safelight.cli.main import group
from safelight.cli.start import quick_imports

MODULES = {"worker": "safelight.worker.process", "api": "safelight.api.server"}

if __name__ == "__main__":
    command = sys.argv[1]
    group.get_command(None, command)  # pyright: ignore[reportArgumentType]
    with quick_imports():
        importlib.import_module(MODULES[command])
    print(time.process_time())
