"""Nothing is dead, but nothing is as it should be: wrong clocks, half-open connections, two dispatchers, restarts."""

import contextlib
import signal
from pathlib import Path

from sqlalchemy.engine import make_url

from faults.lab import faulty
from faults.proxy import FreezingProxy
from faults.stack import LEASE_SECONDS, Process, until
from faults.trial import Experiment, Trial
from patience import PATIENCE_SECONDS
from safelight.jobs.dispatch import LEASE_SECONDS as DISPATCH_SECONDS

CRASHES = ("worker_lost",)
TEN_MINUTES = 600


def wrong_clock(trial: Trial) -> None:
    """Leases, limits and the order of events follow the database's clock, not a worker's."""
    stack, random = trial.stack, trial.random
    for offset in (TEN_MINUTES, -TEN_MINUTES):
        stack.crew(io=1, local=1)
        trial.fault(f"a clock that is off by {offset} s")
        off = stack.start_worker("io", "io-off", "--clock", str(offset), SAFELIGHT_IO_SLOTS="200")
        stack.wait_for_workers(image_generation=2)
        for _ in range(trial.pick(15, 40)):
            script = random.choice((None, {"transient_errors": 1}))
            trial.submit(random.uniform(0.0, 0.5), script, watch=random.choice((None, 0)), codes=CRASHES)
        for name in ("io-1", "api"):  # whoever is left dispatches
            if random.random() < 0.7:
                victim = stack.member(name)
                trial.fault(f"kill {name}", victim)
                victim.kill()
        trial.pause(2.0, 3.0)
        stack.hire("api")
        stack.wait_for_api()
        trial.submit_some(5, 0.3, watch=0)
        trial.wait_ended()
        off.stop()


def half_open_valkey(trial: Trial) -> None:
    """A worker's connections to Valkey carry nothing any more, and nobody told it; new ones go through."""
    stack, random = faulty(trial), trial.random
    path = stack.folder / "half-open.sock"
    with contextlib.closing(FreezingProxy(path, stack.valkey.socket_path)) as proxy:
        stack.crew(io=0, local=1)
        url = f"unix://{path}?db=0"
        worker = stack.start_worker("io", "io-far", SAFELIGHT_REDIS_URL=url, SAFELIGHT_IO_SLOTS="50")
        stack.wait_for_workers(image_generation=1)
        for _ in range(trial.pick(1, 3)):
            for _ in range(8):
                trial.submit(random.uniform(0.0, 1.0), watch=random.choice((None, 0)))
            trial.fault("connections to Valkey go dead")
            proxy.freeze()
            for _ in range(8):
                trial.submit(random.uniform(0.0, 0.5), watch=0)
            trial.probe()
            trial.wait_ended()
        worker.stop()
    stack.crew(io=1)


def half_open_postgres(trial: Trial) -> None:
    """A worker's connections to PostgreSQL go dead; new ones go through. It finds out, and works again."""
    stack = faulty(trial)
    assert stack.postgres is not None
    folder = Path(stack.folder) / "far"
    folder.mkdir(exist_ok=True)
    with contextlib.closing(
        FreezingProxy(folder / ".s.PGSQL.5432", stack.postgres.directory / ".s.PGSQL.5432")
    ) as proxy:
        stack.crew(io=0, local=1)
        url = str(make_url(stack.database_url).set(query={"host": str(folder)}).render_as_string(hide_password=False))
        worker = stack.start_worker("io", "io-far", SAFELIGHT_DATABASE_URL=url, SAFELIGHT_IO_SLOTS="50")
        stack.wait_for_workers(image_generation=1)
        for _ in range(trial.pick(1, 2)):
            ids = trial.submit_some(8, 0.8, codes=CRASHES)
            trial.wait_processing(ids[:2])
            trial.fault("connections to PostgreSQL go dead", worker)
            proxy.freeze()
            trial.submit_some(8, 0.3, watch=0, codes=CRASHES)
            trial.probe()
            trial.wait_ended()
            left = stack.rows.unended(trial.project)
            trial.expect(not left, f"the worker never found out: {left} have not ended")
        worker.stop(40)
    stack.crew(io=1)


