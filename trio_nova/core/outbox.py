"""What waits to be written, in which order, and what became of it.

Three lanes: *control* always goes first, *setup* goes before a link is ready, *application* only when it is
ready: by priority, then first in, first out. The first two belong to one link, and go with it. Nothing is
written twice: what was being written when a link was lost has an unknown outcome, and is not repeated.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Literal, TypeAlias

import attrs

from trio_nova.core._checks import number
from trio_nova.errors import Expired, NotSent, NovaError, OutcomeUnknown
from trio_nova.messages import Decision, Frame, Queue, Reject, frame_size

__all__ = [
    "Admit",
    "Backlog",
    "Buffer",
    "Idle",
    "Lane",
    "LaneQueue",
    "Outbox",
    "Outgoing",
    "Purpose",
    "Status",
    "WaitUntil",
    "Write",
]

MAX_BATCH_BYTES = 65536
"""Bytes handed to a link in one write; what is in a batch when its link is lost has an unknown outcome."""
MAX_BATCH_FRAMES = 256


class Lane(enum.IntEnum):
    """Classes of traffic, the most urgent first."""

    CONTROL = 0
    SETUP = 1
    APPLICATION = 2


Purpose: TypeAlias = Literal["control", "auth", "subscription", "setup", "query", "message"]
"""What a message is sent for: a rate limiter may price it by that."""


class Status(enum.Enum):
    """How far a message has got."""

    QUEUED = "queued"
    WRITING = "writing"
    SETTLED = "settled"


@attrs.frozen(kw_only=True)
class Buffer:
    """A policy for `when_down`: sends may wait for the next ready link, within these bounds.

    Beyond `max_items` or `max_bytes` a send raises NotSent at once; after `ttl` it raises Expired.
    """

    max_items: float = attrs.field(default=1000, validator=number(above=0.0, finite=False))
    max_bytes: float = attrs.field(default=16 * 1024 * 1024, validator=number(above=0.0, finite=False))
    ttl: float = attrs.field(default=math.inf, validator=number(above=0.0, finite=False))
    """Seconds."""


@attrs.define(eq=False, kw_only=True)
class Outgoing:
    """One frame on its way out."""

    frame: Frame = attrs.field(repr=False)
    lane: Lane
    size: int
    queued_at: float
    expires_at: float = math.inf
    priority: int = 0
    """Lower goes first, within its lane."""
    kind: str = ""
    """What a rate limiter prices it by: the message's type."""
    purpose: Purpose = "message"
    epoch: int = 0
    """The link that it is for; 0: whichever is ready."""
    patient: bool = False
    """Whether it was accepted to wait for a link: then it may also wait for the rate limiter, however many do."""
    message: Any = attrs.field(default=None, repr=False)
    """What the frame is made of."""
    make: Callable[[Any, Any], Sequence[Frame]] | None = attrs.field(default=None, repr=False)
    """Makes the frames, of the message and for the link that is about to write it; None: they are made."""
    rest: Sequence[Frame] = attrs.field(default=(), init=False, repr=False)
    """The frames that follow the first, where one is not enough for the message."""
    when_settled: Callable[[Outgoing, NovaError | None], None] | None = attrs.field(default=None, repr=False)
    """Told once what became of it: None for written, else why it was not, or is not known to be."""
    status: Status = attrs.field(default=Status.QUEUED, init=False)
    _queue: LaneQueue | None = attrs.field(default=None, init=False, repr=False)
    """Where it waits."""

    def on_settled(self, tell: Callable[[Outgoing, NovaError | None], None] | None) -> None:
        """Tell what becomes of it to `tell`, in place of whoever was to be told."""
        self.when_settled = tell

    def keep(self, message: Any, size: int) -> None:
        """Be made of this message, of about this size, when it leaves."""
        self.message, self.size = message, size

    def wait_for_link(self, expires_at: float) -> None:
        """Be accepted to wait for a link, until then."""
        self.patient, self.expires_at = True, expires_at

    def expire_by(self, at: float) -> bool:
        """Expire at `at`; False where that was to be earlier."""
        if self.expires_at <= at:
            return False
        self.expires_at = at
        return True

    def wait_in(self, queue: LaneQueue) -> None:
        """Wait to be written."""
        self._queue = queue
        queue.add(self)

    def begin(self) -> None:
        """Be written from now on."""
        self._leave_queue()
        self.status = Status.WRITING

    def prepare(self, link: Any) -> None:
        """Make the frames that leave on `link`; raises NovaError where there are none."""
        if self.make is not None:
            self.frame, *self.rest = self.make(self.message, link)
            self.size, self.make, self.message = sum(map(frame_size, (self.frame, *self.rest))), None, None

    def withdraw(self) -> bool:
        """Take it back, and tell nobody of it any more; False where it is too late: it is being written, or settled."""
        self.when_settled = None
        if self.status is not Status.QUEUED:
            return False
        self._leave_queue()
        self.status, self.make = Status.SETTLED, None
        return True

    def settle(self, error: NovaError | None = None) -> None:
        """Record the outcome, once, and tell whoever waits for it."""
        if self.status is not Status.SETTLED:
            self._leave_queue()
            self.status, self.make = Status.SETTLED, None
            told, self.when_settled = self.when_settled, None
            if told is not None:
                told(self, error)

    def _leave_queue(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.remove(self)


Admit = Callable[[Outgoing], Decision]
"""Asks the rate limiter; an `Allow` has spent the tokens."""


@attrs.frozen
class Write:
    """Hand these to the link, then call `Outbox.written`."""

    batch: list[Outgoing]


@attrs.frozen
class WaitUntil:
    """Nothing may be written before `until`: the rate limiter says so, or a message expires then."""

    until: float


@attrs.frozen
class Idle:
    """There is nothing to write."""


@attrs.define(eq=False)
class LaneQueue:
    """One lane: by priority, then in the order of arrival. Removing from the middle is cheap."""

    by_priority: dict[int, OrderedDict[Outgoing, None]] = attrs.field(factory=dict, init=False)
    length: int = attrs.field(default=0, init=False)
    size: int = attrs.field(default=0, init=False)
    impatient: int = attrs.field(default=0, init=False)
    """How many of them may be shed."""
    held_since: float | None = attrs.field(default=None, init=False)
    """Since when the rate limiter has kept it from running empty."""

    def add(self, outgoing: Outgoing) -> None:
        queue = self.by_priority.get(outgoing.priority)
        if queue is None:
            queue = self.by_priority[outgoing.priority] = OrderedDict()
            self.by_priority = dict(sorted(self.by_priority.items()))
        queue[outgoing] = None
        self.length += 1
        self.size += outgoing.size
        self.impatient += not outgoing.patient

    def first(self) -> Outgoing | None:
        for queue in self.by_priority.values():
            for outgoing in queue:
                return outgoing
        return None

    def remove(self, outgoing: Outgoing) -> None:
        queue = self.by_priority[outgoing.priority]
        del queue[outgoing]
        if not queue:  # else a program that counts its priorities up would leave one behind for each
            del self.by_priority[outgoing.priority]
        self.length -= 1
        self.size -= outgoing.size
        self.impatient -= not outgoing.patient

    def hold(self, now: float) -> None:
        """Note that the rate limiter holds it back."""
        if self.held_since is None:
            self.held_since = now

    def go(self) -> None:
        """Note that the rate limiter holds back nothing of it."""
        self.held_since = None

    def refuse(self, why: str, cause: Exception | None = None, *, epoch: int | None = None) -> None:
        """Settle as NotSent all that waits; with `epoch` only what is for that link."""
        for outgoing in self:
            # Whoever is told may withdraw others: what was waiting a moment ago need not wait any more.
            if outgoing.status is Status.QUEUED and epoch in (None, outgoing.epoch):
                outgoing.settle(_because(NotSent(why), cause))

    def __iter__(self) -> Iterator[Outgoing]:
        return iter([outgoing for queue in self.by_priority.values() for outgoing in queue])

    def __reversed__(self) -> Iterator[Outgoing]:
        """Go through all, the newest of the least urgent first; change nothing meanwhile."""
        return (outgoing for queue in reversed(self.by_priority.values()) for outgoing in reversed(queue))


@attrs.define(eq=False)
class Backlog(LaneQueue):
    """The messages of the application that wait for a link that is ready: they outlive any."""

    _expiries: list[tuple[float, int, Outgoing]] = attrs.field(factory=list, init=False)
    _serial: Iterator[int] = attrs.field(factory=count, init=False)

    def put(self, outgoing: Outgoing, within: Buffer | None = None) -> None:
        """Take a message in.

        Raises:
            NotSent: it would exceed the bounds of `within`.
        """
        if within is not None and (
            self.length >= within.max_items or (self.length and self.size + outgoing.size > within.max_bytes)
        ):
            raise NotSent(f"{self.length} messages of {self.size} bytes are waiting for a link already")
        outgoing.wait_in(self)

    def add(self, outgoing: Outgoing) -> None:
        super().add(outgoing)
        if outgoing.expires_at < math.inf:
            self._watch_expiry(outgoing)

    def shed(self, most: float, why: str) -> int:
        """Settle as NotSent what waits for the rate limiter beyond `most` messages; return how many that were.

        The newest of the least urgent go first; those that are `patient` neither go nor count.
        """
        if self.held_since is None or self.impatient <= most:
            return 0
        excess = self.impatient - int(most)
        shed = list(islice((outgoing for outgoing in reversed(self) if not outgoing.patient), excess))
        for outgoing in shed:
            if outgoing.status is Status.QUEUED:
                outgoing.settle(NotSent(why))
        return len(shed)

    def expire_by(self, ttl: float, now: float) -> None:
        """Let every message that waits, and has no earlier end, expire `ttl` seconds from `now`."""
        for outgoing in self:
            if outgoing.expire_by(now + ttl):
                self._watch_expiry(outgoing)

    def next_expiry(self) -> float:
        """Return when the next message expires; inf where none does."""
        return self._expiries[0][0] if self._expiries else math.inf

    def expire(self, now: float) -> None:
        """Settle what has waited too long."""
        while self._expiries and (self._expiries[0][0] <= now or self._expiries[0][2].status is not Status.QUEUED):
            outgoing = heapq.heappop(self._expiries)[2]
            if outgoing.status is Status.QUEUED:
                outgoing.settle(Expired(f"waited {now - outgoing.queued_at:g} s for a ready link"))

    def _watch_expiry(self, outgoing: Outgoing) -> None:
        if len(self._expiries) > 2 * self.length + 64:
            # Most were settled meanwhile: let go of them, they hold their frames.
            self._expiries = [entry for entry in self._expiries if entry[2].status is Status.QUEUED]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (outgoing.expires_at, next(self._serial), outgoing))


