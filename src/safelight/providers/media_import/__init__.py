"""Media imports: the provider `media`."""

from safelight.providers.media_import.provider import EXTRACTORS, KIND, Description, MediaImport
from safelight.providers.media_import.workspace import Workspace

__all__ = ["EXTRACTORS", "KIND", "Description", "MediaImport", "Workspace"]
