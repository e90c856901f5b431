"""The private interfaces of Celery and kombu that the loop pool and the hint transport lean on.

When a new version of either breaks one of these, the pins in pyproject.toml must stay where they are.
"""

import inspect
import os
import tomllib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pytest
from celery.concurrency.base import BasePool
from celery.worker import state
from celery.worker.request import Request, create_request_cls
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual

from safelight.config import Settings
from safelight.db import new_id
from safelight.queue import IMAGE_GENERATION, ISOLATED, SECOND_NET_SECONDS, TASK_NAME, HintQueue, message
from safelight.valkey import Valkey
from safelight.worker import tasks, transport
from safelight.worker.pool import LoopPool
from servers import ValkeyServer

NAMESPACE = "seam"
KEY = f"{NAMESPACE}:{IMAGE_GENERATION}"


def hint(job_id: str, queue: str = IMAGE_GENERATION) -> bytes:
    return message(queue, job_id, soft_seconds=300.0, hard_seconds=330.0, origin="1@here")


@pytest.fixture
def connect(valkey: ValkeyServer, tmp_path: Path) -> Callable[[], Any]:
    """Connections as a worker of ours makes them."""
    settings = Settings.model_validate(
        {"redis_url": valkey.url, "redis_ns": NAMESPACE, "data_dir": tmp_path, "env": "test"}
    )
    tasks.configure(settings)

    @contextmanager
    def connected() -> Generator[Any]:
        connection: Connection = tasks.app.connection_for_read()
        try:
            yield connection.channel()
        finally:
            connection.release()

    return connected


@pytest.fixture
def command(valkey: ValkeyServer) -> Callable[..., Any]:
    """A command in the database of the test environment."""

    def run(*args: str | bytes | int) -> Any:
        # Each command has a connection of its own, so the database is chosen in the same breath.
        quoted = ", ".join(f"ARGV[{n}]" for n in range(1, len(args) + 1))
        return valkey.command("EVAL", f"redis.call('SELECT', 3) return redis.call({quoted})", 0, *args)

    return run


def get(channel: Any, queue: str = IMAGE_GENERATION) -> Any:
    found = channel.basic_get(queue)
    assert found is not None, f"there is no message on {queue}"
    return found


def queued(command: Callable[..., Any], key: str = KEY) -> list[str]:
    """The job ids on a queue, next to be delivered first."""
    return [orjson.loads(raw)["headers"]["id"] for raw in reversed(command("LRANGE", key, 0, -1))]


# Pins


@pytest.mark.parametrize("package", ["celery", "kombu"])
def test_the_versions_are_the_ones_this_was_written_for(package: str) -> None:
    assert version(package) == "5.7.0"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    pins = [each for each in project["project"]["dependencies"] if each.startswith(package)]
    assert len(pins) == 1 and pins[0].endswith("==5.7.0")


# Hints are Celery's messages


