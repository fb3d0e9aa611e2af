"""Find what is missing from a numbered stream, and get back in step without dropping the link.

A `Step` says where a message stands; a `Tracker`, one for each subscription and for as long as it lives,
says what to do with the message. Two kinds of stream differ in what follows from a gap:

* Messages that stand alone, as trades do: the gap is reported, and delivery goes on behind it.
* Changes to a state, as an order book's are (`Tracker(resync=True)`): changes behind a gap are worth
  nothing by themselves. They are held back until a snapshot of the state comes, in the stream or from
  elsewhere; it is delivered together with the changes that continue it.

A message continues the one before it in one of three ways, as its step says:

* It names `previous`, the message that it follows. Order books of Deribit are such chains.
* It covers the numbers from `first` to `last`, and the next one is among them. Order books of Binance
  are such ranges. A range that begins behind the next number is delivered, as part of it is new.
* It has the number `last` alone, and that is the next one.

A snapshot need not stand at the border of two messages: a message that covers more than the snapshot
contains continues it, whether it has a range or names what it follows.

What stands at or behind the last message is told apart by this rule: up to `window` behind, it is a
repetition, and dropped; further behind, the server began to count anew, and nobody knows how much was
lost. On a new link `Tracker.restart` says which of the two it is, whatever the distance. So a server
that begins anew on the same link, with less than `window` behind it, is taken to repeat itself; where
one does that, set `window=0`.

Where a service sends checksums, `Tracker(build=...)` builds what the messages describe, and compares.
A stream may so have no numbers at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol, TypeAlias

import attrs
import msgspec

from trio_nova.core._checks import check_bool, check_callable, check_count, number
from trio_nova.errors import BadMessage, ConfigError

__all__ = [
    "BackInStep",
    "BookBuilder",
    "Deliver",
    "Duplicate",
    "GapFound",
    "Held",
    "NeedSnapshot",
    "Renewed",
    "Step",
    "Tracker",
    "Verdict",
]


class Step(msgspec.Struct, frozen=True):
    """Where a message stands in the sequence of its channel."""

    last: int | None
    """Its number; of several changes in one, or of a snapshot, that of the last one that it contains."""
    first: int | None = None
    """The number of the first change that it contains; None: it contains one."""
    previous: int | None = None
    """The number of the message that it follows, where the service says so."""
    snapshot: bool = False
    """Whether it replaces all that came before it."""
    checksum: int | None = None
    """The checksum of what was built from all messages up to this one, as the service computes it."""


# --------------------------------------------------------------------------- verdicts


@attrs.frozen
class Deliver:
    """Hand the message on."""


@attrs.frozen
class Duplicate:
    """Drop the message: it, or a state that contains it, was delivered, or is inside a gap that was reported."""


@attrs.frozen
class GapFound:
    """Report that messages are missing before this one, or that what was built is not what the service has.

    If it is `held`, ask for a snapshot; else deliver it after the report.
    """

    expected: int | None
    """What would have continued the stream: the next number, or, where messages name the one that they follow,
    the number of the last one. None: there are no numbers to compare with."""
    got: int | None
    """What came in its place: the number, the first of a range, or the number that the message says it follows."""
    lost: int | None
    """How many messages are missing, or numbers where they have ranges; None: nobody knows."""
    held: bool = False
    """Whether this message, and all that follow, are held back until a snapshot comes."""
    checksum: bool = False
    """Whether nothing need be missing, but a checksum does not hold, or the builder has failed."""
    cause: str = ""
    """What is wrong where `checksum` is set: both checksums, or the builder's error in words."""


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
    following: tuple[Any, ...] = ()
    """Messages that continue the snapshot, and that the others have: those who wait get them after it."""


Verdict: TypeAlias = Deliver | Duplicate | GapFound | NeedSnapshot | Held | BackInStep | Renewed

_DELIVER, _DUPLICATE, _NEED_SNAPSHOT, _HELD = Deliver(), Duplicate(), NeedSnapshot(), Held()


# --------------------------------------------------------------------------- the tracker


class BookBuilder(Protocol):
    """What a tracker builds from the messages that it delivers, to compare it with the service's checksums.

    A new one is made for each snapshot. Whatever it raises counts as a checksum that does not hold.
    """

    def apply(self, message: Any, snapshot: bool, /) -> None:
        """Take a message in, as the consumer of the feed gets it; a `snapshot` is the first one."""
        ...

    def checksum(self) -> int:
        """Return the checksum of all that was taken in, with the sign that the service gives it."""
        ...


_NARROW, _WIDE = 256.0, 1_000_000.0


