"""Logging: one line per event, `noun.verb` plus fields, as JSON or readable on a terminal.

Everything takes the same way out: our own events, and what uvicorn, Celery, kombu, Alembic and others say through
`logging`. What a door binds with `structlog.contextvars` (`request_id`, `job_id`, `task_id`, `attempt`) stands on every
line below it. Secrets are taken out last, so no caller has to think of them.

Hosts that configure `logging` themselves must be told not to: uvicorn by `log_config=None`, Celery by connecting
anything to its `setup_logging` signal.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REDACTED = "***"
MAX_DEPTH = 6  # deeper structures are logged as text

_SECRET_KEY = re.compile(r"pass(word|wd|phrase)|secret|token(?!i)|api_?key|authorization|cookie|credential|key$")
_HARMLESS_KEYS = frozenset(
    f"{noun}_key"
    for noun in (
        "storage",
        "idempotency",
        "object",
        "cache",
        "redis",
        "routing",
        "primary",
        "foreign",
        "public",
        "sort",
    )
)
# A password in a URL: what stands between the user and the last "@" before the path. Passwords with a raw slash count
# too, as long as they cannot be a port.
_URL_PASSWORD = re.compile(r"(://[^\s:/?#@]*:)(?!\d{1,5}[/?#])(?:[^\s/?#]*|[^\s@]*)@")
_URL_PARAMETER = re.compile(
    r"([?&](?:key|[\w.-]*(?:password|secret|token|api_?key|signature|credential|sig))=)[^&\s#'\"]+", re.I
)
_LOGIN = re.compile(r"([Bb]earer|[Aa]uthorization['\"]?[:=]\s*['\"]?[Bb]asic)\s+[\w.~+/=-]{6,}")

_THEIR_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "celery.task", "kombu", "alembic")
_CHATTY_LOGGERS = ("uvicorn.access", "httpx", "httpcore", "asyncio", "PIL")  # heard from warning on


def configure(level: Level = "info", format: Format = "auto") -> None:
    """Set up logging for this process, to standard error. May be called again: the last call holds.

    `auto` is readable when standard error is a terminal and JSON otherwise.
    """
    terminal = sys.stderr.isatty()
    readable = format == "console" or (format == "auto" and terminal)
    number = logging.getLevelNamesMapping()[level.upper()]
    begin: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if readable:
        colors = terminal and not os.environ.get("NO_COLOR")
        end: list[Processor] = [
            structlog.processors.format_exc_info,
            redact,
            structlog.dev.ConsoleRenderer(
                colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=30)
        end = [structlog.processors.ExceptionRenderer(transform), redact, _render_json]
    structlog.configure(
        processors=[*begin, *end],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=True,
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=begin, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end]
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, logging.StreamHandler | _StderrHandler) and type(old).__module__ in ("logging", __name__):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in _THEIR_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def get_logger(name: str | None = None) -> FilteringBoundLogger:
    """A logger; it may be made at import time, before `configure`."""
    return structlog.get_logger(name) if name else structlog.get_logger()


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Take secrets out of an event: by the name of their field, and out of URLs and headers in any text."""
    return {key: REDACTED if _is_secret(key, value) else _clean(value, MAX_DEPTH) for key, value in event.items()}


def redact_text(text: str) -> str:
    """Take passwords in URLs, signatures and login tokens out of a text."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)
    if "=" in text:
        text = _URL_PARAMETER.sub(rf"\1{REDACTED}", text)
    return _LOGIN.sub(rf"\1 {REDACTED}", text)


@lru_cache(maxsize=4096)
def _names_secret(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return name not in _HARMLESS_KEYS and _SECRET_KEY.search(name) is not None


def _is_secret(key: object, value: object) -> bool:
    """Numbers are no secrets: `max_tokens=77` is a setting."""
    return value is not None and not isinstance(value, int | float) and isinstance(key, str) and _names_secret(key)


def _clean(value: object, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if depth:
        if isinstance(value, Mapping):
            items = cast(Mapping[object, object], value).items()
            return {key: REDACTED if _is_secret(key, inner) else _clean(inner, depth - 1) for key, inner in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(inner, depth - 1) for inner in cast(list[object], value)]
    return redact_text(value.decode(errors="replace") if isinstance(value, bytes) else str(value))


def _add_logger_name(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if name := record.name if record else getattr(logger, "name", None):
        event["logger"] = name
    return event


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line: dict[str, Any] = {key: event.pop(key, None) for key in ("timestamp", "level", "event")}
    line.update(event)
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # lone surrogates, integers beyond 64 bits
        return json.dumps(line, default=str, skipkeys=True)


def _write(line: str) -> None:
    """Standard error as it is now (tests and daemons replace it). A log that cannot be written stops nobody."""
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


class _StderrLogger:
    """Where structlog's loggers end; `name` is what `get_logger` was given."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, message: str) -> None:
        _write(message)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _StderrHandler(logging.Handler):
    """Where the records of `logging` end."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record))
        except Exception:
            self.handleError(record)
