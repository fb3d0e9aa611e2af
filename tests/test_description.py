"""The five examples with which the original described itself, each doing here what was said of it there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Action,
    Adapter,
    Client,
    Connection,
    ConnectionHandler,
    ConnectionInfo,
    MessageHandler,
    Reply,
    open_connection,
    run_connection,
)
from trio_nova.adapters.echo import Echo
from trio_nova.testing import Peer, ScriptedServer, echo


@attrs.define(eq=False)
class Collector(MessageHandler):
    """The message handler of the fourth example."""

    messages: list[tuple[str, Any]] = attrs.field(factory=list)

    def handle_message(self, kind: str, message: Any) -> Action:
        self.messages.append((kind, message))
        return None


def texts(server: ScriptedServer) -> list[list[str]]:
    """Return the texts that the client sent, by dial."""
    return [[frame for frame in dialled.frames if isinstance(frame, str)] for dialled in server.dials]


# --------------------------------------------------------------------------- 1. an echo


async def test_the_echo_adapter_gets_hello_back_unchanged(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo, tls=True) as server:
        async with open_connection(
            Echo(), stream_factory=server.stream_factory, ssl_context=server.client_ssl_context
        ) as conn:
            response = await conn.request("Hello")
        await server.dials[0].wait_ended()
    assert response == "Hello"
    assert type(response) is str
    assert texts(server) == [["Hello"]]
    assert (server.dials[0].host, server.dials[0].port) == ("echo.websocket.org", 443)


# --------------------------------------------------------------------------- 2. handlers given at the call


async def test_a_message_handler_and_a_connection_handler_given_at_the_call_are_asked(
    autojump_clock: trio.abc.Clock,
) -> None:
    @attrs.define(eq=False)
    class Watcher(ConnectionHandler):
        epochs: list[int] = attrs.field(factory=list)

        def handle_connect(self, info: ConnectionInfo) -> Action:
            self.epochs.append(info.epoch)
            return None

    collector, watcher = Collector(), Watcher()
    async with (
        ScriptedServer(then=echo) as server,
        open_connection(
            Echo(url="ws://localhost/"),
            message_handler=collector,
            connection_handler=watcher,
            stream_factory=server.stream_factory,
        ) as conn,
    ):
        await conn.send_text("Hello")
        assert await conn.receive() == "Hello"
        await conn.reconnect()
    assert collector.messages == [("text", "Hello")]
    assert watcher.epochs == [1, 2]


# --------------------------------------------------------------------------- 3. a client class


class EchoingClient(Client):
    adapter = Echo(url="ws://localhost/")

    async def send_message(self, text: str) -> str:
        reply: str = await self.connection.request(text)
        return reply


async def test_a_client_class_offers_send_message(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, EchoingClient.open(stream_factory=server.stream_factory) as client:
        assert await client.send_message("Hello") == "Hello"


async def test_a_class_of_ones_own_holds_a_connection_and_serves_any_task(autojump_clock: trio.abc.Clock) -> None:
    """As a process of the original did: it is started once, and others call it."""

    @attrs.frozen
    class WebSocketClient:
        connection: Connection

        @classmethod
        async def start(cls, nursery: trio.Nursery, server: ScriptedServer) -> WebSocketClient:
            async def run(*, task_status: trio.TaskStatus[Connection]) -> None:
                await run_connection(
                    Echo(url="ws://localhost/"), stream_factory=server.stream_factory, task_status=task_status
                )

            return cls(await nursery.start(run))

        async def send_message(self, text: str) -> None:
            answers[text] = await self.connection.request(text)

    answers: dict[str, str] = {}
    names = ["one", "two", "three"]
    async with ScriptedServer(echo) as server, trio.open_nursery() as nursery:
        client = await WebSocketClient.start(nursery, server)
        async with trio.open_nursery() as callers:
            for name in names:
                callers.start_soon(client.send_message, name)
        await client.connection.aclose()
    assert answers == {name: name for name in names}


# --------------------------------------------------------------------------- 4. a message handler with a state


async def test_a_message_handler_collects_in_its_own_state(autojump_clock: trio.abc.Clock) -> None:
    async def speak(peer: Peer) -> None:
        await peer.accept()
        await peer.send("one", b"\x02", "three")
        await peer.serve_until_closed()

    collector = Collector()
    async with ScriptedServer(then=speak) as server:
        async with open_connection(
            Echo(url="ws://localhost/"), message_handler=collector, stream_factory=server.stream_factory
        ) as conn:
            for _ in range(3):
                await conn.receive()
        assert collector.messages == [("text", "one"), ("binary", b"\x02"), ("text", "three")]

        made: list[Collector] = []

        def make() -> Collector:
            made.append(Collector())
            return made[-1]

        for _ in range(2):  # what makes a handler makes one for each session
            async with open_connection(
                Echo(url="ws://localhost/"), message_handler=make, stream_factory=server.stream_factory
            ) as conn:
                await conn.receive()
    assert len(made) == 2
    assert all(each.messages[0] == ("text", "one") for each in made)


# --------------------------------------------------------------------------- 5. a platform adapter


class CustomAdapter(Adapter):
    host = "api.example.com"
    port = 443
    path = "/websocket"

    def handle_platform_message(self, message: Any) -> Action:
        return Reply(f"Processed: {message!r}")

    def encode_auth_request(self, credentials: Any) -> Any:
        return {"type": "auth", "key": credentials["api_key"], "secret": credentials["api_secret"]}

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"type": "subscribe", "channel": channel, "params": dict(params)}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"type": "unsubscribe", "channel": channel}


EXPECTED = [
    '{"type":"auth","key":"k-1","secret":"s-1"}',
    '{"type":"subscribe","channel":"trades.BTC","params":{"depth":10}}',
    "Processed: {'type': 'news', 'n': 1}",
    "Processed: 'plain text'",
    '{"type":"unsubscribe","channel":"trades.BTC"}',
]


async def test_a_platform_adapter_speaks_as_its_hooks_say(autojump_clock: trio.abc.Clock) -> None:
    async def platform(peer: Peer) -> None:
        await peer.accept()
        await peer.expect(EXPECTED[0])
        await peer.send_json({"type": "auth_success"})
        await peer.expect(EXPECTED[1])
        await peer.send_json({"type": "subscribed", "channel": "trades.BTC"})
        await peer.send_json({"type": "news", "n": 1})
        await peer.expect(EXPECTED[2])
        await peer.send("plain text")
        await peer.expect(EXPECTED[3])
        await peer.expect(EXPECTED[4])
        await peer.serve_until_closed()

    async with ScriptedServer(platform, tls=True) as server:
        async with open_connection(
            CustomAdapter(),
            credentials={"api_key": "k-1", "api_secret": "s-1"},
            stream_factory=server.stream_factory,
            ssl_context=server.client_ssl_context,
        ) as conn:
            async with conn.subscribe("trades.BTC", params={"depth": 10}):
                assert await conn.receive() == {"type": "news", "n": 1}
                assert await conn.receive() == "plain text"
                await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
        await server.dials[0].wait_ended()
    (dialled,) = server.dials
    assert texts(server) == [EXPECTED]
    assert (dialled.host, dialled.port, dialled.ended) == ("api.example.com", 443, "closed")
    assert dialled.request is not None
    assert dialled.request.target == "/websocket"


async def test_a_platform_adapter_signs_in_and_subscribes_again_on_every_link(autojump_clock: trio.abc.Clock) -> None:
    async def platform(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            match json.loads(frame):
                case {"type": "auth"}:
                    await peer.send_json({"type": "auth_success"})
                case {"type": "subscribe", "channel": channel}:
                    await peer.send_json({"type": "subscribed", "channel": channel})
                case _:
                    pass

    async with ScriptedServer(then=platform, tls=True) as server:
        async with open_connection(
            CustomAdapter(),
            credentials={"api_key": "k-1", "api_secret": "s-1"},
            stream_factory=server.stream_factory,
            ssl_context=server.client_ssl_context,
        ) as conn:
            async with conn.subscribe("trades.BTC", params={"depth": 10}):
                await conn.reconnect()
            await wait_all_tasks_blocked()
        await server.dials[1].wait_ended()
    assert texts(server) == [EXPECTED[:2], [EXPECTED[0], EXPECTED[1], EXPECTED[4]]]
