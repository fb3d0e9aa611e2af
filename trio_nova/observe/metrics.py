"""Metrics: counters, gauges and histograms of what happens."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Mapping
from typing import get_args

import attrs

from trio_nova.core import Strategy
from trio_nova.events import (
    Authenticated,
    BecameReady,
    Category,
    ConsumerCaughtUp,
    Dropped,
    Event,
    Gap,
    LinkClosed,
    LinkOpened,
    Observation,
    PongReceived,
    RateConsumed,
    RateLimited,
    RateLimitSlowed,
    Reconnected,
    RequestResolved,
    SubscriptionsRestored,
)

__all__ = ["Histogram", "MetricsCollector"]

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_QUANTILES = (0.5, 0.95, 0.99)
_CATEGORIES = frozenset(get_args(Category))
_DURATIONS: Mapping[type[Event], tuple[str, str]] = {
    LinkOpened: ("connect_time", "connect_time"),
    LinkClosed: ("link_duration", "duration"),
    Reconnected: ("outage", "outage"),
    PongReceived: ("rtt", "rtt"),
    Authenticated: ("auth_duration", "duration"),
    SubscriptionsRestored: ("restore_duration", "duration"),
    RequestResolved: ("round_trip", "round_trip"),
    RateLimited: ("rate_limit_wait", "wait"),
    ConsumerCaughtUp: ("stalled", "stalled"),
}
"""Which histogram the duration in an event goes into, and which field of the event it is."""


@attrs.define(eq=False)
class Histogram:
    """Durations in seconds, counted by upper bound."""

    counts: list[int] = attrs.field(factory=lambda: [0] * (len(_BOUNDS) + 1))
    """One more than there are bounds: the last counts what exceeds them all."""
    total: float = 0.0
    """Seconds, all of them together."""
    bounds: tuple[float, ...] = _BOUNDS
    largest: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
        self.largest = max(self.largest, seconds)

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean; NaN where there are none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """Return the upper bound of the bucket that holds the quantile `q`, from 0 to 1; NaN where nothing was counted.

        It is never below the true quantile, and never above the largest duration.

        Raises:
            ValueError: `q` is not within 0 and 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile is a number from 0 to 1, not {q!r}")
        count = self.count
        rank, seen = max(1, math.ceil(q * count)), 0
        for bound, number in zip((*self.bounds, math.inf), self.counts, strict=True):
            seen += number
            if seen >= rank:
                return min(bound, self.largest)
        return math.nan


@attrs.define(eq=False)
class MetricsCollector(Strategy):
    """The default: counters, gauges and histograms in memory.

    The names are a fixed set, whatever a peer sends: classes of events, categories of errors, and those
    in `docs/reference/events.md`.
    """

    counters: Counter[str] = attrs.field(factory=Counter)
    gauges: dict[str, float] = attrs.field(factory=dict)
    histograms: dict[str, Histogram] = attrs.field(factory=dict)

    def handle_connection_event(self, observation: Observation) -> None:
        """Count what happened to the session or its link."""
        event = observation.event
        kind = type(event)
        self.counters[f"events.{kind.__name__}"] += 1
        if (duration := _DURATIONS.get(kind)) is not None:
            name, field = duration
            self.histograms.setdefault(name, Histogram()).observe(getattr(event, field))
        match event:
            case BecameReady():
                self.gauges["ready"] = 1.0
            case LinkClosed():
                self.gauges["ready"] = 0.0
            case PongReceived():
                self.gauges["latency"] = event.rtt
            case RateConsumed():
                self.counters["rate_limit.messages"] += event.messages
                self.gauges["rate_limit.consumed"] = self.gauges.get("rate_limit.consumed", 0.0) + event.cost
            case RateLimitSlowed():
                self.gauges["rate_limit.factor"] = event.factor
            case Dropped():
                self.counters["messages.dropped"] += event.count
            case Gap():
                self.counters["messages.missed"] += event.lost or 0

    def handle_message_event(self, observation: Observation) -> None:
        """Look at one message. Only called where it is overridden: the default counts by batch."""

    def handle_message_batch(self, direction: str, messages: int, size: int) -> None:
        """Count `messages` of `size` bytes in all; `direction` is "sent" or "received"."""
        self.counters[f"messages.{direction}"] += messages
        self.counters[f"bytes.{direction}"] += size

    def handle_error_event(self, observation: Observation) -> None:
        """Count an error, by its category; one that is not in `Category` counts as "unknown"."""
        told = getattr(observation.event, "category", "unknown")
        category = told if told in _CATEGORIES else "unknown"
        self.counters[f"errors.{category}"] += 1

    def snapshot(self) -> Mapping[str, float]:
        """Return counters and gauges by name, and of each histogram its count, sum, and quantiles.

        The names of the latter are `rtt.count`, `rtt.sum`, `rtt.p50`, `rtt.p95` and `rtt.p99`.
        """
        taken: dict[str, float] = {**self.counters, **self.gauges}
        for name, histogram in self.histograms.items():
            taken[f"{name}.count"], taken[f"{name}.sum"] = histogram.count, histogram.total
            for q in _QUANTILES:
                taken[f"{name}.p{q * 100:g}"] = histogram.quantile(q)
        return taken
