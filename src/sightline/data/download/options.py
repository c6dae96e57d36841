"""Options and fixed limits of downloads. Imports no optional package."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from sightline.data.images.opener import DEFAULT_LIMITS
from sightline.errors import UsageError

Network = IPv4Network | IPv6Network

MAX_BYTES = DEFAULT_LIMITS.max_bytes  # the image opener would refuse more
MAX_REDIRECTS = 5
MAX_URL = 4096
OPEN_PORTS = frozenset({80, 443})


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """How images are fetched.

    Attributes:
        connections: requests at a time.
        per_host: requests at a time to one host.
        tries: attempts per URL after temporary failures (408, 425, 429, 5xx, broken connections).
        seconds: from the request to the last byte, redirects included; time in the queue does not count.
        connect_seconds: to find an address, and to connect to it.
        silence_seconds: between two bytes.
        pause_seconds: before the second try; doubled for each further one, unless the server says how long.
        max_pause_seconds: a URL whose server asks for a longer pause fails.
        allowed: private networks that may be connected to, at any port.
    """

    connections: int = 64
    per_host: int = 4
    tries: int = 4
    seconds: float = 30.0
    connect_seconds: float = 10.0
    silence_seconds: float = 15.0
    pause_seconds: float = 1.0
    max_pause_seconds: float = 60.0
    allowed: tuple[Network, ...] = ()

    def __post_init__(self) -> None:
        if min(self.connections, self.per_host, self.tries) < 1 or self.seconds <= 0:
            raise UsageError("--connections, --per-host and --tries are at least 1, --url-seconds is above 0.")


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; a single address is a network of one.

    Raises:
        UsageError: one is not of that form.
    """
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            raise UsageError(f"--allow-network {text!r}: {error}.", "For example: --allow-network 10.1.0.0/16") from error
    return tuple(networks)
