"""A network of byte streams in virtual time: latency, bandwidth, slices, and every way in which TCP fails.

::

    SimNet
    ├─ Host            a name, who serves it, what becomes of dials, and the weather on the way there and back
    └─ SimLink         one connection: two `Way`s, with a `SimStream` at each end
       ├─ c2s          from the client to the server
       └─ s2c          and back

All that is under way sits in one heap, and one task delivers it: what is due together arrives in the
order in which it was sent, whatever else the run does. Nothing here knows of WebSocket.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import operator
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NoReturn, TypeAlias

import attrs
import trio

from trio_nova.errors import ConnectFailed, RetryAdvice, TlsFailed
from trio_nova.testing._memory import ResettableStream
from trio_nova.testing.sim._journal import Journal

__all__ = [
    "DialFate",
    "DirectSimStream",
    "Direction",
    "End",
    "Host",
    "SimLink",
    "SimNet",
    "SimStream",
    "Way",
    "Weather",
]

Direction: TypeAlias = Literal["c2s", "s2c"]
End: TypeAlias = Literal["client", "server"]

DialFate: TypeAlias = Literal[
    "ok",
    "dns failure",
    "dns silence",
    "refused",
    "silence",
    "tls failure",
    "tls silence",
    "certificate refused",
    "accepted, then fin",
    "accepted, then rst",
]
"""What becomes of a dial. Silence lasts until the caller gives up."""

SEGMENT = 1460
"""Bytes that travel together where bandwidth is scarce."""


@attrs.define
class Weather:
    """What the way to a host, or from it, is like; all its links share it."""

    latency: float = 0.01
    """Seconds that a byte is under way."""
    jitter: float = 0.0
    """Seconds that may be added to it, at random; nothing overtakes."""
    bandwidth: float = math.inf
    """Bytes per second of each link."""
    slice_size: int = 65_536
    """Bytes that one read returns at most."""
    window: int = 65_536
    """Bytes of a link that may be under way or unread; a sender waits for room beyond them. 0: none is taken."""
    held: bool = False
    """Whether nothing arrives: it is under way until this ends, as a lost segment is sent again and again."""


_Fin = b""
"""What stands in a way's queue for the end of the stream."""


@attrs.define(eq=False)
class Way:
    """One direction of a link."""

    net: SimNet = attrs.field(repr=False)
    link: int
    direction: Direction
    weather: Weather
    held: bool = False
    """As `Weather.held`, of this way alone."""
    under_way: deque[bytes] = attrs.field(factory=deque, repr=False)
    arrived: bytearray = attrs.field(factory=bytearray, repr=False)
    size: int = 0
    """Bytes under way, or arrived and unread."""
    sent: int = 0
    """Bytes taken from the sender, in all."""
    cut_at: float = math.inf
    """After so many bytes in all the link is reset: in the middle of a frame, say."""
    ended: bool = False
    """The sender sends no more."""
    eof: bool = False
    """And the receiver knows."""
    refused: bool = False
    """The receiver takes no more: what arrives is answered by a reset."""
    on_refusal: Callable[[], None] = attrs.field(default=lambda: None, repr=False)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, repr=False)
    _free_at: float = 0.0
    """When the last byte has left, where bandwidth is scarce."""
    last_arrival: float = 0.0
    """When the last segment sent so far arrives, if nothing holds it."""
    _overdue: int = 0
    """Segments that would have arrived, had the way not been held."""
    _plan: int = 0
    """Which plan of arrivals is in force; those of an earlier one come to nothing."""

    @property
    def room(self) -> int:
        return max(0, self.weather.window - self.size)

    def put(self, data: bytes) -> None:
        """Send bytes for which there is room."""
        self.size += len(data)
        self.sent += len(data)
        step = SEGMENT if self.weather.bandwidth < math.inf else max(1, len(data))
        for start in range(0, len(data), step):
            self._dispatch(data[start : start + step])

    def end(self) -> None:
        """Send the end of the stream, behind what is under way."""
        if not self.ended:
            self.ended = True
            self._dispatch(_Fin)
            self.changed.unpark_all()

    def release(self) -> None:
        """Let what is overdue arrive, as far as nothing holds it any more."""
        if self._is_held:
            return
        overdue, self._overdue = self._overdue, 0
        for _ in range(overdue):
            self._schedule(trio.current_time() + self._delay())

    def widen(self) -> None:
        """Let what is under way arrive as the bandwidth now allows, no longer as it did when it was sent."""
        self._plan += 1
        self._free_at = self.last_arrival = trio.current_time()
        self._overdue = 0
        for segment in self.under_way:
            self._plan_arrival(segment)

    def lose(self) -> None:
        """Lose what is under way; what has arrived can be read."""
        self.under_way.clear()
        self.size = len(self.arrived)
        self.changed.unpark_all()

    def take(self, limit: int) -> bytes:
        """Return bytes that have arrived."""
        size = min(limit, self.weather.slice_size)
        taken = bytes(self.arrived[:size])
        del self.arrived[:size]
        self.size -= len(taken)
        self.changed.unpark_all()
        return taken

    @property
    def _is_held(self) -> bool:
        return self.held or self.weather.held

    def _delay(self) -> float:
        weather = self.weather
        return weather.latency + (weather.jitter * self.net.rng.random() if weather.jitter else 0.0)

    def _dispatch(self, segment: bytes) -> None:
        self.under_way.append(segment)
        self._plan_arrival(segment)

    def _plan_arrival(self, segment: bytes) -> None:
        self._free_at = max(trio.current_time(), self._free_at) + len(segment) / self.weather.bandwidth
        self._schedule(self._free_at + self._delay())

    def _schedule(self, at: float) -> None:
        self.last_arrival = max(at, self.last_arrival)
        self.net.call_at(self.last_arrival, partial(self._arrive, self._plan))

    def _arrive(self, plan: int) -> None:
        if plan != self._plan or not self.under_way:
            return  # it has arrived by another plan, or was lost
        if self._is_held:
            self._overdue += 1
            return
        segment = self.under_way.popleft()
        if segment == _Fin:
            self.eof = True
        elif self.refused:
            self.size -= len(segment)
            self.on_refusal()
        else:
            self.arrived += segment
        self.changed.unpark_all()


