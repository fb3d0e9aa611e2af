"""A service that closes at the last word it is told: the end, without trouble and without another dial."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from trio_nova import (
    Close,
    Connection,
    ConnectionHandler,
    ErrorEvent,
    Event,
    JsonCodec,
    LinkClosed,
    LinkLost,
    ListBackoff,
    MessageHandler,
    RateLimitHandler,
    RetryScheduled,
    RollingWindow,
    State,
    Stop,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"
ANSWER_AND_CLOSE = b'\x81\x10{"id": 1, "a":1}' + b"\x88\x02\x03\xe8"
"""Two frames in one packet: an answer, and a close with code 1000."""


async def close_at_bye(peer: Peer) -> None:
    await peer.accept()
    while "bye" not in str(await peer.receive()):
        pass
    await peer.close(1000)


async def answer_bye_and_close(peer: Peer) -> None:
    await peer.accept()
    await peer.receive()
    await peer.send_raw(ANSWER_AND_CLOSE)
    await peer.finish()


async def say_bye(conn: Connection) -> None:
    await conn.send("bye")


async def say_bye_and_wait_for_the_loss(conn: Connection) -> None:
    await conn.send("bye")
    await conn.wait_state(State.DISCONNECTED)


async def say_bye_and_watch(conn: Connection) -> None:
    async with conn.listen() as events:
        await conn.send("bye")
        async for event in events:
            if isinstance(event, LinkClosed):
                return


async def drain(conn: Connection) -> None:
    async with trio.open_nursery() as nursery:
        for word in ("one", "two", "bye"):
            nursery.start_soon(conn.send, word)
            await trio.testing.wait_all_tasks_blocked()
        await conn.drain()


async def ask_and_leave(conn: Connection) -> None:
    await conn.request({"bye": True})


async def say_bye_when_cancelled(conn: Connection) -> None:
    with trio.move_on_after(1.0):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await conn.send("bye")


@pytest.mark.parametrize(
    ("leave", "service"),
    [
        (say_bye, close_at_bye),
        (say_bye_and_wait_for_the_loss, close_at_bye),
        (say_bye_and_watch, close_at_bye),
        (say_bye_when_cancelled, close_at_bye),
        (drain, close_at_bye),
        (ask_and_leave, answer_bye_and_close),
    ],
)
async def test_a_last_word_that_is_answered_by_a_close_is_the_end(
    leave: Callable[[Connection], Awaitable[None]],
    service: Any,
    transport: Transport,
    autojump_clock: trio.abc.Clock,
) -> None:
    told: list[Event] = []
    async with ScriptedServer(then=service) as server, trio.open_nursery() as nursery:
        async with open_connection(URL, **options(server, transport)) as conn:
            nursery.start_soon(keep, conn, told)
            await trio.testing.wait_all_tasks_blocked()
            await leave(conn)
        assert conn.state is State.CLOSED
    assert len(server.dials) == 1
    assert [event for event in told if isinstance(event, ErrorEvent | RetryScheduled)] == []


def options(server: ScriptedServer, transport: Transport, **more: Any) -> dict[str, Any]:
    limiter = RateLimitHandler([RollingWindow(2, 1.0)])
    return {
        "stream_factory": server.stream_factory,
        "transport": transport,
        "codec": JsonCodec(),
        "backoff": ListBackoff([1.0]),
        "rate_limit_handler": limiter,
        **more,
    }


async def keep(conn: Connection, told: list[Event]) -> None:
    async with conn.listen() as events:
        async for event in events:
            told.append(event)


@pytest.mark.parametrize("attempts", [0, 5])
async def test_a_close_that_handle_disconnect_calls_the_end_is_no_error(
    attempts: int, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    class Content(ConnectionHandler):
        def handle_disconnect(self, lost: LinkLost) -> Action:
            return Close() if lost.code == 1000 else None

    told: list[Event] = []
    handler = {"connection_handler": Content} if attempts else {}
    async with ScriptedServer(then=close_at_bye) as server, trio.open_nursery() as nursery:
        async with open_connection(URL, **options(server, transport, max_attempts=attempts, **handler)) as conn:
            nursery.start_soon(keep, conn, told)
            await trio.testing.wait_all_tasks_blocked()
            await conn.send("bye")
            await conn.wait_closed()
    assert len(server.dials) == 1
    assert [event for event in told if isinstance(event, ErrorEvent | RetryScheduled)] == []


class Trouble(Exception):
    pass


@pytest.mark.parametrize("action", [Close(), Stop(Trouble())], ids=["Close", "Stop"])
async def test_a_hook_that_ends_the_session_at_the_last_answer_is_in_time_though_the_close_came_with_it(
    action: Action, transport: Transport, autojump_clock: trio.abc.Clock
) -> None:
    class Ends(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return action

    left: Exception | None = None
    async with ScriptedServer(then=answer_bye_and_close) as server:
        try:
            async with open_connection(URL, **options(server, transport, message_handler=Ends)) as conn:
                await conn.send("bye")
                await conn.wait_closed()
        except Trouble as trouble:
            left = trouble
    assert (left is None) is isinstance(action, Close)
    assert len(server.dials) == 1
