"""Valkey gone, empty, hanging, full or absent. Jobs that run go on; jobs are accepted; what waits starts afterwards."""

import contextlib
import itertools
import time

import hiredis

from faults.lab import faulty
from faults.stack import NAMESPACE, until
from faults.trial import Experiment, Trial
from safelight.queue import message

CRASHES = ("worker_lost",)


def _load(trial: Trial, count: int, longest: float = 1.0) -> list[str]:
    random = trial.random
    return [trial.submit(random.uniform(0.0, longest), watch=random.choice((None, 0, 1))) for _ in range(count)]


def _killed(trial: Trial, *, aof: bool) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    if aof:
        stack.valkey.stop()
        stack.valkey.aof = True
        stack.valkey.start()
        trial.probe()
    for _ in range(trial.pick(1, 3)):
        ids = _load(trial, trial.pick(6, 15))
        trial.wait_processing(ids[:3])
        trial.fault("kill Valkey")
        stack.valkey.kill()
        _load(trial, trial.pick(6, 15))
        trial.pause(0.2, trial.pick(0.5, 2.0))
        stack.valkey.start()
        trial.probe()
    trial.wait_ended()
    if aof:
        stack.valkey.stop()
        stack.valkey.aof = False
        stack.valkey.start()


def flushed(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(2, 8)):
        _load(trial, 6)
        trial.pause(0.0, 0.4)
        trial.fault("FLUSHALL")
        stack.valkey.flush()
    trial.probe()


def restart_loop(trial: Trial) -> None:
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(4, 12)):
        _load(trial, 3)
        trial.fault("kill Valkey")
        stack.valkey.kill()
        trial.pause(0.0, 0.4)
        stack.valkey.start()
        trial.pause(0.0, 0.8)
    trial.probe()


def hanging(trial: Trial) -> None:
    """Connections stay open and nobody answers."""
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 2)):
        ids = _load(trial, 8, 3.0)
        trial.wait_processing(ids[:2])
        trial.fault("SIGSTOP Valkey")
        stack.valkey.freeze()
        began = time.monotonic()
        _load(trial, 6)
        while time.monotonic() - began < trial.pick(4.0, 60.0):
            trial.pause(0.5, 1.0)
            _load(trial, 1)
        stack.valkey.thaw()
        trial.probe()


def full(trial: Trial) -> None:
    """Commands that need memory are refused: no hint can be sent, no event published."""
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 3)):
        running = _load(trial, 6)
        trial.wait_processing(running[:2])
        trial.fault("maxmemory")
        stack.valkey.command("CONFIG", "SET", "maxmemory", "1")
        waiting = _load(trial, 6)
        trial.pause(1.0, 3.0)
        stack.valkey.command("CONFIG", "SET", "maxmemory", "0")
        trial.probe()
        del waiting


def clients_killed(trial: Trial) -> None:
    stack, random = faulty(trial), trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(4, 15)):
        _load(trial, 3)
        for kind in random.sample(("normal", "pubsub"), random.randint(1, 2)):
            trial.fault(f"CLIENT KILL TYPE {kind}")
            with contextlib.suppress(OSError, hiredis.HiredisError):
                stack.valkey.command("CLIENT", "KILL", "TYPE", kind)
        trial.pause(0.0, 0.5)
    trial.probe()


def absent_at_start(trial: Trial) -> None:
    """API and workers start without Valkey; jobs are accepted meanwhile, and all run once it is there."""
    stack = faulty(trial)
    stack.crew(api=False, io=0)
    trial.fault("no Valkey at the start")
    stack.valkey.kill()
    stack.crew(io=1, local=1)
    ids = _load(trial, 10)
    trial.pause(*trial.pick((1.0, 2.0), (60.0, 70.0)))
    trial.expect(
        stack.rows.count(trial.project, "pending") == len(ids), "a job ran although nobody could have been told of it"
    )
    stack.valkey.start()
    trial.probe()


def hints_doubled(trial: Trial) -> None:
    """Every hint arrives five times more, while its job waits, runs and has ended."""
    stack, random = faulty(trial), trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(10, 60)):
        job_id = trial.submit(random.uniform(0.0, 0.5), script={"transient_errors": random.choice((0, 0, 1))}, watch=0)
        _hint(trial, [job_id] * 5, "image_generation")
    trial.fault("doubled hints")
    trial.wait_ended()
    until(lambda: stack.valkey.command("LLEN", f"{NAMESPACE}image_generation") == 0, what="an empty queue")


def hints_replayed(trial: Trial) -> None:
    """All hints of the last hour, ended jobs and all, to every queue they might have had, with work going on."""
    stack = faulty(trial)
    stack.crew(io=2, local=2)
    _load(trial, 10)
    trial.wait_ended()
    for _ in range(trial.pick(1, 3)):
        # Those that wait for a retry or for their moment must not be started by an old hint.
        for _ in range(5):
            trial.submit(0.2, script={"rate_limit": {"times": 1, "retry_after": 1.0}}, watch=0)
        _load(trial, 5)
        everybody = [job.id for job in stack.rows.recent_jobs(3600)]
        trial.fault("replayed hints")
        for queue in ("image_generation", "isolated"):
            _hint(trial, everybody, queue)
        trial.wait_ended()
    rows = stack.rows.attempts(trial.project)
    for attempts in rows.values():
        for first, second in itertools.pairwise(attempts):
            if first.outcome == "deferred" and first.finished_at is not None:
                waited = (second.started_at - first.finished_at).total_seconds()
                trial.expect(waited >= 0.99, f"a replayed hint began a job again after {waited:.2f} s instead of 1 s")


def _hint(trial: Trial, job_ids: list[str], queue: str) -> None:
    hints = [message(queue, job_id, soft_seconds=300, hard_seconds=301, origin="replay") for job_id in job_ids]
    if hints:
        faulty(trial).valkey.command("LPUSH", NAMESPACE + queue, *hints)


OUTAGES = (
    Experiment("valkey-killed", "Valkey is killed and comes back empty", lambda t: _killed(t, aof=False), short=True),
    Experiment("valkey-killed-with-file", "Valkey is killed and reads its file again", lambda t: _killed(t, aof=True)),
    Experiment("valkey-flushed", "Valkey is emptied under work", flushed, short=True),
    Experiment("valkey-restart-loop", "Valkey is killed over and over", restart_loop),
    Experiment("valkey-hanging", "Valkey stands still for a minute (in short: 4 s)", hanging),
    Experiment("valkey-full", "Valkey has no memory left", full),
    Experiment("valkey-clients-killed", "all connections to Valkey are killed, again and again", clients_killed),
    Experiment("valkey-absent", "API and workers start without Valkey", absent_at_start),
    Experiment("hints-doubled", "every hint arrives six times", hints_doubled, short=True),
    Experiment("hints-replayed", "all hints of the last hour arrive again", hints_replayed),
)
