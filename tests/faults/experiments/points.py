"""Death exactly at each point of a job's life (`faults.launch` puts it there; the product has no hooks)."""

from faults.experiments.storms import make_suspects
from faults.launch import POINTS
from faults.stack import Process, until
from faults.trial import COMPLETED, Experiment, Trial

CRASHES = ("worker_lost",)
WORKER_POINTS = tuple(point for point in POINTS if point != "before-hint")


def at_point(point: str, trial: Trial) -> None:
    """One worker that dies there, then an ordinary one; every second job says when it may cost money."""
    stack, random = trial.stack, trial.random
    for _ in range(trial.pick(1, 2)):
        stack.crew(io=0, local=2)
        nth = random.randint(1, trial.pick(1, 4))
        victim = stack.start_worker("io", f"victim-{point}", "--die", point, "--nth", str(nth))
        stack.wait_for_workers(image_generation=1)
        _submit_until_dead(trial, [victim], point)
        stack.hire("io-1")
        trial.wait_ended()


def _submit_until_dead(trial: Trial, victims: list[Process], name: str) -> None:
    random = trial.random
    fault = trial.fault(f"die {name}", *victims)
    most = len(trial.promises) + 150

    def all_dead() -> bool:
        if len(trial.promises) < most:
            paid = random.random() < 0.5
            trial.submit(
                random.uniform(0.0, 0.3),
                script={"paid": paid, "latency_seconds": random.uniform(0.0, 0.2)},
                codes=CRASHES,
                watch=random.choice((None, None, 0)),
            )
        return not any(victim.is_alive for victim in victims)

    until(all_dead, what=f"death at the point {name}")
    del fault  # its time is that of the first submit: what is measured from it would be too long
    trial.faults[-1].victims = ()


def every_point(trial: Trial) -> None:
    """Points side by side: one dying worker for each, then ordinary ones."""
    stack = trial.stack
    stack.crew(io=0, local=2)
    points = trial.random.sample(WORKER_POINTS, trial.pick(3, len(WORKER_POINTS)))
    victims = [stack.start_worker("io", f"victim-{point}", "--die", point) for point in points]
    stack.wait_for_workers(image_generation=len(victims))
    for victim in victims[1:]:
        trial.fault(f"die {victim.name}")
    _submit_until_dead(trial, victims, "at every point")
    stack.crew(io=2, local=2)


def isolated_point(trial: Trial) -> None:
    """The same in the processes that run suspects."""
    stack, random = trial.stack, trial.random
    for point in random.sample(WORKER_POINTS, trial.pick(1, 3)):
        stack.crew(io=1, local=0)
        ids = trial.submit_some(4, 1.0, codes=CRASHES)
        make_suspects(trial, ids)
        trial.fault(f"die {point} in isolation")
        # Every child of this worker dies at its first job, for ever: the jobs in it meet their third crash.
        stack.start_worker("local", "victim-local", "--die", point, SAFELIGHT_LOCAL_SLOTS="2")
        for job_id in ids:
            trial.may_end(job_id, *COMPLETED, codes=CRASHES)
        trial.wait_ended()


def before_hint(trial: Trial) -> None:
    """The API dies between a job's commit and its hint; the submit is sent again with its key and is the same job."""
    stack, random = trial.stack, trial.random
    for _ in range(trial.pick(1, 3)):
        stack.crew(io=2, local=2)
        stack.member("api").kill()
        dying = stack.start_api("--die", "before-hint", "--nth", str(random.randint(1, 5)))
        stack.crew_members["api"] = dying
        stack.wait_for_api()
        trial.fault("die before the hint")

        # Until this process knows of room for a hint, its submits leave hinting to dispatch, and it lives.
        def dead(dying: Process = dying) -> bool:
            if not dying.is_alive:
                return True
            answer = trial.submit_once()
            return answer is None or not dying.is_alive

        until(dead, what="the API's death")
        until(lambda dying=dying: not dying.is_alive, what="the API's death")
        stack.hire("api")
        stack.wait_for_api()
        trial.submit_again()


POINT_EXPERIMENTS = (
    Experiment("points-side-by-side", "workers die at each point of a job's life", every_point, short=True),
    Experiment("point-before-hint", "the API dies between a commit and its hint", before_hint, short=True),
    *(
        Experiment(
            f"point-{point}",
            f"a worker dies at the point {point}",
            lambda trial, point=point: at_point(point, trial),
        )
        for point in WORKER_POINTS
    ),
    Experiment("points-in-isolation", "children that run suspects die at some point, every one", isolated_point),
)
