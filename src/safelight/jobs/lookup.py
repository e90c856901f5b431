"""Reading jobs: lists, attempts, what watchers missed, and what has been learnt about durations."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median

from sqlalchemy import (
    ColumnElement,
    Select,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    type_coerce,
    union_all,
)

from safelight import artifacts as results
from safelight.artifacts import Artifact
from safelight.db import Instant, Json, RowId, Tx, db_now, moment_of, without
from safelight.jobs import events
from safelight.jobs.job import (
    COMPLETED,
    PROCESSING,
    RELEASED,
    STATUSES,
    Attempt,
    Job,
    attempts,
    has_status,
    jobs,
)
from safelight.jobs.line import count_waiting
from safelight.jobs.situation import explain
from safelight.jobs.statements import statements
from safelight.providers.parameters import Parameters
from safelight.stream import Missed
from safelight.watch import Message

RUN_TIME_SAMPLES = 20
RUN_TIMES_LOOKED_AT = 1000
PAGE_LETTERS = 8 * 1024 * 1024  # of prompts and workflows, after which a page ends
MAX_COUNTED = 10_000
BITE = 500  # ids of one statement
# By the database's clock: ids tell the time of the process that made them, and clocks differ.
NEWEST_FIRST = (jobs.c.created_at.desc(), jobs.c.id.desc())


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list asks for; None means any. `before_id` is the last id of the page before."""

    owner_id: str
    ids: Sequence[str] | None = None
    statuses: Sequence[str] | None = None
    kind: str | None = None
    provider: str | None = None
    batch_id: str | None = None
    project_id: str | None = None
    chapter_id: str | None = None
    scene_number: int | None = None
    character_id: str | None = None
    text: str | None = None
    younger_than_seconds: float | None = None
    older_than_seconds: float | None = None
    before_id: str | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first, with their artifacts; `more` tells whether another page follows.

    The jobs come without what is bulky: `workflows` holds those that some have, as the JSON that the row is made of.
    """

    jobs: Sequence[Job]
    artifacts: Mapping[str, Sequence[Artifact]]
    workflows: Mapping[str, str]
    more: bool


def find(tx: Tx, wanted: Filter) -> Page:
    """The owner's jobs that match, newest first: as many as are wanted, or fewer where they are very large."""
    conditions = [jobs.c.owner_id == wanted.owner_id, jobs.c.deleted_at.is_(None)]
    if wanted.ids is not None:
        conditions.append(jobs.c.id.in_(wanted.ids))
    for column, value in (
        (jobs.c.kind, wanted.kind),
        (jobs.c.provider, wanted.provider),
        (jobs.c.batch_id, wanted.batch_id),
        (jobs.c.project_id, wanted.project_id),
        (jobs.c.chapter_id, wanted.chapter_id),
        (jobs.c.scene_number, wanted.scene_number),
        (jobs.c.character_id, wanted.character_id),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.text:
        conditions.append(jobs.c.prompt.icontains(wanted.text, autoescape=True))
    if wanted.younger_than_seconds is not None:
        conditions.append(jobs.c.created_at >= db_now(-wanted.younger_than_seconds))
    if wanted.older_than_seconds is not None:
        conditions.append(jobs.c.created_at <= db_now(-wanted.older_than_seconds))
    if wanted.before_id is not None:
        conditions.append(_asked_before(tx, wanted.before_id))
    statuses = STATUSES if wanted.statuses is None else sorted(set(wanted.statuses))
    if len(statuses) == 1:
        # Its name, not a parameter: an index of completed jobs alone can serve then.
        conditions.append(jobs.c.status == literal_column(f"'{statuses[0]}'"))
    elif len(statuses) < len(STATUSES):
        # The newest of each, along its index: few open jobs must not be searched for among a million ended ones.
        newest = [_newest(wanted.limit + 1, *conditions, jobs.c.status == status) for status in statuses]
        conditions = [jobs.c.id.in_(union_all(*newest)) if newest else false()]
    query = select(*_LISTED, _WORKFLOW).where(*conditions)
    found: list[Job] = []
    workflows: dict[str, str] = {}
    letters = 0
    with closing(tx.execute(query.order_by(*NEWEST_FIRST).limit(wanted.limit + 1))) as rows:
        for *columns, workflow in rows:
            job = Job.of(columns)
            found.append(job)
            if workflow is not None:
                workflows[job.id] = workflow
            asked = job.parameters
            letters += sum(len(text) for text in (asked.prompt, asked.negative_prompt, workflow) if text is not None)
            if len(found) == wanted.limit or letters > PAGE_LETTERS:
                break
        more = rows.fetchone() is not None
    made = results.of_jobs(tx, [job.id for job in found if job.status == "completed"])
    return Page(explain(tx, found), made, workflows, more)


_WORKFLOW = type_coerce(jobs.c.parameters, Json)["workflow"].as_string()
_BRIEF = type_coerce(without(jobs.c.parameters, "workflow", "template_definition"), jobs.c.parameters.type)
_LISTED = [_BRIEF if column is jobs.c.parameters else column for column in jobs.c]


def _newest(limit: int, *conditions: ColumnElement[bool]) -> Select[str]:
    newest = select(jobs.c.id).where(*conditions).order_by(*NEWEST_FIRST).limit(limit).subquery()
    return select(newest.c.id)


def _asked_before(tx: Tx, job_id: str) -> ColumnElement[bool]:
    """Asked for before this job; one that is forgotten since is as old as its id says."""
    asked_at = tx.execute(select(jobs.c.created_at).where(jobs.c.id == job_id)).scalar_one_or_none()
    this = literal(asked_at or moment_of(job_id), Instant), literal(job_id, RowId)
    return tuple_(jobs.c.created_at, jobs.c.id) < tuple_(*this)


def with_artifacts(tx: Tx, wanted: Sequence[tuple[str, str]]) -> list[tuple[Job, Sequence[Artifact]] | None]:
    """For each (job id, owner) the job and what it made; None if it is not there or is somebody else's."""
    rows = tx.execute(_GET, {"b_ids": list({job_id for job_id, _ in wanted})})
    found = {job.id: job for job in explain(tx, [Job.of(row) for row in rows])}
    made = results.of_jobs(tx, [job.id for job in found.values() if job.status == "completed"])
    return [
        (job, made.get(job.id, ())) if (job := found.get(job_id)) is not None and job.owner_id == owner_id else None
        for job_id, owner_id in wanted
    ]


_GET = select(*jobs.c).where(jobs.c.id.in_(bindparam("b_ids", expanding=True)))


def artifacts_of(tx: Tx, job: Job) -> Sequence[Artifact]:
    """A completed job's artifacts; no other job has any."""
    return results.of_jobs(tx, [job.id]).get(job.id, []) if job.status == "completed" else []


def jobs_at_provider(tx: Tx, provider: str, remote_ids: Sequence[str]) -> list[str]:
    """The running jobs that a provider has under these ids."""
    query = select(jobs.c.id).where(
        jobs.c.provider == provider, jobs.c.provider_job_id.in_(list(remote_ids)), jobs.c.status == "processing"
    )
    return list(tx.execute(query).scalars())


def attempts_of(tx: Tx, job_id: str) -> list[Attempt]:
    """Every attempt of a job, first to last."""
    query = select(*attempts.c).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
    return [Attempt(*row) for row in tx.execute(query)]


def reread(tx: Tx, versions: Mapping[str, int], reasons: Mapping[str, str | None]) -> Missed:
    """What watchers have missed who know these versions of jobs, and were told these reasons why some of them wait.

    A reason comes and goes without an event: of a job that waits for another one now, how it stands.
    """
    found = missed(tx, versions)
    changed: dict[str, str | None] = {}
    for some in _bites(list(reasons)):
        rows = tx.execute(select(*jobs.c, db_now()).where(jobs.c.id.in_(some), has_status("pending"))).all()
        for job in explain(tx, [Job.of(row[:-1]) for row in rows]):
            if (why := events.why_blocked(job)) != reasons[job.id]:
                changed[job.id] = why
                snapshot = events.snapshot(replace(job, updated_at=rows[0][-1]), ())
                found.setdefault(job.id, []).append(snapshot.as_message())
    return Missed(found, changed)


def missed(tx: Tx, versions: Mapping[str, int]) -> dict[str, list[Message]]:
    """For each job, the state events after the version given: what a watcher who knows that version has missed."""
    found: dict[str, list[Message]] = {}
    for some in _bites(statements(tx).moved_on(tx, versions)):
        rows = [Job.of(row) for row in tx.execute(select(*jobs.c).where(jobs.c.id.in_(some)))]
        for job_id, told in _histories(tx, rows, versions).items():
            found[job_id] = [event.as_message() for event in told]
    return found


def _bites(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + BITE] for start in range(0, len(ids), BITE))


