"""What can go wrong with a place for files, in words for people.

What a store says of itself is never passed on whole: its errors name URLs, which may be signed, and access keys. Only
its error code and status are. Nor are keys and paths of files: who asks over the network is told these words too, so
they go to the log.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from obstore.exceptions import BaseError

from safelight.errors import Invalid, SafelightError, Unavailable

REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
REFUSED_CODES = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "ExpiredToken"}
BUCKET_CODES = {"NoSuchBucket", "ContainerNotFound"}
log = structlog.get_logger()

METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal", "169.254.170.2")


class StorageUnavailable(Unavailable):
    """The file storage cannot be used at the moment."""

    code = "storage_unavailable"


class StorageRefused(StorageUnavailable):
    """The file storage does not let us in. Trying again does not help until its keys or its permissions change."""

    kind = "internal"
    code = "storage_refused"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, retry_after=None)


class BucketMissing(StorageRefused):
    """The bucket of the file storage does not exist."""

    code = "storage_bucket_missing"


class FileMissing(SafelightError):
    """The file is no longer in the storage, or never was."""

    kind = "not_found"
    code = "file_missing"


class BadKey(Invalid):
    """A storage key must be a relative path of plain names."""

    code = "bad_storage_key"


@contextmanager
def told(place: str, key: str, *, is_local: bool, writes: bool = False) -> Generator[None]:
    """Turn what obstore raises into errors of our own. `place` says in public words where the files are."""
    try:
        yield
    except (BaseError, OSError, NotImplementedError) as error:
        if is_local:
            raise _of_folder(error, key) from error
        raise _of_bucket(error, place, writes) from None  # the cause may hold signed URLs


def _of_folder(error: Exception, key: str) -> SafelightError:
    if isinstance(error, FileNotFoundError):
        return FileMissing()
    text = str(error).lower()
    if "no space left" in text or "storagefull" in text or "quota" in text:
        return StorageUnavailable("The disk that holds the files is full.")
    if "permission denied" in text or "read-only file system" in text:
        return StorageUnavailable("The storage folder may not be written or read by this process.")
    log.warning("storage.broken", storage_key=key, reason=str(error)[:500])
    number = re.search(r"\(os error (\d+)\)", str(error))
    why = os.strerror(int(number[1])) if number else type(error).__name__
    return StorageUnavailable(f"The file storage cannot be used: {why}.")


def _of_bucket(error: Exception, place: str, writes: bool) -> SafelightError:
    text = str(error)
    code = match[1] if (match := re.search(r"<Code>(\w{1,60})</Code>", text)) else ""
    status = match[1] if (match := re.search(r"status code: (\d{3})", text)) else ""
    said = " ".join(part for part in (status, code) if part)
    if code in BUCKET_CODES or "bucket does not exist" in text:
        return BucketMissing(f"There is no bucket at {place}. Create it, or correct SAFELIGHT_STORAGE_URL.")
    if isinstance(error, FileNotFoundError):
        if writes:
            return BucketMissing(f"Nothing can be stored at {place}: it was not found ({said}). Does the bucket exist?")
        return FileMissing()
    if any(service in text for service in METADATA_SERVICES):
        return StorageRefused(
            f"There are no keys for {place}. Set SAFELIGHT_STORAGE_ACCESS_KEY and SAFELIGHT_STORAGE_SECRET_KEY."
        )
    if code in REGION_CODES or status == "301":
        return StorageRefused(f"{place} is in another region ({said}). Say which in the URL: ?region=...")
    if code == "RequestTimeTooSkewed":
        return StorageRefused(f"{place} refused us because the clock of this machine is wrong ({said}).")
    if code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"} or status == "401":
        return StorageRefused(f"{place} does not accept our keys ({said}). Are access key and secret key right?")
    if code in REFUSED_CODES or status == "403":
        return StorageRefused(
            f"{place} does not permit this ({said}). The keys must be allowed to list the bucket and to read, write "
            "and delete its objects."
        )
    if said:
        return StorageUnavailable(f"{place} answered with an error ({said}).")
    if "HTTP error" in text or "error sending request" in text or "timed out" in text.lower():
        return StorageUnavailable(f"{place} cannot be reached.")
    return StorageUnavailable(f"{place} cannot be used ({type(error).__name__}).")
