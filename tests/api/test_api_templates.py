"""Templates of one's own: kept, checked, replaced, deleted, and seen by nobody else. Jobs keep what they were given."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_service import JOBS, Json, Service
from click.testing import CliRunner, Result
from guarded_service import Guarded, problem_of

from safelight.cli.templates import templates
from safelight.template import MAX_TEMPLATES
from safelight_client import ApiError, Client
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import workflow

TEMPLATES = "/api/v1/templates"


def swatch(name: str = "swatch", **changes: Any) -> Json:
    return {
        "name": name,
        "title": "A colour swatch",
        "workflow": workflow(),
        "inputs": {
            "colour": {"node": "1", "input": "color", "type": "integer", "maximum": 255, "required": True},
            "width": {"node": "1", "input": "width", "type": "integer", "minimum": 16, "maximum": 512},
        },
    } | changes


@pytest.fixture
def ada(guarded: Guarded) -> Iterator[httpx.Client]:
    """A user of the test's own."""
    with closing(guarded.client(guarded.key(f"ada-{id(object())}", "write"))) as client:
        yield client


def test_one_is_added_looked_at_replaced_and_deleted(ada: httpx.Client) -> None:
    added = ada.post(TEMPLATES, json=swatch())
    assert (added.status_code, added.headers["Location"]) == (201, f"{TEMPLATES}/swatch")
    assert added.json()["source"] == "own" and added.json()["inputs"]["colour"]["maximum"] == 255
    assert ada.get(added.headers["Location"]).json() == added.json()
    listed = {each["name"]: each for each in ada.get(TEMPLATES).json()["items"]}
    assert [listed[name]["source"] for name in ("txt2img", "swatch")] == ["built_in", "own"]
    assert "workflow" not in listed["swatch"]

    assert problem_of(ada.post(TEMPLATES, json=swatch()), 409) == "template_exists"
    replaced = ada.put(f"{TEMPLATES}/swatch", json=swatch(title="Another"))
    assert (replaced.status_code, replaced.json()["title"]) == (200, "Another")
    assert replaced.json()["created_at"] == added.json()["created_at"] < replaced.json()["updated_at"]
    new = swatch()
    del new["name"]
    assert ada.put(f"{TEMPLATES}/second", json=new).status_code == 201
    renamed = ada.put(f"{TEMPLATES}/second", json=swatch("third"))
    assert problem_of(renamed, 422) == "invalid_request" and renamed.json()["errors"][0]["pointer"] == "#/name"

    assert ada.delete(f"{TEMPLATES}/swatch").status_code == 204
    for gone in (ada.delete(f"{TEMPLATES}/swatch"), ada.get(f"{TEMPLATES}/swatch")):
        assert problem_of(gone, 404) == "template_not_found"


def test_anothers_template_does_not_exist(guarded: Guarded, ada: httpx.Client) -> None:
    assert ada.post(TEMPLATES, json=swatch("hers")).status_code == 201
    bob = guarded.bob
    assert problem_of(bob.get(f"{TEMPLATES}/hers"), 404) == "template_not_found"
    assert problem_of(bob.delete(f"{TEMPLATES}/hers"), 404) == "template_not_found"
    assert "hers" not in {each["name"] for each in bob.get(TEMPLATES).json()["items"]}
    assert bob.put(f"{TEMPLATES}/hers", json=swatch("hers", title="His")).status_code == 201
    assert ada.get(f"{TEMPLATES}/hers").json()["title"] == "A colour swatch"


@pytest.mark.parametrize("name", ["txt2img", "hires"])
def test_what_everybody_has_can_be_neither_taken_nor_deleted(ada: httpx.Client, name: str) -> None:
    for refused in (
        ada.post(TEMPLATES, json=swatch(name)),
        ada.put(f"{TEMPLATES}/{name}", json=swatch(name)),
        ada.delete(f"{TEMPLATES}/{name}"),
    ):
        assert problem_of(refused, 409) == "template_shared"
    assert ada.get(f"{TEMPLATES}/{name}").json()["source"] == "built_in"


