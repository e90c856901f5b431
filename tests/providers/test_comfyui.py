"""The ComfyUI provider as it should be: the same suite against the stand-in, old and new, and against a real server."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patience import PATIENCE_SECONDS
from safelight.providers.base import InputImage, InvalidParameters, Output, Parameters, Preview, Progress, Reserved
from safelight.providers.comfyui import ComfyUI, Pace, server
from stand_ins.comfyui import RECORDED, ComfyStandIn
from stand_ins.comfyui_lab import (
    QUICK,
    Make,
    asks,
    open_providers,
    order,
    percents,
    previews,
    remote_ids,
    run,
    stages,
    until,
    workflow,
)
from stand_ins.generation import collect, outputs

pytestmark = pytest.mark.anyio
REAL = "SAFELIGHT_TEST_COMFYUI_URL"


@pytest.fixture
async def provider() -> AsyncIterator[Make]:
    async with open_providers() as make:
        yield make


@pytest.fixture
def stand_in() -> Iterator[ComfyStandIn]:
    with ComfyStandIn() as server:
        yield server


@pytest.fixture(params=["0.33.0", "0.3.64", pytest.param("real", marks=pytest.mark.comfyui)])
async def comfy(request: pytest.FixtureRequest, provider: Make) -> AsyncIterator[ComfyUI]:
    """A provider with one server: the stand-in in two versions, or the real one."""
    with ExitStack() as stack:
        if request.param == "real":
            if not os.environ.get(REAL):
                pytest.skip(f"{REAL} names no server")
            made = ComfyUI([os.environ[REAL]], pace=Pace(verify=10))
        else:
            made = provider(stack.enter_context(ComfyStandIn(request.param)))
        yield made
        await made.close()


async def checkpoint_of(comfy: ComfyUI) -> str:
    return (await comfy.models())["checkpoints"][0]


def picture(width: int = 64, height: int = 64) -> InputImage:
    file = BytesIO()
    Image.new("RGB", (width, height), (10, 200, 90)).save(file, "PNG")
    return InputImage(file.getvalue(), "image/png")


# --- the core suite ---------------------------------------------------------------------------------------------------


async def test_a_picture_with_progress_that_never_falls(comfy: ComfyUI) -> None:
    asked = order(checkpoint_model=await checkpoint_of(comfy), width=64, height=64, seed=7)
    await comfy.verify(comfy.check(asked.parameters))
    updates = await collect(comfy.generate(asked), 60)
    (remote_id,) = remote_ids(updates)
    assert remote_id.startswith("http://")
    (output,) = outputs(updates)
    assert (output.content_type, output.seed) == ("image/png", 7)
    with Image.open(BytesIO(output.read())) as image:
        assert image.size == (64, 64)
    assert percents(updates) == sorted(percents(updates))
    assert percents(updates)[-1] == 98
    assert any(isinstance(update, Progress) and "step 2 of 4" in update.message for update in updates)
    assert {"sampling", "downloading"} <= set(stages(updates))


async def test_a_run_that_was_left_alone_is_adopted(comfy: ComfyUI) -> None:
    asked = order(checkpoint_model=await checkpoint_of(comfy), width=64, height=64, sampler_params={"steps": 20})
    updates = comfy.generate(asked)
    remote_id = ""
    async for update in updates:
        if isinstance(update, Reserved):
            remote_id = update.remote_id
        if isinstance(update, Progress) and update.stage == "sampling":
            break
    await updates.aclose()
    resumed = await collect(comfy.resume(asked, remote_id), 60)
    assert len(outputs(resumed)) == 1
    assert remote_ids(resumed) == [remote_id]
    again = await collect(comfy.resume(asked, remote_id), 60)  # ended long ago: the files are fetched, nothing is drawn
    assert outputs(again) == outputs(resumed)


async def test_a_running_job_is_interrupted(comfy: ComfyUI) -> None:
    asked = order(
        checkpoint_model=await checkpoint_of(comfy), width=64, height=64, sampler_params={"steps": 2000}, seed=1
    )
    remote_id = ""
    with pytest.raises(Exception, match="cancelled"):
        async for update in comfy.generate(asked):
            if isinstance(update, Reserved):
                remote_id = update.remote_id
            if isinstance(update, Progress) and "step" in update.message:
                await comfy.cancel(remote_id)
    await comfy.cancel(remote_id)  # over: no error
    await comfy.cancel(remote_id.rpartition("#")[0] + "#3f2b0c52-93a1-4bf4-a2a5-0d51a3a5a1a5")


async def test_image_to_image_sends_the_picture(comfy: ComfyUI) -> None:
    checkpoint = await checkpoint_of(comfy)
    asked = order(checkpoint_model=checkpoint, images=(picture(),), input_images=("artifact",), batch_size=2)
    await comfy.verify(comfy.check(asked.parameters))
    assert outputs(await collect(comfy.generate(asked), 60))


async def test_the_callers_own_workflow(comfy: ComfyUI) -> None:
    asked = asks(workflow=workflow())
    await comfy.verify(comfy.check(asked))
    (output,) = outputs(await collect(comfy.generate(order(workflow=workflow())), 60))
    assert output.content_type == "image/png"


async def test_a_template(comfy: ComfyUI) -> None:
    checkpoint = await checkpoint_of(comfy)
    fields: dict[str, Any] = {
        "template": "hires",
        "inputs": {"width": 64, "height": 64, "steps": 2, "second_steps": 2},
        "checkpoint_model": checkpoint,
    }
    await comfy.verify(comfy.check(asks(**fields)))
    assert outputs(await collect(comfy.generate(order(**fields)), 60))


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"checkpoint_model": "tinny.safetensors"}, "checkpoint_model", "checkpoint"),
        ({"model": "tinny", "checkpoint_model": None}, "model", "checkpoint"),
        ({"sampler_params": {"sampler": "eular"}}, "sampler_params.sampler", "Did you mean euler"),
        ({"sampler_params": {"scheduler": "caras"}}, "sampler_params.scheduler", "karras"),
        (
            {"workflow": workflow(**{"1": {"class_type": "EmptyImagge", "inputs": {}}})},
            "workflow.1.class_type",
            "EmptyImage",
        ),
        (
            {"workflow": workflow(**{"2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}})},
            "workflow.2.inputs.images",
            "needs its input",
        ),
    ],
)
async def test_what_no_server_has_is_refused_with_what_is_near(
    comfy: ComfyUI, fields: dict[str, Any], field: str, said: str
) -> None:
    checkpoint = {} if "workflow" in fields else {"checkpoint_model": await checkpoint_of(comfy)}
    parameters = comfy.check(asks(**{**checkpoint, **fields}))
    with pytest.raises(InvalidParameters, match=said) as refused:
        await comfy.verify(parameters)
    assert refused.value.field == field
    with pytest.raises(InvalidParameters):  # the attempt would refuse it, too
        await run(comfy, **{**checkpoint, **fields})


async def test_models_and_health(comfy: ComfyUI) -> None:
    models = await comfy.models()
    assert models["checkpoints"]
    assert "euler" in models["samplers"]
    assert "karras" in models["schedulers"]
    assert set(models) == {"checkpoints", "loras", "samplers", "schedulers", "vaes"}
    assert list((await comfy.models_by_server()).values()) == [models]
    assert await comfy.health() is None


# --- against the stand-in alone ---------------------------------------------------------------------------------------


async def test_every_parameter_stands_in_the_workflow(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in)
    fields: dict[str, Any] = {
        "negative_prompt": "text",
        "lora_models": (),
        "width": 128,
        "height": 96,
        "batch_size": 2,
        "seed": 5,
        "sampler_params": {"steps": 3, "cfg": 4.5, "sampler": "dpmpp_2m", "scheduler": "karras", "denoise": 0.9},
        "provider_options": {"vae": "fine.safetensors"},
    }
    asked = order(job_id="job-7", **fields)
    await collect(comfy.generate(asked))
    (submit,) = stand_in.ledger
    nodes = {node["class_type"]: node["inputs"] for node in submit.graph.values()}
    sampler = {name: value for name, value in nodes["KSampler"].items() if not isinstance(value, list)}
    assert sampler == {
        "seed": 5, "steps": 3, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 0.9
    }  # fmt: skip
    assert nodes["EmptyLatentImage"] == {"width": 128, "height": 96, "batch_size": 2}
    assert nodes["VAELoader"] == {"vae_name": "fine.safetensors"}
    assert nodes["SaveImage"]["filename_prefix"].startswith("safelight/job-7-")
    assert submit.job_id == "job-7"


async def test_headers_go_with_requests_and_sockets(stand_in: ComfyStandIn, provider: Make) -> None:
    stand_in.required_header = ("authorization", "Bearer key")
    comfy = provider(stand_in, headers={"Authorization": "Bearer key"})
    assert outputs(await run(comfy))
    assert {headers["authorization"] for headers in stand_in.headers + stand_in.socket_headers} == {"Bearer key"}
    stranger = provider(stand_in)
    assert "SAFELIGHT_COMFYUI_HEADERS" in (await stranger.health() or "")


async def test_a_server_below_a_path_and_credentials_that_stay_secret(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in.url.replace("//", "//me:secret@") + "/api/")
    (remote_id,) = remote_ids(await run(comfy))
    assert remote_id.startswith(f"{stand_in.url}/api#")
    for headers in (stand_in.headers[-1], stand_in.socket_headers[-1]):
        assert headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("url", ["127.0.0.1:8188", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="A ComfyUI server is a URL like"):
        ComfyUI([url])


async def test_the_first_checkpoint_serves_when_none_is_named(stand_in: ComfyStandIn, provider: Make) -> None:
    await run(provider(stand_in), checkpoint_model=None)
    assert stand_in.ledger[0].graph["4"]["inputs"]["ckpt_name"] == "tiny.safetensors"
    chosen = provider(stand_in, default_checkpoint="tiny.safetensors")
    assert chosen.check(asks(checkpoint_model=None)).checkpoint_model == "tiny.safetensors"


async def test_a_model_that_was_just_added_is_not_refused(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in)
    await comfy.verify(asks())
    stand_in.set_choices("CheckpointLoaderSimple", "ckpt_name", ["tiny.safetensors", "new.safetensors"])
    wanted = asks(checkpoint_model="new.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safelight.providers.comfyui.pool.FRESH_SECONDS", 0.0)
        await comfy.verify(wanted)


async def test_a_server_that_cannot_be_asked_is_no_reason_to_refuse(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in.url, "http://127.0.0.1:9")
    await comfy.verify(asks(checkpoint_model="elsewhere.safetensors"))
    known = provider(stand_in)
    await known.verify(asks())
    stand_in.kill()
    with pytest.raises(InvalidParameters, match="elsewhere"):  # it said so while it was there
        await known.verify(asks(checkpoint_model="elsewhere.safetensors"))
    stand_in.revive()
    stand_in.hang()
    slow = provider(stand_in)
    await slow.verify(asks(checkpoint_model="elsewhere.safetensors"))


async def test_old_node_types_serve_while_new_ones_are_fetched(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in, pace=replace(QUICK, catalogue=0.0, answer=600.0, verify=600.0))
    await comfy.verify(asks())
    stand_in.hang()
    for _ in range(3):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await comfy.verify(asks())
    await until(lambda: stand_in.seen.count("GET /object_info") == 2)


async def test_previews_are_those_of_the_job(stand_in: ComfyStandIn, provider: Make) -> None:
    stand_in.foreign_previews = True
    shown = previews(await run(provider(stand_in)))
    assert shown
    assert all(preview.content_type == "image/jpeg" for preview in shown)
    assert not any(preview.data.endswith(b"foreign") for preview in shown)


async def test_previews_without_a_job_id_are_taken_while_it_runs(stand_in: ComfyStandIn, provider: Make) -> None:
    stand_in.previews = "plain"
    assert previews(await run(provider(stand_in)))


async def test_two_jobs_are_inside_and_the_rest_wait_in_order(provider: Make) -> None:
    with ComfyStandIn(step_seconds=0.02) as server:
        comfy = provider(server)
        await comfy.models()  # the server is known: nobody is overtaken while it is asked
        ended: list[int] = []
        waited: set[int] = set()

        async def one(number: int) -> None:
            async for update in comfy.generate(order(job_id=f"job-{number}")):
                if isinstance(update, Progress) and update.stage == "waiting":
                    waited.add(number)
                    assert "Waiting for a place" in update.message
            ended.append(number)

        jobs: list[asyncio.Task[None]] = []
        for number in range(5):
            jobs.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0.005)
        await asyncio.gather(*jobs)
        assert waited == {2, 3, 4}
        assert ended == [0, 1, 2, 3, 4]
        assert [entry.job_id for entry in server.ledger] == [f"job-{number}" for number in range(5)]


async def test_a_waiting_job_that_is_given_up_leaves_its_place(stand_in: ComfyStandIn, provider: Make) -> None:
    stand_in.hold = "KSampler"
    comfy = provider(stand_in)
    jobs = [asyncio.create_task(run(comfy)) for _ in range(4)]
    await until(lambda: len(stand_in.ledger) == 2)
    jobs[2].cancel()
    stand_in.hold = None
    await asyncio.gather(*jobs, return_exceptions=True)
    assert len(stand_in.ledger) == 3
    assert outputs(await run(comfy))


async def test_the_least_loaded_server_that_has_the_model_is_chosen(provider: Make) -> None:
    with (
        ComfyStandIn() as busy,
        ComfyStandIn() as idle,
        ComfyStandIn(checkpoints=["big.safetensors"]) as other,
    ):
        busy.foreign_jobs = 4
        comfy = provider(busy, idle, other)
        for _ in range(3):
            await run(comfy)
        await run(comfy, checkpoint_model="big.safetensors")
        assert [len(server.ledger) for server in (busy, idle, other)] == [0, 3, 1]
        with pytest.raises(InvalidParameters, match=r"big\.safetensors"):
            await comfy.verify(asks(checkpoint_model="bigg.safetensors"))


async def test_a_wake_up_makes_it_look_at_once(stand_in: ComfyStandIn, provider: Make) -> None:
    stand_in.silent_sockets = True
    comfy = provider(stand_in, pace=Pace(silence=2 * PATIENCE_SECONDS, reopen=2 * PATIENCE_SECONDS))
    asked = order()
    done = asyncio.create_task(collect(comfy.generate(asked)))
    await until(lambda: bool(stand_in.files))
    await asyncio.sleep(0.02)
    asked.woken.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert outputs(await done)
    assert not asked.woken.is_set()


async def test_outputs_of_any_node(stand_in: ComfyStandIn, provider: Make) -> None:
    comfy = provider(stand_in)
    image = ["1", 0]
    mixed = workflow(
        **{
            "3": {"class_type": "SaveVideo", "inputs": {"images": image}},
            "4": {"class_type": "PreviewImage", "inputs": {"images": image}},
            "5": {"class_type": "SaveText", "inputs": {"images": image}},
            "6": {"class_type": "VHS_VideoCombine", "inputs": {"images": image}},
            "7": {"class_type": "SaveWEBM", "inputs": {"images": image}},
            "8": {"class_type": "SaveAudio", "inputs": {"audio": image}},
            "9": {"class_type": "SaveAudioMP3", "inputs": {"audio": image}},
        }
    )
    made = outputs(await run(comfy, workflow=mixed))
    types = ["image/png", "video/mp4", "video/mp4", "video/webm", "audio/flac", "audio/mpeg"]
    assert [output.content_type for output in made] == types
    only_shown = workflow(**{"2": {"class_type": "PreviewImage", "inputs": {"images": image}}})
    assert [output.content_type for output in outputs(await run(comfy, workflow=only_shown))] == ["image/png"]


async def test_a_large_result_comes_as_a_file_that_never_stays(
    stand_in: ComfyStandIn, provider: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HELD_BYTES", 1000)
    stand_in.half_files = 1
    video = workflow(**{"2": {"class_type": "SaveVideo", "inputs": {"images": ["1", 0]}}})
    async with aclosing(provider(stand_in).generate(order(workflow=video))) as updates:
        (output,) = [update async for update in updates if isinstance(update, Output) and kept(update)]
    assert isinstance(output.data, Path)
    assert not output.data.parent.exists()


def kept(output: Output) -> bool:
    """Looks at a file as the runner does: while the generator waits."""
    assert isinstance(output.data, Path)
    assert output.data.read_bytes() == (RECORDED / "video.mp4").read_bytes()
    return True


async def test_pictures_fill_the_load_image_nodes_in_order(stand_in: ComfyStandIn, provider: Make) -> None:
    own = workflow(
        **{
            "10": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
            "9": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "x"}},
        }
    )
    first, second = picture(64, 64), picture(32, 32)
    asked = order(workflow=own, images=(first, second), input_images=("a", "b"))
    await collect(provider(stand_in).generate(asked))
    graph = stand_in.ledger[0].graph
    assert stand_in.uploads[graph["9"]["inputs"]["image"]] == first.data
    assert stand_in.uploads[graph["10"]["inputs"]["image"]] == second.data


async def test_nothing_is_asked_before_the_first_use() -> None:
    comfy = ComfyUI(["http://127.0.0.1:9"])
    assert comfy.capabilities.limits is not None
    assert comfy.capabilities.limits.soft_seconds == 1500
    assert comfy.check(Parameters(kind="image.generate", prompt="x")).prompt == "x"
    await comfy.close()


async def test_a_preview_never_waits_for_a_slow_reader(stand_in: ComfyStandIn, provider: Make) -> None:
    """A reader that pauses gets the latest news, not all of it."""
    updates = provider(stand_in).generate(order(sampler_params={"steps": 30}))
    seen = 0
    async for update in updates:
        if isinstance(update, Preview):
            seen += 1
            await asyncio.sleep(0.05)
    assert 0 < seen < 15
