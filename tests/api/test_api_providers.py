"""Living with failing providers, over HTTP: what is shown of them, pauses, breakers, rates and routes."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from api_service import JOBS, Json, Service, eventually, order
from click.testing import CliRunner
from pydantic import SecretStr

from safelight.cli.providers import providers as command
from safelight_client import Client

PROVIDERS = "/api/v1/providers"


def provider(service: Service, name: str = "mock") -> Json:
    response = service.http.get(f"{PROVIDERS}/{name}")
    assert response.status_code == 200, response.text
    return response.json()


def end_pause(service: Service) -> None:
    """Let the time that the provider asked for be over (SQLite only)."""
    path = service.settings.database_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE provider_states SET paused_until = updated_at")


def away(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


# What is shown


def test_every_provider_is_shown(service: Service) -> None:
    service.make(model="darkroom-fast", width=88)
    shown = {each["name"]: each for each in service.http.get(PROVIDERS).json()["items"]}
    assert next(iter(shown)) == "mock" and {"comfyui", "modelslab"} <= shown.keys()
    mock = shown["mock"]
    assert (mock["is_default"], mock["mocked"], mock["health"]) == (True, True, {"state": "ok", "detail": None})
    assert mock["capabilities"]["models"] == ["darkroom", "darkroom-fast"]
    assert mock["limits"] == {
        "jobs_at_once": None,
        "rate": None,
        "soft_limit_seconds": 300.0,
        "hard_limit_seconds": 330.0,
    }
    assert (mock["breaker"], mock["paused_until"], mock["retry_at"]) == ("closed", None, None)
    found = eventually(
        lambda: [each for each in provider(service)["run_times"] if each["width"] == 88], "the run time is learnt"
    )
    assert (found[0]["model"], found[0]["height"], found[0]["samples"]) == ("darkroom-fast", 64, 1)
    assert 0 < found[0]["median_seconds"] < 10
    models = service.http.get(f"{PROVIDERS}/mock/models").json()
    assert models == {"models": {"models": ["darkroom", "darkroom-fast"]}, "servers": {}}


def test_what_nobody_has_is_not_found(service: Service) -> None:
    for path in (f"{PROVIDERS}/mokc", f"{PROVIDERS}/mokc/models"):
        response = service.http.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "provider_not_found")
        assert "Did you mean mock?" in response.json()["detail"]


def test_running_and_waiting_are_counted(make_service: Callable[..., Service]) -> None:
    service = make_service(provider_limits={"mock": 1}, provider_rates={"mock": "5/10", "comfyui": 60})
    jobs = [service.submit(seconds=30) for _ in range(3)]
    view = eventually(lambda: (now := provider(service))["running"] and now, "one runs")
    assert (view["running"], view["waiting"], view["limits"]["jobs_at_once"]) == (1, 2, 1)
    assert view["limits"]["rate"] == {"jobs": 5, "seconds": 10}
    assert provider(service, "comfyui")["limits"]["rate"] == {"jobs": 60, "seconds": 60}
    for job in jobs:
        service.http.post(f"{JOBS}/{job['id']}/cancel")


def test_the_command_line_shows_them_too(make_service: Callable[..., Service]) -> None:
    service = make_service(provider_rates={"comfyui": "5/10"})
    service.make()
    listed = json.loads(CliRunner().invoke(command, ["ls", "--json", "--url", service.api.url]).stdout)
    with Client(service.api.url) as client:
        assert [each["name"] for each in client.providers()] == [each["name"] for each in listed]
    service.submit(provider="comfyui", mock={"rate_limit": {"times": 1, "retry_after": 60}})
    eventually(lambda: provider(service, "comfyui")["paused_until"], "it is paused")
    table = CliRunner().invoke(command, ["ls", "--url", service.api.url])
    assert table.exit_code == 0, table.output
    rows = {line.split()[0]: line for line in table.stdout.splitlines()}
    assert {"NAME", "mock", "comfyui"} <= rows.keys()
    assert "paused, " in rows["comfyui"] and "5/10" in rows["comfyui"]
    assert "ready" in rows["mock"]


# Pauses


def test_a_pause_holds_all_its_jobs_and_nothing_fails(make_service: Callable[..., Service]) -> None:
    """One is told to come back later; what comes meanwhile waits, in the open, and all are made."""
    service = make_service()
    service.make()
    service.restart_api()  # so that there is an estimate, and not the memory of having none
    first = service.submit(mock={"rate_limit": {"times": 1, "retry_after": 600}})
    paused = eventually(lambda: (now := provider(service))["paused_until"] and now, "the provider is paused")
    assert paused["pause_reason"] == "The mock provider asks us to slow down."
    assert 0 < away(paused["paused_until"]) <= 600
    others = [service.submit() for _ in range(5)]
    elsewhere = service.make(provider="comfyui")
    assert elsewhere["status"] == "completed"
    for job in (first, *others):
        waiting = service.when(job["id"], lambda job: job["blocked_reason"], "it says why it waits")
        assert (waiting["status"], waiting["blocked_reason"]) == ("pending", "provider_paused")
        assert waiting["blocked_until"] == paused["paused_until"]
        assert waiting["message"].startswith("The provider asked for a pause until ")
        assert 0 < waiting["eta"]["wait_seconds"] <= 602
    end_pause(service)
    service.let_go(first["id"])
    ended = [service.end_of(job["id"]) for job in (first, *others)]
    assert [(job["status"], job["retry_count"], job["blocked_reason"]) for job in ended] == [("completed", 0, None)] * 6
    assert [job["attempt"] for job in ended] == [2, 1, 1, 1, 1, 1]
    assert provider(service)["paused_until"] is None
    assert [attempt["outcome"] for attempt in service.attempts(first["id"])] == ["deferred", "completed"]


def test_a_pause_survives_an_emptied_redis(make_service: Callable[..., Service]) -> None:
    service = make_service()
    job = service.submit(mock={"rate_limit": {"times": 1, "retry_after": 30}})
    eventually(lambda: provider(service)["paused_until"], "the provider is paused")
    service.valkey.flush()
    service.restart_api()
    other = service.submit()
    for each in (job, other):
        service.when(each["id"], lambda job: job["blocked_reason"] == "provider_paused", "it waits")


# Breakers


def test_a_failing_provider_is_left_alone_and_tried_by_one(make_service: Callable[..., Service]) -> None:
    service = make_service(breaker_failures=3, breaker_seconds=4, retry_seconds=0.01)
    failing = service.submit(mock={"transient_errors": 4}, max_retries=9)
    seen = eventually(lambda: (now := provider(service))["breaker"] != "closed" and now, "the breaker opens")
    assert seen["failures"] >= 3
    others = [service.submit() for _ in range(3)]
    blocked = service.when(others[0]["id"], lambda job: job["blocked_reason"] or job["is_terminal"], "it waits")
    assert blocked["blocked_reason"] == "breaker_open"
    assert [service.end_of(job["id"])["status"] for job in (failing, *others)] == ["completed"] * 4
    outcomes = [attempt["outcome"] for attempt in service.attempts(failing["id"])]
    assert outcomes[:3] == ["retry"] * 3 and outcomes[-1] == "completed"
    assert provider(service)["breaker"] == "closed"


# Routes


def test_a_route_is_taken_in_order_with_every_skip_told(make_service: Callable[..., Service]) -> None:
    service = make_service(routes={"best": ["comfyui", "modelslab"]})
    first = service.submit(provider=["comfyui", "modelslab"], mock={"rate_limit": {"times": 1, "retry_after": 60}})
    assert (first["provider"], first["route"], first["skipped"]) == ("comfyui", ["modelslab"], [])
    moved = service.end_of(first["id"])
    assert (moved["status"], moved["provider"], moved["route"]) == ("completed", "modelslab", [])
    (skipped,) = moved["skipped"]
    assert (skipped["provider"], skipped["code"]) == ("comfyui", "provider_paused")
    assert skipped["reason"] == "The mock provider asks us to slow down."
    assert -30 < away(skipped["at"]) <= 0
    assert [each["provider"] for each in service.attempts(first["id"])] == ["comfyui", "modelslab"]
    # Known by now: the next job goes there at once.
    eventually(
        lambda: service.submit(provider="best")["provider"] == "modelslab", "the API hears of the pause within a second"
    )
    second = service.submit(provider="best")
    assert [(each["provider"], each["code"]) for each in second["skipped"]] == [("comfyui", "provider_paused")]
    assert service.end_of(second["id"])["status"] == "completed"


def test_a_failed_provider_is_followed_by_the_next(make_service: Callable[..., Service]) -> None:
    service = make_service(retry_seconds=0.01)
    job = service.make(provider=["comfyui", "modelslab"], max_retries=1, mock={"transient_errors": 2})
    assert (job["status"], job["provider"], job["retry_count"]) == ("completed", "modelslab", 1)
    assert [each["code"] for each in job["skipped"]] == ["provider_unavailable"]
    assert [each["outcome"] for each in service.attempts(job["id"])] == ["retry", "moved", "completed"]


def test_who_cannot_take_the_parameters_is_passed_over(service: Service) -> None:
    job = service.submit(provider=["mock", "comfyui"], model="sdxl")
    assert (job["provider"], job["model"], job["route"]) == ("comfyui", "sdxl", [])
    (skipped,) = job["skipped"]
    assert (skipped["provider"], skipped["code"]) == ("mock", "invalid_request")
    assert "no model 'sdxl'" in skipped["reason"]
    assert service.end_of(job["id"])["status"] == "completed"


def test_parameters_that_nobody_takes_are_refused(service: Service) -> None:
    response = service.http.post(JOBS, json=order(provider=["mock", "comfyui"], width=4096))
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/width")


def test_a_retry_takes_the_whole_route_again(make_service: Callable[..., Service]) -> None:
    service = make_service(retry_seconds=0.01)
    script: dict[str, Any] = {"transient_errors": 2}
    job = service.make(provider=["comfyui", "modelslab"], max_retries=0, mock=script)
    assert (job["status"], job["provider"]) == ("failed", "modelslab")
    again = service.http.post(f"{JOBS}/{job['id']}/retry", json={"provider_options": {"duration_seconds": 0}}).json()
    assert (again["provider"], again["route"]) == ("comfyui", ["modelslab"])
    assert service.end_of(again["id"])["status"] == "completed"


# Rates


def test_no_more_start_than_the_rate_allows(make_service: Callable[..., Service]) -> None:
    service = make_service(provider_rates={"mock": "2/4"})
    began = time.monotonic()
    jobs = [service.submit() for _ in range(4)]
    assert service.end_of(jobs[1]["id"])["status"] == "completed"
    waiting = service.when(jobs[3]["id"], lambda job: job["blocked_reason"] or job["is_terminal"], "it waits")
    assert waiting["blocked_reason"] == "rate_limited"
    assert {service.end_of(job["id"])["status"] for job in jobs} == {"completed"}
    assert time.monotonic() - began > 3.9


# What is configured, and who draws


def test_what_is_not_configured_is_told_with_the_variable(make_service: Callable[..., Service]) -> None:
    service = make_service(mock_mode=False)
    for name, variable in (
        ("openai_images", "OPENAI_KEY"),
        ("modelslab", "MODELSLAB_KEY"),
        ("comfyui", "COMFYUI_URLS"),
    ):
        view = provider(service, name)
        assert view["health"]["state"] == "not_configured"
        assert view["health"]["detail"].startswith(f"SAFELIGHT_{variable} is not set.") or name != "comfyui"
        assert variable in view["health"]["detail"]
        assert not view["is_default"]
    table = CliRunner().invoke(command, ["ls", "--url", service.api.url]).stdout
    (line,) = (line for line in table.splitlines() if line.startswith("modelslab"))
    assert "not configured" in line and "SAFELIGHT_MODELSLAB_KEY is not set" in line and "ready" not in line


def test_without_mock_mode_the_mock_draws_only_where_it_is_named(make_service: Callable[..., Service]) -> None:
    service = make_service(mock_mode=False)
    refused: list[Json] = [
        service.http.post(JOBS, json={"prompt": "x"}).json(),
        service.http.post("/api/v1/batches", json={"jobs": [{"prompt": "x"}]}).json(),
    ]
    for answer in refused:
        (error,) = answer["errors"]
        assert (answer["status"], error["pointer"].endswith("/provider")) == (422, True)
        assert "Name a provider. None is configured: set SAFELIGHT_COMFYUI_URLS or" in error["detail"]
    project = service.http.post("/api/v1/projects", json={"title": "x"}).json()
    chapter = service.http.post(f"/api/v1/projects/{project['id']}/chapters", json={"title": "x"}).json()
    service.http.post(f"/api/v1/chapters/{chapter['id']}/scenes", json={"description": "a pier"})
    drawn = service.http.post(f"/api/v1/chapters/{chapter['id']}/images/scenes/1", json={"prompt": "x"})
    assert (drawn.status_code, "Name a provider." in drawn.text) == (422, True), drawn.text
    named = service.http.post(JOBS, json={"prompt": "x", "provider": "mock"})
    assert (named.status_code, named.json()["warnings"]) == (202, [])


def test_the_only_provider_that_is_configured_is_the_default(make_service: Callable[..., Service]) -> None:
    service = make_service(mock_mode=False, modelslab_key=SecretStr("a key"), worker=False)
    assert service.http.post(JOBS, json={"prompt": "x"}).json()["provider"] == "modelslab"
    assert provider(service, "modelslab")["is_default"]


def test_who_is_played_by_the_mock_is_told(make_service: Callable[..., Service]) -> None:
    service = make_service(modelslab_key=SecretStr("a key"), worker=False)
    view = provider(service, "modelslab")
    assert (view["mocked"], view["health"]["state"]) == (True, "ok")
    assert view["warnings"] == ["The mock draws in its place: AI_MOCK_MODE is not false."]
    assert provider(service, "comfyui")["warnings"] == []  # nobody set it up
    job = service.http.post(JOBS, json={"prompt": "x", "provider": "modelslab"}).json()
    (warning,) = job["warnings"]
    assert "The mock draws in place of modelslab" in warning
    assert service.http.post(JOBS, json={"prompt": "x"}).json()["warnings"] == []
