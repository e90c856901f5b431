"""A stack whose children only pretend, so that starting, killing and stopping it takes a second.

`fake_stack.py up DATA_DIR` runs the real supervisor (and the real Valkey); the other roles are its children.
`FAKE_WORKER` chooses how a worker behaves: `steady`, `stubborn` (ignores SIGTERM) or `broken` (dies at once);
`FAKE_GRACE` is how many seconds it is given to stop. `FAKE_API=busy`: the API takes connections and is never ready;
`FAKE_TELL` is how many seconds pass between two words on what is waited for.
"""

# The children need none of the supervisor's modules, and start in no time without them.
# ruff: noqa: PLC0415

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

JOB = {"id": "1", "status": "completed", "is_terminal": True}


def up(data_dir: str) -> int:
    import asyncio
    from functools import partial

    from safelight.cli.settings import load_settings
    from safelight.errors import SafelightError
    from safelight.supervisor import Supervisor, stack
    from safelight.supervisor.child import ChildHost, Restarts

    # However busy the machine is, no life is long.
    restarts = Restarts(first_delay=0.05, longest_delay=0.1, quick_seconds=600)
    stack.ChildHost = partial(ChildHost, restarts=restarts)  # pyright: ignore
    stack.python = lambda *arguments: (sys.executable, __file__, *arguments)
    stack.WORKER_GRACE = float(os.environ.get("FAKE_GRACE", stack.WORKER_GRACE))  # pyright: ignore
    stack.TELL_SECONDS = float(os.environ.get("FAKE_TELL", stack.TELL_SECONDS))  # pyright: ignore
    supervisor = Supervisor(load_settings(data_dir=Path(data_dir), port=0), io_workers=1, quiet=False)
    try:
        return asyncio.run(supervisor.run_until_stopped())
    except SafelightError as error:
        sys.stderr.write(error.detail)
        return 5


def api() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(503 if os.environ.get("FAKE_API") == "busy" else 200, JOB)

        def do_POST(self) -> None:
            self.answer(202, JOB)

        def answer(self, status: int, body: Mapping[str, object]) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAFELIGHT_PORT"])), Api).serve_forever()


def worker() -> None:
    behaviour = os.environ.get("FAKE_WORKER", "steady")
    if behaviour == "broken":
        sys.exit("I cannot work like this")
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # An ignored signal stays ignored in the children: those of a stubborn worker are stubborn too.
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    sys.stderr.write("working\n")
    time.sleep(600)


if __name__ == "__main__":
    match sys.argv[1]:
        case "up":
            sys.exit(up(sys.argv[2]))
        case "api":
            api()
        case "worker":
            worker()
        case _:
            pass
