"""Cancels at any moment: while a job waits, is claimed, submitted, drawn, stored and settled, and after its end."""

import heapq
import signal
import time
from typing import Any

from faults.lab import faulty
from faults.stack import LEASE_SECONDS, until
from faults.trial import COMPLETED, FAILED, Experiment, Trial
from patience import PATIENCE_SECONDS


def at_any_moment(trial: Trial) -> None:
    _cancel_many(trial, trial.pick(40, 1000), 0.6)


def _cancel_many(trial: Trial, count: int, longest: float) -> None:
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    due: list[tuple[float, str]] = []
    for number in range(count):
        paid = random.random() < 0.3
        job_id = trial.submit(
            random.uniform(0.0, longest), script={"paid": paid, "latency_seconds": random.choice((0.0, 0.1))}
        )
        trial.may_end(job_id, "cancelled")
        if number % 10 == 0:
            trial.watch(job_id, breaks=number % 3)
        heapq.heappush(due, (time.monotonic() + random.uniform(0.0, longest + 0.4), job_id))
        _cancel_what_is_due(trial, due)
    while due:
        time.sleep(max(0.0, due[0][0] - time.monotonic()))
        _cancel_what_is_due(trial, due)


def _cancel(trial: Trial, job_id: str) -> None:
    """Whatever the answer says is what becomes of the job."""
    trial.fault("cancel")
    answer = trial.stack.http.post(f"/generation-jobs/{job_id}/cancel")
    status = answer.json().get("status") if answer.status_code == 200 else None
    if answer.status_code == 409:
        status = trial.stack.rows.job(job_id).status
        trial.expect(status in ("completed", "failed"), f"a cancel was refused for a job that is {status}")
    else:
        trial.expect(answer.status_code == 200, f"a cancel was answered with {answer.status_code}")
    if status == "cancelled":
        trial.expect(trial.stack.rows.job(job_id).status == "cancelled", f"job {job_id} was cancelled and went on")


def without_valkey(trial: Trial) -> None:
    """No nudge can be sent: the heartbeat hears it."""
    stack, random = faulty(trial), trial.random
    for _ in range(trial.pick(1, 3)):
        stack.crew(io=2, local=2)
        running = [trial.submit(script={"hang": True}, ends=frozenset({"cancelled"}), watch=0) for _ in range(12)]
        trial.wait_processing(running, accepted=True)
        trial.fault("kill Valkey")
        stack.valkey.kill()
        waiting = [trial.submit(ends=frozenset({"cancelled"}), watch=0) for _ in range(8)]
        for job_id in random.sample(running + waiting, 20):
            _cancel(trial, job_id)
        trial.wait_ended()
        stack.valkey.start()
        until(lambda running=running: _were_told(trial, running), what="cancels at the provider")
        asked = stack.submits().keys() & set(waiting)
        trial.expect(not asked, "a job that was cancelled while it waited was submitted")


def _were_told(trial: Trial, job_ids: list[str]) -> bool:
    ledger = trial.stack.ledger.read_text()
    return all(f"cancel mock-{job_id}" in ledger for job_id in job_ids)


def while_workers_die(trial: Trial) -> None:
    """Cancel was asked for and the worker died before it heard: dispatch ends the job."""
    stack, random = trial.stack, trial.random
    for _ in range(trial.pick(1, 3)):
        stack.crew(io=2, local=2)
        ids = [trial.submit(script={"hang": True}, ends=frozenset({"cancelled"}), watch=0) for _ in range(10)]
        trial.wait_processing(ids)
        victim = stack.member(random.choice(("io-1", "io-2")))
        trial.fault("kill a worker", victim)
        victim.freeze()
        for job_id in ids:
            _cancel(trial, job_id)
        victim.kill()
        trial.wait_ended()


SETTLES: dict[str, tuple[dict[str, Any], frozenset[str], tuple[str, ...]]] = {
    "completed": ({}, COMPLETED, ()),
    "failed": ({"refuse": "no people, please"}, FAILED, ("content_rejected",)),
    "tried again": ({"transient_errors": 1}, COMPLETED, ()),
    "deferred": ({"rate_limit": {"times": 1, "retry_after": 0.3}}, COMPLETED, ()),
}


def racing_every_settle(trial: Trial) -> None:
    """Just before, at and after the moment in which an attempt ends in each way that there is."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for script, ends, codes in SETTLES.values():
        due: list[tuple[float, str]] = []
        for _ in range(trial.pick(10, 60)):
            job_id = trial.submit(script={**script, "latency_seconds": 0.3}, ends=ends | {"cancelled"}, codes=codes)
            heapq.heappush(due, (time.monotonic() + random.uniform(0.25, 0.5), job_id))
            _cancel_what_is_due(trial, due)
        while due:
            time.sleep(max(0.0, due[0][0] - time.monotonic()))
            _cancel_what_is_due(trial, due)
        trial.wait_ended()
    for how, seconds in (("drain", 1.0), ("kill", 3 * LEASE_SECONDS)):  # handed back, and lost
        ids = trial.submit_some(trial.pick(10, 40), 20.0, ends=frozenset({"cancelled"}))
        trial.wait_processing(ids)
        leaving = stack.member("io-1")
        trial.fault(f"{how} a worker", *([leaving] if how == "kill" else []))
        leaving.signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        for job_id in random.sample(ids, len(ids)):
            time.sleep(seconds / len(ids))
            _cancel(trial, job_id)
        leaving.wait(PATIENCE_SECONDS)
        trial.wait_ended()
        stack.hire("io-1")


def _cancel_what_is_due(trial: Trial, due: list[tuple[float, str]]) -> None:
    while due and due[0][0] <= time.monotonic():
        _cancel(trial, heapq.heappop(due)[1])


CANCELS = (
    Experiment("cancel", "1,000 cancels at any moment of a job's life (in short: 40)", at_any_moment, short=True),
    Experiment("cancel-racing-settles", "cancels around the end of attempts, of each kind", racing_every_settle),
    Experiment("cancel-without-valkey", "cancels while Valkey is gone", without_valkey),
    Experiment("cancel-while-workers-die", "cancels of jobs whose worker dies", while_workers_die),
)
