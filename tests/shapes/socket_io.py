"""Socket.IO 5 on Engine.IO 4: texts behind numbers, and questions with an answer in both directions."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import attrs
import msgspec

import trio_nova as nova
from trio_nova.codecs import encode_json
from trio_nova.handlers.auth import reveal_all

OPEN, CLOSE, PING, PONG, NOOP = "0", "1", "2", "3", "6"
CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = "40", "41", "42", "43", "44"
_PACKET = re.compile(r"([0-356]|4[0-4])(?:(/[^,]*),?)?(\d*)(.*)", re.DOTALL)


class Packet(NamedTuple):
    """A packet: `Packet("42", ["event", 1])` is an event."""

    kind: str
    data: Any = None
    id: int | None = None


@attrs.frozen
class SocketIoCodec:
    """Packets of one namespace."""

    namespace: str = "/"

    def encode(self, message: Packet) -> str:
        place = f"{self.namespace}," if message.kind[0] == "4" and self.namespace != "/" else ""
        id, data = "" if message.id is None else message.id, "" if message.data is None else encode_json(message.data)
        return f"{message.kind}{place}{id}{data}"

    def decode(self, payload: str | bytes) -> Packet:
        found = _PACKET.fullmatch(payload) if isinstance(payload, str) else None
        if found is None:
            raise nova.BadMessage("no packet of Socket.IO without binary parts")
        kind, _, id, data = found.groups()
        return Packet(kind, msgspec.json.decode(data) if data else None, int(id) if id else None)


def event(name: str, *args: Any) -> Packet:
    """Return an event: for `Connection.send`, or for `Connection.request` where an answer is wanted."""
    return Packet(EVENT, [name, *args])


@attrs.define(eq=False, kw_only=True, slots=False)
class SocketIo(nova.Adapter):
    """A namespace of a Socket.IO server; a channel is the name of an event. Credentials are its `auth`."""

    confirms = False
    path: str = "/socket.io/"
    query: Any = "EIO=4&transport=websocket"
    namespace: str = "/"
    questions: frozenset[str] = frozenset()
    """Events that the program answers, which it receives as a `Call`; others are acknowledged once processed."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": SocketIoCodec(self.namespace), "heartbeat": nova.NoHeartbeat()}

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        hello = await exchange.receive()
        exchange.set_heartbeat(idle_timeout=(hello["pingInterval"] + hello["pingTimeout"]) / 1000)
        await exchange.request(Packet(CONNECT, reveal_all(credentials)))
        return nova.AuthOk()

    def read(self, message: Packet) -> nova.Reading | None:
        match message:
            case Packet("0", hello):
                return nova.Welcome(hello)
            case Packet("2"):
                return nova.HeartbeatAsked(Packet(PONG))
            case Packet("40", data):
                return nova.Answer(data)
            case Packet("44", data):
                return nova.Answer(data, error=str(data.get("message")) if isinstance(data, dict) else "refused")
            case Packet("41"):
                return nova.GoAway(reason="the namespace was left")
            case Packet("43", data, id):
                return nova.Answer(data, id)
            case Packet("42", [str(name), *args], int(id)) if name in self.questions:
                return nova.Call(id, [name, *args])
            case Packet("42", [str(name), *args], id):
                return nova.Data(name, args, ack=None if id is None else Packet(ACK, [], id))
            case _:
                return nova.Many([])

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> None:
        return None  # the service sends what it has, unasked

    def encode_unsubscription_request(self, channel: str) -> None:
        return None

    def request_id(self, message: Packet) -> Hashable | None:
        return message.id

    def tag(self, message: Packet, id: Any) -> Any:
        return message._replace(id=id) if message.kind == EVENT else None

    def encode_farewell(self) -> Any:
        return Packet(DISCONNECT)
