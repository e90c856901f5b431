"""`safelight import` as a person or a script meets it, against a scripted API."""

from pathlib import Path

from test_generate import run

from scripted_api import JOB_PATH, Answer, ScriptedApi, document, event, job, stream

STORE = "/api/v1/media/store"
VIDEO = b"\0\0\0\x20ftypisom video"
SOURCE = "https://example.com/lighthouse.mp4"


def test_saves_the_file(tmp_path: Path) -> None:
    with ScriptedApi().serving() as api:
        content = "/api/v1/artifacts/1/content"
        made = {"id": "1", "url": content, "content_type": "video/mp4"}
        told = "Downloading: 1.0 MB of 2.0 MB, 0.5 MB/s, 2 s left"
        progress = event("job.progress", 2, status="processing", progress=50, stage="downloading", message=told)
        done = event("job.completed", 3, status="completed", progress=100)
        api.answer("GET", "/api/v1/health/live", document({}))
        api.answer("POST", STORE, document(job(kind="media.import"), 202))
        api.answer("GET", f"{JOB_PATH}/events", stream(event("job.snapshot", 1, status="pending"), progress, done))
        api.answer("GET", JOB_PATH, document(job("completed", kind="media.import", artifacts=[made])))
        api.answer("GET", content, Answer(body=VIDEO))
        code, output, words = run("import", SOURCE, "--max-height", "480", "-o", "x", "--url", api.url, cwd=tmp_path)
        assert (code, output) == (0, "x.mp4\n"), words
        assert (tmp_path / "x.mp4").read_bytes() == VIDEO
        assert "estimating" not in words
        [submitted] = api.asked("POST", STORE)
        assert submitted.body == {"url": SOURCE, "max_height": 480}


def test_a_refused_url_is_a_usage_error(tmp_path: Path) -> None:
    with ScriptedApi().serving() as api:
        problem = {"code": "address_refused", "detail": "http://10.0.0.1/ is not at a public address.", "status": 422}
        api.answer("GET", "/api/v1/health/live", document({}))
        api.answer("POST", STORE, document(problem, 422))
        code, output, words = run("import", "http://10.0.0.1/", "--url", api.url, cwd=tmp_path)
        assert (code, output) == (2, "")
        assert "address_refused" in words
