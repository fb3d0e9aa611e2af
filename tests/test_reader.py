"""The reader's task, and those who wait for what it reads."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Connection,
    JsonCodec,
    LinkLost,
    MessageHandler,
    NotSent,
    OutcomeUnknown,
    RateLimitHandler,
    Receiver,
    ReceiverMoved,
    RequestSent,
    RollingWindow,
    SessionOver,
    State,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"


@attrs.define
class Witness(JsonCodec):
    """Keeps which task took in each batch."""

    tasks: list[str] = attrs.field(factory=list)

    def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[Any]:
        self.tasks.append(trio.lowlevel.current_task().name)
        return super().decode_all(payloads)


def connect(server: ScriptedServer, codec: JsonCodec | None = None, **options: Any) -> Any:
    return open_connection(URL, stream_factory=server.stream_factory, codec=codec or JsonCodec(), **options)


async def count(peer: Peer) -> None:
    """Say a number each second."""
    await peer.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.serve_until_closed)
        for number in range(1000):
            await trio.sleep(1.0)
            await peer.send_json(number)


class Service:
    """Confirms what it is asked for."""

    peer: Peer

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            if (asked := json.loads(frame))["type"] == "subscribe":
                await peer.send_json({"type": "subscribed", "channel": asked["channel"]})


async def test_the_reader_reads_whoever_waits(autojump_clock: trio.abc.Clock) -> None:
    witness = Witness()
    async with ScriptedServer(count) as server, connect(server, witness) as conn:
        assert [await conn.receive() for _ in range(10)] == list(range(10))
        await trio.sleep(2.5)
        assert [await conn.receive() for _ in range(6)] == list(range(10, 16))
    assert witness.tasks == [f"nova[{conn.id}]:reader#1"] * 16


async def test_each_feed_gets_its_own_in_order(autojump_clock: trio.abc.Clock) -> None:
    service, heard = Service(), list[object]()

    async def consume(feed: Any) -> None:
        async for message in feed:
            heard.append(message["channel"])

    async with (
        ScriptedServer(service) as server,
        connect(server) as conn,
        conn.subscribe("a") as a,
        conn.subscribe("b") as b,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(consume, a)
        nursery.start_soon(consume, b)
        for channel in ("a", "b", "b", "a"):
            await wait_all_tasks_blocked()
            await service.peer.send_json({"channel": channel})
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert heard == ["a", "b", "b", "a"]


async def test_tasks_that_wait_for_the_same_are_served_in_turn(autojump_clock: trio.abc.Clock) -> None:
    heard: dict[str, list[int]] = {"one": [], "other": []}

    async def consume(conn: Connection, name: str) -> None:
        while True:
            heard[name].append(await conn.receive())

    async with ScriptedServer(count) as server, connect(server) as conn, trio.open_nursery() as nursery:
        nursery.start_soon(consume, conn, "one")
        await wait_all_tasks_blocked()
        nursery.start_soon(consume, conn, "other")
        await trio.sleep(10.5)
        nursery.cancel_scope.cancel()
    assert sorted(heard["one"] + heard["other"]) == list(range(10))
    assert len(heard["one"]) == len(heard["other"]) == 5


async def test_a_receive_leaves_at_once_when_it_is_cancelled_and_loses_nothing(
    autojump_clock: trio.abc.Clock,
) -> None:
    heard: list[int] = []
    async with ScriptedServer(count) as server, connect(server, ping_interval=1.5, pong_timeout=1.5) as conn:
        while len(heard) < 20:
            with trio.move_on_after(0.3):
                heard.append(await conn.receive())
            await trio.sleep(0.4)
        assert heard == list(range(20))
        assert conn.epoch == 1


async def test_a_task_that_waits_is_told_that_the_receive_side_has_moved(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(count) as server, connect(server) as conn, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(ReceiverMoved):
                await conn.receive()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        receiver = conn.hand_over()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert await receiver.receive() == 0


async def test_a_task_that_waits_is_told_that_a_hook_moved_the_receive_side(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Moves(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            if message == 2:
                receivers.append(conn.hand_over())
            return message

    receivers: list[Receiver[Any]] = []
    async with ScriptedServer(count) as server, connect(server, message_handler=Moves()) as conn:
        assert [await conn.receive() for _ in range(2)] == [0, 1]
        with trio.fail_after(1.5), pytest.raises(ReceiverMoved):
            await conn.receive()
        assert [await receivers[0].receive() for _ in range(2)] == [2, 3]


async def test_a_task_that_waits_is_told_that_the_service_ended_the_feed(
    autojump_clock: trio.abc.Clock,
) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn, conn.subscribe("a") as feed:
        await service.peer.send_json({"channel": "a"})
        await feed.receive()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with trio.fail_after(1), pytest.raises(SubscriptionRejected, match="no more"):
                    await feed.receive()

            await wait_all_tasks_blocked()
            await service.peer.send_json({"type": "error", "channel": "a", "reason": "no more"})


async def test_a_task_that_waits_is_told_that_the_block_of_its_feed_was_left(autojump_clock: trio.abc.Clock) -> None:
    service = Service()
    async with ScriptedServer(service) as server, connect(server) as conn, trio.open_nursery() as nursery:
        async with conn.subscribe("a") as feed:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await feed.receive()

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
        await service.peer.send_json("to nobody in particular")
        assert await conn.receive() == "to nobody in particular"


async def test_a_task_that_waits_may_be_outside_of_the_block(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(count) as server, trio.open_nursery() as nursery:

        async def wait(conn: Connection) -> None:
            with pytest.raises(SessionOver):
                while True:
                    await conn.receive()

        async with connect(server) as conn:
            nursery.start_soon(wait, conn)
            await trio.sleep(3.5)
        assert conn.state is State.CLOSED
        with trio.fail_after(0.0001):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()


async def test_a_task_that_waits_gets_nothing_while_reading_is_paused(autojump_clock: trio.abc.Clock) -> None:
    heard: list[int] = []

    async def consume(conn: Connection) -> None:
        while True:
            heard.append(await conn.receive())

    async with ScriptedServer(count) as server, connect(server) as conn, trio.open_nursery() as nursery:
        nursery.start_soon(consume, conn)
        await trio.sleep(2.5)
        async with conn.paused():
            await trio.sleep(5.0)
            assert heard == [0, 1]
        await trio.sleep(0.1)
        assert heard == list(range(7))
        nursery.cancel_scope.cancel()


async def test_a_defect_of_the_session_ends_it(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trio_nova._link.reader.Intake.take_in", fail)
    with pytest.raises(ZeroDivisionError):
        async with ScriptedServer(count) as server, connect(server) as conn:
            with pytest.raises(SessionOver):
                await conn.receive()


async def test_an_exit_that_a_hook_wants_ends_the_session_not_the_task_that_waits(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Exits(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            if message == 2:
                raise SystemExit(3)
            return message

    async def consume(conn: Connection) -> None:
        with pytest.raises(SessionOver):
            while True:
                heard.append(await conn.receive())

    heard: list[int] = []
    async with ScriptedServer(count) as server, trio.open_nursery() as outside:
        with pytest.raises(SystemExit):
            async with connect(server, message_handler=Exits()) as conn:
                outside.start_soon(consume, conn)
                await trio.sleep_forever()
    assert heard == [0, 1]


async def test_what_is_logged_of_a_hook_that_raises_holds_no_secret(
    autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Tells(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            raise ValueError("the token is s3cr3t-t0ken")

    headers = {"X-Token": "s3cr3t-t0ken"}
    with caplog.at_level(logging.DEBUG):
        async with (
            ScriptedServer(count) as server,
            connect(
                server,
                message_handler=Tells(),
                headers=headers,
                allow_plaintext_credentials=True,
                on_handler_error="log",
            ) as conn,
        ):
            with trio.move_on_after(2.5):
                await conn.receive()
    assert "ValueError" in caplog.text
    assert "s3cr3t" not in caplog.text


async def test_a_defect_is_told_though_the_link_was_to_be_left_as_it_came_up(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ScriptedServer(count, then=count) as server, connect(server) as conn:
            assert await conn.receive() == 0

            def leave_and_fail(*_: object) -> None:
                monkeypatch.undo()  # the next link is well
                conn._session.redial(0.0)
                raise ZeroDivisionError

            monkeypatch.setattr("trio_nova._link.reader.Intake.take_in", leave_and_fail)
            with pytest.raises(SessionOver):
                await conn.receive()


# --------------------------------------------------------------------- questions


class Answers:
    """Answers each question a second later, after a message to nobody in particular; hushed, it only takes them in."""

    peer: Peer
    hushed = False

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        await peer.accept()
        async with trio.open_nursery() as nursery:
            while isinstance(frame := await peer.receive(), str):
                if not self.hushed:
                    nursery.start_soon(self.answer, json.loads(frame)["id"])
            nursery.cancel_scope.cancel()

    async def answer(self, id: int) -> None:
        await trio.sleep(1.0)
        await self.peer.send_json("by the way")
        await self.peer.send_json({"id": id})


async def test_a_question_that_a_socket_takes_at_once_is_counted_once() -> None:
    async def answer(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            await peer.send_json({"id": json.loads(frame)["id"]})

    with trio.fail_after(100):
        async with (
            ScriptedServer(answer).listen() as listening,
            open_connection(listening.url, codec=JsonCodec()) as conn,
        ):
            for number in range(1, 100):
                assert await conn.request({}) == {"id": number}
            assert conn.statistics().messages_sent == 99


async def test_a_question_that_a_socket_takes_a_part_of_at_once_leaves_whole() -> None:
    question = {"words": "x" * 8_000_000}

    async def answer(peer: Peer) -> None:
        await peer.accept()
        assert await peer.receive_json() == {**question, "id": 1}
        await peer.send_json({"id": 1})
        await peer.serve_until_closed()

    with trio.fail_after(100):
        async with (
            ScriptedServer(answer).listen() as listening,
            open_connection(listening.url, codec=JsonCodec()) as conn,
            conn.listen() as events,
        ):
            assert await conn.request(question) == {"id": 1}
            told = [type(event) for event in await events.receive_batch()]
        assert told.count(RequestSent) == 1


async def test_a_task_that_asks_is_told_that_it_was_not_asked(autojump_clock: trio.abc.Clock) -> None:
    limit = RateLimitHandler(limits=[RollingWindow(2, 60.0)], queue_size=1)
    async with ScriptedServer(Answers()) as server, connect(server, rate_limit_handler=limit) as conn:
        await conn.request({})
        await conn.request({})
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask_in_vain() -> None:
                asked = trio.current_time()
                with pytest.raises(NotSent, match="1 messages are waiting"):
                    await conn.request({})
                assert trio.current_time() == asked + 1.0

            await trio.sleep(1.0)
            assert (await conn.request({}, priority=-1))["id"] == 3


async def test_tasks_that_ask_at_once_all_get_their_answers(autojump_clock: trio.abc.Clock) -> None:
    answers, heard = Answers(), list[int]()

    async def ask(conn: Connection) -> None:
        heard.append((await conn.request({}))["id"])

    async with ScriptedServer(answers) as server, connect(server) as conn:
        await conn.request({})
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask, conn)
            with trio.move_on_after(0.5):
                await conn.request({})
            assert await conn.receive() == "by the way"
        assert sorted(heard) == list(range(3, 13))


async def test_a_task_that_asks_leaves_at_once_when_it_is_cancelled(autojump_clock: trio.abc.Clock) -> None:
    answers = Answers()
    async with ScriptedServer(answers) as server, connect(server) as conn, conn.listen() as events:
        await conn.request({})
        started = trio.current_time()
        with trio.move_on_after(0.5) as scope:
            await conn.request({})
        assert scope.cancelled_caught
        assert trio.current_time() == started + 0.5
        await trio.sleep(1.0)
        assert await conn.receive_batch() == ["by the way"] * 2
        assert await conn.request({}) == {"id": 3}
        told = [type(event).__name__ for event in await events.receive_batch()]
    assert [each for each in told if each.startswith(("Request", "Answer"))] == [
        "RequestSent",
        "RequestResolved",
        "RequestSent",
        "RequestUnresolved",
        "AnswerUnmatched",
        "RequestSent",
        "RequestResolved",
    ]


async def test_a_question_is_settled_once_where_its_link_is_lost_as_it_is_cancelled(
    autojump_clock: trio.abc.Clock,
) -> None:
    answers = Answers()
    async with ScriptedServer(answers, then=answers) as server, connect(server) as conn:
        await conn.request({})
        answers.hushed = True
        scope = trio.CancelScope()

        async def lose_and_cancel() -> None:
            await wait_all_tasks_blocked()
            conn._session.current.answers.end(LinkLost(1006, "", 1))
            scope.cancel()

        trio.lowlevel.spawn_system_task(lose_and_cancel)
        with pytest.raises(OutcomeUnknown), scope:
            await conn.request({})
        answers.hushed = False
        await conn.receive_batch()
        assert await conn.request({}) == {"id": 3}


@pytest.mark.parametrize("cause", ["drop", "redial", "defect"])
async def test_a_question_is_settled_where_the_link_ends(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    answers = Answers()

    async def end(conn: Connection) -> None:
        await trio.sleep(0.5)
        if cause == "drop":
            await answers.peer.drop()
        elif cause == "redial":
            conn._session.redial(0.0)
        else:

            def fail(*_: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr("trio_nova._link.reader.Intake.take_in", fail)

    with pytest.raises(ZeroDivisionError) if cause == "defect" else contextlib.nullcontext():
        async with ScriptedServer(answers, then=answers) as server, connect(server) as conn:
            await conn.request({})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end, conn)
                with pytest.raises(OutcomeUnknown):
                    await conn.request({})
            if cause != "defect":
                assert await conn.request({}) == {"id": 3}
                assert conn.epoch == 2


async def test_an_answer_waits_while_reading_is_paused(autojump_clock: trio.abc.Clock) -> None:
    answers = Answers()
    async with ScriptedServer(answers) as server, connect(server) as conn, trio.open_nursery() as nursery:
        await conn.request({})

        async def pause() -> None:
            await trio.sleep(0.5)
            async with conn.paused():
                await trio.sleep(5.0)

        nursery.start_soon(pause)
        started = trio.current_time()
        assert await conn.request({}) == {"id": 2}
        assert trio.current_time() == pytest.approx(started + 5.5)
