"""The way of what was asked from its columns into one value and back, with jobs that wait, run and have ended."""

from typing import Any

from sqlalchemy import Engine, MetaData, Table, select
from test_schema_history import NOW, SOME_ID, engine

from safelight.jobs import columns_of
from safelight.jobs.job import jobs
from safelight.migrations import migrate
from safelight.providers.parameters import Lora, Parameters

__all__ = ["engine"]

GRAPH = {"3": {"class_type": "KSampler", "inputs": {"seed": 2**53 + 1, "cfg": 6.5, "none": None, "model": ["4", 0]}}}
RICH: dict[str, Any] = {
    "prompt": "a 'lighthouse' at \"dusk\" ü :name",
    "negative_prompt": "fog",
    "model": "m",
    "checkpoint_model": "c.safetensors",
    "lora_models": [{"name": "ink", "strength_model": 0.5, "strength_clip": 1.0}],
    "width": 640,
    "height": 480,
    "batch_size": 2,
    "seed": 2**63 - 1024,
    "sampler_params": {"steps": 20, "cfg": 7.5},
    "provider_options": {"mock": {"paid": True}},
    "template": "portrait",
    "inputs": {"steps": 9},
    "workflow": GRAPH,
    "input_images": ["http://example.com/a.png"],
    "template_definition": {"workflow": GRAPH},
}
POOR: dict[str, Any] = {
    "prompt": "x",
    "lora_models": [],
    "batch_size": 1,
    "sampler_params": {},
    "provider_options": {},
}
STOP = {"provider": "second", "mocked": True, "estimate_key": "k", "soft_limit_seconds": 1.0, "hard_limit_seconds": 2.0}
TAKEN = dict.fromkeys(RICH) | POOR | {"seed": 7, "model": "n"}
ROUTE = [STOP | {name: value for name, value in TAKEN.items() if name != "lora_models"}]
ROWS: list[dict[str, Any]] = [
    {"status": "pending", **RICH, "route": ROUTE},
    {"status": "processing", **RICH},
    {"status": "completed", **POOR},
    {"status": "completed", **POOR, "prompt": "", "kind": "media.import", "inputs": {"scene_id": "s"}},
    {"status": "failed", **POOR, "prompt": "", "deleted_at": NOW},
]


def row(number: int, values: dict[str, Any]) -> dict[str, Any]:
    fixed = {"kind": "image.generate", "owner_id": "ada", "provider": "mock", "mocked": True, "metadata": {}}
    counts = dict.fromkeys(("priority", "max_retries", "attempt", "retry_count", "crash_count", "hint_count"), 0)
    times = dict.fromkeys(("run_at", "created_at", "updated_at"), NOW)
    limits = {"soft_limit_seconds": 1.0, "hard_limit_seconds": 2.0, "queue": "image_generation", "version": 1}
    ids = {"id": SOME_ID.format(number), "celery_task_id": SOME_ID.format(number)}
    return fixed | counts | times | limits | ids | values


def rows_of(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        table = Table("jobs", MetaData(), autoload_with=connection)
        return [dict(each) for each in connection.execute(select(table).order_by(table.c.id)).mappings()]


def test_what_was_asked_becomes_one_value_and_columns_again(database_url: str, engine: Engine) -> None:
    migrate(database_url, "0018_workers")
    with engine.begin() as connection:
        table = Table("jobs", MetaData(), autoload_with=connection)
        for number, values in enumerate(ROWS):
            given = row(number, values)
            if engine.dialect.name == "sqlite":
                given |= dict.fromkeys(("run_at", "created_at", "updated_at"), 0)
                given |= {"deleted_at": 0} if "deleted_at" in given else {}
            connection.execute(table.insert().values(given))
    before = rows_of(engine)

    migrate(database_url, "0019_parameters")
    query = select(jobs.c.parameters, jobs.c.route, jobs.c.prompt).order_by(jobs.c.id)
    with engine.connect() as connection:
        waiting, running, completed, imported, buried = connection.execute(query).all()
    lora = (Lora("ink", 0.5, 1.0),)
    rich: dict[str, Any] = RICH | {"lora_models": lora, "input_images": ("http://example.com/a.png",)}
    assert waiting.parameters == running.parameters == Parameters("image.generate", **rich)
    taken = columns_of(waiting.route[0])
    assert taken == STOP | {
        "parameters": Parameters("image.generate", "x", model="n", seed=7, lora_models=lora),
    }
    assert completed.parameters == Parameters("image.generate", "x")
    assert imported.parameters == Parameters("media.import", "", inputs={"scene_id": "s"})
    assert (buried.parameters, waiting.prompt) == (Parameters("", ""), RICH["prompt"])

    migrate(database_url, "0018_workers")
    assert rows_of(engine) == before
