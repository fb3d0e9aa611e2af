"""STOMP 1.2: text commands with receipts, beats that both sides agree on, messages that are acknowledged one by one."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

import trio_nova as nova
from trio_nova.handlers.auth import reveal_all

BEAT = "\n"
TOLERANCE = 2.0
"""How many times the agreed interval the service may be silent: its beats are late by the way that they take."""
_ESCAPES = {"\\": "\\\\", "\r": "\\r", "\n": "\\n", ":": "\\c"}
_UNESCAPES = {written: plain for plain, written in _ESCAPES.items()}


class Frame(NamedTuple):
    """A frame; a beat is none, but a line end."""

    command: str
    headers: Mapping[str, str] = MappingProxyType({})
    body: str = ""


class StompCodec:
    """A frame in each WebSocket message. In what opens a session nothing is escaped (section "Value Encoding")."""

    def encode(self, message: Any) -> str:
        if message == BEAT:
            return BEAT
        command, headers, body = message
        if body:
            headers = {**headers, "content-length": str(len(body.encode()))}
        lines = [f"{_escape(name, command)}:{_escape(value, command)}\n" for name, value in headers.items()]
        return f"{command}\n{''.join(lines)}\n{body}\0"

    def decode(self, payload: str | bytes) -> Any:
        text = payload if isinstance(payload, str) else payload.decode()
        if not text.strip("\r\n"):
            return BEAT
        head, _, rest = re.sub(r"\r?\n\r?\n", "\n\n", text.lstrip("\r\n"), count=1).partition("\n\n")
        command, *lines = re.split(r"\r?\n", head)
        pairs = [[_unescape(part, command) for part in line.split(":", 1)] for line in reversed(lines)]
        headers, body = dict(pairs), rest.encode()  # of two headers, the first counts
        size = int(headers.get("content-length", body.find(0)))
        if body[size : size + 1] != b"\0":
            raise nova.BadMessage("the frame does not end where it should")
        return Frame(command, headers, body[:size].decode())


def _escape(text: str, command: str) -> str:
    return text if command == "CONNECT" else re.sub(r"[\\\r\n:]", lambda found: _ESCAPES[found[0]], text)


def _unescape(text: str, command: str) -> str:
    return text if command == "CONNECTED" else re.sub(r"\\.?", lambda found: _UNESCAPES[found[0]], text)


@attrs.define(eq=False, kw_only=True, slots=False)
class Stomp(nova.Adapter):
    """A broker of STOMP. Messages are `Frame`s; a channel is a destination, and so is the id of its subscription."""

    correlated = True
    virtual_host: str = "/"
    beats: tuple[int, int] = (10_000, 10_000)
    """Milliseconds in which we can send one, and in which we want one; 0: not at all."""

    def defaults(self) -> Mapping[str, Any]:
        beats = {"heartbeat": nova.MessageHeartbeat(BEAT, answered=False), "ping_interval": math.inf}
        codec = {"codec": StompCodec(), "correlation": nova.Correlation(text=True)}
        return {"subprotocols": ["v12.stomp"], **codec, **beats}

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        wanted = {"accept-version": "1.2", "host": self.virtual_host, "heart-beat": "{},{}".format(*self.beats)}
        connected = await exchange.request(Frame("CONNECT", wanted | (reveal_all(credentials) or {})))
        sends, wants = map(int, connected.headers.get("heart-beat", "0,0").split(","))
        out, back = (
            max(pair) / 1000 if all(pair) else math.inf for pair in zip(self.beats, (wants, sends), strict=True)
        )
        exchange.set_heartbeat(ping_interval=out, idle_timeout=back * TOLERANCE)
        return nova.AuthOk()

    def read(self, message: Any) -> nova.Reading | None:
        match message:
            case Frame("CONNECTED" | "RECEIPT", headers):
                return nova.Answer(message, headers.get("receipt-id"))
            case Frame("ERROR", headers, body):
                return nova.Answer(message, headers.get("receipt-id"), headers.get("message") or body)
            case Frame("MESSAGE", {"subscription": channel, "message-id": id, **rest}):
                ack = Frame("ACK", {"id": rest["ack"]}) if "ack" in rest else None
                return nova.Data(channel, message, id=id, ack=ack)
            case _:
                return nova.Beat() if message == BEAT else nova.Other(message)

    def request_id(self, message: Any) -> Hashable | None:
        return message.headers.get("receipt") if isinstance(message, Frame) else None

    def tag(self, message: Any, id: Any) -> Any:
        has_place = isinstance(message, Frame) and message.command != "CONNECT"
        return message._replace(headers={**message.headers, "receipt": id}) if has_place else None

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return Frame("SUBSCRIBE", {"id": channel, "destination": channel, "ack": "client-individual", **params})

    def encode_unsubscription_request(self, channel: str) -> Any:
        return Frame("UNSUBSCRIBE", {"id": channel})

    def encode_farewell(self) -> Any:
        return Frame("DISCONNECT", {"receipt": "goodbye"})