@pytest.mark.anyio
async def test_a_sent_hint_is_read_by_celery_as_its_task(
    valkey: ValkeyServer, connect: Callable[[], Any], command: Callable[..., Any]
) -> None:
    job_id = new_id()
    client = Valkey(valkey.url, database=3)
    await client.start()
    await client.wait_connected(5)
    assert HintQueue(client, NAMESPACE).send(ISOLATED, job_id, soft_seconds=10.6, hard_seconds=20.6)
    await client.close()
    assert command("KEYS", "*") == [f"{NAMESPACE}:{ISOLATED}".encode()]
    with connect() as channel:
        delivered = get(channel, ISOLATED)
        assert delivered.content_type == "application/json"
        request = Request(delivered, app=tasks.app, task=tasks.app.tasks[TASK_NAME])
        assert (request.id, request.type, request.correlation_id) == (job_id, TASK_NAME, job_id)
        assert delivered.payload == [
            [job_id, ISOLATED],
            {},
            {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
        ]
        # Celery's order is hard, soft; ours act first.
        assert request.time_limits == [20 + SECOND_NET_SECONDS, 10 + SECOND_NET_SECONDS]
        assert request.delivery_info["routing_key"] == ISOLATED
        assert request.info()["id"] == job_id
        assert not request.maybe_expire()
        delivered.ack()


# The pool


class FakeEngine:
    """Takes hints and keeps them."""

    is_busy = False

    def __init__(self) -> None:
        self.spawned: list[tuple[str, str, Callable[[], None]]] = []
        self.calls: list[str] = []

    def spawn(self, job_id: str, queue: str, done: Callable[[], None]) -> None:
        self.spawned.append((job_id, queue, done))

    def drain(self) -> None:
        self.calls.append("drain")

    def wait_drained(self) -> None:
        self.calls.append("wait")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    monkeypatch.setattr(LoopPool, "engine", engine, raising=False)
    yield engine
    state.active_requests.clear()
    state.reserved_requests.clear()
    state.requests.clear()


@pytest.mark.parametrize("optimised", [True, False], ids=["the class celery makes", "the plain class"])
def test_celery_hands_a_task_over_in_the_order_we_read(
    connect: Callable[[], Any], command: Callable[..., Any], engine: FakeEngine, optimised: bool
) -> None:
    job_id = new_id()
    command("LPUSH", KEY, hint(job_id))
    pool = LoopPool(5, app=tasks.app)
    pool.start()
    task = tasks.app.tasks[TASK_NAME]
    app: Any = tasks.app  # Celery's stub wants its proxy
    make = create_request_cls(Request, task, pool, "io@here", None, app=app) if optimised else Request
    with connect() as channel:
        delivered = get(channel)
        request = make(
            delivered, app=tasks.app, task=task, hostname="io@here", on_ack=lambda *_: delivered.ack(), eventer=None
        )
        request.execute_using_pool(pool)
        ((spawned_id, queue, done),) = engine.spawned
        assert (spawned_id, queue) == (job_id, IMAGE_GENERATION)
        assert request in state.active_requests  # `celery inspect active` sees it
        assert request.worker_pid == os.getpid()
        assert not delivered.acknowledged  # the prefetch count bounds what runs
        done()
        assert request not in state.active_requests
        assert delivered.acknowledged
    assert queued(command) == []


def test_the_pool_stops_once_the_engine_has_drained(engine: FakeEngine) -> None:
    pool = LoopPool(5, app=tasks.app)
    pool.start()
    pool.stop()
    assert engine.calls == ["drain", "wait"]
    engine.calls.clear()
    pool.start()
    pool.terminate()
    assert engine.calls == ["drain", "wait"]


def test_the_pool_says_what_it_is(engine: FakeEngine) -> None:
    assert LoopPool(5, app=tasks.app).info["max-concurrency"] == 5
    assert not LoopPool.uses_semaphore  # else Celery would count slots apart from the prefetch count
    assert "kwargs" in inspect.signature(BasePool.apply_async).parameters


# The transport


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(transport.QoS, kombu_redis.QoS), (transport.Channel, kombu_redis.Channel)],
    ids=["QoS", "Channel"],
)
def test_what_we_override_is_still_there_and_called_alike(ours: type[Any], theirs: type[Any]) -> None:
    own_additions = {"_put_back", "_only_client", "_read_at", "_fetch_more"}
    overridden = [name for name in vars(ours) if not name.startswith("__") and name not in own_additions]
    assert overridden
    for name in overridden:
        assert hasattr(theirs, name), name
        if name == "restore_visible":  # a no-op for any arguments
            continue
        if inspect.isfunction(vars(ours)[name]):
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(
                inspect.signature(getattr(theirs, name)).parameters
            ), name


def test_what_we_call_is_still_there() -> None:
    assert list(inspect.signature(kombu_redis.Channel._do_restore_message).parameters)[:5] == [
        "self",
        "payload",
        "exchange",
        "routing_key",
        "pipe",
    ]
    for name in ("append", "ack", "get", "_flush", "can_consume"):
        assert callable(getattr(virtual.QoS, name)), name
    assert issubclass(transport.Transport, kombu_redis.Transport)


