"""GraphQL over WebSocket (graphql-transport-ws): streams that we name and that come to an end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

import trio_nova as nova
from trio_nova.handlers.auth import reveal_all

OUR_FAULT = frozenset({4004, 4005, 4400, 4401, 4403, 4406, 4409, 4429})
"""Close codes after which the same again would end the same way."""


def operation(query: str, **payload: Any) -> dict[str, Any]:
    """Return a query or a mutation, which has one result: for `Connection.request`."""
    return {"type": "subscribe", "payload": {"query": query, **payload}}


@attrs.define(eq=False, kw_only=True, slots=False)
class GraphQl(nova.Adapter):
    """A GraphQL server. A channel is a name of your own; its params are the operation: `query`, `variables` ..."""

    confirms = False
    path: str = "/graphql"

    def defaults(self) -> Mapping[str, Any]:
        codec = {"codec": nova.JsonCodec(), "correlation": nova.Correlation(text=True)}
        return {"subprotocols": ["graphql-transport-ws"], "heartbeat": nova.MessageHeartbeat({"type": "ping"}), **codec}

    def open_link(self, info: nova.ConnectionInfo) -> nova.Dialect:
        return _Operations()

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        payload = {} if credentials is None else {"payload": reveal_all(credentials)}
        return await exchange.ask({"type": "connection_init", **payload})

    def should_reconnect(
        self, error: Exception, attempt: int, advice: nova.Retry | nova.Stop
    ) -> nova.Retry | nova.Stop:
        return nova.Stop(error) if isinstance(error, nova.LinkLost) and error.code in OUR_FAULT else advice


@attrs.define(eq=False)
class _Operations(nova.Dialect):
    """One link, and the names of its streams: one that is over is never used again, as its end may be on the way."""

    _serials: Iterator[int] = attrs.field(factory=itertools.count)
    _channels: dict[str, str] = attrs.field(factory=dict)
    """The channels by the ids of their streams."""

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        id = f"s{next(self._serials)}"
        self._channels[id] = channel
        return {"id": id, "type": "subscribe", "payload": dict(params)}

    def encode_unsubscription_request(self, channel: str) -> Any:
        id = next((id for id, name in self._channels.items() if name == channel), None)
        if id is None:
            return None  # it has ended by itself
        del self._channels[id]
        return {"id": id, "type": "complete"}

    def read(self, message: Any) -> nova.Reading | None:
        match message:
            case {"type": "connection_ack"}:
                return nova.AuthOk()
            case {"type": "ping"}:
                return nova.HeartbeatAsked({"type": "pong"})
            case {"type": "pong"}:
                return nova.Beat(answers=True)
            case {"type": "next" | "error" | "complete" as kind, "id": str(id)}:
                return self._read_stream(id, kind, message.get("payload"))
            case _:
                return nova.Other(message)

    def _read_stream(self, id: str, kind: str, payload: Any) -> nova.Reading:
        reason = _reason(payload) if kind == "error" else ""
        channel = self._channels.get(id)
        if channel is None:  # of a request, or of a stream that was given up
            is_answer = kind in ("next", "error") and not id.startswith("s")
            return nova.Answer(payload, id, reason or None) if is_answer else nova.Many([])
        if kind == "next":
            return nova.Data(channel, payload)
        del self._channels[id]
        return nova.Ended(channel, reason)


def _reason(errors: Any) -> str:
    match errors:
        case [{"message": str(message)}, *_]:
            return message
        case _:
            return "no reason given"
