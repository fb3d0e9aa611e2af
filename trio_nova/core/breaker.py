"""A circuit breaker: it stops the dials to an origin that keeps failing, before somebody there bans us.

Each origin has a circuit, which moves by one table. While it is *closed* dials go through. So many failures within so
many seconds *open* it: nobody dials. After a while it is *half open*: one dial goes through, the probe. If that
succeeds the circuit is closed, else it is open again.
"""

from __future__ import annotations

import enum
from collections import deque

import attrs

from trio_nova.core._checks import check_count, number
from trio_nova.errors import CircuitOpen

__all__ = ["TRANSITIONS", "CircuitBreaker", "CircuitState", "Passage"]

MAX_ORIGINS = 1_000
"""Origins of which failures are remembered; one more makes it forget the one that has been known for longest."""
PROBE_WAIT = 1.0
"""Seconds after which to ask again, at the earliest, while somebody else's probe is under way."""
_LEAST_WAIT = 0.001


class CircuitState(enum.StrEnum):
    """Whether dials to an origin go through."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not."""
    HALF_OPEN = "half open"
    """One does, and the others wait for what becomes of it."""


class _Event(enum.Enum):
    TRIP = "trip"
    """There were too many failures."""
    PROBE = "probe"
    SUCCEED = "succeed"
    FAIL = "fail"
    """The probe has failed."""
    GIVE_BACK = "give back"
    """The probe was given up: it has shown nothing."""


_S, _E = CircuitState, _Event

TRANSITIONS: dict[CircuitState, dict[_Event, CircuitState]] = {
    _S.CLOSED: {_E.TRIP: _S.OPEN},
    _S.OPEN: {_E.PROBE: _S.HALF_OPEN, _E.SUCCEED: _S.CLOSED},  # a dial that began before may succeed
    _S.HALF_OPEN: {_E.SUCCEED: _S.CLOSED, _E.FAIL: _S.OPEN, _E.GIVE_BACK: _S.OPEN},
}
"""What is not listed changes nothing."""


@attrs.define(eq=False)
class _Circuit:
    """The circuit of one origin."""

    failures: int
    within: float
    open_for: float
    state: CircuitState = CircuitState.CLOSED
    open_until: float = 0.0
    _failed_at: deque[float] = attrs.field(init=False)
    """The latest failures, as many as open it."""

    def __attrs_post_init__(self) -> None:
        self._failed_at = deque(maxlen=self.failures)

    def wait(self, now: float) -> float:
        """Return the seconds for which nobody may dial; 0: somebody may."""
        match self.state:
            case CircuitState.CLOSED:
                return 0.0
            case CircuitState.OPEN:
                return max(self.open_until - now, _LEAST_WAIT) if now < self.open_until else 0.0
            case CircuitState.HALF_OPEN:
                return PROBE_WAIT

    def enter(self) -> bool:
        """Let a dial through; return whether it is the probe."""
        return self._move(_E.PROBE)

    def succeeded(self) -> bool:
        closed = self._move(_E.SUCCEED)
        if closed:
            self._failed_at.clear()
        return closed

    def failed(self, now: float, *, is_probe: bool) -> bool:
        """Note a failure; return whether the circuit is open by that."""
        if is_probe:
            opened = self._move(_E.FAIL)
        else:
            self._failed_at.append(now)
            too_many = len(self._failed_at) == self.failures and now - self._failed_at[0] <= self.within
            opened = too_many and self._move(_E.TRIP)
        if opened:
            self.open_until = now + self.open_for
        return opened

    def gave_back(self) -> None:
        """Let another dial be the probe, at once."""
        self._move(_E.GIVE_BACK)

    def _move(self, event: _Event) -> bool:
        new = TRANSITIONS[self.state].get(event)
        if new is None:
            return False
        self.state = new
        return True


@attrs.define(eq=False)
class Passage:
    """The leave for one dial. What became of the dial is told once; what is told after that changes nothing."""

    _circuit: _Circuit
    _is_probe: bool
    _settled: bool = attrs.field(default=False, init=False)

    def succeeded(self) -> bool:
        """Note that there is a link; return whether dials go through again by that."""
        return self._settle() and self._circuit.succeeded()

    def failed(self, now: float) -> bool:
        """Note that the dial failed; return whether nobody may dial any more by that."""
        return self._settle() and self._circuit.failed(now, is_probe=self._is_probe)

    def give_back(self) -> None:
        """Note that the dial was given up, if nothing else is known of it."""
        if self._settle() and self._is_probe:
            self._circuit.gave_back()

    def _settle(self) -> bool:
        first, self._settled = not self._settled, True
        return first


@attrs.define(eq=False)
class CircuitBreaker:
    """Stops the dials to an origin after `failures` within `within` seconds, for `open_for` seconds; then one tries.

    Sessions that are given the same breaker share it: what one of them learns of an origin holds for all.
    """

    failures: int = attrs.field(default=10, validator=check_count)
    """Dials that fail, logins that are refused, and links that do not last, after which nobody dials."""
    within: float = attrs.field(default=60.0, kw_only=True, validator=number(above=0.0))
    """Seconds in which so many must fail."""
    open_for: float = attrs.field(default=60.0, kw_only=True, validator=number(above=0.0))
    """Seconds for which nobody dials then, and again after each probe that fails."""
    _circuits: dict[str, _Circuit] = attrs.field(factory=dict, init=False, repr=False)
    """By origin."""

    def state(self, origin: str) -> CircuitState:
        """Return whether dials to `origin` go through; it is as `CircuitOpened.origin` has it: `wss://example.com`."""
        circuit = self._circuits.get(origin)
        return CircuitState.CLOSED if circuit is None else circuit.state

    def check(self, origin: str, now: float) -> None:
        """Raise CircuitOpen where nobody may dial `origin` at `now`."""
        circuit = self._circuits.get(origin)
        if circuit is not None and (wait := circuit.wait(now)) > 0.0:
            raise CircuitOpen(f"nobody dials {origin} for {wait:.3g} s: too much has failed there", retry_after=wait)

    def enter(self, origin: str, now: float) -> Passage:
        """Return the leave to dial `origin` at `now`.

        Raises:
            CircuitOpen: nobody may.
        """
        self.check(origin, now)
        circuit = self._circuit_of(origin)
        return Passage(circuit, circuit.enter())

    def failed(self, origin: str, now: float) -> bool:
        """Note that a link to `origin` came to nothing after its dial had succeeded; return whether that opens it."""
        return self._circuit_of(origin).failed(now, is_probe=False)

    def _circuit_of(self, origin: str) -> _Circuit:
        circuit = self._circuits.get(origin)
        if circuit is None:
            circuit = self._circuits[origin] = _Circuit(self.failures, self.within, self.open_for)
            if len(self._circuits) > MAX_ORIGINS:
                del self._circuits[next(iter(self._circuits))]
        return circuit