def test_no_copy_of_a_message_is_kept_in_redis(connect: Callable[[], Any], command: Callable[..., Any]) -> None:
    command("LPUSH", KEY, hint(new_id()))
    with connect() as channel:
        assert type(channel) is transport.Channel and type(channel.qos) is transport.QoS
        delivered = get(channel)
        assert command("KEYS", "*") == []
        delivered.ack()
    assert command("KEYS", "*") == []


def test_the_prefetch_count_bounds_what_a_worker_holds(connect: Callable[[], Any], command: Callable[..., Any]) -> None:
    for _ in range(3):
        command("LPUSH", KEY, hint(new_id()))
    with connect() as channel:
        channel.basic_qos(0, 2, False)
        first, second = get(channel), get(channel)
        assert not channel.qos.can_consume()
        first.ack()
        assert channel.qos.can_consume()
        third = get(channel)
        assert not channel.qos.can_consume()
        for held in (second, third):
            held.ack()
        assert channel.qos.can_consume()


def test_hints_that_come_quickly_are_fetched_together_within_the_prefetch_count(
    connect: Callable[[], Any], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [new_id() for _ in range(8)]
    for job_id in ids:
        command("LPUSH", KEY, hint(job_id))
    delivered: list[Any] = []
    with connect() as channel:
        channel.basic_qos(0, 5, False)
        channel.basic_consume(IMAGE_GENERATION, False, delivered.append, "tag")
        for held, seconds in (
            (1, 0.0),
            (5, 3600.0),
        ):  # a slow read brings one, one right after it the rest that may be held
            monkeypatch.setattr(transport, "BUSY_SECONDS", seconds)
            channel.connection.cycle._register_BRPOP(channel)
            channel._brpop_read()
            assert [each.headers["id"] for each in delivered] == ids[:held]
            assert queued(command) == ids[held:]
        assert not channel.qos.can_consume()
    assert queued(command) == ids


def test_a_clean_shutdown_puts_undelivered_hints_back_where_they_were(
    connect: Callable[[], Any], command: Callable[..., Any]
) -> None:
    first, second, third, fourth = ids = [new_id() for _ in range(4)]
    for job_id in ids:
        command("LPUSH", KEY, hint(job_id))
    with connect() as channel:
        held = [get(channel) for _ in range(3)]
        assert [each.headers["id"] for each in held] == [first, second, third]
        held[1].ack()
        assert queued(command) == [fourth]
    assert command("KEYS", "*") == [KEY.encode()]
    assert queued(command) == [first, third, fourth]  # and in their order
    with connect() as channel:
        again = get(channel)
        request = Request(again, app=tasks.app, task=tasks.app.tasks[TASK_NAME])
        assert request.id == first and again.payload[0] == [first, IMAGE_GENERATION]
        assert request.delivery_info["routing_key"] == IMAGE_GENERATION
        again.ack()


def test_a_rejected_hint_goes_back_or_away(connect: Callable[[], Any], command: Callable[..., Any]) -> None:
    back, away = new_id(), new_id()
    for job_id in (back, away):
        command("LPUSH", KEY, hint(job_id))
    with connect() as channel:
        one, two = get(channel), get(channel)
        one.requeue()
        two.reject()
        assert queued(command) == [back]
        assert channel.qos.can_consume()
    assert queued(command) == [back]


def test_one_client_serves_all_commands(connect: Callable[[], Any], command: Callable[..., Any]) -> None:
    for _ in range(2):
        command("LPUSH", KEY, hint(new_id()))
    with connect() as channel:
        for _ in range(2):
            get(channel).ack()
        clients: set[int] = set()
        for _ in range(2):
            with channel.conn_or_acquire() as client:
                clients.add(id(client))
        assert len(clients) == 1
