"""ComfyUI through every floor: a submit over HTTP, the engine, a server that speaks the recorded protocol."""

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from api_service import JOBS, Json, Service, eventually
from PIL import Image
from pydantic import SecretStr

from safelight.providers import address
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import workflow

CHECKPOINT = "tiny.safetensors"
SECRET = "only-for-this-test"


@pytest.fixture
def servers() -> Iterator[list[ComfyStandIn]]:
    with ComfyStandIn() as one, ComfyStandIn() as two:
        yield [one, two]


@pytest.fixture
def service(make_service: Callable[..., Service], servers: list[ComfyStandIn]) -> Service:
    urls = [server.url for server in servers]
    return make_service(
        mock_mode=False, default_provider="comfyui", comfyui_urls=urls, webhook_secret=SecretStr(SECRET)
    )


def asked(**fields: Any) -> Json:
    return {"prompt": "a lighthouse", "width": 64, "height": 64, "seed": 7, "checkpoint_model": CHECKPOINT} | fields


def submit(service: Service, **fields: Any) -> str:
    answer = service.http.post(JOBS, json=asked(**fields))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def refusal(service: Service, **fields: Any) -> Json:
    answer = service.http.post(JOBS, json=asked(**fields))
    assert answer.status_code == 422, answer.text
    return answer.json()["errors"][0]


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return file.getvalue()


def test_forty_jobs_on_two_servers_one_of_which_dies(service: Service, servers: list[ComfyStandIn]) -> None:
    for server in servers:
        server.hold = "KSampler"  # so that neither is through with everything before the other was asked
    ids = [submit(service, seed=number) for number in range(40)]
    eventually(lambda: servers[1].ledger, "the second server has work")
    servers[1].kill()
    servers[0].hold = None
    jobs = [service.end_of(job_id) for job_id in ids]
    assert [job["error"] for job in jobs if job["status"] != "completed"] == []
    assert all(servers[0].submits(job_id) <= 1 for job_id in ids)
    assert all(job["artifacts"][0]["width"] == 64 for job in jobs)
    assert all(job["comfyui_prompt_id"] for job in jobs)


def test_progress_and_previews_are_told_live(service: Service, servers: list[ComfyStandIn]) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    job_id = submit(service, run_at=later)
    rest = service.watch_held(job_id)[1:]
    percents = [event.data["progress"] for event in rest if event.data["progress"] is not None]
    assert percents == sorted(percents) and percents[-1] == 100
    assert {"job.started", "job.output", "job.completed"} <= {event.type for event in rest}


def test_an_uploaded_picture_is_what_it_starts_from(service: Service, servers: list[ComfyStandIn]) -> None:
    upload = service.http.post("/api/v1/artifacts", content=picture(), headers={"Content-Type": "image/png"}).json()
    job = service.end_of(submit(service, input_images=[upload["id"]], sampler_params={"denoise": 0.5}))
    assert (job["status"], job["input_images"]) == ("completed", [upload["id"]])
    missing = refusal(service, input_images=["00000000-0000-7000-8000-000000000000"])
    assert missing["pointer"] == "#/input_images/0"
    assert refusal(service, input_images=["lighthouse.png"])["pointer"] == "#/input_images"


def test_a_name_that_leads_to_a_private_address_fails_the_job(service: Service) -> None:
    job = service.end_of(submit(service, input_images=["http://localhost:9/x.png"]))
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_request")
    assert "input picture 1" in job["error"]["message"]


def test_so_does_a_name_that_nobody_has(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "as the resolver said")

    monkeypatch.setattr(address, "_resolve", resolve)
    job = service.end_of(submit(service, input_images=["http://pictures.example/x.png"]))
    assert (job["status"], job["error"]["code"]) == ("failed", "invalid_request")
    assert "no host named pictures.example" in job["error"]["message"]


def test_what_the_servers_do_not_have_is_refused_before_anything_is_queued(
    service: Service, servers: list[ComfyStandIn]
) -> None:
    wrong = refusal(service, checkpoint_model="tiny.safetensor")
    assert wrong["pointer"] == "#/checkpoint_model" and CHECKPOINT in wrong["detail"]
    assert refusal(service, sampler_params={"sampler": "eulr"})["pointer"] == "#/sampler_params/sampler"
    assert refusal(service, template="txt2im")["pointer"] == "#/template"
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "missing.safetensors"}},
        "2": {"class_type": "FancySampler", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "FancySaver", "inputs": {"images": ["2", 0]}},
    }
    answer = service.http.post(JOBS, json={"prompt": "x", "provider": "comfyui", "workflow": graph})
    assert [each["pointer"] for each in answer.json()["errors"]] == [
        "#/workflow/2/class_type",
        "#/workflow/3/class_type",
        "#/workflow/1/inputs/ckpt_name",
    ]
    exported = refusal(service, workflow={"nodes": [], "links": []})
    assert exported["pointer"] == "#/workflow" and "Export (API)" in exported["detail"]
    assert not any(server.ledger for server in servers)


