"""What to count."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping

import attrs

from trio_nova.messages import (
    BecameReady,
    ConnectionEvent,
    Dropped,
    ErrorEvent,
    LinkClosed,
    LinkOpened,
    MessageEvent,
    PongReceived,
    RateLimited,
    Reconnected,
)

__all__ = ["Histogram", "MetricsCollector"]

_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@attrs.define(eq=False)
class Histogram:
    """Durations in seconds, counted by upper bound."""

    counts: list[int] = attrs.field(factory=lambda: [0] * (len(_BOUNDS) + 1))
    """One more than there are bounds: the last counts what exceeds them all."""
    total: float = 0.0
    bounds: tuple[float, ...] = _BOUNDS

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@attrs.define(eq=False)
class MetricsCollector:
    """The default: counters, gauges and histograms in memory, under a fixed set of names."""

    counters: Counter[str] = attrs.field(factory=Counter)
    gauges: dict[str, float] = attrs.field(factory=dict)
    histograms: dict[str, Histogram] = attrs.field(factory=dict)

    def handle_connection_event(self, event: ConnectionEvent) -> None:
        """Count what happened to the session or its link."""
        self.counters[f"events.{type(event).__name__}"] += 1
        match event:
            case LinkOpened():
                self._observe("connect_time", event.connect_time)
            case BecameReady():
                self.gauges["ready"] = 1.0
            case LinkClosed():
                self.gauges["ready"] = 0.0
                self._observe("link_duration", event.duration)
            case Reconnected():
                self._observe("outage", event.outage)
            case PongReceived():
                self._observe("rtt", event.rtt)
            case RateLimited():
                self._observe("rate_limit_wait", event.wait)
            case Dropped():
                self.counters["messages.dropped"] += event.count

    def handle_message_event(self, event: MessageEvent) -> None:
        """Look at one message. Only called where it is overridden: the default counts by batch."""

    def handle_message_batch(self, direction: str, messages: int, size: int) -> None:
        """Count `messages` of `size` bytes in all; `direction` is "sent" or "received"."""
        self.counters[f"messages.{direction}"] += messages
        self.counters[f"bytes.{direction}"] += size

    def handle_error_event(self, event: ErrorEvent) -> None:
        """Count an error, by its category."""
        self.counters[f"errors.{event.category}"] += 1

    def snapshot(self) -> Mapping[str, float]:
        """Return counters and gauges, by name."""
        return {**self.counters, **self.gauges}

    def _observe(self, name: str, seconds: float) -> None:
        self.histograms.setdefault(name, Histogram()).observe(seconds)
