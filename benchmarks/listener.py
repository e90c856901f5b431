"""Hears every event on `task_updates:*` over a bare socket, and when each job ended. The same for all systems."""

import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import hiredis

TERMINAL = b'"is_terminal":true'
PATTERN = "task_updates:*"


class Listener:
    """A thread that counts. `keeps_times` also remembers when each job ended, by its id."""

    def __init__(self, url: str, *, keeps_times: bool = False) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port))
        command: Any = hiredis.pack_command(("PSUBSCRIBE", PATTERN))  # pyright: ignore[reportArgumentType]
        self._socket.sendall(command)
        self._ended: dict[str, float] | None = {} if keeps_times else None
        self._changed = threading.Condition()
        self.events = 0
        self.ends = 0
        self.last_end = 0.0
        threading.Thread(target=self._listen, daemon=True, name="listener").start()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        with self._changed:
            self.events = self.ends = 0

    def wait_for(self, job_id: str, seconds: float) -> float:
        """When the job ended (monotonic seconds)."""
        assert self._ended is not None
        ended = self._ended
        with self._changed:
            if not self._changed.wait_for(lambda: job_id in ended, seconds):
                raise TimeoutError(f"job {job_id} did not end within {seconds:g} s")
        return ended[job_id]

    def wait_for_ends(self, count: int, seconds: float) -> float:
        """When the last of `count` jobs ended."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.ends >= count, seconds):
                raise TimeoutError(f"{self.ends} of {count} jobs ended within {seconds:g} s")
        return self.last_end

    def _listen(self) -> None:
        reader = hiredis.Reader(notEnoughData=Listener)
        while True:
            try:
                data = self._socket.recv(262_144)
            except OSError:
                return
            if not data:
                return
            now = time.monotonic()
            reader.feed(data)
            with self._changed:
                ended = 0
                while (push := reader.gets()) is not Listener:
                    if push[0] != b"pmessage":
                        continue
                    self.events += 1
                    if TERMINAL in push[3]:
                        ended += 1
                        if self._ended is not None:
                            self._ended[push[2].decode().partition(":")[2]] = now
                if ended:
                    self.ends += ended
                    self.last_end = now
                    self._changed.notify_all()
