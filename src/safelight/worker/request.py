"""What a job's row says to others: to the log, and in the picture itself."""

from typing import Any

from safelight.jobs import Job
from safelight.pictures import Mark


def log_fields(job: Job) -> dict[str, Any]:
    """What stands on every line of an attempt, beside the job's ids: whose it is, and what it is about."""
    return {
        "attempt": job.attempt,
        "request_id": job.request_id,
        "owner_id": job.owner_id,
        "tier": job.tier,
        "batch_id": job.batch_id,
        "chapter_id": job.chapter_id,
        "scene_number": job.scene_number,
    }


def mark_of(job: Job, seed: int | None) -> Mark | None:
    """What a picture of this job says of itself. What was imported was made elsewhere, and is left as it is."""
    if job.kind == "media.import":
        return None
    asked = job.parameters
    recipe: dict[str, object] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "provider": job.provider,
        "model": asked.model,
        "checkpoint_model": asked.checkpoint_model,
        "seed": seed if seed is not None else asked.seed,
        "size": f"{asked.width}x{asked.height}" if asked.width and asked.height else None,
        **{f"sampler.{name}": value for name, value in asked.sampler_params.items()},
        "software": "Safelight",
        "job_id": job.id,
    }
    return Mark(
        {name: str(value) for name, value in recipe.items() if value is not None},
        "compositeWithTrainedAlgorithmicMedia" if asked.pictures else "trainedAlgorithmicMedia",
    )
