"""What ModelsLab's models take: refused by field if it is wrong, sent in their words if it is right."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from safelight.providers.base import InvalidParameters, Lora, ProviderError
from safelight.providers.modelslab import ModelsLab
from stand_ins import generation
from stand_ins.generation import collect
from stand_ins.modelslab import KEY, ModelsLabStandIn, says

pytestmark = pytest.mark.anyio
provider = ModelsLab(KEY)
asked = partial(generation.asked, width=256, height=256)


@pytest.fixture(scope="module")
def service() -> Iterator[ModelsLabStandIn]:
    service = ModelsLabStandIn()
    yield service
    service.close()


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        ({"model": "imagen-4-ultra"}, "model", "Did you mean imagen-4.0-ultra"),
        ({"model": "zzz"}, "model", "flux, sdxl"),
        ({"width": 2000}, "width", "256 to 1024 pixels, divisible by 8"),
        ({"height": 250}, "height", "divisible by 8"),
        ({"batch_size": 5}, "batch_size", "1 to 4"),
        ({"model": "imagen-4", "batch_size": 2}, "batch_size", "one picture at a time"),
        ({"model": "imagen-4", "width": 1000, "height": 300}, "width", "the nearest is 16:9"),
        ({"model": "imagen-4", "width": 5000, "height": 5000}, "width", "at most 2048"),
        ({"model": "imagen-3"}, "width", "leave width and height out"),
        ({"model": "imagen-4.0-ultra", "prompt": "x" * 1921}, "prompt", "480 tokens"),
        ({"negative_prompt": "people"}, "negative_prompt", "leave it out"),
        ({"lora_models": (Lora("x"),)}, "lora_models", "leave them out"),
        ({"checkpoint_model": "x"}, "checkpoint_model", "name the model in model"),
        ({"model": "imagen-4", "input_images": ("x",)}, "input_images", "takes no pictures to start from"),
        ({"input_images": ("x", "y")}, "input_images", "0 to 1 pictures to start from, not 2"),
        ({"model": "flux-kontext-pro"}, "input_images", "takes one picture to start from, not 0"),
        ({"input_images": ("x",)}, "width", "as large as the one it starts from"),
        ({"input_images": ("x",), "sampler_params": {"denoise": 2}}, "sampler_params.denoise", "from 0 to 1"),
        ({"sampler_params": {"denoise": 0.5}}, "sampler_params.denoise", "takes no denoise"),
        ({"workflow": {"1": {}}}, "workflow", "takes no workflow"),
        ({"template": "x"}, "template", "takes no template"),
        ({"sampler_params": {"steps": 51}}, "sampler_params.steps", "1 to 50"),
        ({"sampler_params": {"sampler": "euler"}}, "sampler_params.sampler", "takes no sampler"),
        (
            {"model": "sdxl", "sampler_params": {"scheduler": "EulerScheduler"}},
            "sampler_params.scheduler",
            "EulerDiscreteScheduler",
        ),
        ({"provider_options": {"key": "x"}}, "provider_options.key", "no option 'key'"),
        (
            {"model": "sdxl", "provider_options": {"webhook": "x"}},
            "provider_options.webhook",
            "it takes algorithm_type",
        ),
        (
            {"model": "imagen-4", "provider_options": {"aspect_ratio": "2:1"}},
            "provider_options.aspect_ratio",
            "1:1, 3:4",
        ),
        ({"model": "imagen-4", "provider_options": {"aspect_ratio": "16:9"}}, "width", "256x256"),
    ],
)
async def test_what_a_model_does_not_take_is_refused_by_field(wrong: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        provider.check(asked(**wrong))
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"model": "imagen-4", "width": 1024, "height": 768}, {"aspect_ratio": "4:3"}),
        ({"model": "imagen-4", "width": 1344, "height": 768}, {"aspect_ratio": "16:9"}),
        ({"model": "imagen-4", "width": None, "height": None}, {"aspect_ratio": "1:1"}),
        (
            {"model": "imagen-4", "width": None, "height": None, "provider_options": {"aspect_ratio": "9:16"}},
            {"aspect_ratio": "9:16"},
        ),
        ({"model": "imagen-4.0-ultra", "batch_size": 3}, {"aspect_ratio": "1:1", "samples": 3}),
        ({"model": "imagen-3", "width": None, "height": None}, {}),
        ({"width": None, "height": None}, {"width": 1024, "height": 1024, "samples": 1, "seed": 7}),
        ({"width": 512, "height": None}, {"width": 512, "height": 512, "samples": 1, "seed": 7}),
        ({"model": "seedream-t2i", "width": 512, "height": 768}, {"width": 512, "height": 768}),
        (
            {
                "model": "sdxl",
                "negative_prompt": "people",
                "lora_models": (Lora("a", 0.8), Lora("b")),
                "sampler_params": {"steps": 20, "cfg": 7.5, "scheduler": "DDIMScheduler"},
                "provider_options": {"clip_skip": 2},
            },
            {
                "width": 256,
                "height": 256,
                "samples": 1,
                "seed": 7,
                "negative_prompt": "people",
                "lora_model": "a,b",
                "lora_strength": "0.8,1",
                "num_inference_steps": 20,
                "guidance_scale": 7.5,
                "scheduler": "DDIMScheduler",
                "clip_skip": 2,
            },
        ),
    ],
)
async def test_each_model_is_sent_what_it_takes(
    service: ModelsLabStandIn, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    near = ModelsLab(KEY, base_url=service.url)
    parameters = near.check(asked(**given))
    assert near.check(parameters) == parameters
    service.ledger.clear()
    service.on_submit = [lambda job, base: says(status="error", message="enough")]
    with pytest.raises(ProviderError, match="enough"):
        await collect(near.generate(generation.order(parameters)))
    await near.close()
    always = {"key": KEY, "track_id": "job-1", "prompt": "a harbour", "model_id": given.get("model", "flux")}
    assert service.ledger == [always | sent]


async def test_models_named_in_the_settings_are_known_and_the_first_is_the_default() -> None:
    provider = ModelsLab(KEY, models=["seedream-t2i", "somebodys-own-model"])
    given = asked(width=512, height=512)
    assert provider.check(given).model == "seedream-t2i"
    assert provider.check(replace(given, model="sdxl")).model == "sdxl"
    assert provider.check(replace(given, model="somebodys-own-model", negative_prompt="x")).negative_prompt == "x"
    assert provider.capabilities.models[0] == "seedream-t2i"
    assert (await provider.models())["models"] == provider.capabilities.models


def test_there_must_be_a_key() -> None:
    with pytest.raises(ValueError, match="needs an API key"):
        ModelsLab("")
