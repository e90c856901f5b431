"""How long a run takes: what was learnt at first, its own pace as it goes on."""

from typing import Any

import pytest

from safelight.estimate import estimate_key, expected_seconds


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


# What is alike


def asked(**changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "provider": "comfyui",
        "mocked": False,
        "prompt": "a pier",
        "negative_prompt": None,
        "model": None,
        "checkpoint_model": "sdxl.safetensors",
        "width": 512,
        "height": 512,
        "batch_size": 1,
        "seed": 1,
        "sampler_params": {"steps": 20, "cfg": 7.0, "seed": 1},
        "provider_options": {},
        "template": None,
        "template_definition": None,
        "inputs": None,
        "workflow": None,
        "input_images": None,
    }
    return columns | changes


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
    assert estimate_key(asked(**changes)) != estimate_key(asked())


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
    assert estimate_key(asked(**one)) == estimate_key(asked(**other))


def test_workflows_of_any_shape_have_a_key() -> None:
    keys = {
        estimate_key(asked(workflow=given)) for given in ({"a": 1}, {"a": {"inputs": None}}, {"a": {"inputs": [1]}})
    }
    assert all(len(key) == 16 for key in keys)
