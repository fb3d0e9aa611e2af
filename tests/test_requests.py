"""Questions and answers: every question settles, with the right answer or with what is known."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    AnswerUnmatched,
    BadMessage,
    Codec,
    ConfigError,
    Connection,
    JsonCodec,
    LinkLost,
    ListBackoff,
    MessageHandler,
    NotSent,
    OutcomeUnknown,
    RawCodec,
    Reply,
    RequestFailed,
    RequestResolved,
    RequestSent,
    RequestUnresolved,
    State,
    open_connection,
)
from trio_nova.testing import HangDial, Peer, ScriptedServer, echo

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])


def connect(server: ScriptedServer, **options: Any) -> Any:
    return open_connection(
        URL, **{"stream_factory": server.stream_factory, "codec": JsonCodec(), "backoff": AT_ONCE, **options}
    )


async def answer(peer: Peer) -> None:
    """Answer every question with its double."""
    await peer.accept()
    while isinstance(frame := await peer.receive(), str):
        question = json.loads(frame)
        await peer.send_json({"id": question["id"], "result": question["n"] * 2})


async def test_each_answer_goes_to_its_question_from_any_task(autojump_clock: trio.abc.Clock) -> None:
    async def shuffle(peer: Peer) -> None:
        await peer.accept()
        questions = [await peer.receive_json() for _ in range(50)]
        random.Random(7).shuffle(questions)
        for question in questions:
            await peer.send_json({"method": "notification", "id": question["id"]})
            await peer.send_json({"id": question["id"], "result": question["n"] * 2})
        await peer.serve_until_closed()

    answers: dict[int, int] = {}
    async with ScriptedServer(shuffle) as server, connect(server) as conn:

        async def ask(n: int) -> None:
            answers[n] = (await conn.request({"n": n}))["result"]

        async with trio.open_nursery() as nursery:
            for n in range(50):
                nursery.start_soon(ask, n)
        # What was no answer went the way of ordinary messages.
        assert len(await conn.receive_batch()) == 50
    assert answers == {n: 2 * n for n in range(50)}


async def test_without_ids_answers_come_in_order(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(echo) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
    ):
        assert await conn.request("Hello") == "Hello"
        got: list[str] = []

        async def ask(text: str) -> None:
            got.append(await conn.request(text))
            assert got[-1] == text

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(ask, f"question {n}")
        assert len(got) == 10


async def test_a_cancelled_question_without_an_id_keeps_its_place(autojump_clock: trio.abc.Clock) -> None:
    async def late(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.receive()
        await peer.send("first", "second")
        await peer.serve_until_closed()

    async with (
        ScriptedServer(late) as server,
        open_connection(URL, stream_factory=server.stream_factory) as conn,
        conn.listen() as events,
    ):
        with trio.move_on_after(1):
            await conn.request("one")
        assert await conn.request("two") == "second"
        unmatched = [event for event in await events.receive_batch() if isinstance(event, AnswerUnmatched)]
        assert [event.late for event in unmatched] == [True]


@pytest.mark.parametrize("codec", [RawCodec(), JsonCodec()], ids=["raw", "json"])
async def test_an_answer_that_comes_when_nobody_waits_any_more_is_nobodys(
    autojump_clock: trio.abc.Clock, codec: Codec
) -> None:
    async def act(peer: Peer) -> None:
        await peer.accept()
        for pause in (2.0, 0.0):
            question = await peer.receive()
            await trio.sleep(pause)
            await peer.send(str(question))
        await peer.serve_until_closed()

    async with ScriptedServer(act) as server, connect(server, codec=codec) as conn:
        with trio.move_on_after(1.0) as scope:
            await conn.request("1")
        assert scope.cancelled_caught
        await trio.sleep(2.0)  # the late answer comes
        with trio.fail_after(1.0):
            assert await conn.request("2") == "2"
        assert not conn.statistics().inbox_messages


@pytest.mark.parametrize("kind", ["request", "ping"])
async def test_what_is_asked_from_outside_of_the_block_settles_where_a_defect_ends_the_session(
    autojump_clock: trio.abc.Clock, kind: str
) -> None:
    class Exits(MessageHandler):
        def validate_message(self, message: Any) -> Any:
            raise SystemExit(3)

    async def act(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(1.0)
        await peer.send("what a hook cannot bear")
        await peer.serve_until_closed()

    async def ask(conn: Connection) -> None:
        with trio.fail_after(5.0), pytest.raises(OutcomeUnknown if kind == "request" else LinkLost):
            await (conn.request("?") if kind == "request" else conn.ping())
        settled.append(trio.current_time())

    settled: list[float] = []
    async with ScriptedServer(act) as server, trio.open_nursery() as nursery:
        with pytest.raises(SystemExit):
            async with connect(server, codec=RawCodec(), message_handler=Exits()) as conn:
                nursery.start_soon(ask, conn)
                await trio.sleep_forever()
    assert settled == [pytest.approx(1.0)]


async def test_a_matcher_tells_the_answer_and_takes_nothing_else(autojump_clock: trio.abc.Clock) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.send_json({"type": "tick", "n": 1})
        await peer.send_json({"type": "status", "up": True})
        await peer.send_json({"type": "tick", "n": 2})
        await peer.serve_until_closed()

    async with ScriptedServer(talk) as server, connect(server) as conn:
        reply = await conn.request({"type": "status"}, matches=lambda message: message["type"] == "status")
        assert reply == {"type": "status", "up": True}
        await wait_all_tasks_blocked()
        assert await conn.receive_batch() == [{"type": "tick", "n": 1}, {"type": "tick", "n": 2}]


async def test_what_a_matcher_raises_is_for_its_own_question_alone(autojump_clock: trio.abc.Clock) -> None:
    async def talk(peer: Peer) -> None:
        await peer.accept()
        for _ in range(2):
            await peer.receive()
        await peer.send_json({"tick": 1})
        await peer.send_json({"kind": "status"})
        await peer.serve_until_closed()

    heard = []
    async with ScriptedServer(talk) as server, connect(server) as conn, conn.listen() as events:

        async def ask(kind: str) -> None:
            heard.append(await conn.request({}, matches=lambda message: message.get("kind") == kind))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "status")
            with pytest.raises(KeyError, match="kind"):
                await conn.request({}, matches=lambda message: message["kind"] == "news")
        assert heard == [{"kind": "status"}]
        assert await conn.receive() == {"tick": 1}
        assert conn.state is State.READY
        told = [event.error for event in await events.receive_batch() if isinstance(event, RequestUnresolved)]
        assert [type(error) for error in told] == [KeyError]
        with pytest.raises(ConfigError, match="matches: must be a function of a message, not str"):
            await conn.request({}, matches="status")


@pytest.mark.parametrize("priority", [None, "high", 1.5, float("nan"), [1], True])
async def test_a_priority_that_is_none_is_refused_to_whoever_gave_it(
    autojump_clock: trio.abc.Clock, priority: Any
) -> None:
    async with ScriptedServer(answer) as server, connect(server) as conn:
        for call in (conn.send, conn.request):
            with pytest.raises(ConfigError, match="priority: must be a whole number"):
                await call({}, priority=priority)
        assert await conn.request({"n": 1}, priority=-1) == {"id": 1, "result": 2}


async def test_an_answer_behind_messages_that_nobody_receives_is_held_up_and_shows_in_the_health(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def chat(peer: Peer) -> None:
        await peer.accept()
        for number in range(5):
            await peer.send_json({"news": number})
        await answer_one(peer)
        await peer.serve_until_closed()

    async def answer_one(peer: Peer) -> None:
        await peer.send_json({"id": (await peer.receive_json())["id"]})

    async with ScriptedServer(chat) as server, connect(server, inbox_bytes=500) as conn, trio.open_nursery() as nursery:
        assert conn.health().status == "ok"
        nursery.start_soon(conn.request, {})
        await trio.sleep(1.0)
        assert (conn.health().status, conn.health().reading) == ("degraded", False)
        assert len(nursery.child_tasks) == 1
        for _ in range(5):
            await conn.receive()
        await trio.sleep(1.0)
        assert (conn.health().status, conn.health().reading) == ("ok", True)
        assert not nursery.child_tasks


async def test_an_answer_that_says_no_is_an_error_that_holds_it(autojump_clock: trio.abc.Clock) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.accept()
        question = await peer.receive_json()
        await peer.send_json({"id": question["id"], "error": {"code": 7, "message": "not today"}})
        await peer.serve_until_closed()

    async with ScriptedServer(refuse) as server, connect(server) as conn:
        with pytest.raises(RequestFailed, match="not today") as caught:
            await conn.request({"n": 1})
        assert isinstance(caught.value.reply, dict)
        assert caught.value.reply["error"]["code"] == 7


@pytest.mark.fault("F117", where="memory")
async def test_a_live_id_is_refused_and_nothing_is_sent(autojump_clock: trio.abc.Clock) -> None:
    async def silent(peer: Peer) -> None:
        await peer.accept()
        await peer.serve_until_closed()

    async with ScriptedServer(silent) as server:
        async with connect(server) as conn, trio.open_nursery() as nursery:
            nursery.start_soon(conn.request, {"id": 1, "n": 1})
            await wait_all_tasks_blocked()
            with pytest.raises(NotSent):
                await conn.request({"id": 1, "n": 2})
            for other in ("1", 1.5, True):  # another type is another id
                nursery.start_soon(conn.request, {"id": other})
            nursery.start_soon(conn.request, {"n": "an id of the session's"})
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        sent = [frame for frame in server.dials[0].frames if isinstance(frame, str)]
    assert sorted(sent) == sorted(
        ['{"id":1,"n":1}', '{"id":"1"}', '{"id":1.5}', '{"id":true}', """{"n":"an id of the session's","id":2}"""]
    )


@pytest.mark.fault("F118", where="memory")
@pytest.mark.fault("F61", where="memory")
async def test_a_late_answer_settles_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        first = await peer.receive_json()
        second = await peer.receive_json()
        assert first["id"] != second["id"]
        await peer.send_json({"id": first["id"], "result": "late"})
        await peer.send_json({"id": second["id"], "result": "in time"})
        await peer.send_json({"id": second["id"], "result": "again"})
        await peer.serve_until_closed()

    async with ScriptedServer(slow) as server, connect(server) as conn, conn.listen() as events:
        with trio.move_on_after(1):
            await conn.request({"n": 1})
        assert (await conn.request({"n": 2}))["result"] == "in time"
        assert (await conn.receive())["result"] == "again"
        unmatched = [event.late for event in await events.receive_batch() if isinstance(event, AnswerUnmatched)]
        assert unmatched == [True, False]


@pytest.mark.fault("F119", where="memory")
async def test_questions_settle_at_once_when_the_link_that_they_were_written_on_is_lost(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await trio.sleep(5)
        await peer.reset()

    outcomes: dict[str, type] = {}
    settled_at: list[float] = []
    async with ScriptedServer(lose, HangDial(), max_buffer=2000) as server:
        started = trio.current_time()
        async with connect(server, connect_timeout=1000) as conn, trio.open_nursery() as nursery:

            async def ask(name: str, size: int) -> None:
                try:
                    await conn.request({"name": name, "pad": "x" * size})
                except (NotSent, OutcomeUnknown) as exc:
                    outcomes[name] = type(exc)
                    settled_at.append(trio.current_time() - started)
                    if len(settled_at) == 2:
                        await trio.sleep(1.0)
                        nursery.cancel_scope.cancel()  # the one that waits for the next link

            nursery.start_soon(ask, "answered never", 10)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, "being written", 10_000)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, "queued", 10)
    assert outcomes == {"answered never": OutcomeUnknown, "being written": OutcomeUnknown}
    assert settled_at == [5.0] * 2


@pytest.mark.fault("F119", where="memory")
async def test_only_what_is_marked_idempotent_is_asked_again(autojump_clock: trio.abc.Clock) -> None:
    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.receive()
        await peer.drop()

    async with ScriptedServer(lose, answer) as server, connect(server) as conn, trio.open_nursery() as nursery:

        async def order() -> None:
            with pytest.raises(OutcomeUnknown):
                await conn.request({"n": 1})

        async def query() -> None:
            assert (await conn.request({"n": 21}, idempotent=True))["result"] == 42

        nursery.start_soon(order)
        nursery.start_soon(query)
    (asked_again,) = [frame for frame in server.dials[1].frames if isinstance(frame, str)]
    assert asked_again.startswith('{"n":21')


async def test_an_idempotent_question_waits_for_the_next_link_where_others_fail(autojump_clock: trio.abc.Clock) -> None:
    """It used to be asked again and again in the same instant, and refused each time, until the link was back."""

    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async with (
        ScriptedServer(lose, answer) as server,
        connect(server, when_down="fail", backoff=ListBackoff([5.0])) as conn,
        trio.open_nursery() as nursery,
    ):

        async def fail_while_there_is_no_link() -> None:
            await conn.wait_state(State.RECONNECTING)
            for idempotent in (False, True):
                with pytest.raises(NotSent):
                    await conn.request({"n": 1}, idempotent=idempotent)

        nursery.start_soon(fail_while_there_is_no_link)
        assert (await conn.request({"n": 21}, idempotent=True))["result"] == 42
        assert conn.epoch == 2


@pytest.mark.parametrize("when_down", ["wait", "fail"])
async def test_what_may_have_been_done_is_never_called_not_sent(autojump_clock: trio.abc.Clock, when_down: str) -> None:
    """Asked on one link, and not on another before the session ends: the service may have done it."""

    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async with ScriptedServer(lose) as server, trio.open_nursery() as nursery:
        async with connect(server, when_down=when_down, backoff=ListBackoff([5.0])) as conn:

            async def ask() -> None:
                with pytest.raises(OutcomeUnknown):
                    await conn.request({"n": 1}, idempotent=True)

            nursery.start_soon(ask)
            await conn.wait_state(State.RECONNECTING)


async def test_what_may_have_been_done_is_not_called_a_bad_message_where_it_cannot_be_encoded_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    class EncodesOnce(MessageHandler):
        calls = 0

        def encode_message(self, message: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise ValueError("once is enough")
            return message

    async def lose(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async def say_nothing(peer: Peer) -> None:
        await peer.accept()
        await peer.serve_until_closed()

    async with ScriptedServer(lose, say_nothing) as server, connect(server, message_handler=EncodesOnce()) as conn:
        with pytest.raises(OutcomeUnknown):
            await conn.request({"n": 1}, idempotent=True)


async def test_a_handler_may_be_slow_and_a_request_of_its_task_is_answered(autojump_clock: trio.abc.Clock) -> None:
    """A task that a message started asks a question while more messages come: nothing is in anybody's way."""

    async def feed(peer: Peer) -> None:
        await peer.accept()
        for n in range(20):
            await peer.send_json({"tick": n})
            question = await peer.receive_json()
            await peer.send_json({"id": question["id"], "result": question["about"]})
        await peer.serve_until_closed()

    class Answering(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> Reply | None:
            return None

    async with ScriptedServer(feed) as server, connect(server, message_handler=Answering) as conn:
        for n in range(20):
            tick = await conn.receive()
            assert tick == {"tick": n}
            assert (await conn.request({"about": n}))["result"] == n


async def test_requests_are_told_as_events(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answer) as server, connect(server) as conn, conn.listen() as events:
        await conn.request({"n": 1})
        await conn.aclose()
        with pytest.raises(BadMessage):
            await conn.request({"n": object()})
        kinds = [type(event) for event in await events.receive_batch()]
    assert [kind for kind in kinds if kind in (RequestSent, RequestResolved, RequestUnresolved)] == [
        RequestSent,
        RequestResolved,
    ]


@pytest.mark.fault("F119", where="memory")
async def test_a_thousand_questions_over_twenty_losses_each_settle_once(autojump_clock: trio.abc.Clock) -> None:
    draw = random.Random(3)
    answered: Counter[int] = Counter()

    async def flaky(peer: Peer) -> None:
        await peer.accept()
        for _ in range(draw.randrange(20, 60)):
            question = await peer.receive_json()
            if draw.random() < 0.8:
                await peer.send_json({"id": question["id"], "result": question["n"] * 2})
                answered[question["n"]] += 1
        await (peer.drop() if draw.random() < 0.5 else peer.reset())

    outcomes: dict[int, str] = {}

    async def ask(conn: Connection, n: int) -> None:
        await trio.sleep(draw.random() * 100)
        try:
            reply = await conn.request({"n": n})
        except (NotSent, OutcomeUnknown) as exc:
            result = type(exc).__name__
        else:
            assert reply["result"] == n * 2
            result = "answered"
        assert n not in outcomes
        outcomes[n] = result

    async with ScriptedServer(*[flaky] * 20, then=answer) as server:
        async with connect(server, backoff=ListBackoff([1.0])) as conn:
            async with trio.open_nursery() as nursery:
                for n in range(1000):
                    nursery.start_soon(ask, conn, n)
            assert conn.epoch >= 20
    assert len(outcomes) == 1000
    counted = Counter(outcomes.values())
    assert counted["answered"] > 500
    assert counted["OutcomeUnknown"] > 20
    assert max(answered.values()) == 1


async def test_a_question_asked_while_down_waits_for_the_next_link(autojump_clock: trio.abc.Clock) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async with ScriptedServer(drop, answer) as server, connect(server, backoff=ListBackoff([10.0])) as conn:
        await conn.wait_state(State.RECONNECTING)
        assert (await conn.request({"n": 4}))["result"] == 8
        assert conn.epoch == 2


def is_status(message: Any) -> bool:
    return bool(message["type"] == "status")


async def test_a_late_answer_to_a_matcher_is_not_taken_for_that_of_the_next(autojump_clock: trio.abc.Clock) -> None:
    async def slow(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.receive()
        await peer.send_json({"no type": "which a matcher that was given up may stumble over"})
        await peer.send_json({"type": "status", "of": "first"})
        await peer.send_json({"type": "status", "of": "second"})
        await peer.send_json({"type": "status", "of": "nobody"})
        await peer.serve_until_closed()

    async with ScriptedServer(slow) as server, connect(server) as conn, conn.listen() as events:
        with trio.move_on_after(1):
            await conn.request({"type": "status"}, matches=is_status)
        second = await conn.request({"type": "status"}, matches=lambda message: message.get("type") == "status")
        assert second["of"] == "second"
        assert list(await conn.receive()) == ["no type"]
        assert (await conn.receive())["of"] == "nobody"
        unmatched = [event.late for event in await events.receive_batch() if isinstance(event, AnswerUnmatched)]
        assert unmatched == [True]


async def test_an_answer_that_never_comes_is_not_owed_for_ever(autojump_clock: trio.abc.Clock) -> None:
    async def deaf_at_first(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        while isinstance(await peer.receive(), str):
            await peer.send_json({"type": "status"})

    async with ScriptedServer(deaf_at_first) as server, connect(server) as conn:
        with trio.move_on_after(1):
            await conn.request({"type": "status"}, matches=is_status)
        await trio.sleep(60)
        with trio.fail_after(1):
            assert await conn.request({"type": "status"}, matches=is_status) == {"type": "status"}


async def test_a_matcher_whose_question_was_withdrawn_matches_nothing(autojump_clock: trio.abc.Clock) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async def tell(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json({"type": "status"})
        await peer.serve_until_closed()

    async with ScriptedServer(drop, tell) as server, connect(server, backoff=ListBackoff([10.0])) as conn:
        await conn.wait_state(State.RECONNECTING)
        with trio.move_on_after(1):
            await conn.request({"type": "status"}, matches=is_status)
        assert await conn.receive() == {"type": "status"}


async def test_a_question_asked_while_the_goodbye_of_a_reconnect_is_said_waits_for_the_next_link(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def hesitate(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await trio.sleep(1.0)

    async with ScriptedServer(hesitate, answer) as server, connect(server) as conn, trio.open_nursery() as nursery:
        nursery.start_soon(conn.reconnect)
        await trio.sleep(0.5)
        assert conn.state is State.DISCONNECTED
        assert await conn.request({"n": 21}) == {"id": 1, "result": 42}
