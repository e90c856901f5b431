"""A ComfyUI custom node that tells Safelight when a prompt has ended. It adds no node to the editor.

Put this folder into ComfyUI's `custom_nodes` and set SAFELIGHT_WEBHOOK_URL to
`https://SAFELIGHT/webhooks/comfyui/SECRET` in ComfyUI's environment; without it nothing is done.

ComfyUI calls `PromptQueue.task_done` once for every prompt that ran, whether it ended well, failed or was interrupted,
and writes the history entry there. That call is wrapped: after it, the id of a prompt that Safelight submitted (its
extra data says so) is sent as `{"prompt_id": ...}` from a thread of its own, so that ComfyUI never waits. Nothing else
is sent: Safelight reads the rest from ComfyUI itself, and finds out without this call, too, only later.
"""

import functools
import json
import logging
import os
import queue
import threading
import time
import urllib.request

import execution  # ComfyUI's own

NODE_CLASS_MAPPINGS = {}

TRIES = 3
PAUSE_SECONDS = 1.0
ANSWER_SECONDS = 5.0

log = logging.getLogger("safelight")
ended = queue.Queue(maxsize=1000)


def is_ours(item):
    """Whether Safelight submitted a queue item: `(number, prompt id, graph, extra data, ...)`."""
    return len(item) > 3 and isinstance(item[3], dict) and "safelight" in item[3]


def watch(task_done):
    """Wrap `PromptQueue.task_done`."""

    @functools.wraps(task_done)
    def and_tell(self, item_id, *args, **kwargs):
        item = self.currently_running.get(item_id, ())
        result = task_done(self, item_id, *args, **kwargs)
        if is_ours(item):
            try:
                ended.put_nowait(item[1])
            except queue.Full:
                log.warning("Safelight is not told of the prompt %s: it has not answered for long.", item[1])
        return result

    return and_tell


def tell(url):
    """Send the ids as they come, each at most `TRIES` times."""
    while True:
        prompt_id = ended.get()
        body = json.dumps({"prompt_id": prompt_id}).encode()
        for number in range(TRIES):
            time.sleep(number * PAUSE_SECONDS)
            try:
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
                with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):  # noqa: S310 - the operator's own setting
                    break
            except (OSError, ValueError) as error:
                log.warning("Safelight cannot be told of the prompt %s: %s", prompt_id, error)


if os.environ.get("SAFELIGHT_WEBHOOK_URL"):
    execution.PromptQueue.task_done = watch(execution.PromptQueue.task_done)
    threading.Thread(target=tell, args=(os.environ["SAFELIGHT_WEBHOOK_URL"],), name="safelight", daemon=True).start()
