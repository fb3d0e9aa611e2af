"""One link of a venue: what was asked on it, what was said, and the task that says it."""

from __future__ import annotations

import enum
import heapq
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_nova.messages import Frame
from trio_nova.testing._frames import ClosePayload
from trio_nova.testing._peer import Disconnected, Peer

__all__ = ["CUT", "Asked", "Cut", "Said", "VenueLink", "Verb", "as_json"]

PATIENCE = 5.0
"""Seconds for which a venue that hangs up waits for its client to read what was said before."""


class Cut(enum.Enum):
    """What may stand among messages without being one."""

    CUT = enum.auto()
    """Here the stream ends, without a goodbye; what was said before is written."""


CUT = Cut.CUT

Verb: TypeAlias = Literal["auth", "subscribe", "unsubscribe", "unsubscribe_all", "other", "junk"]
"""What a message wants, in whatever protocol; junk is what the protocol does not know."""


@attrs.frozen
class Asked:
    """One message of the client."""

    at: float
    """Trio's clock, seconds, when the venue read it."""
    verb: Verb
    message: Any
    """Decoded from JSON; the payload where it is none."""
    method: str = ""
    """Its name in the protocol."""
    id: Any = None
    channels: tuple[str, ...] = ()
    """What it subscribes to, or unsubscribes from, in its order."""
    private: bool = False
    """Whether it needs authentication."""


@attrs.frozen
class Said:
    """One message of the venue."""

    at: float
    """Trio's clock, seconds, when it was due."""
    message: Any
    """As it was before it became JSON."""
    heard: int
    """How many messages of the client had been read by then."""


def as_json(message: Any) -> Sequence[str | bytes]:
    """Return the frame of a message: a `str` as it is, all else as JSON."""
    return (message if isinstance(message, str) else json.dumps(message, separators=(",", ":")),)


