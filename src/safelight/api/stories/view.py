"""Stories as clients see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from safelight.api.job_view import PREFIX, ArtifactView, ErrorView, EtaView
from safelight.artifacts import ApiPath, Artifact
from safelight.jobs import Job, Status, describe_artifact, message_of
from safelight.stories import Chapter, Character, Project, Scene, ShownPicture

API = "/api/v1"


class ProjectView(BaseModel):
    id: str
    title: str = Field(examples=["The lighthouse keeper"])
    style: str = Field(examples=["ink and watercolour"])
    created_at: datetime
    updated_at: datetime


class ChapterView(BaseModel):
    id: str
    project_id: str
    position: int = Field(description="In its project, from 1")
    title: str = Field(examples=["The storm"])
    script: str | None
    created_at: datetime
    updated_at: datetime


class SceneView(BaseModel):
    """A scene. `image_status`, `image_job_id` and `image_error` are its newest job's; `image_url` is what it shows."""

    id: str
    chapter_id: str
    scene_number: int
    description: str = Field(examples=["She lights the lamp at dusk"])
    character_ids: list[str]
    image_status: Status | None = Field(description="null: nothing asked for, or what was made is deleted")
    image_url: str | None
    image_job_id: str | None
    image_error: ErrorView | None
    image: ArtifactView | None
    media_status: Status | None
    media_url: str | None
    media_job_id: str | None
    media_error: ErrorView | None
    media: ArtifactView | None
    created_at: datetime
    updated_at: datetime


class CharacterView(BaseModel):
    """A character. `image_status`, `image_job_id` and `image_error` are its newest portrait's; `image_url` is the one
    shown, which a newer one replaces when it is stored.
    """

    id: str
    project_id: str
    name: str = Field(examples=["Ada"])
    description: str = Field(examples=["tall, red hair, yellow oilskin"])
    image_status: Status | None = Field(description="null: nothing asked for, or what was made is deleted")
    image_url: str | None
    image_job_id: str | None
    image_error: ErrorView | None
    image: ArtifactView | None
    reference: ArtifactView | None = Field(description="What portraits are drawn from, where the provider takes it")
    created_at: datetime
    updated_at: datetime


class FollowUrls(BaseModel):
    """Where to go on from here."""

    status: str = Field(examples=["/api/v1/chapters/01970000-0000-7000-8000-000000000002/images/scenes/1/status"])
    job: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001"])
    events: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/events"])
    cancel: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/cancel"])
    retry: str = Field(examples=["/api/v1/generation-jobs/01970000-0000-7000-8000-000000000001/retry"])


class SceneImageView(BaseModel):
    """The newest job of a scene."""

    job_id: str
    task_id: str
    chapter_id: str
    scene_number: int
    script_id: str | None
    image_type: str | None
    status: Status
    is_terminal: bool
    stage: str | None
    message: str | None
    progress: int | None
    blocked_reason: str | None = Field(description="Why a pending job cannot run, e.g. `no_worker`")
    retry_count: int
    image_url: str | None
    image: ArtifactView | None
    error_message: str | None
    error: ErrorView | None
    provider: str = Field(examples=["mock"])
    prompt: str = Field(examples=["She lights the lamp at dusk. ink and watercolour"])
    eta: EtaView
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    urls: FollowUrls


class PortraitMetadata(BaseModel):
    """How the newest portrait is, or was, made."""

    provider: str = Field(examples=["mock"])
    model: str | None
    mocked: bool
    prompt: str = Field(examples=["tall, red hair, yellow oilskin. ink and watercolour"])
    seed: int | None
    width: int | None
    height: int | None
    reference_used: bool = Field(description="Whether it is drawn from the reference picture or another input picture")
    reference_note: str | None = Field(description="Why the character's reference picture was not used, if it has one")
    notes: dict[str, str] = Field(description="Your own `metadata`")


class PortraitView(BaseModel):
    """The newest portrait of a character. `image_url` is the one shown, and stays until a newer one is stored."""

    character_id: str
    status: Status | None = Field(description="null: none was asked for, or what was made is deleted")
    task_id: str | None
    job_id: str | None
    image_url: str | None
    image: ArtifactView | None
    metadata: PortraitMetadata | None
    error: ErrorView | None
    stage: str | None
    message: str | None
    progress: int | None
    blocked_reason: str | None = Field(description="Why a pending portrait cannot be made, e.g. `no_worker`")
    retry_count: int
    eta: EtaView
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    urls: FollowUrls | None


class StoryImageView(ArtifactView):
    """A picture that was made for a chapter or a character, and the job that made it."""

    job_id: str
    scene_number: int | None
    image_type: str | None
    prompt: str = Field(examples=["She lights the lamp at dusk. ink and watercolour"])
    provider: str = Field(examples=["mock"])
    created_at: datetime


class ProjectList(BaseModel):
    items: list[ProjectView]
    next_cursor: str | None


class ChapterList(BaseModel):
    items: list[ChapterView]
    next_cursor: str | None


class SceneList(BaseModel):
    items: list[SceneView]
    next_cursor: str | None


class CharacterList(BaseModel):
    items: list[CharacterView]
    next_cursor: str | None


class ImageList(BaseModel):
    """Newest first. `limit` counts jobs: one that made several pictures has all of them on its page."""

    items: list[StoryImageView]
    next_cursor: str | None


def project_view(project: Project) -> dict[str, Any]:
    """The fields of `ProjectView`, ready to be encoded."""
    return {
        "id": project.id,
        "title": project.title,
        "style": project.style,
        "created_at": project.created_at,
        "updated_at": project.updated_at,
    }


