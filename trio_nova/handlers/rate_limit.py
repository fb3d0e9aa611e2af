"""How fast to send."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import attrs
from attrs.setters import convert, validate

from trio_nova.core import Strategy, check_number, derive, number, one_of
from trio_nova.core.limits import Limit, Limits, as_limits
from trio_nova.core.outbox import Purpose
from trio_nova.core.verdict import MAX_RETRY_AFTER
from trio_nova.errors import ConfigError, HandshakeRejected
from trio_nova.messages import Allow, Answered, Decision, Queue, Reject

__all__ = ["RATE_COSTS", "RateLimitHandler", "RateRequest"]

RATE_COSTS: Mapping[str, float] = {"subscription": 5.0, "auth": 10.0, "query": 1.0}
"""What a message costs by its purpose, where a service charges more for what gives it more work."""

DEFAULT_QUEUE_SIZE: float = 100
MIN_PACE = 0.05
"""The slowest that a peer's complaints can make us, as a fraction of the full pace: it must not be able to stop us."""
DEFAULT_WAIT = 1.0
"""Seconds to wait after a complaint that does not say how long, or says nonsense."""
SAME_COMPLAINT = 1.0
"""Seconds within which complaints count as one: several messages were on their way when the first was refused."""

_TOO_MANY_REQUESTS = (10028, 429)
_RESERVE_TO_LEAVE: Mapping[Purpose, float] = {"control": 0.0, "auth": 0.0, "subscription": 0.5, "setup": 0.5}
"""How much of the reserve must be left by what has which purpose; all of it where none is listed."""


@attrs.frozen(kw_only=True)
class RateRequest:
    """A message that wants to be sent."""

    kind: str
    """The message's type, as `MessageHandler.message_type` says."""
    size: int
    """Bytes; of a question without the id that the session gives it, and about so many where a hook encodes it."""
    now: float
    """Trio's clock, seconds."""
    purpose: Purpose = "message"
    """"control": pings, pongs and heartbeats; "auth"; "subscription"; "setup": what else a new link is told;
    "query": what `request` asks; "message": all the rest."""


def _as_dict(costs: Mapping[str, float]) -> dict[str, float]:
    return dict(costs)


def _check_costs(handler: object, attribute: attrs.Attribute[Any], costs: Mapping[str, float]) -> None:
    for cost in costs.values():
        check_number(attribute.name, cost)


def _check_reserve(handler: RateLimitHandler, attribute: attrs.Attribute[float], reserve: float) -> None:
    limits = Limits(handler.limits)
    if limits.admits_at(0.0, handler.costs.get("message", 1.0), reserve) == math.inf:
        raise ConfigError(attribute.name, f"{reserve:g} leaves nothing for messages")
    if limits.admits_at(0.0, reserve, reserve) == math.inf:
        warnings.warn(
            f"a reserve of {reserve:g} is more than the limits leave to messages and replies: behind heartbeats and "
            "subscriptions these may wait without end",
            stacklevel=3,
        )


