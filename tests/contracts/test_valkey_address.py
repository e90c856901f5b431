"""Which URLs of Valkey are understood, and that a refused one is not quoted."""

import pytest

from safelight.valkey import Valkey, ValkeyAddress, ValkeyUrlInvalid


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", ValkeyAddress()),
        ("redis://cache", ValkeyAddress(host="cache", database=0)),
        ("valkey://cache:7000/4", ValkeyAddress(host="cache", port=7000, database=4)),
        ("redis://:p%40ss@[::1]:7000", ValkeyAddress(host="::1", port=7000, password="p@ss")),
        ("redis://ann:pw@cache/1", ValkeyAddress(host="cache", database=1, username="ann", password="pw")),
        (
            "redis://cache/1?db=2&username=ann&password=pw",
            ValkeyAddress("cache", database=2, username="ann", password="pw"),
        ),
        ("unix:///run/v.sock?db=3", ValkeyAddress(path="/run/v.sock", database=3)),
        ("unix://ann:pw@/run/v.sock", ValkeyAddress(path="/run/v.sock", username="ann", password="pw")),
        ("redis+socket:///run/v.sock?virtual_host=3", ValkeyAddress(path="/run/v.sock", database=3)),
        (
            "redis+socket:///run/v.sock?virtual_host=/3&password=pw",
            ValkeyAddress(path="/run/v.sock", database=3, password="pw"),
        ),
    ],
)
def test_urls_that_are_understood(url: str, expected: ValkeyAddress) -> None:
    assert ValkeyAddress.parse(url) == expected


def test_the_database_of_the_url_comes_first() -> None:
    assert ValkeyAddress.parse("redis://cache", database=7).database == 7
    assert ValkeyAddress.parse("redis://cache/0", database=7).database == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cache:6379",
        "http://:hush@cache",
        "redis://:hush@cache:port",
        "redis://ann:hu/sh@cache:1",
        "redis://:hush@cache/first",
        "redis://:hush@[::1",
        "unix://:hush@",
        "unix://hush/v.sock",
        "rediss://:hush@cache?ssl_ca_certs=/nowhere/ca.pem",
    ],
)
def test_urls_that_are_refused_without_quoting_them(url: str) -> None:
    with pytest.raises(ValkeyUrlInvalid) as caught:
        Valkey(url)
    assert "hu" not in caught.value.detail.replace("hush/v", "")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
