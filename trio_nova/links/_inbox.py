"""What has arrived on a link and was not taken yet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence

import attrs
import trio

from trio_nova.messages import Frame, Ping, Pong, frame_size

__all__ = ["Inbox"]

BATCH = 256
"""Frames handed out at a time, and frames that may wait before reading stops."""
WAITING_SIZE = 262144
"""Bytes of payload that may wait before reading stops, however few the frames: one message may exceed it."""


@attrs.define(eq=False)
class Inbox:
    """A bounded queue of frames that hands out what arrived together in one batch.

    Two sources fill it: the scanner of frames, which announces messages and passes pings and pongs, and
    whoever assembles messages, later. A control frame waits here for the messages that came before it.
    """

    over: bool = attrs.field(default=False, init=False)
    """Nothing more will come."""
    _ready: deque[Frame] = attrs.field(factory=deque, init=False)
    _size: int = attrs.field(default=0, init=False)
    _controls: deque[tuple[int, Ping | Pong]] = attrs.field(factory=deque, init=False)
    """Each with the number of messages that go before it."""
    _put: int = attrs.field(default=0, init=False)
    _announced: int = attrs.field(default=0, init=False)
    _life: bool = attrs.field(default=False, init=False)
    """Bytes have arrived since the last batch."""
    _heard_at: float = attrs.field(default=-math.inf, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    _takers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _fillers: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)

    @property
    def heard_at(self) -> float:
        """Trio's time when bytes last arrived; now, while messages are still made of them, as none are read then."""
        return trio.current_time() if self._put < self._announced else self._heard_at

    def announce(self, messages: int, controls: Iterable[tuple[int, Ping | Pong]] = ()) -> None:
        """Note that bytes arrived: `messages` in all will have been put, with `controls` between them."""
        self._life = True
        self._heard_at = trio.current_time()
        self._announced = messages
        self._controls.extend(controls)
        self._line_up()

    def put(self, message: str | bytes) -> None:
        """Add a whole message. While the link is being closed and nobody takes, it is dropped instead."""
        self._put += 1
        if not (self._closing and self._full):
            self._ready.append(message)
            self._size += frame_size(message)
        self._line_up()

    def add_control(self, frame: Ping | Pong) -> None:
        """Add a control frame whose place among the messages is not known."""
        self._controls.append((0, frame))
        self._line_up()

    async def wait_room(self) -> None:
        """Wait until more may be read. Cancelling this changes nothing."""
        while self._full and not self._closing:
            await self._fillers.park()

    async def take(self) -> Sequence[Frame]:
        """Wait for bytes and return the frames that are complete, at most 256; see `over` for the end.

        Cancelling this loses nothing.
        """
        await trio.lowlevel.checkpoint()
        while not self._due:
            await self._takers.park()
        self._life = False
        batch = [self._ready.popleft() for _ in range(min(BATCH, len(self._ready)))]
        self._size -= sum(map(frame_size, batch))
        if not self._full:
            self._fillers.unpark_all()
        return batch

    def let_go(self) -> None:
        """Stop holding the reader back: the link is being closed, and its goodbye is what matters."""
        self._closing = True
        self._fillers.unpark_all()

    def finish(self) -> None:
        """Nothing more will come: wake whoever waits."""
        self.over = True
        self.let_go()
        self._takers.unpark_all()

    @property
    def _full(self) -> bool:
        return len(self._ready) >= BATCH or self._size >= WAITING_SIZE

    @property
    def _due(self) -> bool:
        """Whether a batch is complete: all that arrived together was put, or no more fits, or no more comes."""
        arrived = self._life or bool(self._ready)
        return self.over or self._full or (arrived and self._put >= self._announced)

    def _line_up(self) -> None:
        while self._controls and self._controls[0][0] <= self._put:
            _, frame = self._controls.popleft()
            if not (self._closing and self._full):
                self._ready.append(frame)
                self._size += frame_size(frame)
        if self._due:
            self._takers.unpark_all()
