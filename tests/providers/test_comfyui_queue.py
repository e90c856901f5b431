"""The ComfyUI provider and the servers' queues: places, whose fault a death is, what is refused before it is queued."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from patience import PATIENCE_SECONDS
from safelight.providers.base import (
    InvalidParameters,
    JobDropped,
    Output,
    Progress,
    ProviderCrashed,
    Update,
)
from safelight.providers.comfyui import ComfyUI
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import Make, asks, open_providers, order, run, workflow

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[Make]:
    async with open_providers() as make:
        yield make


@pytest.fixture(params=["0.33.0", "0.3.64"])
def server(request: pytest.FixtureRequest) -> Iterator[ComfyStandIn]:
    with ComfyStandIn(request.param) as made:
        yield made


class Job:
    """One that runs beside the test."""

    def __init__(self, comfy: ComfyUI, **fields: Any) -> None:
        self.said: list[Progress] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(comfy, fields))

    async def _follow(self, comfy: ComfyUI, fields: dict[str, Any]) -> list[Update]:
        updates: list[Update] = []
        async for update in comfy.generate(order(**fields)):
            updates.append(update)
            if isinstance(update, Progress):
                self.said.append(update)
                self._news.set()
        return updates

    async def until_waiting(self, message: str = "") -> None:
        """It stands in the queue of its server, and says this."""
        await self._until(lambda told: told.stage == "queued" and message in told.message)

    async def until_at_work(self) -> None:
        """Its server works on it."""
        await self._until(lambda told: told.stage not in ("waiting", "queued"))

    async def _until(self, is_so: Callable[[Progress], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not any(is_so(told) for told in self.said):
                self._news.clear()
                await self._news.wait()


async def test_a_job_in_the_queue_of_its_server_says_at_which_place(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    first = Job(provider(server))
    await first.until_at_work()
    waiting: list[Job] = []
    for place in (1, 2, 3):  # each by another process, or they would wait for a place
        waiting.append(Job(provider(server)))
        await waiting[-1].until_waiting(f"Waiting at the ComfyUI server, place {place}")
    server.hold = None
    for job in (first, *waiting):
        assert any(isinstance(update, Output) for update in await job.task)
    places = [each.message.rpartition(", place ")[2] for each in waiting[-1].said if ", place " in each.message]
    assert places[0] == "3" and places == sorted(places, reverse=True)


async def test_only_the_job_it_worked_on_may_be_why_a_server_died(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server)
    at_work = Job(comfy)
    await at_work.until_at_work()
    behind = Job(comfy)
    await behind.until_waiting()
    server.kill()
    with pytest.raises(ProviderCrashed) as crashed:
        await at_work.task
    assert crashed.value.details == {"server": server.url}
    with pytest.raises(JobDropped):
        await behind.task


async def test_a_server_that_is_back_at_once_died_all_the_same(server: ComfyStandIn, provider: Make) -> None:
    server.hold = "KSampler"
    comfy = provider(server)
    at_work = Job(comfy)
    await at_work.until_at_work()
    behind = Job(comfy)
    await behind.until_waiting()
    server.restart()
    with pytest.raises(ProviderCrashed, match="restarted"):
        await at_work.task
    with pytest.raises(JobDropped, match="restarted"):
        await behind.task


async def test_the_checkpoint_that_was_used_stands_with_the_result(server: ComfyStandIn, provider: Make) -> None:
    def used(updates: list[Update]) -> list[Any]:
        return [update.details.get("checkpoints") for update in updates if isinstance(update, Output)]

    server.set_choices("CheckpointLoaderSimple", "ckpt_name", ["first.safetensors", "tiny.safetensors"])
    assert used(await run(provider(server))) == [["tiny.safetensors"]]
    assert used(await run(provider(server), checkpoint_model=None)) == [["first.safetensors"]]
    default = provider(server, default_checkpoint="tiny.safetensors")
    assert used(await run(default, checkpoint_model=None)) == [["tiny.safetensors"]]
    assert used(await run(provider(server), workflow=workflow())) == [None]  # it loads none
    asked = order(checkpoint_model=None)
    left = provider(server).generate(asked)
    async for update in left:
        if isinstance(update, Progress) and update.percent and update.percent > 50:
            break
    await left.aclose()
    again = provider(server)
    adopted = [update async for update in again.resume(asked, f"{server.url}#{server.ledger[-1].prompt_id}")]
    assert used(adopted) == [["first.safetensors"]]


# --- before anything is queued ----------------------------------------------------------------------------------------

TEXT = {"input": {"required": {"source": ["*", {}]}}, "output": ["STRING"], "output_node": True}
LATENT = {
    "input": {"required": {"samples": ["LATENT"], "filename_prefix": ["STRING", {}]}},
    "output": [],
    "output_node": True,
}
SOCKET = {
    "input": {"required": {"images": ["IMAGE"]}},
    "output": [],
    "output_node": True,
    "python_module": "custom_nodes.websocket_image_save",
}


@pytest.mark.parametrize("kind", ["PreviewAny", "SaveLatent", "SaveImageWebsocket"])
async def test_a_workflow_that_leaves_nothing_to_store_is_refused(provider: Make, kind: str) -> None:
    with ComfyStandIn() as server:
        server.nodes |= {"PreviewAny": TEXT, "SaveLatent": LATENT, "SaveImageWebsocket": SOCKET}
        (name, *_), comfy = server.nodes[kind]["input"]["required"], provider(server)
        ending = {"class_type": kind, "inputs": {name: ["1", 0], "filename_prefix": "x"}}
        graph = workflow(**{"2": ending})
        if kind == "SaveLatent":
            graph["1"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
        with pytest.raises(InvalidParameters, match=f"{kind} saves no picture, video or sound") as refused:
            await comfy.verify(comfy.check(asks(workflow=graph)))
        assert refused.value.field == "workflow"
        with pytest.raises(InvalidParameters, match="saves no picture"):  # nor does the attempt send it
            await run(comfy, workflow=graph)
        assert server.ledger == []
        both = {**graph, "3": {"class_type": "EmptyImage", "inputs": workflow()["1"]["inputs"]}}
        both["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}}
        await comfy.verify(comfy.check(asks(workflow=both)))


async def test_a_node_of_others_may_save_what_it_likes(provider: Make) -> None:
    with ComfyStandIn() as server:
        server.nodes["Exotic"] = TEXT | {"python_module": "custom_nodes.exotic"}
        graph = workflow(**{"2": {"class_type": "Exotic", "inputs": {"source": ["1", 0]}}})
        await provider(server).verify(asks(workflow=graph))


async def test_everything_that_is_wrong_is_told_at_once(provider: Make) -> None:
    graph: dict[str, Any] = workflow(
        **{
            "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "missing.safetensors"}},
            "4": {"class_type": "FancySampler", "inputs": {"model": ["3", 0]}},
            "5": {"class_type": "FancySaver", "inputs": {"images": ["4", 0]}},
        }
    )
    with ComfyStandIn() as server:
        comfy = provider(server)
        with pytest.raises(InvalidParameters) as refused:
            await comfy.verify(comfy.check(asks(workflow=graph)))
    found = {each["field"]: each["message"] for each in refused.value.details["problems"]}
    assert list(found) == ["workflow.4.class_type", "workflow.5.class_type", "workflow.3.inputs.ckpt_name"]
    assert "no node type 'FancySampler' (node 4)" in found["workflow.4.class_type"]
    assert "missing.safetensors" in found["workflow.3.inputs.ckpt_name"]


def test_everything_that_is_wrong_with_parameters_is_told_at_once() -> None:
    comfy = ComfyUI(["http://127.0.0.1:9"])
    with pytest.raises(InvalidParameters) as refused:
        comfy.check(asks(inputs={"a": 1}, provider_options={"b": 2, "vae": 3}))
    fields = [each["field"] for each in refused.value.details["problems"]]
    assert fields == ["inputs", "provider_options.b", "provider_options.vae"]
