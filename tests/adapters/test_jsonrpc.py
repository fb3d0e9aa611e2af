"""JSON-RPC 2.0: every call settles with its own answer, whatever a service makes of the specification."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_nova import (
    BadMessage,
    ConfigError,
    DataUnclaimed,
    FeedOptions,
    Gap,
    ListBackoff,
    OutcomeUnknown,
    RequestFailed,
    RetryAdvice,
    SubscriptionRejected,
    open_connection,
)
from trio_nova.adapters.jsonrpc import (
    JsonRpc,
    JsonRpcClient,
    JsonRpcError,
    make_request,
    read_error,
)
from trio_nova.testing import Peer, Script, ScriptedServer

NODE = JsonRpc(url="ws://localhost/")

Answer = Callable[[Peer, Any], Awaitable[None]]


def connect(server: ScriptedServer, **options: Any) -> Any:
    defaults: dict[str, Any] = {"adapter": NODE, "stream_factory": server.stream_factory, "backoff": ListBackoff([1.0])}
    return JsonRpcClient.open(**{**defaults, **options})


def answering(answer: Answer) -> Script:
    """Return a script that gives every message of the client to `answer`."""

    async def script(peer: Peer) -> None:
        await peer.accept()
        while isinstance(frame := await peer.receive(), str):
            await answer(peer, json.loads(frame))
        await peer.finish()

    return script


def result(id: Any, value: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": value}


def refusal(id: Any, code: Any = -32601, message: Any = "Method not found", **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message, **more}}


async def mirror(peer: Peer, asked: Any) -> None:
    """Answer each call with its own method and params; a batch back to front."""
    calls = [asked] if isinstance(asked, dict) else asked
    answers = [result(call["id"], [call["method"], call.get("params")]) for call in calls if "id" in call]
    if isinstance(asked, list):
        await peer.send_json(answers[::-1])
    elif answers:
        await peer.send_json(answers[0])


def sent(server: ScriptedServer, dial: int = 0) -> list[Any]:
    return [json.loads(frame) for frame in server.dials[dial].frames if isinstance(frame, str)]


# --------------------------------------------------------------------------- calls and notifications


async def test_a_call_returns_its_result(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        assert await node.call("eth_chainId") == ["eth_chainId", None]
        assert await node.call("add", [1, 2]) == ["add", [1, 2]]
        assert await node.call("sum", {"a": 1}) == ["sum", {"a": 1}]
    assert sent(server) == [
        {"jsonrpc": "2.0", "method": "eth_chainId", "id": 1},
        {"jsonrpc": "2.0", "method": "add", "params": [1, 2], "id": 2},
        {"jsonrpc": "2.0", "method": "sum", "params": {"a": 1}, "id": 3},
    ]


async def test_a_result_of_null_is_a_result(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json({**result(asked["id"]), "error": None})

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.call("eth_getTransactionReceipt", ["0x1"]) is None


async def test_answers_in_any_order_find_their_calls(autojump_clock: trio.abc.Clock) -> None:
    held: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        held.append(asked)
        if len(held) == 50:
            for call in reversed(held):
                await peer.send_json(result(call["id"], call["params"][0]))

    got: dict[int, int] = {}
    async with ScriptedServer(answering(answer)) as server, connect(server) as node:

        async def ask(number: int) -> None:
            got[number] = await node.call("echo", [number])

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
    assert got == {number: number for number in range(50)}


async def test_a_notification_has_no_id_and_waits_for_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        await node.notify("seen", {"block": 7})
        await node.call("done")
    assert sent(server)[0] == {"jsonrpc": "2.0", "method": "seen", "params": {"block": 7}}


async def test_what_the_service_asks_or_tells_of_itself_is_received(autojump_clock: trio.abc.Clock) -> None:
    told = [
        {"jsonrpc": "2.0", "method": "progress", "params": [1]},
        {"jsonrpc": "2.0", "method": "window/ask", "id": 1},  # with the very id of our question
        {"jsonrpc": "2.0", "method": "confused", "id": 1, "result": "not an answer"},
    ]

    async def answer(peer: Peer, asked: Any) -> None:
        for message in (*told, result(asked["id"], "mine")):
            await peer.send_json(message)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.call("work") == "mine"
        assert [await node.connection.receive() for _ in told] == told


@pytest.mark.parametrize("message", [[make_request("a")], {"jsonrpc": "2.0"}, "eth_chainId", {"method": 5}])
async def test_a_question_without_a_method_is_refused_before_it_leaves(
    message: Any, autojump_clock: trio.abc.Clock
) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        with pytest.raises(BadMessage, match="method"):
            await node.connection.request(message)
    assert sent(server) == []


@pytest.mark.parametrize("id", [1.5, True, [1], {"a": 1}])
def test_an_id_of_ones_own_is_a_whole_number_or_a_text(id: Any) -> None:
    with pytest.raises(BadMessage, match="id"):
        JsonRpc().request_id({**make_request("a"), "id": id})


async def test_credentials_are_not_sent_in_words_that_json_rpc_does_not_have(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server:
        with pytest.raises(ConfigError, match="override the auth hooks"):
            async with connect(server, credentials="hunter2"):
                pass
    assert sent(server) == []


# --------------------------------------------------------------------------- errors


async def test_an_error_has_code_message_and_data(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(refusal(asked["id"], 3, "execution reverted\x1b[2J", data={"gas": "0x1"}))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with pytest.raises(JsonRpcError) as caught:
            await node.call("eth_call")
    error = caught.value
    assert (error.code, error.message, error.data) == (3, "execution reverted\x1b[2J", {"gas": "0x1"})
    assert str(error) == "execution reverted\\x1b[2J (code 3)"
    assert error.retry is RetryAdvice.NEVER
    assert isinstance(error, RequestFailed)
    assert isinstance(error.reply, dict)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (-32700, "parse error"),
        (-32600, "invalid request"),
        (-32601, "method not found"),
        (-32602, "invalid params"),
        (-32603, "internal error"),
        (-32000, "server error"),
        (-32099, "server error"),
        (-32100, "reserved"),
        (-32768, "reserved"),
        (-32500, "reserved"),
        (-31999, "application"),
        (-32769, "application"),
        (0, "application"),
        (10028, "application"),
    ],
)
def test_a_code_means_what_the_specification_says(code: int, kind: str) -> None:
    assert JsonRpcError(code, "no").kind == kind


async def test_a_code_that_says_too_many_requests_advises_patience(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(refusal(asked["id"], -32005, "limit exceeded"))

    busy = JsonRpc(url="ws://localhost/", overloaded=frozenset({-32005}))
    async with ScriptedServer(answering(answer)) as server, connect(server, adapter=busy) as node:
        with pytest.raises(JsonRpcError) as caught:
            await node.call("eth_getLogs")
    assert caught.value.retry is RetryAdvice.BACKOFF


DEEP: Any = json.loads("[" * 900 + "]" * 900)


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"error": "plain text"}, 0, "plain text"),
        ({"error": ""}, 0, ""),
        ({"error": 5}, 0, "an error that is no object but a int"),
        ({"error": False}, 0, "an error that is no object but a bool"),
        ({"error": []}, 0, "an error that is no object but a list"),
        ({"error": DEEP}, 0, "an error that is no object but a list"),
        ({"error": {}}, 0, "an error without a message"),
        ({"error": {"code": "7", "message": ["no"]}}, 0, "an error without a message"),
        ({"error": {"code": 1.5, "message": "m"}}, 0, "m"),
        ({"error": {"code": True, "message": "m"}}, 0, "m"),
        ({"error": {"code": int("9" * 4000), "message": "m"}}, 0, "m"),
        ({"error": {"code": None, "message": DEEP}}, 0, "an error without a message"),
        ({"error": {"code": 7, "message": "m"}, "result": "both"}, 7, "m"),
        ({}, 0, "neither a result nor an error"),
        ({"error": None}, 0, "neither a result nor an error"),
    ],
)
async def test_an_answer_that_is_not_as_it_should_be_is_an_error(
    fields: Any, code: int, message: str, autojump_clock: trio.abc.Clock
) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json({"jsonrpc": "2.0", "id": asked["id"], **fields})

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with pytest.raises(JsonRpcError) as caught:
            await node.call("a")
        assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize("reply", [[], "text", 5, None])
def test_what_is_no_object_is_no_answer(reply: Any) -> None:
    error = read_error(reply)
    assert error is not None
    assert error.message == "the answer is not an object"


@pytest.mark.parametrize("version", [{}, {"jsonrpc": "1.0"}, {"jsonrpc": 2}, {"jsonrpc": None}])
async def test_a_service_need_not_say_its_version(version: Any, autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json({"id": asked["id"], "result": "mine", **version})

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.call("a") == "mine"


# --------------------------------------------------------------------------- ids that answer nobody


@pytest.mark.fault("F117", where="memory")
@pytest.mark.parametrize(
    "id",
    [None, 1.0, "1", True, 2, -1, int("9" * 4000), "", [1], {"id": 1}],
    ids=lambda id: type(id).__name__,
)
async def test_an_id_that_was_not_asked_with_answers_nobody(id: Any, autojump_clock: trio.abc.Clock) -> None:
    stray = result(id, "not yours")

    async def answer(peer: Peer, asked: Any) -> None:
        assert asked["id"] == 1
        await peer.send_json(stray)
        await peer.send_json(result(1, "mine"))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.call("a") == "mine"
        assert await node.connection.receive() == stray


async def test_an_answer_without_an_id_is_an_ordinary_message(autojump_clock: trio.abc.Clock) -> None:
    complaint = refusal(None, -32700, "Parse error")

    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(complaint)
        await peer.send_json({"jsonrpc": "2.0", "result": "whose?"})
        await peer.send_json(result(asked["id"], "mine"))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.call("a") == "mine"
        assert await node.connection.receive() == complaint
        assert await node.connection.receive() == {"jsonrpc": "2.0", "result": "whose?"}


@pytest.mark.fault("F118", where="memory")
async def test_of_two_answers_the_first_counts(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(result(asked["id"], "first"))
        await peer.send_json(result(asked["id"], "second"))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert [await node.call("a"), await node.call("b")] == ["first", "first"]


@pytest.mark.fault("F118", where="memory")
async def test_a_late_answer_goes_to_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    held: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        held.append(asked["id"])
        if len(held) == 2:
            await peer.send_json(result(held[0], "too late"))
            await peer.send_json(result(held[1], "in time"))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with trio.move_on_after(5):
            await node.call("slow")
        assert await node.call("fast") == "in time"
        with pytest.raises(trio.WouldBlock):
            node.connection.receive_nowait()


JUNK = [
    "",
    "not json",
    "5",
    "null",
    '"text"',
    "[[[]]]",
    "[1, null, []]",
    "[]",
    "{}",
    '{"id": NaN, "result": 1}',
    '{"id": 1e400, "result": 1}',
    '{"id": 1, "result": 1} trailing',
    '{"id": 1, "result": Infinity}',
    '{"a":' * 5000 + "1" + "}" * 5000,
    "[" * 100_000,
    "[" * 900 + "]" * 900,
    "[{}," * 450 + "[]" + "]" * 450,
    '[{"id": "batch-1-0", "result": 1}, [{"id": "batch-1-1"}], {"id": "batch-"}]',
    '{"method": 5}',
    '{"method": "eth_subscription"}',
    '{"method": "eth_subscription", "params": []}',
    '{"method": "eth_subscription", "params": {"subscription": null}}',
    '{"method": "eth_subscription", "params": {"subscription": [1], "result": 1}}',
    '{"method": "eth_subscription", "params": {"subscription": 1e300}}',
]


@pytest.mark.fault("F121", where="memory")
async def test_junk_changes_nothing(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        for junk in JUNK:
            await peer.send(junk)
            await peer.send(junk.encode())
        await peer.send(b"\xff\xfe")
        await peer.send_json(result(asked["id"], "0x1"))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        async with node.subscribe("newHeads"):
            assert await node.call("a") == "0x1"
            assert node.connection.epoch == 1
            assert node.connection.statistics().errors > 0


# --------------------------------------------------------------------------- lost links


async def test_calls_under_way_settle_with_the_link_and_what_may_be_repeated_is(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        for _ in range(3):
            await peer.receive()
        await peer.drop()

    outcomes: dict[str, Any] = {}
    async with ScriptedServer(drop, answering(mirror)) as server, connect(server) as node:

        async def call(method: str, *, idempotent: bool) -> None:
            try:
                outcomes[method] = await node.call(method, idempotent=idempotent)
            except OutcomeUnknown as error:
                outcomes[method] = type(error)

        async def batch() -> None:
            outcomes["batch"] = await node.batch([("c", None)], idempotent=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: call("a", idempotent=True))
            nursery.start_soon(lambda: call("b", idempotent=False))
            nursery.start_soon(batch)
    assert outcomes == {"a": ["a", None], "b": OutcomeUnknown, "batch": [["c", None]]}


@pytest.mark.fault("F118", where="memory")
async def test_an_answer_that_comes_on_the_next_link_answers_nobody(autojump_clock: trio.abc.Clock) -> None:
    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.drop()

    async def late(peer: Peer) -> None:
        await peer.accept()
        await peer.send_json(result(1, "of the other link"))
        asked = await peer.receive_json()
        await peer.send_json(result(asked["id"], "mine"))
        await peer.serve_until_closed()

    async with ScriptedServer(drop, late) as server, connect(server) as node:
        with pytest.raises(OutcomeUnknown):
            await node.call("a")
        assert await node.call("b") == "mine"


# --------------------------------------------------------------------------- batches


async def test_a_batch_returns_results_in_the_order_of_its_calls(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        assert await node.batch([("a", None), ("b", [1]), ("c", {"x": 2})]) == [
            ["a", None],
            ["b", [1]],
            ["c", {"x": 2}],
        ]
    (question,) = sent(server)
    assert [(call["method"], call["jsonrpc"]) for call in question] == [("a", "2.0"), ("b", "2.0"), ("c", "2.0")]
    assert len({call["id"] for call in question}) == 3


async def test_a_batch_of_nothing_sends_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        assert await node.batch([]) == []
    assert sent(server) == []


async def test_each_call_of_a_batch_has_an_outcome_of_its_own(autojump_clock: trio.abc.Clock) -> None:
    others: list[Any] = [
        result("never asked", "not yours"),
        5,
        None,
        [result("batch-1-3", "a batch inside the batch")],
        refusal(None, -32600, "Invalid Request"),
        {**result("batch-1-3", "a question"), "method": "m"},
    ]

    async def answer(peer: Peer, asked: Any) -> None:
        first, second, third, fourth, _ = (call["id"] for call in asked)
        others[3][0]["id"] = others[5]["id"] = fourth
        await peer.send_json(
            [
                *others,
                refusal(second, -32602, "Invalid params", data=["x"]),
                result(third, "first"),
                result(third, "second"),
                result(first),
                {"id": fourth},
            ]
        )

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        first, second, third, fourth, fifth = await node.batch([(name, None) for name in "abcde"])
        assert await node.connection.receive_batch() == others
    assert (first, third) == (None, "first")
    assert isinstance(second, JsonRpcError)
    assert (second.kind, second.data) == ("invalid params", ["x"])
    assert isinstance(fourth, JsonRpcError)
    assert fourth.message == "neither a result nor an error"
    assert isinstance(fifth, JsonRpcError)
    assert fifth.message == "the service left it without an answer"


@pytest.mark.parametrize("code", [-32700, -32600])
@pytest.mark.parametrize("names_id", [True, False])
async def test_a_service_may_refuse_the_batch_as_such(
    code: int, names_id: bool, autojump_clock: trio.abc.Clock
) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        error = refusal(None, code, "batches are not for you")
        if not names_id:
            del error["id"]
        await peer.send_json(error)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with pytest.raises(JsonRpcError, match="batches are not for you") as caught:
            await node.batch([("a", None), ("b", None)])
    assert caught.value.code == code


async def test_other_messages_do_not_answer_a_batch(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json([])
        await peer.send_json([result("batch-0-0", "of another")])
        await peer.send_json(refusal(None, -32000, "something else"))
        await peer.send_json(result(None, "nobody's"))
        await peer.send_json({"jsonrpc": "2.0", "method": "m", "error": {"code": -32600}})
        await mirror(peer, asked)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.batch([("a", None)]) == [["a", None]]
        assert len(await node.connection.receive_batch()) == 4


async def test_an_answer_to_a_batch_may_stand_behind_one_to_another(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(
            [result("batch-0-0", "of another"), *(result(call["id"], call["method"]) for call in asked)]
        )

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        assert await node.batch([("a", None), ("b", None)]) == ["a", "b"]


async def test_two_clients_of_one_connection_keep_their_batches_apart(autojump_clock: trio.abc.Clock) -> None:
    held: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        held.append(asked)
        if len(held) == 2:
            for batch in reversed(held):
                await mirror(peer, batch)

    got: dict[str, Any] = {}
    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        other = JsonRpcClient(node.connection)

        async def ask(client: JsonRpcClient, method: str) -> None:
            got[method] = await client.batch([(method, None)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, node, "a")
            nursery.start_soon(ask, other, "b")
    assert got == {"a": [["a", None]], "b": [["b", None]]}


async def test_single_calls_may_be_answered_together(autojump_clock: trio.abc.Clock) -> None:
    held: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        held.append(asked)
        if len(held) == 2:
            await peer.send_json([result(call["id"], call["method"]) for call in held] + [{"method": "news"}])

    got: list[str] = []
    async with ScriptedServer(answering(answer)) as server, connect(server) as node:

        async def ask(method: str) -> None:
            got.append(await node.call(method))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b")
        assert await node.connection.receive() == {"method": "news"}
    assert sorted(got) == ["a", "b"]


async def test_a_batch_that_is_given_up_is_answered_to_nobody_else(autojump_clock: trio.abc.Clock) -> None:
    held: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        held.append(asked)
        if len(held) == 2:
            for batch in held:
                await mirror(peer, batch)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with trio.move_on_after(5):
            await node.batch([("slow", None)])
        assert await node.batch([("fast", None)]) == [["fast", None]]


# --------------------------------------------------------------------------- subscriptions


class Node:
    """A node that names subscriptions as it likes, and others on every link."""

    def __init__(self, *, namespace: str = "eth", early: int = 0) -> None:
        self.namespace = namespace
        self.early = early
        """How many notifications go out ahead of the answer that names their subscription."""
        self.subscribed: dict[Any, list[Any]] = {}
        self.gone: list[Any] = []
        """The ids that were given up."""
        self.links = 0
        self.peer: Peer | None = None

    async def __call__(self, peer: Peer) -> None:
        self.links += 1
        self.subscribed, self.peer = {}, peer
        await answering(self.answer)(peer)

    async def answer(self, peer: Peer, asked: Any) -> None:
        match asked:
            case {"method": method, "params": ["forbidden", *_]} if method == f"{self.namespace}_subscribe":
                await peer.send_json(refusal(asked["id"], -32601, "no such subscription"))
            case {"method": method, "params": params} if method == f"{self.namespace}_subscribe":
                id = f"{self.links}:{len(self.subscribed)}"
                self.subscribed[id] = params
                for number in range(self.early):
                    await self.tell(id, f"early {number}")
                await peer.send_json(result(asked["id"], id))
            case {"method": method, "params": [id]} if method == f"{self.namespace}_unsubscribe":
                self.gone.append(id)
                await peer.send_json(result(asked["id"], self.subscribed.pop(id, None) is not None))
            case _:
                await mirror(peer, asked)

    async def tell(self, id: Any, data: Any) -> None:
        assert self.peer is not None
        await self.peer.send_json(
            {
                "jsonrpc": "2.0",
                "method": f"{self.namespace}_subscription",
                "params": {"subscription": id, "result": data},
            }
        )


async def test_a_feed_hears_what_comes_under_the_id_that_the_service_gave(autojump_clock: trio.abc.Clock) -> None:
    service = Node()
    async with ScriptedServer(service) as server, connect(server) as node:
        async with (
            node.subscribe("newHeads") as heads,
            node.subscribe("logs", params={"address": "0xa", "topics": []}) as logs,
        ):
            assert service.subscribed == {"1:0": ["newHeads"], "1:1": ["logs", {"address": "0xa", "topics": []}]}
            await service.tell("1:1", "a log")
            await service.tell("1:0", "a head")
            await service.tell("1:9", "nobody's")
            await service.tell(1, "nobody's either")
            assert [await heads.receive(), await logs.receive()] == ["a head", "a log"]
        await wait_all_tasks_blocked()
        assert service.subscribed == {}
        assert sorted(service.gone, key=str) == [1, "1:0", "1:1", "1:9"]
        with pytest.raises(trio.WouldBlock):
            node.connection.receive_nowait()


async def test_one_channel_with_other_params_is_another_subscription(autojump_clock: trio.abc.Clock) -> None:
    service = Node()
    async with ScriptedServer(service) as server, connect(server) as node:
        async with (
            node.subscribe("logs", params={"address": "0xa", "topics": []}) as first,
            node.subscribe("logs", params={"topics": [], "address": "0xa"}) as same,
            node.subscribe("logs", params={"address": "0xb"}) as other,
        ):
            assert len(service.subscribed) == 2
            await service.tell("1:1", "b")
            await service.tell("1:0", "a")
            assert [await first.receive(), await same.receive(), await other.receive()] == ["a", "a", "b"]


@pytest.mark.fault("F114", where="memory")
async def test_the_feed_outlives_the_id(autojump_clock: trio.abc.Clock) -> None:
    service = Node()
    async with ScriptedServer(service, then=service) as server, connect(server) as node:
        async with node.subscribe("newHeads", feed=FeedOptions(notices=True)) as heads:
            await service.tell("1:0", "before")
            assert await heads.receive() == "before"
            assert service.peer is not None
            await service.peer.drop()
            await server.wait_dialled(2)
            await node.connection.wait_ready()
            assert service.subscribed == {"2:0": ["newHeads"]}
            await service.tell("1:0", "under the old name")
            await service.tell("2:0", "after")
            assert isinstance(gap := await heads.receive(), Gap)
            assert (gap.epoch_from, gap.epoch_to, gap.outcome) == (1, 2, "unknown")
            assert await heads.receive() == "after"
        await wait_all_tasks_blocked()
    assert service.gone == ["1:0", "2:0"]


async def test_what_comes_before_the_answer_that_names_it_is_not_lost(autojump_clock: trio.abc.Clock) -> None:
    service = Node(early=3)
    async with ScriptedServer(service, then=service) as server, connect(server) as node:
        async with node.subscribe("newHeads") as heads, node.subscribe("newPendingTransactions") as pending:
            for feed in (heads, pending):
                assert [await feed.receive() for _ in range(3)] == ["early 0", "early 1", "early 2"]
            assert service.peer is not None
            await service.peer.drop()
            for feed in (heads, pending):
                assert [await feed.receive() for _ in range(3)] == ["early 0", "early 1", "early 2"]


async def test_of_what_comes_before_the_answer_only_so_much_is_kept(autojump_clock: trio.abc.Clock) -> None:
    service = Node(early=1000)
    async with ScriptedServer(service) as server, connect(server) as node:
        async with node.connection.listen() as events, node.subscribe("newHeads") as heads:
            await service.tell("1:0", "regular")
            got = [await heads.receive()]
            while got[-1] != "regular":
                got.append(await heads.receive())
            assert got == [*(f"early {number}" for number in range(936, 1000)), "regular"]
            told = [event for event in await events.receive_batch() if isinstance(event, DataUnclaimed)]
            assert [event.channel for event in told] == ["1:0"]


async def test_a_subscription_that_is_refused_is_not_entered(autojump_clock: trio.abc.Clock) -> None:
    service = Node()
    async with ScriptedServer(service) as server, connect(server) as node, node.subscribe("newHeads") as heads:
        with pytest.raises(SubscriptionRejected, match="no such subscription"):
            async with node.subscribe("forbidden"):
                raise AssertionError("never entered")
        await service.tell("1:0", "still here")
        assert await heads.receive() == "still here"


@pytest.mark.parametrize("id", [None, True, 1.5, [], {"id": 1}])
async def test_an_answer_that_names_no_subscription_grants_none(id: Any, autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(result(asked["id"], id))

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with pytest.raises(SubscriptionRejected, match="did not grant"):
            async with node.subscribe("newHeads"):
                raise AssertionError("never entered")


@pytest.mark.fault("F114", where="memory")
async def test_ids_of_other_types_are_other_ids(autojump_clock: trio.abc.Clock) -> None:
    ids = iter([1, "1", int("9" * 400)])

    async def answer(peer: Peer, asked: Any) -> None:
        if asked["method"] == "eth_subscribe":
            await peer.send_json(result(asked["id"], id := next(ids)))
            await peer.send_json({"method": "eth_subscription", "params": {"subscription": id, "result": repr(id)}})

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        async with node.subscribe("a") as one, node.subscribe("b") as text, node.subscribe("c") as huge:
            assert [await one.receive(), await text.receive(), await huge.receive()] == ["1", "'1'", "9" * 400]


async def test_of_two_subscriptions_of_one_id_the_later_keeps_it(autojump_clock: trio.abc.Clock) -> None:
    async def answer(peer: Peer, asked: Any) -> None:
        await peer.send_json(result(asked["id"], "same"))
        if asked["method"] == "eth_unsubscribe":
            await peer.send_json({"method": "eth_subscription", "params": {"subscription": "same", "result": "data"}})

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        async with trio.open_nursery() as nursery:
            leave = trio.Event()

            async def first(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
                async with node.subscribe("a"):
                    task_status.started()
                    await leave.wait()

            await nursery.start(first)
            async with node.subscribe("b") as second:
                leave.set()
                assert await second.receive() == "data"


async def test_who_leaves_before_the_answer_gives_up_what_it_names(autojump_clock: trio.abc.Clock) -> None:
    asked_for: list[Any] = []
    gone: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        match asked:
            case {"method": "eth_subscribe", "id": id}:
                asked_for.append(id)
            case {"method": "eth_unsubscribe", "params": [name], "id": id}:
                gone.append(name)
                await peer.send_json(result(id, True))
            case _:
                await peer.send_json(result(asked_for[0], "0xlate"))
                await mirror(peer, asked)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with trio.move_on_after(5):
            async with node.subscribe("newHeads"):
                raise AssertionError("never entered")
        await node.call("now")
        await wait_all_tasks_blocked()
        assert gone == ["0xlate"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first come first", "late"])
async def test_a_grant_that_comes_after_another_was_asked_for_is_given_back(
    order: tuple[int, int], autojump_clock: trio.abc.Clock
) -> None:
    asked_for: list[Any] = []
    gone: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        match asked:
            case {"method": "eth_subscribe", "id": id}:
                asked_for.append(id)
                if len(asked_for) == 2:  # the first has gone unanswered, and was asked again
                    for place in order:
                        await peer.send_json(result(asked_for[place], ("0xfirst", "0xsecond")[place]))
            case {"method": "eth_unsubscribe", "params": [name], "id": id}:
                gone.append(name)
                # Under way before the service knew, and no reason to tell it again.
                await peer.send_json({"method": "eth_subscription", "params": {"subscription": name, "result": 0}})
                await peer.send_json(result(id, True))
            case _:
                await mirror(peer, asked)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        async with node.subscribe("newHeads"):
            await wait_all_tasks_blocked()
            assert gone == ["0xfirst"]
        await node.call("now")
        await wait_all_tasks_blocked()
    assert gone == ["0xfirst", "0xsecond"]


async def test_a_grant_that_was_never_told_is_given_back_when_its_data_come(autojump_clock: trio.abc.Clock) -> None:
    gone: list[Any] = []
    late: list[Any] = []

    async def answer(peer: Peer, asked: Any) -> None:
        match asked:
            case {"method": "eth_subscribe", "params": ["newHeads"], "id": id}:
                late.append(id)  # granted, and nobody hears of it
            case {"method": "eth_unsubscribe", "params": [name], "id": id}:
                gone.append(name)
                await peer.send_json(result(id, True))
            case _:
                for name in ("0xlost", "0xlost"):
                    data = {"subscription": name, "result": {"number": 1}}
                    await peer.send_json({"method": "eth_subscription", "params": data})
                await mirror(peer, asked)

    async with ScriptedServer(answering(answer)) as server, connect(server) as node:
        with pytest.raises(SubscriptionRejected, match="no answer"):
            async with node.subscribe("newHeads"):
                raise AssertionError("never entered")
        for _ in range(2):
            await node.call("now")
            await wait_all_tasks_blocked()
        assert gone == ["0xlost"]


async def test_a_service_that_makes_up_subscriptions_is_not_answered_for_ever(autojump_clock: trio.abc.Clock) -> None:
    service = Node()
    async with ScriptedServer(service) as server, connect(server) as node, node.subscribe("newHeads"):
        for number in range(100):
            await service.tell(f"made up {number}", "data")
        await node.call("now")
        await wait_all_tasks_blocked()
        assert set(service.gone) == {f"made up {number}" for number in range(64)}
        assert len(service.gone) == 64


async def test_other_nodes_have_other_words(autojump_clock: trio.abc.Clock) -> None:
    service = Node(namespace="state")
    node = JsonRpc(url="ws://localhost/", namespace="state")
    async with ScriptedServer(service) as server:
        async with open_connection(node, stream_factory=server.stream_factory) as conn:
            async with conn.subscribe("runtimeVersion") as feed:
                await service.tell("1:0", 7)
                assert await feed.receive() == 7
            await wait_all_tasks_blocked()
    assert service.gone == ["1:0"]


async def test_params_that_json_has_no_form_for_are_named(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(answering(mirror)) as server, connect(server) as node:
        with pytest.raises(ConfigError, match="params"):
            async with node.subscribe("logs", params={"address": object()}):
                raise AssertionError("never entered")
    assert sent(server) == []
