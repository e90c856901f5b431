"""What is public: every line of the registries, by its first and last address and the neighbours just outside."""

from ipaddress import IPv4Network, ip_address, ip_network

import pytest

from hostile_urls import MALFORMED
from safelight.providers.address import FetchRefused, checked_url, is_allowed, parsed_url, special_networks

OUT, IN, EDGE = False, True, None  # refused, allowed; there is no neighbour

# The registries once more, by hand: network, whether it is public, and the address before and the one after.
LINES = [
    ("0.0.0.0/8", OUT, EDGE, IN),
    ("10.0.0.0/8", OUT, IN, IN),
    ("100.64.0.0/10", OUT, IN, IN),
    ("127.0.0.0/8", OUT, IN, IN),
    ("168.63.129.16/32", OUT, IN, IN),
    ("169.254.0.0/16", OUT, IN, IN),
    ("172.16.0.0/12", OUT, IN, IN),
    ("192.0.0.0/24", OUT, IN, IN),
    ("192.0.0.0/29", OUT, IN, OUT),
    ("192.0.0.8/32", OUT, OUT, OUT),
    ("192.0.0.9/32", OUT, OUT, OUT),
    ("192.0.0.10/32", OUT, OUT, OUT),
    ("192.0.0.170/31", OUT, OUT, OUT),
    ("192.0.0.192/32", OUT, OUT, OUT),
    ("192.0.2.0/24", OUT, IN, IN),
    ("192.31.196.0/24", IN, IN, IN),
    ("192.52.193.0/24", IN, IN, IN),
    ("192.88.99.0/24", OUT, IN, IN),
    ("192.168.0.0/16", OUT, IN, IN),
    ("192.175.48.0/24", IN, IN, IN),
    ("198.18.0.0/15", OUT, IN, IN),
    ("198.51.100.0/24", OUT, IN, IN),
    ("203.0.113.0/24", OUT, IN, IN),
    ("224.0.0.0/4", OUT, IN, OUT),
    ("240.0.0.0/4", OUT, OUT, EDGE),
    ("255.255.255.255/32", OUT, OUT, EDGE),
    ("::/128", OUT, EDGE, OUT),
    ("::1/128", OUT, OUT, OUT),
    ("::/96", OUT, EDGE, OUT),
    ("::ffff:0:0:0/96", OUT, OUT, OUT),
    ("64:ff9b:1::/48", OUT, OUT, OUT),
    ("100::/64", OUT, OUT, OUT),
    ("100:0:0:1::/64", OUT, OUT, OUT),
    ("2000::/3", None, OUT, OUT),
    ("2001::/23", None, IN, IN),
    ("2001::/32", OUT, IN, OUT),
    ("2001:1::1/128", OUT, OUT, OUT),
    ("2001:1::2/128", OUT, OUT, OUT),
    ("2001:1::3/128", OUT, OUT, OUT),
    ("2001:2::/48", OUT, OUT, OUT),
    ("2001:3::/32", IN, OUT, OUT),
    ("2001:4:112::/48", IN, OUT, OUT),
    ("2001:10::/28", OUT, OUT, IN),
    ("2001:20::/28", IN, OUT, IN),
    ("2001:30::/28", IN, IN, OUT),
    ("2001:db8::/32", OUT, IN, IN),
    ("2002::/16", None, IN, IN),
    ("2620:4f:8000::/48", IN, IN, IN),
    ("3fff::/20", OUT, IN, IN),
    ("5f00::/16", OUT, OUT, OUT),
    ("fc00::/7", OUT, OUT, OUT),
    ("fe80::/10", OUT, OUT, OUT),
    ("fec0::/10", OUT, OUT, OUT),
    ("ff00::/8", OUT, OUT, EDGE),
]


@pytest.mark.parametrize(("network", "inside", "before", "after"), LINES, ids=[line[0] for line in LINES])
def test_a_network_ends_where_it_ends(
    network: str, inside: bool | None, before: bool | None, after: bool | None
) -> None:
    first, last = ip_network(network)[0], ip_network(network)[-1]
    if inside is not None:
        assert (is_allowed(str(first)), is_allowed(str(last))) == (inside, inside)
    if before is not EDGE:
        assert is_allowed(str(first - 1)) is before
    if after is not EDGE:
        assert is_allowed(str(last + 1)) is after


@pytest.mark.parametrize("special", special_networks(), ids=lambda special: str(special.network))
def test_the_table_is_what_decides(special: object) -> None:
    """Each of its lines, and through IPv6 the same IPv4 addresses."""
    [found] = [each for each in special_networks() if each is special]
    assert found.reach in {"public", "refused", "ipv4", "metadata"} and found.what
    if found.network.num_addresses == 1 and found.reach != "public":
        assert not is_allowed(str(found.network[0]))
    if not isinstance(found.network, IPv4Network):
        return
    for address in (found.network[0], found.network[-1]):
        number = int(address)
        forms = (f"::ffff:{address}", f"64:ff9b::{address}", f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1")
        assert [is_allowed(form) for form in forms] == [is_allowed(str(address))] * 3


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700::1", "2a00:1450:4001:82a::200e"])
def test_the_public_internet_is_allowed(address: str) -> None:
    assert is_allowed(address)


def test_a_network_that_is_named_is_allowed() -> None:
    home = [ip_network("192.168.7.0/24"), ip_network("fd00::/8")]
    assert is_allowed("192.168.7.9", home) and is_allowed("::ffff:192.168.7.9", home) and is_allowed("fd00::9", home)
    assert not is_allowed("192.168.8.9", home)


@pytest.mark.parametrize(
    ("address", "wide"),
    [
        ("169.254.169.254", "169.254.0.0/16"),
        ("168.63.129.16", "168.63.0.0/16"),
        ("100.100.100.200", "100.64.0.0/10"),
        ("fd00:ec2::254", "fd00::/8"),
        ("::ffff:169.254.169.254", "0.0.0.0/0"),
    ],
)
def test_the_credentials_of_a_cloud_are_never_meant_by_a_wide_network(address: str, wide: str) -> None:
    assert not is_allowed(address, [ip_network(wide)])
    if "ffff" not in address:
        assert is_allowed(address, [ip_network(ip_address(address))])


@pytest.mark.parametrize(("url", "code"), MALFORMED.items(), ids=ascii)
def test_a_malformed_place_is_refused_and_no_accident(url: str, code: str) -> None:
    with pytest.raises(FetchRefused) as caught:
        checked_url(url)
    assert caught.value.code == code
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("url", ["http://\u00e4.example/a b?c=\u00e4", "https://a_b.example.", "http://8.8.8.8:8080/"])
def test_what_is_merely_unusual_is_a_url(url: str) -> None:
    assert parsed_url(url).host
