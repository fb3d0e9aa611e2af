"""The answer to the upgrade request: what passes, and what is refused at once."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from trio_nova.errors import ConnectFailed, HandshakeInvalid, HandshakeRejected
from trio_nova.links import Dial, TrioWebsocketTransport

if TYPE_CHECKING:
    from tests.links.conftest import Peer


async def refusal(dial: Dial) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as caught:
        async with TrioWebsocketTransport().open(dial):
            pytest.fail("the link came up")
    return caught.value


async def refused(peer: Peer, response: bytes, **fields: Any) -> ConnectFailed:
    """Return what the client says to `response`, though the peer keeps the connection open."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.answer, response)
        return await refusal(peer.dial(**fields))


@pytest.mark.fault("F28", "F33", "F39", "F40", where="memory")
@pytest.mark.parametrize(
    ("drop", "add", "rule"),
    [
        (b"Sec-WebSocket-Accept", b"", "accept"),
        (b"Sec-WebSocket-Accept", b"Sec-WebSocket-Accept: AAAA", "accept"),
        (b"", b"Sec-WebSocket-Accept: AAAA", "accept"),
        (b"Upgrade", b"", "upgrade"),
        (b"Upgrade", b"Upgrade: h2c", "upgrade"),
        (b"Connection", b"", "connection"),
        (b"Connection", b"Connection: keep-alive", "connection"),
        (b"HTTP", b"HTTP/1.0 101 Switching", "version"),
        (b"", b"Sec-WebSocket-Extensions: permessage-deflate", "extension"),
        (b"", b"Sec-WebSocket-Protocol: foreign", "subprotocol"),
        (b"", b"Sec-WebSocket-Protocol: a, b", "subprotocol"),
        (b"", b"Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a", "subprotocol"),
        (b"", b" folded", "obs-fold"),
        (b"", b"no colon", "header"),
        (b"", b"space : x", "header"),
        (b"", b"X: a\0b", "nul"),
        (b"", b"X: a\nY: b", "line-ending"),
        (b"", b"X: a\x07b", "header"),
        (b"", b"Content-Length: 0\r\nTransfer-Encoding: chunked", "framing"),
    ],
)
async def test_a_wrong_101_is_refused_at_once_and_by_its_rule(
    peer: Peer, autojump_clock: trio.testing.MockClock, drop: bytes, add: bytes, rule: str
) -> None:
    async def respond() -> None:
        await peer.read_request()
        lines = peer.response().split(b"\r\n")[:-2]
        status = [b"HTTP/1.1 101 X"] if not drop.startswith(b"HTTP") else [add]
        kept = [line for line in lines[1:] if not drop or not line.startswith(drop)]
        extra = [add] if add and not drop.startswith(b"HTTP") else []
        await peer.send(b"\r\n".join([*status, *kept, *extra, b"", b""]))

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond)
        exc = await refusal(peer.dial(subprotocols=("a", "b")))
    assert isinstance(exc, HandshakeInvalid)
    assert exc.rule == rule
    assert (exc.phase, exc.retry) == ("http", "never" if rule == "extension" else "backoff")
    assert trio.current_time() == before
    assert await peer.read_to_the_end() == b""


