"""What the tests of ModelsLab ask for."""

from collections.abc import Callable
from functools import partial

from safelight.providers.base import Generation, Parameters
from safelight.providers.modelslab import ModelsLab
from stand_ins import generation
from stand_ins.modelslab import KEY

Make = Callable[..., ModelsLab]

asked = partial(generation.asked, width=256, height=256)
refused = partial(generation.refused, KEY)


def order(parameters: Parameters | None = None, job_id: str = "job-1") -> Generation:
    return generation.order(parameters or asked(), job_id=job_id)
