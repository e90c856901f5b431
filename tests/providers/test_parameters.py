"""What is asked as one value: its codec, and what of it a provider does not take."""

from dataclasses import fields

import orjson
import pytest

from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import JobView
from safelight.providers.parameters import ASKED, Lora, Parameters

RICH = Parameters(
    "image.generate",
    "a pier",
    negative_prompt="",
    lora_models=(Lora("ink", 0.5), Lora("wash")),
    width=0,
    seed=2**63 - 1024,
    sampler_params={"cfg": 7.5, "nested": [1, {"none": None}]},
    workflow={},
    input_images=("a", "b"),
)


@pytest.mark.parametrize("asked", [RICH, Parameters("", ""), Parameters("media.import", "", inputs={"scene_id": "s"})])
def test_what_is_kept_is_read_again(asked: Parameters) -> None:
    kept = orjson.loads(orjson.dumps(asked.as_json()))
    read = Parameters.of(kept)
    assert read.as_json() == asked.as_json()
    assert read.asked() | {"workflow": None} == asked.asked() | {"workflow": None}


def test_what_is_not_given_is_not_kept() -> None:
    assert Parameters("image.generate", "x").as_json() == {"kind": "image.generate", "prompt": "x", "batch_size": 1}


def test_others_are_what_was_given_beside_what_is_taken() -> None:
    assert RICH.others(("width", "seed", "sampler_params")) == ["lora_models", "input_images"]
    assert Parameters("image.generate", "x", batch_size=4, template_definition={"a": 1}).others(()) == []


def test_pictures_are_named_by_their_fields() -> None:
    assert RICH.pictures == {"input_images.0": "a", "input_images.1": "b"}


def test_bodies_and_views_have_every_field_that_callers_have() -> None:
    assert set(ASKED) == {field.name for field in fields(Parameters)} - {"kind", "template_definition"}
    assert set(ASKED) <= set(GenerationRequest.model_fields) and set(ASKED) <= set(JobView.model_fields)