@attrs.define(eq=False)
class SimStream(ResettableStream):
    """One end of a simulated connection.

    Cancelling `send_all` may leave a part of the data on its way, as on a socket. Cancelling
    `receive_some` loses nothing.
    """

    link: SimLink = attrs.field(repr=False)
    end: End
    incoming: Way = attrs.field(repr=False)
    outgoing: Way = attrs.field(repr=False)
    closed: bool = False
    broken: bool = False
    _sending: bool = False
    _receiving: bool = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Put `data` on its way, waiting for room as often as needed."""
        if self._sending:
            raise trio.BusyResourceError("another task is already sending")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            since, rest = trio.current_time(), bytes(data)
            while rest:
                if room := self.outgoing.room:
                    taken, rest = rest[:room], rest[room:]
                    self.link.write(self, taken, since)
                else:
                    await self.outgoing.changed.park()
                if rest:
                    self._check_sendable()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room, or nobody left to wait for."""
        if self._sending:
            raise trio.BusyResourceError("another task is already sending")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            while not (self.closed or self.broken or self.outgoing.ended or self.outgoing.room):
                await self.outgoing.changed.park()
            if self.closed or self.outgoing.ended:
                raise trio.ClosedResourceError
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return at most `max_bytes` of them; b"" once the other end sends no more."""
        limit = 65_536 if max_bytes is None else operator.index(max_bytes)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self.closed:
                    raise trio.ClosedResourceError
                if self.incoming.arrived:
                    taken = self.incoming.take(limit)
                    self.link.note("net.read", end=self.end, size=len(taken))
                    return taken
                if self.broken:
                    raise trio.BrokenResourceError("connection reset")
                if self.incoming.eof:
                    self.link.note("net.eof", end=self.end)
                    return b""
                await self.incoming.changed.park()
        finally:
            self._receiving = False

    async def send_eof(self) -> None:
        """End the outgoing direction, after what is under way."""
        await trio.lowlevel.checkpoint()
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        if self.closed:
            raise trio.ClosedResourceError
        if self.broken:
            raise trio.BrokenResourceError("connection reset")
        self.outgoing.end()

    async def aclose(self) -> None:
        """Close both directions; what is under way to the other end still arrives there."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Do what `aclose` does, from code that cannot wait."""
        if self.closed:
            return
        self.closed = True
        self.link.note("net.close", end=self.end)
        self.outgoing.end()
        self.incoming.refused = True
        self.incoming.size -= len(self.incoming.arrived)
        self.incoming.arrived.clear()
        self.incoming.changed.unpark_all()
        self.outgoing.changed.unpark_all()
        self.link.settle()

    def reset(self) -> None:
        """Break the connection at both ends; what is under way is lost."""
        self.link.reset()
        self.close()

    def break_off(self) -> None:
        """Let this end find the connection reset, after what has arrived; the other end may know nothing of it."""
        if not (self.broken or self.closed):
            self.broken = True
            self.link.note("net.broken", end=self.end)
            self.outgoing.lose()
            self.incoming.lose()
            self.incoming.refused = True

    def _check_sendable(self) -> None:
        if self.closed or self.outgoing.ended:
            raise trio.ClosedResourceError
        if self.broken:
            raise trio.BrokenResourceError("connection reset")


