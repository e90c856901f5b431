"""`safelight generate` as a process, on ComfyUI: through a running API and worker to a server, and back to a file."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from api_service import Service, eventually
from PIL import Image

from patience import PATIENCE_SECONDS
from stand_ins.comfyui import ComfyStandIn
from stand_ins.comfyui_lab import workflow

CHECKPOINT = "tiny.safetensors"
SMALL = ("--width", "96", "--height", "64")


@pytest.fixture
def server() -> Iterator[ComfyStandIn]:
    with ComfyStandIn() as server:
        yield server


@pytest.fixture
def service(make_service: Callable[..., Service], server: ComfyStandIn) -> Service:
    return make_service(mock_mode=False, comfyui_urls=[server.url], beat_seconds=5, lease_seconds=30)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 48), "teal").save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def begin(service: Service, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["generate", "a lighthouse", "--provider", "comfyui", "--url", service.api.url, *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", *command],
        cwd=cwd,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(service: Service, cwd: Path, *arguments: str) -> tuple[int, str, str]:
    process = begin(service, cwd, *arguments)
    output, words = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, output, words


def test_a_model_draws_a_picture_with_live_percentages(service: Service, server: ComfyStandIn, tmp_path: Path) -> None:
    server.step_seconds = 0.05
    code, output, words = run(service, tmp_path, "--model", CHECKPOINT, *SMALL, "-o", "x.png")
    assert (code, output) == (0, "x.png\n"), words
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (96, 64)
    assert server.ledger[0].graph["4"]["inputs"]["ckpt_name"] == CHECKPOINT
    assert "processing: " in words and " % " in words


def test_a_template_with_inputs_and_a_file(service: Service, server: ComfyStandIn, tmp_path: Path, photo: Path) -> None:
    given = ("--template", "img2img", "--model", CHECKPOINT, "--image", photo.name, "--input", "steps=3")
    code, output, words = run(service, tmp_path, *given, "--input", "denoise=0.5", "--json")
    assert code == 0, words
    job = json.loads(output)
    assert (job["template"], job["inputs"]) == ("img2img", {"steps": 3, "denoise": 0.5})
    (sent,) = server.uploads.values()
    with Image.open(BytesIO(sent)) as image:
        assert image.size == (80, 48)
    again = run(service, tmp_path, *given[:4], "--image", job["input_images"][0], "-o", "again.png")
    assert again[:2] == (0, "again.png\n"), again[2]
    assert len(server.uploads) == 1  # the same picture, by its id


def test_a_workflow_of_ones_own(service: Service, server: ComfyStandIn, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(json.dumps(workflow()))
    code, output, words = run(service, tmp_path, "--workflow", "graph.json", "-o", "x.png")
    assert (code, output) == (0, "x.png\n"), words
    assert server.ledger[0].graph["1"]["class_type"] == "EmptyImage"


def test_what_is_wrong_is_said_of_the_option(service: Service, server: ComfyStandIn, tmp_path: Path) -> None:
    (tmp_path / "exported.json").write_text(json.dumps({"nodes": [], "links": []}))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "words.png").write_text("these are words")
    nobody = "00000000-0000-7000-8000-000000000000"
    for arguments, said in (
        (("--model", "tinny.safetensors"), "--model: "),
        (("--template", "txt2im"), "--template: There is no template 'txt2im'. Did you mean txt2img"),
        (("--template", "txt2img", "--model", CHECKPOINT, "--input", "steps=0"), "--input steps: "),
        (("--workflow", "exported.json"), "--workflow: This is the format in which the editor saves"),
        (("--workflow", "list.json"), "Invalid value for '--workflow'"),
        (("--workflow", "words.png"), "words.png is not JSON"),
        (("--workflow", "exported.json", "--template", "txt2img"), "exclude each other"),
        (("--input", "steps=3"), "name it with --template"),
        (("--image", "words.png"), "--image words.png: "),
        (("--image", "exported.json"), "--image exported.json: Send the picture itself"),
        (("--image", "nothing.png"), "Invalid value for '--image': 'nothing.png' is no file here"),
        (("--image", nobody), f"--image 1: There is no picture {nobody}."),
    ):
        code, output, words = run(service, tmp_path, *arguments)
        assert (code, output) == (2, ""), (arguments, words)
        assert said in words, (arguments, words)
    assert not server.ledger


def test_two_interrupts_stop_it_on_the_server(service: Service, server: ComfyStandIn, tmp_path: Path) -> None:
    server.hold = "KSampler"
    process = begin(service, tmp_path, "--model", CHECKPOINT)
    assert process.stderr is not None
    eventually(lambda: server.ledger, "it is on the server")
    line = process.stderr.readline()
    while "processing" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
    while "Press Ctrl-C again" not in line:
        line = process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
    eventually(lambda: server.interrupted, "the server is told")  # which would draw for ever
    _, words = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130 and "The job is cancelled." in words
    assert server.interrupted == [server.ledger[0].prompt_id]
