"""A byte stream in memory that pushes back: what a socket does, without a socket and in virtual time."""

from __future__ import annotations

import abc
import operator
from types import TracebackType

import attrs
import trio

__all__ = ["MemoryStream", "ResettableStream", "memory_streams"]


class ResettableStream(trio.abc.HalfCloseableStream):
    """A byte stream that can be broken, as a socket can: what a scripted server speaks over, if not a socket."""

    __slots__ = ()

    @abc.abstractmethod
    def reset(self) -> None:
        """Break the connection: what is under way is lost, and the other end's next call raises BrokenResourceError."""


def memory_streams(max_buffer: int = 65_536, slice_size: int | None = None) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected streams.

    Args:
        max_buffer: bytes that may be under way in each direction; a sender waits for room beyond them.
        slice_size: bytes that one `receive_some` returns at most; None for as many as there are.
    """
    there, back = _Pipe(max_buffer, slice_size), _Pipe(max_buffer, slice_size)
    return MemoryStream(incoming=back, outgoing=there), MemoryStream(incoming=there, outgoing=back)


@attrs.define(eq=False)
class _Pipe:
    """One direction. Both ends look at the same facts, and park here until they change."""

    max_buffer: int = attrs.field(validator=attrs.validators.ge(1))
    slice_size: int | None = attrs.field(validator=attrs.validators.optional(attrs.validators.ge(1)))
    under_way: bytearray = attrs.field(factory=bytearray)
    ended: bool = False
    """The sender sends no more."""
    refused: bool = False
    """The receiver takes no more."""
    reset: bool = False
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    @property
    def room(self) -> int:
        return self.max_buffer - len(self.under_way)


@attrs.define
class _Turn:
    """Admits one task at a time, and tells the second one so instead of letting it mix in."""

    doing: str
    _taken: bool = False

    def __enter__(self) -> None:
        if self._taken:
            raise trio.BusyResourceError(f"another task is already {self.doing}")
        self._taken = True

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._taken = False


@attrs.define(eq=False)
class MemoryStream(ResettableStream):
    """One end of a connection in memory; `memory_streams` makes both.

    Cancelling `send_all` may leave a part of the data on its way, as on a socket. Cancelling
    `receive_some` loses nothing.
    """

    _incoming: _Pipe = attrs.field(alias="incoming")
    _outgoing: _Pipe = attrs.field(alias="outgoing")
    _closed: bool = False
    _sending: _Turn = attrs.field(factory=lambda: _Turn("sending"))
    _receiving: _Turn = attrs.field(factory=lambda: _Turn("receiving"))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Put `data` on its way, waiting for room as often as needed."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            pipe, rest = self._outgoing, memoryview(data).cast("B")
            while rest:
                if room := pipe.room:
                    pipe.under_way += rest[:room]
                    rest = rest[room:]
                    pipe.changed.unpark_all()
                else:
                    await pipe.changed.park()
                    self._check_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room, or nobody left to wait for."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            pipe = self._outgoing
            while not (self._closed or pipe.ended or pipe.refused or pipe.reset or pipe.room):
                await pipe.changed.park()
            if self._closed or pipe.ended:
                raise trio.ClosedResourceError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return at most `max_bytes` of them; b"" once the other end sends no more."""
        limit = self._incoming.max_buffer if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            await trio.lowlevel.checkpoint()
            pipe = self._incoming
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if pipe.reset:
                    raise trio.BrokenResourceError("connection reset")
                if pipe.under_way:
                    return self._take(limit)
                if pipe.ended:
                    return b""
                await pipe.changed.park()

    async def send_eof(self) -> None:
        """End the outgoing direction, after what is under way."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError
            self._outgoing.ended = True
            self._outgoing.changed.unpark_all()

    async def aclose(self) -> None:
        """Close both directions; what is under way to the other end still arrives there."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do what `aclose` does, from code that cannot wait."""
        self._closed = True
        self._outgoing.ended = True
        self._incoming.refused = True
        self._incoming.under_way.clear()
        self._outgoing.changed.unpark_all()
        self._incoming.changed.unpark_all()

    def reset(self) -> None:
        """Break the connection: what is under way is lost, and the other end's next call raises BrokenResourceError."""
        self._outgoing.reset = self._incoming.reset = True
        self._outgoing.under_way.clear()
        self.close()

    def _check_sendable(self) -> None:
        if self._closed or self._outgoing.ended:
            raise trio.ClosedResourceError
        if self._outgoing.refused or self._outgoing.reset:
            raise trio.BrokenResourceError("the other end is closed")

    def _take(self, limit: int) -> bytes:
        pipe = self._incoming
        size = limit if pipe.slice_size is None else min(limit, pipe.slice_size)
        taken = bytes(pipe.under_way[:size])
        del pipe.under_way[:size]
        pipe.changed.unpark_all()
        return taken
