"""Providers that cannot be reached, as real ones are: nobody at the port, no such host, no TLS, a dead proxy."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from workshop import Scripted, Workshop

from safelight.db import Tx, db_now
from safelight.jobs.availability import half_open, provider_states, set_probe
from safelight.providers.base import NotTaken, Provider, ProviderError, ProviderUnreachable
from safelight.providers.comfyui import ComfyUI
from safelight.providers.modelslab import ModelsLab
from safelight.providers.openai_images import OpenAIImages
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import HASTY, QUICK
from stand_ins.generation import asked, collect, order

pytestmark = pytest.mark.anyio


def _try(tx: Tx, job_id: str) -> None:
    """As dispatch does when it is time to try."""
    tx.execute(provider_states.update().values(retry_at=db_now(-1.0)))
    half_open(tx)
    set_probe(tx, "one", job_id)


async def test_a_lone_job_outlives_a_comfyui_that_is_down_for_a_while(workshop: Workshop) -> None:
    with ComfyStandIn() as server:
        workshop.add("one", provider := ComfyUI([server.url], pace=QUICK))
        server.kill()
        job_id = await workshop.submit(max_retries=0)
        for tries in range(1, 5):
            job = await workshop.attempt(job_id)
            assert (job.status, job.retry_count, job.attempt) == ("pending", 0, tries)
            state = (await workshop.states())["one"]
            assert state.unavailability is not None and state.unavailability.code == "provider_unreachable"
            await workshop.world.database.write(_try, job_id)
        server.revive()
        job = await workshop.attempt(job_id)
        assert (job.status, job.retry_count, server.submits(job_id)) == ("completed", 0, 1)
        assert (await workshop.states())["one"].unreachable_since is None
        await provider.close()


async def test_a_comfyui_that_takes_the_probe_lets_the_others_in_at_once(workshop: Workshop) -> None:
    with ComfyStandIn() as server:
        workshop.add("one", provider := ComfyUI([server.url], pace=QUICK))
        server.kill()
        first, second = await workshop.submit(), await workshop.submit()
        await workshop.attempt(first)
        server.revive()
        server.step_seconds = 30.0
        await workshop.world.database.write(_try, first)
        probe = asyncio.create_task(workshop.attempt(first))
        async with asyncio.timeout(30):
            while (await workshop.states())["one"].breaker != "closed":  # noqa: ASYNC110 - rows tell nobody
                await asyncio.sleep(0.01)
        assert not probe.done()
        server.step_seconds = 0.0
        workshop.runner.attempts[first].interrupt("cancel")
        await probe
        assert (await workshop.attempt(second)).status == "completed"
        await provider.close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, so that nobody else listens there either."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
async def no_tls() -> AsyncIterator[int]:
    """A server that speaks no TLS, nor leads anywhere as a proxy."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def _providers(url: str) -> list[Provider]:
    return [
        OpenAIImages("k", base_url=url),
        ModelsLab(key="k", base_url=url),
        ComfyUI([url], pace=HASTY),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("way", ["refused", "name", "tls", "proxy"])
async def test_every_way_of_not_being_reached_is_told_as_that(
    number: int, way: str, closed_port: int, no_tls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = {
        "refused": f"http://127.0.0.1:{closed_port}",
        "name": "http://nowhere.invalid",
        "tls": f"https://127.0.0.1:{no_tls}",
        "proxy": "https://nowhere.invalid",
    }[way]
    if way == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{no_tls}")
    provider = _providers(url)[number]
    parameters = asked(checkpoint_model="tiny.safetensors") if isinstance(provider, ComfyUI) else asked()
    with pytest.raises(ProviderUnreachable):
        await collect(provider.generate(order(provider.check(parameters))))
    await provider.close()


async def test_what_broke_off_after_it_was_sent_is_no_matter_of_reach(no_tls: int) -> None:
    provider = OpenAIImages("k", base_url=f"http://127.0.0.1:{no_tls}")
    with pytest.raises(ProviderError) as raised:
        await collect(provider.generate(order(provider.check(asked()))))
    assert not isinstance(raised.value, NotTaken)
    await provider.close()


async def test_what_may_be_paid_is_kept_whatever_a_plug_in_says(workshop: Workshop) -> None:
    provider = Scripted(ProviderUnreachable(), ProviderUnreachable(), accepts=True)
    workshop.add("one", provider)
    job_id = await workshop.submit(max_retries=0)
    for _ in range(2):
        job = await workshop.attempt(job_id)
        assert (job.status, job.provider_job_id, job.retry_count) == ("pending", "remote-1", 0)
        await workshop.world.database.write(_try, job_id)
    assert (await workshop.attempt(job_id)).status == "completed"
    assert provider.asked == ["generate", "resume remote-1", "resume remote-1"]
