"""PostgreSQL's words: each statement is a journey, so a step is one of them, with all that belongs to it.

For an array it makes a new plan each time, which takes longer than a claim: what is often alone has its own statement.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    UUID,
    ColumnElement,
    Integer,
    Select,
    String,
    Text,
    Update,
    any_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from safelight import artifacts as results
from safelight.artifacts import Artifact, insertion_for
from safelight.db import Prepared, RowId, Tx, db_now
from safelight.jobs import availability, step
from safelight.jobs.job import Claim, Job, Outcome, attempts, has_status, jobs

Made = Mapping[tuple[str, int], Sequence[Artifact]]


class Postgresql:
    """See `statements.py`."""

    def __init__(self) -> None:
        self._ends: dict[step.End, Prepared] = {}

    def claim(self, tx: Tx, worker: Claim, ids: Sequence[str], *, is_alone: bool) -> list[Job]:
        claim = {"b_queue": worker.queue, "b_worker": worker.worker_id, "b_worker_name": worker.worker_name}
        if is_alone:
            rows = tx.run_last(_CLAIM_ONE, {**claim, "b_id": ids[0]})
        else:
            rows = tx.run(_CLAIM_SOME, {**claim, "b_ids": ids})
        taken = [Job.of(row) for row in rows]
        if len(taken) < len(ids):
            refused = list(set(ids) - {job.id for job in taken})
            tx.run(_WITHDRAW_SOME, {"b_queue": worker.queue, "b_ids": refused})
        return taken

    def end(self, tx: Tx, how: step.End, parameters: Mapping[str, Any], outcome: Outcome, error: Any) -> Job | None:
        prepared = self._ends.get(how)
        if prepared is None:
            prepared = self._ends[how] = Prepared(_with_attempt_ended(how.statement))
        outcomes = {"b_outcome": outcome, "b_if_cancelled": how.outcome("cancelled", outcome)}
        rows = tx.run(prepared, {**parameters, **outcomes, "b_attempt_error": error})
        return Job.of(rows[0]) if rows else None

    def complete(self, tx: Tx, made: Made, *, is_last: bool) -> Sequence[Job]:
        run = tx.run_last if is_last else tx.run
        rows = results.as_rows(artifact for artifacts in made.values() for artifact in artifacts)
        if len(made) == 1:
            [(job_id, attempt)] = made
            moved = run(_COMPLETE_ONE, {**step.ours(job_id, attempt), "b_made": rows})
        else:
            whose = {"b_ids": [id for id, _ in made], "b_attempts": [f"{id}/{attempt}" for id, attempt in made]}
            moved = run(_COMPLETE_SOME, {**whose, "b_made": rows})
        return [Job.of(row) for row in moved]

    def note_remote_id(self, tx: Tx, job_id: str, attempt: int, remote_id: str, accepted_by: str | None) -> None:
        noted = {"b_id": job_id, "b_attempt": attempt, "b_remote_id": remote_id, "b_provider": accepted_by}
        tx.run(_NOTE_REMOTE_ID, noted)

    def write_progress(self, tx: Tx, news: Sequence[Sequence[Any]]) -> list[str]:
        return list(tx.execute(_WRITE_PROGRESS, {"news": orjson.dumps(news).decode()}).scalars())

    def heads(self, tx: Tx, here: Mapping[str, str], owners: Sequence[str], each: int) -> Sequence[Any]:
        return tx.execute(_HEADS, {**here, "owners": list(owners), "each": each}).all()

    def moved_on(self, tx: Tx, versions: Mapping[str, int]) -> list[str]:
        return [row[0] for row in tx.run(_MOVED_ON, {"known": orjson.dumps(versions).decode()})]


_ONE = jobs.c.id == bindparam("b_id")
_SOME = jobs.c.id == any_(bindparam("b_ids", type_=ARRAY(UUID(as_uuid=False))))
_THEIRS = func.concat(jobs.c.id, "/", jobs.c.attempt) == any_(bindparam("b_attempts", type_=ARRAY(Text)))


def _with_attempt_begun(claim: Update) -> Select[*tuple[Any, ...]]:
    moved = claim.cte("moved")
    begun = {
        "job_id": moved.c.id,
        "number": moved.c.attempt,
        "worker_id": step.WORKER,
        "worker_name": bindparam("b_worker_name"),
        "queue": moved.c.queue,
        "provider": moved.c.provider,
        "provider_job_id": moved.c.provider_job_id,
        "started_at": db_now(),
        "started_version": moved.c.version,
    }
    return select(*moved.c).add_cte(insert(attempts).from_select(list(begun), select(*begun.values())).cte("begun"))


def _with_attempt_ended(end: Update) -> Select[*tuple[Any, ...]]:
    moved = end.cte("moved")
    error = bindparam("b_attempt_error", type_=attempts.c.error.type)
    outcome = case((moved.c.status == "cancelled", bindparam("b_if_cancelled")), else_=bindparam("b_outcome"))
    return select(*moved.c).add_cte(_attempt_of(moved, outcome, error).cte("ended"))


def _with_results(complete: Update) -> Select[*tuple[Any, ...]]:
    moved = complete.cte("moved")
    worked = availability.CLOSE_BREAKER.where(availability.provider_states.c.provider.in_(select(moved.c.provider)))
    return select(*moved.c).add_cte(
        _attempt_of(moved, "completed", null()).cte("ended"),
        insertion_for(moved).cte("recorded"),
        worked.cte("worked"),
    )


def _attempt_of(moved: CTE, outcome: ColumnElement[str] | str, error: ColumnElement[Any]) -> Update:
    return (
        update(attempts)
        .where(attempts.c.job_id == moved.c.id, attempts.c.number == moved.c.attempt)
        .values(finished_at=db_now(), outcome=outcome, error=error, ended_version=moved.c.version)
    )


_CLAIM_ONE, _CLAIM_SOME = (Prepared(_with_attempt_begun(step.TAKE.where(which))) for which in (_ONE, _SOME))
_WITHDRAW_SOME = Prepared(step.WITHDRAW.where(_SOME))
_COMPLETE_ONE = Prepared(_with_results(step.COMPLETE.where(step.OURS)))
_COMPLETE_SOME = Prepared(_with_results(step.COMPLETE.where(_SOME, _THEIRS, has_status("processing"))))
_NOTE_REMOTE_ID = Prepared(
    update(attempts)
    .where(attempts.c.job_id == bindparam("b_id"), attempts.c.number == bindparam("b_attempt"))
    .values(provider_job_id=bindparam("b_remote_id"))
    .add_cte(availability.CLOSE_REACHED.cte("reached"))
)

# Rows that are being settled at this moment are skipped, not waited for: the two would lock each other out.
_value = column("value", JSONB)
_news = (
    select(
        cast(_value.op("->>")(0), UUID(as_uuid=False)).label("id"),
        cast(_value.op("->>")(1), Integer).label("attempt"),
        cast(_value.op("->>")(2), Integer).label("progress"),
        _value.op("->>")(3).label("stage"),
        _value.op("->>")(4).label("message"),
    )
    .select_from(func.jsonb_array_elements(cast(bindparam("news", type_=Text), JSONB)).table_valued("value", name="v"))
    .cte("news")
)
_WRITE_PROGRESS = (
    update(jobs)
    .where(
        jobs.c.id == _news.c.id,
        jobs.c.attempt == _news.c.attempt,
        has_status("processing"),
        jobs.c.id.in_(select(jobs.c.id).where(jobs.c.id.in_(select(_news.c.id))).with_for_update(skip_locked=True)),
    )
    .values(progress=_news.c.progress, stage=_news.c.stage, message=_news.c.message)
    .returning(jobs.c.id)
)
_known = func.json_each_text(cast(bindparam("known", type_=Text), JSON)).table_valued("key", "value", name="known")
_MOVED_ON = Prepared(
    select(jobs.c.id)
    .select_from(_known)
    .where(jobs.c.id == cast(_known.c.key, UUID(as_uuid=False)), jobs.c.version > cast(_known.c.value, Integer))
)
_HEADS = (
    text(f"""
    SELECT head.id, head.owner_id, head.owner_limit, head.tier
    FROM unnest(:owners) WITH ORDINALITY AS line(owner_id, place) CROSS JOIN LATERAL (
        SELECT id, owner_id, owner_limit, tier, line_at FROM jobs
        WHERE {step.FIRST_OF_LINE.format(owner="line.owner_id")} FOR UPDATE SKIP LOCKED
    ) AS head ORDER BY line.place, head.line_at, head.id
""")
    .bindparams(bindparam("owners", type_=ARRAY(Text)))
    .columns(id=RowId, owner_id=String, owner_limit=Integer, tier=String)
)
