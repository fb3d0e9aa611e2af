"""An answer or data: a channel's messages settle no question, whatever id they bear; what was written is awaited."""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    Answer,
    AnswerUnmatched,
    BadMessage,
    ByServerId,
    ConfigError,
    Connection,
    Correlation,
    Data,
    ErrorEvent,
    Granted,
    InOrder,
    JsonCodec,
    ListBackoff,
    MessageHandler,
    NotSent,
    RequestFailed,
    SubscriptionHandler,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.core.ledger import LATEST
from trio_nova.links import Transport
from trio_nova.observe.logging import level_of
from trio_nova.testing import Peer, ScriptedServer

URL = "ws://server.test/"
AT_ONCE = ListBackoff([0.0])

PATIENCE = 10.0

Says = Callable[[Any], Sequence[Any]]
"""What a service says to a message."""


def connect(server: ScriptedServer, **options: Any) -> Any:
    return open_connection(
        URL, **{"stream_factory": server.stream_factory, "codec": JsonCodec(), "backoff": AT_ONCE, **options}
    )


def service(says: Says, *, at_once: bool = True) -> Callable[[Peer], Any]:
    """Confirm every channel, and answer what else is asked as `says` does: in one packet, or in one each."""

    async def serve(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            said = json.loads(frame)
            if isinstance(said, Mapping) and said.get("type") == "subscribe":
                answers: Sequence[Any] = [{"type": "subscribed", "channel": said["channel"]}]
            elif isinstance(said, Mapping) and said.get("type") == "unsubscribe":
                answers = []
            else:
                answers = says(said)
            texts = [json.dumps(answer) for answer in answers]
            if at_once:
                await peer.send(*texts)
            else:
                for text in texts:
                    await peer.send(text)
                    await trio.sleep(0.01)
        await peer.finish()

    return serve


async def say(peer: Peer, *messages: Any) -> None:
    """Send messages in one packet."""
    await peer.send(*map(json.dumps, messages))


def trade(number: int, **more: Any) -> dict[str, Any]:
    return {"channel": "trades", "id": number, **more}


def trades_and_an_answer(question: Any) -> list[Any]:
    """Count the trades from 1, as the session counts its questions."""
    return [trade(1), trade(2), trade(3), {"id": question["id"], "result": "placed"}]


async def ask(conn: Connection, message: Any, **options: Any) -> Any:
    with trio.fail_after(PATIENCE):
        return await conn.request(message, **options)


async def heard(feed: Any, count: int) -> list[Any]:
    with trio.fail_after(PATIENCE):
        return [await feed.receive() for _ in range(count)]


# --------------------------------------------------------------------------- data that look like answers


class Watching(MessageHandler):
    """Is shown every message, so that each is looked at by itself."""

    def handle_message(self, kind: str, message: Any) -> None:
        return None


@pytest.mark.parametrize("at_once", [True, False], ids=["one packet", "one by one"])
@pytest.mark.parametrize("handler", [MessageHandler, Watching])
async def test_data_of_a_channel_that_bear_the_id_of_a_request_stay_data(
    autojump_clock: trio.abc.Clock, transport: Transport, handler: type[MessageHandler], at_once: bool
) -> None:
    async with (
        ScriptedServer(service(trades_and_an_answer, at_once=at_once)) as server,
        connect(server, transport=transport, message_handler=handler) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == {"id": 1, "result": "placed"}
        assert await heard(feed, 3) == [trade(1), trade(2), trade(3)]
        await wait_all_tasks_blocked()
        assert conn.statistics().inbox_messages == conn.statistics().answers_unmatched == 0


@pytest.mark.parametrize("outcome", ["result", "error", "success", "status"])
async def test_an_answer_that_names_its_channel_is_an_answer(
    autojump_clock: trio.abc.Clock, transport: Transport, outcome: str
) -> None:
    def says(question: Any) -> list[Any]:
        return [trade(question["id"]), trade(question["id"], **{outcome: None})]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, transport=transport) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == trade(1, **{outcome: None})
        assert await heard(feed, 1) == [trade(1)]


async def test_where_nobody_is_subscribed_an_answer_may_name_a_channel_without_an_outcome(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with (
        ScriptedServer(service(lambda question: [trade(question["id"], price=5)])) as server,
        connect(server) as conn,
        conn.subscribe("books"),
    ):
        assert await ask(conn, {"op": "last"}) == trade(1, price=5)


async def test_a_service_says_by_which_fields_its_answers_are_known(autojump_clock: trio.abc.Clock) -> None:
    def says(question: Any) -> list[Any]:
        return [trade(question["id"], status="filled"), trade(question["id"], done=True)]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, correlation=Correlation(outcomes=["done"])) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == trade(1, done=True)
        assert await heard(feed, 1) == [trade(1, status="filled")]


async def test_a_hook_that_reads_answers_has_the_last_word(autojump_clock: trio.abc.Clock) -> None:
    class Reads(Correlation):
        def read(self, message: Any) -> Answer | None:
            return Answer(message, message.get("id")) if message.get("kind") == "answer" else None

    def says(question: Any) -> list[Any]:
        return [trade(question["id"], result="a fill"), trade(question["id"], kind="answer")]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, correlation=Reads()) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == trade(1, kind="answer")
        assert await heard(feed, 1) == [trade(1, result="a fill")]


