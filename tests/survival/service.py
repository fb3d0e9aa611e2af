"""The service that all clients are connected to: plain sockets, frames by hand, no WebSocket library.

It numbers messages by the clock, and writes down what it wrote on which link, who dialled when, and
what came in. What befalls a client is a script, see `faults.py`.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, NoReturn, TypeAlias

import attrs
import trio

from tests.bench.frames import CLOSE, PING, PONG, TEXT, accept_key, frame, parse

_HOST = "127.0.0.1"
_MAX_HEAD = 65_536
_QUEUE = 1000
"""Messages that wait to be written: 10 s of them at the usual pace."""

Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Gone(Exception):
    """The client has hung up."""


@attrs.define(eq=False)
class Visit:
    """One connection, from its TCP handshake on."""

    stream: Stream
    transport: trio.SocketStream
    said_goodbye: bool = False
    _buffer: bytearray = attrs.field(factory=bytearray)
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    async def read_request(self) -> str:
        """Read the upgrade request and return its key."""
        while b"\r\n\r\n" not in self._buffer:
            await self.read()
            if len(self._buffer) > _MAX_HEAD:
                raise Gone
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer[:] = rest
        fields = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:])
        return next(value.strip().decode() for name, value in fields.items() if name.lower() == b"sec-websocket-key")

    async def upgrade(self) -> None:
        """Read the upgrade request and agree to it (RFC 6455 section 4.2.2)."""
        key = await self.read_request()
        await self.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode()
        )

    async def reject(self, status: str, headers: str = "") -> None:
        """Read the upgrade request and answer it with another status."""
        await self.read_request()
        await self.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n".encode())

    async def read(self) -> None:
        """Read some bytes."""
        try:
            data = await self.stream.receive_some(65_536)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise Gone from exc
        if not data:
            raise Gone
        self._buffer += data

    async def read_frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        while (received := parse(self._buffer)) is None:
            await self.read()
        del self._buffer[: received.end]
        return received.opcode, received.payload

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        async with self._writing:
            try:
                await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise Gone from exc

    async def say_goodbye(self, code: int) -> None:
        """Write a close frame."""
        self.said_goodbye = True
        await self.write(frame(CLOSE, code.to_bytes(2, "big")))

    def cut(self, how: Literal["FIN", "RST"]) -> None:
        """End the connection at once."""
        if how == "RST":
            self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.socket.close()


@attrs.define(eq=False)
class Link:
    """One connection that was upgraded, and on which the messages flow."""

    number: int
    at: float
    visit: Visit
    flowing: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    frozen: bool = False

    def freeze(self) -> None:
        """Read and write nothing any more, and leave the connection open: a black hole."""
        self.frozen = True
        self.flowing.cancel(reason="the link is frozen")


Behaviour: TypeAlias = Callable[[Visit], Awaitable[None]]
"""What becomes of one dial."""


@attrs.define(eq=False, kw_only=True)
class Service:
    """What one client is connected to during one lap."""

    tls: ssl.SSLContext | None = None
    interval: float = 0.01
    """Seconds between two messages."""
    size: int = 100
    """Bytes of a message, about."""
    receive_buffer: int | None = None
    """Bytes that the kernel takes before a client's writes stall; by default it takes megabytes."""
    answers_goodbyes: bool = True
    port: int = 0
    dials: list[float] = attrs.field(factory=list)
    """When the client opened each connection, whatever became of it."""
    links: list[Link] = attrs.field(factory=list)
    produced: list[float] = attrs.field(factory=list)
    """When each message was made; the first has the number 1."""
    received: list[int] = attrs.field(factory=list)
    """The numbers of the client's messages."""
    goodbyes: list[float] = attrs.field(factory=list)
    """When the client said goodbye, of its own accord or in answer."""
    struck_at: float = 0.0
    """When the fault began."""
    struck_link: int = 0
    """The link that it befell."""
    reachable_at: float = 0.0
    """From when on a dial is served well again."""
    breaches: list[str] = attrs.field(factory=list)
    """What the client sent that is not what it was to send."""
    lateness: float = 0.0
    """Seconds by which this process woke too late, at worst: the machine was busy."""
    _behaviour: Behaviour | None = None
    _queue: trio.MemorySendChannel[int] | None = None
    _opened: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    _nursery: trio.Nursery = attrs.field(init=False)
    _listening: trio.CancelScope = attrs.field(init=False)
    _is_down: trio.Event = attrs.field(init=False)

    # ------------------------------------------------------------------- what scripts say

    def strike(self, behaviour: Behaviour | None = None) -> None:
        """Note that the fault begins; from now on dials get `behaviour`, by default they are served well."""
        self._behaviour = behaviour
        self.struck_at = self.reachable_at = time.monotonic()
        self.struck_link = self.links[-1].number

    def restore(self) -> None:
        """Serve every dial well from now on."""
        self._behaviour = None
        self.reachable_at = time.monotonic()

    @property
    def link(self) -> Link:
        """The latest link."""
        return self.links[-1]

    # ------------------------------------------------------------------- what it does

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and make messages while in the block; leaving it ends every connection."""
        async with trio.open_nursery() as self._nursery:
            await self.listen()
            self._nursery.start_soon(self._produce)
            yield
            self._nursery.cancel_scope.cancel(reason="the service's block was left")

    async def listen(self, *, plain: bool = False) -> None:
        """Listen from now on, at the same port as before; `plain`: without TLS, whatever the service has."""
        (listener,) = await trio.open_tcp_listeners(self.port, host=_HOST)
        if self.receive_buffer is not None:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.port = listener.socket.getsockname()[1]
        self._listening, self._is_down = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._listen, listener, plain or self.tls is None)

    async def go_down(self) -> None:
        """End every connection, and listen no more: dials are refused."""
        self._listening.cancel(reason="the service goes down")
        await self._is_down.wait()

    async def _listen(self, listener: trio.SocketListener, plain: bool) -> None:
        with self._listening:
            await trio.serve_listeners(partial(self._take, plain=plain), [listener])
        self._is_down.set()

    async def _produce(self) -> NoReturn:
        """Make messages by the clock, for ever; those for which there is no link are gone."""
        began = time.monotonic()
        while True:
            slept_at = time.monotonic()
            await trio.sleep(self.interval)
            now = time.monotonic()
            self.lateness = max(self.lateness, now - slept_at - self.interval)
            due = int((now - began) / self.interval)
            for _ in range(min(due - len(self.produced), _QUEUE)):
                self.produced.append(time.monotonic())
                await self._hand_over(len(self.produced))

    async def _hand_over(self, number: int) -> None:
        """Queue a message for the latest link; waits while the queue is full, as a slow client makes it."""
        if (queue := self._queue) is None:
            return
        try:
            await queue.send(number)
        except trio.BrokenResourceError:
            # Meanwhile there may be another link, with a queue of its own.
            if self._queue is queue:
                self._queue = None

    async def wait_link(self) -> None:
        """Wait until there is a link."""
        while not self.links:
            await self._opened.park()

    async def wait_well(self) -> None:
        """Wait until there is a link that was opened after the service was reachable again."""
        while self.link.number <= self.struck_link or self.link.at < self.reachable_at:
            await self._opened.park()

    async def _take(self, transport: trio.SocketStream, *, plain: bool) -> None:
        self.dials.append(time.monotonic())
        visit = Visit(transport, transport)
        try:
            if not plain:
                assert self.tls is not None
                visit.stream = trio.SSLStream(transport, self.tls, server_side=True, https_compatible=True)
            await (self._behaviour or self.serve)(visit)
        except* Gone:
            pass
        except* ValueError as group:
            self.breaches.append(str(group.exceptions[0]))
        finally:
            transport.socket.close()

    async def serve(self, visit: Visit) -> None:
        """Serve a dial well: upgrade it, and let the messages flow both ways."""
        await visit.upgrade()
        link = Link(len(self.links) + 1, time.monotonic(), visit)
        self.links.append(link)
        self._opened.unpark_all()
        with link.flowing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, link)
                await self._read(visit)
                nursery.cancel_scope.cancel(reason="both have said goodbye")
        if link.frozen:
            await trio.sleep_forever()

    async def _write(self, link: Link) -> NoReturn:
        padding = "." * self.size
        put, take = trio.open_memory_channel[int](_QUEUE)
        self._queue = put
        with take:
            async for number in take:
                await link.visit.write(frame(TEXT, f"{number} {link.number} {padding}".encode()))
        raise AssertionError("the queue of a link is never closed while it is read")

    async def _read(self, visit: Visit) -> None:
        while True:
            opcode, payload = await visit.read_frame()
            if opcode == TEXT:
                self.received.append(int(payload.split(b" ", 1)[0]))
            elif opcode == PING:
                await visit.write(frame(PONG, payload))
            elif opcode == CLOSE:
                self.goodbyes.append(time.monotonic())
                if visit.said_goodbye:
                    return
                if self.answers_goodbyes:
                    await visit.write(frame(CLOSE, payload[:2]))
                    return
