"""What cannot be accepted is refused with words that help, and nothing of it is stored."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
from api_service import JOBS, Json, Service, order, settings_for

from hostile_urls import MALFORMED
from safelight.api.job_request import GenerationRequest
from safelight.api.service.templates import EXAMPLE
from servers import ValkeyServer

MAX_BODY_BYTES = 1024 * 1024
BATCHES = "/api/v1/batches"
LORA, VIDEO = {"name": "a"}, {"url": "http://films.example/"}


@pytest.fixture(scope="module")
def untouched(
    api_valkey: ValkeyServer, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service in which nothing must ever be stored."""
    folder = tmp_path_factory.mktemp("untouched")
    url = f"sqlite:///{copy(sqlite_template, folder / 'safelight.db')}"
    service = Service(settings_for(folder, api_valkey, url), api_valkey, worker=False)
    yield service
    service.close()


@pytest.fixture
def clean(untouched: Service) -> Iterator[Service]:
    yield untouched
    assert untouched.jobs() == []


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).isoformat()


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"a lighthouse", "application/json", 400, "malformed_json"),
        (b'{"prompt": "x"', "application/json", 400, "malformed_json"),
        (b'{"prompt": "\xff"}', "application/json", 400, "malformed_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "malformed_json"),
        (b"[" * 50_000, "application/json", 400, "malformed_json"),
        (b'{"prompt": "x"}', "text/plain", 415, "unsupported_media_type"),
        (b"prompt=x", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"prompt": "x"}', None, 400, "not_json"),
        (b"", "application/json", 422, "invalid_request"),
        (b"null", "application/json", 422, "invalid_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b'["prompt"]', "application/json", 422, "invalid_request"),
        (b'"prompt"', "application/json", 422, "invalid_request"),
        (b"7", "application/json", 422, "invalid_request"),
        (b"{}", "application/json", 422, "invalid_request"),
    ],
)
def test_a_body_that_is_no_request(
    clean: Service, body: bytes, content_type: str | None, status: int, code: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = clean.http.post(JOBS, content=body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (status, code, False)
    if code == "invalid_request":
        assert [error["pointer"] for error in problem["errors"]] == ["#/prompt" if body == b"{}" else "#"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(clean: Service, chunked: bool) -> None:
    body = order(prompt="x", metadata={"k": "v" * MAX_BODY_BYTES})
    content = str(body).replace("'", '"').encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 65536):
            yield content[start : start + 65536]

    headers = {"Content-Type": "application/json"}
    response = clean.http.post(JOBS, content=pieces() if chunked else content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert str(MAX_BODY_BYTES) in response.json()["detail"]


def test_a_body_just_small_enough_is_read(clean: Service) -> None:
    body = b'{"prompt": "", "x": "' + b"y" * (MAX_BODY_BYTES - 23) + b'"}'
    assert len(body) == MAX_BODY_BYTES
    response = clean.http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert len(response.content) < 10_000


# --- fields -----------------------------------------------------------------------------------------------------------

WRONG_FIELDS: list[tuple[str, Any, str]] = [
    ("prompt", "", "at least 1 character"),
    ("prompt", " \n\t", "must not be blank"),
    ("prompt", "x" * 100_001, "at most 100000 characters"),
    ("prompt", "a\0b", "NUL"),
    ("prompt", None, "valid string"),
    ("prompt", 7, "valid string"),
    ("prompt", ["x"], "valid string"),
    ("negative_prompt", "x" * 100_001, "at most 100000 characters"),
    ("negative_prompt", "\0", "NUL"),
    ("provider", "", "the name of a provider"),
    ("provider", "x" * 201, "the name of a provider"),
    ("provider", "mokc", "Did you mean mock?"),
    ("provider", "comfy", "Did you mean comfyui?"),
    ("provider", 1, "the name of a provider"),
    ("provider", ["mock", "mokc"], "Did you mean mock?"),
    ("provider", ["mock", "mock"], "each provider once"),
    ("provider", ["mock", 7], "a list of providers"),
    ("provider", [], "must name 1 to 8"),
    ("provider", [f"p{number}" for number in range(9)], "must name 1 to 8"),
    ("model", "", "at least 1 character"),
    ("model", "darkrom", "Did you mean darkroom"),
    ("model", "x" * 301, "at most 300 characters"),
    ("checkpoint_model", "", "at least 1 character"),
    ("checkpoint_model", "\0", "NUL"),
    ("lora_models", "ink", "valid list"),
    ("lora_models", [{"name": "x"}] * 17, "at most 16 items"),
    ("width", 15, "greater than or equal to 16"),
    ("width", 8193, "less than or equal to 8192"),
    ("width", 63, "64 to 2048"),
    ("width", 2049, "64 to 2048"),
    ("width", "512", "valid integer"),
    ("width", 512.5, "valid integer"),
    ("width", True, "valid integer"),
    ("height", 0, "greater than or equal to 16"),
    ("height", -64, "greater than or equal to 16"),
    ("height", 4096, "64 to 2048"),
    ("batch_size", 0, "greater than or equal to 1"),
    ("batch_size", 65, "less than or equal to 64"),
    ("batch_size", None, "valid integer"),
    ("seed", -1, "greater than or equal to 0"),
    ("seed", 2**63 - 1023, "less than or equal to"),
    ("seed", 2**70, "less than or equal to"),
    ("seed", "7", "valid integer"),
    ("sampler_params", [], "a JSON object"),
    ("provider_options", "mock", "valid dictionary"),
    ("provider_options", {"x": "y" * 65536}, "at most 64 KiB"),
    ("provider_options", {"x": "\0"}, "NUL"),
    ("provider_options", {"x": 2**64}, "cannot be stored"),
    ("image_type", "", "at least 1 character"),
    ("image_type", "x" * 81, "at most 80 characters"),
    ("project_id", "", "at least 1 character"),
    ("project_id", 7, "valid string"),
    ("chapter_id", "x" * 201, "at most 200 characters"),
    ("script_id", "\0", "NUL"),
    ("scene_number", -1, "greater than or equal to 0"),
    ("scene_number", 1_000_001, "less than or equal to 1000000"),
    ("scene_number", "first", "valid integer"),
    ("character_id", "", "at least 1 character"),
    ("priority", -11, "greater than or equal to -10"),
    ("priority", 11, "less than or equal to 10"),
    ("priority", 0.5, "valid integer"),
    ("run_at", "2001-01-01T00:00:00Z", "must not be in the past"),
    ("run_at", "9999-12-31T23:59:59Z", "within a year"),
    ("run_at", "2099-01-01T00:00:00", "timezone"),
    ("run_at", "tomorrow", "as text with its offset"),
    ("start_within_seconds", 0, "greater than 0"),
    ("start_within_seconds", 7 * 86400 + 1, "less than or equal to 604800"),
    ("start_within_seconds", "5", "valid number"),
    ("timeout_seconds", 0.5, "greater than or equal to 1"),
    ("timeout_seconds", 86401, "less than or equal to 86400"),
    ("max_retries", -1, "greater than or equal to 0"),
    ("max_retries", 21, "less than or equal to 20"),
    ("metadata", [], "valid dictionary"),
    ("metadata", {f"k{n}": "" for n in range(51)}, "at most 50 items"),
    ("metadata", {"k": "\0"}, "NUL"),
    ("metadata", {"\0": "v"}, "NUL"),
    ("metadata", {f"k{n}": "ü" * 1000 for n in range(40)}, "at most 64 KiB"),
    ("promt", "x", "no such field. Did you mean prompt?"),
    ("p" * 101, "x", "no such field"),
    ("owner_id", "me", "no such field"),
    ("status", "completed", "no such field"),
]


def test_a_whole_number_is_one_however_it_is_written() -> None:
    body = GenerationRequest.model_validate({"prompt": "x", "width": 512.0, "timeout_seconds": 60})
    assert (body.parameters.width, body.timeout_seconds) == (512, 60.0)


@pytest.mark.parametrize(("field", "value", "words"), WRONG_FIELDS)
def test_a_wrong_field(clean: Service, field: str, value: Any, words: str) -> None:
    response = clean.http.post(JOBS, json=order() | {field: value})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (422, "invalid_request", False)
    assert [error["pointer"] for error in problem["errors"]] == [f"#/{field}"]
    assert words in problem["errors"][0]["detail"]
    assert "Value error" not in response.text


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"lora_models": [{"name": "a"}, {"name": ""}]}, "#/lora_models/1/name", "at least 1 character"),
        ({"lora_models": [{}]}, "#/lora_models/0/name", "required"),
        ({"lora_models": [{"name": "a", "weight": 1}]}, "#/lora_models/0/weight", "no such field"),
        ({"lora_models": [{"name": "a", "strength_clip": 21}]}, "#/lora_models/0/strength_clip", "equal to 20"),
        ({"sampler_params": {"steps": 0}}, "#/sampler_params/steps", "equal to 1"),
        ({"sampler_params": {"cfg": "high"}}, "#/sampler_params/cfg", "valid number"),
        ({"sampler_params": {"denoise": 1.1}}, "#/sampler_params/denoise", "equal to 1"),
        ({"sampler_params": {"eta": 1}}, "#/sampler_params/eta", "no such field"),
        ({"seed": 1, "sampler_params": {"seed": 2}}, "#", "seed and sampler_params.seed differ"),
        ({"metadata": {"k": 1}}, "#/metadata/k", "valid string"),
        ({"metadata": {"k": "v" * 1001}}, "#/metadata/k", "at most 1000 characters"),
        ({"provider_options": {"speed": 1}}, "#/provider_options/speed", "duration_seconds"),
        ({"provider_options": {"duration_seconds": -1}}, "#/provider_options/duration_seconds", "0 to 3600"),
        ({"provider_options": {"mock": {"hagn": True}}}, "#/provider_options/mock/hagn", "Did you mean hang?"),
        ({"provider_options": {"mock": {"crash": "2"}}}, "#/provider_options/mock/crash", "whole"),
        ({"a/b~c": 1}, "#/a~1b~0c", "no such field"),
    ],
)  # fmt: skip
def test_a_wrong_value_deeper_down(clean: Service, fields: Json, pointer: str, words: str) -> None:
    response = clean.http.post(JOBS, json=order() | fields)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
    assert [error["pointer"] for error in response.json()["errors"]] == [pointer]
    assert words in response.json()["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("path", "body", "pointer", "meant"),
    [
        (
            JOBS,
            order(lora_models=[LORA, LORA | {"strenght_clip": 1}]),
            "#/lora_models/1/strenght_clip",
            "strength_clip",
        ),
        (JOBS, order(sampler_params={"stepps": 4}), "#/sampler_params/stepps", "steps"),
        (BATCHES, {"jobs": [order(), order(promt="x")]}, "#/jobs/1/promt", "prompt"),
        (BATCHES, {"jobs": [order(sampler_params={"seeds": 4})]}, "#/jobs/0/sampler_params/seeds", "seed"),
        (BATCHES, {"jobs": [VIDEO | {"kind": "media.import", "max_hight": 9}]}, "#/jobs/0/max_hight", "max_height"),
        (BATCHES, {"jobs": [order()], "nane": "x"}, "#/nane", "name"),
        ("/api/v1/media/probe", VIDEO | {"ulr": ""}, "#/ulr", "url"),
        ("/api/v1/projects", {"title": "x", "titel": ""}, "#/titel", "title"),
        ("/api/v1/templates", EXAMPLE | {"titel": "x"}, "#/titel", "title"),
        ("/api/v1/templates", EXAMPLE | {"inputs": {"x": {"maximun": 3}}}, "#/inputs/x/maximun", "maximum"),
    ],
)
def test_what_was_meant_by_a_misspelt_field(clean: Service, path: str, body: Json, pointer: str, meant: str) -> None:
    response = clean.http.post(path, json=body)
    assert response.status_code == 422
    [error] = [error for error in response.json()["errors"] if error["pointer"] == pointer]
    assert error["detail"] == f"There is no such field. Did you mean {meant}?"


