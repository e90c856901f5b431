"""Many at once: half of the workers preempted by whoever lends the machines, workers that leave a deep backlog."""

import itertools

from faults.lab import faulty
from faults.stack import until
from faults.trial import Experiment, Trial

CRASHES = ("worker_lost",)
SLOTS = 10


def half_preempted(trial: Trial) -> None:
    """What a lost machine ran goes on side by side elsewhere; nobody is suspected, and the others notice nothing."""
    stack, random = faulty(trial), trial.random
    stack.crew(io=4, local=1)
    longest = trial.pick(4.0, 15.0)
    for _ in range(trial.pick(24, 500)):
        script = {"paid": random.random() < 0.5}
        trial.submit(
            random.uniform(longest / 2, longest), script, codes=CRASHES, watch=random.choice((None,) * 9 + (1,))
        )
    until(lambda: stack.rows.count(trial.project, "pending") == 0, what="the start of all jobs")
    victims = [stack.member(name) for name in random.sample(("io-1", "io-2", "io-3", "io-4"), 2)]
    names = {victim.name for victim in victims}
    trial.fault("kill half of the workers", *victims)
    for victim in victims:
        victim.freeze()
    for victim in victims:
        victim.kill()
    trial.wait_ended()
    for job_id, attempts in stack.rows.attempts(trial.project).items():
        lost = [attempt.worker_name.split(".")[0] for attempt in attempts if attempt.outcome == "lost"]
        trial.expect(len(lost) <= 1 and set(lost) <= names, f"job {job_id} was lost by {lost}")
        alone = any(attempt.queue == "isolated" for attempt in attempts)
        trial.expect(not alone, f"job {job_id} was suspected after its first loss")


def drained_with_a_backlog(trial: Trial) -> None:
    """What a leaving worker hands back keeps its place before hundreds that wait."""
    stack, random = trial.stack, trial.random
    stack.crew(io=2, local=1, slots=SLOTS)
    for _ in range(trial.pick(60, 600)):
        trial.submit(random.uniform(0.1, 1.5))
    for _ in range(trial.pick(1, 5)):
        trial.pause(0.5, 2.0)
        leaving = stack.member(random.choice(("io-1", "io-2")))
        trial.fault("drain a worker")
        trial.expect(leaving.stop() == 0, f"{leaving.name} did not leave cleanly")
        stack.hire(leaving.name)
    trial.wait_ended()
    trial.expect_nobody_lost()
    attempts = stack.rows.attempts(trial.project)
    firsts = sorted(tries[0].started_at for tries in attempts.values())
    for job_id, tries in attempts.items():
        for ended, following in itertools.pairwise(tries):
            passed = sum(ended.finished_at < first < following.started_at for first in firsts if ended.finished_at)
            # Those that were released ahead, for both workers, and what is released while the news travels.
            trial.expect(passed <= 6 * SLOTS, f"{passed} jobs passed job {job_id}, which was handed back")


FLEETS = (
    Experiment(
        "half-preempted", "half of the workers die at once with 500 jobs running (in short: 24)", half_preempted
    ),
    Experiment(
        "drain-with-a-backlog", "workers leave while hundreds of jobs wait", drained_with_a_backlog, bound_seconds=120.0
    ),
)
