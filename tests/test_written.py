"""What is made when it is written, for the link that it leaves on: ids, encodings, and what dies with a link."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Action,
    BadMessage,
    Connection,
    ConnectionHandler,
    Correlation,
    ErrorEvent,
    ExponentialBackoff,
    JsonCodec,
    MessageHandler,
    NotSent,
    RateLimitHandler,
    Reply,
    RollingWindow,
    State,
    SubscriptionHandler,
    TrioWebsocketTransport,
    WireTransport,
    open_connection,
)
from trio_nova.testing import Disconnected, MemoryStream, Peer, ScriptedServer

URL = "ws://server.test/"
AT_ONCE = ExponentialBackoff(first_delay=0.0, base=0.001)

both_transports = pytest.mark.parametrize(
    "transport", [WireTransport(), TrioWebsocketTransport()], ids=["wire", "trio-websocket"]
)


class AsksForChannels(SubscriptionHandler):
    """Asks for each channel by a question, which is answered as one."""

    correlated = True


class Service:
    """Answers every question, and remembers what it read on each link."""

    def __init__(self, answers: bool = True) -> None:
        self.read: list[list[Any]] = []
        self.peers: list[Peer] = []
        self.answers = answers

    async def __call__(self, peer: Peer) -> None:
        await peer.accept()
        read: list[Any] = []
        self.read.append(read)
        self.peers.append(peer)
        try:
            while isinstance(frame := await peer.receive(), str):
                read.append(message := json.loads(frame))
                if self.answers and "id" in message:
                    await peer.send_json({"id": message["id"], "result": True})
        except Disconnected:
            pass

    def ids(self, link: int) -> list[int]:
        return [message["id"] for message in self.read[link] if "id" in message]


def connect(server: ScriptedServer, **options: Any) -> Any:
    return open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec(), backoff=AT_ONCE, **options)


class Direct(MemoryStream):
    """Takes at once what there is room for, as a socket does."""

    def send_some_nowait(self, data: bytes) -> int:
        pipe = self._outgoing
        if self._closed or pipe.ended or pipe.refused or pipe.reset:
            return 0  # send_all tells why
        taken = data[: pipe.room]
        pipe.under_way += taken
        pipe.changed.unpark_all()
        return len(taken)


def connect_directly(server: ScriptedServer, **options: Any) -> Any:
    """Connect by a stream on which what nothing holds back is written within the call."""

    async def dial(host: str, port: int) -> Direct:
        stream = await server.stream_factory(host, port)
        return Direct(incoming=stream._incoming, outgoing=stream._outgoing)

    return open_connection(URL, stream_factory=dial, codec=JsonCodec(), backoff=AT_ONCE, **options)


def rises(ids: list[int]) -> bool:
    return ids == sorted(set(ids))


@both_transports
async def test_ids_rise_in_the_order_of_the_wire_also_for_what_was_asked_while_there_was_no_link(
    autojump_clock: trio.abc.Clock, transport: Any
) -> None:
    service = Service()
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, transport=transport, subscription_handler=AsksForChannels()) as conn,
        conn.subscribe("a"),
        conn.subscribe("b"),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(conn.reconnect)
        await conn.wait_state(State.DISCONNECTED)
        for number in range(3):
            nursery.start_soon(conn.request, {"asked": number})
    assert [message.get("channel") or message["asked"] for message in service.read[1] if "id" in message][:2] == [
        "a",
        "b",
    ]
    assert len(service.ids(1)) >= 5
    assert rises(service.ids(0))
    assert rises(service.ids(1))


@both_transports
async def test_ids_rise_in_the_order_of_the_wire_also_where_a_limit_and_priorities_hold_some_back(
    autojump_clock: trio.abc.Clock, transport: Any
) -> None:
    service = Service()
    limit = RateLimitHandler([RollingWindow(1, 1.0)])
    async with (
        ScriptedServer(service) as server,
        connect(server, transport=transport, rate_limit_handler=limit) as conn,
        trio.open_nursery() as nursery,
    ):
        for priority in (0, 5, -5, 0):

            async def ask(priority: int = priority) -> None:
                await conn.request({"priority": priority}, priority=priority)

            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
    assert [message["priority"] for message in service.read[0]] == [0, -5, 0, 5]
    assert rises(service.ids(0))


class NamesItsLink(ConnectionHandler):
    number = 0

    def handle_connect(self, info: Any) -> Action:
        self.number = info.epoch
        return None


class Stamps(MessageHandler):
    """Puts the number of the link into each message."""

    def __init__(self, link: NamesItsLink) -> None:
        super().__init__()
        self._link = link

    def encode_message(self, message: Any) -> Any:
        return {**message, "link": self._link.number}


@both_transports
@pytest.mark.parametrize("call", ["send", "request", "idempotent request"])
async def test_a_message_is_encoded_for_the_link_that_it_leaves_on(
    autojump_clock: trio.abc.Clock, transport: Any, call: str
) -> None:
    service, link = Service(), NamesItsLink()

    async def do(conn: Connection) -> None:
        if call == "send":
            await conn.send({"n": 1})
        else:
            await conn.request({"n": 1}, idempotent="idempotent" in call)

    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, transport=transport, connection_handler=link, message_handler=Stamps(link)) as conn,
    ):
        if call == "idempotent request":
            service.answers = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(do, conn)
                await wait_all_tasks_blocked()
                service.answers = True
                await service.peers[0].reset()
            assert [message["link"] for message in service.read[0]] == [1]
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.reconnect)
                await conn.wait_state(State.DISCONNECTED)
                nursery.start_soon(do, conn)
    assert [message["link"] for message in service.read[1]] == [2]


@both_transports
async def test_a_question_that_a_limit_holds_back_as_its_link_is_lost_waits_for_the_next(
    autojump_clock: trio.abc.Clock, transport: Any
) -> None:
    service = Service()
    limit = RateLimitHandler([RollingWindow(1, 10.0)])
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, transport=transport, rate_limit_handler=limit) as conn,
        trio.open_nursery() as nursery,
    ):
        await conn.send({"first": True})

        @nursery.start_soon
        async def ask() -> None:
            assert (await conn.request({"second": True}))["result"] is True

        await wait_all_tasks_blocked()
        await service.peers[0].reset()
    assert [len(read) for read in service.read] == [1, 1]
    assert service.read[1][0]["second"] is True


async def test_a_question_that_a_limit_holds_back_fails_with_its_link_where_nothing_is_to_wait(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    limit = RateLimitHandler([RollingWindow(1, 10.0)])
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, rate_limit_handler=limit, when_down="fail") as conn,
        trio.open_nursery() as nursery,
    ):
        await conn.send({"first": True})

        @nursery.start_soon
        async def ask() -> None:
            with pytest.raises(NotSent, match="the link was lost before it was written"):
                await conn.request({"second": True})

        await wait_all_tasks_blocked()
        await service.peers[0].reset()


@pytest.mark.parametrize("how", ["send", "request"])
async def test_what_waits_is_as_it_was_when_it_was_said(autojump_clock: trio.abc.Clock, how: str) -> None:
    service, link = Service(), NamesItsLink()
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, connection_handler=link, message_handler=Stamps(link)) as conn,
    ):
        message = {"inner": {"price": 1}}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.reconnect)
            await conn.wait_state(State.DISCONNECTED)
            nursery.start_soon(conn.send if how == "send" else conn.request, message)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            message["inner"]["price"] = 2
    assert service.read[1][0]["inner"] == {"price": 1}


@attrs.frozen
class FailsAt(Correlation):
    """Fails at the id of a question that is bad."""

    step: str = "tag"

    def tag(self, message: Any, id: int) -> Any:
        if "bad" in message and self.step == "tag":
            raise ValueError("there is no place for an id")
        return Correlation.tag(self, message, id)

    def request_id(self, message: Any) -> Hashable | None:
        if "bad" in message and self.step == "request_id":
            raise ValueError("there is no id")
        if "bad" in message and self.step == "hash":
            return ("an", ["unhashable", "id"])
        return Correlation.request_id(self, message)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("step", ["tag", "request_id", "hash"])
async def test_a_hook_that_fails_at_an_id_fails_one_question_whether_it_waits_or_not(
    autojump_clock: trio.abc.Clock, step: str, direct: bool
) -> None:
    service = Service()
    async with (
        ScriptedServer(service, then=service) as server,
        (connect_directly if direct else connect)(server, correlation=FailsAt(step=step)) as conn,
    ):
        with pytest.raises(BadMessage):
            await conn.request({"bad": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.reconnect)
            await conn.wait_state(State.DISCONNECTED)
            with pytest.raises(BadMessage):
                await conn.request({"bad": True})
        assert await conn.request({"good": True})
        assert conn.epoch == 2
    assert [len(read) for read in service.read] == [0, 1]


@pytest.mark.parametrize("message", [{"lock": threading.Lock()}, {"object": object()}], ids=["no copy", "no JSON"])
async def test_what_can_not_be_said_is_refused_at_the_call_also_where_it_would_wait(
    autojump_clock: trio.abc.Clock, message: Any
) -> None:
    service = Service()
    async with ScriptedServer(service, then=service) as server, connect(server) as conn:
        for _ in range(2):
            with pytest.raises(BadMessage):
                await conn.request(message)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.reconnect)
                await conn.wait_state(State.DISCONNECTED)
                with pytest.raises(BadMessage):
                    await conn.request(message)
        assert conn.statistics().outbox_messages == 0


@both_transports
async def test_what_answers_a_message_of_a_link_dies_with_it(autojump_clock: trio.abc.Clock, transport: Any) -> None:
    class Acknowledges(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return Reply({"ack": message["n"]}) if isinstance(message, dict) and "n" in message else None

    service, failed = Service(), list[Any]()
    limit = RateLimitHandler([RollingWindow(1, 10.0)])
    async with (
        ScriptedServer(service, then=service) as server,
        connect(server, transport=transport, message_handler=Acknowledges(), rate_limit_handler=limit) as conn,
        conn.listen(ErrorEvent) as events,
    ):
        for number in range(5):
            await service.peers[0].send_json({"n": number})
        await wait_all_tasks_blocked()
        await service.peers[0].reset()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()
        await trio.sleep(100.0)
        assert await conn.request({"alive": True})
        failed += [event.error for event in await events.receive_batch() if event.context == "reply"]
    assert [message.get("ack") for message in service.read[0]] == [0]
    assert all("ack" not in message for message in service.read[1])
    assert [type(error) for error in failed] == [NotSent] * 4
    assert "the link that it was for was lost" in str(failed[0])


@pytest.mark.parametrize("how", ["send", "request"])
async def test_one_who_is_cancelled_in_the_turn_in_which_the_message_left_is_not_woken_twice(
    autojump_clock: trio.abc.Clock, how: str
) -> None:
    service, link = Service(), NamesItsLink()
    async with (
        ScriptedServer(service) as server,
        connect_directly(server, connection_handler=link, message_handler=Stamps(link)) as conn,
    ):
        for turn in range(16):  # half of the time Trio runs the one who cancels last
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conn.send if how == "send" else conn.request, {"turn": turn})
                nursery.start_soon(cancel, nursery.cancel_scope)
        await conn.request({"last": True})
    assert service.read[0][-1]["last"] is True
    assert rises([message["turn"] for message in service.read[0][:-1]])


async def cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_hook_counts_as_its_own_also_where_another_handler_wraps_it(autojump_clock: trio.abc.Clock) -> None:
    class Doubles(MessageHandler):
        def encode_message(self, message: Any) -> Any:
            return {**message, "n": 2 * message["n"]}

    class Passes(MessageHandler):
        def __init__(self, inner: MessageHandler) -> None:
            super().__init__()
            self.encode_message = inner.encode_message  # type: ignore[method-assign]

    service = Service()
    async with ScriptedServer(service) as server, connect(server, message_handler=Passes(Doubles())) as conn:
        await conn.send({"n": 21})
        await wait_all_tasks_blocked()
    assert service.read[0] == [{"n": 42}]


async def test_a_hook_that_cancels_who_asks_as_the_question_is_written_disturbs_nobody_else(
    autojump_clock: trio.abc.Clock,
) -> None:
    scope = trio.CancelScope()

    class Cancels(MessageHandler):
        def encode_message(self, message: Any) -> Any:
            if message.get("cancels") and message.get("id"):
                scope.cancel()
            return message

    service, limit = Service(), RateLimitHandler([RollingWindow(1, 10.0)])
    async with (
        ScriptedServer(service) as server,
        connect(server, message_handler=Cancels(), rate_limit_handler=limit) as conn,
        trio.open_nursery() as nursery,
    ):
        await conn.send({"first": True})

        @nursery.start_soon
        async def ask() -> None:
            with scope:
                await conn.request({"cancels": True})
            await trio.sleep(100.0)  # the answer must not end this
            assert trio.current_time() == 110.0

        await trio.sleep(50.0)
        assert scope.cancelled_caught
        assert [message.get("cancels") for message in service.read[0]] == [None, True]
        assert conn.statistics().answers_unmatched == 1  # it came late


async def test_nothing_overtakes_what_a_limit_held_back_that_holds_nothing_any_more(
    autojump_clock: trio.abc.Clock,
) -> None:
    service, limit = Service(), RateLimitHandler(mode="always_queue")
    async with (
        ScriptedServer(service) as server,
        connect_directly(server, rate_limit_handler=limit) as conn,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(conn.send, {"n": 1})
        await wait_all_tasks_blocked()
        limit.mode = "normal"
        await conn.send({"n": 2})
        await conn.request({"n": 3})
    assert [message["n"] for message in service.read[0]] == [1, 2, 3]
