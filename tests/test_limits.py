"""Token buckets: counted together in Redis, alone without it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from safelight.limits import Limiter, Policy
from safelight.valkey import Valkey
from servers import ValkeyServer

pytestmark = pytest.mark.anyio
POLICY = Policy("submit", 5, 60)


@asynccontextmanager
async def limiter_at(url: str, *, wait: bool = True) -> AsyncGenerator[Limiter]:
    client = Valkey(url)
    await client.start()
    if wait:
        await client.wait_connected(5)
    yield Limiter(client, "test")
    await client.close()


async def test_processes_count_together(valkey: ValkeyServer) -> None:
    async with limiter_at(valkey.url) as one, limiter_at(valkey.url) as other:
        verdicts = [await (one if number % 2 else other).take(POLICY, "ada") for number in range(6)]
        assert [verdict.is_allowed for verdict in verdicts] == [True] * 5 + [False]
        assert (await one.take(POLICY, "bob")).is_allowed
        refused = verdicts[-1]
        assert 10 <= refused.wait_seconds <= 12
        assert refused.headers == {
            "RateLimit-Policy": '"submit";q=5;w=60',
            "RateLimit": f'"submit";r=0;t={refused.wait_seconds}',
        }


async def test_a_bucket_fills_again(valkey: ValkeyServer) -> None:
    policy = Policy("quick", 2, 4)  # one every two seconds
    async with limiter_at(valkey.url) as limiter:
        for _ in range(2):
            assert (await limiter.take(policy, "ada")).is_allowed
        assert not (await limiter.take(policy, "ada")).is_allowed
        await asyncio.sleep(2.1)
        assert (await limiter.take(policy, "ada")).is_allowed
        assert not (await limiter.take(policy, "ada")).is_allowed


async def test_a_refusal_costs_nothing(valkey: ValkeyServer) -> None:
    policy = Policy("quick", 1, 1)
    async with limiter_at(valkey.url) as limiter:
        assert (await limiter.take(policy, "ada")).is_allowed
        for _ in range(20):
            await asyncio.sleep(0.04)
            await limiter.take(policy, "ada")
        await asyncio.sleep(0.3)
        assert (await limiter.take(policy, "ada")).is_allowed


async def test_buckets_are_forgotten_once_full(valkey: ValkeyServer) -> None:
    async with limiter_at(valkey.url) as limiter:
        await limiter.take(POLICY, "ada")
        seconds = await limiter._valkey.send("TTL", "test:limit:submit:ada")
        assert 0 < seconds <= 61


async def test_without_redis_each_process_counts_for_itself() -> None:
    async with limiter_at("unix:///nowhere/at/all.sock", wait=False) as limiter:
        policy = Policy("quick", 2, 4)
        assert [(await limiter.take(policy, "ada")).is_allowed for _ in range(3)] == [True, True, False]
        assert (await limiter.take(policy, "bob")).is_allowed
        await asyncio.sleep(2.1)
        assert (await limiter.take(policy, "ada")).is_allowed


async def test_a_frozen_redis_makes_nobody_wait(valkey_server: Callable[..., ValkeyServer]) -> None:
    server = valkey_server()
    async with limiter_at(server.url) as limiter:
        await limiter.take(POLICY, "ada")
        server.freeze()
        began = asyncio.get_running_loop().time()
        assert (await limiter.take(POLICY, "ada")).is_allowed
        assert asyncio.get_running_loop().time() - began < 1
        server.thaw()