def rolling_restarts(trial: Trial) -> None:
    """SIGTERM to one after the other while jobs stream in; each leaves in order and within its time."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 4)):
        for name in trial.pick(("io-1", "api"), ("io-1", "api", "io-2", "local")):
            for _ in range(random.randint(3, 8)):
                paid = {"paid": random.random() < 0.5}
                trial.submit(random.uniform(0.0, 2.0), paid, watch=random.choice((None, 0)))
            leaving = stack.member(name)
            trial.fault(f"SIGTERM {name}")
            leaving.signal(signal.SIGTERM)
            if random.random() < 0.5 or name == "api":
                code = leaving.wait(PATIENCE_SECONDS)
                stack.hire(name)
            else:  # the next one is there before this one has gone
                del stack.crew_members[name]
                stack.hire(name)
                code = leaving.wait(PATIENCE_SECONDS)
            # uvicorn ends by the signal itself once it has shut down in order.
            trial.expect(code == (-signal.SIGTERM if name == "api" else 0), f"{name} left with {code}")
            stack.wait_for_api()
    trial.wait_ended()
    trial.expect_nobody_lost()


def threads_pool(trial: Trial) -> None:
    """The fallback without our own pool: asked to leave it hands its jobs back, killed it loses none."""
    stack, random = trial.stack, trial.random
    for end in ("SIGTERM", "SIGKILL"):
        stack.crew(io=0, local=2)
        leaving = stack.start_worker("io", "io-threads", "--pool", "threads", SAFELIGHT_IO_SLOTS="30")
        stack.wait_for_workers(image_generation=1)
        ids = [trial.submit(random.uniform(0.1, 3.0), watch=random.choice((None, 0))) for _ in range(20)]
        trial.wait_processing(ids, accepted=True)
        trial.fault(end, leaving)
        if end == "SIGTERM":
            code = leaving.stop(30)
            trial.expect(code == 0, f"the worker left with {code}")
        else:
            leaving.kill()
        stack.hire("io-1", SAFELIGHT_IO_SLOTS="200")
        trial.wait_ended()
        if end == "SIGTERM":
            trial.expect_nobody_lost()
            outcomes = {a.outcome for each in stack.rows.attempts(trial.project).values() for a in each}
            trial.expect("handed_back" in outcomes, "nothing was handed back")


def frozen_dispatcher(trial: Trial) -> None:
    """Frozen for longer than its lease; another takes over, and the thawed one must not act on what it believed."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 4)):
        trial.submit_some(5, 0.5, codes=CRASHES)
        holder: Process = until(stack.lease_holder, what="somebody who dispatches")
        trial.fault("freeze whoever dispatches", holder)
        holder.freeze()
        if holder.name != "api":
            for _ in range(10):
                trial.submit(random.uniform(0.0, 0.5), script=random.choice((None, {"transient_errors": 1})), watch=0)
        trial.pause(DISPATCH_SECONDS + 1, trial.pick(DISPATCH_SECONDS + 1, 30.0))
        if holder.name != "api":
            other = stack.lease_holder()
            trial.expect(other is not None and other is not holder, "nobody took the dispatch over")
        holder.thaw()
        trial.submit_some(5, 0.2, codes=CRASHES)


def two_dispatchers(trial: Trial) -> None:
    """The holder is frozen and thawed just about when its lease ends, so that two believe that it is theirs."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 5)):
        holder: Process = until(stack.lease_holder, what="somebody who dispatches")
        trial.fault("freeze whoever dispatches", holder)
        holder.freeze()
        trial.pause(DISPATCH_SECONDS - 0.6, DISPATCH_SECONDS + 0.6)
        holder.thaw()
        for _ in range(12):
            trial.submit(random.uniform(0.0, 0.3), script=random.choice((None, {"transient_errors": 1})), codes=CRASHES)
        trial.pause(0.0, LEASE_SECONDS)


UNREST = (
    Experiment("wrong-clock", "a worker's clock is off by ten minutes, either way", wrong_clock),
    Experiment("half-open-valkey", "connections to Valkey go dead without an end", half_open_valkey),
    Experiment(
        "half-open-postgres",
        "connections to PostgreSQL go dead without an end",
        half_open_postgres,
        database="postgresql",
        bound_seconds=90,
    ),
    Experiment("rolling-restarts", "every process is restarted in order under load", rolling_restarts, short=True),
    Experiment("threads-pool", "a worker on the fallback pool leaves, and is killed", threads_pool),
    Experiment("frozen-dispatcher", "whoever dispatches is frozen beyond its lease", frozen_dispatcher),
    Experiment("two-dispatchers", "two processes believe that they dispatch", two_dispatchers),
)
