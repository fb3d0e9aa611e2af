"""What waits to be written, in which order, and what became of it.

Three lanes: *control* always goes first, *setup* belongs to one link and goes before it is ready,
*application* goes only when it is ready: by priority, then first in, first out. Nothing is written
twice: what was being written when a link was lost has an unknown outcome, and is not repeated.
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Literal, TypeAlias

import attrs

from trio_nova.core._checks import number
from trio_nova.errors import Expired, NotSent, NovaError, OutcomeUnknown
from trio_nova.messages import Decision, Frame, Queue, Reject

__all__ = ["Admit", "Buffer", "Idle", "Lane", "Outbox", "Outgoing", "Purpose", "Status", "WaitUntil", "Write"]

MAX_BATCH_BYTES = 65536
"""Bytes handed to a link in one write; what is in a batch when its link is lost has an unknown outcome."""
MAX_BATCH_FRAMES = 256


class Lane(enum.IntEnum):
    """Classes of traffic, the most urgent first."""

    CONTROL = 0
    SETUP = 1
    APPLICATION = 2


_LANES = tuple(Lane)

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
    patient: bool = False
    """Whether it was accepted to wait for a link: then it may also wait for the rate limiter, however many do."""
    when_settled: Callable[[Outgoing, NovaError | None], None] | None = attrs.field(default=None, repr=False)
    """Told once what became of it: None for written, else why it was not, or is not known to be."""
    status: Status = attrs.field(default=Status.QUEUED, init=False)

    def settle(self, error: NovaError | None = None) -> None:
        """Record the outcome, once, and tell whoever waits for it."""
        if self.status is not Status.SETTLED:
            self.status = Status.SETTLED
            if self.when_settled is not None:
                self.when_settled(self, error)


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


@attrs.define
class _Queue:
    """One lane: by priority, then in the order of arrival. Removing from the middle is cheap."""

    by_priority: dict[int, OrderedDict[Outgoing, None]] = attrs.field(factory=dict)
    length: int = 0
    size: int = 0
    impatient: int = 0
    """How many of them may be shed."""

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

    def take_all(self) -> list[Outgoing]:
        """Remove and return all, in order."""
        taken = list(self)
        self.by_priority.clear()
        self.length = self.size = self.impatient = 0
        return taken

    def remove(self, outgoing: Outgoing) -> None:
        queue = self.by_priority[outgoing.priority]
        del queue[outgoing]
        if not queue:  # else a program that counts its priorities up would leave one behind for each
            del self.by_priority[outgoing.priority]
        self.length -= 1
        self.size -= outgoing.size
        self.impatient -= not outgoing.patient

    def __iter__(self) -> Iterator[Outgoing]:
        return iter([outgoing for queue in self.by_priority.values() for outgoing in queue])

    def __reversed__(self) -> Iterator[Outgoing]:
        """Go through all, the newest of the least urgent first; change nothing meanwhile."""
        return (outgoing for queue in reversed(self.by_priority.values()) for outgoing in reversed(queue))


@attrs.define
class Outbox:
    """All that a session has accepted and not yet written."""

    _lanes: tuple[_Queue, ...] = attrs.field(factory=lambda: tuple(_Queue() for _ in _LANES), init=False)
    _writing: list[Outgoing] = attrs.field(factory=list, init=False)
    _expiries: list[tuple[float, int, Outgoing]] = attrs.field(factory=list, init=False)
    _serial: Iterator[int] = attrs.field(factory=count, init=False)
    _held_since: dict[Lane, float] = attrs.field(factory=dict, init=False)
    """Since when the rate limiter has kept which lanes from running empty."""

    @property
    def waiting(self) -> int:
        """Application messages that wait."""
        return self._lanes[Lane.APPLICATION].length

    @property
    def waiting_bytes(self) -> int:
        """Their size."""
        return self._lanes[Lane.APPLICATION].size

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being written."""
        return not self._writing and not any(lane.length for lane in self._lanes)

    def put(self, outgoing: Outgoing, within: Buffer | None = None) -> None:
        """Take a message in.

        Raises:
            NotSent: it would exceed the bounds of `within`.
        """
        lane = self._lanes[outgoing.lane]
        if within is not None and (
            lane.length >= within.max_items or (lane.length and lane.size + outgoing.size > within.max_bytes)
        ):
            raise NotSent(f"{lane.length} messages of {lane.size} bytes are waiting for a link already")
        lane.add(outgoing)
        if outgoing.expires_at < math.inf:
            self._watch_expiry(outgoing)

    def begin(self, outgoing: Outgoing) -> None:
        """Take a message in of which a part has left already: it is in the next `Write`, before all others."""
        outgoing.status = Status.WRITING
        self._writing.append(outgoing)

    def withdraw(self, outgoing: Outgoing) -> bool:
        """Take a message back; False where it is too late: it is being written, or settled."""
        if outgoing.status is not Status.QUEUED:
            return False
        self._lanes[outgoing.lane].remove(outgoing)
        outgoing.status = Status.SETTLED
        return True

    def next_step(self, now: float, ready: bool, admit: Admit | None = None) -> Write | WaitUntil | Idle:
        """Say what to do at `now`, on a link that is up; settle what has expired or is rejected.

        Call it again only after `written` or `link_lost`. What the rate limiter holds back holds back all
        that is less urgent: small messages would else take the tokens that a dear one waits for, for ever.
        """
        self.expire(now)
        if admit is None and ready and not self._writing:
            self._take_all()
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
                    self._refuse(outgoing, NotSent(f"refused by the rate limit: {reason}" if reason else "refused"))
                case _:
                    self._lanes[outgoing.lane].remove(outgoing)
                    outgoing.status = Status.WRITING
                    self._writing.append(outgoing)
                    size += outgoing.size
        else:
            self._held_since.clear()
        if self._writing:
            return Write(self._writing)
        wake = min(until, self.next_expiry())
        return WaitUntil(wake) if wake < math.inf else Idle()

    def _take_all(self) -> None:
        """Begin to write all that waits, if one batch has room for it: then nothing needs to be looked at twice."""
        lanes = self._lanes
        if sum([lane.length for lane in lanes]) <= MAX_BATCH_FRAMES and (
            sum([lane.size for lane in lanes]) <= MAX_BATCH_BYTES
        ):
            for lane in lanes:
                if lane.length:
                    self._writing += lane.take_all()
            for outgoing in self._writing:
                outgoing.status = Status.WRITING

    def held_for(self, outgoing: Outgoing, now: float) -> float:
        """Return how long the rate limiter has made a message wait, itself or by what goes before it; in seconds."""
        since = self._held_since.get(outgoing.lane)
        return 0.0 if since is None else now - max(since, outgoing.queued_at)

    def shed(self, most: float, why: str) -> int:
        """Settle as NotSent what waits for the rate limiter beyond `most` messages; return how many that were.

        The newest of the least urgent go first; those that are `patient` neither go nor count.
        """
        lane = self._lanes[Lane.APPLICATION]
        if Lane.APPLICATION not in self._held_since or lane.impatient <= most:
            return 0
        excess = lane.impatient - int(most)
        shed = list(islice((outgoing for outgoing in reversed(lane) if not outgoing.patient), excess))
        for outgoing in shed:
            self._refuse(outgoing, NotSent(why))
        return len(shed)

    def written(self) -> None:
        """Settle what was being written: the operating system has it."""
        batch, self._writing = self._writing, []
        for outgoing in batch:
            outgoing.settle()

    def link_lost(self, cause: Exception | None) -> None:
        """Settle what belonged to the link that is gone; application messages wait on."""
        batch, self._writing = self._writing, []
        self._held_since.clear()
        for outgoing in batch:
            outgoing.settle(_because(OutcomeUnknown("the link was lost while it was being written"), cause))
        for lane in (Lane.CONTROL, Lane.SETUP):
            self._reject(lane, "the link was lost before it was written", cause)

    def refuse_waiting(self, why: str, cause: Exception | None = None) -> None:
        """Settle every application message that waits as NotSent."""
        self._reject(Lane.APPLICATION, why, cause)

    def expire_waiting(self, at: float) -> None:
        """Let every application message that waits, and has no earlier end, expire at `at`."""
        for outgoing in self._lanes[Lane.APPLICATION]:
            if outgoing.expires_at > at:
                outgoing.expires_at = at
                self._watch_expiry(outgoing)

    def next_expiry(self) -> float:
        """Return when the next message expires; inf where none does."""
        return self._expiries[0][0] if self._expiries else math.inf

    def expire(self, now: float) -> None:
        """Settle what has waited too long."""
        while self._expiries and (self._expiries[0][0] <= now or self._expiries[0][2].status is not Status.QUEUED):
            outgoing = heapq.heappop(self._expiries)[2]
            self._refuse(outgoing, Expired(f"waited {now - outgoing.queued_at:g} s for a ready link"))

    def _first(self, ready: bool) -> Outgoing | None:
        for lane in _LANES if ready else (Lane.CONTROL, Lane.SETUP):
            if (outgoing := self._lanes[lane].first()) is not None:
                return outgoing
        return None

    def _hold(self, lane: Lane, now: float, ready: bool) -> None:
        for each in _LANES:
            if each < lane:
                self._held_since.pop(each, None)
            elif ready or each is not Lane.APPLICATION:
                self._held_since.setdefault(each, now)

    def _watch_expiry(self, outgoing: Outgoing) -> None:
        if len(self._expiries) > 2 * sum(lane.length for lane in self._lanes) + 64:
            # Most were settled meanwhile: let go of them, they hold their frames.
            self._expiries = [entry for entry in self._expiries if entry[2].status is Status.QUEUED]
            heapq.heapify(self._expiries)
        heapq.heappush(self._expiries, (outgoing.expires_at, next(self._serial), outgoing))

    def _refuse(self, outgoing: Outgoing, error: NovaError) -> None:
        # Whoever is told may withdraw others: what was waiting a moment ago need not wait any more.
        if outgoing.status is Status.QUEUED:
            self._lanes[outgoing.lane].remove(outgoing)
            outgoing.settle(error)

    def _reject(self, lane: Lane, why: str, cause: Exception | None) -> None:
        for outgoing in self._lanes[lane]:
            self._refuse(outgoing, _because(NotSent(why), cause))


def _because(error: NovaError, cause: Exception | None) -> NovaError:
    error.__cause__ = cause
    return error