@attrs.define(eq=False)
class VenueLink:
    """A link as the venue sees it; its public fields are the books."""

    number: int
    """From 1."""
    peer: Peer = attrs.field(repr=False)
    max_backlog: int = attrs.field(default=20_000, repr=False)
    """Messages that may wait for a client that does not read; one more and the link is dropped, as venues do."""
    encode: Callable[[Any], Sequence[str | bytes]] = attrs.field(default=as_json, repr=False)
    """Makes the frames of a message, in the order in which they are said."""
    journal: list[Asked] = attrs.field(factory=list, repr=False)
    """Everything the client asked, in order."""
    said: list[Said] = attrs.field(factory=list, repr=False)
    """Everything the venue said, in order, whether or not the client lived to read it."""
    subscriptions: dict[str, None] = attrs.field(factory=dict)
    """The channels granted and not given up, in the order in which they were granted."""
    live: bool = True
    muted: bool = attrs.field(default=False, init=False)
    """Whether requests are executed, and nothing said, not even a pong or a goodbye: see `mute`."""
    why: str = ""
    """Why the venue ended the link; empty where it did not."""
    _fate: Literal["", "close", "drop", "reset"] = ""
    _goodbye: ClosePayload = attrs.field(factory=ClosePayload)
    _backlog: list[str | bytes] = attrs.field(factory=list, repr=False)
    _later: list[tuple[float, int, Any]] = attrs.field(factory=list, repr=False)
    """A heap of what is due in the future; the number in the middle keeps the order of what is due together."""
    _serial: itertools.count[int] = attrs.field(factory=itertools.count, repr=False)
    _writing: bool = False
    _cut: bool = False
    """`CUT` was due: nothing more is queued, and the link is dropped once all is written."""
    _client_is_leaving: bool = False
    """The client has said goodbye: what it would be told after what was taken back would come behind a hole."""
    _work: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _idle: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _reading: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)
    _all: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)

    # ------------------------------------------------------------------- saying

    def say(self, message: Any, delay: float = 0.0) -> None:
        """Queue a message: a `str` as it is, `CUT` as the end of the stream, all else as JSON.

        Args:
            message: NaN becomes `NaN`, which is no JSON, and that is the point.
            delay: seconds from now.
        """
        if delay > 0.0:
            heapq.heappush(self._later, (trio.current_time() + delay, next(self._serial), message))
        else:
            self._enqueue(trio.current_time(), message)
        self._work.unpark_all()

    async def flush(self) -> None:
        """Wait until all that is due has been written, or the link is over."""
        await trio.lowlevel.checkpoint()
        while self.live and (self._backlog or self._writing):
            await self._idle.park()

    # ------------------------------------------------------------------- misbehaving

    def mute(self, muted: bool = True) -> None:
        """Read and execute from now on, and say no more than was said before; what would have been said is lost."""
        self.muted = muted
        self.peer.answer_pings = not muted

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say what is due, then goodbye."""
        self._end("close", f"closed with {code}")
        self._goodbye = ClosePayload(code, reason)
        self._reading.cancel(reason="the venue closes the link")

    def drop(self, why: str = "dropped") -> None:
        """End the stream without a goodbye; what is still queued is lost."""
        self._end("drop", why)
        self._all.cancel(reason="the venue drops the link")

    def reset(self) -> None:
        """Break the stream."""
        self._end("reset", "reset")
        self._all.cancel(reason="the venue resets the link")

    def _end(self, fate: Literal["close", "drop", "reset"], why: str) -> None:
        self.why = self.why or why
        self._fate = fate

    # ------------------------------------------------------------------- the tasks

    async def run(self, take: Callable[[Frame], None], watch: Callable[[], Any]) -> None:
        """Serve the link until it is over, and end it as it shall end.

        Args:
            take: what to do with a message; must not block.
            watch: an async function that runs beside, until the link is over.
        """
        try:
            with self._all:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, name=f"venue:writer#{self.number}")
                    nursery.start_soon(watch, name=f"venue:watch#{self.number}")
                    with self._reading:
                        await self._read(take)
                    with trio.move_on_after(PATIENCE) as patience:
                        await self.flush()
                    if patience.cancelled_caught:  # a frame is half written: a goodbye would be read as a part of it
                        self._end("drop", "the client does not read")
                    nursery.cancel_scope.cancel(reason="the link is over")
        finally:
            self.live = False
            self._idle.unpark_all()
        match self._fate:
            case "close":
                await self.peer.close(self._goodbye.code, self._goodbye.reason)
            case "drop":
                await self.peer.drop()
            case "reset":
                await self.peer.reset()
            case "":
                await self.peer.finish()

    async def _read(self, take: Callable[[Frame], None]) -> None:
        """Take messages until the client says goodbye or is gone."""
        try:
            while True:
                frame = await self.peer.receive()
                if isinstance(frame, str | bytes):
                    take(frame)
                elif isinstance(frame, ClosePayload) and not self.muted:
                    self._backlog.clear()  # nobody reads it any more
                    self._client_is_leaving = True
                    return
        except Disconnected:
            self._all.cancel(reason="the client is gone")

    async def _write(self) -> None:
        """Write what is due, many messages at once."""
        while True:
            while self._later and self._later[0][0] <= trio.current_time():
                due, _, message = heapq.heappop(self._later)
                self._enqueue(due, message)
            if not self._backlog:
                if self._cut:
                    self.drop("cut")
                self._idle.unpark_all()
                with trio.move_on_at(self._later[0][0] if self._later else float("inf")):
                    await self._work.park()
                continue
            frames, self._backlog = self._backlog, []
            await self._send(frames)

    async def _send(self, frames: list[str | bytes]) -> None:
        self._writing = True
        try:
            await self.peer.send(*frames)
        except Disconnected:
            self._all.cancel(reason="the client is gone")
        finally:
            self._writing = False

    def _enqueue(self, at: float, message: Any) -> None:
        if not self.live or self._cut or self._client_is_leaving:
            return
        if message is CUT:
            self._cut = True
            return
        self.said.append(Said(at, message, len(self.journal)))
        if self.muted:
            return
        self._backlog.extend(self.encode(message))
        if len(self._backlog) > self.max_backlog:
            self.drop("the client does not read")
