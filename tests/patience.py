"""How long tests wait for what must come: on two cores that others use too, only a fault takes longer."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 240.0


def await_true(holds: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Look until it is so."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)
