"""Socket.IO against a scripted server: a hello that sets the clock, pings by the server, answers in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.socket_io import ACK, Packet, SocketIo, SocketIoCodec, event
from tests.shapes.stage import next_of, open_on
from trio_nova import (
    AuthFailed,
    BadMessage,
    ConnectionBlock,
    LinkClosed,
    MoveAsked,
    NotSent,
    OutcomeUnknown,
    Reconnected,
)
from trio_nova.readings import Call
from trio_nova.testing import Peer, ScriptedServer

HELLO = '0{"sid":"abc","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}'


def connect(server: ScriptedServer, namespace: str = "/", **options: Any) -> ConnectionBlock:
    address = "ws://server.test/socket.io/?EIO=4&transport=websocket"
    adapter = SocketIo(url=address, namespace=namespace, questions=frozenset({"who"}))
    return open_on(server, adapter, **options)


async def greet(peer: Peer) -> None:
    await peer.accept()
    await peer.send(HELLO)
    await peer.expect("40")
    await peer.send('40{"sid":"def"}')


async def bid_farewell(peer: Peer) -> None:
    await peer.expect("41")
    await peer.expect_close(1000)


def test_the_address_says_which_protocol_it_is() -> None:
    url = SocketIo(host="chat.example.com").url()
    assert url.full == "wss://chat.example.com/socket.io/?EIO=4&transport=websocket"


async def test_events_of_a_feed_come_in_order_and_are_acknowledged_once_processed(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.expect('42["join"]')
        await peer.send('42["news",{"n":1}]', '427["news",{"n":2}]', '428["news",{"n":3},"more"]')
        await peer.expect("437[]")
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.send('420["news",{"n":3},"more"]')
        await peer.expect("430[]")
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn:
            async with conn.subscribe("news") as feed:
                await conn.send(event("join"))
                deliveries = feed.deliveries()
                one, two, unfinished = [await deliveries.receive() for _ in range(3)]
                assert [one.payload, two.payload, unfinished.payload] == [[{"n": 1}], [{"n": 2}], [{"n": 3}, "more"]]
                one.ack()
                two.ack()
                again = await deliveries.receive()
                with pytest.raises(NotSent):
                    unfinished.ack()
                assert (again.payload, again.epoch) == ([{"n": 3}, "more"], 2)
                again.ack()
                again.ack()
                await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()


async def test_questions_are_answered_in_both_directions(autojump_clock: trio.abc.Clock) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.expect('421["add",1,2]')
        await peer.send('4212["who","are","you"]', "431[3]")
        await peer.expect('4312["me"]')
        await peer.expect('422["slow"]')
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn:
            assert await conn.request(event("add", 1, 2)) == [3]
            question = await conn.deliveries().receive()
            assert question.payload == Call(12, ["who", "are", "you"])
            await conn.send(Packet(ACK, ["me"], question.payload.id), epoch=question.epoch)
            with pytest.raises(OutcomeUnknown):
                await conn.request(event("slow"))
            await conn.wait_ready()
            with pytest.raises(NotSent):
                await conn.send(Packet(ACK, ["me"], question.payload.id), epoch=question.epoch)
        await server.dials[1].wait_ended()


async def test_the_hello_says_how_long_the_server_may_be_silent(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        for _ in range(3):
            await trio.sleep(25.0)
            await peer.send("2")
            await peer.expect("3")
        await peer.mute()

    async with ScriptedServer(serve, greet) as server, connect(server) as conn, conn.listen(LinkClosed) as events:
        assert "idle" in (await next_of(events, LinkClosed)).detail
        assert trio.current_time() == pytest.approx(75.0 + 45.0)


async def test_a_namespace_is_joined_with_credentials_and_left(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send(HELLO)
        await peer.expect('40/admin,{"token":"open sesame"}')
        await peer.send('40/admin,{"sid":"def"}')
        await peer.expect('42/admin,1["add",1]')
        await peer.send("43/admin,1[1]")
        await peer.expect("41/admin,")
        await peer.expect_close(1000)

    async with ScriptedServer(serve) as server:
        async with connect(server, "/admin", credentials={"token": "open sesame"}) as conn:
            assert await conn.request(event("add", 1)) == [1]
        await server.dials[0].wait_ended()


async def test_a_refused_namespace_says_why(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send(HELLO)
        await peer.expect("40")
        await peer.send('44{"message":"not authorized"}')
        await peer.close()

    async with ScriptedServer(serve) as server:
        with pytest.raises(AuthFailed, match="not authorized"):
            async with connect(server):
                raise AssertionError("never entered")


async def test_who_is_thrown_out_of_the_namespace_joins_it_on_another_link(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await trio.sleep(1.0)
        await peer.send("41")
        await peer.serve_until_closed()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await bid_farewell(peer)

    async with ScriptedServer(serve, second) as server:
        async with connect(server) as conn, conn.listen(MoveAsked, Reconnected) as events:
            assert isinstance(await events.receive(), MoveAsked)
            assert isinstance(await events.receive(), Reconnected)
        await server.dials[1].wait_ended()


@pytest.mark.parametrize("payload", ["", "9", "4", '42["x"', '451-["x",{"_placeholder":true,"num":0}]', b"\x00"])
def test_what_is_no_packet_is_refused(payload: str | bytes) -> None:
    with pytest.raises((BadMessage, ValueError)):
        SocketIoCodec().decode(payload)
