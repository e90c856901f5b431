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
    assert set(found["queues"]) == {"default", "image_generation", "isolated", "local"}
    for queue in found["queues"].values():
        assert (queue["state"], queue["workers"], queue["slots"]) == ("ok", 1, 50)


def test_without_a_worker_it_is_degraded_and_says_so(idle: Service) -> None:
    idle.submit()
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


def test_every_call_is_described(operations: dict[str, Json]) -> None:
    assert set(operations) == {
        f"POST {JOBS}",
        f"GET {JOBS}",
        f"GET {JOBS}/{{id}}",
        f"DELETE {JOBS}/{{id}}",
        f"POST {JOBS}/{{id}}/cancel",
        f"POST {JOBS}/{{id}}/retry",
        f"GET {JOBS}/{{id}}/attempts",
        f"GET {JOBS}/{{id}}/events",
        f"GET {JOBS}/{{id}}/previews/{{name}}",
        "POST /api/v1/artifacts",
        "GET /api/v1/artifacts/{id}",
        "DELETE /api/v1/artifacts/{id}",
        "POST /api/v1/artifacts/{id}/link",
        "GET /api/v1/files/{token}",
        "GET /api/v1/artifacts/{id}/content",
        "GET /api/v1/artifacts/{id}/thumbnails/{width}",
        "GET /api/v1/session",
        "POST /api/v1/session",
        "DELETE /api/v1/session",
        "GET /api/v1/keys",
        "POST /api/v1/keys",
        "DELETE /api/v1/keys/{id}",
        "GET /api/v1/templates",
        "GET /api/v1/templates/{name}",
        "POST /webhooks/comfyui/{secret}",
        "POST /webhooks/modelslab/{secret}",
        "GET /api/v1/providers",
        "GET /api/v1/providers/{name}",
        "GET /api/v1/providers/{name}/models",
        "GET /health/live",
        "GET /health/ready",
    }
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)


def test_every_problem_is_described_as_one(operations: dict[str, Json]) -> None:
    for name, operation in operations.items():
        if "/health/" in name:
            continue
        refused = {status: told for status, told in operation["responses"].items() if int(status) >= 400}
        assert set(refused) >= {"400", "404", "422", "503"}, name
        for told in refused.values():
            assert told["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }, name


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


def test_the_shape_of_events_is_described(operations: dict[str, Json]) -> None:
    answers = operations[f"GET {JOBS}/{{id}}/events"]["responses"]
    schema = answers["200"]["content"]["text/event-stream"]["schema"]
    assert "job.snapshot" in schema["properties"]["type"]["enum"]
    assert set(schema["required"]) == set(schema["properties"])
    assert "204" in answers