async def test_a_request_that_was_given_up_eats_no_data_of_its_id(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async with (
        ScriptedServer(service(lambda said: [trade(1), trade(1)] if said == "tick" else [])) as server,
        connect(server, transport=transport) as conn,
        conn.subscribe("trades") as feed,
    ):
        for matches in (None, lambda message: message.get("id") == 1):
            with trio.move_on_after(1.0):
                await ask(conn, {"op": "place"}, matches=matches)
        await conn.send("tick")
        assert await heard(feed, 2) == [trade(1), trade(1)]
        assert conn.statistics().answers_unmatched == 0


async def test_data_of_a_channel_are_no_answer_to_a_request_by_their_content(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    def says(question: Any) -> list[Any]:
        return [trade(1), {"type": "note", "id": 1}, trade(1, result="placed")]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, transport=transport) as conn,
        conn.subscribe("trades") as feed,
    ):
        by_channel = await ask(conn, {"op": "place"}, matches=lambda message: message.get("channel") == "trades")
        assert by_channel == trade(1, result="placed")
        assert await ask(conn, {"op": "place"}, matches=lambda message: message["id"] == 1) == {
            "type": "note",
            "id": 1,
        }
        assert await heard(feed, 2) == [trade(1), trade(1)]


async def test_data_of_a_channel_settle_no_request_that_is_answered_in_order(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    def says(question: Any) -> list[Any]:
        return [trade(1), trade(2, status="filled"), {"placed": True}]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, transport=transport, correlation=InOrder()) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == {"placed": True}
        assert await heard(feed, 2) == [trade(1), trade(2, status="filled")]


async def test_the_grant_of_a_subscription_settles_no_request(autojump_clock: trio.abc.Clock) -> None:
    """The request is asked first, and answered last."""

    async def serve(peer: Peer) -> None:
        await peer.accept()
        question, subscription = await peer.receive_json(), await peer.receive_json()
        await peer.send_json({"type": "subscribed", "channel": subscription["channel"], "id": question.get("id")})
        await peer.send_json({"id": question.get("id"), "answer": 42})
        await peer.serve_until_closed()

    for correlation in (Correlation(), InOrder()):
        async with ScriptedServer(serve) as server, connect(server, correlation=correlation) as conn:
            answers: list[Any] = []

            async def ask_first(conn: Any = conn, answers: list[Any] = answers) -> None:
                answers.append(await ask(conn, {"op": "place"}))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_first)
                await wait_all_tasks_blocked()
                with trio.fail_after(5.0):
                    async with conn.subscribe("trades"):
                        pass
            assert [answer["answer"] for answer in answers] == [42]


class Arrays:
    """A frame is an array of messages."""

    def open_link(self, max_message_size: int) -> Arrays:
        return self

    def encode(self, message: Any) -> list[str]:
        return [json.dumps(message)]

    def decode(self, payload: str | bytes) -> list[Any]:
        decoded = json.loads(payload)
        return decoded if isinstance(decoded, list) else [decoded]


@pytest.mark.parametrize("correlation", [Correlation(), InOrder()], ids=["by id", "in order"])
async def test_data_that_came_together_with_an_answer_in_one_frame_stay_data(
    autojump_clock: trio.abc.Clock, transport: Transport, correlation: Correlation
) -> None:
    def says(question: Any) -> list[Any]:
        return [[trade(1), trade(2)], [], [trade(3), {"id": 1, "result": "placed"}, {"other": 1}]]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, transport=transport, codec=Arrays(), correlation=correlation) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await ask(conn, {"op": "place"}) == {"id": 1, "result": "placed"}
        assert await heard(feed, 3) == [trade(1), trade(2), trade(3)]
        assert await conn.receive() == {"other": 1}


class AskedAsRequests(SubscriptionHandler):
    correlated = True


