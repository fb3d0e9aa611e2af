"""A trace of states: the last changes of state of one or several sessions, with what brought them about."""

from __future__ import annotations

from typing import ClassVar

import attrs
import msgspec

from trio_nova.core import check_count
from trio_nova.core.session import State
from trio_nova.events import Event, LinkClosed, Observation, RetryScheduled, SessionEnded, StateChanged
from trio_nova.observe.logging import sentence

__all__ = ["StateTrace", "TracedChange"]


@attrs.frozen(kw_only=True)
class TracedChange:
    """A change of state, as a trace keeps it."""

    session: str
    """The name of the session."""
    epoch: int
    """The number of the link, or of the last one; 0 before the first."""
    at: float
    """Trio's clock, seconds."""
    wall: float
    """Unix time, seconds."""
    old: str
    """The value of a `State`."""
    new: str
    """The value of a `State`."""
    cause: str = ""
    """What brought it about, where more is known than the two states say: in words, without secrets."""


@attrs.define(eq=False)
class StateTrace:
    """An observer that keeps the last changes of state: `open_connection(..., observers=[trace])`.

    One trace may observe any number of sessions, which share its room.
    """

    hears: ClassVar[tuple[type[Event], ...]] = (StateChanged, LinkClosed, RetryScheduled, SessionEnded)

    size: int = attrs.field(default=256, validator=check_count)
    """Changes that are kept; one more makes it forget the oldest."""
    _changes: dict[int, TracedChange] = attrs.field(factory=dict, init=False, repr=False)
    """By their number, the oldest first."""
    _seen: int = attrs.field(default=0, init=False)
    _foretold: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    """By session: what was told since its last change, and is the cause of the next."""
    _unexplained: dict[str, tuple[int, ...]] = attrs.field(factory=dict, init=False, repr=False)
    """By session: the numbers of its latest changes of which the cause may still be told, two at most."""

    @property
    def dropped(self) -> int:
        """How many changes were forgotten, as there were more than `size`."""
        return self._seen - len(self._changes)

    def changes(self, session: str | None = None) -> tuple[TracedChange, ...]:
        """Return what is kept, the oldest first; of one session only, where its name is given."""
        return tuple(each for each in self._changes.values() if session in (None, each.session))

    def export(self) -> str:
        """Return the trace as JSON: an object of `dropped`, a number, and `changes`, each with the fields that it has.

        The same changes always make the same text.
        """
        changes = [attrs.asdict(change) for change in self._changes.values()]
        return msgspec.json.encode({"dropped": self.dropped, "changes": changes}).decode()

    def __call__(self, observation: Observation) -> None:
        """Take in what a session tells."""
        session, event = observation.session, observation.event
        match event:
            case StateChanged():
                self._keep(observation, event)
            case LinkClosed() if self._is_down(session):
                self._explain(session, _words(observation))
            case LinkClosed():  # on purpose: the session is over then
                self._foretold[session] = _words(observation)
            case RetryScheduled():
                self._explain(session, _words(observation))
            case SessionEnded(error=error):
                if error is not None:
                    self._explain(session, _words(observation))
                self._foretold.pop(session, None)
                self._unexplained.pop(session, None)

    def _keep(self, observation: Observation, event: StateChanged) -> None:
        session, number = observation.session, self._seen
        foretold = self._foretold.pop(session, "")
        cause = "" if event.new == State.FAILED else foretold  # of a failure the end of the session says more
        self._changes[number] = TracedChange(
            session=session,
            epoch=observation.epoch,
            at=observation.at,
            wall=observation.wall,
            old=event.old,
            new=event.new,
            cause=cause,
        )
        self._seen += 1
        before = self._unexplained.get(session, ()) if event.old == State.DISCONNECTED else ()
        self._unexplained[session] = (*before, number)
        for kept in (self._changes, self._foretold, self._unexplained):
            if len(kept) > self.size:
                del kept[next(iter(kept))]  # type: ignore[arg-type]

    def _is_down(self, session: str) -> bool:
        """Return whether the latest change was the loss of a link: its end is told after it."""
        latest = self._changes.get(self._unexplained.get(session, (-1,))[-1])
        return latest is not None and latest.new == State.DISCONNECTED

    def _explain(self, session: str, cause: str) -> None:
        """Say of the changes which have waited for it what brought them about."""
        for number in self._unexplained.pop(session, ()):
            change = self._changes.get(number)
            if change is not None and not change.cause:
                self._changes[number] = attrs.evolve(change, cause=cause)


def _words(observation: Observation) -> str:
    return sentence(observation).removeprefix(observation.session).lstrip()