def test_everything_that_is_wrong_is_named(ada: httpx.Client) -> None:
    wrong = swatch()
    wrong["inputs"]["colour"] |= {"node": "7"}
    wrong["inputs"]["width"] |= {"minimum": 600}
    refused = ada.post(TEMPLATES, json=wrong)
    assert problem_of(refused, 422) == "invalid_request"
    errors = {each["pointer"]: each["detail"] for each in refused.json()["errors"]}
    assert "The workflow has no node '7'" in errors["#/inputs/colour/node"]
    assert "above the maximum 512" in errors["#/inputs/width/minimum"]
    exported = ada.post(TEMPLATES, json=swatch(workflow={"nodes": [], "links": []})).json()["errors"]
    assert [each["pointer"] for each in exported] == ["#/workflow"] and "Export (API)" in exported[0]["detail"]
    assert ada.post(TEMPLATES, json=["swatch"]).json()["errors"][0]["pointer"] == "#"
    large = ada.post(TEMPLATES, json=swatch(description="x" * 300_000)).json()["errors"][0]
    assert (large["pointer"], large["detail"]) == ("#", "The template must be at most 256 KiB as JSON.")
    assert ada.post(TEMPLATES, json=swatch("a\0b")).status_code == 422
    assert ada.get(f"{TEMPLATES}/a%00b").status_code == ada.delete(f"{TEMPLATES}/a%00b").status_code == 404


def test_there_may_be_so_many(ada: httpx.Client) -> None:
    for number in range(MAX_TEMPLATES):
        assert ada.put(f"{TEMPLATES}/t{number}", json=swatch(f"t{number}")).status_code == 201
    assert problem_of(ada.post(TEMPLATES, json=swatch("more")), 409) == "too_many_templates"
    assert problem_of(ada.put(f"{TEMPLATES}/more", json=swatch("more")), 409) == "too_many_templates"
    assert ada.put(f"{TEMPLATES}/t7", json=swatch("t7", title="Another")).status_code == 200


# --- with jobs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ComfyStandIn]:
    with ComfyStandIn() as server:
        yield server


@pytest.fixture
def drawing(make_service: Callable[..., Service], server: ComfyStandIn, tmp_path: Path) -> Service:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "banner.json").write_text(json.dumps(swatch("banner", title="The house's banner")))
    return make_service(
        mock_mode=False,
        default_provider="comfyui",
        comfyui_urls=[server.url],
        comfyui_templates=tmp_path / "templates",
    )


def colours(server: ComfyStandIn) -> list[int]:
    return [submit.graph["1"]["inputs"]["color"] for submit in server.ledger]


def test_an_accepted_job_keeps_the_template_it_was_given(drawing: Service, server: ComfyStandIn) -> None:
    fixed = copy.deepcopy(swatch())
    fixed["inputs"]["colour"] |= {"required": False, "default": 1}
    assert drawing.http.post(TEMPLATES, json=fixed).status_code == 201
    body = {"prompt": "x", "template": "swatch", "width": 128}
    held, deleted = (drawing.hold(**body, height=None, provider_options={}) for _ in range(2))
    fixed["inputs"]["colour"]["default"] = 2
    assert drawing.http.put(f"{TEMPLATES}/swatch", json=fixed).status_code == 200
    drawing.let_go(held)
    assert drawing.end_of(held)["status"] == "completed"
    assert drawing.http.delete(f"{TEMPLATES}/swatch").status_code == 204
    drawing.let_go(deleted)
    assert drawing.end_of(deleted)["status"] == "completed"
    assert colours(server) == [1, 1]
    unknown = drawing.http.post(JOBS, json=body)
    assert unknown.status_code == 422 and unknown.json()["errors"][0]["pointer"] == "#/template"


def test_a_retry_is_with_the_template_of_then(drawing: Service, server: ComfyStandIn) -> None:
    assert drawing.http.post(TEMPLATES, json=swatch()).status_code == 201
    job_id = drawing.hold(template="swatch", inputs={"colour": 3}, width=64, height=None, provider_options={})
    assert drawing.http.post(f"{JOBS}/{job_id}/cancel").json()["status"] == "cancelled"
    assert drawing.http.delete(f"{TEMPLATES}/swatch").status_code == 204
    again = drawing.http.post(f"{JOBS}/{job_id}/retry").json()
    assert drawing.end_of(again["id"])["status"] == "completed"
    other = drawing.http.post(f"{JOBS}/{job_id}/retry", json={"template": "banner", "inputs": {"colour": 4}}).json()
    assert drawing.end_of(other["id"])["status"] == "completed"
    assert colours(server) == [3, 4]
    gone = drawing.http.post(f"{JOBS}/{again['id']}/retry", json={"template": "swatch"})
    assert gone.status_code == 409  # it completed


