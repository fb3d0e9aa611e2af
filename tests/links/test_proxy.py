"""Proxies: HTTP CONNECT and SOCKS, played by hand over a memory stream."""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing
import trustme

from trio_nova.errors import ConfigError, ConnectFailed, TlsFailed, explain
from trio_nova.links import Transport
from trio_nova.links._dial import open_stream
from trio_nova.testing import ScriptedServer, echo, make_dial

if TYPE_CHECKING:
    from tests.links.conftest import Peer

HTTP = "http://alice:CANARY@proxy.test:3128"


async def failure(peer: Peer, proxy: str, *answers: bytes, hang_up: bool = False) -> ConnectFailed:
    async def respond() -> None:
        for answer in answers:
            await peer.stream.receive_some(4096)
            await peer.send(answer)
        if hang_up:
            await peer.stream.receive_some(4096)
            await peer.hang_up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond)
        with pytest.raises(ConnectFailed) as caught:
            await open_stream(peer.dial("ws://inner.test/", proxy=proxy))
    assert caught.value.phase == "proxy"
    assert "CANARY" not in explain(caught.value)
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))
    if not hang_up:
        assert await peer.read_to_the_end() == b""
    with pytest.raises(trio.ClosedResourceError):
        await peer.client.send_all(b"x")
    return caught.value


