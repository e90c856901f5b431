"""Graphs, templates and progress of ComfyUI without a server, and the command that checks templates."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from safelight.cli.templates import templates
from safelight.providers.base import InvalidParameters, Lora
from safelight.providers.comfyui import ComfyUI, InvalidTemplate, builtin_templates, check_template, shared_templates
from safelight.providers.comfyui.catalogue import Catalogue
from safelight.providers.comfyui.graph import plan_parameters, plan_workflow
from safelight.providers.comfyui.progress import Meter, Tracker
from safelight.providers.comfyui.server import Ended, File, end_of
from stand_ins.comfyui import NODES, ComfyStandIn, recorded, recorded_frames
from stand_ins.comfyui_lab import asks, open_providers, workflow

COMFY = ComfyUI(["http://127.0.0.1:9"], default_checkpoint="tiny.safetensors")
IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
POSTER: Mapping[str, Any] = {
    "name": "poster",
    "title": "A poster",
    "workflow": workflow(**{"5": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}}),
    "inputs": {
        "width": {"node": "1", "input": "width", "type": "integer", "minimum": 16, "maximum": 512, "default": 64},
        "colour": {"node": "1", "input": "color", "type": "integer", "required": True, "description": "As a number"},
        "mood": {"node": "2", "input": "filename_prefix", "type": "choice", "choices": ["warm", "cold"]},
        "picture": {"node": "5", "input": "image", "type": "image"},
    },
}


def poster(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(POSTER)), **changes}


# --- what is refused without asking any server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "field", "said"),
    [
        ({"nodes": [], "links": [], "version": 0.4}, "workflow", "Workflow > Export (API)"),
        ({"prompt": workflow(), "client_id": "x"}, "workflow", "workflow is the object in it under `prompt`"),
        ({"input": {"workflow": workflow(), "images": []}}, "workflow", "the object in it under `input.workflow`"),
        ({"input": {"prompt": workflow()}}, "workflow", "the object in it under `input.prompt`"),
        ({"workflow": workflow(), "extra_data": {}}, "workflow", "the object in it under `workflow`"),
        ({"input": {"workflow": {"nodes": [], "links": []}}}, "workflow", "Workflow > Export (API)"),
        ({}, "workflow", "1 to 5000 nodes"),
        ({"1": 5}, "workflow.1", "must be an object"),
        ({"1": {"inputs": {}}}, "workflow.1.class_type", "must name its class_type"),
        ({"1": {"class_type": "X"}}, "workflow.1.inputs", "must have inputs"),
        (workflow(**{"2": {"class_type": "X", "inputs": {"images": ["99", 0]}}}), "workflow.2.inputs.images", "'99'"),
        (
            {
                "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
                "3": {"class_type": "KSampler", "inputs": {"latent_image": ["5", 0]}},
                "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0]}},
            },
            "workflow.8",
            "8 (VAEDecode) -> 3 (KSampler) -> 5 (VAEEncode) -> 8 (VAEDecode)",
        ),
    ],
)
def test_a_workflow_that_cannot_run(graph: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidParameters, match=re.escape(said)) as refused:
        COMFY.check(asks(workflow=graph))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"width": 513}, "width", "multiple of 8 from 16 to 8192; 512 is near"),
        ({"height": 9000}, "height", "8192 is near"),
        ({"batch_size": 65}, "batch_size", "1 to 64"),
        ({"seed": -1}, "seed", "0 to"),
        ({"model": "a", "checkpoint_model": "b"}, "model", "differ"),
        ({"input_images": ("a", "b")}, "input_images", "One picture"),
        ({"sampler_params": {"stepps": 4}}, "sampler_params.stepps", "it has steps, cfg"),
        ({"sampler_params": {"steps": 0}}, "sampler_params.steps", "whole number from 1 to 10000"),
        ({"sampler_params": {"steps": True}}, "sampler_params.steps", "whole number"),
        ({"sampler_params": {"cfg": 101}}, "sampler_params.cfg", "from 0 to 100"),
        ({"sampler_params": {"denoise": 1.5}}, "sampler_params.denoise", "from 0 to 1"),
        ({"sampler_params": {"sampler": 5}}, "sampler_params.sampler", "a name, like euler"),
        ({"provider_options": {"mock": {}}}, "provider_options.mock", "ComfyUI takes vae"),
        ({"template": "txt2img", "workflow": workflow()}, "workflow", "exclude each other"),
        ({"inputs": {"x": 1}}, "inputs", "belong to a template"),
        ({"workflow": workflow(), "width": 64}, "width", "no effect beside a workflow"),
        ({"workflow": workflow(), "input_images": ("a",)}, "input_images", "0 LoadImage nodes for 1"),
        ({"template": "txt2imh"}, "template", "Did you mean txt2img"),
        ({"template": "nothing-like-it"}, "template", "Everybody may name hires, img2img, txt2img"),
        ({"template": "txt2img", "inputs": {"stepz": 4}}, "inputs.stepz", "Did you mean steps"),
        ({"template": "txt2img", "inputs": {"steps": 4.5}}, "inputs.steps", "a whole number"),
        ({"template": "txt2img", "inputs": {"steps": 500}}, "inputs.steps", "at least 1 and at most 150"),
        ({"template": "txt2img", "sampler_params": {"steps": 500}}, "sampler_params.steps", "at most 150"),
        ({"template": "txt2img", "width": 32}, "width", "at least 64"),
        ({"template": "img2img", "input_images": ("a",), "width": 64}, "width", "has no input width"),
        ({"template": "img2img"}, "input_images", "needs 1 pictures"),
        ({"template": "img2img", "input_images": ("a", "b")}, "input_images", "takes 1 pictures at most"),
        ({"template": "img2img", "input_images": ("a",), "inputs": {"image": "a"}}, "inputs.image", "in input_images"),
        ({"template": "txt2img", "lora_models": (Lora("ink"),)}, "lora_models", "no input lora_models"),
    ],
)
def test_parameters_that_cannot_be_meant(fields: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidParameters, match=re.escape(said)) as refused:
        COMFY.check(asks(**fields))
    assert refused.value.field == field
    assert refused.value.details["problems"] if field != "template" else True


def test_loras_follow_one_another() -> None:
    plan = plan_parameters(asks(lora_models=(Lora("ink", 0.5, 0.4), Lora("oil"))), 1)
    assert plan.graph["20"]["inputs"] == {
        "lora_name": "ink", "strength_model": 0.5, "strength_clip": 0.4, "model": ["4", 0], "clip": ["4", 1]
    }  # fmt: skip
    assert plan.graph["21"]["inputs"]["model"] == ["20", 0]
    assert plan.graph["3"]["inputs"]["model"] == ["21", 0]
    assert plan.graph["6"]["inputs"]["clip"] == ["21", 1]
    assert plan.field_of("21", "lora_name") == "lora_models.1.name"


def test_an_input_picture_keeps_its_size_unless_another_is_asked_for() -> None:
    plan = plan_parameters(asks(input_images=("a",), batch_size=3), 1)
    types = {node["class_type"] for node in plan.graph.values()}
    assert {"LoadImage", "VAEEncode", "RepeatLatentBatch"} <= types
    assert "ImageScale" not in types
    assert plan.graph["3"]["inputs"]["denoise"] == 0.6
    scaled = plan_parameters(asks(input_images=("a",), width=128), 1)
    assert scaled.graph["11"]["inputs"] | {"image": 0} == {
        "image": 0, "upscale_method": "lanczos", "width": 128, "height": 0, "crop": "disabled"
    }  # fmt: skip


# --- templates --------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_from_inputs_and_from_the_request() -> None:
    template = check_template(poster())
    plan = template.plan(asks(template="poster", inputs={"colour": 7, "mood": "cold"}, width=128), 1)
    assert plan.graph["1"]["inputs"] == {"width": 128, "height": 64, "batch_size": 1, "color": 7}
    assert plan.graph["2"]["inputs"]["filename_prefix"] == "cold"
    assert plan.field_of("1", "width") == "width"
    assert plan.field_of("1", "color") == "inputs.colour"
    assert plan.field_of("1", "height") == "template"
    assert not plan.pictures
    with_picture = template.plan(asks(template="poster", inputs={"colour": 7}, input_images=("a",)), 1)
    assert with_picture.pictures == (("5", "image"),)
    assert with_picture.graph["1"]["inputs"]["width"] == 64


def test_a_template_says_what_it_needs() -> None:
    comfy = ComfyUI(["http://127.0.0.1:9"], templates={"poster": check_template(poster())})
    with pytest.raises(InvalidParameters, match=re.escape("needs colour (As a number)")) as refused:
        comfy.check(asks(template="poster"))
    assert refused.value.field == "inputs.colour"
    with pytest.raises(InvalidParameters, match=r"one of warm, cold, not 'could'\. Did you mean cold"):
        comfy.check(asks(template="poster", inputs={"colour": 1, "mood": "could"}))


def test_the_templates_of_the_house_are_well() -> None:
    assert set(builtin_templates()) == {"txt2img", "img2img", "hires"}
    for template in builtin_templates().values():
        assert template.description
        assert all(spec.description for spec in template.inputs.values())


def test_templates_of_the_installation_stand_beside_the_built_in_ones(tmp_path: Path) -> None:
    (tmp_path / "poster.json").write_text(json.dumps(poster()))
    shared = shared_templates(tmp_path)
    assert list(shared) == ["hires", "img2img", "txt2img", "poster"]
    comfy = ComfyUI(["http://127.0.0.1:9"], templates=shared)
    comfy.check(asks(template="poster", inputs={"colour": 1}))
    (tmp_path / "broken.json").write_text(json.dumps(poster(title="")))
    with pytest.raises(ValueError, match=r"broken\.json cannot be used: title"):
        shared_templates(tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        shared_templates(tmp_path / "elsewhere")


def test_a_checked_order_bears_what_its_template_said() -> None:
    taken = COMFY.check(asks(template="txt2img"))
    assert taken.template_definition == builtin_templates()["txt2img"].as_json()
    assert COMFY.check(taken) == taken
    other = ComfyUI(["http://127.0.0.1:9"], default_checkpoint="tiny.safetensors", templates={})
    assert other.check(taken) == taken  # whatever became of the template since


def test_a_template_of_the_callers_own_needs_no_name_here() -> None:
    mine = asks(template="mine", template_definition=poster(name="mine"), inputs={"colour": 7})
    assert COMFY.check(mine) == mine
    with pytest.raises(InvalidParameters, match="The template mine cannot be used: title") as refused:
        COMFY.check(replace(mine, template_definition=poster(title="")))
    assert refused.value.field == "template"


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"name": "No Spaces"}, "name", "should match pattern"),
        ({"titel": "x"}, "titel", "There is no such field. Did you mean title?"),
        ({"workflow": {"nodes": [], "links": []}}, "workflow", "Export (API)"),
        ({"inputs": {"a": {"node": "7", "input": "x", "type": "string"}}}, "inputs.a.node", "it has 1 (EmptyImage)"),
        ({"inputs": {"a": {"node": "1", "input": "x", "type": "string"}}}, "inputs.a.input", "it has width, height"),
        ({"inputs": {"a": {"node": "2", "input": "images", "type": "string"}}}, "inputs.a.input", "linked to another"),
        ({"inputs": {"a": {"node": "1", "input": "width", "type": "int"}}}, "inputs.a.type", "'string', 'integer'"),
        (
            {"inputs": {"a": {"node": "1", "input": "width", "type": "integer", "default": 5, "minimum": 16}}},
            "inputs.a.default",
            "The default must be at least 16, not 5",
        ),
        (
            {"inputs": {"a": {"node": "1", "input": "width", "type": "string", "minimum": 16}}},
            "inputs.a",
            "are for numbers",
        ),
        (
            {"inputs": {"a": {"node": "1", "input": "width", "type": "integer", "minimum": 9, "maximum": 8}}},
            "inputs.a.minimum",
            "above the maximum",
        ),
        (
            {"inputs": {n: {"node": "1", "input": "width", "type": "integer"} for n in ("a", "b")}},
            "inputs.b",
            "the same input of the same node as a",
        ),
    ],
)
def test_a_template_that_cannot_be_used(changes: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidTemplate) as refused:
        check_template(poster(**changes))
    (problem,) = refused.value.problems
    assert problem.field == field
    assert said in problem.message


# --- what a server has, read leniently -------------------------------------------------------------------------------


def test_custom_nodes_are_not_judged_by_their_choices() -> None:
    info = {
        "Odd": {
            "input": {"required": {"mode": [["a", "b"]], "size": ["INT", {"max": 4}], "must": ["STRING"]}},
            "output": ["IMAGE"],
            "python_module": "custom_nodes.odd",
        },
        "SaveImage": NODES["SaveImage"],
    }
    graph = workflow(**{"1": {"class_type": "Odd", "inputs": {"mode": "zzz", "size": 9, "must": "x"}}})
    plan = plan_workflow(asks(workflow=graph))
    assert not Catalogue.read(info).problems(plan)
    del plan.graph["1"]["inputs"]["must"]
    (problem,) = Catalogue.read(info).problems(plan)
    assert problem.field == "workflow.1.inputs.must"
    info["Odd"]["python_module"] = "comfy_extras.odd"
    assert len(Catalogue.read(info).problems(plan)) == 3


def test_strange_node_types_are_read() -> None:
    strange = {
        "A": {"input": None, "output": None},
        "B": {"input": {"required": [], "optional": {"x": "*", "y": [], "z": [["p", 1, True], None]}}},
        "C": {"input": {"required": {"in": ["COMFY_AUTOGROW_V3", {}]}}, "output": [["p", "q"]], "output_node": True},
        "D": 5,
    }
    catalogue = Catalogue.read(strange)
    graph = {"1": {"class_type": "C", "inputs": {"in.0": ["2", 0]}}, "2": {"class_type": "B", "inputs": {"z": True}}}
    assert not catalogue.problems(plan_workflow(asks(workflow=graph)))
    assert catalogue.nodes["C"].outputs == ("COMBO",)


def test_links_must_fit() -> None:
    catalogue = Catalogue.read(NODES)
    graph = workflow(**{"3": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["1", 4]}}})
    graph["2"]["inputs"]["images"] = ["3", 0]
    problems = catalogue.problems(plan_workflow(asks(workflow=graph)))
    assert [problem.field for problem in problems] == ["workflow.3.inputs.samples", "workflow.3.inputs.vae"]
    assert "takes LATENT, but the node 1 makes IMAGE" in problems[0].message
    assert "links to output 4 of the node 1, which has 1" in problems[1].message


def test_what_some_server_has_is_near() -> None:
    first, second = (json.loads(json.dumps(NODES)) for _ in range(2))
    second["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["big.safetensors"]
    both = Catalogue.union([Catalogue.read(first), Catalogue.read(second)])
    assert both.names("checkpoints") == ["tiny.safetensors", "big.safetensors"]
    (problem,) = both.problems(plan_parameters(asks(checkpoint_model="bigg"), 1))
    assert "Did you mean big.safetensors" in problem.message


@pytest.mark.anyio
async def test_infinity_is_no_reason_to_give_a_server_up() -> None:
    with ComfyStandIn() as server:
        server.nodes["EmptyImage"]["input"]["required"]["width"][1]["max"] = float("inf")
        async with open_providers() as make:
            assert (await make(server).models())["checkpoints"] == ["tiny.safetensors"]


# --- the command ------------------------------------------------------------------------------------------------------


def check(folder: Path, template: Mapping[str, Any] | str, *options: str) -> Result:
    file = folder / "template.json"
    file.write_text(template if isinstance(template, str) else json.dumps(template))
    return CliRunner().invoke(templates, ["check", str(file), *options])


def test_the_command_tells_what_a_template_takes(tmp_path: Path) -> None:
    told = check(tmp_path, poster())
    assert told.exit_code == 0
    assert "poster: A poster\n  width (integer, from 16 to 512, default 64)\n" in told.stdout
    assert "  colour (integer, required): As a number\n" in told.stdout


def test_the_command_tells_what_is_wrong(tmp_path: Path) -> None:
    told = check(tmp_path, poster(inputs={"a": {"node": "7", "input": "x", "type": "string"}}))
    assert told.exit_code == 1
    assert "inputs.a.node: The workflow has no node '7'; it has 1 (EmptyImage)" in told.stderr
    assert "is not JSON" in check(tmp_path, "{").stderr


def test_the_command_asks_a_server(tmp_path: Path) -> None:
    with ComfyStandIn(without=["LatentUpscaleBy"]) as server:
        assert check(tmp_path, poster(), "--server", server.url).exit_code == 0
        hires = builtin_templates()["hires"].model_dump(mode="json")
        told = check(tmp_path, hires, "--server", server.url)
        assert told.exit_code == 1
        assert "workflow.15.class_type: The ComfyUI server has no node type 'LatentUpscaleBy'" in told.stderr
        server.kill()
        assert check(tmp_path, poster(), "--server", server.url).exit_code == 5
    assert check(tmp_path, poster(), "--server", "here").exit_code == 2


# --- progress, from recorded sockets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ws_messages.jsonl", "v0.3.64/ws_messages.jsonl", "ws_messages_metadata_preview.jsonl"]
)
def test_recorded_progress_rises_to_the_end(name: str) -> None:
    tracker, meter = Tracker(recorded("history.json")["body"].popitem()[1]["prompt"][2]), Meter()
    told = []
    for frame in recorded_frames(name):
        tracker.take(frame["type"], frame["data"])
        told.append(meter.read(tracker.progress))
    percents = [progress.percent for progress in told]
    assert percents == sorted(percents)
    assert percents[-1] == 97
    assert "KSampler, step 3 of 4" in {progress.message for progress in told}
    assert {"sampling", "saving"} <= {progress.stage for progress in told}


@pytest.mark.parametrize("how", ["execution_error", "interrupted", "reconnect"])
def test_recorded_progress_of_runs_that_end_otherwise(how: str) -> None:
    tracker, meter = Tracker({}), Meter()  # a graph that is not known does no harm
    percents: list[int | None] = []
    for frame in recorded_frames(f"ws_messages_{how}.jsonl"):
        tracker.take(frame["type"], frame["data"])
        percents.append(meter.read(tracker.progress).percent)
    assert percents == sorted(percents, key=lambda percent: percent or 0)
    assert not tracker.is_executing


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("history.json", Ended((File("t_00001_.png", "", "output"),))),
        ("v0.3.64/history.json", Ended((File("t_00001_.png", "", "output"),))),
        ("job_completed.json", Ended((File("i2i_00001_.png", "", "output"),))),
        ("history_interrupted.json", Ended(is_interrupted=True)),
        ("job_interrupted.json", Ended(is_interrupted=True)),
        ("history_execution_error.json", "LoadImage"),
        ("job_execution_error.json", "LoadImage"),
    ],
)
def test_recorded_ends_are_told_apart(name: str, end: Ended | str) -> None:
    body = recorded(name)["body"]
    entry = body if name.startswith("job") else body.popitem()[1]
    read = end_of(entry["outputs"], entry["execution_status" if name.startswith("job") else "status"])
    if isinstance(end, Ended):
        assert read == end
    else:
        assert read.error is not None
        assert read.error["node_type"] == end
        assert "cannot identify image file" in read.error["exception_message"]


def test_cached_nodes_are_done_from_the_start() -> None:
    graph = recorded("history.json")["body"].popitem()[1]["prompt"][2]
    tracker = Tracker(graph)
    for frame in recorded_frames("ws_messages_cached_resubmit.jsonl"):
        tracker.take(frame["type"], frame["data"])
    assert tracker.progress.percent == 97


def test_a_node_that_turns_out_to_be_long_weighs_more() -> None:
    tracker, meter = Tracker(workflow()), Meter()
    tracker.take("executing", {"node": "1"})
    percents = []
    for value in range(11):
        tracker.take("progress", {"node": "1", "value": value, "max": 10})
        percents.append(meter.read(tracker.progress).percent)
    assert percents == sorted(percents)
    assert percents[-1] > 80


def test_the_template_of_the_how_to_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/comfyui.md").read_text()
    shown = re.search(r"<!-- tested -->\n```json\n(.*?)```\n```sh\n\$ (.*?)\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    with ComfyStandIn() as server:
        told = check(tmp_path, shown[1], "--server", server.url)
    assert told.exit_code == 0
    assert told.output.replace(server.url, "http://127.0.0.1:8188") == shown[3]