async def test_data_of_a_channel_do_not_grant_another_that_is_asked_for_as_a_request(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        first = await peer.receive_json()
        await peer.send_json({"id": first["id"], "result": "ok"})
        second = await peer.receive_json()
        await say(peer, trade(second["id"]), {"id": second["id"], "error": "forbidden"})
        await peer.serve_until_closed()

    async with (
        ScriptedServer(serve) as server,
        connect(server, transport=transport, subscription_handler=AskedAsRequests) as conn,
        conn.subscribe("trades") as feed,
    ):
        with pytest.raises(SubscriptionRejected, match="forbidden"):
            async with conn.subscribe("orders"):
                raise AssertionError("it was refused")
        assert await heard(feed, 1) == [trade(2)]


class NamedByTheService(SubscriptionHandler):
    """The answer tells the name under which data come; they may come before it."""

    correlated = True
    drops_unclaimed = True

    def handle_subscription_response(self, message: Any) -> Granted:
        return Granted(None, message["result"])

    def read(self, message: Any) -> Data | None:
        return Data(ByServerId(message["sub"]), message) if "sub" in message else None


async def test_data_that_come_before_the_answer_which_names_them_are_not_that_answer(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        asked = await peer.receive_json()
        await say(peer, {"sub": 77, "id": asked["id"]}, {"id": asked["id"], "result": 77})
        await peer.serve_until_closed()

    async with (
        ScriptedServer(serve) as server,
        connect(server, transport=transport, subscription_handler=NamedByTheService) as conn,
        conn.subscribe("trades") as feed,
    ):
        assert await heard(feed, 1) == [{"sub": 77, "id": 1}]


@pytest.mark.parametrize("handler", [SubscriptionHandler, AskedAsRequests])
async def test_on_a_link_where_subscriptions_are_restored_data_settle_nothing(
    autojump_clock: trio.abc.Clock, transport: Transport, handler: type[SubscriptionHandler]
) -> None:
    """The question waits for the link, and the data that come before the grant bear every id there might be."""

    async def serve(peer: Peer, *, then: str) -> None:
        await peer.accept()
        asked = await peer.receive_json()
        await say(peer, *[trade(id, link=then) for id in range(1, 5)])
        if handler.correlated:
            await peer.send_json({"id": asked["id"], "result": "ok"})
        else:
            await peer.send_json({"type": "subscribed", "channel": "trades"})
        if then == "lose":
            await peer.receive()
            await peer.drop()
            return
        question = await peer.receive_json()
        await say(peer, trade(question["id"], link=then), {"id": question["id"], "result": "placed"})
        await peer.serve_until_closed()

    async def first(peer: Peer) -> None:
        await serve(peer, then="lose")

    async def second(peer: Peer) -> None:
        await serve(peer, then="stay")

    async with (
        ScriptedServer(first, second) as server,
        connect(server, transport=transport, subscription_handler=handler) as conn,
        conn.subscribe("trades") as feed,
    ):
        answer = await ask(conn, {"op": "place"}, idempotent=True)
        assert answer["result"] == "placed"
        assert "channel" not in answer
        assert [message["link"] for message in await heard(feed, 9)] == ["lose"] * 4 + ["stay"] * 5


async def test_data_on_their_way_when_a_channel_is_given_up_settle_nothing(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async with (
        ScriptedServer(service(trades_and_an_answer)) as server,
        connect(server, transport=transport) as conn,
    ):
        async with conn.subscribe("trades"):
            pass
        assert await ask(conn, {"op": "place"}) == {"id": 1, "result": "placed"}
        assert await conn.receive_batch() == [trade(1), trade(2), trade(3)]


async def test_data_of_a_channel_that_was_imported_settle_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(service(trades_and_an_answer)) as server, connect(server) as conn:
        conn.import_subscriptions('[{"channel": "trades", "params": {}}]')
        await wait_all_tasks_blocked()
        assert await ask(conn, {"op": "place"}) == {"id": 1, "result": "placed"}
        assert await conn.receive_batch() == [trade(1), trade(2), trade(3)]


# --------------------------------------------------------------------------- what was written is what is awaited


class TextIds(Correlation):
    def tag(self, message: Any, id: int) -> Any:
        return {**message, "id": str(id)}


class ReadAsText(TextIds):
    """What asks is not read at all: only the answers are."""

    def request_id(self, message: Any) -> None:
        return None

    def read(self, message: Any) -> Answer:
        return Answer(message, message.get("id"))


class UnderAnotherName(Correlation):
    def tag(self, message: Any, id: int) -> Any:
        return {**message, "meta": {"req": f"r-{id}"}}

    def read(self, message: Any) -> Answer:
        return Answer(message, message.get("meta", {}).get("req"))


class Strict(Correlation):
    """Reads answers alone, and their ids are texts."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "meta": {"req": str(id)}}

    def read(self, message: Any) -> Answer | None:
        return Answer(message, message["meta"]["req"]) if "ok" in message else None


class Misleading(Correlation):
    """In a question, what `read` finds is something else."""

    def tag(self, message: Any, id: int) -> Any:
        return {**message, "req": id}

    def read(self, message: Any) -> Answer:
        return Answer(message, message.get("ref"))


class InAnArray(Correlation):
    def request_id(self, message: Any) -> None:
        return None

    def tag(self, message: Any, id: int) -> Any:
        return [id, message]

    def read(self, message: Any) -> Answer | None:
        return Answer(message, message[0]) if isinstance(message, list) else None

    def failure(self, reply: Any) -> None:
        return None


def echoed(question: Any) -> Any:
    return {**question, "ok": True}


@pytest.mark.parametrize(
    ("correlation", "says"),
    [
        (TextIds(), echoed),
        (ReadAsText(), echoed),
        (UnderAnotherName(), echoed),
        (Strict(), echoed),
        (Misleading(), lambda question: {"ref": question["req"], "of": question["ref"]}),
        (InAnArray(), lambda question: [question[0], "ok"]),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_an_id_is_awaited_as_it_was_written(
    autojump_clock: trio.abc.Clock, transport: Transport, correlation: Correlation, says: Callable[[Any], Any]
) -> None:
    waiting: list[Any] = []

    def shuffled(question: Any) -> list[Any]:
        """Answer two at a time, the later one first: neither order nor luck can match them."""
        waiting.append(says(question))
        answers, waiting[:] = (waiting[::-1], []) if len(waiting) == 2 else ([], waiting)
        return answers

    async with (
        ScriptedServer(service(shuffled)) as server,
        connect(server, transport=transport, correlation=correlation) as conn,
        trio.open_nursery() as nursery,
    ):
        got: dict[str, Any] = {}

        async def ask_for(name: str) -> None:
            got[name] = await ask(conn, {"op": "place", "ref": name})

        for name in "abcd":
            nursery.start_soon(ask_for, name)
    for name, answer in got.items():
        assert isinstance(answer, list) or name in (answer.get("ref"), answer.get("of"))
    assert len(got) == 4


async def test_a_subscription_that_is_asked_for_as_a_request_is_matched_as_it_was_written(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            await peer.send_json({"id": json.loads(frame)["id"], "result": "ok"})
        await peer.finish()

    async with (
        ScriptedServer(serve) as server,
        connect(server, transport=transport, correlation=TextIds(), subscription_handler=AskedAsRequests) as conn,
    ):
        with trio.fail_after(PATIENCE):
            async with conn.subscribe("trades"):
                pass
        assert [json.loads(frame)["id"] for frame in server.dials[0].frames if isinstance(frame, str)][:1] == ["1"]


async def test_the_ids_1_and_true_and_the_text_of_1_stay_three_where_they_can_be_read(
    autojump_clock: trio.abc.Clock,
) -> None:
    def says(question: Any) -> list[Any]:
        return [{"id": id, "result": repr(id)} for id in ("1", True, 1.0, question["id"])]

    async with ScriptedServer(service(says)) as server, connect(server) as conn:
        assert await ask(conn, {"op": "place"}) == {"id": 1, "result": "1"}
        await wait_all_tasks_blocked()
        assert len(await conn.receive_batch()) == 3


class Level(enum.IntEnum):
    HIGH = 7


class Name(enum.Enum):
    FIRST = "first"


@pytest.mark.parametrize("id", [uuid.UUID(int=5), Level.HIGH, Name.FIRST, 1.5, True], ids=str)
async def test_an_id_of_a_type_that_json_does_not_have_is_awaited_as_json_writes_it(
    autojump_clock: trio.abc.Clock, id: Hashable
) -> None:
    async with ScriptedServer(service(lambda question: [{"id": question["id"], "result": 1}])) as server:
        async with connect(server) as conn:
            assert (await ask(conn, {"op": "place", "id": id}))["result"] == 1
            assert (await ask(conn, {"op": "place", "id": id}))["result"] == 1


async def test_an_id_that_is_changed_as_a_message_is_encoded_is_awaited_as_it_leaves(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Stamps(MessageHandler):
        def encode_message(self, message: Any) -> Any:
            return {**message, "id": f"client-{message['id']}"}

    async with (
        ScriptedServer(service(lambda question: [{"id": question["id"], "result": 1}])) as server,
        connect(server, message_handler=Stamps) as conn,
    ):
        assert await ask(conn, {"op": "place"}) == {"id": "client-1", "result": 1}
        assert await ask(conn, {"op": "place", "id": "own"}) == {"id": "client-own", "result": 1}


async def test_what_cannot_be_an_id_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(service(lambda question: [])) as server, connect(server) as conn:
        with pytest.raises(BadMessage, match="a list cannot be the id of a question"):
            await ask(conn, {"op": "place", "id": [1]})


async def test_an_id_that_nobody_can_find_is_told_and_not_waited_for_in_silence(
    autojump_clock: trio.abc.Clock,
) -> None:
    class Lost(Strict):
        def tag(self, message: Any, id: int) -> Any:
            return {**message, "meta": {"req": f"r-{id}"}}

    async with (
        ScriptedServer(service(lambda question: [echoed(question)])) as server,
        connect(server, correlation=Lost()) as conn,
        conn.listen() as events,
    ):
        for _ in range(2):
            with pytest.raises(trio.TooSlowError):
                await ask(conn, {"op": "place"})
        told = [event.error for event in await events.receive_batch() if isinstance(event, ErrorEvent)]
        assert len(told) == 1
        assert isinstance(told[0], ConfigError)
        assert "let request_id read it" in str(told[0])
        assert conn.statistics().answers_unmatched == 2


# --------------------------------------------------------------------------- what was given up


async def test_an_id_that_was_given_up_is_free_again_after_a_while_and_until_then_refused_with_the_reason(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    def says(question: Any) -> list[Any]:
        return [{"id": "mine", "result": question["n"]}] if question["n"] == 2 else []

    async with ScriptedServer(service(says)) as server, connect(server, transport=transport) as conn:
        with trio.move_on_after(1.0):
            await conn.request({"id": "mine", "n": 1})
        with pytest.raises(NotSent, match=r"'mine' was given up 0 s ago and may still be answered.*in 60 s"):
            await ask(conn, {"id": "mine", "n": 2})
        await trio.sleep(LATEST - 1.0)
        with pytest.raises(NotSent, match="given up 59 s ago"):
            await ask(conn, {"id": "mine", "n": 2})
        await trio.sleep(1.0)
        assert await ask(conn, {"id": "mine", "n": 2}) == {"id": "mine", "result": 2}


async def test_an_answer_that_comes_after_its_request_is_forgotten_is_an_ordinary_message(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with (
        ScriptedServer(service(lambda said: [{"id": 1, "result": "late"}] if said == "tick" else [])) as server,
        connect(server) as conn,
    ):
        with trio.move_on_after(1.0):
            await conn.request({"op": "place"})
        await trio.sleep(LATEST)
        await conn.send("tick")
        assert await conn.receive() == {"id": 1, "result": "late"}


async def test_events_that_bear_the_id_of_the_command_that_asked_for_them_make_no_noise(
    autojump_clock: trio.abc.Clock, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trio_nova")

    def says(question: Any) -> list[Any]:
        return [{"id": question["id"], "result": "ok"}, *[{"id": question["id"], "event": n} for n in range(20)]]

    async with (
        ScriptedServer(service(says)) as server,
        connect(server, transport=transport) as conn,
        conn.listen() as events,
    ):
        await ask(conn, {"op": "watch"})
        await wait_all_tasks_blocked()
        assert len(await conn.receive_batch()) == conn.statistics().answers_unmatched == 20
        told = [event for event in await events.receive_batch() if isinstance(event, AnswerUnmatched)]
    assert {level_of(event) for event in told} == {10}
    assert not [record for record in caplog.records if "AnswerUnmatched" in record.message]


async def test_what_belongs_to_a_feed_is_no_unmatched_answer(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(service(lambda question: [trade(n) for n in range(50, 60)])) as server,
        connect(server) as conn,
        conn.subscribe("trades") as feed,
        conn.listen() as events,
    ):
        await conn.send("tick")
        assert len(await heard(feed, 10)) == 10
        await conn.aclose()
        assert not [event async for event in events if isinstance(event, AnswerUnmatched)]
        assert conn.statistics().answers_unmatched == 0


async def test_an_answer_that_says_no_and_names_its_channel_raises(autojump_clock: trio.abc.Clock) -> None:
    async with (
        ScriptedServer(service(lambda question: [trade(question["id"], error="no")])) as server,
        connect(server) as conn,
        conn.subscribe("trades"),
    ):
        with pytest.raises(RequestFailed, match="no"):
            await ask(conn, {"op": "place"})
