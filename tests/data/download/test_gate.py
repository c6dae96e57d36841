"""URLs are read once and strictly; connections go to addresses that were checked, whatever a resolver says later."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.download import DownloadOptions, parse_networks
from sightline.data.download.fetch import Fetcher, FetchResult
from sightline.data.download.gate import Gate, look_up, parse_url
from sightline.errors import RecordError
from tests.data.download.server import serving

LOOPBACK = parse_networks(["127.0.0.1/32"])
REFUSED = [
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "data:image/png;base64,AAAA",
    "gopher://example.com/",
    "pipe:cat /etc/passwd",
    "s3://bucket/a.png",
    "//example.com/a.png",
    "example.com/a.png",
    "/etc/passwd",
    "http://me:secret@example.com/",
    "http://me@example.com/",
    "http://@example.com/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.0.1.0x1/",
    "http://[fe80::1%25eth0]/",
    "http://[::1",
    "http://①②⑦.0.0.1/",
    "http://127.0.0%2e1/",
    "http://example.com\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://exa mple.com/",
    "http://example.com:0/",
    "http://example.com:70000/",
    "http://example.com:eighty/",
    "http://a..b/",
    "http://-a.com/",
    "http:///a.png",
    "http://example.com/a\nHost: other",
    "http://example.com/\x00",
    "http://example.com/\ud800",
    "http://" + "a" * 300 + ".com/",
    "http://example.com/" + "a" * 5000,
    "",
    "   ",
    None,
    17,
]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text)[:40])
def test_what_is_no_plain_web_address_is_refused_before_anything_is_asked(text: object) -> None:
    with pytest.raises(RecordError) as caught:
        parse_url(text)
    assert caught.value.reason in ("bad_url", "url_refused")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("http://Example.COM/a.png", "example.com", 80, b"/a.png"),
        (" https://example.com:8443/a b.png?x=1&y=@#part \n", "example.com", 8443, b"/a%20b.png?x=1&y=@"),
        ("https://例え.jp/写真.jpg", "xn--r8jz45g.jp", 443, b"/%E5%86%99%E7%9C%9F.jpg"),
        ("http://example.com.", "example.com.", 80, b"/"),
        ("http://a_b.example.com/%zz", "a_b.example.com", 80, b"/%zz"),
        ("http://1.2.3.4/", "1.2.3.4", 80, b"/"),
        ("http://[2606:4700:0::1111]/", "2606:4700::1111", 80, b"/"),
        ("http://3com.com?u=a@b", "3com.com", 80, b"/?u=a@b"),
    ],
)
def test_a_web_address_is_taken_apart(text: str, host: str, port: int, path: bytes) -> None:
    target = parse_url(text)
    assert (target.host, target.port, target.url.raw_path) == (host, port, path)
    assert target.parts.host == host.encode()


@given(st.one_of(st.text(max_size=60), st.text("htps:/@[]%\\.0127xa#?é ", max_size=30).map("http://".__add__)))
@settings(max_examples=500, deadline=None)
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    try:
        host = parse_url(text).host
    except RecordError:
        return
    assert host
    assert not set(host) & set("@/\\%?# ")


# Addresses ------------------------------------------------------------------------------------------------------------------


def asked(host: str, answers: list[str], port: int = 80, **options: Any) -> list[str]:
    """The addresses that the gate lets through when the resolver gives these answers."""

    async def run() -> list[str]:
        return [str(found) for found in await Gate(DownloadOptions(**options), lambda host, port: answers).addresses(host, port)]

    return asyncio.run(run())


def test_a_host_with_public_addresses_is_reached_at_them() -> None:
    assert asked("example.com", ["93.184.215.14", "2606:4700::1111"]) == ["93.184.215.14", "2606:4700::1111"]
    assert asked("93.184.215.14", ["10.0.0.1"]) == ["93.184.215.14"]


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["::1"], ["169.254.169.254"], ["64:ff9b::a00:1"], ["fe80::1%2"]]
)
def test_a_host_with_one_closed_address_is_refused(answers: list[str]) -> None:
    with pytest.raises(RecordError) as caught:
        asked("evil.example", answers)
    assert caught.value.reason == "url_refused"


def test_other_ports_are_open_in_allowed_networks_alone() -> None:
    with pytest.raises(RecordError, match="port 8080"):
        asked("example.com", ["93.184.215.14"], 8080)
    assert asked("example.com", ["10.1.2.3"], 8080, allowed=parse_networks(["10.1.0.0/16"])) == ["10.1.2.3"]


@pytest.mark.parametrize("answers", [[], ["what"]])
def test_a_host_without_an_address_is_told(answers: list[str]) -> None:
    with pytest.raises(RecordError) as caught:
        asked("example.com", answers)
    assert caught.value.reason == "download_no_host"


def test_a_resolver_that_hangs_is_not_waited_for() -> None:
    release = threading.Event()

    async def run() -> None:
        gate = Gate(DownloadOptions(connect_seconds=0.05), lambda host, port: [str(release.wait(20))])
        await gate.addresses("example.com", 80)

    with pytest.raises(RecordError, match="no address"):
        asyncio.run(run())
    release.set()


def test_the_resolver_of_the_machine_knows_this_host() -> None:
    assert set(look_up("localhost", 80)) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match=r"\w"):
        look_up("no-such-host.invalid", 80)


# Connections ----------------------------------------------------------------------------------------------------------------


def fetched(url: str, resolve: Callable[[str, int], list[str]], tmp_path: Any, **options: Any) -> FetchResult:
    async def run() -> FetchResult:
        settings = DownloadOptions(**{"seconds": 5.0, "pause_seconds": 0.01, "allowed": LOOPBACK, **options})
        return await Fetcher(settings, Gate(settings, resolve)).fetch(url, tmp_path / "part")

    return asyncio.run(run())


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Any) -> None:
    """DNS rebinding: the second answer would lead inside, but nobody asks a second time."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    with serving() as server:
        got = fetched(server.url("ok/1", "rebind.test"), lambda host, port: answers.pop(0), tmp_path)
        assert (got.reason, len(answers), server.knocks) == ("", 1, 0)
        assert server.peak[f"rebind.test:{server.port}"] == 1


