"""How long a run takes in all, from what earlier ones took and from how far this one is."""

HEARD = 25.0  # percent from which a run speaks for itself alone


def expected_seconds(learnt: float | None, progress: float | None, running: float) -> float | None:
    """Seconds from the start of a run to its end; None as long as nobody can know.

    `learnt` is what such runs took (seconds), `progress` how much is done (percent), `running` for how long it runs
    (seconds). The more is done the more the run's own pace counts; one that takes longer than others has only its own.
    """
    if not progress or progress <= 0:
        return learnt
    paced = running * 100 / min(progress, 100.0)
    if learnt is None or running >= learnt:
        return paced
    weight = min(1.0, progress / HEARD)
    return (1 - weight) * learnt + weight * paced
