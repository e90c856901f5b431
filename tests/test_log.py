"""What a log line looks like, and what never stands in one."""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from safelight import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's: put it back as it was."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in (*log._THEIR_LOGGERS, *log._CHATTY_LOGGERS))]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON lines written since the last call."""

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return read


def test_a_line_has_time_level_event_and_bound_fields(lines: Any) -> None:
    log.configure("info", "json")
    logger = log.get_logger("safelight.jobs")
    with structlog.contextvars.bound_contextvars(job_id="j1", attempt=2):
        logger.info("job.claimed", seconds=0.25, at=datetime(2026, 1, 2, tzinfo=UTC))
    logger.debug("job.unheard")
    (line,) = lines()
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "event": "job.claimed",
        "logger": "safelight.jobs",
        "job_id": "j1",
        "attempt": 2,
        "seconds": 0.25,
        "at": "2026-01-02 00:00:00+00:00",
    }


def test_a_logger_made_before_configure_obeys_it(lines: Any) -> None:
    logger = log.get_logger("early")
    log.configure("warning", "json")
    logger.info("thing.unheard")
    logger.warning("thing.heard")
    assert [line["event"] for line in lines()] == ["thing.heard"]


def test_other_libraries_take_the_same_way(lines: Any) -> None:
    theirs = logging.getLogger("uvicorn.error")
    theirs.addHandler(logging.StreamHandler())
    log.configure("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        theirs.info("Connected to %s", "redis://:hush@cache:6379/0")
    logging.getLogger("httpx").info("GET / 200")
    (line,) = lines()
    assert line["event"] == "Connected to redis://:***@cache:6379/0"
    assert (line["logger"], line["level"], line["request_id"]) == ("uvicorn.error", "info", "r1")


def test_configuring_twice_does_not_double_lines(lines: Any) -> None:
    log.configure("info", "json")
    log.configure("info", "json")
    logging.getLogger("celery").info("one")
    log.get_logger().info("two")
    assert [line["event"] for line in lines()] == ["one", "two"]


@pytest.mark.parametrize("ours", [True, False])
def test_an_exception_is_structured_and_shows_no_locals(lines: Any, ours: bool) -> None:
    log.configure("info", "json")

    def fail(password: str) -> None:
        raise ValueError("cannot reach redis://ann:hush@cache/0")

    try:
        fail("hush")
    except ValueError:
        if ours:
            log.get_logger().exception("redis.failed")
        else:
            logging.getLogger("kombu").exception("redis.failed")
    (line,) = lines()
    (shown,) = line["exception"]
    assert shown["exc_type"] == "ValueError"
    assert shown["exc_value"] == "cannot reach redis://ann:***@cache/0"
    assert shown["frames"][-1]["name"] == "fail"
    assert "hush" not in json.dumps(line)


def test_the_console_is_readable_and_as_discreet(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info", "auto")
    log.configure("info", "console")
    try:
        raise ValueError("cannot reach redis://ann:hush@cache/0")
    except ValueError:
        log.get_logger("x").exception("redis.failed", api_key="hush", seconds=2)
    logging.getLogger("celery").warning("Trying again: amqp://ann:hush@cache//")
    text = capsys.readouterr().err
    assert "redis.failed" in text and "seconds=2" in text and "Traceback" in text
    assert "hush" not in text
    assert "\x1b[" not in text, "colours are for terminals"


SECRETS = (
    "password",
    "redis_password",
    "client_secret",
    "SECRET",
    "token",
    "access_token",
    "api_key",
    "apiKey",
    "X-Api-Key",
    "Authorization",
    "signing_key",
    "key",
    "cookie",
)


@pytest.mark.parametrize("name", SECRETS)
def test_fields_with_secret_names_are_covered(lines: Any, name: str) -> None:
    log.configure("info", "json")
    log.get_logger().info("thing.seen", **{name: "hush"}, headers={name: ["hush"]}, rows=[{name: b"hush"}])
    (line,) = lines()
    assert line[name] == line["headers"][name] == line["rows"][0][name] == "***"


def test_fields_that_only_sound_secret_are_kept(lines: Any) -> None:
    log.configure("info", "json")
    kept = {"storage_key": "a/b.png", "idempotency_key": "i", "Idempotency-Key": "i", "routing_key": "io"}
    kept |= {"max_tokens": 77, "token": None, "tokenizer": "clip", "prompt": "a monkey"}
    log.get_logger().info("thing.seen", **kept)
    (line,) = lines()
    assert {name: line[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hush@cache:6379/0", "redis://:***@cache:6379/0"),
        ("postgresql+psycopg://ann:hush@db/x?a=1", "postgresql+psycopg://ann:***@db/x?a=1"),
        ("redis://:hu@sh@cache", "redis://:***@cache"),
        ("redis://:hu/sh@cache", "redis://:***@cache"),
        ("one amqp://a:hush@b// two http://c:hush@d/ three", "one amqp://a:***@b// two http://c:***@d/ three"),
        ("http://127.0.0.1:8188/view?name=a@b", "http://127.0.0.1:8188/view?name=a@b"),
        ("https://x/y?db=1&password=hush&z=2", "https://x/y?db=1&password=***&z=2"),
        ("https://x/y?X-Amz-Signature=hush", "https://x/y?X-Amz-Signature=***"),
        ("https://x/y?key=hush", "https://x/y?key=***"),
        ("https://x/y?monkey=1", "https://x/y?monkey=1"),
        ("Authorization: Bearer hush.hush-hush", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic aHVzaA=='}", "{'authorization': 'Basic ***'}"),
        ("Basic settings were read", "Basic settings were read"),
        ("ann@example.org wrote at 12:30 to bob@example.org", "ann@example.org wrote at 12:30 to bob@example.org"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, shown: str) -> None:
    assert log.redact_text(text) == shown


def test_anything_can_be_logged(lines: Any) -> None:
    log.configure("info", "json")
    circle: list[Any] = []
    circle.append(circle)
    log.get_logger().info(
        "thing.seen",
        lone="\ud800",
        big=2**70,
        circle=circle,
        secret_object=SecretStr("hush"),
        error=ValueError("redis://:hush@cache"),
        raw=b"\xff",
        by_number={1: {2, 3}},
    )
    (line,) = lines()
    assert line["big"] == 2**70
    assert line["error"] == "redis://:***@cache"
    assert "hush" not in json.dumps(line)


def test_a_closed_standard_error_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    log.configure("info", "json")

    class Closed:
        def write(self, text: str) -> None:
            raise ValueError("I/O operation on closed file")

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr("sys.stderr", Closed())
    log.get_logger().info("thing.unheard")
    logging.getLogger("celery").info("unheard")
