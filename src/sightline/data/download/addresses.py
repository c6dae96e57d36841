"""Which addresses may be connected to: public ones, and those in networks that the user allowed.

The rule is a list of its own, not `ipaddress.is_global`: that calls multicast, NAT64, 6to4 and Teredo addresses global, and
changes between versions of Python. An IPv6 address that only wraps an IPv4 address is judged as what it wraps.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_network

from sightline.data.download.options import Network

Address = IPv4Address | IPv6Address

# The low 32 bits are the IPv4 address that packets end at: IPv4-mapped, IPv4-translated (RFC 2765), NAT64 (RFC 6052).
WRAPPERS = tuple(map(ip_network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
CLOSED = {
    ip_network(text): why
    for text, why in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "a private network"),
        ("100.64.0.0/10", "a provider's inner network"),
        ("127.0.0.0/8", "this host"),
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata service"),
        ("172.16.0.0/12", "a private network"),
        ("192.0.0.0/24", "a reserved network"),
        ("192.0.2.0/24", "for documentation"),
        ("192.88.99.0/24", "a reserved network"),
        ("192.168.0.0/16", "a private network"),
        ("198.18.0.0/15", "for tests of networks"),
        ("198.51.100.0/24", "for documentation"),
        ("203.0.113.0/24", "for documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "a reserved network"),
        ("2001::/23", "a reserved network (Teredo, benchmarks, ORCHID)"),
        ("2001:db8::/32", "for documentation"),
        ("2002::/16", "a tunnel (6to4)"),
        ("3fff::/20", "for documentation"),
    )
}
PUBLIC_IPV6 = ip_network("2000::/3")  # all that is given to networks of the internet; private, local and multicast lie outside


def refusal(address: Address, allowed: Iterable[Network]) -> str:
    """Returns why an address must not be connected to; empty when it may."""
    inner = unwrapped(address)
    if any(address in network or inner in network for network in allowed):
        return ""
    for network, why in CLOSED.items():
        if inner in network:
            return f"{address} is {why}"
    if isinstance(inner, IPv6Address) and inner not in PUBLIC_IPV6:
        return f"{address} is no public address"
    return ""


def is_allowed(address: Address, allowed: Iterable[Network]) -> bool:
    """Returns whether an address lies in a network that the user allowed, where every port may be used."""
    inner = unwrapped(address)
    return any(address in network or inner in network for network in allowed)


def unwrapped(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 address stands for, or the address itself."""
    if any(address in wrapper for wrapper in WRAPPERS):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
