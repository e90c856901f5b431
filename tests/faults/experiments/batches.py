"""Batches under fire: accepted once and whole, counted truly, and told whole in one stream, whatever dies meanwhile."""

import signal
import time

import httpx

from faults.lab import faulty
from faults.stack import keep_running
from faults.trial import Experiment, Trial
from patience import PATIENCE_SECONDS

CRASHES = ("worker_lost",)


def batch_storm(trial: Trial) -> None:
    """Workers and the API are killed and Valkey is emptied while batches are submitted, run and are cancelled."""
    stack, random = faulty(trial), trial.random
    stack.crew(io=2, local=2)
    with keep_running(stack, "api"):
        for _ in range(trial.pick(1, 4)):
            ids = [trial.submit_batch(random.randint(6, 12), 1.2, codes=CRASHES, breaks=random.choice((0, 2)))]
            trial.fault("kill the API")
            stack.member("api").signal(signal.SIGKILL)  # in the middle of the next submit
            ids.append(trial.submit_batch(trial.pick(20, 100), 0.6, codes=CRASHES))
            trial.pause(0.1, 0.5)
            victim = stack.member(random.choice(("io-1", "io-2")))
            trial.fault("kill a worker", victim)
            victim.kill()
            trial.fault("FLUSHALL")
            stack.valkey.flush()
            stack.hire(victim.name)
            trial.pause(0.0, 0.5)
            _cancel(trial, random.choice(ids))
        trial.wait_ended()


def _cancel(trial: Trial, batch_id: str) -> None:
    """What has not ended by then may end so."""
    for watcher in trial.batch_watchers:
        for job_id in watcher.told if watcher.job_id == batch_id else ():
            trial.may_end(job_id, "cancelled")
    trial.fault("cancel a batch")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            answer = trial.stack.http.post(f"/batches/{batch_id}/cancel")
        except httpx.TransportError:
            trial.pause(0.05, 0.1)
            continue
        if answer.status_code < 500:
            trial.expect(answer.status_code in (200, 409), f"a cancel was answered with {answer.text}")
            return
        trial.pause(0.05, 0.1)
    trial.expect(False, "a batch could not be cancelled")


BATCHES = (
    Experiment("batch-storm", "batches are submitted and cancelled while everything dies", batch_storm, short=True),
)
