"""Videos and sounds over HTTP: the record, the bytes with ranges, the poster."""

from collections.abc import AsyncGenerator, Callable, Iterator
from importlib.metadata import EntryPoint
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from api_service import JOBS, Json, Service
from PIL import Image

from media import media, turned_video
from safelight.providers import registry
from safelight.providers.base import Capabilities, Generation, Output, Parameters, Provider, Update

MADE: list[Path] = []


class Projector(Provider):
    """Delivers the videos that its prompt names, as files."""

    contract = 2

    @property
    def capabilities(self) -> Capabilities:
        kinds = frozenset({"image.generate"})
        return Capabilities(kinds, (), 4096, 4096, 8, cancel=False, progress=False, previews=False, input_images=1)

    def check(self, parameters: Parameters) -> Parameters:
        return parameters

    async def generate(self, generation: Generation) -> AsyncGenerator[Update]:
        for name in generation.parameters.prompt.split():
            yield Output(as_file(name), "application/octet-stream", details={"title": f"A video of type {name}"})


def as_file(name: str) -> Path:
    with NamedTemporaryFile(prefix="projector-", delete=False) as file:
        file.write(turned_video() if name == "turned" else media(name))
    MADE.append(Path(file.name))
    return MADE[-1]


@pytest.fixture
def cinema(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    plug_in = EntryPoint("projector", "test_api_videos:Projector", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [plug_in])
    yield make_service(mock_mode=False, default_provider="projector")
    assert not any(path.exists() for path in MADE), "files that nobody removed"
    MADE.clear()


def test_a_video_a_sound_and_a_seek(cinema: Service) -> None:
    job = cinema.make(prompt="mp4 flac turned", provider_options={})
    video, sound, turned = job["artifacts"]

    assert (video["kind"], video["content_type"], video["width"], video["height"]) == ("video", "video/mp4", 128, 72)
    assert video["duration_seconds"] == pytest.approx(2, abs=0.1)
    assert video["details"] == {
        "title": "A video of type mp4",
        "container": "mp4",
        "video_codec": "h264",
        "frame_rate": 10.0,
        "audio_codec": "aac",
        "sample_rate": 48000,
    }
    assert (sound["kind"], sound["content_type"], sound["width"], sound["height"]) == (
        "audio",
        "audio/flac",
        None,
        None,
    )
    assert (sound["thumbhash"], sound["thumbnails"], sound["poster"]) == (None, [], None)
    assert sound["details"]["audio_codec"] == "flac"
    assert (turned["width"], turned["height"]) == (72, 128)
    for artifact in job["artifacts"]:
        assert cinema.http.get(f"/api/v1/artifacts/{artifact['id']}").json() == artifact

    assert video["poster"] == f"/api/v1/artifacts/{video['id']}/thumbnails/1280"
    poster = cinema.http.get(video["poster"])
    assert poster.headers["content-type"] == "image/webp"
    assert Image.open(BytesIO(poster.content)).size == (128, 72)

    whole = media("mp4")
    seek = cinema.http.get(video["url"], headers={"Range": "bytes=1000-"})
    assert (seek.status_code, seek.content) == (206, whole[1000:])
    assert seek.headers["content-type"] == "video/mp4"
    assert seek.headers["content-range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert f"{video['id']}.mp4" in seek.headers["content-disposition"]


def test_a_picture_has_no_duration_and_no_poster(service: Service) -> None:
    artifact: Json = service.make()["artifacts"][0]
    assert (artifact["kind"], artifact["duration_seconds"], artifact["poster"]) == ("image", None, None)
    assert artifact["details"] == {}


def test_a_deleted_video_takes_its_poster_with_it(cinema: Service) -> None:
    job = cinema.make(prompt="mp4")
    files = {path for path in (cinema.settings.data_dir / "files").rglob("*") if path.is_file()}
    assert {path.name for path in files} == {"0.mp4", "0_256.webp"}  # a small one: all sizes are one file
    assert cinema.http.delete(f"/api/v1/generation-jobs/{job['id']}").status_code == 204
    assert not any(path.exists() for path in files)
    assert cinema.http.get(job["artifacts"][0]["poster"]).status_code == 410


def test_a_video_is_no_picture_to_start_from(cinema: Service) -> None:
    video = cinema.make(prompt="mp4")["artifacts"][0]["id"]
    refused = cinema.http.post(JOBS, json={"prompt": "webm", "input_images": [video]})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"pointer": "#/input_images/0", "detail": f"There is no picture {video}."}]
