"""What a job's row says to others: to its provider, to the log, and in the picture itself."""

from typing import Any

from safelight.jobs import Job
from safelight.pictures import Mark
from safelight.providers.base import Lora, Parameters


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


def parameters_of(job: Job) -> Parameters:
    """A job's request as its provider takes it."""
    return Parameters(
        kind=job.kind,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        model=job.model,
        checkpoint_model=job.checkpoint_model,
        lora_models=tuple(Lora(**lora) for lora in job.lora_models),
        width=job.width,
        height=job.height,
        batch_size=job.batch_size,
        seed=job.seed,
        sampler_params=job.sampler_params,
        options=job.provider_options,
        template=job.template,
        template_definition=job.template_definition,
        inputs=job.inputs or {},
        workflow=job.workflow,
        input_images=tuple(job.input_images or ()),
    )


def mark_of(job: Job, seed: int | None) -> Mark | None:
    """What a picture of this job says of itself. What was imported was made elsewhere, and is left as it is."""
    if job.kind == "media.import":
        return None
    recipe: dict[str, object] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "provider": job.provider,
        "model": job.model,
        "checkpoint_model": job.checkpoint_model,
        "seed": seed if seed is not None else job.seed,
        "size": f"{job.width}x{job.height}" if job.width and job.height else None,
        **{f"sampler.{name}": value for name, value in job.sampler_params.items()},
        "software": "Safelight",
        "job_id": job.id,
    }
    return Mark(
        {name: str(value) for name, value in recipe.items() if value is not None},
        "compositeWithTrainedAlgorithmicMedia" if job.input_images else "trainedAlgorithmicMedia",
    )
