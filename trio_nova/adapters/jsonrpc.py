"""JSON-RPC 2.0 over WebSocket: requests, notifications, batches, and subscriptions by the server's ids.

::

    async with JsonRpcClient.open(adapter=JsonRpc(url="wss://node.example/")) as node:
        number = await node.call("eth_blockNumber", idempotent=True)
        async with node.subscribe("newHeads") as heads:
            async for head in heads: ...

Section numbers are those of https://www.jsonrpc.org/specification.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import msgspec

from trio_nova._connection import Connection
from trio_nova.adapter import Adapter
from trio_nova.client import Client
from trio_nova.codecs import JsonCodec
from trio_nova.errors import BadMessage, RequestFailed, RetryAdvice, printable
from trio_nova.handlers import Channel, Correlation, Granted, SubscriptionHandler
from trio_nova.handlers.subscription import SubscriptionAnswer

__all__ = [
    "IdSubscriptions",
    "JsonRpc",
    "JsonRpcClient",
    "JsonRpcCorrelation",
    "JsonRpcError",
    "make_request",
    "read_error",
]

PARSE_ERROR, INVALID_REQUEST = -32700, -32600


class JsonRpcError(RequestFailed):
    """The service answered with an error (section 5.1); `code` is 0 where it gave none that is a whole number."""

    def __init__(self, code: int, message: str, data: Any = None, *, reply: object = None) -> None:
        super().__init__(f"{printable(message)} (code {code})", reply=reply)
        self.code = code
        self.data = data
        """What the service adds; untrusted, of any type."""


def make_request(method: str, params: Any = None) -> dict[str, Any]:
    """Return a request without an id, which a session adds; sent as it is, it is a notification (section 4.1)."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return message


def read_error(reply: Any) -> JsonRpcError | None:
    """Return the error that an answer is; None where it brings a result. Nothing in it need be as it should."""
    if not isinstance(reply, Mapping):
        return JsonRpcError(0, "the answer is not an object", reply=reply)
    error = reply.get("error")
    if error is None:
        return None if "result" in reply else JsonRpcError(0, "neither a result nor an error", reply=reply)
    if not isinstance(error, Mapping):
        return JsonRpcError(0, str(error), reply=reply)
    code, message = error.get("code"), error.get("message")
    return JsonRpcError(
        code if isinstance(code, int) and not isinstance(code, bool) else 0,
        message if isinstance(message, str) else "an error without a message",
        error.get("data"),
        reply=reply,
    )


@attrs.frozen
class JsonRpcCorrelation(Correlation):
    """Answers by `id`; what has a `method` is never one, and what has no id of its own answers nobody.

    An error whose id is null (section 5: the service could not read the question's) is received as an
    ordinary message: nobody can tell whose it is.
    """

    overloaded: frozenset[int] = frozenset()
    """Codes that say "too many requests": to ask again later can help."""

    def request_id(self, message: Any) -> Hashable | None:
        if not isinstance(message, Mapping) or not isinstance(message.get("method"), str):
            raise BadMessage("a JSON-RPC request is an object with a method; for several at once there is batch()")
        id = message.get("id")
        if id is not None and (isinstance(id, bool) or not isinstance(id, int | str)):
            raise BadMessage("the id of a request must be a whole number or a text (section 4)")
        return id

    def tag(self, message: Any, id: int) -> Any:
        return {"jsonrpc": "2.0", **message, "id": id}

    def failure(self, reply: Any) -> RequestFailed | None:
        if isinstance(reply, list):
            return None  # of a batch: each of its answers speaks for itself
        error = read_error(reply)
        if error is not None and error.code in self.overloaded:
            error.retry = RetryAdvice.BACKOFF
        return error

    def parts(self, message: Any) -> Sequence[Any] | None:
        return message if isinstance(message, list) else None


