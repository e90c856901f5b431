"""Health, and the document that describes the API."""

import warnings
from typing import Any

import pytest
from api_service import JOBS, Json, Service, eventually

from safelight.api.job_request import GenerationRequest
from safelight.api.job_view import JobView


@pytest.mark.parametrize("path", ["/health/live", "/api/v1/health/live"])
def test_it_lives(idle: Service, path: str) -> None:
    response = idle.http.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/health/ready", "/api/v1/health/ready"])
def test_all_is_well(service: Service, path: str) -> None:
    def well() -> Json | None:
        response = service.http.get(path)
        assert response.status_code == 200
        return response.json() if response.json()["status"] == "ok" else None

    found = eventually(well, "all is well")
    assert set(found["parts"]) == {"database", "redis", "storage"}
    for part in found["parts"].values():
        assert (part["state"], part["detail"]) == ("ok", None)
        assert 0 <= part["latency_ms"] < 3000
    assert set(found["queues"]) == {"default", "image_generation", "imports", "isolated", "local"}
    for queue in found["queues"].values():
        assert (queue["state"], queue["workers"], queue["slots"]) == ("ok", 1, 50)


def test_without_a_worker_it_is_degraded_and_says_so(idle: Service) -> None:
    idle.submit()
    eventually(
        lambda: idle.http.get("/health/ready").json()["queues"]["image_generation"]["waiting"], "dispatch has seen it"
    )
    response = idle.http.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "degraded")
    assert response.headers["cache-control"] == "no-store"
    queue = response.json()["queues"]["image_generation"]
    assert (queue["state"], queue["workers"], queue["slots"], queue["waiting"]) == ("degraded", 0, 0, 1)
    assert all(part["state"] == "ok" for part in response.json()["parts"].values())


# --- OpenAPI ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(service: Service) -> Json:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = service.api.app.openapi()
    served = service.http.get("/api/v1/openapi.json").json()
    assert served == built
    return served


@pytest.fixture(scope="module")
def operations(document: Json) -> dict[str, Json]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


CALLS = {
    "/api/v1/artifacts": "POST",
    "/api/v1/artifacts/{id}": "DELETE GET",
    "/api/v1/artifacts/{id}/content": "GET",
    "/api/v1/artifacts/{id}/link": "POST",
    "/api/v1/artifacts/{id}/thumbnails/{width}": "GET",
    "/api/v1/batches": "GET POST",
    "/api/v1/batches/{id}": "GET",
    "/api/v1/batches/{id}/cancel": "POST",
    "/api/v1/batches/{id}/events": "GET",
    "/api/v1/batches/{id}/retry": "POST",
    "/api/v1/chapters/{chapter_id}/images": "GET POST",
    "/api/v1/chapters/{chapter_id}/images/scenes/{scene_number}": "POST",
    "/api/v1/chapters/{chapter_id}/images/scenes/{scene_number}/status": "GET",
    "/api/v1/chapters/{id}": "DELETE GET PATCH",
    "/api/v1/chapters/{id}/scenes": "GET POST",
    "/api/v1/chapters/{id}/scenes/order": "POST",
    "/api/v1/characters/{id}": "DELETE GET PATCH",
    "/api/v1/characters/{id}/image": "POST PUT",
    "/api/v1/characters/{id}/image/status": "GET",
    "/api/v1/characters/{id}/images": "GET",
    "/api/v1/characters/{id}/reference": "PUT",
    "/api/v1/files/{token}": "GET",
    "/api/v1/generation-jobs": "GET POST",
    "/api/v1/generation-jobs/{id}": "DELETE GET",
    "/api/v1/generation-jobs/{id}/attempts": "GET",
    "/api/v1/generation-jobs/{id}/cancel": "POST",
    "/api/v1/generation-jobs/{id}/events": "GET",
    "/api/v1/generation-jobs/{id}/previews/{name}": "GET",
    "/api/v1/generation-jobs/{id}/retry": "POST",
    "/api/v1/keys": "GET POST",
    "/api/v1/keys/{id}": "DELETE",
    "/api/v1/media/probe": "POST",
    "/api/v1/media/store": "POST",
    "/api/v1/projects": "GET POST",
    "/api/v1/projects/{id}": "DELETE GET PATCH",
    "/api/v1/projects/{id}/chapters": "GET POST",
    "/api/v1/projects/{id}/characters": "GET POST",
    "/api/v1/providers": "GET",
    "/api/v1/providers/{name}": "GET",
    "/api/v1/providers/{name}/models": "GET",
    "/api/v1/scenes/{id}": "DELETE GET PATCH",
    "/api/v1/scenes/{id}/image": "PUT",
    "/api/v1/session": "DELETE GET POST",
    "/api/v1/templates": "GET POST",
    "/api/v1/templates/{name}": "DELETE GET PUT",
    "/health/live": "GET",
    "/health/ready": "GET",
    "/webhooks/comfyui/{secret}": "POST",
    "/webhooks/modelslab/{secret}": "POST",
}


def test_every_call_is_described(operations: dict[str, Json]) -> None:
    assert set(operations) == {f"{method} {path}" for path, methods in CALLS.items() for method in methods.split()}
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)


def test_the_examples_are_right(document: Json) -> None:
    examples = document["components"]["schemas"]["GenerationRequest"]["examples"]
    assert len(examples) >= 2
    for example in examples:
        GenerationRequest.model_validate(example)
    retry: Any = document["paths"][f"{JOBS}/{{id}}/retry"]["post"]["requestBody"]["content"]["application/json"]
    assert "examples" in str(retry)


def test_the_view_has_an_example_that_is_right(document: Json) -> None:
    (example,) = document["components"]["schemas"]["JobView"]["examples"]
    empty = dict.fromkeys(JobView.model_fields)  # OpenAPI leaves nulls out
    JobView.model_validate(empty | example)


def test_the_shape_of_events_is_described(document: Json, operations: dict[str, Json]) -> None:
    answers = operations[f"GET {JOBS}/{{id}}/events"]["responses"]
    assert "/JobEvent'" in str(answers["200"]["content"]["text/event-stream"]["schema"])
    schema = document["components"]["schemas"]["JobEvent"]
    assert "job.snapshot" in schema["properties"]["type"]["enum"]
    assert set(schema["required"]) == set(schema["properties"])
    assert "204" in answers
