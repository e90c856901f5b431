"""ComfyUI as a provider: checks, finds a server, follows the run to its files, and knows what to do when it fails.

**The remote id** is `{server}#{prompt id}`. The prompt id is ours: it is made of the job, the attempt and the number of
the run within it. It is `Reserved`, and so written down, *before* the workflow is sent. What a crash leaves:

| the process dies | the next attempt |
|---|---|
| before `Reserved` is written | generates; the server never heard of the job |
| after that, before the workflow is sent | resumes, finds the id nowhere, twice in a row, and sends it |
| while it is sent, or before the reply was read | resumes; the id is in the queue or it is not; as above or below |
| while it waits or runs | resumes and follows it, its socket included |
| after it ended, before the files are stored | resumes and fetches them; nothing is drawn twice |

Within an attempt a lost reply is met the same way: look twice before sending again. An attempt that gave a server up
(dead, hung, cut off) may leave a run there; later attempts know the ids of earlier ones and look for them on every
server that answers before they send anything. What remains: a server that is still cut off while the job runs
elsewhere, and a process that was frozen between writing and sending and wakes up after its job was given to another.
Both cost a second run and no money, and neither can overwrite a result.

`Submitting` is never yielded: sending costs nothing, and whether it happened can be found out.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import structlog

from safelight.providers.base import (
    Accepted,
    BadOutput,
    Capabilities,
    Generation,
    InvalidParameters,
    JobLost,
    NotTaken,
    Parameters,
    Progress,
    Provider,
    ProviderUnavailable,
    ProviderUnreachable,
    Reserved,
    Update,
)
from safelight.providers.comfyui.catalogue import MODEL_INPUTS
from safelight.providers.comfyui.follower import follow, is_there
from safelight.providers.comfyui.graph import (
    CAPABILITIES,
    TAKES,
    Fault,
    Graph,
    Plan,
    check_parameters,
    plan_parameters,
    plan_workflow,
    refuse,
)
from safelight.providers.comfyui.listener import Listener
from safelight.providers.comfyui.outcome import (
    OutOfMemory,
    Run,
    fetch,
    judge,
    node_error,
)
from safelight.providers.comfyui.pool import Place, Pool, problems_of, refuse_everywhere
from safelight.providers.comfyui.progress import Meter
from safelight.providers.comfyui.prompt_state import Queued, Running
from safelight.providers.comfyui.server import Pace, Server, ServerUnreachable
from safelight.providers.comfyui.template import InvalidTemplate, Template, builtin_templates, check_template
from safelight.suggestion import did_you_mean, listed

log = structlog.get_logger()

OPTIONS = ("vae",)
EARLIER_ATTEMPTS, EARLIER_RUNS = 5, 2
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}


def prompt_id_of(job_id: str, attempt: int, number: int) -> str:
    """The prompt id of the n-th run of an attempt: a UUID that looks random and can be made again."""
    digest = hashlib.sha256(f"{job_id}/{attempt}/{number}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


class ComfyUI(Provider):
    """A pool of ComfyUI servers. Nothing is connected before the first use.

    `headers` go with every request and socket. `templates` are those that everybody may name, by default the built-in
    ones.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        headers: Mapping[str, str] | None = None,
        default_checkpoint: str | None = None,
        templates: Mapping[str, Template] | None = None,
        pace: Pace | None = None,
    ) -> None:
        if not urls:
            raise ValueError("ComfyUI needs at least one server, like http://127.0.0.1:8188.")
        self._pace = pace or Pace()
        servers = {server.name: server for server in (Server(url, headers or {}, self._pace) for url in urls)}
        self._servers = servers
        self._pool = Pool(list(servers.values()))
        self._default_checkpoint = default_checkpoint
        self._templates = builtin_templates() if templates is None else templates
        self._latest: tuple[bytes, Template] | None = None  # of the callers' own, as it was written
        self._followed: dict[str, Run] = {}

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    # --- before it runs ----------------------------------------------------------------------------------------------

    def check(self, parameters: Parameters) -> Parameters:
        """Check the shape of it, without any server. The default checkpoint is filled in."""
        problems = [Fault(name, f"ComfyUI takes no {name}.") for name in parameters.others(TAKES)]
        if parameters.template is not None and parameters.workflow is not None:
            problems.append(Fault("workflow", "template and workflow exclude each other; give one of them."))
        if parameters.inputs and parameters.template is None and parameters.workflow is None:
            problems.append(Fault("inputs", "inputs belong to a template; name it in the field template."))
        for name, value in parameters.provider_options.items():
            if name not in OPTIONS or not isinstance(value, str):
                message = f"ComfyUI takes {', '.join(OPTIONS)} (names) as provider_options, not {name[:60]!r}."
                problems.append(Fault(f"provider_options.{name[:60]}", message))
        refuse(problems)
        if parameters.workflow is not None:
            plan_workflow(parameters)
        elif parameters.template is not None:
            template = self._template(parameters)
            refuse(template.check(parameters, self._default_checkpoint))
            if parameters.template_definition is None:
                return replace(parameters, template_definition=template.as_json())
        else:
            refuse(check_parameters(parameters))
            if not parameters.checkpoint_model and not parameters.model and self._default_checkpoint:
                return replace(parameters, checkpoint_model=self._default_checkpoint)
        return parameters

    async def verify(self, parameters: Parameters) -> None:
        """Check nodes, models and ranges against every server. One that does not answer might have them all."""
        plan = await asyncio.to_thread(self._plan, parameters, 0)
        servers = self._pool.servers
        asking = {server: asyncio.create_task(problems_of(server, plan)) for server in servers if not server.is_down}
        if asking:
            await asyncio.wait(asking.values(), timeout=self._pace.verify)
        for server in servers:
            task = asking.get(server)
            found = task.result() if task is not None and task.done() else None
            if task is not None:
                task.cancel()
            if found is None and server.known is not None:
                found = await asyncio.to_thread(server.known.problems, plan)
            if not found:  # it can, or nobody knows
                return
        await asyncio.to_thread(refuse_everywhere, servers, plan)

    def _template(self, parameters: Parameters) -> Template:
        name = parameters.template or ""
        if parameters.template_definition is not None:
            try:
                return self._checked(parameters.template_definition)
            except InvalidTemplate as error:  # it was well when it was taken, by the rules of then
                raise InvalidParameters(f"The template {name} cannot be used: {error}", field="template") from None
        template = self._templates.get(name)
        if template is not None:
            return template
        shared = f" Everybody may name {listed(self._templates)}, and you those that you added."
        meant = did_you_mean(name, self._templates, most=2) or shared
        raise InvalidParameters(f"There is no template {name[:60]!r}.{meant}", field="template")

    def _checked(self, definition: Mapping[str, Any]) -> Template:
        """A template of the caller's own. The jobs of a batch name the same: it is checked once."""
        written = orjson.dumps(dict(definition))
        latest = self._latest
        if latest is None or latest[0] != written:
            self._latest = latest = written, check_template(definition)
        return latest[1]

    def _plan(self, parameters: Parameters, seed: int) -> Plan:
        if parameters.workflow is not None:
            return plan_workflow(parameters)
        if parameters.template is not None:
            return self._template(parameters).plan(parameters, seed, self._default_checkpoint)
        return plan_parameters(parameters, seed)

    def _plan_of(self, generation: Generation) -> Plan:
        parameters = self.check(generation.parameters)
        seed = parameters.seed
        if seed is None:  # a different one for every job, the same for every attempt
            seed = int.from_bytes(hashlib.sha256(generation.job_id.encode()).digest()[:4], "big")
        return self._plan(parameters, seed)

    def takes_seed(self, parameters: Parameters) -> bool:
        """A template with an input for one does; a workflow of the caller's own runs with the seeds that it bears."""
        if parameters.template is not None:
            return "seed" in self._template(parameters).inputs
        return parameters.workflow is None

    # --- the run -----------------------------------------------------------------------------------------------------

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        """Run it on the least loaded server that can, unless an earlier attempt left it running somewhere."""
        plan = self._plan_of(generation)
        run = await self._left_behind(generation, plan)
        if run is not None:
            yield Accepted(run.remote_id)
        async with aclosing(self._carry_out(generation, plan, run)) as updates:
            async for update in updates:
                yield update

    async def resume(self, generation: Generation, remote_id: str) -> AsyncGenerator[Update]:
        """Follow a run of an earlier attempt, or begin it if its server never received it, or was restarted since.

        Raises `JobLost` if the server is gone.
        """
        name, _, prompt_id = remote_id.rpartition("#")
        server = self._servers.get(name)
        if server is None:
            raise JobLost(f"{name or remote_id} is not among the ComfyUI servers any more.")
        plan = self._plan_of(generation)
        run = Run(server, prompt_id, plan)
        is_known = await is_there(run)
        if is_known:
            yield Accepted(remote_id)
        else:
            log.warning("comfyui.not_received", server=name, prompt_id=prompt_id)
        async with aclosing(self._carry_out(generation, plan, run if is_known else None)) as updates:
            async for update in updates:
                yield update

    async def _left_behind(self, generation: Generation, plan: Plan) -> Run | None:
        """A run of an earlier attempt that is alive or well ended on a server that answers."""
        earlier = range(generation.attempt - 1, 0, -1)
        attempts = dict.fromkeys((*earlier[:EARLIER_ATTEMPTS], *earlier[-EARLIER_ATTEMPTS:]))  # many reached nobody
        ids = [prompt_id_of(generation.job_id, n, run) for n in attempts for run in reversed(range(EARLIER_RUNS))]
        for server in await self._pool.alive() if ids else ():
            for prompt_id in ids:
                try:
                    state = await server.look(prompt_id)
                except ServerUnreachable:
                    break
                if isinstance(state, Queued | Running) or (state is not None and state.files):
                    return Run(server, prompt_id, plan)
        return None

    async def _carry_out(self, generation: Generation, plan: Plan, run: Run | None) -> AsyncGenerator[Update]:
        """Run after run, until one ends well: memory that ran out, or files that are gone, are worth one more each."""
        meter = Meter()
        avoid: set[Server] = set()
        excuses = {"memory", "files"}
        number = 0
        while True:
            followed = ""
            place = self._pool.hold(run.server) if run else await self._pool.ask(plan, avoid)
            try:
                if run is None:
                    while place.server is None:
                        yield meter.read(_waiting(place))
                        await place.wait(self._pace)
                    run = Run(place.server, prompt_id_of(generation.job_id, generation.attempt, number), plan)
                    number += 1
                    try:
                        if generation.images:
                            yield meter.read(Progress(0, "uploading", "Sending the pictures"))
                        graph = await self._prepare(run, generation)
                        yield Reserved(run.remote_id)
                    except ServerUnreachable as error:
                        self._move(run.server, error, avoid)
                        run = None
                        continue
                else:
                    graph = None
                followed = run.remote_id
                self._followed[followed] = run
                async with Listener(run.server, run.prompt_id, run.plan.graph, generation.woken) as listener:
                    is_adopted = graph is None
                    if graph is not None and not await self._send(run, graph, generation, avoid):
                        run = None
                        continue
                    graph = None  # it may be large, and the wait long
                    async with aclosing(follow(run, listener, looks_at_once=is_adopted)) as updates:
                        async for update in updates:
                            yield meter.read(update) if isinstance(update, Progress) else update
                place.release()  # fetching and storing are no work for the server
                end = judge(run)
                if end.error is not None:  # memory: all other errors were raised
                    log.warning("comfyui.out_of_memory", server=run.server.name, prompt_id=run.prompt_id)
                    await self._free(run.server, unload_models=True)
                    if "memory" not in excuses:
                        raise node_error(OutOfMemory, run, end.error)
                    excuses.discard("memory")
                    avoid.add(run.server)
                    yield meter.read(Progress(None, "waiting", "Out of memory; trying once more"))
                    run = None
                    continue
                yield meter.read(Progress(98, "downloading", "Fetching the result"))
                with TemporaryDirectory(prefix="safelight-") as folder:
                    outputs = await fetch(run, end, Path(folder))
                    if outputs is not None:
                        for output in outputs:
                            yield output
                        return
                if "files" not in excuses:
                    raise BadOutput("The ComfyUI server names a result it does not have, again and again.")
                excuses.discard("files")
                log.warning("comfyui.result_gone", server=run.server.name, prompt_id=run.prompt_id)
                await self._free(run.server, unload_models=False)
                yield meter.read(Progress(None, "waiting", "The result is gone from the server; making it anew"))
                run = None
            finally:
                place.release()
                self._followed.pop(followed, None)

    def _move(self, server: Server, error: ServerUnreachable, avoid: set[Server]) -> None:
        """Nothing is on this server yet: give it up, and go elsewhere if there is an elsewhere."""
        server.mark_down(error.reason)
        if server in avoid or len(self._servers) == 1:
            kind = NotTaken if error.was_sent else ProviderUnreachable
            raise kind(f"{server.name}: {error.reason}.") from None
        avoid.add(server)

    async def _prepare(self, run: Run, generation: Generation) -> Graph:
        """The graph as it is sent, with the pictures on the server."""
        names: list[str] = []
        for image in generation.images[: len(run.plan.pictures)]:
            name = f"{hashlib.sha256(image.data).hexdigest()[:32]}.{EXTENSIONS.get(image.content_type, 'png')}"
            names.append(await run.server.upload(image.data, image.content_type, name))
        checkpoint = None
        if run.plan.any_checkpoint is not None:
            checkpoint = next(iter((await run.server.catalogue()).names("checkpoints")), None)
        return run.plan.filled(names, checkpoint, f"safelight/{generation.job_id}-{run.prompt_id[:8]}")

    async def _send(self, run: Run, graph: Graph, generation: Generation, avoid: set[Server]) -> bool:
        """Submit, and look before submitting again if the reply is lost. False: it is not there, try elsewhere."""
        extra = {"safelight": {"job_id": generation.job_id, "attempt": generation.attempt}}
        for _ in range(2):
            try:
                await run.server.submit(run.plan, graph, run.prompt_id, f"safelight-{run.prompt_id}", extra)
                return True
            except ServerUnreachable as error:
                if not error.was_sent:
                    self._move(run.server, error, avoid)
                    return False
                log.warning("comfyui.reply_lost", server=run.server.name, prompt_id=run.prompt_id, reason=error.reason)
            if await is_there(run):
                return True
        raise NotTaken(f"{run.server.name} breaks the connection off whenever a workflow is sent.")

    async def _free(self, server: Server, *, unload_models: bool) -> None:
        try:
            await server.free(unload_models=unload_models)
        except ServerUnreachable:
            return
        await asyncio.sleep(self._pace.settle)  # it acts between jobs; one sent at once would still meet the cache

    # --- beside the run ----------------------------------------------------------------------------------------------

    async def cancel(self, remote_id: str) -> None:
        """Take it out of its server's queue, or interrupt it there. Raises `ProviderUnavailable` if nobody answers."""
        name, _, prompt_id = remote_id.rpartition("#")
        server = self._servers.get(name)
        if server is None:
            return
        if remote_id in self._followed:
            self._followed[remote_id].is_cancelled = True
        try:
            await server.cancel(prompt_id)
        except ServerUnreachable as error:
            raise ProviderUnavailable(f"{name}: {error.reason}.") from None

    async def health(self) -> str | None:
        """None if at least one server answers."""
        return None if await self._pool.alive() else self._pool.trouble()

    async def models(self) -> Mapping[str, Sequence[str]]:
        """Checkpoints, LoRAs, samplers, schedulers and VAEs over all servers that answer.

        Raises `ProviderUnavailable` if none does.
        """
        by_server = await self.models_by_server()
        return {kind: list(dict.fromkeys(n for had in by_server.values() for n in had[kind])) for kind in MODEL_INPUTS}

    def remote_ids(self, prompt_id: str) -> list[str]:
        """The remote ids a prompt may have, one for each server: for a webhook that knows its prompt id only."""
        return [f"{name}#{prompt_id}" for name in self._servers]

    async def models_by_server(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """The same for each server that answers, by its URL."""
        alive = await self._pool.alive()
        found = await asyncio.gather(*(server.catalogue() for server in alive), return_exceptions=True)
        by_server = {
            server.name: {kind: catalogue.names(kind) for kind in MODEL_INPUTS}
            for server, catalogue in zip(alive, found, strict=True)
            if not isinstance(catalogue, BaseException)
        }
        if not by_server:
            raise ProviderUnavailable(self._pool.trouble())
        return by_server

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(server.close() for server in self._pool.servers))


def _waiting(place: Place) -> Progress:
    ahead = place.ahead
    behind = f", behind {ahead} others" if ahead else ""
    return Progress(None, "waiting", f"Waiting for a place on a ComfyUI server{behind}", is_waiting=True)
