"""An exchange on loopback that misbehaves on a schedule, and keeps the books that the client is judged by.

The WebSocket server is trio-websocket's, over a real socket. What goes wrong goes wrong beneath it, on
the line, as it does in the world.
"""

from __future__ import annotations

import enum
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from trio_nova.demo.wire import Ack, Heartbeat, Order, Tick

__all__ = ["CHEATED_SEQ", "RETRY_AFTER", "Exchange", "Fault", "Strike", "schedule"]

RETRY_AFTER = 1
"""Seconds for which the exchange asks a redial to stay away."""
CHEATED_SEQ = 20
"""The tick that a cheating exchange keeps to itself."""
CALM = 0.2
"""Seconds that a link must have been up before it is struck: a fault upon a fault would blur the books."""
PATIENCE = 2.0
"""Seconds that the exchange waits for a client in a handshake."""

_LINGER = "hh" if sys.platform == "win32" else "ii"
"""C's `struct linger`: on, and for how long."""


class Fault(enum.Enum):
    """What the exchange does to its client; the value is for the reader: "the exchange ..."."""

    DROP = "dropped"
    """The stream ends, without a close frame."""
    RESTART = "restarted (1012)"
    """A close frame with code 1012, service restart."""
    MUTE = "went mute"
    """Orders still arrive and are executed; no data, no answer and no pong comes back."""
    REFUSE = "dropped, then 503"
    """The stream ends, and the next dial is refused with status 503 and Retry-After."""
    RESET = "reset"
    """The socket is reset (RST)."""


@attrs.frozen
class Strike:
    """A fault that was played."""

    fault: Fault
    at: float
    """Trio's clock, seconds."""


def schedule(seconds: float) -> list[tuple[float, Fault]]:
    """Spread the faults over a run: (seconds since the market opened, what happens then)."""
    shares = {Fault.DROP: 0.1, Fault.RESTART: 0.24, Fault.MUTE: 0.38, Fault.REFUSE: 0.6, Fault.RESET: 0.85}
    return [(share * seconds, fault) for fault, share in shares.items()]


@attrs.define(eq=False)
class Line(trio.abc.Stream):
    """The wire beneath a WebSocket, that can be told to fail."""

    _stream: trio.SocketStream
    _carries_out: bool = attrs.field(default=True, init=False)
    _carries_in: bool = attrs.field(default=True, init=False)
    _sending: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    """`drop` may come while a message is being sent."""

    def mute(self) -> None:
        """Carry nothing more to the client."""
        self._carries_out = False

    async def drop(self) -> None:
        """End the stream with FIN, whatever the WebSocket above has to say, and hear nothing more."""
        self._carries_out = self._carries_in = False
        async with self._sending:
            await self._stream.send_eof()

    async def reset(self) -> None:
        """End the stream with RST."""
        self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        await trio.aclose_forcefully(self._stream)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        async with self._sending:
            if self._carries_out:
                await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        while (data := await self._stream.receive_some(max_bytes)) and not self._carries_in:
            pass
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@attrs.define(eq=False)
class Desk:
    """Where a connected client is served."""

    line: Line
    socket: WebSocketConnection
    since: float
    """Trio's clock, seconds."""

    async def tell(self, message: Tick | Heartbeat | Ack) -> None:
        """Send a message, or let it be lost with a client that is gone."""
        with suppress(ConnectionClosed):
            await self.socket.send_message(msgspec.json.encode(message).decode())


