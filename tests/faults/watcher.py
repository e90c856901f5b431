"""Watchers of a job and of a batch over real sockets: they break off, are broken off, and resume."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Sequence
from random import Random
from typing import Any

STATES = {"job.pending", "job.started", "job.completed", "job.failed", "job.cancelled"}
ENDS = {"job.completed", "job.failed", "job.cancelled"}
BATCH_ENDS = {"batch.completed", "batch.failed", "batch.cancelled"}


class Watcher(threading.Thread):
    """Follows a job to its end and keeps book of what it was told.

    It knows the job from its first version, so that every state event is owed to it. `breaks` is how many times it
    hangs up by itself, at moments of its own choice.
    """

    path = "/api/v1/generation-jobs"
    ends = ENDS

    def __init__(self, port: int, job_id: str, random: Random, *, breaks: int = 1) -> None:
        super().__init__(name=f"watcher of {job_id}", daemon=True)
        self.job_id = job_id
        self.versions: list[int] = []  # of state events, as they came
        self.doubled = 0
        self.missed = 0
        self.late = 0  # anything after the terminal event, and news of a state that is over
        self.connections = 0
        self.ended = False
        self.finished = False  # the server said with 204 that there is nothing more
        self._port = port
        self._random = random
        self._breaks = breaks
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set() and not self.finished:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._follow()
            self._over.wait(0.05)

    @property
    def _known(self) -> str:
        return str(self.versions[-1]) if self.versions else "0"

    def _follow(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", f"{self.path}/{self.job_id}/events", headers={"Last-Event-ID": self._known})
            answer = connection.getresponse()
            if answer.status == 204:
                self.finished = self.ended
                self.missed += not self.ended
                self._over.set()
                return
            if answer.status != 200:
                self._over.wait(0.2)
                return
            self.connections += 1
            hang_up_at = float("inf")
            if self._breaks > 0:
                self._breaks -= 1
                hang_up_at = time.monotonic() + self._random.uniform(0.0, 1.0)
                assert connection.sock is not None
                connection.sock.settimeout(0.3)
            self._read(answer, hang_up_at)
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, hang_up_at: float) -> None:
        kind, number = "", None
        ended_here = False
        while not self._over.is_set() and time.monotonic() < hang_up_at:
            line = answer.readline()
            if not line:
                return
            text = line.decode().rstrip("\n")
            if text.startswith("id: "):
                number = text[4:]
            elif text.startswith("event: "):
                kind = text[7:]
            elif text.startswith("data: "):
                if ended_here:
                    self.late += 1
                self._take(kind, number, json.loads(text[6:]))
                ended_here = ended_here or kind in self.ends
                kind, number = "", None

    def _take(self, kind: str, number: str | None, event: dict[str, Any]) -> None:
        last = self.versions[-1] if self.versions else 0
        if kind == "job.snapshot":
            self.late += event["version"] < last
            return
        if kind not in STATES:
            self.late += self.ended or event["version"] < last
            return
        version = event["version"]
        assert number == str(version), "a state event's id is its version"
        if version <= last:
            self.doubled += 1
            return
        self.missed += version - last - 1
        self.late += self.ended
        self.versions.append(version)
        self.ended = self.ended or kind in ENDS


class BatchWatcher(Watcher):
    """The same for a batch: it knows all its jobs from their first version, and keeps a book for each."""

    path = "/api/v1/batches"
    ends = BATCH_ENDS

    def __init__(self, port: int, batch_id: str, job_ids: Sequence[str], random: Random, *, breaks: int = 1) -> None:
        super().__init__(port, batch_id, random, breaks=breaks)
        self.told: dict[str, list[int]] = {job_id: [] for job_id in job_ids}
        self.end = ""
        self.fell_back = 0  # how often its progress went backwards
        self._last_id = f"1x{len(job_ids)}~0"
        self._progress = 0

    @property
    def _known(self) -> str:
        return self._last_id

    def _take(self, kind: str, number: str | None, event: dict[str, Any]) -> None:
        if number is not None:
            self._last_id = number
        if kind.startswith("batch."):
            self.fell_back += event["progress"] < self._progress
            self._progress = event["progress"]
            self.ended = self.ended or kind in self.ends
            self.end = kind if kind in self.ends else self.end
            return
        assert kind in STATES and number is not None, "of its jobs a batch tells the states, each with an id"
        self.late += self.ended
        versions = self.told[event["job_id"]]
        self.doubled += event["version"] in versions
        versions.append(event["version"])


def unread(port: int, path: str) -> socket.socket:
    """A connection that asks and never reads the answer."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return client
