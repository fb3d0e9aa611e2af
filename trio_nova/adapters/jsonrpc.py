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
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import attrs
import msgspec

from trio_nova.adapter import Adapter
from trio_nova.client import Client
from trio_nova.codecs import JsonCodec
from trio_nova.errors import BadMessage, ConfigError, RequestFailed, RetryAdvice, printable
from trio_nova.handlers import Channel
from trio_nova.readings import Answer, ByServerId, Data, Granted, Many, Other, Reading

__all__ = ["JsonRpc", "JsonRpcClient", "JsonRpcError", "make_request", "read_error"]

PARSE_ERROR, INVALID_REQUEST = -32700, -32600

Kind: TypeAlias = Literal[
    "parse error",
    "invalid request",
    "method not found",
    "invalid params",
    "internal error",
    "server error",
    "reserved",
    "application",
]

_KINDS: Mapping[int, Kind] = {
    PARSE_ERROR: "parse error",
    INVALID_REQUEST: "invalid request",
    -32601: "method not found",
    -32602: "invalid params",
    -32603: "internal error",
}
_RESERVED, _FOR_SERVERS = range(-32768, -31999), range(-32099, -31999)
"""Codes that are not the application's to define; and those of them that are the server's (section 5.1)."""
_CODES = range(-(2**63), 2**63)
"""What is taken for a code: a peer may send whole numbers of thousands of digits."""


class JsonRpcError(RequestFailed):
    """The service answered with an error (section 5.1), or with something that is no answer."""

    def __init__(self, code: int, message: str, data: Any = None, *, reply: object = None) -> None:
        super().__init__(reply=reply)
        self.code = code
        """0 where the service gave none that is a whole number of 64 bits."""
        self.message = message
        """The service's own words, as they came: use `printable` before you show them."""
        self.data = data
        """What the service adds; untrusted, of any type."""
        self.args = (self.words(),)

    def words(self) -> str:
        return f"{printable(self.message)} (code {self.code})"

    @property
    def kind(self) -> Kind:
        """What the code means by section 5.1: one of its five, "server error", "reserved", or else "application"."""
        if self.code in _FOR_SERVERS:
            return "server error"
        return _KINDS.get(self.code, "reserved" if self.code in _RESERVED else "application")