@pytest.mark.parametrize(
    "body",
    [
        rb'{"prompt": "\ud800"}',
        rb'{"prompt": "x", "\ud800": 1}',
        rb'{"prompt": "x", "metadata": {"\ud800": "v"}}',
        rb'{"prompt": "x", "metadata": {"k": "\ud800"}}',
        rb'{"prompt": "x", "provider_options": {"k": "\ud800"}}',
        rb'{"prompt": "x", "provider_options": {"\ud800": 1}}',
        rb'{"prompt": "x", "model": "\ud800"}',
        rb'{"prompt": "x", "provider_options": {"duration_seconds": NaN}}',
        rb'{"prompt": "x", "timeout_seconds": Infinity}',
        rb'{"prompt": "x", "provider_options": {"mock": ' + b'{"x":' * 500 + b"1" + b"}" * 500 + b"}}",
    ],
)
def test_what_json_allows_and_nobody_can_store(clean: Service, body: bytes) -> None:
    response = clean.http.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_every_wrong_field_is_named_at_once(clean: Service) -> None:
    response = clean.http.post(JOBS, json={"width": 1, "height": "x", "colour": "red"})
    pointers = {error["pointer"] for error in response.json()["errors"]}
    assert pointers == {"#/prompt", "#/width", "#/height", "#/colour"}


