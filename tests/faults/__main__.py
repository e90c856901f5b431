"""The command line: `python -m faults`."""

import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import click

from faults.experiments import EXPERIMENTS
from faults.lab import DatabaseKind, Lab, seeds
from faults.mounts import leave_mount_namespace
from faults.report import as_json, as_markdown, as_text
from faults.trial import Experiment, Outcome

EPILOG = """\b
Examples:
  ./run faults --list
  ./run faults --minutes 10 --database postgresql
  ./run faults --only worker-storm --only valkey --seed 7

An experiment that found something prints what, and keeps its processes' logs; the same seed makes the same schedule
again (the moments at which processes get to run are the machine's). The exit code is 1 unless all counts are zero."""


def say(line: str) -> None:
    click.echo(line, err=True)


@click.command(epilog=EPILOG)
@click.option("--minutes", type=float, default=0.0, help="Repeat with other seeds until this time is over.")
@click.option("--seed", type=int, help="Of all schedules; default: by chance, and told.")
@click.option("--only", multiple=True, metavar="NAME", help="Experiments whose name begins so; may be repeated.")
@click.option("--database", type=click.Choice(["sqlite", "postgresql"]), default="sqlite", show_default=True)
@click.option("--short", is_flag=True, help="The smallest form of each, as in `./run test`.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every round to this file.")
@click.option("--markdown", "markdown_file", type=click.Path(path_type=Path), help="Write the table to this file.")
@click.option("--list", "only_list", is_flag=True, help="Say what the experiments are, and make none.")
def main(
    minutes: float,
    seed: int | None,
    only: tuple[str, ...],
    database: str,
    short: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    only_list: bool,
) -> None:
    """Break a running Safelight in every way we know, and show that nothing accepted is lost.

    Real processes (API, workers, Valkey, SQLite or PostgreSQL) are killed, frozen, cut off and starved on a seeded
    schedule, while jobs run on the mock provider. Then an oracle reads rows, files, logs, the provider's ledger and
    what watchers were told, and the table says what it found. All zeros is a pass.
    """
    chosen = [e for e in EXPERIMENTS if not only or e.name.startswith(only)]
    if not chosen:
        raise click.UsageError(f"No experiment begins with {' or '.join(only)}; see --list.")
    if only_list:
        for experiment in chosen:
            click.echo(f"{experiment.name:<24} {experiment.sentence}")
        return
    leave_mount_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    first = seeds(seed)
    lab = Lab(cast(DatabaseKind, database), is_short=short, say=say, small_disk=True)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    say(f"{len(chosen)} experiments on {database}, seed {first}")
    try:
        for outcome in lab.rounds(chosen, first, minutes):
            outcomes.append(outcome)
            tell(outcome, began)
    except KeyboardInterrupt:
        say("Interrupted; this is what was found so far.")
    finally:
        lab.close()
    if outcomes:
        click.echo(as_text(outcomes))
    facts: dict[str, Any] = {"database": database, "seed": first, "seconds": round(time.monotonic() - began)}
    if json_file is not None:
        json_file.write_text(as_json(outcomes, **facts))
    if markdown_file is not None:
        title = f"{database}, seed {first}, {facts['seconds'] / 60:.0f} minutes"
        markdown_file.write_text(as_markdown(outcomes, title))
    clean = bool(outcomes) and all(outcome.findings.is_clean for outcome in outcomes)
    click.echo(f"\n{'All zeros.' if clean else 'Not all zeros.'} {database}, seed {first}, {facts['seconds']} s")
    sys.exit(0 if clean else 1)


def tell(outcome: Outcome, began: float) -> None:
    """A line while it runs."""
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    head = f"{minutes:3}:{seconds:02}  {outcome.experiment:<22} seed {outcome.seed:<6}"
    if outcome.skipped is not None:
        say(f"{head} skipped: {outcome.skipped}")
        return
    verdict = (
        "ok"
        if outcome.findings.is_clean
        else "FOUND " + ", ".join(f"{count} {name}" for name, count in outcome.findings.counts.items() if count)
    )
    say(f"{head} {outcome.jobs:4} jobs {outcome.faults:3} faults {outcome.seconds:6.1f} s  {verdict}")
    for sentence in outcome.findings.sentences[:10]:
        say(f"      {sentence}")


def find(name: str) -> Experiment:
    return next(experiment for experiment in EXPERIMENTS if experiment.name == name)


if __name__ == "__main__":
    main()
