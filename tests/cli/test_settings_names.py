"""Misspelt variables, commands and options: the near name is said, and nothing begins with a setting that is none."""

import re

import click
import pytest
from click.testing import CliRunner

from safelight.cli.main import group
from safelight.cli.settings import check_names, load_settings, variables


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("SAFELIGHT_DATABSE_URL", "SAFELIGHT_DATABASE_URL"),
        ("SAFELIGHT_AUHT", "SAFELIGHT_AUTH"),
        ("SAFELIGHT_REDISURL", "SAFELIGHT_REDIS_URL"),
        ("SAFELIGHT_APP_ENV", "APP_ENV"),
        ("safelight_prot", "SAFELIGHT_PORT"),
    ],
)
def test_a_misspelt_setting_is_refused(variable: str, meant: str) -> None:
    with pytest.raises(click.UsageError, match=f"{variable} is no setting. Did you mean {meant}[?]"):
        check_names({variable: "x"})


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("SAFELIGHT_QQQQQQQQQQQ", "is no setting and changes nothing.\n"),
        ("SAFELIGHT_FAULTS_PIPE", "is no setting and changes nothing.\n"),  # a little like DEFAULT_TIER
        ("APP_EVN", "Did you mean APP_ENV?"),
        ("AI_MOCKMODE", "Did you mean AI_MOCK_MODE?"),
        ("APP_NAME", ""),
        ("AI_API_KEY", ""),
        ("SAFELIGHT_SERVICE_HOST", ""),
        ("SAFELIGHT_PORT_8080_TCP_ADDR", ""),
        ("SAFELIGHT_API_SERVICE_PORT_HTTP", ""),
        ("SAFELIGHT_API_KEY", ""),
        ("SAFELIGHT_TEST_PG_URL", ""),
    ],
)
def test_what_may_be_somebody_elses_is_warned_of_or_left(
    variable: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_names({variable: "x"})
    said = capsys.readouterr().err
    assert words in said and bool(said) == bool(words)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SAFELIGHT_PORT", "eighty", "SAFELIGHT_PORT: Input should be a valid integer"),
        ("APP_ENV", "prod", "APP_ENV: Input should be 'dev'"),
        ("SAFELIGHT_TIERS", '{"free": {"jobs_at_once": "x"}}', "SAFELIGHT_TIERS.free.jobs_at_once: Input should be"),
        ("SAFELIGHT_TIERS", '{"free"', "SAFELIGHT_TIERS: This must be JSON"),
    ],
)
def test_a_wrong_value_is_told_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(click.UsageError, match=re.escape(words)):
        load_settings()


def test_a_wrong_flag_is_told_by_its_name() -> None:
    with pytest.raises(click.UsageError, match="--port: Input should be"):
        load_settings(port=70000)


def test_every_setting_is_known() -> None:
    check_names(dict.fromkeys(variables(), "x"))
    assert {"APP_ENV", "AI_MOCK_MODE", "SAFELIGHT_PORT", "SAFELIGHT_MOCK_MODE"} <= set(variables())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generat"], "generate"),
        (["migrat"], "migrate"),
        (["wrker"], "worker"),
        (["generate", "x", "--widht", "3"], "--width"),
        (["providers", "lss"], "ls"),
    ],
)
def test_a_mistyped_command_or_option_gets_the_near_one(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 2
    assert "Did you mean" in done.output and words in done.output
