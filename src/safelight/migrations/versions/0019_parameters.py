"""Parameters: what is asked of a provider is one value in one column"""

from collections.abc import Callable
from typing import Any, cast

import orjson
import sqlalchemy as sa
from alembic import op

from safelight.db import Json, RowId

revision = "0019_parameters"
down_revision = "0018_workers"
branch_labels = None
depends_on = None

BITE = 200  # routes at a time
# A column, its type, and what stands in it where nothing is given; None: it is NULL then.
COLUMNS: tuple[tuple[str, Any, str | None], ...] = (
    ("negative_prompt", sa.Text(), None),
    ("model", sa.String(length=300), None),
    ("checkpoint_model", sa.String(length=300), None),
    ("lora_models", Json, "[]"),
    ("width", sa.Integer(), None),
    ("height", sa.Integer(), None),
    ("batch_size", sa.Integer(), "1"),
    ("seed", sa.BigInteger(), None),
    ("sampler_params", Json, "{}"),
    ("provider_options", Json, "{}"),
    ("template", sa.String(length=200), None),
    ("inputs", Json, None),
    ("workflow", Json, None),
    ("input_images", Json, None),
    ("template_definition", Json, None),
)
EMPTY = {"inputs": "{}", "input_images": "[]"}  # what stands in the value for such a NULL

Stop = dict[str, Any]  # what a provider of a route would take, by the names of the columns

jobs = sa.table("jobs", sa.column("id", RowId), sa.column("kind", sa.String), sa.column("route", Json))


def upgrade() -> None:
    """The columns become the members of the value, be it of jobs that wait, run or have ended."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.add_column("jobs", sa.Column("parameters", Json, nullable=True))
    members = ["'kind', kind, 'prompt', prompt"]
    for name, kind, _ in COLUMNS:
        value = name
        if kind is Json:
            empty = EMPTY.get(name, "null")
            value = f"coalesce({name}, '{empty}')" if is_postgresql else f"json(coalesce({name}, '{empty}'))"
        members.append(f"'{name}', {value}")
    build = "jsonb_build_object" if is_postgresql else "json_object"
    living = "WHERE deleted_at IS NULL"  # of what was asked for a tombstone keeps nothing
    op.execute(f"UPDATE jobs SET parameters = {build}({', '.join(members)}) {living}")  # noqa: S608 - ours
    _change_routes(_joined, sa.column("lora_models", Json))
    for name, _, _ in COLUMNS:
        _drop_column(name)


def downgrade() -> None:
    """The members become columns again."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    values: list[str] = []
    for name, kind, given in COLUMNS:
        op.add_column("jobs", sa.Column(name, kind, nullable=given is None, server_default=given))
        if not is_postgresql:
            value = f"json_extract(parameters, '$.{name}')"
        elif kind is Json:
            value = f"nullif(parameters -> '{name}', 'null')"
        else:
            value = f"(parameters ->> '{name}')::{kind.compile(dialect=op.get_bind().dialect)}"
        value = f"nullif({value}, '{EMPTY[name]}')" if name in EMPTY else value
        values.append(f"{name} = {value}" if given is None else f"{name} = coalesce({value}, '{given}')")
    op.execute(f"UPDATE jobs SET {', '.join(values)}")  # noqa: S608 - ours
    _change_routes(_apart)
    if is_postgresql:
        for name, _, given in COLUMNS:
            if given is not None:
                op.alter_column("jobs", name, server_default=None)
    _drop_column("parameters")


def _joined(stop: Stop, kind: str, lora_models: Any) -> Stop:
    taken = {name: stop.pop(name, None) for name in ("prompt", *(name for name, _, _ in COLUMNS))}
    given = {name: value for name, value in taken.items() if value is not None}
    return stop | {"parameters": {"kind": kind, "lora_models": lora_models, **given}}


def _apart(stop: Stop, _: str) -> Stop:
    taken = {name: None if given is None else orjson.loads(given) for name, _, given in COLUMNS}
    taken |= stop.pop("parameters", {})
    return stop | {name: value for name, value in taken.items() if name not in ("kind", "lora_models")}


def _change_routes(change: Callable[..., Stop], *also: sa.ColumnClause[Any]) -> None:
    """Write each stop of each route anew, a bite of jobs at a time."""
    connection, last = op.get_bind(), ""
    while True:
        bite = sa.select(*jobs.c, *also).where(jobs.c.route.is_not(None), *([jobs.c.id > last] if last else []))
        rows = connection.execute(bite.order_by(jobs.c.id).limit(BITE)).all()
        if not rows:
            return
        for job_id, kind, route, *rest in map(tuple, rows):
            if isinstance(route, list):
                made = [change(dict(stop), kind, *rest) for stop in cast(list[Stop], route)]
                connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(route=made))
        last = rows[-1][0]


def _drop_column(name: str) -> None:
    # Without making the table anew, which would lose what SQLAlchemy cannot read back of indexes.
    with op.batch_alter_table("jobs", recreate="never") as batch:
        batch.drop_column(name)
