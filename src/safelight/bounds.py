"""What fields of requests are made of: types with their bounds."""

import math
import re
from typing import Annotated, Any, cast

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

MAX_OPTIONS_BYTES = 64 * 1024
UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
SHOWN = re.compile(r"[^\s\u0000-\u001f\u007f-\u009f\ufeff]")  # what is neither a blank nor a control character

Int = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]


def _has_words(value: str) -> str:
    if SHOWN.search(value) is None:
        raise ValueError("must not be blank")
    return value


HAS_SHOWN: dict[str, Any] = {"pattern": f"^[^\\u0000]*{SHOWN.pattern}[^\\u0000]*$"}
HasWords = [AfterValidator(_has_words), Field(json_schema_extra=HAS_SHOWN)]


def storable(value: dict[str, Any], most_bytes: int) -> dict[str, Any]:
    """The value itself, if every database can keep it and it is not too large. Raises `ValueError`."""
    try:
        encoded = orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"cannot be stored as JSON: {error}") from None
    if len(encoded) > most_bytes:
        raise ValueError(f"must be at most {most_bytes // 1024} KiB as JSON")
    if b"\\u0000" in encoded:
        raise ValueError("must not contain the character NUL")
    if b"null" in encoded and not _is_finite(value):
        raise ValueError("must not contain NaN or Infinity")
    return value


def _is_finite(value: Any) -> bool:
    """Whether there is no NaN or infinity in it, which JSON has not and encoders make null of."""
    if isinstance(value, dict):
        return all(map(_is_finite, cast(dict[str, Any], value).values()))
    if isinstance(value, list):
        return all(map(_is_finite, cast(list[Any], value)))
    return not isinstance(value, float) or math.isfinite(value)


def at_most(count: int) -> BeforeValidator:
    """Refuses an object that has more members before each of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(cast(dict[Any, Any], value)) > count:
            raise ValueError(f"must have at most {count} items")
        return value

    return BeforeValidator(check)
