"""How fast to send."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs

from trio_nova.core.limits import Limit, Limits
from trio_nova.messages import Action, Allow, Decision, Queue, Reject

__all__ = ["RateLimitHandler", "RateRequest"]


@attrs.frozen(kw_only=True)
class RateRequest:
    """A message that wants to be sent."""

    kind: str
    """The message's type, as `MessageHandler.message_type` says."""
    size: int
    """Bytes."""
    now: float
    """Trio's clock, seconds."""
    control: bool = False
    """A ping or pong: it may use the reserve."""


def _as_tuple(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    return tuple(limits)


@attrs.define(eq=False)
class RateLimitHandler:
    """The default: no limit. With `limits`, a message waits until all of them have room for its cost."""

    limits: Sequence[Limit] = attrs.field(default=(), converter=_as_tuple)
    costs: Mapping[str, float] = attrs.field(factory=dict)
    """What a message costs, by its type; 1 where it is not listed."""
    reserve: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Tokens that only control frames may use."""
    mode: Literal["normal", "always_allow", "always_queue", "always_reject"] = attrs.field(
        default="normal",
        validator=attrs.validators.in_(("normal", "always_allow", "always_queue", "always_reject")),
    )
    """"always_queue" holds everything until the mode changes: for tests and maintenance."""
    tick_interval: float = attrs.field(default=1.0, validator=attrs.validators.gt(0.0))
    """Seconds between calls of `handle_tick`, where that is overridden."""
    _all: Limits = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._all = Limits(self.limits)

    def check_rate_limit(self, request: RateRequest) -> Decision:
        """Return Allow, having spent what the message costs; Queue, when to ask again; or Reject."""
        match self.mode:
            case "always_allow":
                return Allow()
            case "always_queue":
                return Queue(request.now + self.tick_interval)
            case "always_reject":
                return Reject("everything is rejected")
        cost = self.costs.get(request.kind, 1.0)
        when = self._all.admits_at(request.now, cost, 0.0 if request.control else self.reserve)
        if when > request.now:
            return Queue(when) if when < float("inf") else Reject(f"its cost of {cost:g} exceeds the limit")
        self._all.spend(request.now, cost)
        return Allow()

    def handle_tick(self) -> Action:
        """Answer the passing of `tick_interval` on a link that is up."""
        return None
