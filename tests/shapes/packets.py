"""Packets of MQTT, which need not begin and end where frames do (MQTT 3.1.1 section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

import trio_nova as nova

LONGEST_HEAD = 5
"""Bytes: the kind, and a length of at most four digits of seven bits (section 2.2.3)."""


@attrs.frozen
class MqttPackets:
    """A codec whose messages are whole packets, as bytes."""

    def open_link(self, max_message_size: int) -> _Stream:
        return _Stream(max_message_size)

    def encode(self, message: Any) -> bytes:
        return bytes(message)

    def decode(self, payload: str | bytes) -> Any:
        return payload


@attrs.define
class _Stream:
    """The packets of one link."""

    _max_size: int
    _begun: bytearray = attrs.field(factory=bytearray)
    """The packet of which a part has come."""

    def encode(self, message: Any) -> Sequence[bytes]:
        return [bytes(message)]

    def decode(self, payload: str | bytes) -> Sequence[bytes]:
        if isinstance(payload, str):
            raise nova.BadMessage("MQTT is binary (section 6)")
        self._begun += payload
        whole: list[bytes] = []
        while (size := self._size()) is not None and len(self._begun) >= size:
            whole.append(bytes(self._begun[:size]))
            del self._begun[:size]
        return whole

    def _size(self) -> int | None:
        """Return the size of the packet that has begun; None: too little of it has come to say."""
        length, factor = 0, 1
        for place in range(1, min(len(self._begun), LONGEST_HEAD)):
            digit = self._begun[place]
            length, factor = length + (digit & 127) * factor, factor * 128
            if digit < 128:
                if length > self._max_size:
                    raise nova.BadMessage(f"a packet of {length} bytes is too big")
                return place + 1 + length
        if len(self._begun) >= LONGEST_HEAD:
            raise nova.BadMessage("a length of more than four digits (section 2.2.3)")
        return None
