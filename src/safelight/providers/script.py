"""The mock provider's options: how long a drawing takes, and the script by which it misbehaves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from safelight.providers.base import Faults, InvalidParameters
from safelight.suggestion import did_you_mean

ROOT = "provider_options"
EVERY_ATTEMPT = 1_000_000
MAX_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Script:
    """How to misbehave; the default is to behave. "The first n attempts" are those with a number up to n."""

    latency_seconds: float = 0.0  # before anything else
    transient_errors: int = 0  # the first n attempts are told that the provider is unavailable
    rate_limit_times: int = 0  # the first n attempts are told to come back later (before any transient errors)
    rate_limit_retry_after: float = 1.0
    refuse: str | None = None  # the reason for which the content is refused
    hang: bool = False  # never end once accepted
    block_loop_seconds: float = 0.0  # sleep on the event loop itself
    spin_seconds: float = 0.0  # hold the interpreter in one C call
    swallow_cancel_seconds: float = 0.0  # be deaf to cancellation for so long
    corrupt: Literal["truncated", "empty"] | None = None
    wrong_size: bool = False  # deliver half the width and height
    crash: int = 0  # the first n attempts kill their process
    memory_mb: int = 0  # hold so much memory
    error_at_percent: int | None = None  # every attempt fails at this progress
    paid: bool = False  # say so before the step that would cost money


KEYS = (
    "latency_seconds", "transient_errors", "rate_limit", "refuse", "hang", "block_loop_seconds", "spin_seconds",
    "swallow_cancel", "corrupt", "wrong_size", "crash", "memory_mb", "error_at_percent", "paid",
)  # fmt: skip


def read_duration(options: Mapping[str, Any]) -> float | None:
    """`duration_seconds`, or None if it is not given. Raises `InvalidParameters`."""
    value = options.get("duration_seconds")
    return None if value is None else _number(value, f"{ROOT}.duration_seconds", MAX_SECONDS)


def read_script(options: Mapping[str, Any], *, others_allowed: bool) -> Script:
    """The script in `options`. Raises `InvalidParameters` that names the wrong key and says what would be right."""
    if not others_allowed:
        _refuse_unknown(options, ("duration_seconds", "mock"), ROOT)
    raw = options.get("mock")
    if raw is None:
        return Script()
    root = f"{ROOT}.mock"
    if not isinstance(raw, Mapping):
        raise InvalidParameters(f"{root} must be an object with keys among {', '.join(KEYS)}.", field=root)
    given = cast(Mapping[str, Any], raw)
    _refuse_unknown(given, KEYS, root)

    def seconds(key: str) -> float:
        return _number(given.get(key, 0), f"{root}.{key}", MAX_SECONDS)

    def flag(key: str) -> bool:
        value = given.get(key, False)
        if not isinstance(value, bool):
            raise InvalidParameters(f"{root}.{key} must be true or false.", field=f"{root}.{key}")
        return value

    limit_times, limit_after = _rate_limit(given.get("rate_limit"), f"{root}.rate_limit")
    percent = given.get("error_at_percent")
    return Script(
        latency_seconds=seconds("latency_seconds"),
        transient_errors=_whole(given.get("transient_errors", 0), f"{root}.transient_errors", 1000),
        rate_limit_times=limit_times,
        rate_limit_retry_after=limit_after,
        refuse=_refusal(given.get("refuse"), f"{root}.refuse"),
        hang=flag("hang"),
        block_loop_seconds=seconds("block_loop_seconds"),
        spin_seconds=seconds("spin_seconds"),
        swallow_cancel_seconds=_true_or(given.get("swallow_cancel"), math.inf, f"{root}.swallow_cancel", MAX_SECONDS),
        corrupt=_corruption(given.get("corrupt"), f"{root}.corrupt"),
        wrong_size=flag("wrong_size"),
        crash=int(_true_or(given.get("crash"), EVERY_ATTEMPT, f"{root}.crash", 1000, whole=True)),
        memory_mb=_whole(given.get("memory_mb", 0), f"{root}.memory_mb", 65536),
        error_at_percent=None if percent is None else _whole(percent, f"{root}.error_at_percent", 100),
        paid=flag("paid"),
    )


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], root: str) -> None:
    faults = Faults()
    for key in given:
        if key not in known:
            meant = did_you_mean(key, known)
            message = f"{root} has no key {str(key)[:60]!r}; it has {', '.join(known)}.{meant}"
            faults.add(message, field=f"{root}.{str(key)[:60]}")
    faults.refuse()


def _number(value: Any, name: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InvalidParameters(f"{name} must be a number from 0 to {most:g}.", field=name)
    return float(value)


def _whole(value: Any, name: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidParameters(f"{name} must be a whole number from 0 to {most}.", field=name)
    return value


def _true_or(value: Any, meaning_of_true: float, name: str, most: int | float, *, whole: bool = False) -> float:
    """true, false or a number."""
    if value is None or value is False:
        return 0
    if value is True:
        return meaning_of_true
    if not isinstance(value, int if whole else int | float) or not 0 <= value <= most:
        number = "a whole number" if whole else "a number"
        raise InvalidParameters(f"{name} must be true, false or {number} from 0 to {most:g}.", field=name)
    return value


def _rate_limit(value: Any, name: str) -> tuple[int, float]:
    if value is None:
        return 0, 1.0
    if not isinstance(value, Mapping):
        raise InvalidParameters(f'{name} must be an object like {{"times": 1, "retry_after": 5}}.', field=name)
    given = cast(Mapping[str, Any], value)
    _refuse_unknown(given, ("times", "retry_after"), name)
    times = _whole(given.get("times", 1), f"{name}.times", 1000)
    return times, _number(given.get("retry_after", 1), f"{name}.retry_after", 86400)


def _refusal(value: Any, name: str) -> str | None:
    if value is None or value is False:
        return None
    if value is True:
        return "The mock provider refuses this content, as its script says."
    if not isinstance(value, str) or not 1 <= len(value) <= 500:
        raise InvalidParameters(f"{name} must be true or a reason of 1 to 500 characters.", field=name)
    return value


def _corruption(value: Any, name: str) -> Literal["truncated", "empty"] | None:
    if value is None or value is False:
        return None
    if value is True or value == "truncated":
        return "truncated"
    if value == "empty":
        return "empty"
    raise InvalidParameters(f'{name} must be true, "truncated" or "empty".', field=name)
