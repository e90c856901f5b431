"""The OpenAPI document: what FastAPI tells of the routes, and what it cannot know about them.

Who may ask, which problems every route can answer with, the events of streams, examples, and a wording that generated
clients take as it is meant.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import orjson
from fastapi import FastAPI
from pydantic import BaseModel, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema

from safelight.api.authentication import SESSION_COOKIE, is_open
from safelight.api.problems import RETRYABLE, TITLES
from safelight.jobs import BatchEvent, JobEvent

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
PROBLEM = {"$ref": f"{SCHEMAS}Problem"}
PROBLEM_TYPE = "application/problem+json"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a token (JWT)"},
    "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE},
}
CODES = {  # one of those that come with a status
    400: "invalid_request",
    401: "unauthenticated",
    403: "scope_missing",
    404: "job_not_found",
    409: "job_ended",
    410: "job_deleted",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    421: "wrong_host",
    422: "invalid_request",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
EXAMPLE_ID = "01970000-0000-7000-8000-000000000001"
EXAMPLE_TIME = "2026-01-02T03:04:05.123000Z"
NO_NUL = "^[^\\u0000]*$"
UNKNOWN = "..."  # stands in an example where nothing is known of a text


def stream_of(*events: type) -> Json:
    """The content of an answer that streams such events: each with its fields, `data` being the event as JSON."""
    references = [{"$ref": SCHEMAS + event.__name__} for event in events]
    data = references[0] if len(references) == 1 else {"anyOf": references}
    fields = {
        "event": {"type": "string"},
        "id": {"type": "string"},
        "retry": {"type": "integer", "minimum": 0},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": data},
    }
    return {"text/event-stream": {"schema": {"type": "object", "required": ["data"], "properties": fields}}}


@dataclass(frozen=True, slots=True)
class SomeFieldsOf:
    """For an annotated object: that it has fields of one of these models, whichever are given."""

    models: tuple[type[BaseModel], ...]

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {"anyOf": [self._some_of(model, handler) for model in self.models]}

    def _some_of(self, model: type[BaseModel], handler: GetJsonSchemaHandler) -> Json:
        whole = handler.resolve_ref_schema(handler(model.__pydantic_core_schema__))
        fields = {
            name: {key: value for key, value in field.items() if key != "default"}
            for name, field in whole["properties"].items()
        }
        return {
            "type": "object",
            "title": f"Some{model.__name__}",
            "properties": fields,
            "additionalProperties": False,
        }


def install(app: FastAPI) -> None:
    """Let the app describe itself completely."""
    describe = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = completed(describe())
        return app.openapi_schema

    app.openapi = openapi


def completed(document: Json) -> Json:
    """The document with all that FastAPI has left out."""
    _, events = TypeAdapter.json_schemas(
        [(each, "serialization", TypeAdapter(each)) for each in (JobEvent, BatchEvent)],
        ref_template=SCHEMAS + "{model}",
    )
    schemas: Json = document["components"]["schemas"]
    schemas |= events["$defs"]
    document["components"]["securitySchemes"] = SECURITY_SCHEMES
    for schema in schemas.values():
        if "examples" in schema:
            schema["examples"] = [_with_nulls(each, schema, schemas) for each in schema["examples"]]
    for schema in _objects(schemas):
        if schema.get("type") == "integer":
            schema |= {bound: int(schema[bound]) for bound in ("minimum", "maximum") if bound in schema}
    for name in sorted(_sent(document, schemas)):
        _word_for_senders(schemas[name])
    for path, operation in operations(document):
        sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        _word_for_senders(sent.get("schema", {}))
        operation["security"] = [] if is_open(path) else [{"bearer": []}, {"session": []}]
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _never_null(parameter["schema"])
        _tell_problems(path, operation)
        _show(operation, schemas)
    for replaced in ("HTTPValidationError", "ValidationError"):
        schemas.pop(replaced, None)
    return document


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    """Each operation, with its path."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield path, operation


def _never_null(schema: Json) -> Json:
    """Of a parameter, which is left out rather than null."""
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default") or value is not None}
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del rest["anyOf"]
        return options[0] | rest
    return rest


# --- what is sent -----------------------------------------------------------------------------------------------------


def _sent(document: Json, schemas: Json) -> set[str]:
    """The names of the schemas of which requests are made."""
    found: set[str] = set()
    waiting = [operation["requestBody"] for _, operation in operations(document) if "requestBody" in operation]
    while waiting:
        for name in _references(waiting.pop()) - found:
            found.add(name)
            waiting.append(schemas[name])
    return found


def _references(value: Any) -> set[str]:
    return {
        each["$ref"].removeprefix(SCHEMAS)
        for each in _objects(value)
        if isinstance(each.get("$ref"), str) and each["$ref"].startswith(SCHEMAS)
    }


