"""What a run came to: its files, checked to be what they are, or the error that says why there are none."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.providers.base import BadOutput, Output, ProviderError, ProviderUnavailable
from safelight.providers.comfyui.graph import Plan, checkpoints_of, title_of
from safelight.providers.comfyui.prompt_state import Ended, File
from safelight.providers.comfyui.server import FileGone, Server, ServerUnreachable
from safelight.providers.fetch import HEAD_BYTES, content_type_of

DOWNLOAD_TRIES = 4
OUT_OF_MEMORY = ("out of memory", "outofmemory", "allocation on device")
ENDS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8\xff": b"\xff\xd9"}  # by the beginning


class NodeFailed(ProviderError):
    """A node of the workflow failed."""

    code = "node_failed"


class OutOfMemory(ProviderError):
    """The ComfyUI server has too little memory for this."""

    code = "out_of_memory"


class Interrupted(ProviderError):
    """Somebody stopped the job on the ComfyUI server."""

    code = "interrupted"


class NothingMade(ProviderError):
    """The workflow ended without a file."""

    code = "bad_output"


@dataclass(slots=True)
class Run:
    """One prompt inside one server."""

    server: Server
    prompt_id: str
    plan: Plan
    is_cancelled: bool = False  # on our own request
    is_executing: bool = False  # the server was at work on it when it was last heard
    end: Ended | None = None

    @property
    def remote_id(self) -> str:
        return f"{self.server.name}#{self.prompt_id}"


# --- the end ----------------------------------------------------------------------------------------------------------


def judge(run: Run) -> Ended:
    """The end if it is a good one or worth another run; anything else is raised."""
    end = run.end or Ended()
    if end.is_interrupted:
        if run.is_cancelled:
            raise Interrupted("The job was cancelled on the ComfyUI server.")
        raise Interrupted(f"Somebody stopped the job on the ComfyUI server {run.server.name}.")
    if end.error is not None and not _is_memory(end.error):
        raise node_error(NodeFailed, run, end.error)
    if end.error is None and not end.files:
        message = "The workflow ended without a file. Results must be saved, as by SaveImage, not only shown."
        raise NothingMade(message)
    return end


def _is_memory(error: Mapping[str, object]) -> bool:
    said = f"{error.get('exception_type')} {error.get('exception_message')}".lower()
    return any(words in said for words in OUT_OF_MEMORY)


def node_error(kind: type[ProviderError], run: Run, error: Mapping[str, object]) -> ProviderError:
    """What a node's exception says to people, and what it says to those who look closer."""
    node_id, node_type = str(error.get("node_id") or ""), str(error.get("node_type") or "")
    said = str(error.get("exception_message") or "").strip() or str(error.get("exception_type") or "no reason was told")
    name = title_of(run.plan.graph, node_id) if node_id in run.plan.graph else node_type or "A node"
    failed = "ran out of memory" if kind is OutOfMemory else "failed"
    of_type = f", {node_type}" if node_type and node_type != name else ""
    where = f" (node {node_id}{of_type})" if node_id else ""
    details = {
        "node_id": node_id,
        "node_type": node_type,
        "exception_type": error.get("exception_type"),
        "server": run.server.name,
    }
    return kind(f"{name}{where} {failed}: {said[:500]}", details=details)


# --- files ------------------------------------------------------------------------------------------------------------


async def fetch(run: Run, end: Ended, folder: Path) -> list[Output] | None:
    """The files as outputs, in order, large ones in `folder`; None if one of them is gone or stays broken.

    Their details say which checkpoints the workflow loaded, also where the server's first was taken.
    """
    outputs: list[Output] = []
    strange: list[str] = []
    checkpoints = end.checkpoints or checkpoints_of(run.plan.graph)
    details: dict[str, object] = {"checkpoints": list(checkpoints)} if checkpoints else {}
    for number, file in enumerate(end.files):
        data = await _download(run.server, file, folder / f"{number}")
        if data is None:
            return None
        try:
            content_type = content_type_of(await asyncio.to_thread(_head_of, data))
        except BadOutput:
            strange.append(file.filename)
        else:
            outputs.append(Output(data, content_type, run.plan.seed, details))
    if not outputs:
        raise NothingMade(f"The workflow made no picture, video or sound, but {', '.join(strange)[:200]}.")
    return outputs


async def _download(server: Server, file: File, to: Path) -> bytes | Path | None:
    problem = ""
    for number in range(DOWNLOAD_TRIES):
        if number:
            await asyncio.sleep(server.pace.retry * 2 ** (number - 1))
        try:
            data = await server.download(file, to)
        except FileGone:
            return None
        except ServerUnreachable as error:
            problem = error.reason
            continue
        if isinstance(data, Path) or is_whole(data):
            return data
        problem = ""
    if problem:
        raise ProviderUnavailable(f"The result {file.filename} cannot be fetched from {server.name}: {problem}.")
    return None  # whole by its length, but not a whole file


def _head_of(data: bytes | Path) -> bytes:
    if isinstance(data, bytes):
        return data[:HEAD_BYTES]
    with data.open("rb") as file:
        return file.read(HEAD_BYTES)


def is_whole(data: bytes) -> bool:
    """Whether a file ends as its type must, for types that say so; videos and sounds are looked at when stored."""
    end = next((end for magic, end in ENDS.items() if data.startswith(magic)), b"")
    return bool(data) and end in data[-64:]