async def tunnel(peer: Peer, answer: bytes, url: str = "ws://inner.test/", proxy: str = "http://proxy.test") -> bytes:
    """Return the request of a dial whose proxy gives this answer, and opens the tunnel with it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.answer, answer)
        stream = await open_stream(peer.dial(url, proxy=proxy))
    await peer.send(b"tunnelled")
    assert await stream.receive_some(100) == b"tunnelled"
    return peer.request


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 201 Created\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 299 \r\n\r\n",
        b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: much\r\n\r\n",
    ],
)
async def test_any_2xx_is_a_tunnel_whatever_comes_before_it_or_is_said_of_a_body(peer: Peer, answer: bytes) -> None:
    await tunnel(peer, answer)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "status 101"),
        (b"HTTP/1.1 300 Choose\r\n\r\n", "status 300"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9, "interim"),
        (b"HTTP/2 200 alice:CANARY\r\n\r\n", "status-line"),
        (b"alice:CANARY\r\n\r\n", "status-line"),
        (b"HTTP/1.1 200 OK\r\nalice:CANARY\x00\r\n\r\n", "nul"),
        (b"HTTP/1.1 200 OK\n\n", "line-ending"),
    ],
)
async def test_what_is_no_tunnel_is_refused(peer: Peer, answer: bytes, why: str) -> None:
    assert why in str(await failure(peer, HTTP, answer))


async def test_a_proxy_is_told_an_address_in_brackets_and_without_its_zone(peer: Peer) -> None:
    request = await tunnel(peer, b"HTTP/1.1 200 OK\r\n\r\n", "ws://[fe80::1%25eth0]:99/")
    assert request.startswith(b"CONNECT [fe80::1]:99 HTTP/1.1\r\nHost: [fe80::1]:99\r\n")


@pytest.mark.parametrize(
    ("login", "sent"),
    [
        ("alice:p%40w%3A", b"alice:p@w:"),
        ("token", b"token:"),
        (":pw", b":pw"),
        ("%C3%A4:\u00df", b"\xc3\xa4:\xc3\x9f"),
        ("", None),
    ],
)
async def test_the_login_for_the_proxy_is_sent_as_its_url_says(peer: Peer, login: str, sent: bytes | None) -> None:
    request = await tunnel(peer, b"HTTP/1.1 200 OK\r\n\r\n", proxy=f"http://{login}@proxy.test")
    found = re.search(rb"Proxy-Authorization: Basic (\S+)\r\n", request)
    assert (found and base64.b64decode(found[1])) == sent


async def test_a_proxy_is_found_by_the_rules_of_any_other_host(peer: Peer) -> None:
    dialled: list[tuple[str, int]] = []

    async def refuse(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        dialled.append((host, port))
        raise OSError

    for proxy in ("http://fa\u00df.de", "socks5://[fe80::1%25eth0]", "https://PROXY.test."):
        with pytest.raises(ConnectFailed):
            await open_stream(peer.dial(proxy=proxy, stream_factory=refuse))
    assert dialled == [("xn--fa-hia.de", 80), ("fe80::1%eth0", 1080), ("proxy.test", 443)]


# --------------------------------------------------------------------------- a proxy that is spoken to over TLS


class TlsProxy:
    """A proxy over TLS, to one server; keeps what it was asked, and says whether all it had was closed."""

    def __init__(self, server: ScriptedServer, host: str = "proxy.test") -> None:
        self.server = server
        self.authority = trustme.CA()
        self.certificate = self.authority.issue_cert(host)
        self.asked = b""
        self.ended = False

    @property
    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    async def serve(self, nursery: trio.Nursery, host: str, port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(self._serve, ours)
        await trio.lowlevel.checkpoint()
        return theirs

    async def _serve(self, stream: trio.abc.Stream) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certificate.configure_cert(context)
        outer = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            async with outer, await self.server.stream_factory("server.test", 443) as inner:
                while b"\r\n\r\n" not in self.asked:
                    self.asked += await outer.receive_some()
                await outer.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
                async with trio.open_nursery() as nursery:
                    for source, to in ((outer, inner), (inner, outer)):
                        nursery.start_soon(self._pass_on, source, to, nursery.cancel_scope)
        self.ended = True

    async def _pass_on(self, source: trio.abc.Stream, to: trio.abc.Stream, both: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await to.send_all(data)
        both.cancel()


@pytest.mark.parametrize("url", ["ws://server.test/", "wss://server.test/"])
@pytest.mark.parametrize("leave", ["aclose", "abort"])
async def test_a_proxy_may_be_spoken_to_over_tls_and_to_the_server_over_tls_within_it(
    transport: Transport, url: str, leave: str
) -> None:
    async with ScriptedServer(echo, tls=url.startswith("wss")) as server, trio.open_nursery() as nursery:
        proxy = TlsProxy(server)
        dial = attrs.evolve(
            make_dial(server, url, ssl_context=server.client_ssl_context),
            headers=(("Authorization", "Bearer of-the-server"),),
            proxy="https://alice:CANARY@proxy.test",
            proxy_ssl_context=proxy.trusting,
            stream_factory=partial(proxy.serve, nursery),
        )
        async with transport.open(dial) as link:
            await link.send_all(["x" * 100_000])
            frames: list[object] = []
            while not frames:
                frames += await link.receive_some()
            assert frames == ["x" * 100_000]
            if leave == "aclose":
                await link.aclose()
            else:
                link.abort()
    assert proxy.ended
    assert b"Proxy-Authorization: Basic YWxpY2U6Q0FOQVJZ\r\n" in proxy.asked
    assert b"of-the-server" not in proxy.asked
    request = server.dials[0].request
    assert request is not None
    assert "proxy-authorization" not in request.headers


async def test_a_proxy_whose_certificate_is_not_trusted_hears_no_login() -> None:
    async with ScriptedServer(echo) as server, trio.open_nursery() as nursery:
        proxy = TlsProxy(server)
        dial = attrs.evolve(
            make_dial(server),
            proxy="https://alice:CANARY@proxy.test",
            ssl_context=proxy.trusting,  # that is for the server
            proxy_ssl_context=ssl.create_default_context(),
            stream_factory=partial(proxy.serve, nursery),
        )
        with pytest.raises(TlsFailed) as caught:
            await open_stream(dial)
    assert (caught.value.phase, caught.value.reason, caught.value.retry) == ("proxy", "untrusted", "never")
    assert proxy.asked == b""


async def test_a_plain_proxy_that_is_called_https_is_told_apart(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(TlsFailed, match=r"proxy\.test:443 does not speak TLS") as caught:
            await open_stream(peer.dial(proxy="https://proxy.test", proxy_ssl_context=ssl.create_default_context()))
    assert caught.value.phase == "proxy"


# --------------------------------------------------------------------------- HTTP and SOCKS, by hand


async def test_an_http_proxy_opens_the_tunnel_and_looks_up_the_name(peer: Peer) -> None:
    phases: list[str] = []
    async with trio.open_nursery() as nursery:

        async def respond() -> None:
            await peer.read_request()
            for piece in (b"HTTP/1.1 200 OK\r", b"\nVia: x\r\n\r", b"\n"):  # one read of it would not be enough
                await peer.send(piece)
                await trio.testing.wait_all_tasks_blocked()
            await peer.send(b"tunnelled")

        nursery.start_soon(respond)
        stream = await open_stream(peer.dial("ws://inner.test:99/", proxy=HTTP, on_phase=phases.append))
        assert await stream.receive_some(100) == b"tunnelled"
    assert peer.request.startswith(b"CONNECT inner.test:99 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic YWxpY2U6Q0FOQVJZ\r\n" in peer.request
    assert phases == ["proxy", "tcp", "proxy"]


@pytest.mark.fault("F41", where="memory")
@pytest.mark.parametrize("status", [401, 407])
async def test_a_proxy_that_wants_other_credentials_is_not_asked_again(peer: Peer, status: int) -> None:
    exc = await failure(peer, HTTP, b"HTTP/1.1 %d alice:CANARY is wrong\r\n\r\n" % status)
    assert f"other credentials with status {status}" in str(exc)
    assert exc.retry == "never"


@pytest.mark.parametrize(("status", "retry"), [(403, "never"), (404, "never"), (429, "backoff"), (502, "backoff")])
async def test_what_a_proxy_refuses_is_judged_by_the_table_of_statuses(peer: Peer, status: int, retry: str) -> None:
    exc = await failure(peer, HTTP, b"HTTP/1.1 %d No\r\n\r\n" % status)
    assert f"refuses to connect with status {status}" in str(exc)
    assert exc.retry == retry


@pytest.mark.parametrize(
    ("reply", "retry"),
    [(1, "backoff"), (2, "never"), (3, "backoff"), (4, "backoff"), (5, "backoff"), (6, "backoff"), (7, "never")],
)
async def test_what_a_socks5_proxy_refuses_is_judged_by_its_reply(peer: Peer, reply: int, retry: str) -> None:
    exc = await failure(peer, "socks5://proxy.test", b"\x05\x00", bytes((5, reply, 0, 1, 0, 0, 0, 0, 0, 0)))
    assert f"refuses to connect with status {reply}" in str(exc)
    assert exc.retry == retry


@pytest.mark.parametrize(("reply", "retry"), [(91, "backoff"), (92, "never"), (93, "never")])
async def test_what_a_socks4_proxy_refuses_is_judged_by_its_reply(peer: Peer, reply: int, retry: str) -> None:
    exc = await failure(peer, "socks4://proxy.test", bytes((0, reply, 0, 0, 0, 0, 0, 0)))
    assert f"refuses to connect with status {reply}" in str(exc)
    assert exc.retry == retry


async def test_a_proxy_that_cannot_reach_the_server_may_later(peer: Peer) -> None:
    exc = await failure(peer, HTTP, b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nsorry")
    assert "503" in str(exc)
    assert exc.retry == "backoff"


@pytest.mark.fault("F41", where="memory")
async def test_bytes_before_the_tunnel_is_used_are_not_taken_for_the_servers(peer: Peer) -> None:
    assert "more than" in str(await failure(peer, HTTP, b"HTTP/1.1 200 OK\r\n\r\n\x16\x03"))


@pytest.mark.fault("F41", where="memory")
async def test_an_endless_answer_is_refused(peer: Peer) -> None:
    assert "head too large" in str(await failure(peer, HTTP, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000))


@pytest.mark.parametrize("proxy", [HTTP, "socks5://proxy.test", "socks4://proxy.test"])
async def test_a_proxy_that_hangs_up_may_be_back_later(peer: Peer, proxy: str) -> None:
    assert (await failure(peer, proxy, hang_up=True)).retry == "backoff"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_socks5_proxy_logs_in_and_looks_up_the_name(peer: Peer, scheme: str) -> None:
    heard: list[bytes] = []

    async def respond() -> None:
        for answer in (b"\x05\x02", b"\x01\x00", b"\x05\x00\x00\x01\x7f\0\0\1\0\x50"):
            heard.append(bytes(await peer.stream.receive_some(4096)))
            await peer.send(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond)
        await open_stream(peer.dial("ws://inner.test/", proxy=f"{scheme}://alice:p%40w@proxy.test"))
    assert heard[1] == b"\x01\x05alice\x03p@w"
    assert b"\x0ainner.test\x00\x50" in heard[2]


async def test_a_socks5_proxy_that_refuses_the_login_is_not_asked_again(peer: Peer) -> None:
    exc = await failure(peer, "socks5://alice:CANARY@proxy.test", b"\x05\x02", b"\x01\x01")
    assert exc.retry == "never"


async def test_a_socks4_proxy_is_given_the_name(peer: Peer) -> None:
    heard: list[bytes] = []

    async def respond() -> None:
        heard.append(bytes(await peer.stream.receive_some(4096)))
        await peer.send(b"\x00\x5a\0\0\0\0\0\0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond)
        await open_stream(peer.dial("ws://inner.test/", proxy="socks4://proxy.test"))
    assert heard[0].endswith(b"inner.test\0")


async def test_a_proxy_out_of_reach_is_a_failure_of_the_proxy(peer: Peer) -> None:
    async def refuse(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "refused")

    with pytest.raises(ConnectFailed, match=r"proxy\.test:3128") as caught:
        await open_stream(peer.dial(proxy=HTTP, stream_factory=refuse))
    assert caught.value.phase == "proxy"


@pytest.mark.parametrize("proxy", ["ftp://u:CANARY@h:1", "http://u:CANARY@h:x", "http://", "http://u:CANARY@:80"])
async def test_a_wrong_proxy_url_is_an_option_in_error_and_not_repeated(peer: Peer, proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await open_stream(peer.dial(proxy=proxy))
    assert caught.value.field == "proxy"
    assert "CANARY" not in explain(caught.value)


async def test_a_missing_package_says_what_to_install(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with pytest.raises(ConfigError, match=r"trio-nova\[proxy\]"):
        await open_stream(peer.dial(proxy="socks5://proxy.test"))


async def test_an_http_proxy_needs_no_package(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    assert (
        await tunnel(peer, b"HTTP/1.1 200 OK\r\n\r\n")
        == b"CONNECT inner.test:80 HTTP/1.1\r\nHost: inner.test:80\r\n\r\n"
    )


@pytest.mark.parametrize("user", ["a" * 256, "é"])  # SOCKS has a byte for the length, python-socks writes ASCII
async def test_a_login_that_cannot_be_written_is_not_tried_again(peer: Peer, user: str) -> None:
    exc = await failure(peer, f"socks5://{user}:CANARY@proxy.test", b"\x05\x02")
    assert exc.retry == "never"


@pytest.mark.parametrize("broken", ["__init__", "connect"])
async def test_what_breaks_in_the_package_for_proxies_would_break_again(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def breaks(*arguments: object, **options: object) -> None:
        raise AttributeError("another python-socks than was asked for")

    monkeypatch.setattr(f"python_socks.async_.trio.v2.Proxy.{broken}", breaks)
    exc = await failure(peer, "socks5://proxy.test")
    assert exc.retry == "never"
    assert str(exc).endswith("cannot be used: AttributeError")


async def test_cancelling_the_proxys_handshake_closes_the_stream(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: open_stream(peer.dial(proxy=HTTP)))
        await peer.read_request()
        nursery.cancel_scope.cancel()
    assert await peer.read_to_the_end() == b""
