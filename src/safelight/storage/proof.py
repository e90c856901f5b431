"""Proves that a storage can do everything that is asked of it, with one small file of its own."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

import httpx

from safelight.errors import SafelightError
from safelight.storage.store import Storage

SIZE_BYTES = 100_000
CONTENT_TYPE = "image/png"
PERMITTED = "The keys need the right to {right} objects under this prefix."
STEP_SECONDS = 60.0


class ProofFailed(SafelightError):
    """The storage answered, but not what it should have."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried. `reason` says what is wrong and `advice` what to do about it, if it failed."""

    name: str
    milliseconds: float
    note: str = ""
    reason: str | None = None
    advice: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it went well."""
        return self.reason is None


async def prove(storage: Storage, own_link: Callable[[str, int], Awaitable[str]]) -> AsyncGenerator[Step]:
    """Try put, get, range, list, sign and delete. Later steps are left out when nothing can be put.

    `own_link(key, size_bytes)` proves the links that stand in where the storage itself signs none.
    """
    key = f"health/{os.urandom(8).hex()}.png"
    data = os.urandom(SIZE_BYTES)

    async def put() -> str:
        await storage.put(key, data, CONTENT_TYPE)
        await storage.flush([key])
        return f"{SIZE_BYTES} bytes"

    async def get() -> str:
        if await storage.get(key) != data:
            raise ProofFailed("The file came back other than it was stored.")
        return ""

    async def part() -> str:
        found = b"".join([piece async for piece in storage.stream(key, 1000, 2000)])
        if found != data[1000:2000]:
            raise ProofFailed("A part of the file came back other than it was stored.")
        return ""

    async def listing() -> str:
        found = {name: size async for name, size, _ in storage.list("health")}
        if found.get(key) != SIZE_BYTES:
            raise ProofFailed("The file is not in the list, or with another size.")
        return ""

    async def sign() -> str:
        link = await storage.link(key, 60)
        return await own_link(key, SIZE_BYTES) if link is None else await _fetch(link, data)

    async def delete() -> str:
        await storage.delete([key])
        if await storage.head(key) is not None:
            raise ProofFailed("The file is still there after it was deleted.")
        return ""

    first = await _tried("put", put, PERMITTED.format(right="write"))
    yield first
    if not first.is_ok:
        return
    yield await _tried("get", get, PERMITTED.format(right="read"))
    yield await _tried("range", part, PERMITTED.format(right="read"))
    yield await _tried("list", listing, "The keys need the right to list the bucket.")
    yield await _tried(
        "sign",
        sign,
        "Presigned delivery will not work. Is the endpoint the same for this machine and for browsers, and the clock "
        "right? Until then keep SAFELIGHT_STORAGE_DELIVERY=proxy.",
    )
    yield await _tried("delete", delete, PERMITTED.format(right="delete"))


async def _tried(name: str, attempt: Callable[[], Awaitable[str]], advice: str) -> Step:
    began = time.monotonic()

    def step(note: str = "", reason: str | None = None) -> Step:
        return Step(name, round((time.monotonic() - began) * 1000, 1), note, reason, advice if reason else "")

    try:
        async with asyncio.timeout(STEP_SECONDS):
            return step(note=await attempt())
    except TimeoutError:
        return step(reason=f"No answer within {STEP_SECONDS:g} s.")
    except SafelightError as error:
        return step(reason=error.detail)


async def _fetch(link: str, data: bytes) -> str:
    """As a browser would: without keys."""
    try:
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.get(link)
    except httpx.HTTPError as error:
        raise ProofFailed(f"The signed link could not be fetched ({type(error).__name__}).") from None
    if answer.status_code != 200:
        raise ProofFailed(f"The signed link was answered with {answer.status_code} {answer.reason_phrase}.")
    if answer.content != data:
        raise ProofFailed("The signed link gave another file.")
    if answer.headers.get("content-type") != CONTENT_TYPE or "inline" not in answer.headers.get(
        "content-disposition", ""
    ):
        raise ProofFailed("The store does not keep the type of a file, so browsers would not show it.")
    return "fetched without keys"
