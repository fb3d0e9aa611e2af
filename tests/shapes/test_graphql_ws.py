"""graphql-transport-ws against a scripted server: streams that end, in good order or with errors."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.graphql_ws import GraphQl, operation
from tests.shapes.stage import next_of, open_on
from trio_nova import (
    AuthFailed,
    ConnectionBlock,
    Gap,
    LinkLost,
    ListBackoff,
    PongReceived,
    RequestFailed,
    SubscriptionRejected,
)
from trio_nova.testing import Peer, ScriptedServer

COUNT = {"query": "subscription { count }"}


def connect(server: ScriptedServer, **options: Any) -> ConnectionBlock:
    return open_on(server, GraphQl(url="ws://server.test/graphql"), **options)


async def greet(peer: Peer) -> None:
    await peer.accept(subprotocol="graphql-transport-ws")
    assert await peer.receive_json() == {"type": "connection_init"}
    await peer.send_json({"type": "connection_ack"})


async def hear(peer: Peer, message: Any) -> None:
    assert await peer.receive_json() == message


async def start(peer: Peer, id: str) -> None:
    await hear(peer, {"id": id, "type": "subscribe", "payload": COUNT})


async def count(peer: Peer, id: str, *numbers: int) -> None:
    for number in numbers:
        await peer.send_json({"id": id, "type": "next", "payload": {"data": {"count": number}}})


async def counted(feed: Any) -> list[int]:
    return [item["data"]["count"] async for item in feed]


async def test_a_stream_goes_on_after_a_cut_and_ends_in_good_order(autojump_clock: trio.abc.Clock) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await start(peer, "s0")
        await count(peer, "s0", 1, 2)
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await start(peer, "s0")
        await count(peer, "s0", 3)
        await peer.send_json({"id": "s0", "type": "complete"})
        await peer.expect_close(1000)  # what has ended is not given up

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn, conn.listen(Gap) as gaps:
            async with conn.subscribe("count", params=COUNT) as feed:
                assert await counted(feed) == [1, 2, 3]
                assert (await next_of(gaps, Gap)).channel == 'count {"query":"subscription { count }"}'
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("graphql-transport-ws",)


async def test_a_stream_that_fails_raises_what_the_server_says(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await start(peer, "s0")
        await count(peer, "s0", 1)
        await peer.send_json({"id": "s0", "type": "error", "payload": [{"message": "out of numbers"}]})
        await peer.expect_close(1000)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            async with conn.subscribe("count", params=COUNT) as feed:
                assert (await feed.receive())["data"] == {"count": 1}
                with pytest.raises(SubscriptionRejected, match="out of numbers"):
                    await feed.receive()
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()


async def test_a_stream_that_was_given_up_cannot_end_the_next_of_its_channel(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await start(peer, "s0")
        await count(peer, "s0", 1)
        await hear(peer, {"id": "s0", "type": "complete"})
        await start(peer, "s1")
        await count(peer, "s0", 2)  # they were on their way
        await peer.send_json({"id": "s0", "type": "complete"})
        await count(peer, "s1", 10)
        await peer.send_json({"id": "s1", "type": "complete"})
        await peer.expect_close(1000)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            async with conn.subscribe("count", params=COUNT) as feed:
                await feed.receive()
            await wait_all_tasks_blocked()
            async with conn.subscribe("count", params=COUNT) as feed:
                assert await counted(feed) == [10]
            assert conn.statistics().inbox_messages == conn.statistics().answers_unmatched == 0
        await server.dials[0].wait_ended()


async def test_a_query_is_a_request(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, {"id": "1", "type": "subscribe", "payload": {"query": "{ me }", "variables": {"a": 1}}})
        await peer.send_json({"id": "1", "type": "next", "payload": {"data": {"me": "ann"}}})
        await peer.send_json({"id": "1", "type": "complete"})
        await hear(peer, {"id": "2", "type": "subscribe", "payload": {"query": "{ you }"}})
        await peer.send_json({"id": "2", "type": "error", "payload": [{"message": "no such field"}]})
        await peer.expect_close(1000)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            assert await conn.request(operation("{ me }", variables={"a": 1})) == {"data": {"me": "ann"}}
            with pytest.raises(RequestFailed, match="no such field"):
                await conn.request(operation("{ you }"))
            assert conn.statistics().inbox_messages == 0
        await server.dials[0].wait_ended()


async def test_pings_go_both_ways(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await peer.send_json({"type": "ping"})
        await hear(peer, {"type": "pong"})
        await hear(peer, {"type": "ping"})
        await trio.sleep(0.5)
        await peer.send_json({"type": "pong"})
        await peer.serve_until_closed()

    async with ScriptedServer(serve) as server, connect(server) as conn, conn.listen(PongReceived) as events:
        assert (await next_of(events, PongReceived)).rtt == pytest.approx(0.5)


async def test_a_refused_login_is_a_close_with_a_code(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept(subprotocol="graphql-transport-ws")
        await hear(peer, {"type": "connection_init", "payload": {"token": "open sesame"}})
        await peer.close(4403, "Forbidden")

    async with ScriptedServer(serve) as server:
        with pytest.raises(AuthFailed, match="4403: Forbidden"):
            async with connect(server, credentials={"token": "open sesame"}):
                raise AssertionError("never entered")


async def test_a_close_that_says_that_the_fault_is_ours_ends_the_session(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await peer.close(4400, "Invalid message")

    async with ScriptedServer(serve) as server:
        with pytest.raises(LinkLost, match="4400"):
            async with connect(server, backoff=ListBackoff([1.0])) as conn:
                await conn.wait_closed()
    assert len(server.dials) == 1