@attrs.define(eq=False)
class RateLimitHandler(Strategy):
    """The default: no limit. With `limits`, a message waits until all of them have room for its cost.

    The handler outlives links, and so does what has been spent: a reconnect gives nothing back, because
    servers count by account. Tokens are spent when a message is handed to the writer; one that is
    withdrawn while it waits costs nothing.

    What the server complains of is obeyed (see `slow_down`). The pace then comes back by `recovery_step`
    for every `recovery_interval` without another complaint.
    """

    limits: Sequence[Limit] = attrs.field(default=(), converter=as_limits, on_setattr=[convert, derive])
    costs: Mapping[str, float] = attrs.field(
        factory=dict, converter=_as_dict, validator=_check_costs, on_setattr=[convert, validate, derive]
    )
    """What a message costs, by its type, else by its purpose (see `RATE_COSTS`); 1 where neither is listed."""
    reserve: float = attrs.field(default=0.0, validator=[number(), _check_reserve])
    """Tokens that messages and queries must leave to control frames and setup; subscriptions leave half of it.

    Pings, pongs and authentication are never late where it covers those of one period of the limits. One that is
    larger than what it leaves to messages is warned of: these, replies of hooks too, may come too short.
    """
    queue_size: float = attrs.field(default=DEFAULT_QUEUE_SIZE, validator=number(finite=False))
    """Messages that may wait for the limiter; beyond it the newest of the least urgent gets NotSent at once.

    Those that were accepted while there was no ready link are bounded by `Config.when_down` instead.
    """
    mode: Literal["normal", "always_allow", "always_queue", "always_reject"] = attrs.field(
        default="normal",
        validator=one_of("normal", "always_allow", "always_queue", "always_reject"),
    )
    """"always_queue" holds everything until the mode changes: for tests and maintenance."""
    tick_interval: float = attrs.field(default=1.0, validator=number(above=0.0))
    """Seconds between calls of `handle_tick`, where that is overridden."""
    recovery_step: float = attrs.field(default=0.1, validator=number(above=0.0, at_most=1.0))
    """What the pace regains at a time, as a fraction of the full one."""
    recovery_interval: float = attrs.field(default=10.0, validator=number(above=0.0))
    """Seconds without a complaint for one such step."""
    consumed: float = attrs.field(default=0.0, init=False, on_setattr=attrs.setters.NO_OP)
    """Tokens that were spent, in all."""
    _all: Limits = attrs.field(init=False, repr=False)
    _most: float = attrs.field(init=False, repr=False)
    """What the limits allow at once when nothing was spent."""
    _owed: float = attrs.field(default=0.0, init=False, repr=False, on_setattr=attrs.setters.NO_OP)
    """What left without being asked about, and found no room: paid before anything else is admitted."""
    _held_until: float = attrs.field(default=-math.inf, init=False, repr=False)
    _heeded_until: float = attrs.field(default=-math.inf, init=False, repr=False)
    """Until when further complaints belong to the last one that slowed us down."""
    _slowed_to: float = attrs.field(default=1.0, init=False, repr=False)
    _quiet_since: float = attrs.field(default=-math.inf, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._all = Limits(self.limits)
        self._most = self._all.available(0.0)
        for name, cost in self.costs.items():
            if self._all.admits_at(0.0, cost) == math.inf:
                raise ConfigError("costs", f"{name!r} costs {cost:g}, more than the limits ever allow at once")

    # ----------------------------------------------------------------- what a session asks

    def check_rate_limit(self, request: RateRequest) -> Decision:
        """Return Allow, having spent what the message costs; Queue, when to ask again; or Reject."""
        now = request.now
        match self.mode:
            case "always_allow":
                return Allow()
            case "always_queue":
                return Queue(now + self.tick_interval)
            case "always_reject":
                return Reject("everything is rejected")
        # Authentication that is held up would time out, and be tried again on link after link.
        urgent = request.purpose in ("control", "auth")
        if now < self._held_until and not urgent:
            return Queue(self._held_until)
        if self._owed and not self._repay(now):
            return Queue(self._all.admits_at(now, min(self._owed, 1.0)))
        cost = self._price(request)
        leave = self.reserve * _RESERVE_TO_LEAVE.get(request.purpose, 1.0)
        if not urgent and (pace := self.pace(now)) < 1.0:
            cost = max(cost, min(cost / pace, self._most - leave))
        when = self._all.admits_at(now, cost, leave)
        if when == math.inf:
            beside = f", with {leave:g} kept in reserve" if leave else ""
            return Reject(f"its cost of {cost:g} exceeds the limit{beside}")
        if when > now:
            return Queue(when)
        self._spend(now, cost)
        return Allow()

    def count_sent(self, request: RateRequest) -> None:
        """Count what was sent without being asked about: the pongs with which a link answers the peer's pings."""
        self._owed = min(self._owed + self._price(request), self._most)
        self._repay(request.now)

    def feedback(self, message: Any) -> float | None:
        """Return how many seconds the peer wants us to wait; None where `message` is no complaint about our pace.

        Asked about the reply of every request that failed, and about every `HandshakeRejected` with status
        429. The default knows `{"error": {"code": 10028 | 429}}`, and a `retry_after` in seconds beside the
        error, in it, or in its `data`. The session holds the answer within 0 and 900 s.
        """
        match message:
            case HandshakeRejected():
                return message.retry_after or 0.0
            case {"error": {"code": int(code)}} if code in _TOO_MANY_REQUESTS:
                return _seconds(next(_values_of_retry_after(message), None))
            case Mapping():
                asked = next(_values_of_retry_after(message), None)
                return None if asked is None else _seconds(asked)
            case _:
                return None

    def handle_tick(self) -> Answered:
        """Answer the passing of `tick_interval` on a link that is up."""
        return None

    # ----------------------------------------------------------------- the pace

    def slow_down(self, now: float, *, until: float | None = None, factor: float = 0.5) -> None:
        """Send nothing but control frames and authentication before `until`, and after it at `factor` of the pace.

        Complaints that come before `until`, or within a second of each other, count as one: they only
        put `until` off. The pace never falls below a twentieth. It acts on `limits`, by making everything
        dearer; without any, only `until` counts.

        Args:
            now: Trio's clock, seconds.
            until: Trio's clock; at most 900 s from now.
            factor: what the pace is multiplied by, above 0 and at most 1.

        Raises:
            ConfigError: a number is out of range.
        """
        check_number("factor", factor, above=0.0, at_most=1.0)
        if until is not None:
            check_number("until", until, at_least=-math.inf, finite=False)
        until = now if until is None else min(max(until, now), now + MAX_RETRY_AFTER)
        pace = self.pace(now)
        if now >= self._heeded_until:
            pace = max(MIN_PACE, pace * factor)
        self._heeded_until = max(self._heeded_until, until, now + SAME_COMPLAINT)
        self._held_until = max(self._held_until, until)
        self._slowed_to, self._quiet_since = pace, self._held_until

    def pace(self, now: float) -> float:
        """Return the pace in force, as a fraction of the full one."""
        if self._slowed_to >= 1.0:
            return 1.0
        steps = max(0.0, now - self._quiet_since) // self.recovery_interval
        return min(1.0, self._slowed_to + steps * self.recovery_step)

    @property
    def engaged(self) -> bool:
        """Whether there is anything to ask about; while there is not, a session sends without asking."""
        return bool(self.limits) or self.mode != "normal" or self._held_until > -math.inf

    # ----------------------------------------------------------------- tokens

    def _price(self, request: RateRequest) -> float:
        return self.costs.get(request.kind, self.costs.get(request.purpose, 1.0))

    def _spend(self, now: float, cost: float) -> None:
        self._all.spend(now, cost)
        self.consumed += cost

    def _repay(self, now: float) -> bool:
        """Pay what is owed, as far as there is room; return whether nothing is owed any more."""
        if self._all.admits_at(now, self._owed) > now:
            # In whole units: hairs of a token would be paid, and waited for, without end.
            paid = float(min(math.floor(self._all.available(now)), math.floor(self._owed)))
        else:
            paid = self._owed
        if paid > 0.0:
            self._spend(now, paid)
            self._owed -= paid
        return self._owed <= 0.0


def _values_of_retry_after(message: Mapping[Any, Any]) -> Iterator[Any]:
    error = message.get("error")
    data = error.get("data") if isinstance(error, Mapping) else None
    for place in (message, error, data):
        if isinstance(place, Mapping) and place.get("retry_after") is not None:
            yield place["retry_after"]


def _seconds(value: Any) -> float:
    """Read a number of seconds that a peer supplies, within 0 and MAX_RETRY_AFTER."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 64:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or value != value:
        return DEFAULT_WAIT
    return float(min(max(value, 0), MAX_RETRY_AFTER))
