"""What must hold when the storm is over. It reads rows, files, logs, the provider's ledger and the watchers' books.

Nothing here knows which faults were injected, but for two things a job's maker says when he submits it: which ends are
right for this job, and whether its end may have come from being in lost processes three times (`worker_lost`).
"""

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import httpx

from faults.rows import Record
from faults.stack import Stack, until
from faults.watcher import BatchWatcher, Watcher
from safelight.artifacts import ArtifactStore
from safelight.db import Database
from safelight.jobs import kept_attempts
from safelight.jobs.job import TERMINAL, Attempt, Job
from safelight.pictures import PictureWorkers
from safelight.storage import Storage

FAILED_THERE = ("retry", "deferred", "moved")
IMPORT = "media.import"
ENDED_BY_ATTEMPT = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Promise:
    """What is owed to an accepted job: the ends that are right for it."""

    statuses: frozenset[str]
    codes: frozenset[str] = frozenset()  # error codes with which it may also fail


@dataclass
class Findings:
    """Counts of what went wrong, all zero if nothing did, with a sentence for each."""

    lost: int = 0  # accepted and never ended, or no longer there
    wrong_ends: int = 0  # ended as nobody asked for
    double_ends: int = 0
    foreign_artifacts: int = 0  # of another attempt, missing, or not what the hash says
    double_submits: int = 0
    missed_events: int = 0
    doubled_events: int = 0
    late_events: int = 0
    leftovers: int = 0  # processes and files
    broken: int = 0  # promises that an experiment checks itself
    sentences: list[str] = field(default_factory=list[str])

    def add(self, kind: str, sentence: str, count: int = 1) -> None:
        setattr(self, kind, getattr(self, kind) + count)
        self.sentences.append(f"{kind}: {sentence}")

    @property
    def counts(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    @property
    def is_clean(self) -> bool:
        return not any(self.counts.values())


def examine(
    stack: Stack, project: str, promises: Mapping[str, Promise], watchers: Sequence[Watcher], findings: Findings
) -> None:
    """Judge everything about the jobs of one experiment."""
    rows = stack.rows.jobs(project)
    attempts = stack.rows.attempts(project)
    recorded = stack.rows.artifacts(project)
    for job_id in promises.keys() - rows.keys():
        findings.add("lost", f"job {job_id} was accepted and is not there")
    for job_id in rows.keys() - promises.keys():
        findings.add("broken", f"job {job_id} is there and was never accepted, or was accepted twice")
    submits = stack.submits()
    for job_id, job in rows.items():
        its = attempts.get(job_id, [])
        if not job.is_terminal:
            findings.add("lost", f"{_told(job, its)} has not ended")
            continue
        _judge_end(job, its, promises.get(job_id), findings)
        _judge_versions(job, its, findings)
        if job.mocked:  # a stand-in's ledger is read by the experiment that made it
            _judge_submits(job, its, submits.get(job_id, []), findings)
        _judge_artifacts(stack.http, job, its, recorded.get(job_id, []), findings)
    _judge_commits(stack, rows, findings)
    for watcher in watchers:
        if watcher.job_id in rows:
            _judge_watcher(watcher, rows[watcher.job_id], findings)


def _told(job: Job, attempts: Iterable[Attempt]) -> str:
    outcomes = ", ".join(f"{a.number} {a.outcome} on {a.queue}@{a.worker_name}" for a in attempts)
    error = "" if job.error is None else f", {job.error['code']}: {job.error['message']}"
    return f"job {job.id} ({job.status}{error}, version {job.version}, attempts: {outcomes or 'none'})"


def _judge_end(job: Job, attempts: list[Attempt], promise: Promise | None, findings: Findings) -> None:
    code = job.error["code"] if job.error is not None else None
    if promise is not None and job.status not in promise.statuses:
        # A job that was in three processes of its own that died has been told the truth.
        alone = sum(a.outcome == "lost" and a.queue == "isolated" for a in attempts)
        allowed = code in promise.codes and (code != "worker_lost" or alone >= 3)
        interrupted = any(a.outcome in ("lost", "handed_back") and a.provider_job_id is None for a in attempts)
        allowed = allowed or (code == "unknown_outcome" and _is_paid(job) and interrupted)
        if not (job.status == "failed" and allowed):
            findings.add("wrong_ends", f"{_told(job, attempts)} should be {sorted(promise.statuses)}")
    ends = [a for a in attempts if a.outcome in ENDED_BY_ATTEMPT]
    if len(ends) > 1 or (ends and ends[0] is not attempts[-1]):
        findings.add("double_ends", f"{_told(job, attempts)}: more than one end, or an attempt after it")
    if ends and ends[0].outcome != job.status:
        findings.add("double_ends", f"{_told(job, attempts)}: its attempt ended otherwise")
    if any(a.outcome is None for a in attempts):
        findings.add("double_ends", f"{_told(job, attempts)}: an attempt without an end")


def _is_paid(job: Job) -> bool:
    script: dict[str, object] = job.parameters.provider_options.get("mock") or {}
    return bool(script.get("paid"))


def _judge_versions(job: Job, attempts: list[Attempt], findings: Findings) -> None:
    """Every change of state raised the version by one and is written down in exactly one place."""
    steps = [1]
    for attempt in attempts:
        steps += [attempt.started_version, attempt.ended_version or 0]
    if steps[-1] != job.version:
        steps.append(job.version)  # ended while it waited
    if steps != list(range(1, job.version + 1)) or [a.number for a in attempts] != list(range(1, job.attempt + 1)):
        findings.add("double_ends", f"{_told(job, attempts)}: versions {steps}")


def _judge_submits(job: Job, attempts: list[Attempt], submitted: list[int], findings: Findings) -> None:
    """One submit, or one more for each that is explained.

    Explained is a transient failure of the provider, and the one thing that cannot be known: a process that died after
    the provider took the job and before that could be written down. Where money is at stake (`paid`: the provider says
    so before it submits) not even that explains a second one: such a job has to fail as `unknown_outcome`.
    """
    paid = _is_paid(job)
    by_number = {attempt.number: attempt for attempt in attempts}
    for number, count in Counter(submitted).items():
        if count > 1 or number not in by_number:
            findings.add("double_submits", f"{_told(job, attempts)}: attempt {number} submitted {count} times")
    for number in sorted(set(submitted))[:-1]:
        attempt = by_number.get(number)
        if attempt is None:
            continue
        unknown = attempt.outcome in ("lost", "handed_back") and attempt.provider_job_id is None
        provider_failed = attempt.outcome in FAILED_THERE and (attempt.error or {}).get("code", "").startswith(
            "provider_"
        )
        if provider_failed or (unknown and not paid):
            continue
        findings.add("double_submits", f"{_told(job, attempts)}: submitted by attempts {submitted}")
    if job.status == "completed" and not submitted and job.kind != IMPORT:  # which nobody is asked to make
        findings.add("double_submits", f"{_told(job, attempts)}: completed without a submit")


def _judge_artifacts(
    http: httpx.Client, job: Job, attempts: list[Attempt], recorded: list[Record], findings: Findings
) -> None:
    wanted = job.parameters.batch_size if job.status == "completed" else 0
    if len(recorded) != wanted:
        findings.add("foreign_artifacts", f"{_told(job, attempts)}: {len(recorded)} artifacts instead of {wanted}")
    for artifact in recorded:
        if artifact.attempt != job.attempt or not artifact.storage_key.startswith(f"jobs/{job.id}/{job.attempt}/"):
            findings.add("foreign_artifacts", f"{_told(job, attempts)}: {artifact.storage_key}")
        answer = http.get(f"/artifacts/{artifact.id}/content")
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != artifact.sha256:
            findings.add(
                "foreign_artifacts", f"{artifact.storage_key}: {answer.status_code}, or not what its hash says"
            )


def _judge_commits(stack: Stack, rows: Mapping[str, Job], findings: Findings) -> None:
    """The logs of all processes: every version of a job was committed by one of them, and one of them ended it."""
    versions: Counter[tuple[str, int]] = Counter()
    ends: Counter[str] = Counter()
    for process in stack.processes:
        for line in process.events("job.status_changed"):
            job_id = str(line.get("job_id"))
            if job_id in rows:
                versions[job_id, line["version"]] += 1
                ends[job_id] += line["status"] in TERMINAL
    for (job_id, version), count in versions.items():
        if count > 1:
            findings.add("double_ends", f"version {version} of job {job_id} was announced {count} times")
    for job_id, count in ends.items():
        if count > 1:
            findings.add("double_ends", f"the end of job {job_id} was announced {count} times")


def _judge_watcher(watcher: Watcher, job: Job, findings: Findings) -> None:
    told = f"the watcher of job {job.id} saw {watcher.versions} of {job.version} in {watcher.connections} connections"
    missed = watcher.missed + max(0, job.version - (watcher.versions[-1] if watcher.versions else 0))
    if missed:
        findings.add("missed_events", told, missed)
    if watcher.doubled:
        findings.add("doubled_events", told, watcher.doubled)
    if watcher.late:
        findings.add("late_events", f"{told}; {watcher.late} came after the state they belong to", watcher.late)
    if not watcher.finished:
        findings.add("missed_events", f"{told}, and was never told that this is all")


def examine_batch(http: httpx.Client, watcher: BatchWatcher, rows: Mapping[str, Job], findings: Findings) -> None:
    """The view is that of its jobs, and its watcher was told every state of each, once, and the end."""
    mine = {job_id: rows[job_id] for job_id in watcher.told if job_id in rows}
    view = http.get(f"/batches/{watcher.job_id}").json()
    counts = Counter(job.status for job in mine.values())
    status = next((end for end in ("failed", "cancelled") if counts[end]), "completed")
    told = f"batch {watcher.job_id}"
    if {name: count for name, count in view["counts"].items() if count} != dict(counts):
        findings.add("broken", f"{told} says {view['counts']} of {dict(counts)}")
    if (view["status"], view["progress"], view["is_terminal"]) != (status, 100, True):
        findings.add("broken", f"{told} says {view['status']} at {view['progress']} %, and is {status}")
    for job_id, job in mine.items():
        seen = watcher.told[job_id]
        owed = list(range(2, job.version + 1))
        if missed := len(set(owed) - set(seen)):
            findings.add("missed_events", f"the watcher of {told} saw {seen} of {job.version} of {job_id}", missed)
        if sorted(seen) != seen:
            findings.add("late_events", f"the watcher of {told} saw {seen} of job {job_id}")
    if watcher.doubled:
        findings.add("doubled_events", f"the watcher of {told} was told {watcher.doubled} states again")
    if watcher.late or watcher.fell_back:
        findings.add("late_events", f"{told}: {watcher.late} after the end, progress fell {watcher.fell_back} times")
    if watcher.end != f"batch.{status}" or not watcher.finished:
        findings.add("missed_events", f"the watcher of {told} was told {watcher.end!r} of {status}, and nothing more")


def examine_leftovers(stack: Stack, findings: Findings) -> None:
    """Once nobody works any more: no process without its parent, and no file without a row after collection."""
    orphans: list[str] = []
    missing: list[str] = []
    for _ in range(20):
        orphans, missing = asyncio.run(_collect(stack))
        if not orphans and not missing:
            break
        time.sleep(0.1)
    else:
        for key in orphans:
            findings.add("leftovers", f"the file {key} has no row")
        for key in missing:
            findings.add("foreign_artifacts", f"the file {key} is recorded and is not there")
    try:
        until(lambda: not stack.survivors(), what="the end of orphaned processes")
    except AssertionError:
        for pid in stack.survivors():
            findings.add("leftovers", f"process {pid} outlived its parent")


async def _collect(stack: Stack) -> tuple[list[str], list[str]]:
    """Run the real collector with no patience, then compare what lies there with the rows."""
    database = Database(stack.database_url, readers=1)
    storage = Storage.open(stack.files.as_uri())
    pictures = PictureWorkers()
    try:
        store = ArtifactStore(storage, pictures)
        await store.collect_orphans(lambda ids: database.read(kept_attempts, ids), older_than=timedelta(0))
        await storage.sweep(0.0)
    finally:
        pictures.close()
        database.close()
    files = {str(path.relative_to(stack.files)) for path in stack.files.rglob("*") if path.is_file()}
    recorded: set[str] = set()
    for artifacts in stack.rows.artifacts().values():
        for artifact in artifacts:
            recorded |= {artifact.storage_key, *(thumbnail["storage_key"] for thumbnail in artifact.thumbnails)}
    return sorted(files - recorded), sorted(recorded - files)
