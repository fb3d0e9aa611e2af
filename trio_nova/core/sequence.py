"""Find what is missing from a numbered stream, and get back in step without dropping the link.

A strategy (`SequenceNumber`, `ChangeChain`) reads where a message stands; a `Tracker`, one for each
subscription and for as long as it lives, says what to do with the message. Two kinds of stream differ
in what follows from a gap:

* Messages that stand alone, as trades do: the gap is reported, and delivery goes on behind it.
* Changes to a state, as an order book's are (`Tracker(resync=True)`): changes behind a gap are worth
  nothing by themselves. They are held back until a snapshot of the state comes, in the stream or from
  elsewhere; it is delivered together with the changes that continue it.

What stands at or behind the last message is told apart by this rule: up to `window` behind, it is a
repetition, and dropped; further behind, the server began to count anew, and nobody knows how much was
lost. On a new link `Tracker.restart` says which of the two it is, whatever the distance. So a server
that begins anew on the same link, with less than `window` behind it, is taken to repeat itself; where
one does that, set `window=0`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import attrs

from trio_nova.core._checks import check_count, number
from trio_nova.errors import BadMessage, ConfigError

__all__ = [
    "BackInStep",
    "ChangeChain",
    "Checksum",
    "Deliver",
    "Duplicate",
    "GapFound",
    "Held",
    "NeedSnapshot",
    "Renewed",
    "Sequence",
    "SequenceNumber",
    "Tracker",
    "Verdict",
]


# --------------------------------------------------------------------------- verdicts


@attrs.frozen
class Deliver:
    """Hand the message on."""


@attrs.frozen
class Duplicate:
    """Drop the message: it, or a state that contains it, was delivered, or is inside a gap that was reported."""


@attrs.frozen
class GapFound:
    """Report that messages are missing before this one.

    If it is `held`, ask for a snapshot; else deliver it after the report.
    """

    expected: int
    """What would have continued the stream: for numbers the next one, for a chain the last change's id."""
    got: int | None
    """What came in its place: the number, or the id that the change says it follows."""
    lost: int | None
    """How many messages are missing; None: nobody knows."""
    held: bool = False


@attrs.frozen
class NeedSnapshot:
    """Ask for a snapshot; the message is held back, or, if it is itself a snapshot, of no use: it is too old."""


@attrs.frozen
class Held:
    """Do nothing: the message is held back until the snapshot comes that was asked for."""


@attrs.frozen
class BackInStep:
    """Deliver `messages`: a snapshot, and the changes held back that continue it."""

    messages: tuple[Any, ...]
    gap: GapFound | None
    """The gap that this closes; None: there was none, as at the beginning. If it is `held`, it was reported already."""


@attrs.frozen
class Renewed:
    """Deliver the message, a snapshot that `Tracker.renew` has announced, to those who wait for one.

    To the others as well, unless it is `known`: then they have all that it contains.
    """

    known: bool


Verdict: TypeAlias = Deliver | Duplicate | GapFound | NeedSnapshot | Held | BackInStep | Renewed

_DELIVER, _DUPLICATE, _NEED_SNAPSHOT, _HELD = Deliver(), Duplicate(), NeedSnapshot(), Held()


# --------------------------------------------------------------------------- strategies


class Sequence(Protocol):
    """Reads where a message stands in its stream.

    Whatever reads a message may raise BadMessage; the tracker is then unchanged.
    """

    @property
    def window(self) -> float:
        """How far behind the last position a message is still taken for a repetition."""
        ...

    def position(self, message: Any, /) -> int | None:
        """Return where the message stands; None: outside the sequence, as a heartbeat is."""
        ...

    def is_snapshot(self, message: Any, /) -> bool:
        """Return whether the message replaces all that came before it."""
        ...

    def distance(self, position: int, last: int, /) -> int:
        """Return how far `position` is ahead of `last`; negative: behind."""
        ...

    def continues(self, message: Any, last: int, /) -> bool:
        """Return whether nothing is missing between `last` and the message, which has a position."""
        ...

    def gap(self, message: Any, last: int, /) -> GapFound:
        """Describe what is missing between `last` and the message, which does not continue it."""
        ...


def _never(message: Any) -> bool:
    return False


