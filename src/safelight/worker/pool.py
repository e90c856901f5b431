"""Celery's side of the io worker: a pool that runs every task as a coroutine on the engine's loop.

Celery's accept and success callbacks are called, so `celery inspect` and Flower see running jobs truly. It leans on
private interfaces of Celery 5.7 (the argument order of `on_apply`): a contract test watches them, and `--pool threads`
runs the same engine without this file.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from celery.concurrency.base import BasePool

from safelight.worker.engine import Engine

LONE_SECONDS = 0.001  # of rest for Celery's thread when a lone job begins, which takes a twentieth less for it


class LoopPool(BasePool):
    """`limit` jobs at once in one process; the hint transport's prefetch count is what bounds them."""

    signal_safe = False
    engine: ClassVar[Engine]  # set before the worker starts: Celery makes the pool itself

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        callback: Callable[[tuple[int, Any, float]], Any] | None = None,
        accept_callback: Callable[[int, float], Any] | None = None,
        **_: Any,
    ) -> None:
        """Take a task: `args` are its name, its id (the job's), the request and the undecoded body."""
        began = time.monotonic()
        if accept_callback is not None:
            accept_callback(os.getpid(), began)

        def done() -> None:
            if callback is not None:
                callback((0, None, time.monotonic() - began))

        self.engine.spawn(args[1], args[2]["delivery_info"]["routing_key"], done)
        # What Celery does next would compete with the claim for the interpreter, and can wait.
        time.sleep(0 if self.engine.is_busy else LONE_SECONDS)

    def on_stop(self) -> None:
        """Called once Celery has stopped consuming: wait until running jobs are settled or handed back."""
        self.engine.drain()
        self.engine.wait_drained()

    on_terminate = on_stop