def chapter_view(chapter: Chapter) -> dict[str, Any]:
    """The fields of `ChapterView`, ready to be encoded."""
    return {
        "id": chapter.id,
        "project_id": chapter.project_id,
        "position": chapter.position,
        "title": chapter.title,
        "script": chapter.script,
        "created_at": chapter.created_at,
        "updated_at": chapter.updated_at,
    }


def scene_view(scene: Scene) -> dict[str, Any]:
    """The fields of `SceneView`, ready to be encoded."""
    return {
        "id": scene.id,
        "chapter_id": scene.chapter_id,
        "scene_number": scene.scene_number,
        "description": scene.description,
        "character_ids": list(scene.character_ids),
        **_picture("image", scene.image),
        **_picture("media", scene.media),
        "created_at": scene.created_at,
        "updated_at": scene.updated_at,
    }


def character_view(character: Character) -> dict[str, Any]:
    """The fields of `CharacterView`, ready to be encoded."""
    return {
        "id": character.id,
        "project_id": character.project_id,
        "name": character.name,
        "description": character.description,
        **_picture("image", character.image),
        "reference": None if character.reference is None else describe_artifact(character.reference),
        "created_at": character.created_at,
        "updated_at": character.updated_at,
    }


def _picture(name: str, picture: ShownPicture) -> dict[str, Any]:
    shown = None if picture.artifact is None else describe_artifact(picture.artifact)
    return {
        f"{name}_status": picture.status,
        f"{name}_url": None if shown is None else shown["url"],
        f"{name}_job_id": picture.job_id,
        f"{name}_error": picture.error,
        name: shown,
    }


def pictures_among(made: Sequence[Artifact]) -> list[Artifact]:
    """What a job made, without videos and sounds."""
    return [artifact for artifact in made if artifact.content_type.startswith("image/")]


def scene_image_view(job: Job, made: Sequence[Artifact], chapter_id: str, eta: EtaView) -> dict[str, Any]:
    """The fields of `SceneImageView`, ready to be encoded."""
    shown = next(map(describe_artifact, pictures_among(made)), None)
    return {
        "job_id": job.id,
        "task_id": job.celery_task_id,
        "chapter_id": chapter_id,
        "scene_number": job.scene_number,
        "script_id": job.script_id,
        "image_type": job.image_type,
        "status": job.status,
        "is_terminal": job.is_terminal,
        "stage": job.stage,
        "message": message_of(job),
        "progress": job.progress,
        "blocked_reason": job.blocked_reason,
        "retry_count": job.retry_count,
        "image_url": None if shown is None else shown["url"],
        "image": shown,
        "error_message": None if job.error is None else job.error["message"],
        "error": job.error,
        "provider": job.provider,
        "prompt": job.parameters.prompt,
        "eta": {"wait_seconds": eta.wait_seconds, "run_seconds": eta.run_seconds},
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "updated_at": job.updated_at,
        "urls": _urls(job, scene_status_url(chapter_id, job.scene_number)),
    }


def portrait_view(character: Character, job: Job | None, eta: EtaView) -> dict[str, Any]:
    """The fields of `PortraitView`, ready to be encoded. `job` is the newest as a rule; None if that was deleted."""
    job_id = character.image.job_id if job is None else job.id
    shown = None if character.image.artifact is None else describe_artifact(character.image.artifact)
    status = f"{API}/characters/{character.id}/image/status"
    return {
        "character_id": character.id,
        "status": character.image.status if job is None or job.id == character.image.job_id else job.status,
        "task_id": job_id,
        "job_id": job_id,
        "image_url": None if shown is None else shown["url"],
        "image": shown,
        "metadata": None if job is None else _portrait_metadata(character, job),
        "error": character.image.error if job is None else job.error,
        "stage": None if job is None else job.stage,
        "message": None if job is None else message_of(job),
        "progress": None if job is None else job.progress,
        "blocked_reason": None if job is None else job.blocked_reason,
        "retry_count": 0 if job is None else job.retry_count,
        "eta": {"wait_seconds": eta.wait_seconds, "run_seconds": eta.run_seconds},
        "created_at": None if job is None else job.created_at,
        "started_at": None if job is None else job.started_at,
        "finished_at": None if job is None else job.finished_at,
        "urls": None if job is None else _urls(job, status),
    }


def _portrait_metadata(character: Character, job: Job) -> dict[str, Any]:
    asked = job.parameters
    used = bool(asked.pictures)
    unused = character.reference is not None and not used
    return {
        "provider": job.provider,
        "model": asked.model,
        "mocked": job.mocked,
        "prompt": asked.prompt,
        "seed": asked.seed,
        "width": asked.width,
        "height": asked.height,
        "reference_used": used,
        "reference_note": f"Drawn without it: {job.provider} was given no picture it could take." if unused else None,
        "notes": job.metadata,
    }


def image_view(job: Job, artifact: Artifact) -> dict[str, Any]:
    """The fields of `StoryImageView`, ready to be encoded."""
    return {
        **describe_artifact(artifact),
        "job_id": job.id,
        "scene_number": job.scene_number,
        "image_type": job.image_type,
        "prompt": job.parameters.prompt,
        "provider": job.provider,
        "created_at": artifact.created_at,
    }


def scene_status_url(chapter_id: str, scene_number: int | None) -> str:
    """Where the newest job of a scene is told of."""
    return ApiPath(f"{API}/chapters/{quote(chapter_id, safe='')}/images/scenes/{scene_number}/status")


def _urls(job: Job, status: str) -> dict[str, str]:
    url = f"{PREFIX}/{job.id}"
    paths = {"status": status, "job": url} | {name: f"{url}/{name}" for name in ("events", "cancel", "retry")}
    return {name: ApiPath(path) for name, path in paths.items()}
