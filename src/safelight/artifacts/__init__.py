"""Results and inputs: stored bytes, their record, their thumbnails and links to them."""

from safelight.artifacts.artifact import (
    Artifact,
    Thumbnail,
    artifacts,
    bury,
    bury_unused,
    count_tombstones,
    forget_files,
    forget_inputs,
    get,
    give_inputs,
    insert,
    known_files,
    leftovers,
    living,
    of_jobs,
    purge_tombstones,
    recorded_attempts,
    recorded_uploads,
    unused_uploads,
)
from safelight.artifacts.link import BadLink, Link, Links, StoredFile, load_signing_key
from safelight.artifacts.picture import BadPicture, inspect
from safelight.artifacts.service import ArtifactStore
from safelight.artifacts.upload import UPLOAD_TYPES, BadUpload

__all__ = [
    "UPLOAD_TYPES",
    "Artifact",
    "ArtifactStore",
    "BadLink",
    "BadPicture",
    "BadUpload",
    "Link",
    "Links",
    "StoredFile",
    "Thumbnail",
    "artifacts",
    "bury",
    "bury_unused",
    "count_tombstones",
    "forget_files",
    "forget_inputs",
    "get",
    "give_inputs",
    "insert",
    "inspect",
    "known_files",
    "leftovers",
    "living",
    "load_signing_key",
    "of_jobs",
    "purge_tombstones",
    "recorded_attempts",
    "recorded_uploads",
    "unused_uploads",
]
