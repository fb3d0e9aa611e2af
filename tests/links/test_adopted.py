"""An open trio-websocket connection becomes a link."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
import trio
import trio.testing
import trio_websocket

from trio_nova import open_connection
from trio_nova.errors import ConfigError, ConnectFailed, LinkLost
from trio_nova.links import AdoptedTransport, Deflate, Link
from trio_nova.messages import Ping, Pong

if TYPE_CHECKING:
    from tests.links.conftest import Peer


@asynccontextmanager
async def adopted(peer: Peer) -> AsyncIterator[tuple[AdoptedTransport, Link]]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: peer.accept(b"Sec-WebSocket-Protocol: v1", b"X-A: b"))
        ws = await trio_websocket.wrap_client_stream(
            nursery, cast("trio.SocketStream", peer.client), "peer.test", "/", subprotocols=["v1"]
        )
        transport = AdoptedTransport(ws)
        async with transport.open(peer.dial(epoch=3)) as link:
            yield transport, link


async def test_an_adopted_connection_carries_frames_both_ways(peer: Peer) -> None:
    async with adopted(peer) as (_, link):
        assert link.subprotocol == "v1"
        assert ("x-a", "b") in link.response_headers
        assert link.stalled_since is None
        await peer.send(peer.frame(1, b"in"))
        assert await link.receive_some() == ["in"]
        await link.send_all(["out", b"bytes", Pong(b"p")])
        assert [await peer.read_frame() for _ in range(3)] == [(1, b"out"), (2, b"bytes"), (10, b"p")]


async def test_a_pong_is_seen_as_the_ping_completes_and_duplicates_do_no_harm(peer: Peer) -> None:
    async with adopted(peer) as (_, link):
        await link.send_all([Ping(b"x"), Ping(b"x")])
        assert await peer.read_frame() == (9, b"x")
        await peer.send(peer.frame(10, b"x"))
        assert await link.receive_some() == [Pong(b"x")]


async def test_there_is_no_second_one(peer: Peer) -> None:
    async with adopted(peer) as (transport, _):
        with pytest.raises(ConnectFailed) as caught:
            async with transport.open(peer.dial()):
                pass
        assert caught.value.retry == "never"


@pytest.mark.parametrize(
    ("field", "value"), [("pins", frozenset({"any"})), ("message_timeout", 60.0), ("compression", Deflate())]
)
async def test_what_cannot_be_done_to_an_open_connection_is_refused_and_not_forgotten(
    peer: Peer, field: str, value: Any
) -> None:
    async with adopted(peer) as (transport, _):
        with pytest.raises(ConfigError) as caught:
            transport.open(attrs.evolve(peer.dial(), **{field: value}))
        assert caught.value.field == field


async def test_what_an_open_connection_lacks_is_refused_by_the_call(peer: Peer) -> None:
    options: list[dict[str, Any]] = [{"pins": ["A" * 43 + "="]}, {"message_timeout": 60.0}, {"compression": "deflate"}]
    async with adopted(peer) as (transport, _):
        for option in options:
            with pytest.raises(ConfigError) as caught:
                open_connection("ws://peer.test/", transport=transport, **option)
            assert caught.value.field in option


@pytest.mark.parametrize(("payload", "code"), [(b"", 1005), ((5000).to_bytes(2) + b"bye", 1002), (b"\x03", 1002)])
async def test_a_goodbye_without_a_code_is_seen_and_of_an_illegal_one_only_that_it_was(
    peer: Peer, payload: bytes, code: int
) -> None:
    """trio-websocket puts words of its own in the place of what it finds illegal."""
    async with adopted(peer) as (_, link):
        await peer.send(peer.frame(8, payload))
        with pytest.raises(LinkLost) as caught:
            await link.receive_some()
        assert (caught.value.code, caught.value.remote) == (code, True)
        assert "bye" not in str(caught.value)
        await peer.hang_up()


async def test_the_peers_goodbye_is_reported(peer: Peer) -> None:
    async with adopted(peer) as (_, link):
        await peer.send(peer.frame(1, b"last") + peer.frame(8, b"\x0f\xa0bye"))
        assert await link.receive_some() == ["last"]
        with pytest.raises(LinkLost) as caught:
            await link.receive_some()
        exc = caught.value
        assert (exc.code, exc.reason, exc.remote, exc.epoch) == (4000, "bye", True, 3)
        with pytest.raises(LinkLost) as caught:
            await link.send_all(["late"])
        assert caught.value.code == 4000
        await peer.hang_up()


async def test_our_goodbye_is_said_and_bounded(peer: Peer, autojump_clock: trio.testing.MockClock) -> None:
    async with adopted(peer) as (_, link):
        before = trio.current_time()
        await link.aclose(4001, "done")
        assert trio.current_time() - before == pytest.approx(5.0)
        assert await peer.read_frame() == (8, b"\x0f\xa1done")
        assert await peer.read_to_the_end() == b""
        with pytest.raises(LinkLost) as caught:
            await link.receive_some()
        assert (caught.value.code, caught.value.remote) == (4001, False)


@pytest.mark.parametrize("write", [True, False])
async def test_abort_ends_it_at_once(peer: Peer, write: bool) -> None:
    async with adopted(peer) as (_, link):
        link.abort()
        with pytest.raises(LinkLost) as caught:
            await (link.send_all(["x"]) if write else link.receive_some())
        assert (caught.value.code, caught.value.remote) == (1006, None)


async def test_leaving_the_block_closes_the_connection(peer: Peer) -> None:
    async with adopted(peer):
        pass
    with pytest.raises(trio.ClosedResourceError):
        await peer.client.send_all(b"x")


async def test_a_closed_connection_cannot_be_adopted(peer: Peer) -> None:
    async with adopted(peer) as (transport, link):
        link.abort()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectFailed, match="closed"):
            async with AdoptedTransport(transport.ws).open(peer.dial()):
                pass