def test_an_address_that_does_not_answer_is_followed_by_the_next(tmp_path: Any) -> None:
    with serving() as server:
        found = ["127.0.0.3", "127.0.0.1"]  # nobody listens on the first
        allowed = parse_networks(["127.0.0.0/24"])
        with pytest.MonkeyPatch.context() as patch:
            plain = Gate(DownloadOptions())._plain
            patch.setattr(type(plain), "connect_tcp", refusing(type(plain).connect_tcp, "127.0.0.3"))
            got = fetched(server.url("ok/1", "two.test"), lambda host, port: found, tmp_path, allowed=allowed)
        assert got.reason == ""


def refusing(connect: Any, address: str) -> Any:
    import httpcore

    async def connect_tcp(self: object, host: str, *rest: Any) -> object:
        if host == address:
            raise httpcore.ConnectError("refused")
        return await connect(self, host, *rest)

    return connect_tcp


def test_a_port_where_nobody_listens_is_told(tmp_path: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        got = fetched(f"http://127.0.0.1:{free.getsockname()[1]}/", look_up, tmp_path, tries=2)
    assert (got.reason, got.is_temporary) == ("download_no_connection", True)
    assert not (tmp_path / "part").exists()


def test_tls_asks_for_the_name_of_the_host_and_takes_no_plain_answer(tmp_path: Any) -> None:
    """The address is pinned, but server name and certificate are those of the host."""
    hello = b""

    def answer(listener: socket.socket) -> None:
        nonlocal hello
        connection, _ = listener.accept()
        with connection:
            hello = connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        url = f"https://images.test:{listener.getsockname()[1]}/a.png"
        got = fetched(url, lambda host, port: ["127.0.0.1"], tmp_path)
        thread.join()
    assert got.reason == "download_tls"
    assert b"images.test" in hello
