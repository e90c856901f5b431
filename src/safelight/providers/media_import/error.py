"""Why an import failed. A source that is down says nothing of the others, so none of these closes the provider."""

from safelight.providers.base import ProviderError


class NoMedia(ProviderError):
    """There is no video, sound or picture at this URL."""

    code = "no_media"


class NotMedia(ProviderError):
    """The file says that it is media, and is not."""

    code = "not_media"


class SourceRefuses(ProviderError):
    """The site does not give this to us."""

    code = "source_refused"


class SiteNotAllowed(ProviderError):
    """This installation imports nothing from this site."""

    code = "site_not_allowed"


class NoSuchHost(ProviderError):
    """There is no host of this name."""

    code = "host_unknown"


class SourceUnavailable(ProviderError):
    """The source cannot be reached, or breaks off."""

    code = "source_unavailable"
    retryable = True


class SourceTooSlow(ProviderError):
    """The source is too slow to be waited for."""

    code = "source_too_slow"


class TooLarge(ProviderError):
    """The media is larger than this installation takes."""

    code = "media_too_large"


class TooLong(ProviderError):
    """The media is longer than this installation takes."""

    code = "media_too_long"


class NoRoom(ProviderError):
    """There is not enough room on the worker's disk."""

    code = "no_disk_space"
    retryable = True


class ToolMissing(ProviderError):
    """A program that this import needs is not installed."""

    code = "tool_missing"