@pytest.mark.fault("F19", where="memory")
@pytest.mark.parametrize("junk", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x16", b"HTTP/2 101"])
async def test_what_is_no_http_is_refused_before_its_end(peer: Peer, junk: bytes) -> None:
    exc = await refused(peer, junk)
    assert isinstance(exc, HandshakeInvalid)
    assert (exc.rule, exc.retry) == ("status-line", "backoff")


@pytest.mark.fault("F30", where="memory")
async def test_a_flood_of_headers_is_refused_at_64_kib(peer: Peer) -> None:
    exc = await refused(peer, b"HTTP/1.1 101 X\r\n" + b"X: y\r\n" * 500_000)
    assert isinstance(exc, HandshakeInvalid)
    assert exc.rule == "head too large"


@pytest.mark.fault("F30", where="memory")
async def test_a_head_that_trickles_in_is_understood(peer: Peer) -> None:
    async def trickle() -> None:
        await peer.read_request()
        for byte in peer.response(b"X-Server: slow"):
            await peer.send(bytes((byte,)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        async with TrioWebsocketTransport().open(peer.dial()) as link:
            assert ("x-server", "slow") in link.response_headers
            assert link.subprotocol is None


@pytest.mark.fault("F31", where="memory")
async def test_up_to_eight_interim_responses_are_skipped(peer: Peer) -> None:
    async def respond() -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 8 + peer.response())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(respond)
        async with TrioWebsocketTransport().open(peer.dial()):
            pass


@pytest.mark.fault("F31", where="memory")
async def test_endless_interim_responses_are_refused(peer: Peer) -> None:
    exc = await refused(peer, b"HTTP/1.1 100 Continue\r\n\r\n" * 9)
    assert isinstance(exc, HandshakeInvalid)
    assert exc.rule == "interim"


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 101 Sw", b"HTTP/1.1 103 Early\r\n\r\n"])
async def test_a_connection_closed_in_the_upgrade_fails_at_once(
    peer: Peer, autojump_clock: trio.testing.MockClock, begun: bytes
) -> None:
    async def vanish() -> None:
        await peer.answer(begun) if begun else await peer.read_request()
        await peer.hang_up()

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(vanish)
        exc = await refusal(peer.dial())
    assert type(exc) is ConnectFailed
    assert (exc.phase, exc.retry) == ("http", "backoff")
    assert trio.current_time() == before


async def test_a_rejection_carries_status_headers_body_and_the_time_to_wait(peer: Peer) -> None:
    exc = await refused(
        peer, b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nX-Why: load\r\nContent-Length: 4\r\n\r\nbusy and more"
    )
    assert isinstance(exc, HandshakeRejected)
    assert (exc.status, exc.body, exc.retry_after) == (503, b"busy", 7.0)
    assert ("x-why", "load") in exc.headers


async def test_a_redirect_is_a_rejection(peer: Peer) -> None:
    exc = await refused(peer, b"HTTP/1.1 302 Found\r\nLocation: ws://other.test/\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(exc, HandshakeRejected)
    assert exc.status == 302


async def test_a_date_in_retry_after_is_judged_by_the_wall_clock(peer: Peer) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600)).encode()
    exc = await refused(peer, b"HTTP/1.1 429 Slow\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % date)
    assert exc.retry_after is not None
    assert 300 < exc.retry_after <= 600


async def test_a_chunked_body_ends_with_its_last_chunk(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    exc = await refused(
        peer, b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    )
    assert isinstance(exc, HandshakeRejected)
    assert exc.body == b"abcde"
    assert trio.current_time() == before


@pytest.mark.fault("F38", where="memory")
async def test_an_endless_body_is_cut_at_4096_bytes(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    async def flood() -> None:
        await peer.answer(b"HTTP/1.1 403 No\r\n\r\n")
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await peer.send(b"x" * 1000)

    before = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        exc = await refusal(peer.dial())
    assert isinstance(exc, HandshakeRejected)
    assert len(exc.body) == 4096
    assert trio.current_time() == before


@pytest.mark.fault("F38", where="memory")
async def test_a_silent_body_is_waited_for_one_second(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    exc = await refused(peer, b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\npart")
    assert isinstance(exc, HandshakeRejected)
    assert exc.body == b"part"
    assert trio.current_time() - before == pytest.approx(1.0)


async def test_the_request_says_what_the_dial_asks(peer: Peer) -> None:
    dial = peer.dial(
        "ws://us%40er:p%3Aw@peer.test:8080/a/b?q=1",
        headers=(("X-Token", "t"), ("User-Agent", "nova")),
        subprotocols=("v1", "v2"),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept, b"Sec-WebSocket-Protocol: v2")
        async with TrioWebsocketTransport().open(dial) as link:
            assert link.subprotocol == "v2"
    lines = peer.request.split(b"\r\n")
    assert lines[0] == b"GET /a/b?q=1 HTTP/1.1"
    for line in (
        b"Host: peer.test:8080",
        b"X-Token: t",
        b"User-Agent: nova",
        b"Sec-WebSocket-Protocol: v1, v2",
        b"Authorization: Basic dXNAZXI6cDp3",
    ):
        assert line in lines


async def test_the_callers_authorization_goes_before_the_urls(peer: Peer) -> None:
    dial = peer.dial("ws://user:pw@peer.test/", headers=(("authorization", "Bearer mine"),))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept)
        async with TrioWebsocketTransport().open(dial):
            pass
    assert peer.request.lower().count(b"authorization:") == 1
    assert b"Bearer mine" in peer.request


async def test_cancelling_the_upgrade_closes_the_connection(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(3) as scope:
        async with TrioWebsocketTransport().open(peer.dial()):
            pytest.fail("the link came up")
    assert scope.cancelled_caught
    await peer.read_to_the_end()


async def test_nothing_secret_is_logged(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    dial = peer.dial("ws://peer.test/?token=CANARY", headers=(("X-Key", "CANARY"),))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.accept)
        async with TrioWebsocketTransport().open(dial) as link:
            await peer.send(peer.frame(1, b"CANARY"))
            assert await link.receive_some() == ["CANARY"]
            await link.send_all(["CANARY"])
    assert "CANARY" not in caplog.text
    assert any(record.name == "trio-websocket" for record in caplog.records)
