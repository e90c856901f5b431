"""One process of the service that can be hurt: `become(["worker", "io", "io-1", "--die", "after-claim"], ...)`.

The product has no hooks for its own death. This launcher replaces one method in the process it becomes, so that the
process kills itself with SIGKILL when the method is called for the n-th time. It also moves the process's clock, limits
its memory, and ends it when whoever started it is gone. Processes are forked from one that has imported everything:
imports are most of what a start costs.
"""

import argparse
import inspect
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safelight import bootstrap
from safelight.api.server import serve
from safelight.artifacts import ArtifactStore
from safelight.cli.settings import load_settings
from safelight.db import Tx
from safelight.jobs import Dispatcher, Jobs, dispatch
from safelight.providers import mock
from safelight.providers.base import Accepted, Preview, Progress, Reserved, Submitting
from safelight.queue import HintQueue
from safelight.worker.attempt import RunningAttempt
from safelight.worker.process import run_worker
from safelight.worker.runner import Runner

DISPATCH_VARIABLE = "SAFELIGHT_TEST_FAULTS_DISPATCH_LEASE"  # seconds, for a short form


class Countdown:
    """Dies at the n-th call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, tick: Countdown, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            tick()
        return original(*args, **kwargs)

    setattr(owner, name, replaced)


def _after(owner: Any, name: str, tick: Countdown, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    original = getattr(owner, name)

    def replaced(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if when(*args, **kwargs):
            tick()
        return result

    async def replaced_async(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        if when(*args, **kwargs):
            tick()
        return result

    setattr(owner, name, replaced_async if inspect.iscoroutinefunction(original) else replaced)


def _is_submit(line: str) -> bool:
    return not line.startswith("cancel")


def _is_submitting(runner: object, attempt: object, update: object, made: object) -> bool:
    return isinstance(update, Submitting)


def _is_accepted(runner: object, attempt: object, update: object, made: object) -> bool:
    return isinstance(update, Accepted | Reserved)


def _is_news(runner: object, attempt: RunningAttempt, update: object, made: object) -> bool:
    """That the provider works on it."""
    return isinstance(update, Preview) or (isinstance(update, Progress) and attempt.remote_id is not None)


def _in_transaction(tick: Countdown) -> None:
    """Everything written, nothing committed: even where one statement would do both."""
    for name in ("settle", "complete"):
        original = getattr(Jobs, name)

        def ended(self: Jobs, tx: Tx, *args: Any, original: Any = original) -> Any:
            tx._is_only = False
            result = original(self, tx, *args)
            tick()
            return result

        setattr(Jobs, name, ended)


POINTS: dict[str, Callable[[Countdown], None]] = {
    "before-hint": lambda tick: _before(HintQueue, "send", tick),
    "after-claim": lambda tick: _before(Runner, "_execute", tick),
    "before-provider": lambda tick: _before(mock, "_write_ledger", tick, _is_submit),
    "after-provider": lambda tick: _after(mock, "_write_ledger", tick, _is_submit),
    "after-submitting": lambda tick: _after(Runner, "_take", tick, _is_submitting),
    "before-accepted": lambda tick: _before(Runner, "_take", tick, _is_accepted),
    "after-accepted": lambda tick: _after(Runner, "_take", tick, _is_accepted),
    "in-progress": lambda tick: _after(Runner, "_take", tick, _is_news),
    "after-upload": lambda tick: _after(ArtifactStore, "store", tick),
    "in-settle": _in_transaction,
    "before-event": lambda tick: _before(
        bootstrap._Announcements, "event", tick, lambda _, job, event: bool(event.is_terminal)
    ),
}


def move_clock(seconds: float) -> None:
    """Let this process believe in another time. The mock's far side keeps the true one: it is not in this process."""
    true_time, true_ns = time.time, time.time_ns
    mock.time = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        time=true_time, monotonic=time.monotonic, perf_counter=time.perf_counter, sleep=time.sleep
    )

    class Moved(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # pyright: ignore[reportIncompatibleMethodOverride]
            return datetime.now(tz) + timedelta(seconds=seconds)

    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_ns() + int(seconds * 1e9)
    for name, module in list(sys.modules.items()):
        if name.startswith("safelight.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Moved  # pyright: ignore[reportAttributeAccessIssue]


def tell_holders() -> None:
    """One line says which process has which name in the row of the dispatch lease."""
    original = Dispatcher.__init__

    def init(self: Dispatcher, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        line = json.dumps({"event": "launch.holder", "holder": kwargs["holder"], "pid": os.getpid()})
        os.write(1, f"{line}\n".encode())

    Dispatcher.__init__ = init


def follow_starter() -> None:
    """Die when the starter does."""
    starter = multiprocessing.parent_process()
    assert starter is not None

    def wait() -> None:
        starter.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def become(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Be that process, in a session of its own; what it says goes to the end of the log."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    follow_starter()
    serve_as(arguments)


def serve_as(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("door", choices=("api", "worker"))
    parser.add_argument("kind", nargs="?", default="io", choices=("io", "local", "imports"))
    parser.add_argument("name", nargs="?", default="io-1")
    parser.add_argument("--pool", choices=("loop", "threads", "prefork"))
    parser.add_argument("--die", choices=sorted(POINTS), help="kill the process at this point")
    parser.add_argument("--nth", type=int, default=1, help="at which call; default 1")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds to move the clock by")
    parser.add_argument("--memory-mb", type=int, default=0, help="limit of the address space")
    chosen = parser.parse_args(arguments)
    tell_holders()
    dispatch.LEASE_SECONDS = float(os.environ.get(DISPATCH_VARIABLE, dispatch.LEASE_SECONDS))
    if chosen.die:
        POINTS[chosen.die](Countdown(chosen.nth))
    if chosen.clock:
        move_clock(chosen.clock)
    if chosen.memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (chosen.memory_mb << 20, chosen.memory_mb << 20))
    if chosen.door == "api":
        serve(load_settings())
    else:
        run_worker(load_settings(), kind=chosen.kind, name=chosen.name, pool=chosen.pool)
