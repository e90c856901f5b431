"""`safelight keys`: made, listed and revoked straight in the database; and the key that a client sends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from safelight.cli.keys import keys
from safelight_client import Client


@pytest.fixture
def folder(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFELIGHT_DATABASE_URL", sqlite_url)
    return Path(sqlite_url.removeprefix("sqlite:///")).parent


def run(*arguments: str) -> Result:
    return CliRunner().invoke(keys, arguments)


@pytest.mark.usefixtures("folder")
def test_a_key_is_made_shown_once_and_revoked() -> None:
    made = run("create", "laptop", "--owner", "ada", "--scope", "admin", "--tier", "pro", "--days", "90")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert secret.startswith("sl_")
    shown = run("ls").stdout
    assert secret not in shown
    assert secret[:9] in shown
    (key,) = json.loads(run("ls", "--json", "--owner", "ada").stdout)
    assert (key["name"], key["owner_id"], key["scopes"], key["tier"]) == ("laptop", "ada", ["admin"], "pro")
    assert json.loads(run("ls", "--json", "--owner", "bob").stdout) == []
    revoked = run("revoke", key["id"])
    assert (revoked.exit_code, revoked.stderr) == (0, "Revoked: laptop of ada.\n")
    assert "revoked" in run("ls").stdout
    assert json.loads(run("create", "x", "--owner", "ada", "--json").stdout)["secret"].startswith("sl_")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("create", "x"), 2, "--owner"),
        (("create", "x", "--owner", " "), 2, "--owner"),
        (("create", "a\nb", "--owner", "ada"), 2, "NAME"),
        (("create", "x", "--owner", "ada", "--tier", "platinum"), 2, "free, pro"),
        (("create", "x", "--owner", "ada", "--days", "0"), 2, "--days"),
        (("revoke", "sl_something"), 2, "not the secret"),
        (("revoke", "01970000-0000-7000-8000-000000000001"), 1, "There is no key"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_without_a_database_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    result = run("create", "x", "--owner", "ada")
    assert result.exit_code == 5
    assert "safelight migrate" in result.stderr
    monkeypatch.setenv("SAFELIGHT_DATABASE_URL", f"sqlite:///{tmp_path / 'no' / 'folder' / 'none.db'}")
    for arguments in (("create", "x", "--owner", "ada"), ("ls",)):
        result = run(*arguments)
        assert result.exit_code == 5
        assert "`safelight migrate` makes it" in result.stderr


def test_the_client_sends_its_key_home_and_nowhere_else() -> None:
    with Client("http://127.0.0.1:1", api_key="sl_x") as client:
        assert client._headers_for("http://127.0.0.1:1/api/v1/x") == {"Authorization": "Bearer sl_x"}
        for elsewhere in ("https://127.0.0.1:1/x", "http://127.0.0.1:2/x", "https://bucket.example/x"):
            assert client._headers_for(elsewhere) == {}
