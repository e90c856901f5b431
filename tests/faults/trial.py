"""One run of one experiment: what it submitted, what it broke, and what became of it."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from faults.oracle import Findings, Promise, examine, examine_batch, examine_leftovers
from faults.stack import Process, Stack, until
from faults.watcher import BatchWatcher, Watcher
from patience import PATIENCE_SECONDS

TINY = {"width": 64, "height": 64}
COMPLETED = frozenset({"completed"})
FAILED = frozenset({"failed"})
CANCELLED = frozenset({"cancelled"})


class Skipped(Exception):
    """This experiment cannot be made here; says why."""


@dataclass(frozen=True)
class Experiment:
    """A seeded schedule of faults. `bound_seconds`: all jobs have ended so long after its last fault was mended."""

    name: str
    sentence: str
    run: Callable[["Trial"], None]
    bound_seconds: float = 40.0
    database: str | None = None  # the only one it is for
    short: bool = False  # whether its smallest form is part of the ordinary tests


@dataclass
class Fault:
    """Something broken, from when to when, in the database's time; `victims` names the processes that lost jobs."""

    name: str
    began: float
    victims: tuple[str, ...] = ()


@dataclass
class Outcome:
    """One row of the table."""

    experiment: str
    seed: int
    jobs: int = 0
    faults: int = 0
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)
    detection: list[float] = field(default_factory=list[float])
    recovery: list[float] = field(default_factory=list[float])
    grid: list[list[str]] = field(default_factory=list[list[str]])  # a table of its own: a head, and rows
    skipped: str | None = None


