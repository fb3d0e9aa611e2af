"""MQTT 3.1.1: topics with wildcards, ids of 16 bits, messages that are acknowledged once they are processed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import attrs

import trio_nova as nova
from trio_nova.codecs import Packets
from trio_nova.handlers.auth import reveal_all

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 1, 2, 3, 4, 8, 9, 10, 11
PINGREQ, PINGRESP, DISCONNECT = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
KEEP_ALIVE = 60
"""Seconds: the service gives us up after half as many again without a packet of ours."""
UNAVAILABLE = 3
REASONS = {1: "version", 2: "client id", UNAVAILABLE: "unavailable", 4: "user or password", 5: "not authorized"}
"""Why a connection is refused (section 3.2.2.3)."""


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Return a packet (section 2.2)."""
    head, size = bytes([kind << 4 | flags]), len(body)
    while size > 127:
        head, size = head + bytes([size % 128 | 128]), size // 128
    return head + bytes([size]) + body


def body_at(head: bytes) -> int | None:
    """Return where the body of a packet begins: behind the digits of its length (section 2.2.3)."""
    return next((at + 1 for at in range(1, len(head)) if head[at] < 128), None)


def length(head: bytes) -> int | None:
    """Return the size of the packet that begins so; None: it takes more of it to tell."""
    body = body_at(head)
    return None if body is None else body + sum((head[at] & 127) << 7 * (at - 1) for at in range(1, body))


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def publish(topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> bytes:
    """Return a message: with QoS 0 for `Connection.send`, with QoS 1 for `Connection.request`."""
    return packet(PUBLISH, text(topic) + bytes(2 if qos else 0) + payload, qos << 1 | retain)


def split(message: bytes) -> tuple[int, int, int | None]:
    """Return the kind of a packet, where its body begins, and where its id stands; None: its kind has none."""
    kind, start = message[0] >> 4, body_at(message) or 2
    if kind == PUBLISH:
        return kind, start, start + 2 + int.from_bytes(message[start : start + 2]) if message[0] & 6 else None
    return kind, start, start if kind in (PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK) else None


@attrs.define(eq=False, kw_only=True, slots=False)
class Mqtt(nova.Adapter):
    """A broker of MQTT. Messages are whole packets; credentials are a mapping with `username` and `password`."""

    correlated, drops_unclaimed, max_batch = True, True, 64
    client_id: str = ""
    """A name under which the broker keeps what was not acknowledged from link to link; "": it keeps nothing."""

    def defaults(self) -> Mapping[str, Any]:
        beats = {"heartbeat": nova.MessageHeartbeat(PINGREQ), "ping_interval": KEEP_ALIVE / 2}
        ids = {"correlation": nova.Correlation(first=1, last=65_535)}
        return {"subprotocols": ["mqtt"], "codec": Packets(nova.RawCodec(), length, head=5), **beats, **ids}

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        login = [text((reveal_all(credentials) or {})[name]) for name in ("username", "password") if credentials]
        flags = (0 if self.client_id else 2) | (0xC0 if login else 0)
        head = text("MQTT") + bytes([4, flags]) + KEEP_ALIVE.to_bytes(2) + text(self.client_id)
        return await exchange.ask(packet(CONNECT, head + b"".join(login)))

    def read(self, message: bytes) -> nova.Reading:
        try:
            return self._read(message)
        except (LookupError, UnicodeDecodeError):  # it is cut short, or no packet of this version
            return nova.Other(message)

    def _read(self, message: bytes) -> nova.Reading:
        kind, start, at = split(message)
        if kind == CONNACK:
            code = message[start + 1]
            return nova.AuthRefused(REASONS.get(code, str(code)), retry=code == UNAVAILABLE) if code else nova.AuthOk()
        if kind == PUBLISH:
            end = start + 2 + int.from_bytes(message[start : start + 2])
            payload = end if at is None else end + 2
            if payload > len(message):
                raise IndexError
            ack = None if at is None else packet(PUBACK, message[at : at + 2])
            return nova.Data(message[start + 2 : end].decode(), message[payload:], ack=ack)
        return nova.Beat(answers=True) if message == PINGRESP else nova.Answer(message, self.request_id(message))

    def request_id(self, message: bytes) -> Hashable | None:
        at = split(message)[2]
        return None if at is None else int.from_bytes(message[at : at + 2]) or None

    def tag(self, message: bytes, id: int) -> Any:
        at = split(message)[2]
        return None if at is None else message[:at] + id.to_bytes(2) + message[at + 2 :]

    def encode_subscription_batch(self, channels: Sequence[nova.Channel]) -> Any:
        asked = b"".join(text(each.name) + bytes([each.params.get("qos", 1)]) for each in channels)
        return packet(SUBSCRIBE, bytes(2) + asked, 2)

    def handle_subscription_response(self, message: bytes) -> Sequence[nova.Granted | nova.Refused]:
        codes = message[split(message)[1] + 2 :]
        return [
            nova.Refused(None, "the broker does not allow it") if code & 128 else nova.Granted(None) for code in codes
        ]

    def encode_unsubscription_request(self, channel: str) -> Any:
        return packet(UNSUBSCRIBE, bytes(2) + text(channel), 2)

    def matches(self, filter: str, channel: Hashable) -> bool:
        wanted, levels = filter.split("/"), str(channel).split("/")
        if levels[0][:1] == "$" and wanted[0] in ("+", "#"):
            return False  # the broker's own topics (section 4.7.2)
        if wanted[-1] == "#":
            wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
        return len(wanted) == len(levels) and all(a in ("+", b) for a, b in zip(wanted, levels, strict=True))

    def encode_farewell(self) -> Any:
        return DISCONNECT
