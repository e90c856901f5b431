"""Where experiments are made: servers that may be broken, a stack on them, and the order of rounds."""

import contextlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Literal

from faults.launch import DISPATCH_VARIABLE
from faults.mounts import SmallDisk
from faults.stack import Stack
from faults.trial import Experiment, Outcome, Skipped, Trial
from safelight.migrations import migrate
from servers import PostgresServer, ServerMissing, ValkeyServer

DatabaseKind = Literal["sqlite", "postgresql"]
Say = Callable[[str], None]


class FaultyStack(Stack):
    """A stack together with the servers under it, all of which may be broken."""

    postgres: PostgresServer | None = None
    disk: SmallDisk | None = None

    @property
    def is_postgresql(self) -> bool:
        return self.postgres is not None

    def restore(self) -> None:
        """Mend every server; processes are mended by `crew`."""
        if not self.valkey.is_running:
            self.valkey.aof = False
            self.valkey.start()
        self.valkey.thaw()
        self.valkey.command("CONFIG", "SET", "maxmemory", "0")
        if self.postgres is not None:
            if not self.postgres.is_running:
                self.postgres.start()
            self.postgres.thaw()


class Lab:
    """Makes stacks, and experiments on them. A stack is used until something was wrong with it."""

    def __init__(self, kind: DatabaseKind, *, is_short: bool, say: Say, small_disk: bool = False) -> None:
        self.kind: DatabaseKind = kind
        self._is_short = is_short
        self._say = say
        self._small_disk = small_disk
        self._exit = contextlib.ExitStack()
        self._stack: FaultyStack | None = None
        self._built = contextlib.ExitStack()

    def close(self) -> None:
        self._built.close()
        self._stack = None

    def rounds(self, experiments: Iterable[Experiment], seed: int, minutes: float) -> Iterator[Outcome]:
        """Every experiment once, then again with other seeds until the time is over."""
        chosen = list(experiments)
        deadline = time.monotonic() + minutes * 60
        longest: dict[str, float] = {}
        number = 0
        while True:
            for experiment in chosen:
                # A further round begins only what will probably end in time.
                if number and time.monotonic() + longest.get(experiment.name, 0) > deadline:
                    continue
                outcome = self.make(experiment, seed + number)
                longest[experiment.name] = outcome.seconds
                yield outcome
            number += 1
            least = min((s for s in longest.values() if s > 0), default=0)
            if not least or time.monotonic() + least > deadline:
                break
            self.close()  # another round, another stack

    def make(self, experiment: Experiment, seed: int) -> Outcome:
        """One experiment, judged."""
        outcome = Outcome(experiment.name, seed)
        if experiment.database not in (None, self.kind):
            outcome.skipped = f"is for {experiment.database}"
            return outcome
        began = time.monotonic()
        trial: Trial | None = None
        try:
            stack = self._sound_stack()
            trial = Trial(stack, experiment, seed, is_short=self._is_short)
            outcome = trial.outcome
            try:
                experiment.run(trial)
            finally:
                stack.restore()
                for watcher in trial.watchers if trial.findings.broken else ():
                    watcher.stop()
            trial.conclude()
        except Skipped as reason:
            outcome.skipped = str(reason)
        except ServerMissing as reason:
            outcome.skipped = str(reason)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            mine = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in place if "faults" in frame.filename]
            outcome.findings.add("broken", f"{type(error).__name__}: {error} ({' < '.join(reversed(mine))})")
            if trial is not None:
                outcome.jobs, outcome.faults = len(trial.promises), len(trial.faults)
        outcome.seconds = time.monotonic() - began
        if not outcome.findings.is_clean:
            if trial is not None:
                self._say(f"  logs kept in {self._keep(trial.stack.folder)}")
            self.close()
        return outcome

    def _keep(self, folder: Path) -> Path:
        kept = Path(tempfile.mkdtemp(prefix="safelight-faults-"))
        for file in [*folder.glob("*.log"), folder / "ledger"]:
            shutil.copy(file, kept)
        return kept

    def _sound_stack(self) -> FaultyStack:
        if self._stack is None:
            self._stack = self._build()
        self._stack.restore()
        return self._stack

    def _build(self) -> FaultyStack:
        self._built = contextlib.ExitStack()
        with contextlib.ExitStack() as building:
            disk = building.enter_context(SmallDisk.mounted()) if self._small_disk else None
            folder = Path(building.enter_context(tempfile.TemporaryDirectory(prefix="safelight-faults-")))
            home = folder if disk is None else disk.path
            valkey = ValkeyServer()
            building.callback(valkey.close)
            postgres: PostgresServer | None = None
            if self.kind == "postgresql":
                postgres = PostgresServer()
                building.callback(postgres.close)
                postgres.make_template(migrate)
                url = postgres.database("safelight")
            else:
                url = f"sqlite:///{home / 'safelight.db'}"
                migrate(url)
            short = {DISPATCH_VARIABLE: "1.5"} if self._is_short else {}
            stack = FaultyStack(folder, url, valkey, data=home / "data", **short)
            stack.postgres, stack.disk = postgres, disk
            building.callback(stack.close)
            self._built = building.pop_all()
        return stack


def seeds(seed: int | None) -> int:
    """The seed given, or one of chance, which is told so that the run can be repeated."""
    return Random().randrange(10_000) if seed is None else seed


def faulty(trial: Trial) -> FaultyStack:
    """The trial's stack, with the servers that may be broken."""
    assert isinstance(trial.stack, FaultyStack)
    return trial.stack
