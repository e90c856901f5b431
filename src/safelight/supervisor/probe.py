"""How the supervisor knows that its stack works: it asks the API as anybody would, and sends a real job through it."""

import asyncio
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

API = "/api/v1"
PROBE_JOB = {
    "prompt": "safelight probe",
    "provider": "mock",
    "width": 64,
    "height": 64,
    "priority": 10,  # before whatever waits since the last time
    "provider_options": {"duration_seconds": 0},
    "metadata": {"probe": "true"},
}


async def is_live(url: str) -> bool:
    """Whether the API answers."""
    return (await request(url, "GET", f"{API}/health/live"))[0] == 200


async def send_job(url: str, seconds: float, api_key: str | None = None) -> str:
    """Send the probe job through the queue and return why it did not come back in time, or nothing when it did."""
    give_up = time.monotonic() + seconds
    status, job = await request(url, "POST", f"{API}/generation-jobs", PROBE_JOB, wait=2, api_key=api_key)
    if status not in (200, 202):
        return f"the API refused it ({status or 'no answer'}: {job.get('detail') or 'no details'})"
    while not job.get("is_terminal") and time.monotonic() < give_up:
        status, answer = await request(url, "GET", f"{API}/generation-jobs/{job['id']}?wait=2", api_key=api_key)
        if status == 200:
            job = answer
        else:
            await asyncio.sleep(0.2)
    if job.get("status") == "completed":
        return ""
    error = job.get("error") or {}
    reason = error.get("message") or job.get("blocked_reason") or "no worker took it to its end"
    return f"it is {job.get('status')} ({reason})"


async def request(
    url: str,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    wait: int = 0,
    api_key: str | None = None,
) -> tuple[int, dict[str, Any]]:
    """One call and its JSON; status 0 when no answer came."""

    def call() -> tuple[int, dict[str, Any]]:
        target = urlsplit(url)
        connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
        headers = {"Content-Type": "application/json"} | ({"Prefer": f"wait={wait}"} if wait else {})
        headers |= {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            answer = json.loads(response.read() or b"{}")
            return response.status, answer if isinstance(answer, dict) else {}
        except (OSError, http.client.HTTPException, ValueError):
            return 0, {}
        finally:
            connection.close()

    return await asyncio.to_thread(call)
