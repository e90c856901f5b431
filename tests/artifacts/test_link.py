"""Links: they give what they were made for, until they expire, and cannot be bent."""

import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from safelight.artifacts import BadLink, Links, StoredFile, load_signing_key
from safelight.errors import SafelightError, Unavailable
from safelight.storage import Storage

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
FILE = StoredFile("jobs/a/1/0.png", "image/png", "a.png", 1234, '"abc"')
KEY = b"k" * 32


def links(key: bytes = KEY, now: datetime = NOW, **options: str) -> Links:
    return Links(Storage.open("memory:///"), signing_key=lambda: key, now=lambda: now, **options)


async def token() -> str:
    link = await links().make(FILE, 60)
    assert link.expires_at == NOW + timedelta(seconds=60)
    assert link.url.startswith("/api/v1/files/")
    return link.url.removeprefix("/api/v1/files/")


@pytest.mark.anyio
async def test_a_link_is_read_as_it_was_made() -> None:
    assert links().read(await token()) == (FILE, 60)
    assert links(now=NOW + timedelta(seconds=59)).read(await token()) == (FILE, 1)


@pytest.mark.anyio
async def test_a_link_ends() -> None:
    for seconds in (60, 61, 1_000_000):
        with pytest.raises(BadLink) as caught:
            links(now=NOW + timedelta(seconds=seconds)).read(await token())
        assert caught.value.code == "link_expired"


@pytest.mark.anyio
async def test_a_link_cannot_be_bent() -> None:
    good = await token()
    other = (await links().make(replace(FILE, key="jobs/b/1/0.png"), 60)).url.rpartition("/")[2]
    payload, _, signature = good.rpartition(".")
    bent = [
        "",
        ".",
        "x",
        payload,
        payload + ".",
        "." + signature,
        good + "A",
        good[:-2],
        f"{payload}.{other.rpartition('.')[2]}",
        f"{other.rpartition('.')[0]}.{signature}",
        "ü" + good,
        good.replace(".", ".."),
        # The last letter holds two bits of nothing.
        *(good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :] for at in range(len(good) - 1)),
    ]
    for one in bent:
        with pytest.raises(BadLink) as caught:
            links().read(one)
        assert caught.value.code == "link_invalid"
    with pytest.raises(BadLink):
        links(b"o" * 32).read(good)


@pytest.mark.anyio
async def test_a_public_bucket_needs_no_token() -> None:
    link = await links(public_url="https://pictures.example.com/x/").make(FILE, 60)
    assert (link.url, link.expires_at) == ("https://pictures.example.com/x/jobs/a/1/0.png", None)


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(load_signing_key(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    assert [path.name for path in folder.iterdir()] == ["signing.key"]
    assert stat.S_IMODE((folder / "signing.key").stat().st_mode) == 0o600
    assert load_signing_key(folder) == keys[0]


def test_a_damaged_key_and_a_closed_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_text("short")
    with pytest.raises(SafelightError, match="damaged"):
        load_signing_key(tmp_path)
    with pytest.raises(Unavailable, match="cannot be read or made"):
        load_signing_key(tmp_path / "signing.key")
