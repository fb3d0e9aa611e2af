"""Which answer belongs to which question.

A request is matched by its id, by a matcher of its own, or, for services without ids, in the order of
the questions. An id is the pair of its type and its value: 1, "1", 1.0 and True are four ids. A late
answer, to a request that was given up, is recognized as such for a while, and never settles a newer one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Any

import attrs

from trio_nova.errors import NotSent

__all__ = ["Identity", "Late", "Ledger", "Pending", "Unmatched", "identity"]

MAX_GIVEN_UP = 4096
"""Requests given up on this link that are remembered, to recognize late answers."""
MAX_LATE_MATCHERS = 64
"""Of those, the ones that are matched by `matches`: each is asked about every message."""
LATEST = 60.0
"""Seconds after which the answer to a request that was given up, and has an id or a matcher, is not expected any more.

A service that never answered it would otherwise owe us an answer for as long as the link lasts: its id could
not be used again, and a later answer would be taken for the one before.
"""

Identity = tuple[type, Hashable]


def identity(id: Hashable) -> Identity:
    """Return what an id is compared by."""
    return (type(id), id)


@attrs.define(eq=False, kw_only=True)
class Pending:
    """A request whose answer is awaited."""

    ids: tuple[Identity, ...] = ()
    """The forms in which an answer may bear its id; none: it is matched by `matches`, or in order."""
    matches: Callable[[Any], bool] | None = attrs.field(default=None, repr=False)
    asker: Any = attrs.field(default=None, repr=False)
    """Who waits for the answer; None where nobody does any more."""
    given_up: bool = False
    """Nobody waits any more: what answers it is late."""
    given_up_at: float = math.inf

    def give_up(self, at: float) -> None:
        """Take note that nobody waits any more, since `at`."""
        self.given_up, self.given_up_at, self.asker = True, at, None

    def is_forgotten(self, now: float) -> bool:
        """Whether no answer to it is expected any more, since it was given up long ago."""
        return self.given_up_at + LATEST <= now


@attrs.frozen
class Late:
    """The message answers a request that was given up."""


@attrs.frozen
class Unmatched:
    """The `matches` of a request, which is not closed by that, raised an error at the message."""

    pending: Pending
    error: Exception


@attrs.define
class Ledger:
    """The requests that are under way on one link."""

    _ids: Iterator[int] = attrs.field(factory=lambda: count(1))
    """Ids of which none was used yet: they rise, on each link, in the order in which requests are written."""

    _next: int | None = attrs.field(default=None, init=False)
    """The one to be allotted next; None: the next of `_ids`."""
    _by_id: dict[Identity, Pending] = attrs.field(factory=dict, init=False)
    """Those that were given up too, until they are forgotten."""
    _given_up: OrderedDict[Pending, None] = attrs.field(factory=OrderedDict, init=False)
    """Those of them, oldest first."""
    matchers: dict[Pending, None] = attrs.field(factory=dict, init=False)
    _late_matchers: list[Pending] = attrs.field(factory=list, init=False)
    """Those of them that were given up, oldest first."""
    in_order: OrderedDict[Pending, None] = attrs.field(factory=OrderedDict, init=False)

    @property
    def awaited(self) -> list[Pending]:
        """What somebody waits for."""
        pending = [*dict.fromkeys(self._by_id.values()), *self.matchers, *self.in_order]
        return [each for each in pending if not each.given_up]

    def __len__(self) -> int:
        return len(self._by_id) + len(self.matchers) + len(self.in_order)

    def peek(self, form: Callable[[int], Hashable] = int) -> Any:
        """Return the id to be allotted next, in the form that the service has it in: none that may still be answered.

        Raises:
            NotSent: there is none.
        """
        for _ in range(len(self._by_id) + 1):
            if self._next is None:
                self._next = next(self._ids)
            if identity(form(self._next)) not in self._by_id:
                return form(self._next)
            self._next = None
        raise NotSent(f"all ids that the service takes are in use, by {len(self._by_id)} requests")

    def allot(self, form: Callable[[int], Hashable] = int) -> Any:
        """Return the id that `peek` returns, and use it up; raises like that."""
        id = self.peek(form)
        self._next = None
        return id

    def awaits(self, id: Hashable, now: float) -> bool:
        """Return whether an answer under this id is awaited, or may come late."""
        self._forget_given_up(now)
        return identity(id) in self._by_id

    def open(self, pending: Pending, now: float) -> None:
        """Expect an answer from now on.

        Raises:
            NotSent: a request of the same id is under way, or was given up and may still be answered; or
                too many without an id are unanswered.
        """
        self._forget_given_up(now)
        for id in pending.ids:
            if (other := self._by_id.get(id)) is not None:
                raise NotSent(_taken(other, id[1], now))
        if pending.ids:
            self._by_id |= dict.fromkeys(pending.ids, pending)
        elif pending.matches is not None:
            self.matchers[pending] = None
        elif len(self.in_order) >= MAX_GIVEN_UP:
            raise NotSent(f"{MAX_GIVEN_UP} questions without an id are unanswered")
        else:
            self.in_order[pending] = None

    def match(
        self, message: Any, id: Hashable | None, now: float, *, in_order: bool = True
    ) -> Pending | Late | Unmatched | None:
        """Return, and close, the request that `message` answers; None where it answers none.

        `id` is the id that the message carries as an answer. With `in_order` off a message without one is
        only shown to matchers: it is known to be something else.
        """
        if id is not None and self.awaits(id, now):
            pending = self._by_id[identity(id)]
            self._forget(pending)
            return Late() if pending.given_up else pending
        while self._late_matchers and self._late_matchers[0].is_forgotten(now):
            self._forget_oldest_matcher()
        for pending in self.matchers:
            try:
                matched = _answers(message, pending)
            except Exception as error:
                return Unmatched(pending, error)
            if matched:
                del self.matchers[pending]
                if pending.given_up:
                    self._late_matchers.remove(pending)
                    return Late()
                return pending
        if in_order and id is None and self.in_order:
            pending, _ = self.in_order.popitem(last=False)
            return Late() if pending.given_up else pending
        return None

    def give_up(self, pending: Pending, now: float, *, sent: bool) -> None:
        """Stop waiting. Where the question was `sent`, its answer may still come, and is then late."""
        pending.give_up(now)
        if pending.ids:
            if self._by_id.get(pending.ids[0]) is not pending:
                return  # it was answered, or never opened
            if not sent:
                self._forget(pending)
                return
            self._given_up[pending] = None
            if len(self._given_up) > MAX_GIVEN_UP:
                self._forget(next(iter(self._given_up)))
        elif pending.matches is not None:
            if not sent:
                self.matchers.pop(pending, None)
            elif pending in self.matchers:
                self._late_matchers.append(pending)
                if len(self._late_matchers) > MAX_LATE_MATCHERS:
                    self._forget_oldest_matcher()
        elif not sent:
            self.in_order.pop(pending, None)

    def end(self) -> list[Pending]:
        """Forget all, and return what is still awaited: no answer to it can come any more."""
        awaited = self.awaited
        self._by_id.clear()
        self._given_up.clear()
        self.matchers.clear()
        self._late_matchers.clear()
        self.in_order.clear()
        return awaited

    def _forget_given_up(self, now: float) -> None:
        while self._given_up and (oldest := next(iter(self._given_up))).is_forgotten(now):
            self._forget(oldest)

    def _forget(self, pending: Pending) -> None:
        for id in pending.ids:
            del self._by_id[id]
        self._given_up.pop(pending, None)

    def _forget_oldest_matcher(self) -> None:
        del self.matchers[self._late_matchers.pop(0)]


def _taken(other: Pending, id: Hashable, now: float) -> str:
    """Return why an id cannot be used now."""
    if not other.given_up:
        return f"a request with the id {id!r} is under way already"
    since = max(now - other.given_up_at, 0.0)  # it lies ahead while reading stands still
    return (
        f"a request with the id {id!r} was given up {since:.3g} s ago and may still be answered: ask with "
        f"another id, or in {LATEST - since:.3g} s"
    )


def _answers(message: Any, pending: Pending) -> bool:
    assert pending.matches is not None
    try:
        return bool(pending.matches(message))
    except Exception:
        if not pending.given_up:
            raise
        return False  # who asked is gone: nobody could be told
