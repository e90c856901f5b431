"""What the fields of a request's body are made of: types with their bounds, and the base of all bodies."""

from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from safelight.api.document import NO_NUL
from safelight.bounds import MAX_OPTIONS_BYTES, at_most, storable

MAX_FIELDS = 100
MAX_NOTES = 50

OpaqueId = Annotated[str, StringConstraints(min_length=1, max_length=200)]


def no_nul(value: str) -> str:
    """PostgreSQL can neither store the character NUL nor compare with it: for a validator."""
    if "\0" in value:
        raise ValueError("must not contain the character NUL")
    return value


Text = Annotated[str, AfterValidator(no_nul), Field(json_schema_extra={"pattern": NO_NUL})]


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