def history(tx: Tx, job: Job, after: int) -> list[events.JobEvent]:
    """The state events of a job after a version, rebuilt from its rows."""
    return _histories(tx, [job], {job.id: after})[job.id]


def _histories(tx: Tx, some: Sequence[Job], versions: Mapping[str, int]) -> dict[str, list[events.JobEvent]]:
    made = results.of_jobs(tx, [job.id for job in some if job.status == "completed"])
    told: dict[str, list[events.JobEvent]] = {}
    tried: dict[str, list[Attempt]] = {}
    for job in some:
        if job.is_terminal and job.version == versions[job.id] + 1:
            told[job.id] = [events.of_state(job, made.get(job.id, ()))]  # which the job's own row tells
        else:
            tried[job.id] = []
    if tried:
        query = select(*attempts.c).where(attempts.c.job_id.in_(list(tried)))
        for attempt in (Attempt(*row) for row in tx.execute(query.order_by(attempts.c.number))):
            tried[attempt.job_id].append(attempt)
    for job in some:
        if job.id in tried:
            told[job.id] = events.history(job, tried[job.id], made.get(job.id, ()), versions[job.id])
    return told


def kept_attempts(tx: Tx, job_ids: Sequence[str]) -> set[tuple[str, int]]:
    """The attempts of these jobs whose files must stay: recorded ones, and those that may still be recorded."""
    running = select(jobs.c.id, jobs.c.attempt).where(jobs.c.id.in_(job_ids), has_status("processing"))
    return results.recorded_attempts(tx, job_ids) | {(row[0], row[1]) for row in tx.execute(running)}


