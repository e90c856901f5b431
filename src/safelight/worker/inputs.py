"""The pictures an attempt starts from: artifacts of the owner's, or addresses anywhere.

An address is somebody's word: it is fetched without credentials, never from a private network, and what comes must be
a picture.
"""

import asyncio
from collections.abc import Mapping

from safelight.artifacts import get
from safelight.db import Database
from safelight.pictures import BadPicture, PictureWorkers, decode, read_head
from safelight.providers.address import HostUnknown
from safelight.providers.base import BadOutput, InputImage, InvalidParameters, ProviderError, ProviderUnavailable
from safelight.providers.fetch import FetchRefused, fetch
from safelight.storage import FileMissing, Storage

FETCH_SECONDS = 60.0


class InputUnavailable(ProviderError):
    """An input picture cannot be fetched at the moment."""

    code = "input_unavailable"
    retryable = True


class InputImages:
    """Loads them for one process's attempts."""

    def __init__(self, database: Database, storage: Storage, pictures: PictureWorkers, max_bytes: int) -> None:
        self._database = database
        self._storage = storage
        self._pictures = pictures
        self._max_bytes = max_bytes

    async def load(self, references: Mapping[str, str], owner_id: str) -> tuple[InputImage, ...]:
        """Each as a whole picture, in order; they are named by their fields. Raises `InvalidParameters` for one that is
        none."""
        return tuple(
            [
                await self._load(number, field, reference, owner_id)
                for number, (field, reference) in enumerate(references.items(), 1)
            ]
        )

    async def _load(self, number: int, field: str, reference: str, owner_id: str) -> InputImage:
        try:
            if "://" in reference:
                data = await self._fetched(reference)
            else:
                data = await self._stored(reference, owner_id, field)
            picture = await self._pictures.run(read_head, data, self._pictures.max_pixels)
            await self._pictures.run(decode, picture, pixels=picture.pixels)
        except (BadPicture, BadOutput, FetchRefused, HostUnknown) as error:
            raise InvalidParameters(f"The input picture {number} cannot be used: {error}", field=field) from error
        return InputImage(data, picture.content_type)

    async def _fetched(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return (await fetch(url, max_bytes=self._max_bytes)).data
        except HostUnknown:
            raise
        except (TimeoutError, ProviderUnavailable) as error:
            raise InputUnavailable(
                f"An input picture cannot be fetched at the moment: {error or 'no answer'}"
            ) from error

    async def _stored(self, artifact_id: str, owner_id: str, field: str) -> bytes:
        artifact = await self._database.read(get, artifact_id)
        if artifact is None or artifact.owner_id != owner_id or artifact.deleted_at is not None:
            raise InvalidParameters(f"There is no artifact {artifact_id} any more.", field=field)
        try:
            return await self._storage.get(artifact.storage_key)
        except FileMissing as error:
            raise InvalidParameters(f"The file of artifact {artifact_id} is gone.", field=field) from error