def make_request(method: str, params: Any = None) -> dict[str, Any]:
    """Return a request without an id, which a session adds; sent as it is, it is a notification (section 4.1)."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return message


def read_error(reply: Any) -> JsonRpcError | None:
    """Return the error that an answer is; None where it brings a result. Nothing in it need be as it should.

    Where there are both, which section 5 forbids, the error counts: a result that may be none is not to be relied on.
    """
    if not isinstance(reply, Mapping):
        return JsonRpcError(0, "the answer is not an object", reply=reply)
    error = reply.get("error")
    if error is None:
        return None if "result" in reply else JsonRpcError(0, "neither a result nor an error", reply=reply)
    if not isinstance(error, Mapping):
        # Its repr is not shown: of something deeply nested that can fail, and at another depth of the stack only.
        said = error if isinstance(error, str) else f"an error that is no object but a {type(error).__name__}"
        return JsonRpcError(0, said, reply=reply)
    code, message = error.get("code"), error.get("message")
    return JsonRpcError(
        code if isinstance(code, int) and not isinstance(code, bool) and code in _CODES else 0,
        message if isinstance(message, str) else "an error without a message",
        error.get("data"),
        reply=reply,
    )


_ENCODER = msgspec.json.Encoder(order="deterministic", decimal_format="number")
BATCH = "batch-"
"""What the ids of the calls in a batch begin with."""


@attrs.define(eq=False, kw_only=True, slots=False)
class JsonRpc(Adapter):
    """Any service that speaks JSON-RPC 2.0: `JsonRpc(url="wss://node.example/")`.

    An error whose id is null (section 5: the service could not read the question's) is received as an ordinary
    message: nobody can tell whose it is. While nobody receives such messages, the oldest are dropped.

    Subscriptions are as Ethereum's nodes have them: `subscribe("logs", params={"address": ...})` calls `eth_subscribe`
    with `["logs", {"address": ...}]`, and the service names each by an id, a new one on every link.
    """

    correlated = True
    unsubscribes_by_id = True
    drops_unclaimed = True

    namespace: str = "eth"
    """What its methods for subscriptions begin with: `eth_subscribe`, `eth_subscription`."""
    overloaded: frozenset[int] = frozenset()
    """Codes that say "too many requests": to ask again later can help."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "overflow": "drop_oldest"}

    # ----------------------------------------------------------------- requests

    def request_id(self, message: Any) -> Hashable | None:
        if isinstance(message, list):
            return None
        if not isinstance(message, Mapping) or not isinstance(message.get("method"), str):
            raise BadMessage("a JSON-RPC request is an object with a method; for several at once there is batch()")
        id = message.get("id")
        if id is not None and not _is_id(id):
            raise BadMessage("the id of a request must be a whole number or a text (section 4)")
        return id

    def tag(self, message: Any, id: Any) -> Any:
        return {"jsonrpc": "2.0", **message, "id": id}

    def encode_auth_request(self, credentials: Any) -> Any:
        """Refuse: override this, with `handle_auth_response`, for a service that has a method to authenticate by.

        Raises:
            ConfigError: always; they would otherwise be sent in words that JSON-RPC does not have.
        """
        raise ConfigError("credentials", "JSON-RPC has no words for them: send a header, or override the auth hooks")

    def read(self, message: Any) -> Reading | None:
        """Read a message, or each of an array of them; what has a `method` is no answer, and 1 and "1" are two ids."""
        match message:
            case {"method": str()}:
                return self.read_notification(message)
            case {"id": int() | str() as id} if _is_id(id):
                error = read_error(message)
                if error is not None and error.code in self.overloaded:
                    error.retry = RetryAdvice.BACKOFF
                return Answer(message, id, error)
            case list():
                return _read_array(message, self.read)
            case _:
                return Other(message)

    # ----------------------------------------------------------------- subscriptions

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return what tells one subscription from others: the channel, and the params in whatever order they came.

        Raises:
            ConfigError: JSON has no form for the params.
        """
        if not params:
            return channel
        try:
            return f"{channel} {_ENCODER.encode(dict(params)).decode()}"
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
            raise ConfigError("params", f"those of {channel!r} cannot be sent as JSON: {exc}") from exc

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return make_request(f"{self.namespace}_subscribe", [channel, dict(params)] if params else [channel])

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        return None if server_id is None else make_request(f"{self.namespace}_unsubscribe", [server_id])

    def handle_subscription_response(self, message: Any) -> Sequence[Granted]:
        id = message.get("result")
        return [Granted(None, id)] if _is_id(id) else []

    def read_notification(self, message: Mapping[str, Any]) -> Reading | None:
        """Return what a message with a `method` is: data of a subscription, or an ordinary one."""
        match message:
            case {"method": method, "params": {"subscription": id} as params} if (
                method == f"{self.namespace}_subscription"
            ):
                return Data(ByServerId(id if _is_id(id) else None), params.get("result"))
            case _:
                return Other(message)


def _is_id(id: Any) -> bool:
    return isinstance(id, int | str) and not isinstance(id, bool)


def _read_array(messages: list[Any], read: Callable[[Any], Reading | None]) -> Many:
    """Read an array: the answer to a batch of ours, all of it together, and what else is in it (section 6)."""
    batch = [message for message in messages if _is_of_batch(message)]
    others = [message for message in messages if not _is_of_batch(message)]
    return Many([*([Other(batch)] if batch else []), *(read(each) or Other(each) for each in others)])


def _is_of_batch(message: Any) -> bool:
    match message:
        case {"id": str(id)} if "method" not in message:
            return id.startswith(BATCH)
        case _:
            return False


class JsonRpcClient(Client):
    """Calls methods and returns their results."""

    _serials: ClassVar[Iterator[int]] = itertools.count(1)
    """Of batches. All clients share it: two on one connection must not take each other's answers."""

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
        Cancelling stops waiting; answers that come later are received as ordinary messages.

        Raises:
            JsonRpcError: the service refuses the batch as such. It then names none (section 6), so of several
                batches under way the first is taken to be meant.
            NovaError: as for `Connection.request`; `idempotent` as there.
        """
        serial = next(self._serials)
        messages = {
            f"{BATCH}{serial}-{number}": make_request(method, params) for number, (method, params) in enumerate(calls)
        }
        if not messages:
            return []  # an empty array is no batch
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
        case {"error": {"code": int(code)}} if message.get("id") is None and "method" not in message:
            return code in (PARSE_ERROR, INVALID_REQUEST)
        case _:
            return False


def _result(answer: Any) -> Any:
    if answer is None:
        return JsonRpcError(0, "the service left it without an answer")
    error = read_error(answer)
    return answer["result"] if error is None else error
