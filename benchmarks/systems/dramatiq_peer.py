"""Dramatiq on Redis with its default middleware."""

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.systems import work

# redis-py 8 pools hold 100 connections unless told otherwise: too few for hundreds of threads.
dramatiq.set_broker(
    RedisBroker(
        url=os.environ.get("BENCH_REDIS_URL", "redis://"), max_connections=int(os.environ.get("BENCH_POOL", 100))
    )
)


@dramatiq.actor(max_retries=0)
def run(job_id: str) -> None:
    work.carry_out(job_id)


def send(job_id: str) -> Any:
    return run.send(job_id)
