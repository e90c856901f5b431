"""Real processes, really killed: every accepted job still ends exactly once."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from stack import API_THAT_DIES_BEFORE_HINT, Process, Stack, until

from safelight.queue import message
from servers import ValkeyServer

pytestmark = pytest.mark.faults


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str, valkey_server: Callable[..., ValkeyServer]) -> Iterator[Stack]:
    with Stack(tmp_path, sqlite_url, valkey_server()) as stack:
        yield stack


@pytest.fixture
def stack_on_any(tmp_path: Path, database_url: str, valkey_server: Callable[..., ValkeyServer]) -> Iterator[Stack]:
    with Stack(tmp_path, database_url, valkey_server()) as stack:
        yield stack


def test_killed_worker_mid_job(stack_on_any: Stack) -> None:
    """The job goes on in isolation, adopting what the provider already has: it is not submitted (and paid) twice."""
    stack = stack_on_any
    worker = stack.start_worker()
    stack.start_worker("local", "local")
    stack.start_api()
    stack.wait_for_workers(image_generation=1, isolated=1)
    job_id = stack.submit(duration=2.0)
    until(lambda: stack.job(job_id)["provider_job_id"], what="acceptance by the provider")
    worker.kill()
    job = stack.wait_for(job_id, "completed", "failed")
    assert job["status"] == "completed" and job["attempt"] == 2 and job["retry_count"] == 0
    assert [attempt["outcome"] for attempt in stack.attempts(job_id)] == ["lost", "completed"]
    assert stack.attempts(job_id)[1]["queue"] == "isolated"
    assert stack.submits_per_job() == {job_id: 1}
    stack.check(job)


def test_api_killed_between_commit_and_hint(stack: Stack) -> None:
    stack.start_worker()
    api = stack.start_api()
    stack.wait_for_workers(image_generation=1)
    api.stop()
    api = stack.start_api(API_THAT_DIES_BEFORE_HINT)
    # Until this process knows of room for a hint, its submits leave hinting to dispatch, and it lives.
    accepted = 0

    def dies() -> bool:
        nonlocal accepted
        try:
            stack.submit()
            accepted += 1
        except (httpx.TransportError, AssertionError):
            pass
        return not api.is_alive

    until(dies, what="the API's death")
    stack.start_api()

    def jobs() -> list[str]:
        return [job["id"] for job in stack.http.get("/generation-jobs").json()["items"]]

    ended = stack.wait_for_all(jobs())
    # The submit whose answer was cut off was committed: it is there too, and ended like all others.
    assert len(ended) == accepted + 1
    for job in ended:
        assert job["status"] == "completed"
        stack.check(job)


def test_flushed_redis_and_doubled_hints(stack: Stack) -> None:
    worker = stack.start_worker()
    stack.start_api()
    stack.wait_for_workers(image_generation=1)
    worker.signal(signal.SIGSTOP)
    job_ids = [stack.submit() for _ in range(20)]
    stack.valkey.flush()
    worker.signal(signal.SIGCONT)
    jobs = stack.wait_for_all(job_ids)
    assert {job["status"] for job in jobs} == {"completed"}
    hints = [
        message("image_generation", job_id, soft_seconds=300, hard_seconds=330, origin="test")
        for job_id in job_ids
        for _ in range(5)
    ]
    fresh = [stack.submit(duration=0.2) for _ in range(5)]
    hints += [
        message("image_generation", job_id, soft_seconds=9, hard_seconds=9, origin="test") for job_id in fresh
    ] * 5
    stack.valkey.command("LPUSH", "safelight-dev:image_generation", *hints)
    jobs = stack.wait_for_all(job_ids + fresh)
    until(lambda: stack.valkey.command("LLEN", "safelight-dev:image_generation") == 0, what="an empty queue")
    for job in jobs:
        assert job["status"] == "completed" and job["attempt"] == 1
        stack.check(job)
    assert set(stack.submits_per_job().values()) == {1}


def test_redis_killed_while_jobs_run(stack: Stack) -> None:
    """Running jobs end, submits are accepted at once and start when it is back; the worker outlives it."""
    worker = stack.start_worker()
    stack.start_api()
    stack.wait_for_workers(image_generation=1)
    running = [stack.submit(duration=0.5) for _ in range(5)]
    for job_id in running:
        stack.wait_for(job_id, "processing")
    stack.valkey.kill()
    began = time.monotonic()
    waiting = [stack.submit() for _ in range(10)]
    assert time.monotonic() - began < 2
    assert {job["status"] for job in stack.wait_for_all(running)} == {"completed"}
    assert stack.http.get("/health/ready").json()["parts"]["redis"]["state"] == "unavailable"
    assert {stack.job(job_id)["status"] for job_id in waiting} == {"pending"}
    stack.valkey.start()
    for job in stack.wait_for_all(running + waiting):
        assert job["status"] == "completed" and job["attempt"] == 1
        stack.check(job)
    assert worker.is_alive


def test_frozen_worker_thawed_after_its_lease(stack: Stack) -> None:
    """What the zombie still does is refused: status, files and events are those of the winner."""
    worker = stack.start_worker()
    stack.start_worker("local", "local")
    stack.start_api()
    stack.wait_for_workers(image_generation=1, isolated=1)
    job_ids = [stack.submit(duration=1.0, script={"latency_seconds": 0.3}) for _ in range(4)]
    for job_id in job_ids:
        stack.wait_for(job_id, "processing")
    worker.signal(signal.SIGSTOP)
    jobs = stack.wait_for_all(job_ids)
    worker.signal(signal.SIGCONT)
    until(
        lambda: len(worker.events("attempt.lost")) + len(worker.events("attempt.refused")) == len(job_ids),
        what="the zombie's refusal",
    )
    again = stack.wait_for_all(job_ids)
    assert [job["version"] for job in again] == [job["version"] for job in jobs]
    for job in again:
        assert job["status"] == "completed" and job["attempt"] == 2
        stack.check(job)


def test_cancel_queued_and_running(stack: Stack) -> None:
    stack.start_api()
    queued = stack.submit()
    assert stack.http.post(f"/generation-jobs/{queued}/cancel").json()["status"] == "cancelled"
    stack.start_worker()
    stack.wait_for_workers(image_generation=1)
    running = [stack.submit(script={"hang": True}) for _ in range(10)]
    for job_id in running:
        until(lambda job_id=job_id: stack.job(job_id)["provider_job_id"], what="acceptance")
    began = time.monotonic()
    for job_id in running:
        assert stack.http.post(f"/generation-jobs/{job_id}/cancel").status_code == 200
    jobs = stack.wait_for_all([*running, queued])
    assert time.monotonic() - began < 2
    for job in jobs:
        assert job["status"] == "cancelled"
        stack.check(job)
    # The provider was told, for each of those that ran.
    until(lambda: stack.ledger.read_text().count("cancel ") == len(running), what="cancels at the provider")
    assert queued not in stack.submits_per_job()


@pytest.mark.parametrize("pool", ["", "threads"])
def test_drain_hands_running_jobs_back(stack: Stack, pool: str) -> None:
    leaving = stack.start_worker(name="leaving", pool=pool, SAFELIGHT_IO_SLOTS="30")
    stack.start_api()
    stack.wait_for_workers(image_generation=1)
    job_ids = [stack.submit(duration=3.0) for _ in range(20)] + [stack.submit(duration=0.2)]
    for job_id in job_ids[:20]:
        until(lambda job_id=job_id: stack.job(job_id)["provider_job_id"], what="acceptance")
    began = time.monotonic()
    assert leaving.stop() == 0
    assert time.monotonic() - began < 5
    staying = stack.start_worker(name="staying")
    jobs = stack.wait_for_all(job_ids)
    for job in jobs:
        assert job["status"] == "completed" and job["retry_count"] == 0 and job["crash_count"] == 0
        stack.check(job)
    outcomes = [attempt["outcome"] for attempt in stack.attempts(job_ids[0])]
    assert outcomes == ["handed_back", "completed"]
    assert set(stack.submits_per_job().values()) == {1}, "handed-back jobs are adopted, not submitted again"
    assert staying.is_alive


def test_poison_job_among_healthy_ones(stack: Stack) -> None:
    """One job kills every process it runs in. Its neighbours finish untouched; it fails at its third own crash."""
    stack.start_api()
    stack.start_worker("local", "local", SAFELIGHT_LOCAL_SLOTS="4")
    with keep_running(lambda: stack.start_worker()):
        stack.wait_for_workers(image_generation=1, isolated=4)
        healthy = [stack.submit(duration=0.3) for _ in range(25)]
        poison = stack.submit(duration=0.3, script={"crash": True})
        healthy += [stack.submit(duration=0.3) for _ in range(25)]
        jobs = stack.wait_for_all([*healthy, poison], seconds=90)
    for job in jobs:
        stack.check(job)
        if job["id"] == poison:
            assert job["status"] == "failed" and job["error"]["code"] == "worker_lost" and job["crash_count"] == 3
        else:
            assert job["status"] == "completed" and job["crash_count"] == 0, job


def test_storm(stack_on_any: Stack) -> None:
    """Workers killed in turn, Valkey emptied twice, while jobs stream in: all completed, once each."""
    stack = stack_on_any
    stack.start_api()
    stack.start_worker("local", "local", SAFELIGHT_LOCAL_SLOTS="4")
    running = [stack.start_worker(name=f"io-{number}") for number in range(2)]
    stack.wait_for_workers(image_generation=2, isolated=4)
    job_ids: list[str] = []
    for round_ in range(6):
        job_ids += [stack.submit(duration=0.5) for _ in range(8)]
        time.sleep(0.3)  # the schedule of the storm, not a wait
        victim = round_ % 2
        running[victim].kill()
        if round_ in (1, 4):
            stack.valkey.flush()
        running[victim] = stack.start_worker(name=f"io-{victim}")
        job_ids += [stack.submit(duration=0.5) for _ in range(2)]
        time.sleep(0.5)
    jobs = stack.wait_for_all(job_ids, seconds=90)
    for job in jobs:
        assert job["status"] == "completed", job
        stack.check(job)
    submits = stack.submits_per_job()
    assert set(submits) == set(job_ids)


def test_events_through_an_api_restart(stack: Stack) -> None:
    """A watcher that resumes with Last-Event-ID gets every state event once."""
    stack.start_worker()
    api = stack.start_api()
    stack.wait_for_workers(image_generation=1)
    job_id = stack.submit(duration=1.0, script={"rate_limit": {"times": 2, "retry_after": 0.7}})
    seen: list[int] = []
    last: str | None = None
    restarted = False
    ended = False
    while not ended:
        headers = {} if last is None else {"Last-Event-ID": last}
        try:
            with stack.http.stream("GET", f"/generation-jobs/{job_id}/events", headers=headers) as stream:
                assert stream.status_code == 200
                kind = ""
                for line in stream.iter_lines():
                    if line.startswith("id: "):
                        last = line[4:]
                    elif line.startswith("event: "):
                        kind = line[7:]
                        if kind == "job.snapshot" and not seen:
                            seen.append(int(last or 0))
                        elif kind not in ("job.snapshot", "job.progress", "job.preview", "job.output"):
                            seen.append(int(last or 0))
                            ended = kind in ("job.completed", "job.failed")
                    if len(seen) >= 2 and not restarted:
                        restarted = True
                        api.kill()
                        api = stack.start_api()
        except httpx.TransportError:
            continue
    job = stack.job(job_id)
    assert restarted and job["status"] == "completed"
    assert seen == list(range(seen[0], job["version"] + 1))
    with stack.http.stream("GET", f"/generation-jobs/{job_id}/events", headers={"Last-Event-ID": last or ""}) as stream:
        assert stream.status_code == 204


def test_stuck_loop_ends_its_process(stack: Stack) -> None:
    """A call that holds the loop, and the GIL, cannot hold the other jobs for longer than the watchdog allows."""
    stack.start_api()
    stack.start_worker("local", "local", SAFELIGHT_STUCK_LOOP_SECONDS="1.5")
    with keep_running(lambda: stack.start_worker(SAFELIGHT_STUCK_LOOP_SECONDS="1.5")) as started:
        stack.wait_for_workers(image_generation=1, isolated=1)
        healthy = [stack.submit(duration=0.5) for _ in range(5)]
        stuck = stack.submit(script={"spin_seconds": 600}, timeout_seconds=30)
        jobs = stack.wait_for_all([*healthy, stuck], seconds=90)
    assert "Timeout" in started[0].log.read_text(), "the watchdog leaves a trace"
    for job in jobs:
        stack.check(job)
        if job["id"] == stuck:
            assert job["status"] == "failed" and job["error"]["code"] == "worker_lost"
        else:
            assert job["status"] == "completed", job


class keep_running:  # noqa: N801 - reads as a statement
    """Start a process again whenever it dies, as a supervisor does."""

    def __init__(self, start: Callable[[], Process]) -> None:
        self._start = start
        self._over = threading.Event()
        self._started = [start()]
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> list[Process]:
        self._thread.start()
        return self._started

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            if not self._started[-1].is_alive:
                self._started.append(self._start())
