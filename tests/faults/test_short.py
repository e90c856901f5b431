"""The smallest form of the experiments that matter most, with a fixed seed. All of them: `./run faults`.

Half of them run on either database: side by side, and the long form runs all on both.
"""

import sys
from collections.abc import Iterator

import pytest

from faults.experiments import EXPERIMENTS
from faults.lab import DatabaseKind, Lab
from faults.trial import Experiment

pytestmark = pytest.mark.faults
SEED = 1
SHORT = [experiment for experiment in EXPERIMENTS if experiment.short]
LONG = {"api-storm", "rolling-restarts", "whole-stack", "valkey-killed", "points-of-providers", "points-side-by-side"}
POSTGRESQL = {"worker-storm", "holder-storm", "frozen-worker", "hints-doubled", "postgres-killed", "cancel", "poison"}


def _chosen(kind: DatabaseKind) -> pytest.MarkDecorator:
    experiments = [
        pytest.param(each, id=each.name, marks=[pytest.mark.long] if each.name in LONG else [])
        for each in SHORT
        if (each.name in POSTGRESQL) == (kind == "postgresql")
    ]
    return pytest.mark.parametrize("experiment", experiments)


@pytest.fixture(scope="class")
def sqlite_lab() -> Iterator[Lab]:
    lab = Lab("sqlite", is_short=True, say=_warn)
    yield lab
    lab.close()


@pytest.fixture(scope="class")
def postgresql_lab() -> Iterator[Lab]:
    lab = Lab("postgresql", is_short=True, say=_warn)
    yield lab
    lab.close()


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _make(lab: Lab, experiment: Experiment) -> None:
    outcome = lab.make(experiment, SEED)
    if outcome.skipped is not None:
        pytest.skip(outcome.skipped)
    assert outcome.findings.is_clean, "\n".join(outcome.findings.sentences)


class TestSqlite:
    """One stack for all, for as long as none finds anything."""

    @_chosen("sqlite")
    def test(self, sqlite_lab: Lab, experiment: Experiment) -> None:
        _make(sqlite_lab, experiment)


class TestPostgresql:
    """The same on the other database."""

    @_chosen("postgresql")
    def test(self, postgresql_lab: Lab, experiment: Experiment) -> None:
        _make(postgresql_lab, experiment)
