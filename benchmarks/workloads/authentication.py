"""What it costs to find out who asks: by a key, a token or a session; remembered, and at the first look."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.request import Request, urlopen

from accounts.identity_provider import AUDIENCE, ISSUER, SECRET, IdentityProvider, shared_token
from benchmarks.ground import Backend, free_port
from benchmarks.process import cpu_seconds
from benchmarks.sample import Bench, Sample, percentile, turns
from benchmarks.workloads.requests import BODY, CONNECTIONS, PATHS, wait_for_http
from safelight.accounts import (
    Authenticator,
    Identity,
    NewKey,
    create_key,
    granted,
    hash_of,
    new_secret,
    new_session_secret,
    open_session,
)
from safelight.accounts.token import TokenVerifier
from safelight.db import Database, Tx, new_id

NAME = "authentication"
OWNERS = 10_000
WAYS = ("no accounts", "key", "token HS256", "token RS256")
Ask = Callable[[], Awaitable[Identity]]


def run(bench: Bench) -> Iterator[Sample]:
    provider = IdentityProvider()
    try:
        provider.add("rsa", "RS256")
        provider.add("ec", "ES256")
        for backend in bench.options.backends:
            for number in range(bench.options.rounds):
                for case, times in asyncio.run(_measure(bench, backend, provider)).items():
                    values = {"p50_us": percentile(times, 0.5) * 1e6, "p99_us": percentile(times, 0.99) * 1e6}
                    yield Sample(NAME, f"{case}, {backend}", "safelight", number, values)
            for number, way in turns(WAYS[1:2] if bench.options.quick else WAYS, bench.options.rounds):
                values = _over_http(bench, backend, provider, way)
                yield Sample(NAME, f"GET of a job, {way}, {backend}", "safelight", number, values)
    finally:
        provider.close()


async def _measure(bench: Bench, backend: Backend, provider: IdentityProvider) -> dict[str, list[float]]:
    """One after another, in a process that does nothing else."""
    url = bench.ground.database(backend)
    database = Database(url)
    verifier = TokenVerifier(audience=AUDIENCE, issuer=ISSUER, secret=SECRET, jwks_url=provider.url)
    door = Authenticator(database, tokens=verifier, tiers=["free"], default_tier="free", known_seconds=60)
    try:
        secrets = await database.write(_people, bench.options.size(OWNERS, 20))
        session = new_session_secret()
        ada = Identity("owner-1", granted(["write"]), "free", "token")
        await database.write(open_session, hash_of(session), ada, 3600.0)
        tokens = {
            "token HS256": shared_token(sub="owner-1"),
            "token RS256": provider.token("rsa", sub="owner-1"),
            "token ES256": provider.token("ec", sub="owner-1"),
        }
        asks: dict[str, Callable[[int], Ask]] = {
            "key": lambda n: lambda: door.by_credential(secrets[n * 7919 % len(secrets)]),
            "session": lambda n: lambda: door.by_session(session),
            **{name: lambda n, token=token: lambda: door.by_credential(token) for name, token in tokens.items()},
        }
        times: dict[str, list[float]] = {}
        for name, ask in asks.items():
            await ask(0)()  # connections, published keys, the user's row
            for number in range(bench.options.size(1000, 3)):
                door.forget()
                times.setdefault(f"{name}, first look", []).append(await _timed(ask(number)))
                times.setdefault(f"{name}, remembered", []).append(await _timed(ask(number)))
        return times
    finally:
        await door.close()
        database.close()
        bench.ground.drop(url)


async def _timed(ask: Ask) -> float:
    began = time.perf_counter()
    await ask()
    return time.perf_counter() - began


def _people(tx: Tx, count: int) -> list[str]:
    """A key for each of so many owners; their secrets."""
    secrets = [new_secret() for _ in range(count)]
    for number, secret in enumerate(secrets):
        create_key(tx, NewKey(new_id(), f"owner-{number}", "bench", hash_of(secret), secret[:9], ("write",)))
    return secrets


def _over_http(bench: Bench, backend: Backend, provider: IdentityProvider, way: str) -> dict[str, float]:
    """What a request costs the server that has to know who asks; as in life, one look every five seconds."""
    ground, seconds = bench.ground, 0.3 if bench.options.quick else 3.0
    url, port, path = ground.database(backend), free_port(), PATHS["safelight"]
    accounts: dict[str, str] = {
        "SAFELIGHT_AUTH": "required",
        "SAFELIGHT_JWT_SECRET": SECRET,
        "SAFELIGHT_JWT_ISSUER": ISSUER,
        "SAFELIGHT_JWT_AUDIENCE": AUDIENCE,
        "SAFELIGHT_JWT_JWKS_URL": provider.url,
    }
    credential = {
        "no accounts": lambda: "",
        "key": lambda: asyncio.run(_one_key(url)),
        "token HS256": lambda: shared_token(),
        "token RS256": lambda: provider.token("rsa"),
    }[way]()
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    environment = ground.environment(url, SAFELIGHT_PORT=str(port), **(accounts if credential else {}))
    with ExitStack() as stack:
        stack.callback(ground.drop, url)
        server = stack.enter_context(ground.start("benchmarks.systems.safelight_api", environment=environment))
        load = stack.enter_context(ground.start("benchmarks.load", environment=environment, speaks=True))
        wait_for_http(port, server)
        request = Request(
            f"http://127.0.0.1:{port}{path}", BODY.encode(), {"Content-Type": "application/json", **headers}
        )
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            job: dict[str, Any] = json.load(answer)
        targets = [f"{path}/{job['id']}"]
        ask = {"method": "GET", "paths": targets, "port": port, "body": "", "connections": CONNECTIONS}
        load.ask(**ask, headers=headers, seconds=min(1.0, seconds))
        cpu = cpu_seconds([server.pid])
        done = load.ask(**ask, headers=headers, seconds=seconds)
        cpu = cpu_seconds([server.pid]) - cpu
        if set(done["statuses"]) != {"200"}:
            raise RuntimeError(f"The answers were {done['statuses']}.")
        return {
            "p50_us": percentile(done["times"], 0.5) * 1e6,
            "p99_us": percentile(done["times"], 0.99) * 1e6,
            "requests_per_second": done["answers"] / done["seconds"],
            "server_cpu_us": cpu / len(done["times"]) * 1e6,
        }


async def _one_key(url: str) -> str:
    database = Database(url, readers=1)
    try:
        return (await database.write(_people, 1))[0]
    finally:
        database.close()
