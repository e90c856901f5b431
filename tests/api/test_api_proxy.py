"""What proxies say is believed from those that are trusted, and from nobody else."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from api_service import JOBS, Service, order, settings_for
from pydantic import ValidationError

from safelight.api.proxy import ForwardedInvalid, Proxies, without_prefix
from safelight.config import Settings
from servers import ValkeyServer

TEST: dict[str, Any] = {"env": "test"}
TRUSTED = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("::1/128")]


def read(peer: str, *headers: tuple[str, str], root_path: str = "") -> tuple[str, str, str, str]:
    """Client, scheme, host and prefix of a request with these headers, from this address."""
    sent = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope: dict[str, Any] = {"client": (peer, 1234), "scheme": "http", "path": "/api/v1/x", "headers": sent}
    host, prefix = Proxies(TRUSTED, root_path).read(scope, dict(sent))
    return scope["client"][0], scope["scheme"], (host or b"").decode(), prefix


ALL = (
    ("X-Forwarded-For", "203.0.113.9"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "pictures.example.com"),
    ("X-Forwarded-Prefix", "/safelight/"),
)


@pytest.mark.parametrize("peer", ["127.0.0.1", "10.7.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_trusted_proxy_is_believed(peer: str) -> None:
    assert read(peer, *ALL) == ("203.0.113.9", "https", "pictures.example.com", "/safelight")


@pytest.mark.parametrize("peer", ["203.0.113.1", "192.168.0.1", "fd00::1", "::ffff:11.0.0.1"])
def test_nobody_else_is(peer: str) -> None:
    assert read(peer, *ALL) == (peer, "http", "", "")


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the first may be invented
        (["203.0.113.9, 10.0.0.5"], "203.0.113.9"),
        (["203.0.113.9", "10.0.0.5, 127.0.0.1"], "203.0.113.9"),  # over two lines
        (["203.0.113.9:51234"], "203.0.113.9"),
        (["[2001:db8::7]:443"], "2001:db8::7"),
        (["2001:db8::7"], "2001:db8::7"),
        (["203.0.113.9, unknown"], "127.0.0.1"),
        ([""], "127.0.0.1"),
        (["10.0.0.5"], "10.0.0.5"),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy_of_ours(chain: list[str], client: str) -> None:
    assert read("127.0.0.1", *(("X-Forwarded-For", line) for line in chain))[0] == client


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-Prefix", "//evil.example"),
        ("X-Forwarded-Prefix", "https://evil.example"),
        ("X-Forwarded-Prefix", "/a/../b"),
        ("X-Forwarded-Prefix", '/a"onload="x'),
        ("X-Forwarded-Prefix", "/a, /b"),
        ("X-Forwarded-Prefix", "/" + "a" * 2000),
        ("X-Forwarded-Proto", "javascript"),
    ],
)
def test_what_cannot_be_right_is_refused(service: Service, name: str, value: str) -> None:
    with pytest.raises(ForwardedInvalid):
        read("127.0.0.1", (name, value))
    refused = service.http.get(JOBS, headers={name: value})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_forwarded_header")
    assert name in refused.json()["detail"]


@pytest.mark.parametrize(
    ("path", "prefix", "ours"),
    [
        ("/safelight/api/v1/x", "/safelight", "/api/v1/x"),
        ("/api/v1/x", "/safelight", "/api/v1/x"),
        ("/safelight", "/safelight", "/"),
        ("/safelights/x", "/safelight", "/safelights/x"),
        ("/api/api/v1/x", "/api", "/api/v1/x"),
        ("/api/v1/x", "/api", "/api/v1/x"),
    ],
)
def test_the_prefix_is_taken_off_once(path: str, prefix: str, ours: str) -> None:
    assert without_prefix(path, prefix) == ours


def test_the_name_that_a_proxy_tells_must_be_ours(service: Service) -> None:
    assert service.http.get(JOBS, headers={"X-Forwarded-Host": "localhost:8443"}).status_code == 200
    assert service.http.get(JOBS, headers={"X-Forwarded-Host": "evil.example"}).status_code == 421
    assert service.http.get("/health/live", headers={"X-Forwarded-Host": "evil.example"}).status_code == 200


def test_headers_from_elsewhere_change_nothing(api_valkey: ValkeyServer, tmp_path: Path, sqlite_template: Path) -> None:
    database = tmp_path / "safelight.db"
    database.write_bytes(sqlite_template.read_bytes())
    settings = settings_for(tmp_path, api_valkey, f"sqlite:///{database}", trusted_proxies=[ip_network("192.0.2.0/24")])
    service = Service(settings, api_valkey, worker=False)
    sent = service.http.post(JOBS, json=order(), headers=dict(ALL))
    assert sent.headers["location"] == f"{JOBS}/{sent.json()['id']}"
    assert sent.json()["urls"]["self"].startswith("/api/")
    service.close()


@pytest.mark.parametrize("wrong", ["*", "localhost", "10.0.0.5/8", "10.0.0.0/33"])
def test_what_is_no_network_is_told_at_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_TRUSTED_PROXIES", wrong)
    with pytest.raises(ValidationError, match=r"(?i)trusted_proxies"):
        Settings(**TEST)


@pytest.mark.parametrize("wrong", ["safelight", "//x", "/a b", "/../x", "/api/v1", "/health", "https://x/y"])
def test_what_is_no_path_is_told_at_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_ROOT_PATH", wrong)
    with pytest.raises(ValidationError, match="root_path"):
        Settings(**TEST)
