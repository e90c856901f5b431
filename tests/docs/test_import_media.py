"""What the page on imports tells its reader to type works as it stands there, but for hosts."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from shell_blocks import blocks, names_in, typed
from test_howto_commands import Reader, running

from safelight.config import Settings
from stand_ins.media_host import MediaHost

pytestmark = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl")
PAGE = "how-to/import-media.md"
ELSEWHERE = "https://films.example.com"


@pytest.mark.long
def test_import_media(tmp_path: Path) -> None:
    host = MediaHost()
    here = {"SAFELIGHT_MEDIA_ALLOW_PRIVATE": "127.0.0.1/32", "SAFELIGHT_MEDIA_KEEP_FREE_BYTES": "0"}
    reader = Reader(tmp_path, here)
    with running(reader) as stack:
        for one in typed(PAGE):
            command = one.command.replace(ELSEWHERE, host.url).replace("localhost:8080", stack.url)
            answer = reader.types(command)
            if one.answer.startswith("{"):
                assert names_in(one.answer) <= names_in(answer), (one.command, answer)
            else:
                assert one.answer in answer, (one.command, answer)
            if "/probe" in command:
                seen, shown = json.loads(answer), json.loads(one.answer)
                assert {**seen, "source_url": "", "size_bytes": 0} == {**shown, "source_url": "", "size_bytes": 0}
        [(_, program)] = blocks(PAGE, "python")
        program = program.replace(ELSEWHERE, host.url).replace("Client()", f"Client({stack.url!r})")
        (tmp_path / "program.py").write_text(program)
        told = reader.types(f"{sys.executable} program.py").splitlines()
        assert told[0] == "2.0"
        assert any("Downloading" in line or "completed" in line or "Storing" in line for line in told[1:]), told
    assert (tmp_path / "lighthouse.mp4").read_bytes() == host.files["/lighthouse.mp4"][1]
    host.close()


def test_its_settings_exist() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "settings.md"
    told = set(re.findall(r"SAFELIGHT_(MEDIA_\w+)`", page.read_text()))
    assert told == {name.upper() for name in Settings.model_fields if name.startswith("media_")}
