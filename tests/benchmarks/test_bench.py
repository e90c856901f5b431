"""The workloads of `./run bench` run through in their quick form and yield a whole result. No figure is judged."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks read /proc")
EXPECTED: dict[str, set[str]] = {
    "throughput": {"jobs_per_second", "worker_cpu_ms", "low_load_p50_ms", "pss_mb"},
    "requests": {"requests_per_second", "p99_ms", "server_cpu_us", "failures"},
    "contention": {"write_p99_ms", "lock_errors"},
    "watching": {"delivered_percent", "p99_ms", "cpu_us_per_event", "redis_connections"},
    "waiting": {"makespan_seconds", "busy_pss_mb"},
    "following": {"kb_per_job", "silent_cpu_percent"},
    "tables": {"p50_ms", "p99_ms"},
    "owners": {"p50_ms", "p99_ms"},
    "backlog": {"p50_ms", "p99_ms"},
    "authentication": {"p50_us", "p99_us"},
    "storyboard": {"accept_ms", "all_pictures_seconds", "cpu_ms_per_scene"},
    "imports": {"seconds", "cpu_seconds"},
    "largest": {"seconds", "cpu_seconds", "peak_growth_mb"},
    "pictures": {"cpu_ms"},
    "starting": {"cpu_seconds"},
}
# Where even the quick form compares.
BESIDE = ("throughput", "requests", "watching", "tables", "owners", "imports", "pictures")
QUICKEST = ("requests",)


@pytest.mark.parametrize(
    "workloads",
    [pytest.param(QUICKEST, id="quickest"), pytest.param(tuple(EXPECTED), id="all", marks=pytest.mark.long)],
)
def test_workloads_run_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workloads: tuple[str, ...]) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    main = importlib.import_module("benchmarks.__main__").main
    output, tables = tmp_path / "result.json", tmp_path / "tables.md"
    given = ["--quick", "--quiet", "--database", "sqlite", "--output", str(output), "--markdown", str(tables)]
    assert main([*given, "--only", *workloads]) == 0
    result = json.loads(output.read_text())
    assert result["quick"] and result["rounds"] == 1 and result["machine"]["cpus"]
    for workload in workloads:
        samples = [sample for sample in result["samples"] if sample["workload"] == workload]
        assert samples and all(sample["values"].keys() >= EXPECTED[workload] for sample in samples), workload
        if workload in BESIDE:
            assert len({sample["system"] for sample in samples}) >= 2, workload
    scores = {"throughput": "throughput / Celery prefork", "requests": "POST / FastAPI"}
    assert {score["what"] for score in result["scores"]} >= {scores[each] for each in scores.keys() & set(workloads)}
    assert "| goal |" in tables.read_text()


def test_every_workload_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    assert set(importlib.import_module("benchmarks.__main__").WORKLOADS) == set(EXPECTED)
