"""ModelsLab: hosted models behind one key."""

from safelight.providers.modelslab.answer import job_of_webhook
from safelight.providers.modelslab.provider import ModelsLab

__all__ = ["ModelsLab", "job_of_webhook"]
