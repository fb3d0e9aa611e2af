"""The echo service: what is sent comes back, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import ListBackoff, OutcomeUnknown, open_connection
from trio_nova.adapters.echo import Echo, EchoClient
from trio_nova.testing import Peer, ScriptedServer, echo

NEARBY = Echo(url="ws://localhost/")


def test_it_says_where_the_public_service_is() -> None:
    assert Echo().url().full == "wss://echo.websocket.org/"


async def test_a_text_comes_back_unchanged(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        async with EchoClient.open(adapter=NEARBY, stream_factory=server.stream_factory) as client:
            for text in ("Hello", '{"type": "subscribed"}', "", "\u00e9\U0001f600", "[1, 2]"):
                assert await client.send_message(text) == text


async def test_text_stays_text_and_binary_stays_binary(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        async with open_connection(NEARBY, stream_factory=server.stream_factory) as conn:
            assert await conn.request(b"\x00\xff") == b"\x00\xff"
            assert await conn.request("7") == "7"
            assert await conn.request({"a": 1}) == '{"a":1}'


async def test_the_first_answer_belongs_to_the_first_question(autojump_clock: trio.abc.Clock) -> None:
    answers: dict[int, str] = {}

    async with ScriptedServer(echo) as server:
        async with open_connection(NEARBY, stream_factory=server.stream_factory) as conn:

            async def ask(number: int) -> None:
                answers[number] = await conn.request(f"question {number}")

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(ask, number)
    assert answers == {number: f"question {number}" for number in range(20)}


async def test_a_greeting_is_not_taken_for_the_answer(autojump_clock: trio.abc.Clock) -> None:
    async def greet(peer: Peer) -> None:
        await peer.accept()
        question = await peer.receive()
        await peer.send("Request served by 4d896d95b55478", b"Hello", question)  # as the public service does
        await peer.serve_until_closed()

    async with ScriptedServer(greet) as server:
        async with EchoClient.open(adapter=NEARBY, stream_factory=server.stream_factory) as client:
            assert await client.send_message("Hello") == "Hello"
            assert await client.connection.receive() == "Request served by 4d896d95b55478"
            assert await client.connection.receive() == b"Hello"


async def test_the_greeting_of_the_public_service_is_waited_for_and_is_nobodys_answer(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def greet(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1)
        await peer.send("Request served by 4d896d95b55478")
        await peer.echo()

    public = Echo(url="ws://localhost/", greets=True)
    assert (Echo().greets, NEARBY.greets, Echo(host="localhost").greets) == (True, False, False)
    async with ScriptedServer(then=greet) as server:
        async with open_connection(public, stream_factory=server.stream_factory, backoff=ListBackoff([1.0])) as conn:
            assert trio.current_time() == 1.0
            assert await conn.request("Hello") == "Hello"
            await conn.reconnect()
            assert await conn.request("Hello again") == "Hello again"
            with pytest.raises(trio.WouldBlock):
                conn.receive_nowait()


async def test_a_service_that_has_ceased_to_greet_is_spoken_to_all_the_same(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        silent = Echo(url="ws://localhost/", greets=True)
        async with open_connection(silent, stream_factory=server.stream_factory) as conn:
            assert trio.current_time() == 2.0
            assert await conn.request("Hello") == "Hello"


async def test_a_message_that_was_given_up_does_not_answer_the_next(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        first = await peer.receive()
        second = await peer.receive()
        await peer.send(first, second)
        await peer.serve_until_closed()

    async with ScriptedServer(slow) as server:
        async with EchoClient.open(adapter=NEARBY, stream_factory=server.stream_factory) as client:
            with trio.move_on_after(1):
                await client.send_message("first")
            assert await client.send_message("second") == "second"


async def test_a_lost_link_settles_the_question_and_the_next_link_echoes(autojump_clock: trio.abc.Clock) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async with ScriptedServer(drop, echo) as server:
        async with EchoClient.open(
            adapter=NEARBY, stream_factory=server.stream_factory, backoff=ListBackoff([1.0])
        ) as client:
            with pytest.raises(OutcomeUnknown):
                await client.send_message("lost")
            assert await client.send_message("again") == "again"
            await wait_all_tasks_blocked()
    assert [dial.ended for dial in server.dials] == ["dropped", "closed"]
