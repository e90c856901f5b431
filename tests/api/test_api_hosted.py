"""The hosted providers through every floor: a submit over HTTP, the engine, stand-ins that speak their protocols."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from api_service import JOBS, Json, Service
from pydantic import SecretStr

from stand_ins import modelslab, openai_images
from stand_ins.modelslab import ModelsLabStandIn
from stand_ins.openai_images import OpenAIStandIn
from stand_ins.serve import picture


@pytest.fixture(scope="module")
def modelslab_service() -> Iterator[ModelsLabStandIn]:
    with closing(ModelsLabStandIn()) as service:
        yield service


@pytest.fixture(scope="module")
def openai_service() -> Iterator[OpenAIStandIn]:
    with closing(OpenAIStandIn()) as service:
        yield service


@pytest.fixture
def service(
    make_service: Callable[..., Service], modelslab_service: ModelsLabStandIn, openai_service: OpenAIStandIn
) -> Service:
    return make_service(
        mock_mode=False,
        modelslab_key=SecretStr(modelslab.KEY),
        modelslab_base_url=modelslab_service.url,
        openai_key=SecretStr(openai_images.KEY),
        openai_base_url=openai_service.url,
    )


def made(service: Service, **fields: Any) -> Json:
    answer = service.http.post(JOBS, json={"prompt": "a harbour", **fields})
    assert answer.status_code == 202, answer.text
    job = service.end_of(answer.json()["id"])
    assert job["status"] == "completed", job["error"]
    return job


def test_what_a_picture_took_stands_with_it(service: Service) -> None:
    job = made(service, provider="openai_images", width=1024, height=1024)
    used = {"input_tokens": 11, "output_tokens": 4160, "total_tokens": 4171}
    assert job["artifacts"][0]["details"]["usage"] == used
    (artifact,) = job["artifacts"]
    assert service.http.get(f"/api/v1/artifacts/{artifact['id']}").json()["details"]["usage"] == used


@pytest.mark.parametrize(
    ("provider", "model", "has_seed"),
    [("openai_images", "gpt-image-2", False), ("modelslab", "seedream-t2i", False), ("modelslab", "flux", True)],
)
def test_a_seed_is_shown_only_where_the_model_takes_one(
    service: Service, provider: str, model: str, has_seed: bool
) -> None:
    fields: Json = {"provider": provider, "model": model, "width": 1024, "height": 1024}
    job = made(service, **fields)
    assert (job["seed"] is not None, job["artifacts"][0]["seed"] is not None) == (has_seed, provider == "modelslab")
    assert (made(service, **fields, seed=7)["seed"] == 7) == has_seed


def test_modelslab_starts_from_an_uploaded_picture(service: Service, modelslab_service: ModelsLabStandIn) -> None:
    upload = service.http.post(
        "/api/v1/artifacts", content=picture(80, 48), headers={"Content-Type": "image/png"}
    ).json()
    job = made(service, provider="modelslab", input_images=[upload["id"]], sampler_params={"denoise": 0.5})
    assert (job["artifacts"][0]["width"], job["artifacts"][0]["height"]) == (80, 48)
    assert modelslab_service.ledger[-1]["strength"] == 0.5
    sized = {"prompt": "x", "provider": "modelslab", "input_images": [upload["id"]], "width": 512}
    assert service.http.post(JOBS, json=sized).json()["errors"][0]["pointer"] == "#/width"
