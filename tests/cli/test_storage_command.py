"""`safelight storage`: the proof in words, and a move that can be cut off anywhere."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner

from object_stores import Moto, Place, Rclone, server
from patience import PATIENCE_SECONDS
from safelight.artifacts import Artifact, ArtifactStore, insert
from safelight.artifacts.service import UPLOADS
from safelight.cli.main import group
from safelight.db import Database, new_id
from safelight.pictures import Mark, PictureWorkers
from safelight.providers import darkroom
from safelight.storage import Storage

T = TypeVar("T")


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str | None]:
    """Nothing of the caller's own settings."""
    unset = dict.fromkeys((name for name in os.environ if name.startswith(("SAFELIGHT_", "AWS_"))), None)
    return {**unset, "SAFELIGHT_DATA_DIR": str(folder / "data"), **variables}


def run(*arguments: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """The command in this process; exit code, standard output and standard error."""
    done = CliRunner().invoke(group, ["storage", *arguments], env=environment(folder, variables))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def command(*arguments: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """The command in a process of its own, that can be cut off."""
    everything = os.environ | environment(folder, variables)
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", "storage", *arguments],
        env={name: value for name, value in everything.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(call: Callable[[], Awaitable[T]]) -> T:
    async def body() -> T:
        return await call()

    return asyncio.run(body())


async def keys_of(storage: Storage) -> dict[str, int]:
    return {key: size async for key, size, _ in storage.list()}


# --- check ------------------------------------------------------------------------------------------------------------

STEPS = ["put", "get", "range", "list", "sign", "delete"]


@pytest.mark.parametrize("kind", [None, Moto, Rclone])
def test_a_storage_that_works_is_proved(kind: type[Moto] | type[Rclone] | None, tmp_path: Path) -> None:
    variables = {} if kind is None else server(kind).place().environment
    code, out, err = run("check", folder=tmp_path, **variables)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == STEPS
    assert all(re.fullmatch(r"\w+ +[\d.]+ ms  ok.*", line) for line in out.splitlines())
    assert ("signed and served by the API itself" if kind is None else "fetched without keys") in out
    assert "does all that Safelight needs" in err
    if kind is not None:
        place = Place("", variables["SAFELIGHT_STORAGE_URL"], *list(variables.values())[1:])
        assert wait(lambda: keys_of(place.open())) == {}


@pytest.mark.parametrize(
    ("url", "secret", "says"),
    [
        ("s3://nowhere?endpoint={endpoint}", "", "no bucket at s3://nowhere"),
        ("s3://pictures/x?endpoint={endpoint}", "wrong" * 8, "does not accept our keys"),
        ("s3://pictures/x?endpoint=http://127.0.0.1:9", "", "cannot be reached"),
    ],
)
def test_a_storage_that_does_not_work_is_told_with_what_to_do(url: str, secret: str, says: str, tmp_path: Path) -> None:
    stored = server(Rclone)
    environment = stored.place().environment | {"SAFELIGHT_STORAGE_URL": url.format(endpoint=stored.endpoint)}
    if secret:
        environment["SAFELIGHT_STORAGE_SECRET_KEY"] = secret
    code, out, err = run("check", folder=tmp_path, **environment)
    assert code == 1
    assert out.startswith("put ")
    assert says in out
    assert "The keys need the right to write objects" in out
    assert "cannot be used as it is" in err
    assert "Traceback" not in err
    assert not any(environment[f"SAFELIGHT_STORAGE_{name}_KEY"] in out + err for name in ("ACCESS", "SECRET"))


def test_a_wrong_url_is_a_usage_error(tmp_path: Path) -> None:
    code, _, err = run("check", "s3://who:hunter2@bucket", folder=tmp_path)
    assert (code, "must not hold keys" in err, "hunter2" in err) == (2, True, False)
    code, _, err = run("migrate", "current", "current", folder=tmp_path)
    assert (code, "same place" in err) == (2, True)


# --- migrate ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Place:
    return Place("file", (tmp_path / "data" / "files").as_uri())


@pytest.fixture
def database(sqlite_url: str, tmp_path: Path) -> str:
    return sqlite_url


async def fill(place: Place, database_url: str, count: int) -> list[Artifact]:
    """Artifacts with rows, an upload, and something that is not ours."""
    storage = place.open()
    data = BytesIO()
    darkroom.draw("hills", 1, 64, 64).save(data, "PNG")
    made: list[Artifact] = []
    with PictureWorkers() as workers:
        store = ArtifactStore(storage, workers)
        for number in range(count):
            job_id, mark = new_id(), Mark({"n": str(number)})
            made += [
                await store.store(
                    job_id=job_id, attempt=1, position=0, owner_id="me", data=data.getvalue(), mark=mark, seed=1
                )
            ]
        made.append(await store.store_upload(data.getvalue(), content_type="image/png", owner_id="me"))
    database = Database(database_url, readers=1)
    await database.write(insert, made)
    database.close()
    return made


@pytest.mark.parametrize("kind", [Moto, Rclone])
def test_everything_moves_and_nothing_moves_twice(
    kind: type[Moto] | type[Rclone], old: Place, database: str, tmp_path: Path
) -> None:
    made = wait(lambda: fill(old, database, 5))
    (tmp_path / "data" / "files" / "jobs" / "note of mine.txt").write_text("hello")
    new = server(kind).place()
    variables = {**new.environment, "SAFELIGHT_STORAGE_URL": old.url, "SAFELIGHT_DATABASE_URL": database}
    code, out, err = run("migrate", "current", new.url, folder=tmp_path, **variables)
    assert (code, out) == (0, ""), err
    assert re.search(r"Files: 12 copied \([\d.]+ MB\), 0 were there, 1 not of Safelight left alone\.", err)
    assert "nothing in the database has to change" in err
    assert f"SAFELIGHT_STORAGE_URL='{new.url}'" in err
    assert "Hashes are not compared" not in err
    source, target = old.open(), new.open()
    moved = wait(lambda: keys_of(target))
    assert len(moved) == 12
    assert {key for key in moved if key.startswith(UPLOADS)} == {key for key in moved if made[-1].id in key}
    for key in moved:
        assert wait(lambda key=key: target.get(key)) == wait(lambda key=key: source.get(key))
    link = wait(lambda: target.link(made[0].thumbnails[0]["storage_key"], 60))
    assert link is not None
    assert _type_of(link) == "image/webp"

    for options in ([], ["--verify"]):
        code, _, err = run("migrate", *options, old.url, new.url, folder=tmp_path, **variables)
        assert code == 0
        assert "Files: 0 copied (0.0 MB), 12 were there" in err

    # And back, into another folder.
    home = (tmp_path / "home").as_uri()
    code, _, err = run("migrate", new.url, home, folder=tmp_path, **variables)
    assert (code, "12 copied" in err) == (0, True)
    assert wait(lambda: keys_of(Storage.open(home))) == moved


def _type_of(link: str) -> str | None:
    with urllib.request.urlopen(link) as answer:  # noqa: S310
        return answer.headers["content-type"]


def test_a_damaged_file_is_named_and_not_copied(old: Place, database: str, tmp_path: Path) -> None:
    made = wait(lambda: fill(old, database, 3))
    files = tmp_path / "data" / "files"
    path = files / made[0].storage_key
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    (files / made[1].storage_key).write_bytes(whole[:50])
    home = (tmp_path / "home").as_uri()
    code, _, err = run("migrate", "current", home, folder=tmp_path, SAFELIGHT_DATABASE_URL=database)
    assert code == 1
    assert f"failed: {made[0].storage_key} is not what was recorded" in err
    assert f"failed: {made[1].storage_key} has 50 bytes" in err
    assert "6 copied" in err
    assert "2 failed" in err
    there = wait(lambda: keys_of(Storage.open(home)))
    assert not {made[0].storage_key, made[1].storage_key} & set(there)
    path.write_bytes(whole)
    code, _, err = run("migrate", "current", home, folder=tmp_path, SAFELIGHT_DATABASE_URL=database)
    assert (code, "1 copied" in err, "6 were there" in err) == (1, True, True)


def test_other_bytes_of_the_same_size_are_found_by_verify(old: Place, database: str, tmp_path: Path) -> None:
    made = wait(lambda: fill(old, database, 1))
    home = tmp_path / "home"
    variables = {"SAFELIGHT_DATABASE_URL": database}
    assert run("migrate", "current", home.as_uri(), folder=tmp_path, **variables)[0] == 0
    path = home / made[0].storage_key
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    _, _, err = run("migrate", "--verify", "current", home.as_uri(), folder=tmp_path, **variables)
    assert "Files: 1 copied" in err
    assert path.read_bytes() == whole


def test_without_a_database_files_are_moved_all_the_same(old: Place, tmp_path: Path) -> None:
    wait(lambda: old.open().put("jobs/a/1/0.png", b"x", "image/png"))
    code, _, err = run("migrate", "current", (tmp_path / "home").as_uri(), folder=tmp_path)
    assert code == 0
    assert "Hashes are not compared: The database file" in err
    assert "1 copied" in err
    assert (tmp_path / "home" / "jobs" / "a" / "1" / "0.png").read_bytes() == b"x"


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL])
def test_a_move_that_is_cut_off_goes_on_where_it_stopped(how: signal.Signals, old: Place, tmp_path: Path) -> None:
    count = 400

    async def many() -> None:
        storage = old.open()
        for number in range(count):
            await storage.put(f"jobs/{number % 7}/1/{number}.png", os.urandom(10_000), "image/png")

    wait(many)
    new = server(Moto).place()
    variables = new.environment | {"SAFELIGHT_STORAGE_URL": old.url}
    with command("migrate", "current", new.url, folder=tmp_path, **variables) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not 20 < len(wait(lambda: keys_of(new.open()))) < count and time.monotonic() < deadline:
            assert process.poll() is None
        process.send_signal(how)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    if how == signal.SIGINT:
        assert "Interrupted. Files: " in err
        assert "Traceback" not in err
    before = wait(lambda: keys_of(new.open()))
    assert 20 < len(before) < count
    assert set(before.values()) == {10_000}
    code, _, err = run("migrate", "current", new.url, folder=tmp_path, **variables)
    assert code == 0
    done = re.search(r"Files: (\d+) copied \([\d.]+ MB\), (\d+) were there", err)
    assert done is not None
    assert (int(done[1]), int(done[2])) == (count - len(before), len(before))
    assert len(wait(lambda: keys_of(new.open()))) == count


def test_a_target_that_refuses_ends_it_before_anything_is_read(old: Place, tmp_path: Path) -> None:
    wait(lambda: old.open().put("jobs/a/1/0.png", b"x", "image/png"))
    new = server(Rclone).place(bucket="nowhere")
    variables = new.environment | {"SAFELIGHT_STORAGE_URL": old.url}
    code, _, err = run("migrate", "current", new.url, folder=tmp_path, **variables)
    assert (code, "There is no bucket at s3://nowhere" in err, "Traceback" in err) == (1, True, False)


def test_an_empty_place_is_not_called_moved(tmp_path: Path) -> None:
    code, _, err = run("migrate", (tmp_path / "typo").as_uri(), (tmp_path / "to").as_uri(), folder=tmp_path)
    assert (code, "Is it the right place?" in err, "Everything is there" in err) == (0, True, False)
