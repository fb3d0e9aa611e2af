"""WAMP against a scripted router: ids that begin anew on each link, subscriptions by the router's ids, two goodbyes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.shapes.stage import next_of, open_on
from tests.shapes.wamp import ROLES, Payload, Wamp, call, publish
from trio_nova import (
    AuthFailed,
    ConnectionBlock,
    Gap,
    MoveAsked,
    OutcomeUnknown,
    Reconnected,
    RequestFailed,
    SubscriptionRejected,
)
from trio_nova.messages import Reply
from trio_nova.readings import Call
from trio_nova.testing import Peer, ScriptedServer

HELLO = [1, "realm1", {"roles": ROLES}]
WELCOME = [2, 9129137332, {"roles": {"broker": {}, "dealer": {}}}]
GOODBYE = [6, {}, "wamp.close.close_realm"]
REPLY = [6, {}, "wamp.close.goodbye_and_out"]


def connect(server: ScriptedServer, adapter: type[Wamp] = Wamp, **options: Any) -> ConnectionBlock:
    return open_on(server, adapter(url="ws://server.test/ws"), **options)


async def hear(peer: Peer, message: list[Any]) -> None:
    assert await peer.receive_json() == message


async def say(peer: Peer, *messages: list[Any]) -> None:
    for message in messages:
        await peer.send_json(message)


async def greet(peer: Peer) -> None:
    await peer.accept(subprotocol="wamp.2.json")
    await hear(peer, HELLO)
    await say(peer, WELCOME)


async def bid_farewell(peer: Peer) -> None:
    await hear(peer, GOODBYE)
    await say(peer, REPLY)
    await peer.expect_close(1000)


async def test_events_come_by_the_id_of_the_router_which_is_another_on_each_link(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [32, 1, {"match": "prefix"}, "com.prices"])
        await say(peer, [33, 1, 5512], [36, 5512, 1, {}, [1], {"unit": "EUR"}], [36, 5512, 2, {}])
        await hear(peer, [32, 2, {}, "com.news"])
        await say(peer, [33, 2, 6000], [36, 6000, 4, {}, ["new"]], [36, 77, 3, {}, ["?"]])
        await hear(peer, [34, 3, 77])  # of which only events came: nobody wants it
        await say(peer, [35, 3])
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [32, 1, {"match": "prefix"}, "com.prices"])
        await hear(peer, [32, 2, {}, "com.news"])
        # In another order than asked, and with events between: what names them tells them apart.
        await say(peer, [33, 2, 5512], [36, 5512, 5, {}, ["newer"]], [33, 1, 8000], [36, 8000, 6, {}, [3]])
        await hear(peer, [34, 3, 5512])
        await hear(peer, [34, 4, 8000])
        await say(peer, [35, 3], [35, 4])
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn, conn.listen(Gap) as gaps:
            async with conn.subscribe("com.prices", params={"match": "prefix"}) as prices:
                assert await prices.receive() == Payload([1], {"unit": "EUR"})
                assert await prices.receive() == Payload()
                async with conn.subscribe("com.news") as news:
                    assert await news.receive() == Payload(["new"])
                    assert await news.receive() == Payload(["newer"])
                    assert await prices.receive() == Payload([3])
                    assert {(await next_of(gaps, Gap)).channel for _ in range(2)} == {
                        "com.news",
                        'com.prices {"match":"prefix"}',
                    }
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("wamp.2.json",)


async def test_calls_are_answered_by_result_or_error_and_those_under_way_in_a_cut_are_unknown(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [48, 1, {}, "com.add", [2, 3], {}])
        await say(peer, [50, 1, {}, [5]])
        await hear(peer, [48, 2, {}, "com.sqrt", [-1], {}])
        await say(peer, [8, 48, 2, {}, "com.error.negative", ["no root"]])
        await hear(peer, [16, 3, {"acknowledge": True}, "com.news", ["hi"], {"by": "me"}])
        await say(peer, [17, 3, 4711])
        await hear(peer, [48, 4, {}, "com.slow", [], {}])
        await peer.drop()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [48, 1, {}, "com.add", [1, 1], {}])
        await say(peer, [50, 1, {}, [], {"sum": 2}])
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn:
            assert await conn.request(call("com.add", 2, 3)) == Payload([5])
            with pytest.raises(RequestFailed, match=r"com\.error\.negative") as caught:
                await conn.request(call("com.sqrt", -1))
            assert caught.value.reply == [8, 48, 2, {}, "com.error.negative", ["no root"]]
            assert await conn.request(publish("com.news", "hi", by="me")) == [17, 3, 4711]
            with pytest.raises(OutcomeUnknown):
                await conn.request(call("com.slow"))
            assert await conn.request(call("com.add", 1, 1)) == Payload([], {"sum": 2})
        await server.dials[1].wait_ended()


async def test_a_procedure_of_ours_is_registered_and_answers_its_invocations(autojump_clock: trio.abc.Clock) -> None:
    class Callee(Wamp):
        def handle_platform_message(self, message: Any) -> Reply | None:
            match message:
                case Call(id, [_, _, _, _, [a, b], *_]):
                    return Reply([70, id, {}, [a + b]])
                case _:
                    return None

    async def router(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [64, 1, {}, "com.mine.add"])
        await say(peer, [65, 1, 31], [68, 6131533, 31, {}, [20, 3]])
        await hear(peer, [70, 6131533, {}, [23]])
        await bid_farewell(peer)

    async with ScriptedServer(router) as server:
        async with connect(server, Callee) as conn:
            assert await conn.request([64, None, {}, "com.mine.add"]) == [65, 1, 31]
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()


async def test_a_refused_subscription_says_why(autojump_clock: trio.abc.Clock) -> None:
    async def router(peer: Peer) -> None:
        await greet(peer)
        await hear(peer, [32, 1, {}, "com.secret"])
        await say(peer, [8, 32, 1, {}, "wamp.error.not_authorized"])
        await bid_farewell(peer)

    async with ScriptedServer(router) as server:
        async with connect(server) as conn:
            with pytest.raises(SubscriptionRejected, match=r"wamp\.error\.not_authorized"):
                async with conn.subscribe("com.secret"):
                    raise AssertionError("never entered")
        await server.dials[0].wait_ended()


@pytest.mark.parametrize(
    ("challenge", "answer"),
    [
        ([4, "ticket", {}], [5, "secret123", {}]),
        ([4, "wampcra", {"challenge": '{"nonce":"1"}'}], [5, "RDr1efSkkTZK80iN2Bf9GSrdcykS69orJbzpSPp2fiY=", {}]),
    ],
    ids=["ticket", "wampcra"],
)
async def test_a_challenge_is_answered_with_the_secret_or_its_proof(
    autojump_clock: trio.abc.Clock, challenge: list[Any], answer: list[Any]
) -> None:
    async def router(peer: Peer) -> None:
        await peer.accept(subprotocol="wamp.2.json")
        await hear(peer, [1, "realm1", {"roles": ROLES, "authid": "ann", "authmethods": ["wampcra", "ticket"]}])
        await say(peer, challenge)
        await hear(peer, answer)
        await say(peer, WELCOME)
        await bid_farewell(peer)

    async with ScriptedServer(router) as server:
        async with connect(server, credentials={"authid": "ann", "secret": "secret123"}):
            pass
        await server.dials[0].wait_ended()


async def test_an_abort_is_a_refused_login(autojump_clock: trio.abc.Clock) -> None:
    async def router(peer: Peer) -> None:
        await peer.accept(subprotocol="wamp.2.json")
        await hear(peer, HELLO)
        await say(peer, [3, {"message": "not here"}, "wamp.error.no_such_realm"])
        await peer.close()

    async with ScriptedServer(router) as server:
        with pytest.raises(AuthFailed, match=r"wamp\.error\.no_such_realm"):
            async with connect(server):
                raise AssertionError("never entered")


async def test_a_router_that_says_goodbye_is_answered_once_and_another_link_taken(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await trio.sleep(1.0)
        await say(peer, [6, {}, "wamp.close.system_shutdown"])
        await hear(peer, REPLY)
        await peer.expect_close(1000)

    async def second(peer: Peer) -> None:
        await greet(peer)
        await bid_farewell(peer)

    async with ScriptedServer(first, second) as server:
        async with connect(server) as conn, conn.listen(MoveAsked, Reconnected) as events:
            assert (await next_of(events, MoveAsked)).reason == "wamp.close.system_shutdown"
            assert isinstance(await events.receive(), Reconnected)
        await server.dials[1].wait_ended()
