"""Processes killed at random moments, one after the other and all at once, and processes frozen for too long."""

import signal
from collections.abc import Sequence

from faults.lab import faulty
from faults.stack import LEASE_SECONDS, Process, keep_running, kill_pid, until
from faults.trial import Experiment, Trial

CRASHES = ("worker_lost",)


def worker_storm(trial: Trial) -> None:
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(2, 8)):
        for _ in range(random.randint(4, 10)):
            script = {"paid": random.random() < 0.5, "latency_seconds": random.choice((0.0, 0.2))}
            trial.submit(random.uniform(0.0, 1.0), script, watch=random.choice((None, 0, 2)), codes=CRASHES)
        trial.pause(0.1, 0.6)
        victim = stack.member(random.choice(("io-1", "io-2")))
        trial.fault("kill a worker", victim)
        victim.kill()
        if random.random() < 0.5:
            trial.pause(0.0, 0.5)
        stack.hire(victim.name)


def child_storm(trial: Trial) -> None:
    """Suspects run one by one in children of the local worker: kill two workers of all, then children under them."""
    stack, random = trial.stack, trial.random
    stack.crew(io=1, local=3)
    for _ in range(trial.pick(1, 3)):
        ids = trial.submit_some(random.randint(4, 8), 1.5, codes=CRASHES, watch=1)
        make_suspects(trial, ids)
        local = stack.member("local")
        for _ in range(trial.pick(2, 5)):
            trial.pause(0.4, 1.2)
            if children := local.children():
                trial.fault("kill a child", local)
                kill_pid(random.choice(children))
        trial.wait_ended()


def make_suspects(trial: Trial, ids: Sequence[str]) -> None:
    """Two workers are lost under the jobs: from then on each runs alone."""
    for number in range(1, 3):
        trial.wait_processing(ids, attempt=number)
        worker = trial.stack.member("io-1")
        trial.fault("kill a worker", worker)
        worker.kill()
        trial.stack.hire("io-1")
    until(trial.has_suspects, what="suspects")


def orphaned_children(trial: Trial) -> None:
    """The main process of the local worker dies; its children hand back what they run and leave by themselves."""
    stack = trial.stack
    for _ in range(trial.pick(1, 3)):
        stack.crew(io=1, local=3)
        make_suspects(trial, trial.submit_some(4, 2.5, codes=CRASHES))
        local = stack.member("local")
        trial.pause(0.2, 1.0)
        trial.fault("kill a main process", local)
        local.kill_main()
        stack.hire("local")
        trial.wait_ended()


def api_storm(trial: Trial) -> None:
    """A submit that was cut off is sent again with its key, and is one job; watchers resume."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    with keep_running(stack, "api"):
        for _ in range(trial.pick(2, 10)):
            for _ in range(random.randint(2, 8)):
                trial.submit(random.uniform(0.0, 0.8), watch=random.choice((0, 1)), codes=CRASHES)
            api = stack.member("api")
            trial.fault("kill the API")
            if random.random() < 0.5:  # in the middle of the next submit
                api.signal(signal.SIGKILL)
            else:
                api.kill()
            trial.submit(watch=0, codes=CRASHES)


def holder_storm(trial: Trial) -> None:
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(1, 6)):
        for _ in range(random.randint(5, 12)):
            trial.submit(random.uniform(0.0, 0.5), script={"transient_errors": random.choice((0, 1))}, codes=CRASHES)
        holder: Process = until(stack.lease_holder, what="somebody who dispatches")
        trial.fault("kill whoever dispatches", *([] if holder.name == "api" else [holder]))
        holder.kill()
        for job_id in trial.submit_some(3, codes=CRASHES) if holder.name != "api" else []:
            trial.watch(job_id, breaks=0)
        stack.hire(holder.name)
    stack.wait_for_api()
    trial.probe()


def whole_stack(trial: Trial) -> None:
    """Everything at once, the servers too; then everything is started again."""
    stack, random = faulty(trial), trial.random
    for _ in range(trial.pick(1, 4)):
        stack.crew(io=2, local=2)
        for _ in range(random.randint(8, 16)):
            trial.submit(random.uniform(0.0, 1.5), watch=random.choice((None, 0)), codes=CRASHES)
        trial.pause(0.0, 0.6)
        members = list(stack.crew_members.values())
        trial.fault("kill everything", *members)
        for process in members:
            process.freeze()
        stack.valkey.kill()
        if stack.postgres is not None:
            stack.postgres.kill()
        for process in members:
            process.kill()
        stack.restore()
    stack.crew(io=2, local=2)
    trial.probe()


def frozen_worker(trial: Trial) -> None:
    """Frozen beyond its lease and thawed: status, files and events are those of the winner."""
    stack, random = trial.stack, trial.random
    for _ in range(trial.pick(1, 3)):
        stack.crew(io=1)
        worker = stack.member("io-1")
        ids = [
            trial.submit(
                random.uniform(0.3, 1.2),
                {"latency_seconds": random.uniform(0.0, 0.5), "paid": random.random() < 0.7},
                watch=1,
                codes=CRASHES,
            )
            for _ in range(trial.pick(6, 12))
        ]
        trial.wait_processing(ids)
        running = stack.rows.count(trial.project, "processing")
        stack.hire("io-2")
        trial.fault("freeze a worker", worker)
        worker.freeze()
        while stack.is_write_locked():  # frozen in the middle of a write it would lock everybody out of SQLite's file
            worker.thaw()
            trial.pause(0.0, 0.05)
            worker.freeze()
        trial.wait_ended()
        versions = {job_id: stack.rows.job(job_id).version for job_id in ids}
        worker.thaw()

        def refused(worker: Process = worker, ids: list[str] = ids) -> int:
            lines = worker.events("attempt.lost") + worker.events("attempt.refused")
            return len({line["job_id"] for line in lines} & set(ids))

        until(lambda refused=refused, running=running: refused() >= min(running, 1), what="the zombie's refusal")
        until(stack.rows.is_idle, what="the end of the zombie's attempts")
        trial.expect(
            versions == {job_id: stack.rows.job(job_id).version for job_id in ids}, "a zombie changed an ended job"
        )


def frozen_again_and_again(trial: Trial) -> None:
    """Short and long freezes of every process, with work going on."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=2)
    for _ in range(trial.pick(2, 8)):
        for _ in range(random.randint(3, 8)):
            script = {"paid": random.random() < 0.5, "latency_seconds": random.choice((0.0, 0.5))}
            trial.submit(random.uniform(0.0, 1.0), script, watch=random.choice((None, 1)), codes=CRASHES)
        victim = stack.member(random.choice(("io-1", "io-2", "local", "api")))
        trial.fault(f"freeze {victim.name}", victim)
        victim.freeze()
        trial.pause(0.2, 2.5 * LEASE_SECONDS)
        victim.thaw()


STORMS = (
    Experiment("worker-storm", "io workers are killed in turn while jobs stream in", worker_storm, short=True),
    Experiment("child-storm", "children of the local worker are killed under suspects", child_storm),
    Experiment("orphaned-children", "the local worker's main process is killed alone", orphaned_children),
    Experiment("api-storm", "the API is killed during submits and under its watchers", api_storm, short=True),
    Experiment("holder-storm", "whoever dispatches is killed", holder_storm, short=True),
    Experiment("whole-stack", "every process and server is killed at once and started again", whole_stack, short=True),
    Experiment(
        "frozen-worker", "a worker is frozen beyond its lease and thawed after the end", frozen_worker, short=True
    ),
    Experiment("frozen-anybody", "any process is frozen for up to several leases", frozen_again_and_again),
)