def test_values_are_checked_against_ones_own_template(drawing: Service, server: ComfyStandIn) -> None:
    assert drawing.http.post(TEMPLATES, json=swatch()).status_code == 201
    refused = drawing.http.post(JOBS, json={"prompt": "x", "template": "swatch", "inputs": {"colour": 256}})
    assert refused.json()["errors"][0]["pointer"] == "#/inputs/colour"
    broken = swatch("broken", workflow=workflow(**{"3": {"class_type": "NoSuchNode", "inputs": {}}}))
    assert drawing.http.post(TEMPLATES, json=broken).status_code == 201
    refused = drawing.http.post(JOBS, json={"prompt": "x", "template": "broken", "inputs": {"colour": 2}})
    assert "NoSuchNode" in refused.json()["detail"]
    assert not server.ledger


def test_those_of_the_installation_are_everybodys(drawing: Service) -> None:
    found = drawing.http.get(f"{TEMPLATES}/banner").json()
    assert (found["source"], found["title"]) == ("installation", "The house's banner")
    assert problem_of(drawing.http.post(TEMPLATES, json=swatch("banner")), 409) == "template_shared"


def test_templates_of_the_installation_that_cannot_be_read_are_said_to_be(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service(
        worker=False, mock_mode=False, comfyui_templates=tmp_path / "nothing", comfyui_urls=["http://127.0.0.1:9"]
    )
    broken = service.http.get(TEMPLATES)
    assert problem_of(broken, 503) == "templates_broken" and "There is no folder" in broken.json()["detail"]
    refused = service.http.post(JOBS, json={"prompt": "x", "provider": "comfyui"})
    assert "There is no folder" in problem_detail(refused)


def problem_detail(response: httpx.Response) -> str:
    assert response.status_code == 422, response.text
    return response.json()["detail"]


# --- the command and the client ---------------------------------------------------------------------------------------


def test_the_command_adds_lists_and_removes(idle: Service, tmp_path: Path) -> None:
    file = tmp_path / "swatch.json"
    file.write_text(json.dumps(swatch()))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(templates, [*arguments, "--url", idle.api.url])

    assert run("add", str(file)).stdout == "swatch\n"
    again = run("add", str(file))
    assert again.exit_code == 1 and "--replace" in again.stderr
    assert run("add", str(file), "--replace").exit_code == 0
    listed = run("ls").stdout
    assert [line.split()[:2] for line in listed.splitlines()][1:] == [
        ["hires", "built-in"],
        ["img2img", "built-in"],
        ["txt2img", "built-in"],
        ["swatch", "own"],
    ]
    assert listed.splitlines()[-1].endswith("colour*, width")
    assert json.loads(run("ls", "--json").stdout)[-1]["name"] == "swatch"
    assert run("rm", "swatch").exit_code == 0
    gone = run("rm", "swatch")
    assert gone.exit_code == 1 and "template_not_found" in gone.stderr
    file.write_text(json.dumps(swatch(title="")))
    wrong = run("add", str(file))
    assert wrong.exit_code == 1 and "swatch.json cannot be used:\n  title: " in wrong.stderr
    file.write_text("{")
    assert "is not JSON" in run("add", str(file)).stderr


def test_the_client_speaks_of_templates_too(idle: Service) -> None:
    with Client(idle.api.url) as client:
        assert client.add_template(swatch())["source"] == "own"
        assert client.add_template(swatch(title="Another"), replace=True)["title"] == "Another"
        assert client.template("swatch")["workflow"] == workflow()
        assert client.templates()[-1]["name"] == "swatch"
        client.delete_template("swatch")
        with pytest.raises(ApiError) as refused:
            client.template("swatch")
        assert refused.value.code == "template_not_found"