@attrs.define(eq=False)
class Tracker:
    """Where one subscription stands in its stream, across links."""

    resync: bool = attrs.field(default=False, validator=check_bool)
    """Whether messages are worth nothing without what comes before them: the first is to be a snapshot."""
    step: int = attrs.field(default=1, kw_only=True, validator=check_count)
    """How far the next number is ahead of the last one."""
    modulus: int | None = attrs.field(default=None, kw_only=True, validator=attrs.validators.optional(check_count))
    """After `modulus - 1` the numbers go on at 0, as RFC 1982 has it: less than half of them are ahead."""
    window: float | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(number(finite=False))
    )
    """How far behind the last number a message is still taken for a repetition.

    None: 256, or 1,000,000 once a message has named `previous` or `first`, as such numbers may jump.
    """
    max_held: int = attrs.field(default=1000, kw_only=True, validator=check_count)
    """How many messages are held back; beyond, they are dropped, and a snapshot is asked for again."""
    build: Callable[[], BookBuilder] | None = attrs.field(
        default=None, kw_only=True, validator=attrs.validators.optional(check_callable)
    )
    """Factory of the book that each delivered message goes into, for the checksums; None: they are not compared.

    It needs `resync`.
    """
    last: int | None = attrs.field(default=None, init=False)
    """Number of the last message delivered; None: there was none, or it had none, as in a stream of checksums alone."""
    _has_begun: bool = attrs.field(default=False, init=False)
    """Whether a message of the sequence was delivered, even if `last` is None."""
    _is_snapshot: bool = attrs.field(default=False, init=False)
    """Whether `last` is that of a snapshot, and nothing has continued it yet."""
    _jumps: bool = attrs.field(default=False, init=False)
    """Whether messages have named more than one number."""
    _held: _Run | None = attrs.field(default=None, init=False)
    """While a snapshot is awaited: what may continue it."""
    _asked: bool = attrs.field(default=False, init=False)
    """Whether the snapshot was asked for."""
    _gap: GapFound | None = attrs.field(default=None, init=False)
    """The one that the snapshot will close."""
    _renewing: bool = attrs.field(default=False, init=False)
    """Whether a snapshot is to come though all is well."""
    _since: _Run = attrs.field(factory=lambda: _Run(), init=False)
    """Delivered since that snapshot was announced: one from elsewhere may be older than the newest of them."""
    _resumed: bool | None = attrs.field(default=None, init=False)
    """What `restart` was told, until the new link has shown where it stands; then None."""
    _book: BookBuilder | None = attrs.field(default=None, init=False)
    """Built from the last snapshot and all that was delivered behind it."""

    def __attrs_post_init__(self) -> None:
        if self.modulus is not None and self.modulus <= 2 * self.step:
            raise ConfigError("modulus", f"must be above twice the step, not {self.modulus}")
        if self.build is not None and not self.resync:
            raise ConfigError("build", "needs resync=True: a book that is wrong is mended by a snapshot")
        if self.resync:
            self._held = _Run()

    @property
    def in_step(self) -> bool:
        """Whether messages are delivered as they come; False while a snapshot is awaited."""
        return self._held is None

    @property
    def has_begun(self) -> bool:
        """Whether a message of the sequence was delivered; it need not have had a number."""
        return self._has_begun

    @property
    def awaits_snapshot(self) -> bool:
        """Whether a snapshot is to come: it was asked for, or the link is new and the service does not resume."""
        return self._held is not None or (self.resync and (self._renewing or self._resumed is False))

    def is_ahead(self, step: Step) -> bool:
        """Return whether a numbered step is ahead of all that was delivered."""
        return self.last is None or step.last is None or self._distance(step.last, self.last) > 0

    def see(self, step: Step | None, message: Any) -> Verdict:
        """Say what to do with a message that arrived, and stands where `step` says.

        None, or a step without a number: the message is outside the sequence, as a heartbeat is, and is
        always delivered. But where messages are worth nothing without those before them, a step with a
        checksum, and any step where there is a builder, is a change without a number: it is in its place,
        unless its checksum does not hold.

        Raises:
            BadMessage: a number of the step is not whole, or out of range, or the last one is behind the
                first; nothing is changed.
        """
        if step is None:
            return _DELIVER
        if step.snapshot:
            return self.snapshot(step, message)
        self._check(step)
        if step.last is None:
            return self._see_unnumbered(step, message)
        if self._held is not None:
            return self._hold(self._held, step, message)
        if self.last is None or self._continues(step, self.last, joins=self._is_snapshot):
            return self._deliver(step, message)
        if self._is_repetition(step.last, self.last):
            return _DUPLICATE
        gap = self._describe(step, self.last)
        if not self.resync:
            self._advance(step.last)
            return gap
        return self._fall_out(attrs.evolve(gap, held=True), _Run.of([(step, message)]))

    def snapshot(self, step: Step | None, message: Any) -> Verdict:
        """Say what to do with a snapshot, whether it came in the stream or was fetched from elsewhere.

        * `BackInStep`: it was awaited, or is the first sign of a new link, or the server began to count anew.
        * `Deliver`: all was well, and it contains what was delivered.
        * `Duplicate`: all was well, and it is older than what was delivered.
        * `Renewed`, or `BackInStep` where it skips something: all was well, and `renew` has announced it. From
          elsewhere it may be older than what was delivered since; then that follows it for those who wait.
        * `NeedSnapshot`: it is too old for what was held back, or comes next, to continue it; ask for another.
        * `GapFound` with a `checksum`: that of the snapshot does not hold, or of what was held back; ask for another.

        A snapshot without a number, or a step, is trusted to be newer than all that is held back.

        Raises:
            BadMessage: as `see`.
        """
        if step is None:
            step = Step(None, snapshot=True)
        self._check(step)
        if self._held is not None:
            return self._resume_from(step, message, self._held)
        gap, new_link = None, self._resumed is not None
        if step.last is not None and self.last is not None and self._distance(step.last, self.last) < 0:
            if (renewed := self._renew_behind(step, message)) is not None:
                return renewed
            if self._is_repetition(step.last, self.last):
                return _NEED_SNAPSHOT if self._renewing else _DUPLICATE
            if not new_link:
                gap = self._skipped(step.last, self.last)
        elif self._renewing and not new_link:
            return self._renew_from(step, message)
        return self._replace(step, message, BackInStep((message,), gap) if new_link or gap is not None else _DELIVER)

    def renew(self) -> None:
        """Announce a snapshot that is asked for though all is well: for a reader who came later, say."""
        self._renewing = self._held is None

    def restart(self, *, resumed: bool = False) -> None:
        """Begin a new link: a snapshot that was asked for will not come any more.

        The next message may continue the last one; then nothing was lost. If it is ahead, its number tells
        how many were lost. If it is behind, it is a repetition where the service `resumed` the stream, and
        may so replay any amount of it; else the server began to count anew. A change without a number
        continues what was built only where the service `resumed`.
        """
        self._resumed = resumed
        self._since.clear()
        if self._held is not None:
            self._held.clear()
            self._asked = False

    def distrust(self) -> None:
        """Hold back all that follows until a snapshot comes: what was built so far is wrong. Ask for one."""
        if self._held is None:
            self._held, self._asked, self._book = _Run(), True, None
            self._since.clear()

    # ----------------------------------------------------------------- numbers

    def _check(self, step: Step) -> None:
        last, first, previous = step.last, step.first, step.previous
        is_plain = first is None and previous is None
        if is_plain and type(last) is int and step.checksum is None and self.modulus is None:
            return
        for value in (last, first, previous, step.checksum):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise BadMessage(f"a sequence number or checksum must be a whole number, not {type(value).__name__}")
        if self.modulus is not None:
            for value in (last, first, previous):
                if value is not None and not 0 <= value < self.modulus:
                    raise BadMessage(f"a sequence number must be from 0 to {self.modulus - 1}")
        if first is not None and last is not None and self._distance(last, first) < 0:
            raise BadMessage(f"a message cannot cover the sequence numbers {first} to {last}")
        self._jumps = self._jumps or not is_plain

    def _distance(self, position: int, last: int) -> int:
        """Return how far `position` is ahead of `last`; negative: behind."""
        ahead = position - last
        if self.modulus is None:
            return ahead
        ahead %= self.modulus
        return ahead if ahead < self.modulus / 2 else ahead - self.modulus

    def _continues(self, step: Step, at: int, *, joins: bool = False) -> bool:
        """Return whether nothing is missing between `at` and a numbered step, which may cover `at` too.

        `joins`: `at` is a snapshot's, which may stand inside of what the message covers.
        """
        assert step.last is not None
        ahead = self._distance(step.last, at)
        if step.previous is not None:
            return step.previous == at or (joins and self._distance(step.previous, at) < 0 < ahead)
        if step.first is None:
            return ahead == self.step
        begins = self._distance(step.first, at)
        return begins <= self.step <= ahead or begins <= 0 < ahead

    def _is_repetition(self, position: int, last: int) -> bool:
        behind = -self._distance(position, last)
        return self._is_near(behind) if self._resumed is None else self._resumed and behind >= 0

    def _is_near(self, behind: int) -> bool:
        return 0 <= behind <= (self.window if self.window is not None else _WIDE if self._jumps else _NARROW)

    def _describe(self, step: Step, at: int) -> GapFound:
        """Describe what is missing between `at` and a numbered step, which does not continue it."""
        assert step.last is not None
        if step.previous is not None:
            return GapFound(at, step.previous, None)
        got = step.last if step.first is None else step.first
        gap = self._skipped(got, at)
        is_behind = self._distance(step.last, at) <= 0
        return gap if is_behind else attrs.evolve(gap, lost=(self._distance(got, at) - 1) // self.step)

    def _skipped(self, got: int, at: int) -> GapFound:
        expected = at + self.step
        return GapFound(expected if self.modulus is None else expected % self.modulus, got, None)

    # ----------------------------------------------------------------- in step

    def _see_unnumbered(self, step: Step, message: Any) -> Verdict:
        if not self.resync or (self.build is None and step.checksum is None):
            return _DELIVER
        if self._held is None and self._resumed is False:
            self._held, self._asked, self._book = _Run(), False, None  # nobody can know what was missed
        if self._held is not None:
            return self._hold(self._held, step, message)
        return self._deliver(step, message)

    def _deliver(self, step: Step, message: Any) -> Verdict:
        if self._book is not None:
            cause = _misfit(self._book, step, message)
            if cause is not None:
                return self._fall_out(self._misfits(step, self.last, cause), _Run.of([(step, message)]))
        if step.last is not None:
            self._advance(step.last)
        elif self.last is None:
            self._resumed = None
        if self._renewing:
            self._since.append(step, message)
            if len(self._since.entries) > self.max_held:
                self._since.entries.popleft()
        return _DELIVER

    def _replace(self, step: Step, message: Any, verdict: Verdict) -> Verdict:
        """Let a snapshot take the place of all that was delivered, and return the verdict; not if it does not fit."""
        misfit = self._rebuild([(step, message)])
        if misfit is not None:
            return self._fall_out(self._misfits(step, self.last, misfit[1]), _Run())
        self._advance(step.last, snapshot=True)
        self._end_renewal()
        return verdict

    def _end_renewal(self) -> None:
        self._renewing = False
        self._since.clear()

    def _renew_from(self, step: Step, message: Any) -> Verdict:
        if step.last is None or self.last is None:
            return self._replace(step, message, BackInStep((message,), None))
        ahead = self._distance(step.last, self.last)
        if ahead in (0, self.step):
            return self._replace(step, message, Renewed(known=ahead == 0))
        # What came while nothing was subscribed to is in the snapshot, and was not told by itself.
        return self._replace(step, message, BackInStep((message,), self._skipped(step.last, self.last)))

    def _renew_behind(self, step: Step, message: Any) -> Verdict | None:
        """Join a snapshot that was announced to what came since; None where it has nothing to do with that."""
        position, since = step.last, self._since
        assert position is not None
        since.drop_until(lambda entry: self._follows(entry, position))
        if not since.entries:
            return None
        begin = since.entries[0][0]
        if not self._continues(begin, position, joins=True):
            is_older = begin.last is not None and self._is_near(self._distance(begin.last, position))
            return _NEED_SNAPSHOT if is_older else None
        if self._rebuild([(step, message), *since.entries]) is not None:
            return _NEED_SNAPSHOT  # the ones who read already have what fits
        following = tuple(each for _, each in since.entries)
        self._end_renewal()
        return Renewed(known=True, following=following)

    def _advance(self, position: int | None, *, snapshot: bool = False) -> None:
        self.last, self._resumed, self._is_snapshot, self._has_begun = position, None, snapshot, True

    # ----------------------------------------------------------------- out of step

    def _fall_out(self, gap: GapFound, held: _Run) -> GapFound:
        """Hold back all that follows, until the snapshot comes that the caller asks for now."""
        self._held, self._asked, self._book = held, True, None
        self._since.clear()
        if self._gap is None:
            self._gap = gap
        return gap

    def _hold(self, held: _Run, step: Step, message: Any) -> Verdict:
        if step.last is not None and held.newest is not None and not self._continues(step, held.newest):
            if self._is_near(-self._distance(step.last, held.newest)):
                return _DUPLICATE
            held.clear()  # what comes before a hole is of no use: a snapshot from there would not reach beyond it
        elif len(held.entries) >= self.max_held:
            held.clear()
            self._asked = False
        held.append(step, message)
        if self._asked:
            return _HELD
        self._asked = True
        return _NEED_SNAPSHOT

    def _resume_from(self, step: Step, message: Any, held: _Run) -> Verdict:
        position = step.last
        if position is None:
            held.clear()
        else:
            held.drop_until(lambda entry: self._follows(entry, position))
            if self._is_too_old(position, held):
                self._asked = True
                return _NEED_SNAPSHOT
        misfit = self._rebuild([(step, message), *held.entries])
        if misfit is not None:
            return self._remain_out(step, held, *misfit)
        following = tuple(each for _, each in held.entries)
        gap, self._gap, self._held, self._asked = self._gap, None, None, False
        self._end_renewal()
        self._advance(held.newest if following else position, snapshot=not following)
        return BackInStep((message, *following), gap)

    def _follows(self, step: Step, position: int) -> bool:
        """Return whether a step that is held back is behind what a snapshot at `position` contains."""
        if step.last is None:
            return False  # nobody can know: it goes with what comes before it
        return self._distance(step.last, position) > 0 or (step.previous == position != step.last)

    def _is_too_old(self, position: int, held: _Run) -> bool:
        if held.entries:
            return not self._continues(held.entries[0][0], position, joins=True)
        # What comes next can only continue the last one delivered: behind an older snapshot there would be a hole.
        return self.last is not None and position != self.last and self._is_repetition(position, self.last)

    # ----------------------------------------------------------------- checksums

    def _rebuild(self, entries: list[tuple[Step, Any]]) -> tuple[int, str] | None:
        """Build anew from a snapshot and what follows it; return which of them does not fit, and why."""
        if self.build is None:
            return None
        try:
            book = self.build()
        except Exception as exc:
            return 0, _in_words(exc)
        for index, (step, message) in enumerate(entries):
            cause = _misfit(book, step, message, snapshot=index == 0)
            if cause is not None:
                return index, cause
        self._book = book
        return None

    def _misfits(self, step: Step, at: int | None, cause: str) -> GapFound:
        gap = GapFound(None, step.last, None)
        if step.last is not None and at is not None:
            gap = self._skipped(step.last, at) if step.snapshot else self._describe(step, at)
        return attrs.evolve(gap, lost=None, held=True, checksum=True, cause=cause)

    def _remain_out(self, snapshot: Step, held: _Run, index: int, cause: str) -> Verdict:
        """Take note that what stands at `index`, the snapshot at 0, does not fit, when it was to end the waiting."""
        if index == 0:
            return self._fall_out(self._misfits(snapshot, self.last, cause), held)
        steps = [snapshot, *(step for step, _ in held.entries)]
        before = [step.last for step in steps[:index] if step.last is not None]
        # Only a snapshot from behind the message can help: one from before it would lead to it again.
        return self._fall_out(self._misfits(steps[index], before[-1], cause), held.behind(index))


@attrs.define(eq=False)
class _Run:
    """An unbroken run of messages, with their steps; those without a number go with the one before them."""

    entries: deque[tuple[Step, Any]] = attrs.field(factory=deque, init=False)
    newest: int | None = attrs.field(default=None, init=False)
    """Number of the last one that has a number."""

    @classmethod
    def of(cls, entries: Iterable[tuple[Step, Any]]) -> _Run:
        run = cls()
        for step, message in entries:
            run.append(step, message)
        return run

    def append(self, step: Step, message: Any) -> None:
        self.entries.append((step, message))
        if step.last is not None:
            self.newest = step.last

    def clear(self) -> None:
        self.entries.clear()
        self.newest = None

    def drop_until(self, is_wanted: Callable[[Step], bool]) -> None:
        """Drop from the beginning what is not wanted: each message is dropped once, so this costs little."""
        while self.entries and not is_wanted(self.entries[0][0]):
            self.entries.popleft()
        if not self.entries:
            self.newest = None

    def behind(self, count: int) -> _Run:
        """Return the run without its first `count` messages."""
        return _Run.of(islice(self.entries, count, None))


def _misfit(book: BookBuilder, step: Step, message: Any, *, snapshot: bool = False) -> str | None:
    """Let `book` take the message in; return why it then is not what the service has, None if it is."""
    try:
        book.apply(getattr(message, "payload", message), snapshot)  # what a session shows has more to it
        checksum = step.checksum if step.checksum is None else book.checksum()
    except Exception as exc:
        return _in_words(exc)
    return None if checksum == step.checksum else f"the checksum of the book is {checksum}, not {step.checksum}"


def _in_words(error: Exception) -> str:
    return f"the book cannot be built: {type(error).__name__}: {error}"
