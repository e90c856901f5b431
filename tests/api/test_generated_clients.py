"""Clients that others generate from the document are made, imported and used against a running service."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from api_service import Service, order
from PIL import Image

PACKAGE = "generated_safelight"


@pytest.fixture(scope="module")
def generated(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package that `openapi-python-client` makes, on the path."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(service.http.get("/api/v1/openapi.json").json()))
    (folder / "config.yaml").write_text("post_hooks: []\n")
    program = Path(sys.executable).with_name("openapi-python-client")
    options = ["--path", "openapi.json", "--output-path", PACKAGE, "--meta", "none", "--config", "config.yaml"]
    subprocess.run([program, "generate", *options], cwd=folder, check=True, capture_output=True, timeout=120)
    sys.path.insert(0, str(folder))
    yield folder / PACKAGE
    sys.path.remove(str(folder))


def module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def test_python_submits_uploads_and_lists(service: Service, generated: Path) -> None:
    made = {path.stem for path in (generated / "api").glob("*/*.py")}
    assert {"submit_job", "upload_artifact", "upload_character_reference", "list_jobs", "submit_batch"} <= made
    with module("client").Client(base_url=service.api.url) as client:
        body = module("models").GenerationRequest(prompt="a lighthouse")
        assert body.to_dict() == {"prompt": "a lighthouse"}
        job = module("api.jobs.submit_job").sync(client=client, body=body)
        assert job.prompt == "a lighthouse"
        listed = module("api.jobs.list_jobs").sync(client=client)
        assert str(job.id) in [str(each.id) for each in listed.items]
        picture = BytesIO()
        Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
        picture.seek(0)
        file = module("types").File(payload=picture, file_name="teal.png", mime_type="image/png")
        stored = module("api.artifacts.upload_artifact").sync(client=client, body=file)
        assert (stored.kind, stored.width) == ("input", 8)
        wrong = module("models").GenerationRequest.from_dict(order() | {"width": 17})
        refused = module("api.jobs.submit_job").sync(client=client, body=wrong)
        assert (refused.code, refused.errors[0].pointer) == ("invalid_request", "#/width")
