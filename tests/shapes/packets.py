"""Packets that need not begin and end where frames do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from trio_nova import BadMessage, Codec


@attrs.frozen
class Packets:
    """A codec for packets that tell their length in their first bytes; `inner` makes messages of whole ones."""

    inner: Codec
    length: Callable[[bytes], int | None]
    """From the first bytes of a packet to the number of all of them; None: it needs more to tell."""
    head: int = 16
    """Bytes within which the length can be told."""

    def open_link(self, max_message_size: int) -> _Stream:
        return _Stream(self, max_message_size)

    def encode(self, message: Any) -> str | bytes:
        return self.inner.encode(message)

    def decode(self, payload: str | bytes) -> Any:
        return self.inner.decode(payload)


@attrs.define
class _Stream:
    """The packets of one link."""

    _codec: Packets
    _max_size: int
    _begun: bytes = b""
    """The packet of which a part has come."""

    def encode(self, message: Any) -> Sequence[str | bytes]:
        return [self._codec.inner.encode(message)]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        if isinstance(payload, str):
            raise BadMessage("a text frame, where there is a stream of binary ones")
        self._begun += payload
        whole: list[Any] = []
        while (size := self._size()) is not None and len(self._begun) >= size:
            whole.append(self._codec.inner.decode(self._begun[:size]))
            self._begun = self._begun[size:]
        return whole

    def _size(self) -> int | None:
        head = self._begun[: self._codec.head]
        size = self._codec.length(head) if head else None
        if (size or 0) > self._max_size or (size is None and len(head) == self._codec.head):
            raise BadMessage("a packet that is too big, or does not tell its length")
        return size
