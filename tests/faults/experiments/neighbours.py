"""Jobs that are bad for whoever is near: the neighbours finish untouched, and the bad one is stopped."""

import threading
from pathlib import Path
from typing import Any, Self

from faults.stack import BEAT_SECONDS, LEASE_SECONDS, Stack, born, keep_running, kill_pid
from faults.trial import CANCELLED, COMPLETED, FAILED, Experiment, Trial


def _among(
    trial: Trial, count: int, bad: dict[str, Any], *, ends: frozenset[str] = FAILED, **fields: Any
) -> tuple[list[str], str]:
    """Healthy jobs with a bad one in their middle."""
    random = trial.random
    healthy = [trial.submit(random.uniform(0.1, 0.5), watch=random.choice((None, 0))) for _ in range(count)]
    job_id = trial.submit(0.3, bad, ends=ends, watch=0, **fields)
    healthy += [trial.submit(random.uniform(0.1, 0.5)) for _ in range(count)]
    return healthy, job_id


def _untouched(trial: Trial, healthy: list[str]) -> None:
    rows = trial.stack.rows.jobs(trial.project)
    for job_id in healthy:
        job = rows[job_id]
        trial.expect(job.crash_count == 0 and job.retry_count == 0, f"the neighbour {job_id} was blamed")


def poison(trial: Trial) -> None:
    trial.stack.crew(io=1, local=2)
    with keep_running(trial.stack, "io-1"):
        for _ in range(trial.pick(1, 3)):
            trial.fault("a job that kills its process", trial.stack.member("io-1"))
            healthy, bad = _among(trial, trial.pick(8, 25), {"crash": True})
            trial.wait_ended()
            _untouched(trial, healthy)
            _failed_as(trial, bad, "worker_lost")
            trial.expect(trial.stack.rows.job(bad).crash_count == 3, "the poison job did not crash three times alone")


def loop_stopper(trial: Trial) -> None:
    """One C call that never returns, with the GIL: the watchdog ends the process."""
    settings = {"SAFELIGHT_STUCK_LOOP_SECONDS": "1.5"}
    stack = trial.stack
    stack.crew(io=0)
    stack.hire("io-1", **settings)
    stack.hire("local", SAFELIGHT_LOCAL_SLOTS="3", **settings)
    stack.wait_for_workers(image_generation=1, isolated=3)
    with keep_running(stack, "io-1"):
        trial.fault("a C loop", stack.member("io-1"))
        healthy, bad = _among(trial, 6, {"spin_seconds": 600}, timeout_seconds=60)
        trial.wait_ended()
        _untouched(trial, healthy)
        _failed_as(trial, bad, "worker_lost")
    stack.crew(io=0, local=0)


def loop_blocker(trial: Trial) -> None:
    """Plain `time.sleep` on the loop, again and again, once for longer than the lease."""
    stack = trial.stack
    stack.crew(io=1, local=2)
    for seconds in (0.5, 1.0, *trial.pick((), (2.5,))):
        trial.fault(f"the loop stands for {seconds} s")
        # Who stands still for longer than his lease is dead, as far as anybody can tell.
        codes = ("worker_lost",) if seconds > LEASE_SECONDS else ()
        healthy, _ = _among(trial, 6, {"block_loop_seconds": seconds}, ends=COMPLETED, codes=codes)
        trial.wait_ended()
        _untouched(trial, healthy)


class MemoryKiller:
    """Does what the kernel's does: SIGKILL to the process of ours that holds more than `limit_mb`."""

    def __init__(self, stack: Stack, limit_mb: int) -> None:
        self._stack = stack
        self._limit = limit_mb << 20
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.kills = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.03):
            for process in list(self._stack.crew_members.values()):
                for pid in [process.pid, *process.children()] if process.is_alive else []:
                    if born(pid) is not None and _resident(pid) > self._limit:
                        self.kills += 1
                        kill_pid(pid)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def memory_hog(trial: Trial) -> None:
    trial.stack.crew(io=1, local=2)
    with keep_running(trial.stack, "io-1"), MemoryKiller(trial.stack, 600):
        trial.fault("a job that takes all memory", trial.stack.member("io-1"))
        healthy, bad = _among(trial, trial.pick(6, 15), {"memory_mb": 700, "hang": True})
        trial.wait_ended()
        _untouched(trial, healthy)
        _failed_as(trial, bad, "worker_lost")


def cancellation_swallower(trial: Trial) -> None:
    """Deaf to cancellation: the row ends at once, and the slot is free again at the hard limit."""
    stack = trial.stack
    stack.crew(io=0)
    stack.hire("io-1", SAFELIGHT_IO_SLOTS="2")
    stack.wait_for_workers(image_generation=1)
    for _ in range(trial.pick(1, 2)):
        trial.fault("two jobs that cannot be stopped, in both slots")
        late = trial.submit(script={"swallow_cancel": True}, ends=FAILED, timeout_seconds=1.0, watch=0)
        asked = trial.submit(script={"swallow_cancel": True}, ends=CANCELLED, watch=0)
        trial.wait_processing([late, asked], accepted=True)
        waiting = trial.submit_some(4)
        stack.http.post(f"/generation-jobs/{asked}/cancel")
        trial.wait_ended()
        _failed_as(trial, late, "time_limit_exceeded")
        _untouched(trial, waiting)
    stack.crew(io=0)


def hanging_provider(trial: Trial) -> None:
    """Failed at the soft limit, and never later than the hard limit and one heartbeat."""
    random = trial.random
    trial.stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 3)):
        trial.fault("providers that hang")
        for _ in range(trial.pick(6, 20)):
            script = random.choice(({"hang": True}, {"swallow_cancel": True}))
            trial.submit(script=script, ends=FAILED, timeout_seconds=random.uniform(1.0, trial.pick(1.3, 2.5)), watch=0)
        trial.submit_some(10, 0.2)
        trial.wait_ended()
    jobs = trial.stack.rows.jobs(trial.project)
    for job_id, attempts in trial.stack.rows.attempts(trial.project).items():
        job = jobs[job_id]
        if job.status != "failed":
            continue
        _failed_as(trial, job_id, "time_limit_exceeded")
        finished = attempts[-1].finished_at
        seconds = (finished - attempts[-1].started_at).total_seconds() if finished else 0.0
        trial.outcome.detection.append(max(0.0, seconds - job.soft_limit_seconds))
        trial.expect(seconds >= job.soft_limit_seconds - 0.01, f"failed {seconds:.2f} s after its start, too early")
        latest = job.hard_limit_seconds + BEAT_SECONDS
        trial.expect(seconds <= latest, f"failed after {seconds:.2f} s; the latest moment was {latest:.2f} s")


def _failed_as(trial: Trial, job_id: str, code: str) -> None:
    error = trial.stack.rows.job(job_id).error or {}
    trial.expect(error.get("code") == code, f"job {job_id} should have failed as {code}, not {error.get('code')}")


NEIGHBOURS = (
    Experiment("poison", "a job kills every process it runs in, among healthy ones", poison, short=True),
    Experiment("loop-stopper", "a job holds the interpreter for ever in one C call", loop_stopper),
    Experiment("loop-blocker", "jobs block the event loop", loop_blocker),
    Experiment("memory-hog", "a job takes so much memory that its process is killed", memory_hog),
    Experiment("cancellation-swallower", "jobs that cannot be stopped fill all slots", cancellation_swallower),
    Experiment("hanging-provider", "providers that never answer", hanging_provider, short=True),
)
