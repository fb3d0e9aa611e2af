"""A service that speaks first: the login is made of what it says, and its hello sets the clock."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.challenge import Challenging
from tests.shapes.stage import next_of, open_on
from trio_nova import (
    AuthFailed,
    ConnectionBlock,
    Gap,
    LinkClosed,
    PongReceived,
    RequestFailed,
    SubscriptionRejected,
)
from trio_nova.testing import Peer, ScriptedServer

PROOF = "ed591eff195228e30aef8ff0533ed3dac53a0bae0895f04f78ac32318475a314"
"""HMAC-SHA256 of "abc" under "whisper", in hex."""
PROOF_OF_THE_NEXT = "829f34549ead8365fbad0f48e60d501f0a6b972650d1cf3fb8f7ebeb8dd6bbf6"


def connect(server: ScriptedServer, **options: Any) -> ConnectionBlock:
    return open_on(server, Challenging(url="ws://server.test/v1"), **{"credentials": "whisper", **options})


async def greet(peer: Peer, challenge: str = "abc", proof: str = PROOF, idle_timeout: int = 60) -> None:
    await peer.accept()
    await peer.send_json({"challenge": challenge, "idle_timeout": idle_timeout})
    assert await peer.receive_json() == {"op": "login", "proof": proof}
    await peer.send_json({"authorized": True})


async def hear(peer: Peer, message: Any) -> None:
    assert await peer.receive_json() == message


async def let_in(peer: Peer, id: int) -> None:
    await hear(peer, {"op": "subscribe", "channels": ["trades"], "id": id})
    await peer.send_json({"id": id, "ok": True, "granted": ["trades"]})


async def bid_farewell(peer: Peer) -> None:
    await hear(peer, {"op": "bye"})
    await peer.expect_close(1000)


async def trade(peer: Peer, *numbers: int) -> None:
    for number in numbers:
        await peer.send_json({"channel": "trades", "seq": number, "data": {"n": number}})


async def test_every_link_answers_a_challenge_of_its_own_and_data_go_on_in_order(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await let_in(peer, 1)
        await trade(peer, 1, 2, 2, 4)
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer, "def", PROOF_OF_THE_NEXT)
        await let_in(peer, 2)
        await trade(peer, 4, 5)
        await hear(peer, {"op": "unsubscribe", "channels": ["trades"], "id": 3})
        await peer.send_json({"id": 3, "ok": True, "granted": []})
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn, conn.listen(Gap) as gaps:
            async with conn.subscribe("trades") as feed:
                assert [(await feed.receive())["n"] for _ in range(4)] == [1, 2, 4, 5]
                told = [await next_of(gaps, Gap) for _ in range(2)]
            assert [(gap.outcome, gap.lost, gap.epoch_to) for gap in told] == [("lost", 1, 1), ("resumed", None, 2)]
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()


async def test_a_request_has_an_answer_and_a_refusal_its_reason(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, {"op": "place", "id": 1})
        await peer.send_json({"id": 1, "ok": True, "order": 7})
        await hear(peer, {"op": "place", "id": 2})
        await peer.send_json({"id": 2, "ok": False, "reason": "too dear"})
        await hear(peer, {"op": "subscribe", "channels": ["secret"], "id": 3})
        await peer.send_json({"id": 3, "ok": True, "granted": []})
        await bid_farewell(peer)

    async with ScriptedServer(serve) as server:
        async with connect(server) as conn:
            assert (await conn.request({"op": "place"}))["order"] == 7
            with pytest.raises(RequestFailed, match="too dear"):
                await conn.request({"op": "place"})
            with pytest.raises(SubscriptionRejected):
                async with conn.subscribe("secret"):
                    raise AssertionError("never entered")
        await server.dials[0].wait_ended()


async def test_a_heartbeat_is_a_request_and_its_answer_tells_the_latency(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer)
        for id in (1, 2):
            await hear(peer, {"op": "ping", "id": id})
            await trio.sleep(0.25)
            await peer.send_json({"id": id, "ok": id == 1})  # whatever it says, it lives
        await hear(peer, {"op": "ping", "id": 3})
        await peer.mute()

    async with ScriptedServer(serve) as server, connect(server) as conn:
        async with conn.listen(PongReceived, LinkClosed) as events:
            for _ in range(2):
                assert (await next_of(events, PongReceived)).rtt == pytest.approx(0.25)
            assert "pong" in (await next_of(events, LinkClosed)).detail


async def test_the_hello_sets_how_long_the_service_may_be_silent(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await greet(peer, idle_timeout=7)
        await peer.mute()

    async with ScriptedServer(serve) as server, connect(server) as conn, conn.listen(LinkClosed) as events:
        assert "idle" in (await next_of(events, LinkClosed)).detail
        assert trio.current_time() == pytest.approx(7.0)


async def test_a_wrong_secret_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json({"challenge": "abc", "idle_timeout": 60})
        await peer.receive_json()
        await peer.send_json({"authorized": False, "reason": "wrong proof"})
        await peer.serve_until_closed()

    async with ScriptedServer(serve) as server:
        with pytest.raises(AuthFailed, match="wrong proof"):
            async with connect(server, credentials="guess"):
                raise AssertionError("never entered")