class DirectSimStream(SimStream):
    """One that also takes bytes without waiting, as a socket does over which no TLS is spoken."""

    def send_some_nowait(self, data: bytes) -> int:
        """Put on its way what there is room for, and return how many bytes; 0 where `send_all` would raise."""
        if self._sending or self.closed or self.broken or self.outgoing.ended:
            return 0
        if taken := data[: self.outgoing.room]:
            self.link.write(self, taken, trio.current_time())
        if 0 < len(taken) < len(data):
            self.link.note("net.part", end=self.end, taken=len(taken), left=len(data) - len(taken))
        return len(taken)


@attrs.define(eq=False)
class SimLink:
    """One connection."""

    net: SimNet = attrs.field(repr=False)
    number: int
    owner: str
    """Who dialled, for the journal."""
    host: str
    c2s: Way = attrs.field(repr=False)
    s2c: Way = attrs.field(repr=False)
    client: SimStream = attrs.field(init=False, repr=False)
    server: SimStream = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        kind = DirectSimStream if self.net.direct else SimStream
        self.client = kind(self, "client", incoming=self.s2c, outgoing=self.c2s)
        self.server = SimStream(self, "server", incoming=self.c2s, outgoing=self.s2c)
        self.c2s.on_refusal = lambda: self._answer_by_reset(self.client)
        self.s2c.on_refusal = lambda: self._answer_by_reset(self.server)

    @property
    def ways(self) -> tuple[Way, Way]:
        return self.c2s, self.s2c

    def note(self, what: str, **fields: object) -> None:
        self.net.journal.add(what, link=self.number, **fields)

    def write(self, end: SimStream, data: bytes, since: float) -> None:
        """Take bytes from an end, and cut the link where that is due."""
        way = end.outgoing
        self.note("net.write", end=end.end, since=since, data=data)
        if way.sent + len(data) < way.cut_at:
            way.put(data)
            return
        # The operating system takes all of it, and the network loses the rest: a frame is torn.
        way.put(data[: max(0, int(way.cut_at) - way.sent)])
        way.cut_at = math.inf
        self.net.call_at(way.last_arrival, self.reset)

    def reset(self) -> None:
        """Break the connection at both ends."""
        self.client.break_off()
        self.server.break_off()
        self.settle()

    def end_way(self, direction: Direction) -> None:
        """End one direction, as the sender's FIN would."""
        way = self.c2s if direction == "c2s" else self.s2c
        self.note("net.fin", way=direction)
        way.end()

    def settle(self) -> None:
        """Let the net forget the link once both ends have closed it."""
        if self.client.closed and self.server.closed:
            self.net.links.pop(self.number, None)

    def _answer_by_reset(self, sender: SimStream) -> None:
        way = self.s2c if sender is self.client else self.c2s
        self.net.call_at(trio.current_time() + way.weather.latency, sender.break_off)


@attrs.define(eq=False)
class Host:
    """What answers under a name."""

    name: str
    serve: Callable[[SimStream, str, int], object] = attrs.field(repr=False)
    """Takes the server's end of a new link; must not block."""
    c2s: Weather = attrs.field(factory=Weather)
    s2c: Weather = attrs.field(factory=Weather)
    fate: DialFate = "ok"
    """Of dials, until it changes."""
    next_fates: deque[DialFate] = attrs.field(factory=deque)
    """Of the next dials, before that."""


@attrs.define(eq=False)
class _Clockwork:
    """What is due when; the number in the middle keeps the order of what is due together."""

    heap: list[tuple[float, int, Callable[[], object]]] = attrs.field(factory=list)
    serial: Iterator[int] = attrs.field(factory=itertools.count)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


