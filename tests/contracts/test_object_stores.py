"""The storage contract, over every place there is: what is put can be read, listed, linked to and deleted."""

import asyncio
import functools
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path

import pytest

from object_stores import PLACES, Moto, Place, Rclone, S3Server, open_place, server
from safelight.errors import Invalid
from safelight.storage import BadKey, BucketMissing, FileMissing, Storage, StorageRefused, StorageUnavailable
from safelight.storage.store import PART_BYTES

SERVERS = (Moto, Rclone)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from open_place(request.param, tmp_path)


@pytest.fixture
async def storage(place: Place) -> AsyncIterator[Storage]:
    opened = place.open()
    yield opened
    if place.name == "real":
        await opened.delete([key async for key, _, _ in opened.list()])


async def read(storage: Storage, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in storage.stream(key, start, end)])


async def pieces(data: bytes, size: int = 700_001) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]


def fetch(url: str, **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return answer.status, answer.headers, answer.read()


@pytest.mark.anyio
async def test_what_is_put_can_be_read_in_whole_and_in_part(storage: Storage) -> None:
    data = os.urandom(700_000)
    key = "jobs/a/1/0.png"
    await storage.put(key, data, "image/png")
    await storage.flush([key])
    assert await storage.get(key) == data
    assert await storage.head(key) == len(data)
    assert await read(storage, key) == data
    assert await read(storage, key, 10, 20) == data[10:20]
    assert await read(storage, key, 300_000, 600_001) == data[300_000:600_001]
    assert await read(storage, key, 699_990) == data[-10:]
    assert await read(storage, key, 699_990, 999_999) == data[-10:]
    assert await read(storage, key, 5, 5) == b""
    await storage.put(key, b"", "image/png")
    assert await storage.get(key) == b""


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 1, 1000, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12_345])
async def test_a_stream_is_stored_whole(storage: Storage, size: int) -> None:
    data = os.urandom(size)
    await storage.put_stream("inputs/a/0.png", pieces(data), "image/png")
    assert await storage.head("inputs/a/0.png") == size
    assert await read(storage, "inputs/a/0.png") == data


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1000, PART_BYTES + 500_000])
async def test_a_stream_that_breaks_leaves_nothing(storage: Storage, size: int) -> None:
    class Broken(Exception):
        pass

    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * size
        raise Broken

    with pytest.raises(Broken):
        await storage.put_stream("inputs/a/0.png", breaking(), "image/png")
    assert await storage.head("inputs/a/0.png") is None
    assert [key async for key, _, _ in storage.list()] == []


@pytest.mark.anyio
async def test_what_is_missing_is_said_to_be_missing(storage: Storage) -> None:
    assert await storage.head("no") is None
    with pytest.raises(FileMissing):
        await storage.get("no")
    with pytest.raises(FileMissing):
        await read(storage, "no")
    with pytest.raises(FileMissing):
        await read(storage, "no", 5, 10)
    await storage.delete(["no", "not/this"])
    await storage.probe()


@pytest.mark.anyio
async def test_list_and_delete(storage: Storage) -> None:
    for key in ("jobs/a/1/0.png", "jobs/a/2/0.png", "jobs/ab/1/0.png", "other/x"):
        await storage.put(key, b"12345", "image/png")
    listed = [entry async for entry in storage.list("jobs/a")]
    assert sorted(key for key, _, _ in listed) == ["jobs/a/1/0.png", "jobs/a/2/0.png"]
    assert {size for _, size, _ in listed} == {5}
    assert all(abs((datetime.now(UTC) - changed_at).total_seconds()) < 60 for _, _, changed_at in listed)
    assert len([key async for key, _, _ in storage.list()]) == 4
    await storage.delete(["jobs/a/1/0.png", "jobs/a/2/0.png", "jobs/a/3/0.png"])
    assert sorted([key async for key, _, _ in storage.list("jobs")]) == ["jobs/ab/1/0.png"]
    assert [key async for key, _, _ in storage.list("nothing")] == []


