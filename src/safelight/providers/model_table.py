"""What the tables of models have in common: the `models.json` of a provider."""

from pydantic import BaseModel, ConfigDict


class TablePart(BaseModel):
    """A part of the file; what it does not know is a mistake in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
