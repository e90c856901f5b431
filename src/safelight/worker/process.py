"""Start a worker process: `io` for everything that waits, `local` for what computes and for suspects, `imports` for
media: an import may run for an hour, and keeps no suspect waiting."""

import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal

# Celery reads this when it is imported.
os.environ.setdefault("CELERY_CUSTOM_WORKER_POOL", "safelight.worker.pool:LoopPool")

from celery import signals

from safelight import log
from safelight.config import Settings
from safelight.queue import IMPORT_QUEUES, IO_QUEUES, LOCAL_QUEUES
from safelight.worker import tasks
from safelight.worker.engine import Engine
from safelight.worker.pool import LoopPool

HEARTBEAT_SECONDS = 5  # for monitors alone: what says that a worker lives is its row

WorkerKind = Literal["io", "local", "imports"]
PoolKind = Literal["loop", "threads", "prefork"]

QUEUES: Mapping[WorkerKind, tuple[str, ...]] = {"io": IO_QUEUES, "local": LOCAL_QUEUES, "imports": IMPORT_QUEUES}


def run_worker(
    settings: Settings,
    *,
    kind: WorkerKind,
    pool: PoolKind | None = None,
    slots: int | None = None,
    name: str | None = None,
) -> None:
    """Serve the queues of `kind` until SIGTERM; returns when everything was settled or handed back.

    `io` runs on the loop pool (or `threads`), the others on `prefork`: one job a process, recycled after 100.
    """
    log.configure(settings.log_level, settings.log_format)
    queues = QUEUES[kind]
    pool = pool or ("loop" if kind == "io" else "prefork")
    slots = slots or {"io": settings.io_slots, "local": settings.local_slots, "imports": settings.import_slots}[kind]
    name = name or kind
    # Messages are JSON alone, so a worker that runs as root, as in a container, is no way in.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser")
    tasks.configure(settings)
    engine: Engine | None = None
    if pool == "prefork":
        tasks.start_children_with(settings, name=name, queues=queues)
    else:
        engine = Engine(settings, name=name, queues=queues, slots=slots, dispatches=True)
        engine.start()
        tasks.use_engine(engine)
        LoopPool.engine = engine
        drain = engine.drain

        def begin_to_leave(**_: Any) -> None:
            drain()

        signals.worker_shutting_down.connect(begin_to_leave, weak=False)
    try:
        tasks.app.worker_main(
            [
                "--quiet",
                "worker",
                f"--pool={'custom' if pool == 'loop' else pool}",
                f"--concurrency={slots}",
                f"--queues={','.join(queues)}",
                f"--hostname={name}@%h",
                "--without-mingle",
                "--without-gossip",
                f"--heartbeat-interval={HEARTBEAT_SECONDS}",
                f"--loglevel={'WARNING' if settings.log_level == 'info' else settings.log_level.upper()}",
            ]
        )
    finally:
        if engine is not None:
            engine.stop()