@attrs.define(eq=False)
class Exchange:
    """One market, one client. The public fields are the books, and the truth."""

    faults: Sequence[tuple[float, Fault]]
    """When to do what, in seconds since the market opened; a fault waits for a client that is well connected."""
    rate: int = 200
    """Ticks per second."""
    cheats: bool = False
    """Whether one tick is kept back on a healthy link: what a client's books must find out."""
    dice: random.Random = attrs.field(factory=random.Random)
    """Draws the prices."""
    emitted: int = attrs.field(default=0, init=False)
    """The number of the last tick, heard or not."""
    executed: Counter[int] = attrs.field(factory=Counter, init=False)
    """How often each order came, by its id."""
    strikes: list[Strike] = attrs.field(factory=list, init=False)
    """What has gone wrong so far, oldest first."""
    played: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when all faults are over, and the client is well connected again."""
    _refuse_next: bool = attrs.field(default=False, init=False)
    _opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    _halted: bool = attrs.field(default=False, init=False)
    _desk: Desk | None = attrs.field(default=None, init=False)
    _arrivals: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Listen on 127.0.0.1 until cancelled; report the port."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick, name="exchange:ticks")
            nursery.start_soon(self._misbehave, name="exchange:faults")
            task_status.started(listener.socket.getsockname()[1])
            await trio.serve_listeners(self._admit, [listener], handler_nursery=nursery)

    def open(self) -> None:
        """Open the market: the first tick follows, and the schedule begins."""
        self._opened.set()

    def halt(self) -> None:
        """Close the market: no tick follows. Orders are still answered."""
        self._halted = True

    # ----------------------------------------------------------------- the market

    async def _tick(self) -> None:
        await self._opened.wait()
        price, due = 30_000.0, trio.current_time()
        while not self._halted:
            self.emitted += 1
            price += self.dice.gauss(0.0, 0.5)
            if self._desk is not None and not (self.cheats and self.emitted == CHEATED_SEQ):
                await self._desk.tell(Tick(self.emitted, round(price, 2)))
            if self._desk is not None and self.emitted % self.rate == 0:
                await self._desk.tell(Heartbeat(self.emitted))
            due += 1.0 / self.rate
            await trio.sleep_until(due)

    async def _admit(self, stream: trio.SocketStream) -> None:
        line = Line(stream)
        try:
            async with trio.open_nursery() as nursery:
                accepted: WebSocketConnection | None = None
                with trio.move_on_after(PATIENCE):
                    accepted = await self._answer_dial(await wrap_server_stream(nursery, line))
                if accepted is not None:
                    await self._trade(Desk(line, accepted, trio.current_time()))
                    # The WebSocket's own task may still have to hear the client's goodbye.
                    nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
                else:
                    nursery.cancel_scope.cancel(reason="no link came up")
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer_dial(self, request: WebSocketRequest) -> WebSocketConnection | None:
        """Accept a client; None where it was refused, or has hung up."""
        with suppress(ConnectionClosed):
            if not self._refuse_next:
                return await request.accept()
            self._refuse_next = False
            retry_after = (b"Retry-After", str(RETRY_AFTER).encode())
            await request.reject(503, extra_headers=[retry_after], body=b"the market is overloaded")
        return None

    async def _trade(self, desk: Desk) -> None:
        """Execute and acknowledge orders until the client is gone."""
        self._desk = desk
        self._arrivals.unpark_all()
        try:
            while True:
                order = msgspec.json.decode(await desk.socket.get_message(), type=Order)
                self.executed[order.id] += 1
                await desk.tell(Ack(order))
        except ConnectionClosed:
            pass
        finally:
            if self._desk is desk:
                self._desk = None

    # ----------------------------------------------------------------- what goes wrong

    async def _misbehave(self) -> None:
        await self._opened.wait()
        opened = trio.current_time()
        for due, fault in self.faults:
            await trio.sleep_until(opened + due)
            desk = await self._wait_calm()
            self.strikes.append(Strike(fault, trio.current_time()))
            self._desk = None
            match fault:
                case Fault.RESTART:
                    with trio.move_on_after(PATIENCE):
                        await desk.socket.aclose(1012, "service restart")
                case Fault.MUTE:
                    desk.line.mute()
                case Fault.RESET:
                    await desk.line.reset()
                case Fault.DROP | Fault.REFUSE:
                    self._refuse_next = fault is Fault.REFUSE
                    await desk.line.drop()
        await self._wait_calm()
        self.played.set()

    async def _wait_calm(self) -> Desk:
        """Wait until one client has been connected for a while."""
        while True:
            while (desk := self._desk) is None:
                await self._arrivals.park()
            await trio.sleep_until(desk.since + CALM)
            if desk is self._desk:
                return desk