class Trial:
    """What an experiment works with: a stack, a seeded source of chance, and a book of all it did."""

    def __init__(self, stack: Stack, experiment: Experiment, seed: int, *, is_short: bool) -> None:
        self.stack = stack
        self.experiment = experiment
        self.random = Random(f"{experiment.name} {seed}")
        self.is_short = is_short
        self.project = f"{experiment.name}-{seed}-{time.time_ns()}"
        self.outcome = Outcome(experiment.name, seed)
        self.promises: dict[str, Promise] = {}
        self.faults: list[Fault] = []
        self.watchers: list[Watcher] = []
        self.batch_watchers: list[BatchWatcher] = []
        self._submits = 0

    @property
    def findings(self) -> Findings:
        return self.outcome.findings

    def pick(self, short: Any, long: Any) -> Any:
        """A size, by form."""
        return short if self.is_short else long

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        duration: float = 0.0,
        script: dict[str, Any] | None = None,
        *,
        ends: frozenset[str] = COMPLETED,
        codes: Iterable[str] = (),
        watch: int | None = None,
        **fields: Any,
    ) -> str:
        """Have a tiny job accepted, asking again with the same key until it is; its id.

        `watch` starts a watcher that hangs up so many times.
        """
        job_id = self._insist("/generation-jobs", self._body(duration, script) | fields)["id"]
        self.promises[job_id] = Promise(ends, frozenset(codes))
        if watch is not None:
            self.watch(job_id, breaks=watch)
        return job_id

    def submit_batch(self, count: int, longest: float, *, codes: Iterable[str] = (), breaks: int = 1) -> str:
        """The same with a batch of jobs, which is watched; its id."""
        bodies = [self._body(self.random.uniform(0.0, longest), None) for _ in range(count)]
        batch = self._insist("/batches", {"jobs": bodies})
        for job_id in batch["job_ids"]:
            self.promises[job_id] = Promise(COMPLETED, frozenset(codes))
        chance = Random(self.random.random())
        watcher = BatchWatcher(self.stack.port, batch["id"], batch["job_ids"], chance, breaks=breaks)
        self.batch_watchers.append(watcher)
        watcher.start()
        return batch["id"]

    def import_media(self, url: str, *, ends: frozenset[str] = COMPLETED, codes: Iterable[str] = ()) -> str:
        """Have an import accepted; its id."""
        job_id: str = self._insist("/media/store", {"url": url, "project_id": self.project})["id"]
        self.promises[job_id] = Promise(ends, frozenset(codes))
        return job_id

    def submit_once(self) -> str | None:
        """One submit that may be cut off: None then, and `submit_again` must follow."""
        self._submits += 1
        view = self._ask("/generation-jobs", self._body(0.0, None), self._submits)
        if view is None:
            return None
        self.promises[view["id"]] = Promise(COMPLETED)
        return view["id"]

    def submit_again(self) -> str:
        """The last submit once more, with its key."""
        self._submits -= 1
        return self.submit()

    def _body(self, duration: float, script: dict[str, Any] | None) -> dict[str, Any]:
        options: dict[str, Any] = {"duration_seconds": duration} | ({"mock": script} if script else {})
        return {"prompt": "a lighthouse at dusk", **TINY, "provider_options": options, "project_id": self.project}

    def _insist(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The view of what is accepted at last."""
        self._submits += 1
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (view := self._ask(path, body, self._submits)) is None:
            if time.monotonic() > deadline:
                raise AssertionError("a submit was not accepted within a minute")
            time.sleep(0.05)
        return view

    def _ask(self, path: str, body: dict[str, Any], number: int) -> dict[str, Any] | None:
        """The view of what was accepted; None if nobody answered, or the service could not."""
        try:
            headers = {"Idempotency-Key": f"{self.project}-{number}"}
            answer = self.stack.http.post(path, json=body, headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code == 202:
            return answer.json()
        assert answer.status_code >= 500, answer.text
        return None

    def submit_some(self, count: int, duration: float = 0.0, **options: Any) -> list[str]:
        return [self.submit(duration, **options) for _ in range(count)]

    def may_end(self, job_id: str, *statuses: str, codes: Iterable[str] = ()) -> None:
        """Widen what is right for a job."""
        promise = self.promises[job_id]
        self.promises[job_id] = Promise(promise.statuses | set(statuses), promise.codes | frozenset(codes))

    def watch(self, job_id: str, *, breaks: int = 1) -> None:
        watcher = Watcher(self.stack.port, job_id, Random(self.random.random()), breaks=breaks)
        self.watchers.append(watcher)
        watcher.start()

    def wait_processing(
        self, job_ids: Sequence[str], *, accepted: bool = False, attempt: int = 1, seconds: float = 30
    ) -> None:
        """Until all of these run (or have ended), in this attempt or a later one; `accepted`: the provider has them."""

        def run() -> bool:
            rows = self.stack.rows.jobs(self.project)
            return all(
                rows[job_id].is_terminal
                or (
                    rows[job_id].status == "processing"
                    and rows[job_id].attempt >= attempt
                    and (rows[job_id].provider_job_id or not accepted)
                )
                for job_id in job_ids
            )

        until(run, seconds=seconds, what="the start of all jobs")

    def has_suspects(self) -> bool:
        """Whether a job of ours was in two processes that died."""
        return any(job.queue == "isolated" for job in self.stack.rows.jobs(self.project).values())

    def wait_ended(self, seconds: float | None = None) -> None:
        """Until every job has ended, or the bound is over: the oracle will say which have not."""
        deadline = time.monotonic() + (self.experiment.bound_seconds if seconds is None else seconds)
        while self.stack.rows.unended(self.project) != [] and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- faults -------------------------------------------------------------------------------------------------------

    def fault(self, name: str, *victims: Process) -> Fault:
        """Write a fault down, just before it happens."""
        fault = Fault(name, time.time(), tuple(victim.name for victim in victims))
        self.faults.append(fault)
        return fault

    def pause(self, least: float, most: float) -> None:
        """Part of the schedule."""
        time.sleep(self.random.uniform(least, most))

    def probe(self) -> None:
        """A job submitted now, after mending something: how long until work is done again."""
        began = time.monotonic()
        job_id = self.submit()
        until(
            lambda: self.stack.rows.job(job_id).is_terminal,
            seconds=self.experiment.bound_seconds,
            what="the end of the first job after the fault",
        )
        self.outcome.recovery.append(time.monotonic() - began)

    def expect_nobody_lost(self) -> None:
        """No process died, so none may have been believed to be dead."""
        for job_id, attempts in self.stack.rows.attempts(self.project).items():
            lost = any(attempt.outcome == "lost" for attempt in attempts)
            self.expect(not lost, f"job {job_id} was taken from a worker that lived")

    def expect(self, holds: bool, sentence: str) -> None:
        """A promise that this experiment checks itself."""
        if not holds:
            self.findings.add("broken", sentence)

    # --- the end ------------------------------------------------------------------------------------------------------

    def conclude(self) -> Outcome:
        """Wait for everything owed, then let the oracle judge."""
        outcome, stack = self.outcome, self.stack
        self.wait_ended()
        for watcher in (*self.watchers, *self.batch_watchers):
            watcher.join(timeout=PATIENCE_SECONDS)
            watcher.stop()
        until(stack.rows.is_idle, what="idle workers")
        examine(stack, self.project, self.promises, self.watchers, self.findings)
        for watcher in self.batch_watchers:
            examine_batch(stack.http, watcher, stack.rows.jobs(self.project), self.findings)
        examine_leftovers(stack, self.findings)
        outcome.jobs, outcome.faults = len(self.promises), len(self.faults)
        self._measure()
        return outcome

    def _measure(self) -> None:
        """How long it took to notice the loss of each attempt, and until its job ran again."""
        for attempts in self.stack.rows.attempts(self.project).values():
            for index, attempt in enumerate(attempts):
                if attempt.outcome != "lost" or attempt.finished_at is None:
                    continue
                began = max(
                    (
                        fault.began
                        for fault in self.faults
                        if fault.victims
                        and any(attempt.worker_name.split(".")[0] == victim for victim in fault.victims)
                        and attempt.started_at.timestamp() - 0.5 <= fault.began < attempt.finished_at.timestamp()
                    ),
                    default=None,
                )
                if began is None:
                    continue
                self.outcome.detection.append(attempt.finished_at.timestamp() - began)
                if index + 1 < len(attempts):
                    self.outcome.recovery.append(attempts[index + 1].started_at.timestamp() - began)
