"""Hints: the messages that wake a worker for a job, in Celery's own format but without its 0.4 ms a message.

A hint carries only the job's id and its queue. Losing or doubling one costs time, never a job.
"""

import base64
import os
import secrets
import socket

import orjson

from safelight.valkey import Valkey

IMAGE_GENERATION = "image_generation"
DEFAULT = "default"
LOCAL = "local"
ISOLATED = "isolated"
IMPORTS = "imports"
IO_QUEUES = (IMAGE_GENERATION, DEFAULT)
LOCAL_QUEUES = (LOCAL, ISOLATED)
IMPORT_QUEUES = (IMPORTS,)

TASK_NAME = "safelight.run"
SECOND_NET_SECONDS = 15  # Celery's own limits act this much after the engine's, where they act (prefork)

_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class HintQueue:
    """Sends hints; `namespace` is the transport's key prefix, so that environments can share a server."""

    def __init__(self, valkey: Valkey, namespace: str) -> None:
        self._valkey = valkey
        self.prefix = f"{namespace}:"
        self._origin = f"{os.getpid()}@{socket.gethostname()}"
        self.sent = 0

    @property
    def is_connected(self) -> bool:
        return self._valkey.connected

    def send(self, queue: str, job_id: str, *, soft_seconds: float, hard_seconds: float) -> bool:
        """Send a hint without waiting; False if Redis is away (dispatch will send another)."""
        accepted = self._valkey.post(
            "LPUSH",
            self.prefix + queue,
            message(queue, job_id, soft_seconds=soft_seconds, hard_seconds=hard_seconds, origin=self._origin),
        )
        self.sent += accepted
        return accepted


def message(queue: str, job_id: str, *, soft_seconds: float, hard_seconds: float, origin: str) -> bytes:
    """A Celery task message (protocol 2) as kombu's Redis transport keeps it. The task's id is the job's."""
    body = base64.b64encode(orjson.dumps([[job_id, queue], {}, _EMBED])).decode()
    limits = [int(hard_seconds) + SECOND_NET_SECONDS, int(soft_seconds) + SECOND_NET_SECONDS]
    return orjson.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": TASK_NAME,
                "id": job_id,
                "shadow": None,
                "eta": None,
                "expires": None,
                "group": None,
                "group_index": None,
                "retries": 0,
                "timelimit": limits,
                "root_id": job_id,
                "parent_id": None,
                "argsrepr": f"('{job_id}', '{queue}')",
                "kwargsrepr": "{}",
                "origin": origin,
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": job_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": secrets.token_hex(16),
            },
        }
    )
