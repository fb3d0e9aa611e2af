"""Proxies: HTTP CONNECT and SOCKS, played by hand over a memory stream."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trio_nova.errors import ConfigError, ConnectFailed, explain
from trio_nova.links._dial import open_stream

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
    assert "too long" in str(await failure(peer, HTTP, b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000))


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
        await open_stream(peer.dial(proxy=HTTP))


async def test_cancelling_the_proxys_handshake_closes_the_stream(peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: open_stream(peer.dial(proxy=HTTP)))
        await peer.read_request()
        nursery.cancel_scope.cancel()
    assert await peer.read_to_the_end() == b""