def _objects(value: Any) -> Iterator[Json]:
    """Every object in a JSON value, itself included."""
    if isinstance(value, dict):
        whole = cast(Json, value)
        yield whole
        for each in whole.values():
            yield from _objects(each)
    elif isinstance(value, list):
        for each in cast(list[Any], value):
            yield from _objects(each)


def _word_for_senders(schema: Json) -> None:
    """A default is told in words: generators of clients take a field that has one for a field that is always there.

    And no text may contain NUL (`job_request.Body`).
    """
    for each in _objects({name: value for name, value in schema.items() if name != "examples"}):
        if ("default" in each and not isinstance(each["default"], Mapping)) or each.get("default") == {}:
            default = each.pop("default")
            told: str = each.get("description", "")
            if default not in (None, "", [], {}) and "efault" not in told:
                each["description"] = f"{told} (default: {orjson.dumps(default).decode()})".strip()
        if each.get("type") == "string" and not each.keys() & {"pattern", "format", "enum", "const"}:
            each["pattern"] = NO_NUL
        if "propertyNames" in each:
            each["propertyNames"] = {"pattern": NO_NUL, **each["propertyNames"]}


# --- what is answered -------------------------------------------------------------------------------------------------


def _tell_problems(path: str, operation: Json) -> None:
    """Those that every route of its kind can answer with, beside its own; all of them as what they are sent as."""
    statuses = {400, 421, 500}
    if not path.endswith("/live"):
        statuses.add(503)
    if operation["security"]:
        statuses |= {401, 403}
    if "{" in path:
        statuses.add(404)
    if "requestBody" in operation:
        statuses |= {413, 415, 422}
    responses: Json = operation["responses"]
    if 422 not in statuses and "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    for status in statuses:
        if str(status) not in responses or "HTTPValidationError" in str(responses[str(status)]):
            responses[str(status)] = {"content": {"application/json": {"schema": PROBLEM}}}
    for status, response in responses.items():
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema") == PROBLEM:
            del content["application/json"]
            content[PROBLEM_TYPE] = {"schema": PROBLEM, "example": problem_example(int(status))}
            if response.get("description", HTTPStatus(int(status)).phrase) == HTTPStatus(int(status)).phrase:
                response["description"] = TITLES[int(status)]
    operation["responses"] = dict(sorted(responses.items()))


def problem_example(status: int) -> Json:
    """A problem of this status."""
    code = CODES[status]
    is_field = status in (400, 422)
    return {
        "type": f"urn:safelight:problem:{code}",
        "title": TITLES[status],
        "status": status,
        "detail": "width: Input should be less than or equal to 8192" if is_field else f"{TITLES[status]}.",
        "code": code,
        "errors": [{"pointer": "#/width", "detail": "Input should be less than or equal to 8192"}] if is_field else [],
        "request_id": EXAMPLE_ID,
        "retryable": status in RETRYABLE,
    }


# --- examples ---------------------------------------------------------------------------------------------------------


def _show(operation: Json, schemas: Json) -> None:
    """An example of each JSON body that is sent or answered, made of those of its parts where it has none itself."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        content = body.get("content", {}).get("application/json")
        if content is not None and not content.keys() & {"example", "examples"}:
            content["example"] = example_of(content["schema"], schemas)


def _with_nulls(value: Any, schema: Json, schemas: Json) -> Any:
    """An example with the nulls that FastAPI takes out of it."""
    if "$ref" in schema:
        return _with_nulls(value, schemas[schema["$ref"].removeprefix(SCHEMAS)], schemas)
    for option in schema.get("anyOf", ()):
        if option != {"type": "null"}:
            return _with_nulls(value, option, schemas)
    if isinstance(value, list):
        return [_with_nulls(each, schema.get("items", {}), schemas) for each in cast(list[Any], value)]
    if not isinstance(value, dict):
        return value
    known: Json = schema.get("properties", {})
    nulls = dict.fromkeys(name for name in schema.get("required", ()) if name not in value)
    whole = {name: _with_nulls(each, known.get(name, {}), schemas) for name, each in cast(Json, value).items()}
    return {name: whole.get(name) for name in known if name in whole or name in nulls} if known else whole


def example_of(schema: Json, schemas: Json, name: str = "") -> Any:
    """A value of this schema, which is that of a field of this `name`."""
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].removeprefix(SCHEMAS)], schemas, name)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            is_open = {"type": "null"} in schema[several]
            return None if is_open else example_of(schema[several][0], schemas, name)
    for known in ("const", "default"):
        if known in schema:
            return schema[known]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {field: example_of(each, schemas, field) for field, each in schema.get("properties", {}).items()}
        case "array":
            return [example_of(schema["items"], schemas, name.removesuffix("s"))] if schema.get("items") else []
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "string":
            if schema.get("format") == "date-time":
                return EXAMPLE_TIME
            return EXAMPLE_ID if name == "id" or name.endswith("_id") else UNKNOWN
        case _:
            return {}