# --- everything around the body ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("part", ["", "/cancel", "/retry", "/attempts", "/events", "/previews/x"])
def test_ids(clean: Service, method: str, part: str) -> None:
    if (method == "POST") != (part in ("/cancel", "/retry")):
        return
    for wrong, status, code in (("7", 400, "invalid_id"), (str(uuid.uuid4()), 404, "job_not_found")):
        response = clean.http.request(method, f"{JOBS}/{wrong}{part}")
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert len(response.json()["detail"]) > 20


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("GET", "/api/v2/generation-jobs", 404, "not_found"),
        ("PUT", JOBS, 405, "method_not_allowed"),
        ("PUT", f"{JOBS}/{uuid.UUID(int=1)}", 405, "method_not_allowed"),
        ("GET", f"{JOBS}/{uuid.UUID(int=1)}/cancel", 405, "method_not_allowed"),
        ("POST", "/health/live", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_and_methods(clean: Service, method: str, path: str, status: int, code: str) -> None:
    response = clean.http.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert path in response.json()["detail"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "[::2]"])
def test_foreign_hosts_are_turned_away(clean: Service, host: str) -> None:
    response = clean.http.post(JOBS, json=order(), headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8080"])
def test_our_own_hosts_are_served(clean: Service, host: str) -> None:
    assert clean.http.get(JOBS, headers={"Host": host}).status_code == 200


def test_a_request_id_is_taken_over_if_it_is_harmless(clean: Service) -> None:
    given = "trace:1.2_3-4"
    assert clean.http.get("/nothing", headers={"X-Request-Id": given}).json()["request_id"] == given
    for wrong in ("a b", "x" * 129, '"'):
        assert clean.http.get("/nothing", headers={"X-Request-Id": wrong}).json()["request_id"] != wrong


@pytest.mark.parametrize("wait", ["0", "61", "x", "1.5"])
def test_a_wrong_wait(clean: Service, wait: str) -> None:
    response = clean.http.get(f"{JOBS}/{uuid.uuid4()}", params={"wait": wait})
    assert (response.status_code, [error["pointer"] for error in response.json()["errors"]]) == (400, ["wait"])


@pytest.mark.parametrize("url", MALFORMED, ids=ascii)
def test_a_picture_that_is_nowhere(clean: Service, url: str) -> None:
    refused = clean.http.post(JOBS, json=order(input_images=[url]))
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert refused.json()["errors"][0]["pointer"] == "#/input_images"
