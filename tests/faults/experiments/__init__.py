"""All experiments, in the order of the table."""

from faults.experiments.batches import BATCHES
from faults.experiments.cancels import CANCELS
from faults.experiments.databases import DATABASES
from faults.experiments.fleets import FLEETS
from faults.experiments.imports import IMPORTS
from faults.experiments.neighbours import NEIGHBOURS
from faults.experiments.outages import OUTAGES
from faults.experiments.points import POINT_EXPERIMENTS
from faults.experiments.providers import PROVIDERS
from faults.experiments.storms import STORMS
from faults.experiments.unrest import UNREST
from faults.trial import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    *STORMS, *POINT_EXPERIMENTS, *PROVIDERS, *OUTAGES, *DATABASES, *NEIGHBOURS, *CANCELS, *BATCHES, *IMPORTS, *FLEETS,
    *UNREST
)  # fmt: skip
