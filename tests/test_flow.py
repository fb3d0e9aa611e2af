"""What waits to be taken: the one bound of it, who asks behind it, and what becomes of it at the end."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Adapter,
    AnswerUnmatched,
    Connection,
    ConsumerLagged,
    Dropped,
    FeedOptions,
    HighWater,
    JsonCodec,
    LinkLost,
    ListBackoff,
    LowWater,
    Many,
    MessageHandler,
    Other,
    OutcomeUnknown,
    Reading,
    Reply,
    SessionOver,
    State,
    open_connection,
    run_connection,
)
from trio_nova.links import Transport
from trio_nova.messages import Action
from trio_nova.testing import Opcode, Peer, ScriptedServer, encode_frame

URL = "ws://server.test/"


def connect(server: ScriptedServer, transport: Transport, target: Any = URL, **options: Any) -> Any:
    options = {"codec": JsonCodec(), "backoff": ListBackoff([0.0]), "ping_interval": 3600.0, **options}
    return open_connection(target, stream_factory=server.stream_factory, transport=transport, **options)


def frames_of(*messages: object) -> bytes:
    return b"".join(encode_frame(Opcode.TEXT, json.dumps(message).encode()) for message in messages)


def close_frame(code: int) -> bytes:
    return encode_frame(Opcode.CLOSE, struct.pack("!H", code))


def talks(first: Sequence[object], *, when_asked: Sequence[object] = ()) -> Callable[[Peer], Any]:
    """A service that confirms subscriptions, then says `first`, and answers each question behind `when_asked`."""

    async def serve(peer: Peer) -> None:
        await peer.accept()
        if not any(isinstance(each, dict) and "channel" in each for each in (*first, *when_asked)):
            await peer.send_raw(frames_of(*first))
        while isinstance(frame := await peer.receive(), str):
            match json.loads(frame):
                case {"type": "subscribe"} as message:
                    await peer.send_raw(frames_of({**message, "type": "subscribed"}, *first))
                case {"id": id}:
                    await peer.send_raw(frames_of(*when_asked, {"id": id, "result": "done"}))

    return serve


def ticks(count: int) -> list[object]:
    return [{"channel": "ticks", "n": number} for number in range(count)]


# --------------------------------------------------------------------------- asking from within one's own loop


@pytest.mark.parametrize("count", [2_000, pytest.param(200_000, marks=pytest.mark.soak)])
async def test_a_consumer_asks_from_within_the_loop_over_its_feed_whatever_stands_before_the_answer(
    autojump_clock: trio.abc.Clock, transport: Transport, count: int
) -> None:
    if count > 2_000 and type(transport).__name__ != "WireTransport":
        pytest.skip("trio-websocket takes a minute for so many; 2,000 are tried on it")
    service = talks(ticks(1), when_asked=ticks(count))
    async with ScriptedServer(service) as server, connect(server, transport) as conn, conn.subscribe("ticks") as feed:
        async for _ in feed:
            assert (await conn.request({"what": "time"}))["result"] == "done"
            assert feed.waiting == count
            break


@pytest.mark.parametrize("count", [2_000, pytest.param(200_000, marks=pytest.mark.soak)])
async def test_a_consumer_asks_from_within_the_loop_over_the_inbox_whatever_stands_before_the_answer(
    autojump_clock: trio.abc.Clock, transport: Transport, count: int
) -> None:
    if count > 2_000 and type(transport).__name__ != "WireTransport":
        pytest.skip("trio-websocket takes a minute for so many; 2,000 are tried on it")
    service = talks([{"n": 0}], when_asked=[{"n": number} for number in range(count)])
    async with ScriptedServer(service) as server, connect(server, transport) as conn:
        async for _ in conn:
            assert (await conn.request({"what": "time"}))["result"] == "done"
            assert conn.statistics().inbox_messages == count
            break


@pytest.mark.parametrize("over", ["feed", "inbox"])
async def test_an_answer_behind_more_than_may_wait_is_unknown_and_told_when_it_is_read(
    autojump_clock: trio.abc.Clock, transport: Transport, over: str
) -> None:
    many = ticks(2_000) if over == "feed" else [{"n": number} for number in range(2_000)]
    where = "ticks" if over == "feed" else "inbox"
    async with (
        ScriptedServer(talks(many[:1], when_asked=many)) as server,
        connect(server, transport, inbox_bytes=20_000) as conn,
        conn.listen() as events,
        contextlib.AsyncExitStack() as stack,
    ):
        consumer = conn if over == "inbox" else await stack.enter_async_context(conn.subscribe("ticks"))
        await consumer.receive()
        asked_at = trio.current_time()
        with pytest.raises(OutcomeUnknown, match=rf"\d+ messages wait in '{where}'") as caught:
            await conn.request({"what": "time", "id": "mine"})
        assert trio.current_time() - asked_at == pytest.approx(20.0)
        assert (caught.value.where, conn.state, conn.epoch) == (where, State.READY, 1)
        assert 10 < caught.value.waiting < 2_000
        assert (conn.health().status, conn.health().full, conn.health().reading) == ("degraded", where, False)
        await trio.sleep(1000.0)  # time in which nothing is read lets no answer be forgotten
        for number in range(2_000):
            assert (await consumer.receive())["n"] == number
        await wait_all_tasks_blocked()
        assert conn.health().reading
        with pytest.raises(trio.WouldBlock):
            consumer.receive_nowait()
        told = await events.receive_batch()
    assert [(event.late, event.id) for event in told if isinstance(event, AnswerUnmatched)] == [(True, "mine")]
    assert {event.where for event in told if isinstance(event, ConsumerLagged)} == {where}


async def test_a_question_asked_when_reading_stands_still_does_not_hang_and_the_consumer_goes_on(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    many = [{"n": number} for number in range(1_000)]
    async with (
        ScriptedServer(talks(many)) as server,
        connect(server, transport, inbox_bytes=20_000, pong_timeout=5.0) as conn,
    ):
        await wait_all_tasks_blocked()
        assert not conn.health().reading
        unknown = 0
        for number in range(1_000):
            assert (await conn.receive())["n"] == number
            if number in (0, 300):
                asked_at = trio.current_time()
                with pytest.raises(OutcomeUnknown):
                    await conn.request({"what": "time"})
                assert trio.current_time() - asked_at <= 5.0
                unknown += 1
        assert unknown == 2
        assert (await conn.request({"what": "time"}))["result"] == "done"


async def test_a_consumer_that_is_merely_slow_raises_no_alarm(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    many = [{"n": number} for number in range(1_000)]
    answers: list[Any] = []

    async def ask(conn: Connection) -> None:
        answers.append(await conn.request({"what": "time"}))

    async with (
        ScriptedServer(talks(many)) as server,
        connect(server, transport, inbox_bytes=20_000) as conn,
        trio.open_nursery() as nursery,
    ):
        await wait_all_tasks_blocked()
        assert not conn.health().reading
        nursery.start_soon(ask, conn)
        for number in range(1_000):  # hours
            assert (await conn.receive())["n"] == number
            await trio.sleep(15.0)
    assert len(answers) == 1


async def test_a_link_is_set_up_although_as_much_waits_as_may(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    many = ticks(200)

    async def first(peer: Peer) -> None:
        await peer.accept()
        message = json.loads(str(await peer.receive()))
        await peer.send_raw(frames_of({**message, "type": "subscribed"}, *many))
        await peer.serve_until_closed()

    async with (
        ScriptedServer(first, talks(many, when_asked=())) as server,
        connect(server, transport, inbox_bytes=20_000) as conn,
        conn.subscribe("ticks") as feed,
    ):
        await wait_all_tasks_blocked()
        assert not conn.health().reading
        with trio.fail_after(5.0):
            await conn.reconnect()
        assert (conn.state, conn.epoch) == (State.READY, 2)
        for _ in range(2):
            assert [(await feed.receive())["n"] for _ in range(200)] == list(range(200))


async def test_a_heartbeat_of_the_service_is_answered_behind_a_consumer_that_is_busy(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    beats = 0

    async def serve(peer: Peer) -> None:
        nonlocal beats
        await peer.accept()
        message = json.loads(str(await peer.receive()))
        await peer.send_raw(frames_of({**message, "type": "subscribed"}, *ticks(2_000)))
        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                nonlocal beats
                while isinstance(frame := await peer.receive(), str):
                    beats += json.loads(frame) == {"type": "beat"}

            nursery.start_soon(hear)
            for _ in range(6):
                await peer.send_json({"type": "heartbeat"})
                await trio.sleep(1.0)
            assert beats == 6
            nursery.cancel_scope.cancel()
        await peer.serve_until_closed()

    class Beats(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return Reply({"type": "beat"}) if message.get("type") == "heartbeat" else None

    async with (
        ScriptedServer(serve) as server,
        connect(server, transport, message_handler=Beats) as conn,
        conn.subscribe("ticks") as feed,
    ):
        await feed.receive()
        await trio.sleep(6.5)
        assert (conn.epoch, conn.state, beats) == (1, State.READY, 6)


async def test_hooks_and_setup_are_not_held_up_by_replies_that_must_wait_for_the_setup(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        message = json.loads(str(await peer.receive()))
        await peer.send_raw(frames_of(*[{"n": number} for number in range(900)], {**message, "type": "subscribed"}))
        await peer.serve_until_closed()

    class Answers(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return Reply({"ack": message.get("n")})

    async with ScriptedServer(talks([]), serve) as server:
        async with (
            connect(server, transport, message_handler=Answers) as conn,
            conn.subscribe("ticks"),
        ):
            with trio.fail_after(5.0):
                await conn.reconnect()
            assert conn.epoch == 2


# --------------------------------------------------------------------------- marks, and what gives way


async def test_the_marks_of_a_feed_that_blocks_are_told(autojump_clock: trio.abc.Clock, transport: Transport) -> None:
    async with (
        ScriptedServer(talks(ticks(12))) as server,
        connect(server, transport) as conn,
        conn.listen() as events,
        conn.subscribe("ticks", feed=FeedOptions(size=10)) as feed,
    ):
        await wait_all_tasks_blocked()
        assert (feed.waiting, conn.health().reading) == (12, True)
        for _ in range(12):
            await feed.receive()
        told = [event for event in await events.receive_batch() if isinstance(event, HighWater | LowWater)]
    assert [(type(event), event.messages, event.where) for event in told] == [
        (HighWater, 8, "ticks"),
        (LowWater, 5, "ticks"),
    ]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
async def test_a_feed_that_drops_holds_no_more_bytes_than_the_inbox_may(
    autojump_clock: trio.abc.Clock, transport: Transport, overflow: Any
) -> None:
    large = [{"channel": "ticks", "n": number, "filler": "x" * 4_000} for number in range(100)]
    async with (
        ScriptedServer(talks(large)) as server,
        connect(server, transport, inbox_bytes=20_000) as conn,
        conn.subscribe("ticks", feed=FeedOptions(overflow=overflow)) as feed,
    ):
        await wait_all_tasks_blocked()
        assert (feed.waiting, feed.dropped, conn.health().reading) == (5, 95, True)


async def test_what_was_left_in_a_feed_whose_block_was_left_holds_up_nobody(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async with ScriptedServer(talks(ticks(1_000))) as server, connect(server, transport, inbox_bytes=20_000) as conn:
        async with conn.subscribe("ticks") as feed:
            await wait_all_tasks_blocked()
            assert not conn.health().reading
        await wait_all_tasks_blocked()
        assert (conn.health().reading, conn.health().full) == (True, "")
        assert (await feed.receive())["n"] == 0


async def test_greetings_that_nobody_receives_do_not_stop_a_program_that_only_reads_feeds(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    links = 150

    async def greet(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json({"welcome": "x" * 100})
        message = json.loads(str(await peer.receive()))
        await peer.send_raw(frames_of({**message, "type": "subscribed"}, *ticks(1)))
        await trio.sleep(1.0)
        await peer.drop()

    async with ScriptedServer(then=greet) as server:
        async with (
            connect(server, transport, inbox_size=40) as conn,
            conn.listen(size=100_000) as events,
            conn.subscribe("ticks") as feed,
        ):
            for _ in range(links):
                with trio.fail_after(10.0):
                    await feed.receive()
            assert conn.health().reading
            assert conn.statistics().inbox_messages == 40
            dropped = [event.count for event in await events.receive_batch() if isinstance(event, Dropped)]
            assert dropped == [1, 40, 40]  # the first at once, then 40 at a time; the rest in the end
            await conn.aclose()
            dropped += [event.count for event in await events.receive_batch() if isinstance(event, Dropped)]
            assert sum(dropped) == links - 40
            assert len(await conn.receive_batch()) == 40


class InFrames(Adapter):
    """A frame is an array of messages."""

    def read(self, message: Any) -> Reading | None:
        return Many([Other(each) for each in message]) if isinstance(message, list) else None


@pytest.mark.parametrize("hooked", [False, True])
async def test_each_message_of_a_frame_is_charged_its_share_of_it(
    autojump_clock: trio.abc.Clock, transport: Transport, hooked: bool
) -> None:
    class Hears(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return None

    frame = [{"n": number, "filler": "x" * 80} for number in range(500)]
    options = {"message_handler": Hears} if hooked else {}
    async with (
        ScriptedServer(talks([frame])) as server,
        connect(server, transport, target=InFrames(url=URL), inbox_size=1_000, **options) as conn,
    ):
        await wait_all_tasks_blocked()
        statistics = conn.statistics()
        assert statistics.inbox_messages == 500
        assert len(json.dumps(frame)) <= statistics.inbox_bytes < 500 * 400


# --------------------------------------------------------------------------- the end


@pytest.mark.parametrize("how", ["iterate", "receive", "batch", "feed", "hooks", "handed over", "run"])
async def test_what_was_received_before_the_end_is_delivered_before_the_error(
    autojump_clock: trio.abc.Clock, transport: Transport, how: str
) -> None:
    got: list[Any] = []

    async def serve(peer: Peer) -> None:
        await peer.accept()
        if how == "feed":
            message = json.loads(str(await peer.receive()))
            await peer.send_raw(frames_of({**message, "type": "subscribed"}))
        await trio.sleep(1.0)
        await peer.send_raw(frames_of(*ticks(3)) + close_frame(1008))

    async def take(message: Any) -> None:
        await trio.sleep(0.02)
        got.append(message["n"])

    async def consume(conn: Any) -> None:
        match how:
            case "receive":
                while True:
                    await take(await conn.receive())
            case "batch":
                while True:
                    for message in await conn.receive_batch():
                        await take(message)
            case "feed":
                async with conn.subscribe("ticks") as feed:
                    async for message in feed:
                        await take(message)
            case "handed over":
                async for message in conn.hand_over():
                    await take(message)
            case _:
                async for message in conn:
                    await take(message)
        await trio.sleep_forever()

    class Hears(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Action:
            return None

    options: dict[str, Any] = {"max_attempts": 0, **({"message_handler": Hears} if how == "hooks" else {})}
    async with ScriptedServer(serve) as server:
        with pytest.raises(LinkLost) as caught:
            if how == "run":
                with_codec: dict[str, Any] = {
                    "codec": JsonCodec(),
                    "stream_factory": server.stream_factory,
                    "transport": transport,
                }
                try:
                    async with trio.open_nursery() as nursery:
                        conn = await nursery.start(lambda **task: run_connection(URL, **with_codec, **options, **task))
                        nursery.start_soon(consume, conn)
                except* LinkLost as group:
                    raise group.exceptions[0] from None
            else:
                async with connect(server, transport, **options) as conn:
                    await consume(conn)
    assert caught.value.code == 1008
    assert got == [0, 1, 2]
    assert trio.current_time() == pytest.approx(1.06)


async def test_a_program_that_never_receives_is_told_of_the_end_at_once(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send_raw(frames_of(*ticks(3)) + close_frame(1008))

    async with ScriptedServer(serve) as server:
        with pytest.raises(LinkLost):
            async with connect(server, transport, max_attempts=0):
                await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(1.0)


async def test_one_who_has_stopped_receiving_is_waited_for_no_longer_than_close_timeout(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json({"n": 0})
        await trio.sleep(1.0)
        await peer.send_raw(frames_of(*ticks(3)) + close_frame(1008))

    async with ScriptedServer(serve) as server:
        with pytest.raises(LinkLost):
            async with connect(server, transport, max_attempts=0, close_timeout=1.5) as conn:
                await conn.receive()
                await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(2.5)


async def test_leaving_the_block_while_messages_are_still_to_be_taken_waits_for_nothing(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        await peer.send_raw(frames_of(*ticks(3)) + close_frame(1008))

    async with ScriptedServer(serve) as server:
        with pytest.raises(LinkLost):
            async with connect(server, transport, max_attempts=0) as conn:
                await conn.receive()
                await trio.sleep(0.5)
                with pytest.raises(SessionOver):
                    await conn.send("too late")
    assert trio.current_time() == pytest.approx(0.5)
