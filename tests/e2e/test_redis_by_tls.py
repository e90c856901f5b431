"""The whole way of a job through a Redis that speaks TLS alone, and takes only who shows a certificate."""

import os
import subprocess
import sys

from installation import Installation
from running_stack import ASKED

from safelight_client import Client


def test_a_job_is_submitted_done_and_watched_by_tls(installation: Installation) -> None:
    with Client(installation.stack.url, api_key=installation.key("tess", "--tier", "pro")) as client:
        job = client.submit(prompt="x", provider_options={"duration_seconds": 1}, width=64, height=64)
        told = [event.type for event in client.events(job["id"])]
        assert client.get(job["id"])["status"] == "completed"
    assert "job.progress" in told and told[-1] == "job.completed"
    url = installation.environment["SAFELIGHT_REDIS_URL"]
    assert url.startswith("rediss://") and "ssl_certfile" in url
    asked = [sys.executable, "-m", "celery", "-A", "safelight.worker.tasks", "inspect", *ASKED, "ping"]
    environment = {**os.environ, "SAFELIGHT_REDIS_URL": url}
    assert "pong" in subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
