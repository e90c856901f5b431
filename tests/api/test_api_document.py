"""The OpenAPI document as a whole: it is valid, says everything about every operation, and shows what it says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from api_service import Json
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from safelight.api.app import create_app
from safelight.api.document import CODES, PROBLEM_TYPE, SCHEMAS, UNKNOWN, operations
from safelight.config import Settings


@pytest.fixture(scope="module")
def document() -> Json:
    values: Json = {"env": "test"}
    return create_app(Settings(**values)).openapi()


def objects(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(each)


def bodies(operation: Json) -> Iterator[tuple[str, str, Json]]:
    """Every body of an operation: where, its content type, and what is said of it."""
    for content_type, said in operation.get("requestBody", {}).get("content", {}).items():
        yield "request", content_type, said
    for status, response in operation["responses"].items():
        for content_type, said in response.get("content", {}).items():
            yield status, content_type, said


def test_it_is_valid_and_every_reference_leads_somewhere(document: Json) -> None:
    validate(document)
    for each in objects(document):
        if isinstance(each.get("$ref"), str):
            place = document
            for step in each["$ref"].removeprefix("#/").split("/"):
                place = place[step]
    for lost in ("HTTPValidationError", "ValidationError"):
        assert lost not in document["components"]["schemas"]


def test_every_operation_is_named_and_described(document: Json) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names)) > 70
    for path, operation in operations(document):
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+){1,3}", operation["operationId"]), operation["operationId"]
        assert len(operation["summary"]) > 8, path
        assert len(operation["description"]) > 8, path
        assert operation["tags"], path
        for parameter in operation.get("parameters", ()):
            assert "null" not in str(parameter["schema"]), (path, parameter)
    assert {"submitJob", "getJob", "uploadArtifact", "listJobs", "submitBatch"} <= set(names)


def test_every_operation_tells_its_problems(document: Json) -> None:
    for path, operation in operations(document):
        told = {int(status) for status in operation["responses"]}
        assert {400, 421, 500} <= told, path
        if operation["security"]:
            assert {401, 403, 503} <= told, path
        if "requestBody" in operation:
            assert {413, 415, 422} <= told, path
        if "{" in path:
            assert 404 in told, path
        for status, response in operation["responses"].items():
            assert response["description"], path
            if int(status) >= 400 and "/health/" not in path:
                assert list(response["content"]) == [PROBLEM_TYPE], (path, status)
                assert response["content"][PROBLEM_TYPE]["schema"] == {"$ref": f"{SCHEMAS}Problem"}
                assert int(status) in CODES


def test_every_json_body_has_an_example_that_fits_it(document: Json) -> None:
    shown = 0
    for path, operation in operations(document):
        for where, content_type, said in bodies(operation):
            if "json" not in content_type:
                continue
            examples = [said["example"]] if "example" in said else [each["value"] for each in said["examples"].values()]
            for example in examples:
                schema = said["schema"] | {"components": document["components"]}
                found = [error.message for error in Draft202012Validator(schema).iter_errors(example)]
                assert not found, (path, where, found)
                assert repr(UNKNOWN) not in str(example), (path, where)
                shown += 1
    assert shown > 500


def test_what_may_be_left_out_has_no_default_in_what_is_sent(document: Json) -> None:
    """Generators of TypeScript take a field with a default for one that is always there."""
    schemas = document["components"]["schemas"]
    assert schemas["GenerationRequest"]["required"] == ["prompt"]
    assert "(default: 1)" in schemas["GenerationRequest"]["properties"]["batch_size"]["description"]
    for name, schema in schemas.items():
        if name.endswith(("Request", "Changes", "BatchJob", "BatchImport", "Params", "Choice", "Order")):
            assert not [each for each in objects(schema.get("properties", {})) if "default" in each], name


@pytest.mark.parametrize("noun", ["generation-jobs", "batches"])
def test_the_events_of_a_stream_are_described(document: Json, noun: str) -> None:
    operation = document["paths"][f"/api/v1/{noun}/{{id}}/events"]["get"]
    schema = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    names = re.findall(r"/schemas/(\w+)", str(schema))
    assert names == (["JobEvent"] if noun == "generation-jobs" else ["BatchEvent", "JobEvent"])
    for name in names:
        assert "version" in str(document["components"]["schemas"][name]) or name == "BatchEvent"
