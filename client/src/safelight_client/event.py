"""Events of a job, and how they are read from a stream of server-sent events."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """What became known about a job or a batch.

    `id` resumes the stream after it; `type` is `job.snapshot`, `job.progress`, `batch.progress`, ...
    """

    id: str | None
    type: str
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_terminal(self) -> bool:
        """Whether the job or batch that it is about has ended; of that, nothing follows."""
        return bool(self.data.get("is_terminal"))

    @property
    def order(self) -> tuple[int, int]:
        """Where the event stands among those of its job; what is not newer can be dropped."""
        return int(self.data.get("version") or 0), int(self.data.get("seq") or 0)


class EventReader:
    """Turns the bytes of a `text/event-stream` into events and remembers what a reconnect needs.

    Lines end with LF or CRLF only: other Unicode line separators are data, and JSON may hold them unescaped.
    """

    def __init__(self, last_id: str | None = None) -> None:
        self.last_id = last_id
        self.retry_seconds: float | None = None

    def read(self, chunks: Iterable[bytes]) -> Iterator[Event]:
        """Events as they complete. One that was cut off by the end of the stream is dropped, as it will come again."""
        kind, data, event_id = "message", list[str](), self.last_id
        for raw in split_lines(chunks):
            line = raw.decode("utf-8", "replace")
            if not line:
                if data:
                    self.last_id = event_id
                    yield Event(event_id, kind, parse_object("\n".join(data)))
                kind, data = "message", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "event":
                    kind = value
                case "data":
                    data.append(value)
                case "id" if "\0" not in value:
                    event_id = value
                case "retry" if value.isascii() and value.isdigit():
                    self.retry_seconds = int(value) / 1000
                case _:  # comments (an empty name) and fields of a later version
                    pass


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Complete lines, without their ends."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of an event; anything else is kept under `value`, so that a reader never fails on it."""
    try:
        value = json.loads(text)
    except ValueError:
        return {"value": text}
    return value if isinstance(value, dict) else {"value": value}