@attrs.define(eq=False)
class Outbox:
    """What one link is to write: its own frames, and in their turn those of the application."""

    backlog: Backlog = attrs.field(factory=Backlog)
    epoch: int = 0
    """The number of the link."""
    _lanes: tuple[LaneQueue, ...] = attrs.field(init=False)
    _writing: list[Outgoing] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._lanes = (LaneQueue(), LaneQueue(), self.backlog)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not self._writing and not any(lane.length for lane in self._lanes)

    def put(self, outgoing: Outgoing) -> None:
        """Take a message in."""
        outgoing.wait_in(self._lanes[outgoing.lane])

    def begin(self, outgoing: Outgoing) -> None:
        """Take a message in of which a part has left already: it is in the next `Write`, before all others."""
        outgoing.begin()
        self._writing.append(outgoing)

    def next_step(self, now: float, ready: bool, admit: Admit | None = None) -> Write | WaitUntil | Idle:
        """Say what to do at `now`, on a link that is up; settle what has expired or is rejected.

        Call it again only after `written` or `end`. What the rate limiter holds back holds back all
        that is less urgent: small messages would else take the tokens that a dear one waits for, for ever.
        """
        self.backlog.expire(now)
        size, until = 0, math.inf
        while (outgoing := self._first(ready)) is not None:
            if self._writing and (len(self._writing) >= MAX_BATCH_FRAMES or size + outgoing.size > MAX_BATCH_BYTES):
                break
            decision = admit(outgoing) if admit is not None else None
            if outgoing.status is not Status.QUEUED:
                continue  # the limiter is user code: it may have ended the session, and so cancelled this send
            match decision:
                case Queue(until):
                    self._hold(outgoing.lane, now, ready)
                    break
                case Reject(reason):
                    outgoing.settle(NotSent(f"refused by the rate limit: {reason}" if reason else "refused"))
                case _ if outgoing.epoch not in (0, self.epoch):
                    outgoing.settle(NotSent("another link has taken the place of the one it was for"))
                case _:
                    self.begin(outgoing)
                    size += outgoing.size
        else:
            for lane in self._lanes_of(ready):
                lane.go()
        if self._writing:
            return Write(self._writing)
        wake = min(until, self.backlog.next_expiry())
        return WaitUntil(wake) if wake < math.inf else Idle()

    def held_for(self, outgoing: Outgoing, now: float) -> float:
        """Return how long the rate limiter has made a message wait, itself or by what goes before it; in seconds."""
        since = self._lanes[outgoing.lane].held_since
        return 0.0 if since is None else now - max(since, outgoing.queued_at)

    def written(self) -> None:
        """Settle what was being written: the operating system has it."""
        batch, self._writing = self._writing, []
        for outgoing in batch:
            outgoing.settle()

    def end(self, cause: Exception | None) -> None:
        """Settle what belongs to the link, which is gone; application messages wait on."""
        batch, self._writing = self._writing, []
        for outgoing in batch:
            outgoing.settle(_because(OutcomeUnknown("the link was lost while it was being written"), cause))
        for lane in self._lanes[:-1]:
            lane.refuse("the link was lost before it was written", cause)

    def _first(self, ready: bool) -> Outgoing | None:
        for lane in self._lanes_of(ready):
            if lane.length:
                return lane.first()
        return None

    def _lanes_of(self, ready: bool) -> tuple[LaneQueue, ...]:
        """Return what the link may write of; until it is ready the backlog is another's to write, and to hold back."""
        return self._lanes if ready else self._lanes[:-1]

    def _hold(self, held: Lane, now: float, ready: bool) -> None:
        for each, lane in zip(Lane, self._lanes, strict=True):
            if each < held:
                lane.go()
            elif ready or each is not Lane.APPLICATION:
                lane.hold(now)


def _because(error: NovaError, cause: Exception | None) -> NovaError:
    error.__cause__ = cause
    return error
