"""Results: stored bytes, their record and their thumbnails."""

from safelight.artifacts.artifact import Artifact, Thumbnail, artifacts, get, insert, of_jobs, recorded_attempts
from safelight.artifacts.picture import BadPicture, inspect
from safelight.artifacts.service import ArtifactStore

__all__ = [
    "Artifact",
    "ArtifactStore",
    "BadPicture",
    "Thumbnail",
    "artifacts",
    "get",
    "insert",
    "inspect",
    "of_jobs",
    "recorded_attempts",
]