def run_seconds(tx: Tx, estimate_key: str) -> float | None:
    """The median run time of the latest completed jobs like this; None until there is one. Waiting is not in it."""
    like_it = select(*_RUN_TIME).where(COMPLETED, jobs.c.estimate_key == estimate_key)
    rows = tx.execute(like_it.order_by(jobs.c.finished_at.desc()).limit(RUN_TIME_SAMPLES)).all()
    return median(_seconds(*row) for row in rows) if rows else None


_RUN_TIME = (jobs.c.started_at, jobs.c.finished_at, jobs.c.run_seconds)


def _seconds(started: datetime, finished: datetime, run_seconds: float | None) -> float:
    return (finished - started).total_seconds() if run_seconds is None else run_seconds


@dataclass(frozen=True, slots=True)
class RunTime:
    """How long the latest jobs that asked for the same ran: the median, and of how many."""

    model: str | None
    checkpoint_model: str | None
    template: str | None
    width: int | None
    height: int | None
    batch_size: int
    steps: int | None
    median_seconds: float
    samples: int


def run_times(tx: Tx, provider: str) -> list[RunTime]:
    """What the latest jobs of a provider tell, by what was asked."""
    latest = (
        select(jobs.c.id, jobs.c.estimate_key, *_RUN_TIME)
        .where(COMPLETED, jobs.c.provider == provider, jobs.c.estimate_key.is_not(None))
        .order_by(jobs.c.finished_at.desc())
        .limit(RUN_TIMES_LOOKED_AT)
    )
    times: dict[str, list[float]] = {}
    newest: dict[str, str] = {}  # job of each key
    for job_id, key, *run in tx.execute(latest):
        known = times.setdefault(key, [])
        if len(known) < RUN_TIME_SAMPLES:
            known.append(_seconds(*run))
        newest.setdefault(key, job_id)
    asked: dict[str, Parameters] = {}
    for some in _bites(list(newest.values())):
        asked |= {row[0]: row[1] for row in tx.execute(select(jobs.c.id, _BRIEF).where(jobs.c.id.in_(some)))}
    return [
        RunTime(
            **{name: getattr(asked[newest[key]], name) for name in _TOLD},
            steps=asked[newest[key]].sampler_params.get("steps"),
            median_seconds=round(median(known), 3),
            samples=len(known),
        )
        for key, known in times.items()
    ]


_TOLD = ("model", "checkpoint_model", "template", "width", "height", "batch_size")


@dataclass(frozen=True, slots=True)
class ProviderLoad:
    """A provider's jobs that run, and those that wait for it."""

    running: int = 0
    waiting: int = 0


def provider_loads(tx: Tx) -> dict[str, ProviderLoad]:
    """Every provider that has a due job; of those that wait no more than `MAX_COUNTED` in each queue are counted."""
    running = _count_by_provider(tx, PROCESSING)
    waiting = _count_by_provider(tx, RELEASED)
    for (_, provider), count in count_waiting(tx, MAX_COUNTED).items():
        waiting[provider] += count
    return {name: ProviderLoad(running[name], waiting[name]) for name in running.keys() | waiting.keys()}


def _count_by_provider(tx: Tx, condition: ColumnElement[bool]) -> Counter[str]:
    counted = select(jobs.c.provider, func.count()).where(condition).group_by(jobs.c.provider)
    return Counter({row[0]: row[1] for row in tx.execute(counted)})
