"""The request that would ask for a job again."""

from collections.abc import Mapping
from typing import Any, cast

from safelight.jobs import Job
from safelight.providers.parameters import ASKED


def request_of(job: Job) -> dict[str, Any]:
    """The body that would ask for this job again; what is tied to its time is left out."""
    return {
        **{name: value for name, value in job.parameters.as_json().items() if name in ASKED},
        "provider": _asked_of(job),
        "image_type": job.image_type,
        "project_id": job.project_id,
        "chapter_id": job.chapter_id,
        "script_id": job.script_id,
        "scene_number": job.scene_number,
        "character_id": job.character_id,
        "priority": job.priority,
        "timeout_seconds": job.soft_limit_seconds,
        "max_retries": job.max_retries,
        "metadata": job.metadata,
    }


def changed_request_of(job: Job, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same with some fields changed. A seed may be given in either of its two places."""
    asked = {**request_of(job), **changes}
    sampling = changes.get("sampler_params")
    if isinstance(sampling, dict) and cast(dict[str, Any], sampling).get("seed") is not None and "seed" not in changes:
        asked["seed"] = None
    return asked


def _asked_of(job: Job) -> str | list[str]:
    passed = [skip["provider"] for skip in job.skips or ()]
    ahead = [stop["provider"] for stop in job.route or ()]
    route = list(dict.fromkeys([*passed, job.provider, *ahead]))
    return job.provider if len(route) == 1 else route
