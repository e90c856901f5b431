"""A watcher of one job over a real socket: it breaks off, is broken off, and resumes with `Last-Event-ID`."""

import contextlib
import http.client
import json
import socket
import threading
import time
from random import Random
from typing import Any

STATES = {"job.pending", "job.started", "job.completed", "job.failed", "job.cancelled"}
ENDS = {"job.completed", "job.failed", "job.cancelled"}


class Watcher(threading.Thread):
    """Follows a job to its end and keeps book of what it was told.

    It knows the job from its first version, so that every state event is owed to it. `breaks` is how many times it
    hangs up by itself, at moments of its own choice.
    """

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

    def _follow(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            known = str(self.versions[-1]) if self.versions else "0"
            connection.request("GET", f"/api/v1/generation-jobs/{self.job_id}/events", headers={"Last-Event-ID": known})
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
                number = int(text[4:])
            elif text.startswith("event: "):
                kind = text[7:]
            elif text.startswith("data: "):
                if ended_here:
                    self.late += 1
                self._take(kind, number, json.loads(text[6:]))
                ended_here = ended_here or kind in ENDS
                kind, number = "", None

    def _take(self, kind: str, number: int | None, event: dict[str, Any]) -> None:
        last = self.versions[-1] if self.versions else 0
        if kind == "job.snapshot":
            self.late += event["version"] < last
            return
        if kind not in STATES:
            self.late += self.ended or event["version"] < last
            return
        version = event["version"]
        assert number == version, "a state event's id is its version"
        if version <= last:
            self.doubled += 1
            return
        self.missed += version - last - 1
        self.late += self.ended
        self.versions.append(version)
        self.ended = self.ended or kind in ENDS


def unread(port: int, path: str) -> socket.socket:
    """A connection that asks and never reads the answer."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return client
