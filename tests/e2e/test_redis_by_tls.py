"""The whole way of a job through a Redis that speaks TLS alone, and takes only who shows a certificate."""

import os
import subprocess
import sys
from pathlib import Path

from running_stack import Stack

from safelight_client import Client
from servers import ValkeyServer
from tls import certificate, fronted_in_a_thread, server_context


def test_a_job_is_submitted_done_and_watched_by_tls(tmp_path: Path, valkey: ValkeyServer) -> None:
    pem = certificate(tmp_path)
    with fronted_in_a_thread(valkey, server_context(pem, asks_for_one=True)) as port:
        url = f"rediss://localhost:{port}/5?ssl_ca_certs={pem}&ssl_certfile={pem}"
        stack = Stack(tmp_path / "data", {"SAFELIGHT_REDIS_URL": url})
        try:
            with Client(stack.url) as client:
                job = client.submit(prompt="x", provider_options={"duration_seconds": 1}, width=64, height=64)
                told = [event.type for event in client.events(job["id"])]
                assert client.get(job["id"])["status"] == "completed"
            assert "job.progress" in told and told[-1] == "job.completed"
            asked = [sys.executable, "-m", "celery", "-A", "safelight.worker.tasks", "inspect", "ping"]
            environment = {**os.environ, "SAFELIGHT_REDIS_URL": url}
            assert "pong" in subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
        finally:
            stack.close()
