"""Which server takes a job, and who waits for a place: at most two jobs of ours inside each."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from safelight.providers.base import ProviderUnavailable, ProviderUnreachable
from safelight.providers.comfyui.catalogue import Catalogue
from safelight.providers.comfyui.graph import Fault, Plan, refuse
from safelight.providers.comfyui.server import Pace, Server, ServerUnreachable
from safelight.providers.comfyui.template import Template

PLACES = 2  # one that runs, and one that is there when it ends
FRESH_SECONDS = 2.0  # how old a catalogue may be that refuses a job


class Place:
    """A place in a server, or the wait for one. Whoever asked releases it in the end."""

    def __init__(self, pool: "Pool", plan: Plan, avoid: frozenset[Server]) -> None:
        self.server: Server | None = None
        self.able: Sequence[Server] = ()
        self._pool = pool
        self._plan = plan
        self._avoid = avoid
        self._given = asyncio.Event()
        self._troubled_since: float | None = None

    @property
    def ahead(self) -> int:
        """How many of this process wait before it."""
        return self._pool.waiting.index(self)

    async def look(self) -> None:
        """Look which servers can run it now, and take a place if there is one. Raises `ProviderError`."""
        self.able = await self._pool.able(self._plan, self._avoid)
        self._pool.serve()

    async def wait(self, pace: Pace) -> None:
        """Wait for a place for a while, then look at the servers again. An outage is borne for as long as a hung one.

        Raises `ProviderError`.
        """
        try:
            async with asyncio.timeout(pace.waiting):
                await self._given.wait()
        except TimeoutError:
            if self.server is not None:
                return
            try:
                await self.look()
                self._troubled_since = None
            except ProviderUnavailable:
                self._troubled_since = self._troubled_since or time.monotonic()
                if time.monotonic() - self._troubled_since >= pace.hung:
                    raise

    def take(self, server: Server) -> None:
        """It is given this place."""
        server.inside += 1
        self.server = server
        self._given.set()

    def release(self) -> None:
        """Give the place, or the wait, up."""
        if self.server is not None:
            self.server.inside -= 1
            self.server = None
            self._pool.serve()
        elif self in self._pool.waiting:
            self._pool.waiting.remove(self)


class Pool:
    """The servers of one provider in this process."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self.waiting: list[Place] = []

    async def ask(self, plan: Plan, avoid: Iterable[Server]) -> Place:
        """Ask for a place, elsewhere than in `avoid` if possible. Raises `ProviderError` if no server can run it."""
        place = Place(self, plan, frozenset(avoid))
        self.waiting.append(place)
        try:
            await place.look()
        except BaseException:
            place.release()
            raise
        return place

    def hold(self, server: Server) -> Place:
        """The place of a job that is in the server already."""
        place = Place(self, Plan({}, ""), frozenset())
        place.take(server)
        return place

    def serve(self) -> None:
        """Give free places to those who wait, in their order, the least loaded server first."""
        for place in list(self.waiting):
            free = [server for server in place.able if server.inside < PLACES and not server.is_down]
            if free:
                self.waiting.remove(place)
                place.take(min(free, key=lambda server: server.load))

    async def alive(self) -> list[Server]:
        """The servers that answer. Those given up a moment ago are asked only if there is no other."""
        candidates = [server for server in self.servers if not server.is_down] or self.servers
        found = await asyncio.gather(*(server.probe() for server in candidates), return_exceptions=True)
        return [
            server for server, error in zip(candidates, found, strict=True) if not isinstance(error, ServerUnreachable)
        ]

    async def able(self, plan: Plan, avoid: frozenset[Server]) -> Sequence[Server]:
        """The servers that answer and have every node and model of the plan."""
        alive = await self.alive()
        if not alive:
            raise ProviderUnreachable(self.trouble())
        able: list[Server] = []
        refusals = 0
        for server, found in zip(
            alive, await asyncio.gather(*(problems_of(server, plan) for server in alive)), strict=True
        ):
            if found:
                refusals += 1
            elif found is not None:
                able.append(server)
        if not able and refusals == len(self.servers):
            refuse_everywhere(self.servers, plan)
        if not able:
            raise ProviderUnavailable(f"No ComfyUI server that answers can run this. {self.trouble()}")
        return [server for server in able if server not in avoid] or able

    def trouble(self) -> str:
        """Which servers are down, and why."""
        down = [f"{server.name}: {server.trouble}" for server in self.servers if server.is_down]
        return f"No answer from {'; '.join(down)}." if down else "No ComfyUI server answers."


async def problems_on(url: str, template: Template, headers: Mapping[str, str]) -> list[Fault]:
    """Why a server cannot run a template, dotted below the template. Raises `ServerUnreachable`, `ValueError`."""
    server = Server(url, headers, Pace())
    try:
        return (await server.catalogue()).problems(template.bare_plan())
    finally:
        await server.close()


def refuse_everywhere(servers: Sequence[Server], plan: Plan) -> None:
    """Raise `InvalidParameters` for a plan that no server can run: for what none has, else for what the best lacks."""
    known = [server.known for server in servers if server.known is not None]
    if len(known) > 1:
        refuse(Catalogue.union(known).problems(plan))
    fewest = min((catalogue.problems(plan) for catalogue in known), key=len, default=[])
    refuse(fewest if len(known) < 2 else [replace(p, message=f"No server has everything. {p.message}") for p in fewest])


async def problems_of(server: Server, plan: Plan) -> list[Fault] | None:
    """Why a server cannot run a plan, by a catalogue young enough to say so; None if it does not tell."""
    try:
        catalogue: Catalogue = await server.catalogue()
        problems = await asyncio.to_thread(catalogue.problems, plan)
        if problems:  # perhaps somebody has just added what is missing
            fresh = await server.catalogue(max_age=FRESH_SECONDS)
            problems = await asyncio.to_thread(fresh.problems, plan)
    except ServerUnreachable as error:
        server.mark_down(error.reason)
        return None
    return problems
