"""Bare Celery: its own defaults, no result backend."""

import os
from typing import Any, cast

from celery import Celery

from benchmarks.systems import work

app = Celery("peer", broker=os.environ.get("BENCH_REDIS_URL", "redis://"))
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)


@app.task(name="peer.run")  # pyright: ignore[reportUntypedFunctionDecorator]
def run(job_id: str) -> None:
    work.carry_out(job_id)


def send(job_id: str) -> Any:
    return cast(Any, run).delay(job_id)