@attrs.frozen
class SequenceNumber:
    """Messages count up by `step`."""

    read: Callable[[Any], int | None]
    """Returns the number of a message; of a snapshot, that of the last message it contains."""
    step: int = attrs.field(default=1, validator=check_count)
    modulus: int | None = attrs.field(default=None, validator=attrs.validators.optional(check_count))
    """After `modulus - 1` the numbers go on at 0, as RFC 1982 has it: less than half of them are ahead."""
    window: float = attrs.field(default=256.0, validator=number(finite=False))
    """How far behind the last number a message is still taken for a repetition."""
    is_snapshot: Callable[[Any], bool] = _never

    def __attrs_post_init__(self) -> None:
        if self.modulus is not None and self.modulus <= 2 * self.step:
            raise ConfigError("modulus", f"must be above twice the step, not {self.modulus}")

    def position(self, message: Any, /) -> int | None:
        position = _whole(self.read(message))
        if position is not None and self.modulus is not None and not 0 <= position < self.modulus:
            raise BadMessage(f"a sequence number must be from 0 to {self.modulus - 1}")
        return position

    def distance(self, position: int, last: int, /) -> int:
        ahead = position - last
        if self.modulus is None:
            return ahead
        ahead %= self.modulus
        return ahead if ahead < self.modulus / 2 else ahead - self.modulus

    def continues(self, message: Any, last: int, /) -> bool:
        return self.distance(self._number(message), last) == self.step

    def gap(self, message: Any, last: int, /) -> GapFound:
        got = self._number(message)
        ahead = self.distance(got, last)
        expected = last + self.step if self.modulus is None else (last + self.step) % self.modulus
        return GapFound(expected, got, (ahead - 1) // self.step if ahead > 0 else None)

    def _number(self, message: Any) -> int:
        position = self.position(message)
        if position is None:
            raise BadMessage("the message has no sequence number")
        return position


@attrs.frozen
class ChangeChain:
    """Each change names the one that it follows; the ids grow along the chain.

    Deribit's order books are chains of `change_id` and `prev_change_id`.
    """

    read_id: Callable[[Any], int | None]
    """Returns the id of a change; of a snapshot, that of the last change it contains."""
    read_previous: Callable[[Any], int | None]
    """Returns the id of the change before; None, as in a snapshot, where it names none."""
    is_snapshot: Callable[[Any], bool]
    window: float = attrs.field(default=1_000_000.0, validator=number(finite=False))
    """How far behind the last id a change is still taken for a repetition."""

    def position(self, message: Any, /) -> int | None:
        return _whole(self.read_id(message))

    def distance(self, position: int, last: int, /) -> int:
        return position - last

    def continues(self, message: Any, last: int, /) -> bool:
        return _whole(self.read_previous(message)) == last

    def gap(self, message: Any, last: int, /) -> GapFound:
        return GapFound(last, _whole(self.read_previous(message)), None)


@attrs.frozen
class Checksum:
    """Compares what the user has built from the messages with what the server has.

    After applying a message: `if not checksum.matches(message): tracker.distrust()`, and ask for a snapshot.
    """

    read: Callable[[Any], int | None]
    """Returns the server's checksum; None where the message carries none."""
    compute: Callable[[], int]
    """Returns the checksum of what was built."""

    def matches(self, message: Any) -> bool:
        """Return whether what was built, with `message` applied, is what the server has."""
        expected = _whole(self.read(message))
        return expected is None or expected == self.compute()


def _whole(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise BadMessage(f"a sequence number or checksum must be a whole number, not {type(value).__name__}")


# --------------------------------------------------------------------------- the tracker


@attrs.define(eq=False)
class Tracker:
    """Where one subscription stands in its stream, across links."""

    sequence: Sequence
    resync: bool = False
    """Whether messages are worth nothing without what comes before them: the first is to be a snapshot."""
    max_held: int = attrs.field(default=1000, validator=check_count)
    """How many messages are held back; beyond, they are dropped, and a snapshot is asked for again."""
    last: int | None = attrs.field(default=None, init=False)
    """Position of the last message delivered; None: there was none."""
    _held: deque[tuple[int, Any]] | None = attrs.field(default=None, init=False)
    """While a snapshot is awaited: an unbroken run of messages, with their positions."""
    _asked: bool = attrs.field(default=False, init=False)
    """Whether the snapshot was asked for."""
    _gap: GapFound | None = attrs.field(default=None, init=False)
    """The one that the snapshot will close."""
    _renewing: bool = attrs.field(default=False, init=False)
    """Whether a snapshot is to come though all is well."""
    _resumed: bool | None = attrs.field(default=None, init=False)
    """What `restart` was told, until the new link has shown where it stands; then None."""

    def __attrs_post_init__(self) -> None:
        if self.resync:
            self._held = deque()

    @property
    def in_step(self) -> bool:
        """Whether messages are delivered as they come; False while a snapshot is awaited."""
        return self._held is None

    @property
    def awaits_snapshot(self) -> bool:
        """Whether a snapshot is to come: it was asked for, or the link is new and the service does not resume."""
        return self._held is not None or (self.resync and (self._renewing or self._resumed is False))

    def see(self, message: Any) -> Verdict:
        """Say what to do with a message that arrived. One without a position is always delivered.

        Raises:
            BadMessage: its position is not a whole number, or out of range; nothing is changed.
        """
        if self.sequence.is_snapshot(message):
            return self.snapshot(message)
        position = self.sequence.position(message)
        if position is None:
            return _DELIVER
        if self._held is not None:
            return self._hold(self._held, message, position)
        if self.last is None or self.sequence.continues(message, self.last):
            self._advance(position)
            return _DELIVER
        if self._is_repetition(position, self.last):
            return _DUPLICATE
        gap = self.sequence.gap(message, self.last)
        if not self.resync:
            self._advance(position)
            return gap
        self._gap = attrs.evolve(gap, held=True)
        self._held, self._asked = deque([(position, message)]), True
        return self._gap

    def snapshot(self, message: Any) -> Verdict:
        """Say what to do with a snapshot, whether it came in the stream or was fetched from elsewhere.

        * `BackInStep`: it was awaited, or is the first sign of a new link, or the server began to count anew.
        * `Deliver`: all was well, and it contains what was delivered.
        * `Duplicate`: all was well, and it is older than what was delivered.
        * `Renewed`, or `BackInStep` where it skips something: all was well, and `renew` has announced it.
        * `NeedSnapshot`: it is too old for what was held back, or comes next, to continue it; ask for another.

        A snapshot without a position is trusted to be newer than all that is held back.

        Raises:
            BadMessage: its position is not a whole number, or out of range; nothing is changed.
        """
        position = self.sequence.position(message)
        if self._held is not None:
            return self._resume_from(message, position, self._held)
        gap, new_link = None, self._resumed is not None
        if position is not None and self.last is not None and self.sequence.distance(position, self.last) < 0:
            if self._is_repetition(position, self.last):
                return _NEED_SNAPSHOT if self._renewing else _DUPLICATE
            if not new_link:
                gap = self.sequence.gap(message, self.last)
        elif self._renewing and not new_link:
            return self._renew_from(message, position)
        self._advance(position)
        self._renewing = False
        return BackInStep((message,), gap) if new_link or gap is not None else _DELIVER

    def renew(self) -> None:
        """Announce a snapshot that is asked for though all is well: for a reader who came later, say."""
        self._renewing = self._held is None

    def restart(self, *, resumed: bool = False) -> None:
        """Begin a new link: a snapshot that was asked for will not come any more.

        The next message may continue the last one; then nothing was lost. If it is ahead, a
        `SequenceNumber` tells how many were lost. If it is behind, it is a repetition where the service
        `resumed` the stream, and may so replay any amount of it; else the server began to count anew.
        """
        self._resumed = resumed
        if self._held is not None:
            self._held.clear()
            self._asked = False

    def distrust(self) -> None:
        """Hold back all that follows until a snapshot comes: what was built so far is wrong. Ask for one."""
        if self._held is None:
            self._held, self._asked = deque(), True

    def _is_too_old(self, position: int, following: list[tuple[int, Any]]) -> bool:
        if following:
            return not self.sequence.continues(following[0][1], position)
        # What comes next can only continue the last one delivered: behind an older snapshot there would be a hole.
        return self.last is not None and position != self.last and self._is_repetition(position, self.last)

    def _renew_from(self, message: Any, position: int | None) -> Verdict:
        last = self.last
        known = position is not None and position == last
        # What came while nothing was subscribed to is in the snapshot, and was not told by itself.
        skips = not known and not (position is not None and last is not None and self.sequence.continues(message, last))
        gap = None
        if skips and position is not None and last is not None:
            gap = attrs.evolve(self.sequence.gap(message, last), lost=None)
        self._advance(position)
        self._renewing = False
        return BackInStep((message,), gap) if skips else Renewed(known)

    def _advance(self, position: int | None) -> None:
        self.last, self._resumed = position, None

    def _is_repetition(self, position: int, last: int) -> bool:
        behind = -self.sequence.distance(position, last)
        if self._resumed is None:
            return 0 <= behind <= self.sequence.window
        return self._resumed and behind >= 0

    def _hold(self, held: deque[tuple[int, Any]], message: Any, position: int) -> Verdict:
        if held:
            newest = held[-1][0]
            if not self.sequence.continues(message, newest):
                if 0 <= -self.sequence.distance(position, newest) <= self.sequence.window:
                    return _DUPLICATE
                held.clear()  # what comes before a hole is of no use: a snapshot from there would not reach beyond it
            elif len(held) >= self.max_held:
                held.clear()
                self._asked = False
        held.append((position, message))
        if self._asked:
            return _HELD
        self._asked = True
        return _NEED_SNAPSHOT

    def _resume_from(self, message: Any, position: int | None, held: deque[tuple[int, Any]]) -> Verdict:
        following = [] if position is None else [each for each in held if self.sequence.distance(each[0], position) > 0]
        if position is not None and self._is_too_old(position, following):
            self._asked = True
            return _NEED_SNAPSHOT
        if following:
            position = following[-1][0]
        gap, self._gap, self._held, self._asked, self._renewing = self._gap, None, None, False, False
        self._advance(position)
        return BackInStep((message, *(each for _, each in following)), gap)
