"""What clients send about stories: its fields and their bounds."""

from typing import Annotated, Any, ClassVar, Literal

from fastapi import Query
from pydantic import AfterValidator, Field, GetJsonSchemaHandler, StringConstraints, field_validator
from pydantic_core import CoreSchema

from safelight.api.deps import IdInvalid, parse_id
from safelight.api.fields import Body
from safelight.api.job_request import PictureRequest
from safelight.bounds import HasWords, Int
from safelight.providers.parameters import Prompt
from safelight.stories import MAX_SCENE_NUMBER

Images = Literal["keep", "delete"]
WithImages = Annotated[Images, Query(alias="images", description="What becomes of the pictures that were made")]


def _a_uuid(value: str) -> str:
    try:
        return parse_id(value)
    except IdInvalid:
        raise ValueError("must be an id: a UUID") from None


Words = Annotated[str, StringConstraints(min_length=1, max_length=300), *HasWords]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), *HasWords]
Style = Annotated[str, StringConstraints(max_length=1000)]
ScriptText = Annotated[str, StringConstraints(max_length=100_000)]
Description = Annotated[str, StringConstraints(max_length=2000)]
Id = Annotated[str, AfterValidator(_a_uuid), Field(json_schema_extra={"format": "uuid"})]
Ids = Annotated[list[Id], Field(json_schema_extra={"uniqueItems": True})]
Number = Annotated[Int, Field(ge=0, le=MAX_SCENE_NUMBER)]


class ProjectRequest(Body):
    """A project to be made."""

    title: Words = Field(examples=["The lighthouse keeper"])
    style: Style = Field("", description="Goes into the prompt of every picture", examples=["ink and watercolour"])


class ChapterRequest(Body):
    """A chapter to be made, at the end of its project."""

    title: Words = Field(examples=["The storm"])
    script: ScriptText | None = None


class CastRequest(Body):
    @field_validator("character_ids", check_fields=False)
    @classmethod
    def each_once(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("must name each character once")
        return value


class SceneRequest(CastRequest):
    """A scene to be made."""

    scene_number: Number | None = Field(None, description="Default: one more than the last")
    description: Description = Field("", description="What it shows", examples=["She lights the lamp at dusk"])
    character_ids: Ids = Field([], max_length=16, description="Who is in it: characters of the project")


class CharacterRequest(Body):
    """A character to be made."""

    name: Name = Field(examples=["Ada"])
    description: Description = Field("", description="How they look", examples=["tall, red hair, yellow oilskin"])


class _Changes(Body):
    """Fields that are left out stay as they are; none can be set to nothing unless it says so."""

    REMOVABLE: ClassVar = ("script", "reference_artifact_id")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Tells of null only where it is taken."""
        schema = handler(core_schema)
        for name, field in handler.resolve_ref_schema(schema)["properties"].items():
            if name not in cls.REMOVABLE:
                field |= next(option for option in field.pop("anyOf") if option != {"type": "null"})
                del field["default"]
        return schema

    @field_validator("*", mode="before")
    @classmethod
    def not_nothing(cls, value: Any, info: Any) -> Any:
        if value is None and info.field_name not in cls.REMOVABLE:
            raise ValueError("cannot be null; leave it out to keep it")
        return value

    def given(self, *but: str) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, exclude=set(but))


class ProjectChanges(_Changes):
    """What shall differ. Pictures that are there stay as they are."""

    title: Words | None = Field(None, examples=["The lighthouse keeper"])
    style: Style | None = Field(None, examples=["ink and watercolour"])


class ChapterChanges(_Changes):
    """What shall differ. With a `position` the chapter moves there, and the others make room."""

    title: Words | None = Field(None, examples=["The storm"])
    script: ScriptText | None = Field(None, description="null removes it")
    position: Annotated[Int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="From 1; beyond the last: last"
    )


class SceneChanges(_Changes, CastRequest):
    """What shall differ. The pictures of a scene go with it to its new number."""

    scene_number: Number | None = None
    description: Description | None = Field(None, examples=["She lights the lamp at dusk"])
    character_ids: Annotated[Ids, Field(max_length=16)] | None = None


class CharacterChanges(_Changes):
    """What shall differ. Pictures that are there stay as they are."""

    name: Name | None = Field(None, examples=["Ada"])
    description: Description | None = Field(None, examples=["tall, red hair, yellow oilskin"])
    reference_artifact_id: Id | None = Field(
        None, description="One of your pictures, for portraits to be drawn from; null: none"
    )


class SceneOrder(Body):
    """Every scene of the chapter, in the order that shall be theirs."""

    scene_ids: Ids = Field(max_length=1000)


class Choice(Body):
    """The picture to show."""

    artifact_id: Id


class SceneImageRequest(PictureRequest):
    """How to draw a scene. Without a prompt it is built from the scene, its characters and the project's style."""

    prompt: Prompt | None = Field(None, description="Needed where the chapter is none of Safelight's stories")


class ChapterImagesRequest(PictureRequest):
    """How to draw the scenes; each has a prompt of its own, built of the story."""


class PortraitRequest(PictureRequest):
    """How to draw a character. Without a prompt it is built from the description and the project's style."""

    prompt: Prompt | None = None