@attrs.define(eq=False)
class SimNet:
    """All hosts, all links, and the one task that delivers."""

    journal: Journal = attrs.field(repr=False)
    rng: random.Random = attrs.field(repr=False)
    hosts: dict[str, Host] = attrs.field(factory=dict, init=False)
    links: dict[int, SimLink] = attrs.field(factory=dict, init=False)
    """Those that are not closed at both ends, by number, oldest first."""
    opened: int = attrs.field(default=0, init=False)
    dials: int = attrs.field(default=0, init=False)
    direct: bool = False
    """Whether clients may write without waiting, as they do to a socket."""
    max_dials: int = 2_000
    """How many are too many: an endless retry would make virtual time run for ever."""
    _clockwork: _Clockwork = attrs.field(factory=_Clockwork, init=False, repr=False)

    # ------------------------------------------------------------------- hosts

    def listen(self, name: str, serve: Callable[[SimStream, str, int], object]) -> Host:
        """Let `serve` take the links to a host of this name."""
        host = self.hosts[name] = Host(name, serve)
        return host

    def links_of(self, host: str) -> list[SimLink]:
        """Return the links to a host that are not over, oldest first."""
        return [link for link in self.links.values() if link.host == host]

    # ------------------------------------------------------------------- the client's side

    async def resolve(self, host: str) -> Sequence[str]:
        """Look a name up: the `Resolver` of a simulated session.

        Raises:
            ConnectFailed: there is no such host, or the present weather says so.
        """
        if host not in self.hosts:
            await trio.lowlevel.checkpoint()
            raise ConnectFailed(f"{host} has no address", phase="dns")
        return await self._resolve(self.hosts[host], self.hosts[host].fate)

    async def stream_factory(self, host: str, port: int, *, owner: str = "") -> SimStream:
        """Dial a host: the `stream_factory` of a simulated session.

        `owner` says who dials, for the journal.

        Raises:
            OSError: nobody listens there.
            ConnectFailed: the name has no address, or the TLS handshake was cut off.
            TlsFailed: the certificate is not to be trusted.
        """
        self.dials += 1
        number = self.dials
        self.journal.add("net.dial", dial=number, owner=owner, host=host, port=port)
        if self.dials > self.max_dials:
            await trio.sleep_forever()
        found = self.hosts.get(host)
        if found is None:
            await trio.lowlevel.checkpoint()
            raise ConnectFailed(f"{host} has no address", phase="dns")
        fate = found.next_fates.popleft() if found.next_fates else found.fate
        await self._resolve(found, fate)
        await self.pause(found.c2s.latency)
        if fate == "silence" or found.c2s.held or found.s2c.held:
            await trio.sleep_forever()
        await self.pause(found.s2c.latency)
        if fate == "refused":
            raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        if fate == "tls failure":
            raise ConnectFailed(f"{host} broke off the TLS handshake", phase="tls", retry=RetryAdvice.BACKOFF)
        if fate == "certificate refused":
            raise TlsFailed(f"the certificate of {host} is refused", reason="untrusted")
        if fate == "tls silence":
            await trio.sleep_forever()
        link = self._open(found, number, owner)
        match fate:
            case "accepted, then fin":
                link.server.close()
            case "accepted, then rst":
                link.reset()
                link.server.close()
            case _:
                found.serve(link.server, host, port)
        return link.client

    async def _resolve(self, host: Host, fate: DialFate) -> Sequence[str]:
        await self.pause(host.c2s.latency)
        if fate == "dns failure":
            raise ConnectFailed(f"cannot look up {host.name}", phase="dns")
        if fate == "dns silence":
            await trio.sleep_forever()
        return ("192.0.2.1",)

    def _open(self, host: Host, dial: int, owner: str) -> SimLink:
        self.opened += 1
        there, back = Way(self, self.opened, "c2s", host.c2s), Way(self, self.opened, "s2c", host.s2c)
        link = self.links[self.opened] = SimLink(self, self.opened, owner, host.name, there, back)
        link.note("net.open", dial=dial, owner=owner, host=host.name)
        return link

    # ------------------------------------------------------------------- time

    def call_at(self, at: float, what: Callable[[], object]) -> None:
        """Call a plain function at a time, in the net's own task."""
        clockwork = self._clockwork
        if not clockwork.heap or at < clockwork.heap[0][0]:
            clockwork.changed.unpark_all()
        heapq.heappush(clockwork.heap, (at, next(clockwork.serial), what))

    async def pause(self, seconds: float) -> None:
        """Sleep by the net's own clock."""
        over = trio.Event()
        self.call_at(trio.current_time() + seconds, over.set)
        await over.wait()

    async def run(self) -> NoReturn:
        """Deliver what is due, for ever."""
        clockwork = self._clockwork
        while True:
            now = trio.current_time()
            while clockwork.heap and clockwork.heap[0][0] <= now:
                heapq.heappop(clockwork.heap)[2]()
            with trio.move_on_at(clockwork.heap[0][0] if clockwork.heap else math.inf):
                await clockwork.changed.park()
