"""Which addresses may be connected to: a table of every kind of closed address, and the standard library as a second opinion."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.download import parse_networks
from sightline.data.download.addresses import CLOSED, is_allowed, refusal
from sightline.errors import UsageError

CLOSED_ADDRESSES = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # metadata of a cloud
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # metadata of a cloud under a public address
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",  # IPv4-compatible
    "::8.8.8.8",
    "::ffff:10.0.0.1",  # IPv4-mapped
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",  # NAT64 within a network
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata of a cloud
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
OPEN_ADDRESSES = [
    "1.1.1.1",
    "8.8.8.8",
    "11.0.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.1",
    "192.167.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001:800::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize("text", CLOSED_ADDRESSES)
def test_addresses_that_are_not_public_are_refused_with_the_reason(text: str) -> None:
    assert refusal(ip_address(text), ())


@pytest.mark.parametrize("text", OPEN_ADDRESSES)
def test_public_addresses_may_be_reached(text: str) -> None:
    assert refusal(ip_address(text), ()) == ""


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 2**32 - 1).map(IPv4Address)))
@settings(max_examples=500, deadline=None)
def test_what_may_be_reached_is_global_and_not_multicast_for_the_standard_library_too(address: IPv4Address | IPv6Address) -> None:
    if not refusal(address, ()):
        wraps = address.version == 6 and address.exploded.startswith(("0064:ff9b:0000:", "0000:"))
        inner = IPv4Address(address.packed[-4:]) if wraps else address
        assert inner.is_global
        assert not any((inner.is_multicast, inner.is_loopback, inner.is_link_local, inner.is_unspecified, inner.is_reserved))


@pytest.mark.parametrize("network", CLOSED, ids=str)
def test_a_closed_network_is_closed_from_its_first_to_its_last_address(network: object) -> None:
    closed = ip_network(str(network))
    assert refusal(closed[0], ())
    assert refusal(closed[-1], ())


def test_an_allowed_network_opens_itself_in_every_spelling_and_nothing_else() -> None:
    allowed = parse_networks(["127.0.0.1/32", "fd00::/8", "10.1.0.0/16"])
    for text in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fd12::1", "10.1.255.255"):
        assert refusal(ip_address(text), allowed) == ""
        assert is_allowed(ip_address(text), allowed)
    for text in ("127.0.0.2", "::ffff:127.0.0.2", "10.2.0.0", "fc00::1", "::127.0.0.1"):
        assert refusal(ip_address(text), allowed)
    assert not is_allowed(ip_address("8.8.8.8"), allowed)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "localhost", "10.1.2.3/8", ""])
def test_a_network_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--allow-network"):
        parse_networks([text])
