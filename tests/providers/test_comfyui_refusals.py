"""What a ComfyUI server refuses at submit, and what stands before it: told as what it is."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from safelight.providers.base import (
    InvalidParameters,
    ProviderError,
)
from stand_ins.comfyui import ComfyStandIn, recorded
from stand_ins.comfyui_lab import (
    Make,
    asks,
    open_providers,
    run,
    until,
)
from stand_ins.generation import outputs

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[Make]:
    async with open_providers() as make:
        yield make


@pytest.mark.parametrize(
    ("name", "field", "said"),
    [
        ("error_value_not_in_list.json", "checkpoint_model", "nope.safetensors"),
        ("error_too_big.json", "sampler_params.steps", "Value 99999999 bigger than max of 10000"),
        ("error_missing_input.json", "seed", "Required input is missing: seed"),
        ("error_type_mismatch.json", "", "mismatch input_type"),
        ("error_cycle.json", "", "8 (VAEDecode) -> 3 (KSampler)"),
        ("error_unknown_node.json", "", "no node type 'NoSuchNode' (node 3)"),
        ("v0.3.64/error_unknown_node.json", "", "node NoSuchNode does not exist"),
        ("error_no_outputs.json", "", "Prompt has no outputs"),
        ("error_dangling_link.json", "", "KeyError: '99'"),
        ("error_prompt_is_null.json", "", "cannot make sense"),
        ("error_partial_ok_one_output_invalid.json", "", "Required input is missing: images"),
    ],
)
async def test_what_the_server_refuses_becomes_a_clear_error(name: str, field: str, said: str, provider: Make) -> None:
    with ComfyStandIn() as server:
        server.answers = [recorded(name)]
        comfy = provider(server)
        with pytest.raises(InvalidParameters) as refused:
            await run(comfy)
        assert said in refused.value.message
        assert refused.value.field == field
        await until(lambda: not server.url or "GET /view" not in server.seen)


async def test_an_error_in_few_words_is_passed_on(provider: Make) -> None:
    with ComfyStandIn() as server:
        body = {"error": "no prompt", "node_errors": []}
        server.answers = [{"status": 400, "body": body, "content_type": "application/json"}]
        with pytest.raises(InvalidParameters, match="no prompt"):
            await run(provider(server))


async def test_a_half_accepted_workflow_is_taken_back(provider: Make) -> None:
    with ComfyStandIn() as server:
        server.hold = "KSampler"
        comfy = provider(server)
        running = asyncio.create_task(run(comfy))
        await until(lambda: len(server.ledger) == 1)
        server.answers = [recorded("error_partial_ok_one_output_invalid.json")]
        with pytest.raises(InvalidParameters):
            await run(comfy)
        taken_back = server.ledger[1].prompt_id
        assert f"POST /api/jobs/{taken_back}/cancel" in server.seen
        server.hold = None
        assert outputs(await running)


@pytest.mark.parametrize("status", [502, 503])
async def test_a_failing_proxy_is_an_outage_not_bad_input(status: int, provider: Make) -> None:
    with ComfyStandIn() as server:
        down = {"status": status, "body": "<html>", "content_type": "text/html"}
        server.answers = [down, down]
        with pytest.raises(ProviderError) as failed:
            await run(provider(server))
        assert failed.value.retryable
        assert asks().prompt  # the order itself is well
