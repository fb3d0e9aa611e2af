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
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from trio_nova.adapter import Adapter
from trio_nova.client import Client
from trio_nova.codecs import JsonCodec, encode_json
from trio_nova.errors import BadMessage, ConfigError, RequestFailed, RetryAdvice, printable
from trio_nova.handlers import Channel, Correlation
from trio_nova.readings import Answer, ByServerId, Data, Granted, Many, Other, Reading

__all__ = ["JsonRpc", "JsonRpcClient", "JsonRpcError", "make_request", "read_error"]

_KINDS: Mapping[int, str] = {
    **dict.fromkeys(range(-32768, -31999), "reserved"),
    **dict.fromkeys(range(-32099, -31999), "server error"),
    -32700: "parse error",
    -32600: "invalid request",
    -32601: "method not found",
    -32602: "invalid params",
    -32603: "internal error",
}
BATCH = "batch-"
"""What the ids of the calls in a batch begin with."""


class JsonRpcError(RequestFailed):
    """The service answered with an error (section 5.1), or with something that is no answer."""

    def __init__(self, code: int, message: str, data: Any = None, **more: Any) -> None:
        self.code = code
        """0 where the service gave none that is a whole number of 64 bits."""
        self.message = message
        """The service's own words, as they came: use `printable` before you show them."""
        self.data = data
        """What the service adds; untrusted, of any type."""
        self.kind = _KINDS.get(code, "application")
        """What the code means by section 5.1: "parse error", "invalid request", "method not found",
        "invalid params", "internal error", "server error", "reserved", or else "application"."""
        super().__init__(self.words(), **more)

    def words(self) -> str:
        return f"{printable(self.message)} (code {self.code})"


