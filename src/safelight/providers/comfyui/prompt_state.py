"""How a run stands in its server, as the server's queue and records tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from safelight.providers.comfyui.graph import checkpoints_of


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits in the server's queue, at this place among those that wait (1: the next); None if that was not told."""

    place: int | None


@dataclass(frozen=True, slots=True)
class Running:
    """The server works on it."""


@dataclass(frozen=True, slots=True)
class File:
    """A file a run made."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over: with `files`, a node's `error`, or interrupted. `checkpoints` are those in the graph that ran."""

    files: tuple[File, ...] = ()
    error: Mapping[str, Any] | None = None
    is_interrupted: bool = False
    checkpoints: tuple[str, ...] = ()


PromptState = Queued | Running | Ended | None  # None: the server knows no such job


def end_of(outputs: Any, status: Any, graph: Any = None) -> Ended:
    """The end as a history entry or a job record tells it; `graph` is what ran."""
    messages = (cast(Mapping[str, Any], status).get("messages") if isinstance(status, Mapping) else None) or []
    last = {str(name): data for name, data in messages}
    if "execution_interrupted" in last:
        return Ended(is_interrupted=True)
    error = last.get("execution_error")
    if error is None and isinstance(status, Mapping) and cast(Mapping[str, Any], status).get("status_str") == "error":
        error = {}
    return Ended(files_of(outputs), error, checkpoints=checkpoints_of(graph))


def files_of(outputs: Any) -> tuple[File, ...]:
    """The files in the outputs of all nodes, in the order of their ids; temporary ones only if there are no others."""
    if not isinstance(outputs, Mapping):
        return ()
    given = cast(Mapping[str, Any], outputs)
    found: list[File] = []
    for node_id in sorted(given, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key)):
        kinds: Any = given[node_id]
        for entries in cast(Mapping[str, Any], kinds).values() if isinstance(kinds, Mapping) else ():
            for entry in cast(Sequence[Any], entries) if isinstance(entries, list) else ():
                if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
                    file = File(
                        entry["filename"], str(entry.get("subfolder") or ""), str(entry.get("type") or "output")
                    )
                    if file not in found:
                        found.append(file)
    kept = [file for file in found if file.type == "output"]
    return tuple(kept or [file for file in found if file.type == "temp"])
