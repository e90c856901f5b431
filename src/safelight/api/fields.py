"""What the fields of a request's body are made of: types with their bounds, and the base of all bodies."""

import math
import re
from typing import Annotated, Any, cast

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from safelight.api.deps import UUID
from safelight.api.document import NO_NUL

MAX_FIELDS = 100
MAX_NOTES = 50
MAX_OPTIONS_BYTES = 64 * 1024
SHOWN = re.compile(r"[^\s\u0000-\u001f\u007f-\u009f\ufeff]")  # what is neither a blank nor a control character

Int = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Reference = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2000),
    Field(json_schema_extra={"pattern": f"^({UUID}$|https?://[^\\u0000]+$)"}),
]
OpaqueId = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def _has_words(value: str) -> str:
    if SHOWN.search(value) is None:
        raise ValueError("must not be blank")
    return value


HAS_SHOWN: dict[str, Any] = {"pattern": f"^[^\\u0000]*{SHOWN.pattern}[^\\u0000]*$"}
HasWords = [AfterValidator(_has_words), Field(json_schema_extra=HAS_SHOWN)]


def no_nul(value: str) -> str:
    """PostgreSQL can neither store the character NUL nor compare with it: for a validator."""
    if "\0" in value:
        raise ValueError("must not contain the character NUL")
    return value


Text = Annotated[str, AfterValidator(no_nul), Field(json_schema_extra={"pattern": NO_NUL})]


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


class Body(BaseModel):
    """Unknown fields are refused by name; NUL cannot be stored by every database."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def few_fields(cls, value: Any) -> Any:
        """Each unknown field is told by name, which takes long where somebody sends a hundred thousand."""
        if isinstance(value, dict) and len(cast(dict[Any, Any], value)) > MAX_FIELDS:
            raise ValueError(f"must have at most {MAX_FIELDS} fields")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def whole(cls, value: Any) -> Any:
        """To JSON `19.0` is an integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("*", mode="after")
    @classmethod
    def no_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\x00" in value:
            raise ValueError("must not contain the character NUL")
        return value


Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=100)],
        Annotated[str, StringConstraints(max_length=1000)],
    ],
    AfterValidator(lambda value: storable(value, MAX_OPTIONS_BYTES)),
    at_most(MAX_NOTES),
]