def make_request(method: str, params: Any = None) -> dict[str, Any]:
    """Return a request without an id, which a session adds; sent as it is, it is a notification (section 4.1)."""
    return {"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})}


def read_error(reply: Any, overloaded: Container[int] = ()) -> JsonRpcError | None:
    """Return the error that an answer is; None where it brings a result. Nothing in it need be as it should.

    Where there are both, which section 5 forbids, the error counts: a result that may be none is not to be relied on.
    An error whose code is `overloaded` advises to ask again later.
    """
    match reply:
        case {"error": Mapping() as fields}:
            code, said, data = map(fields.get, ("code", "message", "data"))
            code = code if type(code) is int and abs(code) < 2**63 else 0  # a peer may send thousands of digits
            said = said if isinstance(said, str) else "an error without a message"
            retry = RetryAdvice.BACKOFF if code in overloaded else None
            return JsonRpcError(code, said, data, reply=reply, retry=retry)
        case {"error": error} if error is not None:
            # Its repr is not shown: of something deeply nested that can fail, and at another depth of the stack only.
            said = error if isinstance(error, str) else f"an error that is no object but a {type(error).__name__}"
        case {"result": _}:
            return None
        case _:
            said = "neither a result nor an error" if isinstance(reply, Mapping) else "the answer is not an object"
    return JsonRpcError(0, said, reply=reply)


class _Correlation(Correlation):
    """Makes errors also of the answers that are told by their content."""

    def failure(self, reply: Any) -> JsonRpcError | None:
        return read_error(reply) if isinstance(reply, Mapping) else None


@attrs.define(eq=False, kw_only=True, slots=False)
class JsonRpc(Adapter):
    """Any service that speaks JSON-RPC 2.0: `JsonRpc(url="wss://node.example/")`.

    An error whose id is null (section 5: the service could not read the question's) is received as an ordinary
    message: nobody can tell whose it is. While nobody receives such messages, the oldest are dropped.

    Subscriptions are as Ethereum's nodes have them: `subscribe("logs", params={"address": ...})` calls `eth_subscribe`
    with `["logs", {"address": ...}]`, and the service names each by an id, a new one on every link.
    """

    correlated = unsubscribes_by_id = drops_unclaimed = True
    namespace: str = "eth"
    """What its methods for subscriptions begin with: `eth_subscribe`, `eth_subscription`."""
    overloaded: frozenset[int] = frozenset()
    """Codes that say "too many requests": to ask again later can help."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "overflow": "drop_oldest", "correlation": _Correlation()}

    def request_id(self, message: Any) -> Any:
        match message:
            case {"method": str()} if _is_id(message.get("id", 0)):
                return message.get("id")
        raise BadMessage("a request has a method; its id, if any, is a whole number or a text; for several: batch()")

    def tag(self, message: Any, id: Any) -> Any:
        return {"jsonrpc": "2.0", **message, "id": id}

    def encode_auth_request(self, credentials: Any) -> Any:
        """Refuse: override this, with `handle_auth_response`, for a service that has a method to authenticate by.

        Raises:
            ConfigError: always; they would otherwise be sent in words that JSON-RPC does not have.
        """
        raise ConfigError("credentials", "JSON-RPC has no words for them: send a header, or override the auth hooks")

    def read(self, message: Any) -> Reading | None:
        """Return what a message is, or each of an array; no answer has a `method`, and 1 and "1" are two ids."""
        match message:
            case {"method": name, "params": {"subscription": id, **more}} if name == f"{self.namespace}_subscription":
                return Data(ByServerId(id if _is_id(id) else None), more.get("result"))
            case {"id": id} if _is_id(id) and "method" not in message:
                return Answer(message, id, read_error(message, self.overloaded))
            case list():
                batch = tuple(each for each in message if _is_of_batch(each))  # all of it for whoever asked
                rest = [
                    (self.read if isinstance(each, dict) else Other)(each) for each in message if not _is_of_batch(each)
                ]
                return Many([Other(batch), *rest] if batch else rest)
        return Other(message)

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return what tells one subscription from others: the channel, and the params in whatever order they came.

        Raises:
            ConfigError: JSON has no form for the params.
        """
        try:
            return f"{channel} {encode_json(params, is_sorted=True)}" if params else channel
        except BadMessage as exc:
            raise ConfigError("params", f"those of {channel!r} cannot be sent: {exc}") from exc

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return make_request(f"{self.namespace}_subscribe", [channel, dict(params)] if params else [channel])

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        return None if server_id is None else make_request(f"{self.namespace}_unsubscribe", [server_id])

    def handle_subscription_response(self, message: Any) -> Sequence[Granted]:
        return [Granted(None, id)] if _is_id(id := message.get("result")) else []


def _is_id(id: Any) -> bool:
    return isinstance(id, int | str) and not isinstance(id, bool)


def _is_of_batch(message: Any) -> bool:
    is_answer = isinstance(message, dict) and "method" not in message
    return is_answer and isinstance(id := message.get("id"), str) and id.startswith(BATCH)


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
        return (await self.connection.request(make_request(method, params), idempotent=idempotent))["result"]

    async def notify(self, method: str, params: Any = None) -> None:
        """Call a method and want no answer (section 4.1); as `Connection.send`."""
        await self.connection.send(make_request(method, params))

    async def batch(self, calls: Iterable[tuple[str, Any]], *, idempotent: bool = False) -> list[Any]:
        """Call several methods with one message (section 6); return result or JsonRpcError of each, in order.

        A call that the answer leaves out has a JsonRpcError too: whether it was executed is not known.
        Cancelling stops waiting; an answer that comes later is not given to anybody else.

        Raises:
            JsonRpcError: the service refuses the batch as such. It then names none (section 6), so of several
                batches under way the first is taken to be meant.
            NovaError: as for `Connection.request`; `idempotent` as there.
        """
        prefix = f"{BATCH}{next(self._serials)}-"
        question = [{**make_request(*call), "id": f"{prefix}{number}"} for number, call in enumerate(calls)]

        def is_answer(message: Any) -> bool:
            if isinstance(message, tuple):
                return any(answer["id"].startswith(prefix) for answer in message)
            # Or the one error that answers an array which was not understood.
            is_nobodys = isinstance(message, dict) and message.get("id") is message.get("method") is None
            return is_nobodys and getattr(read_error(message), "kind", "") in ("parse error", "invalid request")

        # An empty array is no batch.
        reply = await self.connection.request(question, matches=is_answer, idempotent=idempotent) if question else ()
        # Of two answers with one id the first counts.
        answers: dict[str, Any] = {answer["id"]: answer for answer in reversed(reply)}
        found = [answers.get(call["id"], {"error": "the service left it without an answer"}) for call in question]
        return [read_error(answer) or answer["result"] for answer in found]
