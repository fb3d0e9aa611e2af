"""Draining: what is under way is finished, answers included, and only then is the connection closed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Allow,
    Connection,
    Decision,
    InOrder,
    JsonCodec,
    LinkLost,
    ListBackoff,
    NotSent,
    OutcomeUnknown,
    Queue,
    RateLimitHandler,
    RateRequest,
    Reject,
    State,
    SubscriptionHandler,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"
PATIENCE = 100.0


def connect(server: ScriptedServer, **options: Any) -> Any:
    return open_connection(
        URL,
        **{"stream_factory": server.stream_factory, "codec": JsonCodec(), "backoff": ListBackoff([0.0]), **options},
    )


def slow(*delays: float) -> Callable[[Peer], Any]:
    """Answer each question after the next delay, the last one again and again; wait for the goodbye."""

    async def serve(peer: Peer) -> None:
        await peer.accept()
        pauses = iter(delays)
        delay = 0.0
        while isinstance(frame := await peer.receive(), str):
            question = json.loads(frame)
            delay = next(pauses, delay)
            await trio.sleep(delay)
            if question.get("type") == "subscribe" and "id" not in question:
                await peer.send_json({"type": "subscribed", "channel": question["channel"]})
            elif question.get("type") != "unsubscribe" or "id" in question:
                await peer.send_json({"id": question.get("id"), "result": "done"})
        await peer.finish()

    return serve


async def drain(conn: Connection) -> None:
    with trio.fail_after(PATIENCE):
        await conn.drain()


@pytest.mark.parametrize(
    "options",
    [{}, {"correlation": InOrder()}, {"matches": lambda message: "result" in message}],
    ids=["by id", "in order", "by content"],
)
async def test_draining_waits_for_the_answer_and_then_closes(
    autojump_clock: trio.abc.Clock, transport: Transport, options: dict[str, Any]
) -> None:
    matches, options = options.get("matches"), {k: v for k, v in options.items() if k != "matches"}
    answers: list[Any] = []
    async with ScriptedServer(slow(0.3)) as server, connect(server, transport=transport, **options) as conn:
        started = trio.current_time()

        async def ask() -> None:
            answers.append(await conn.request({"op": "place"}, matches=matches))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.1)
            nursery.start_soon(drain, conn)
            await wait_all_tasks_blocked()
            with pytest.raises(NotSent, match="being drained"):
                await conn.request({"op": "place"})
            with pytest.raises(NotSent, match="being drained"):
                await conn.send("new")
            with pytest.raises(NotSent, match="being drained"):
                async with conn.subscribe("trades"):
                    raise AssertionError("no new work")
            await conn.wait_closed()
            assert trio.current_time() - started == pytest.approx(0.3)
        assert [answer["result"] for answer in answers] == ["done"]
        assert conn.state is State.CLOSED
        assert conn.close_info is not None
        assert conn.close_info.code == 1000


async def test_an_answer_that_never_comes_is_waited_for_as_long_as_the_caller_wants(
    autojump_clock: trio.abc.Clock,
) -> None:
    raised: list[Exception] = []
    async with ScriptedServer(slow(1e6)) as server, connect(server) as conn:

        async def ask() -> None:
            with pytest.raises(OutcomeUnknown) as caught:
                await conn.request({"op": "place"})
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            with trio.move_on_after(5.0) as scope:
                await conn.drain()
            assert scope.cancelled_caught
            assert conn.state is State.READY
            with pytest.raises(NotSent, match="being drained"):
                await conn.send("new")
            await conn.aclose()
        assert len(raised) == 1


async def test_draining_ends_when_whoever_asked_gives_up(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(slow(1e6)) as server, connect(server) as conn, trio.open_nursery() as nursery:

        async def ask() -> None:
            with trio.move_on_after(2.0):
                await conn.request({"op": "place"})

        started = trio.current_time()
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        nursery.start_soon(drain, conn)
        await conn.wait_state(State.CLOSING)
        assert trio.current_time() - started == 2.0


async def test_where_the_link_is_lost_amid_a_drain_questions_settle_and_it_ends(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await trio.sleep(0.3)
        await peer.drop()

    async with ScriptedServer(lose, then=slow(0.0)) as server, connect(server, transport=transport) as conn:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(OutcomeUnknown) as caught:
                    await conn.request({"op": "place"})
                assert isinstance(caught.value.__cause__, LinkLost)

            nursery.start_soon(ask)
            await trio.sleep(0.1)
            await drain(conn)
        assert trio.current_time() - started == pytest.approx(0.3)
        assert conn.state is State.CLOSED


async def test_what_may_be_asked_again_is_asked_again_amid_a_drain(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await trio.sleep(0.5)
        await peer.drop()

    for when_down in ("wait", "fail"):
        async with (
            ScriptedServer(lose, then=slow(1.0)) as server,
            connect(server, transport=transport, when_down=when_down) as conn,
        ):
            answers: list[Any] = []

            async def ask(conn: Connection = conn, answers: list[Any] = answers) -> None:
                answers.append(await conn.request({"op": "look"}, idempotent=True))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await trio.sleep(0.1)
                nursery.start_soon(drain, conn)
            assert answers == [{"id": 2, "result": "done"}]
            assert conn.epoch == 2
            assert conn.state is State.CLOSED


class AskedAsRequests(SubscriptionHandler):
    correlated = True


@pytest.mark.parametrize("handler", [SubscriptionHandler, AskedAsRequests])
async def test_draining_waits_for_the_grant_and_for_what_gives_a_channel_up(
    autojump_clock: trio.abc.Clock, transport: Transport, handler: type[SubscriptionHandler]
) -> None:
    entered: list[float] = []
    async with (
        ScriptedServer(slow(0.5)) as server,
        connect(server, transport=transport, subscription_handler=handler) as conn,
    ):
        started = trio.current_time()

        async def hear() -> None:
            async with conn.subscribe("trades"):
                entered.append(trio.current_time() - started)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await trio.sleep(0.1)
            nursery.start_soon(drain, conn)
        assert entered == [pytest.approx(0.5)]
        await server.dials[0].wait_ended()
        said = [json.loads(frame)["type"] for frame in server.dials[0].frames if isinstance(frame, str)]
        assert said[:1] == ["subscribe"]

    async with (
        ScriptedServer(slow(0.0, 0.5)) as server,
        connect(server, transport=transport, subscription_handler=handler) as conn,
    ):
        async with conn.subscribe("trades"):
            pass
        await drain(conn)
        await server.dials[0].wait_ended()
        said = [json.loads(frame)["type"] for frame in server.dials[0].frames if isinstance(frame, str)]
        assert said == ["subscribe", "unsubscribe"]


async def test_draining_does_not_wait_for_a_grant_where_there_is_no_link(autojump_clock: trio.abc.Clock) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async with (
        ScriptedServer(lose, then=slow(0.0)) as server,
        connect(server, backoff=ListBackoff([1e5])) as conn,
        trio.open_nursery() as nursery,
    ):

        async def hear() -> None:
            with pytest.raises(Exception, match="the session is over"):
                async with conn.subscribe("trades"):
                    raise AssertionError("nobody has granted it")

        nursery.start_soon(hear)
        await conn.wait_state(State.RECONNECTING)
        await drain(conn)
        assert conn.state is State.CLOSED


@pytest.mark.parametrize("how", ["given up", "refused"])
async def test_draining_ends_where_what_waited_for_a_limit_is_given_up_or_refused(
    autojump_clock: trio.abc.Clock, how: str
) -> None:
    class Refuses(RateLimitHandler):
        """Lets one message through, holds the second back for a while, and then refuses it."""

        def check_rate_limit(self, request: RateRequest) -> Decision:
            if request.now < 1.0:
                return Allow()
            return Queue(20.0) if request.now < 20.0 else Reject()

    async with (
        ScriptedServer(slow(0.0)) as server,
        connect(server, rate_limit_handler=Refuses()) as conn,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(2.0)
        scope = trio.CancelScope()

        @nursery.start_soon
        async def send() -> None:
            with scope:
                with pytest.raises(NotSent):
                    await conn.send({"held": "back"})

        await wait_all_tasks_blocked()
        nursery.start_soon(drain, conn)
        await trio.sleep(8.0)
        if how == "given up":
            scope.cancel()
        await conn.wait_closed()
        assert trio.current_time() == (10.0 if how == "given up" else 20.0)
