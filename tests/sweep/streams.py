"""The links that calls are swept on: the client's streams, and what they do to what is written and read."""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Iterator
from typing import Literal, TypeAlias

import attrs
import trio

from tests.sweep.injections import Injection
from trio_nova import TrioWebsocketTransport, WireTransport
from trio_nova.links import Transport
from trio_nova.testing import MemoryStream

__all__ = ["LANES", "Kind", "Lane", "WatchedStream", "socket_streams"]

Kind: TypeAlias = Literal["fast", "sliced", "back_pressured", "socket"]
"""Sliced: 1 to 7 bytes at a time in both directions. Back-pressured: 16 bytes may be under way, and the
service takes its time. Socket: a pair of sockets, which the wire transport writes to without waiting."""


@attrs.frozen
class Lane:
    """One kind of link under one transport."""

    kind: Kind
    transport: Transport = attrs.field(factory=WireTransport)

    def __str__(self) -> str:
        return f"{self.kind}/{'wire' if isinstance(self.transport, WireTransport) else 'trio-websocket'}"

    @property
    def max_buffer(self) -> int:
        """Bytes that may be under way in each direction."""
        return 16 if self.kind == "back_pressured" else 65_536

    @property
    def pause(self) -> float:
        """Seconds that the service waits before it reads."""
        return 0.01 if self.kind == "back_pressured" else 0.0

    @property
    def padding(self) -> str:
        """What makes messages as long as they must be: to be written in pieces, or to exceed a socket's buffer."""
        return "0123456789" * (3 if self.kind != "socket" else 1_500)

    def sizes(self, seed: int) -> Iterator[int] | None:
        """Return how many bytes to write or read at a time; None: as many as there are."""
        if self.kind != "sliced":
            return None
        draw = random.Random(f"{seed}:slices")
        return (draw.randint(1, 7) for _ in itertools.count())


LANES: dict[str, Lane] = {
    str(lane): lane
    for kind in ("fast", "sliced", "back_pressured", "socket")
    for lane in (Lane(kind), Lane(kind, TrioWebsocketTransport()))
}


@attrs.define(eq=False)
class WatchedStream(trio.abc.Stream):
    """The client's end of a stream in memory: cuts up what passes, lets the injection break it, and keeps watch."""

    inner: MemoryStream
    _injection: Injection
    _sizes: Iterator[int] | None
    torn: bool = False
    """A write has ended before its end: whatever is written now would be read as its rest."""
    written_when_torn: bool = False
    closed: bool = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.written_when_torn = self.written_when_torn or (self.torn and not self.closed)
        failure = self._injection.breaks()
        whole = self.torn
        self.torn = True
        with memoryview(data).cast("B") as view:
            rest = view if failure is None else view[: len(view) // 2]
            while rest:
                size = len(rest) if self._sizes is None else next(self._sizes)
                await self.inner.send_all(rest[:size])
                rest = rest[size:]
        if failure is not None:
            raise failure if not isinstance(failure, EOFError) else trio.BrokenResourceError("the sweep")
        self.torn = whole

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = max_bytes if self._sizes is None else next(self._sizes)
        data = await self.inner.receive_some(size)
        failure = self._injection.breaks()
        if isinstance(failure, EOFError):
            return b""
        if failure is not None:
            raise failure
        return data

    async def aclose(self) -> None:
        self.closed = True
        await self.inner.aclose()


def socket_streams() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Return a pair of sockets with the smallest of buffers; they need no time, so time can be virtual."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel takes a few kilobytes all the same
    left, right = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
    return left, right
