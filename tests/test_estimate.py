"""How long a run takes: what was learnt at first, its own pace as it goes on."""

import pytest

from safelight.estimate import expected_seconds


@pytest.mark.parametrize(
    ("learnt", "progress", "running", "expected"),
    [
        (None, None, 5.0, None),
        (None, 0, 5.0, None),
        (3.0, None, 5.0, 3.0),
        (3.0, 0, 1.0, 3.0),
        (None, 9, 1.8, 20.0),
        (3.0, 50, 1.0, 2.0),
        (3.0, 25, 2.9, 11.6),
        (3.0, 30, 6.0, 20.0),
        (3.0, 20, 4.0, 20.0),  # it takes longer than others did
        (3.0, 150, 3.0, 3.0),
    ],
)
def test_what_is_expected(learnt: float | None, progress: float | None, running: float, expected: float | None) -> None:
    assert expected_seconds(learnt, progress, running) == pytest.approx(expected)


def test_a_slow_run_is_not_nearly_over_at_nine_percent() -> None:
    expected = expected_seconds(3.0, 9, 1.8)
    assert expected is not None and 9 < expected < 20


def test_the_estimate_never_jumps_with_a_little_progress() -> None:
    told = [expected_seconds(10.0, percent, percent / 10) for percent in range(1, 101)]
    assert told == pytest.approx([10.0] * 100)
