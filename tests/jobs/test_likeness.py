"""Which jobs have the same estimate key: those that take about equally long."""

from typing import Any

import pytest

from safelight.jobs.likeness import estimate_key
from safelight.providers.parameters import Parameters

ASKED: dict[str, Any] = {
    "prompt": "a pier",
    "checkpoint_model": "sdxl.safetensors",
    "width": 512,
    "height": 512,
    "seed": 1,
    "sampler_params": {"steps": 20, "cfg": 7.0, "seed": 1},
}


def key(*, provider: str = "comfyui", mocked: bool = False, **changes: Any) -> str:
    return estimate_key(provider, Parameters("image.generate", **ASKED | changes), mocked=mocked)


def workflow(**inputs: Any) -> dict[str, Any]:
    given = {"steps": 20, "seed": 1, "ckpt_name": "sdxl", "text": "a pier", "model": ["4", 0]}
    return {"3": {"class_type": "KSampler", "inputs": given | inputs}}


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": "modelslab"},
        {"mocked": True},
        {"model": "flux"},
        {"checkpoint_model": "flux.safetensors"},
        {"width": 1024},
        {"batch_size": 4},
        {"sampler_params": {"steps": 50}},
        {"provider_options": {"quality": "high"}},
        {"template": "portrait", "template_definition": {"graph": 1}},
        {"template": "portrait", "template_definition": {"graph": 2}},
        {"inputs": {"steps": 40}},
        {"input_images": ["one"]},
        {"workflow": workflow()},
        {"workflow": workflow(steps=50)},
        {"workflow": workflow(ckpt_name="flux")},
    ],
)
def test_what_takes_another_time_has_another_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"prompt": "a tree", "negative_prompt": "fog", "seed": 2}),
        ({}, {"sampler_params": {"seed": 2, "cfg": 5.0, "steps": 20}}),
        ({"inputs": {"prompt": "a", "seed": 1, "steps": 9}}, {"inputs": {"steps": 9, "prompt": "b", "seed": 2}}),
        ({"workflow": workflow()}, {"workflow": workflow(seed=2, text="a tree", filename_prefix="x")}),
        ({"input_images": ["one"]}, {"input_images": ["other"]}),
    ],
)
def test_words_and_seeds_make_no_difference(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) == key(**other)


def test_workflows_of_any_shape_have_a_key() -> None:
    keys = {key(workflow=given) for given in ({"a": 1}, {"a": {"inputs": None}}, {"a": {"inputs": [1]}})}
    assert all(len(key) == 16 for key in keys)