def test_a_cancel_interrupts_the_server(service: Service, servers: list[ComfyStandIn]) -> None:
    for server in servers:
        server.hold = "KSampler"
    job_id = submit(service)
    service.when(job_id, lambda job: job["comfyui_prompt_id"] and job["progress"], "it runs on the server")
    assert service.http.post(f"{JOBS}/{job_id}/cancel").status_code == 200
    assert service.end_of(job_id)["status"] == "cancelled"


def test_the_webhook_needs_its_secret_and_believes_nothing_else(service: Service) -> None:
    body = {"prompt_id": "00000000-0000-7000-8000-000000000000"}
    assert service.http.post("/webhooks/comfyui/another-secret", json=body).status_code == 404
    assert service.http.post(f"/webhooks/comfyui/{SECRET}", json=body).status_code == 204
    assert service.http.post(f"/webhooks/modelslab/{SECRET}", content=b"nonsense").status_code == 204


def test_the_models_of_all_servers_and_of_each(
    make_service: Callable[..., Service], servers: list[ComfyStandIn]
) -> None:
    servers[1].set_choices("CheckpointLoaderSimple", "ckpt_name", [CHECKPOINT, "big.safetensors"])
    service = make_service(mock_mode=False, worker=False, comfyui_urls=[server.url for server in servers])
    path = "/api/v1/providers/comfyui/models"
    found = service.http.get(path).json()
    assert found["models"]["checkpoints"] == [CHECKPOINT, "big.safetensors"]
    assert {url: has["checkpoints"] for url, has in found["servers"].items()} == {
        servers[0].url: [CHECKPOINT],
        servers[1].url: [CHECKPOINT, "big.safetensors"],
    }
    assert set(found["models"]) == {"checkpoints", "loras", "samplers", "schedulers", "vaes"}
    asked = len(servers[0].seen)
    assert service.http.get(path).json() == found and len(servers[0].seen) == asked
    for server in servers:
        server.kill()
    unknown = make_service(mock_mode=False, worker=False, comfyui_urls=[server.url for server in servers])
    silent = unknown.http.get(path)
    assert (silent.status_code, silent.json()["code"]) == (503, "models_unknown")


def test_the_checkpoint_that_was_used_stands_with_the_picture(service: Service) -> None:
    for fields in ({}, {"checkpoint_model": None}):  # named, and the server's first
        job = service.end_of(submit(service, **fields))
        assert job["artifacts"][0]["details"]["checkpoints"] == [CHECKPOINT]
        assert job["warnings"] == []


def test_several_pictures_of_a_size(service: Service) -> None:
    job = service.end_of(submit(service, batch_size=2, width=96))
    assert [(made["width"], made["height"]) for made in job["artifacts"]] == [(96, 64)] * 2


def test_a_picture_that_is_too_tall_for_a_thumbnail_of_its_width_is_a_result(service: Service) -> None:
    strip = {"class_type": "EmptyImage", "inputs": {"width": 512, "height": 16_384, "batch_size": 1, "color": 0}}
    fields: dict[str, Any] = {"checkpoint_model": None, "width": None, "height": None, "seed": None}
    job = service.end_of(submit(service, **fields, workflow=workflow(**{"1": strip})))
    assert (job["status"], job["attempt"]) == ("completed", 1), job["error"]
    [made] = job["artifacts"]
    assert (made["width"], made["height"], made["thumbnail_error"]) == (512, 16_384, None)
    assert made["thumbnails"][-1]["height"] == 16_383


def test_a_seed_is_shown_where_one_is_used(service: Service) -> None:
    fields: dict[str, Any] = {"checkpoint_model": None, "width": None, "height": None, "seed": None}
    drawn = service.end_of(submit(service, seed=None))
    assert drawn["seed"] is not None and drawn["artifacts"][0]["seed"] == drawn["seed"]
    own = service.end_of(submit(service, **fields, workflow=workflow()))
    assert (own["status"], own["seed"]) == ("completed", None)


def test_templates_say_what_they_take_and_are_filled(service: Service) -> None:
    listed = {found["name"]: found for found in service.http.get("/api/v1/templates").json()["items"]}
    assert listed["txt2img"]["inputs"]["prompt"]["type"] == "string"
    assert "workflow" in service.http.get("/api/v1/templates/txt2img").json()
    assert service.http.get("/api/v1/templates/nothing").json()["code"] == "template_not_found"
    job = service.end_of(submit(service, template="txt2img", inputs={"steps": 4}))
    assert (job["status"], job["template"], job["inputs"]) == ("completed", "txt2img", {"steps": 4})
    assert refusal(service, template="txt2img", inputs={"steps": 0})["pointer"] == "#/inputs/steps"
