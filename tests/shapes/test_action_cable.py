"""Action Cable against a scripted server: a welcome, pings by the server, and JSON in JSON in both directions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.action_cable import ActionCable, perform
from tests.shapes.stage import next_of, open_on
from trio_nova import AuthFailed, ConnectionBlock, Gap, LinkClosed, ListBackoff, RequestFailed, SubscriptionRejected
from trio_nova.testing import Peer, ScriptedServer

ROOM = '{"channel":"ChatChannel","room":1}'


def connect(server: ScriptedServer, **options: Any) -> ConnectionBlock:
    return open_on(server, ActionCable(url="ws://server.test/cable"), **options)


async def greet(peer: Peer) -> None:
    await peer.accept(subprotocol="actioncable-v1-json")
    await peer.send_json({"type": "welcome"})


async def let_in(peer: Peer, name: str = ROOM) -> None:
    assert await peer.receive_json() == {"command": "subscribe", "identifier": name}
    await peer.send_json({"identifier": name, "type": "confirm_subscription"})


async def see_off(peer: Peer, name: str = ROOM) -> None:
    assert await peer.receive_json() == {"command": "unsubscribe", "identifier": name}
    await peer.expect_close(1000)


def subscribe(conn: Any) -> Any:
    return conn.subscribe("ChatChannel", params={"room": 1})


def said(message: Any) -> dict[str, Any]:
    return {"identifier": ROOM, "message": message}


async def test_what_is_said_in_a_room_comes_in_order_over_a_cut(autojump_clock: trio.abc.Clock) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await let_in(peer)
        for text in ("a", "b"):
            await peer.send_json(said({"text": text}))
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await let_in(peer)
        await peer.send_json(said({"text": "c"}))
        await see_off(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn, conn.listen(Gap) as gaps:
            async with subscribe(conn) as feed:
                assert [(await feed.receive())["text"] for _ in range(3)] == ["a", "b", "c"]
                assert (await next_of(gaps, Gap)).outcome == "unknown"
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("actioncable-v1-json", "actioncable-unsupported")


async def test_nothing_is_sent_before_the_welcome(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept(subprotocol="actioncable-v1-json")
        with trio.move_on_after(5.0) as scope:
            await peer.receive()
        assert scope.cancelled_caught
        await peer.send_json({"type": "welcome"})
        await let_in(peer)
        await peer.serve_until_closed()

    async with ScriptedServer(serve) as server, connect(server) as conn, subscribe(conn):
        assert trio.current_time() == 5.0


async def test_an_action_is_performed_with_its_data_as_text_and_may_be_answered(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await let_in(peer)
        message = await peer.receive_json()
        assert message == {"command": "message", "identifier": ROOM, "data": '{"action": "speak", "text": "hi"}'}
        await peer.send_json(said({"text": "hi"}))
        for answer in ({"people": 2}, {"error": "nobody may count"}):
            message = await peer.receive_json()
            data = json.loads(message["data"])
            assert data["action"] == "count"
            await peer.send_json(said({**answer, "reply_to": data["reply_to"]}))
        await see_off(peer)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            async with subscribe(conn) as feed:
                await conn.send(perform("ChatChannel", "speak", {"room": 1}, text="hi"))
                assert await feed.receive() == {"text": "hi"}
                assert await conn.request(perform("ChatChannel", "count", {"room": 1})) == {"people": 2, "reply_to": 1}
                with pytest.raises(RequestFailed, match="nobody may count"):
                    await conn.request(perform("ChatChannel", "count", {"room": 1}))
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()


async def test_a_rejected_subscription_is_one(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await peer.receive_json()
        await peer.send_json({"identifier": ROOM, "type": "reject_subscription"})
        await peer.expect_close(1000)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            with pytest.raises(SubscriptionRejected):
                async with subscribe(conn):
                    raise AssertionError("never entered")
        await server.dials[0].wait_ended()


async def test_a_server_that_pings_is_alive_and_one_that_stops_is_not(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        for _ in range(20):
            await trio.sleep(3.0)
            await peer.send_json({"type": "ping", "message": 1_700_000_000})
        await peer.mute()

    async with ScriptedServer(serve, greet) as server, connect(server) as conn, conn.listen(LinkClosed) as events:
        assert "idle" in (await next_of(events, LinkClosed)).detail
        assert trio.current_time() == pytest.approx(66.0)
        assert server.dials[0].frames == []
        assert conn.statistics().inbox_messages == 0


async def test_who_is_turned_away_is_told_why(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept(subprotocol="actioncable-v1-json")
        await peer.send_json({"type": "disconnect", "reason": "unauthorized", "reconnect": False})
        await peer.close()

    async with ScriptedServer(serve) as server:
        with pytest.raises(AuthFailed, match="unauthorized"):
            async with connect(server):
                raise AssertionError("never entered")


async def test_a_server_that_restarts_is_dialled_again_and_one_that_throws_us_out_is_not(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.send_json({"type": "disconnect", "reason": "server_restart", "reconnect": True})
        await peer.serve_until_closed()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.send_json({"type": "disconnect", "reason": "remote", "reconnect": False})
        await peer.close()

    async with ScriptedServer(first, second) as server:
        with pytest.raises(AuthFailed, match="remote"):
            async with connect(server, backoff=ListBackoff([1.0])) as conn:
                await conn.wait_closed()
    assert len(server.dials) == 2