@attrs.define(eq=False)
class IdSubscriptions(SubscriptionHandler):
    """Subscriptions as Ethereum's nodes have them: the service names each by an id, a new one on every link.

    `subscribe("logs", address=...)` calls `eth_subscribe` with `["logs", {"address": ...}]`. The feed is the
    same across links; what comes under an id of an earlier link, or of nobody, is dropped.
    """

    correlated: ClassVar[bool] = True
    unsubscribes_by_id: ClassVar[bool] = True
    drops_unclaimed: ClassVar[bool] = True

    subscribe_method: str = "eth_subscribe"
    unsubscribe_method: str = "eth_unsubscribe"
    notification: str = "eth_subscription"
    """The method of the messages that bring data, with params `{"subscription": id, "result": data}`."""

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        return f"{channel} {msgspec.json.encode(dict(params), order='deterministic').decode()}" if params else channel

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return make_request(self.subscribe_method, [channel, dict(params)] if params else [channel])

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        match server_id:
            case (_, id):
                return make_request(self.unsubscribe_method, [id])
            case _:
                return None

    def read_grants(self, reply: Any, asked: Sequence[Channel]) -> Iterable[SubscriptionAnswer]:
        id = _name(reply.get("result"))
        return [] if id is None else [Granted(channel.key, id) for channel in asked]

    def channel_of(self, message: Any) -> Hashable | None:
        match message:
            case {"method": self.notification, "params": {"subscription": id}}:
                name = _name(id)
                return "" if name is None else name  # "": data of nobody, and not an ordinary message
            case _:
                return None

    def data_of(self, message: Any) -> Any:
        return message["params"].get("result")


def _name(id: Any) -> Hashable | None:
    """Return what a subscription is known by; 1 and "1" are two names, and nothing else is one."""
    return (type(id).__name__, id) if isinstance(id, int | str) and not isinstance(id, bool) else None


@attrs.define(eq=False, kw_only=True, slots=False)
class JsonRpc(Adapter):
    """Any service that speaks JSON-RPC 2.0: `JsonRpc(url="wss://node.example/")`.

    Messages that belong to no request and no feed can be received as ever; while nobody does, the oldest
    are dropped.
    """

    namespace: str = "eth"
    """What its methods for subscriptions begin with: `eth_subscribe`, `eth_subscription`."""

    def defaults(self) -> Mapping[str, Any]:
        return {
            "codec": JsonCodec(),
            "correlation": JsonRpcCorrelation(),
            "overflow": "drop_oldest",
            "subscription_handler": lambda: IdSubscriptions(
                subscribe_method=f"{self.namespace}_subscribe",
                unsubscribe_method=f"{self.namespace}_unsubscribe",
                notification=f"{self.namespace}_subscription",
            ),
        }


class JsonRpcClient(Client):
    """Calls methods and returns their results."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._batches = itertools.count(1)

    async def call(self, method: str, params: Any = None, *, idempotent: bool = False) -> Any:
        """Call a method and return its result.

        Raises:
            JsonRpcError: the service refuses.
            NovaError: as for `Connection.request`; `idempotent` as there.
        """
        reply = await self.connection.request(make_request(method, params), idempotent=idempotent)
        return reply["result"]

    async def notify(self, method: str, params: Any = None) -> None:
        """Call a method and want no answer (section 4.1); as `Connection.send`."""
        await self.connection.send(make_request(method, params))

    async def batch(self, calls: Iterable[tuple[str, Any]], *, idempotent: bool = False) -> list[Any]:
        """Call several methods with one message (section 6); return result or JsonRpcError of each, in order.

        A call that the answer leaves out has a JsonRpcError too: whether it was executed is not known.

        Raises:
            JsonRpcError: the service refuses the batch as such.
            NovaError: as for `Connection.request`; `idempotent` as there.
        """
        serial = next(self._batches)
        messages = {
            f"batch-{serial}-{number}": make_request(method, params) for number, (method, params) in enumerate(calls)
        }
        if not messages:
            return []
        question = [{**message, "id": id} for id, message in messages.items()]

        def is_answer(message: Any) -> bool:
            if isinstance(message, list):
                return any(id in messages for id, _ in _answers(message))
            return _refuses_batch(message)

        reply = await self.connection.request(question, matches=is_answer, idempotent=idempotent)
        answers = dict(reversed(list(_answers(reply))))  # of two with one id, the first counts
        return [_result(answers.get(id)) for id in messages]


def _answers(batch: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield what in a batch may answer one of ours, with its id."""
    for message in batch:
        if isinstance(message, Mapping) and "method" not in message and isinstance(id := message.get("id"), str):
            yield id, message


def _refuses_batch(message: Any) -> bool:
    """Whether a message is the one error that answers an array which was not understood (section 6)."""
    match message:
        case {"id": None, "error": {"code": int(code)}} if "method" not in message:
            return code in (PARSE_ERROR, INVALID_REQUEST)
        case _:
            return False


def _result(answer: Any) -> Any:
    if answer is None:
        return JsonRpcError(0, "the service left it without an answer")
    error = read_error(answer)
    return answer["result"] if error is None else error