@pytest.mark.anyio
async def test_a_long_list_is_whole(storage: Storage, place: Place) -> None:
    """Of one object store more than a page, which holds 1000."""
    count = 1020 if place.name == "Rclone" else 30
    keys = [f"many/{number}.png" for number in range(count)]
    for begin in range(0, count, 60):
        await asyncio.gather(*(storage.put(key, b"x", "image/png") for key in keys[begin : begin + 60]))
    assert sorted([key async for key, _, _ in storage.list("many")]) == sorted(keys)
    await storage.delete(keys)
    assert [key async for key, _, _ in storage.list("many")] == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "a/../b", "..", "a//b", "a/", "./a", "a\\b", "a b", "a\0b", "ü", ".x", "a#1", "a?b", "%2e"],
)
async def test_keys_stay_inside(storage: Storage, key: str) -> None:
    with pytest.raises(BadKey):
        await storage.put(key, b"x", "text/plain")
    with pytest.raises(BadKey):
        await storage.put_stream(key, pieces(b"x"), "text/plain")
    with pytest.raises(BadKey):
        await storage.get(key)
    with pytest.raises(BadKey):
        await storage.link(key, 60)


@pytest.mark.anyio
async def test_two_prefixes_of_a_bucket_do_not_see_each_other() -> None:
    for kind in SERVERS:
        one, other = server(kind).place(prefix="one").open(), server(kind).place(prefix="one-more/deep").open()
        await one.put("a.png", b"1", "image/png")
        await other.put("b.png", b"2", "image/png")
        assert [key async for key, _, _ in one.list()] == ["a.png"]
        assert [key async for key, _, _ in other.list()] == ["b.png"]
        await one.delete(["a.png"])
        await other.delete(["b.png"])


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_link_gives_the_file_with_its_type_and_name(storage: Storage, place: Place) -> None:
    key = "jobs/0190/1/0.png"
    await storage.put(key, b"0123456789", "image/png")
    link = await storage.link(key, 60)
    if place.name in {"file", "memory"}:
        assert link is None
        return
    assert link is not None
    status, headers, body = await asyncio.to_thread(fetch, link)
    assert (status, body) == (200, b"0123456789")
    assert headers["content-type"] == "image/png"
    assert headers["content-disposition"] == 'inline; filename="0190-1-0.png"'
    assert "immutable" in headers["cache-control"]
    _, _, part = await asyncio.to_thread(functools.partial(fetch, link, Range="bytes=2-4"))
    assert part == b"234"

    big = "jobs/0190/1/1.webp"
    await storage.put_stream(big, pieces(bytes(PART_BYTES + 1)), "image/webp")
    link = await storage.link(big, 60)
    assert link is not None
    _, headers, body = await asyncio.to_thread(fetch, link)
    assert (headers["content-type"], len(body)) == ("image/webp", PART_BYTES + 1)


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in PLACES if name in {"rclone", "real"}])
async def test_a_link_expires_and_cannot_be_bent(name: str, tmp_path: Path) -> None:
    for place in open_place(name, tmp_path):
        storage = place.open()
        await storage.put("a.png", b"1", "image/png")
        await storage.put("b.png", b"2", "image/png")
        short, long = await storage.link("a.png", 1), await storage.link("a.png", 60)
        assert short is not None
        assert long is not None
        assert (await asyncio.to_thread(fetch, long))[2] == b"1"
        for bent in (
            long.replace("a.png", "b.png"),
            long.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
            long[:-1] + ("0" if long[-1] != "0" else "1"),
            long.partition("?")[0],
        ):
            with pytest.raises(urllib.error.HTTPError) as caught:
                await asyncio.to_thread(fetch, bent)
            assert caught.value.code in {400, 403}
            caught.value.close()
        time.sleep(2.1)  # noqa: ASYNC251 - whole seconds are compared
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(fetch, short)
        assert caught.value.code in {400, 403}
        caught.value.close()
        await storage.delete(["a.png", "b.png"])


# --- trouble ----------------------------------------------------------------------------------------------------------


async def refusals(storage: Storage) -> AsyncIterator[StorageUnavailable]:
    """What every operation raises where nothing is possible."""

    async def listing() -> None:
        async for _ in storage.list("jobs"):
            pass

    for attempt in (
        lambda: storage.put("jobs/a", b"x", "image/png"),
        lambda: storage.put_stream("jobs/a", pieces(bytes(PART_BYTES + 1)), "image/png"),
        lambda: storage.get("jobs/a"),
        lambda: read(storage, "jobs/a"),
        lambda: storage.delete(["jobs/a"]),
        listing,
        storage.probe,
    ):
        with pytest.raises(StorageUnavailable) as caught:
            await attempt()
        yield caught.value


@pytest.mark.anyio
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_missing_bucket_is_told(kind: type[S3Server]) -> None:
    async for error in refusals(server(kind).place(bucket="nowhere").open()):
        assert isinstance(error, BucketMissing)
        assert (error.code, error.kind, error.retry_after) == ("storage_bucket_missing", "internal", None)
        assert "s3://nowhere/test-" in error.detail


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong", [{"secret_key": "another-secret-of-forty-characters-xxxxx"}, {"access_key": "AKIAUNKNOWNUNKNOWN00"}]
)
async def test_wrong_keys_are_told_and_never_repeated(wrong: dict[str, str]) -> None:
    place = server(Rclone).place()
    storage = place.open(**wrong)
    async for error in refusals(storage):
        assert type(error) is StorageRefused
        assert (error.code, error.kind, error.retry_after) == ("storage_refused", "internal", None)
        assert "does not accept our keys" in error.detail
        shown = repr(error) + str(error.__cause__)
        assert not any(secret in shown for secret in (place.access_key, place.secret_key, *wrong.values()))
    with pytest.raises(StorageRefused):
        await storage.head("jobs/a")
    assert [key async for key, _, _ in place.open().list()] == []


@pytest.mark.anyio
async def test_a_store_that_is_away_is_told_and_comes_back() -> None:
    server(Rclone)  # skips where there is none
    away = Rclone()
    try:
        storage = away.place().open()
        await storage.put("a.png", b"1", "image/png")
        away.kill()
        with pytest.raises(StorageUnavailable, match="cannot be reached") as caught:
            await storage.get("a.png")
        assert (caught.value.code, caught.value.kind) == ("storage_unavailable", "unavailable")
        assert caught.value.retry_after
        away.start()
        assert await storage.get("a.png") == b"1"
    finally:
        away.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must be one of these"),
        ("/tmp/x", "must be one of these"),
        ("http://x/", "must be one of these"),
        ("ftp://bucket", "must be one of these"),
        ("file://host/x", "three slashes"),
        ("file:relative", "three slashes"),
        ("s3://", "not the name of a bucket"),
        ("s3://b", "not the name of a bucket"),
        ("s3://bad bucket/x", "not the name of a bucket"),
        ("s3://bucket/../up", "plain names"),
        ("s3://bucket/a//b", "plain names"),
        ("s3://bucket?endpoint=r2.example.com", "an address alone"),
        ("s3://bucket?endpoint=https://r2.example.com/bucket", "an address alone"),
        ("s3://bucket?endpoint=https://who:hunter2@r2.example.com", "an address alone"),
        ("s3://bucket?endpoint=https://h:99999", "an address alone"),
        ("s3://bucket?endpoint=", "with a value"),
        ("s3://bucket?region=a&region=b", "given once"),
        ("s3://bucket?secret_key=hunter2", "settings of their own"),
        ("s3://bucket?flavour=mint", "unknown option 'flavour'"),
        ("s3://who:hunter2@bucket/x", "must not hold keys"),
        ("s3://[bucket/x", "not a URL"),
        ("gs://bucket?region=eu", "takes none"),
        ("az://container", "Account must be specified"),
        ("s3://bucket?endpoint=https://0123.r2.cloudflarestorage.com", "no keys for s3://bucket"),
    ],
)
def test_wrong_urls_are_told(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    with pytest.raises(Invalid, match=says) as caught:
        Storage.open(url)
    assert "hunter2" not in caught.value.detail


def test_half_a_pair_of_keys_is_told() -> None:
    with pytest.raises(Invalid, match="must be set together"):
        Storage.open("s3://bucket", access_key="only")


def test_every_store_can_be_opened_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.example.com")
    r2 = Storage.open("s3://bucket/p?endpoint=https://0.r2.cloudflarestorage.com", access_key="a", secret_key="b")
    assert r2.place == "s3://bucket/p at https://0.r2.cloudflarestorage.com"
    assert Storage.open("s3://bucket?region=eu-central-1", access_key="a", secret_key="b").place == "s3://bucket"
    assert Storage.open("gs://bucket/deep/er").place == "gs://bucket/deep/er"
    assert Storage.open("az://container/x?account=me", secret_key="aGVsbG8=").place == "az://container/x"


@pytest.mark.anyio
async def test_the_url_wins_over_the_environment_and_r2_signs_for_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.example.com")
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    url = "s3://bucket/p?endpoint=https://0.r2.cloudflarestorage.com"
    link = await Storage.open(url, access_key="a", secret_key="b").link("a.png", 60)
    assert link is not None
    assert link.startswith("https://0.r2.cloudflarestorage.com/bucket/p/a.png?")
    assert "%2Fauto%2Fs3%2F" in link
