"""Four ready-made configurations, by what they are for: `open_connection(url, config=profiles.FINANCIAL)`.

Each is an ordinary `Config`: an override wins over it, and `attrs.evolve` makes another.
"""

from __future__ import annotations

import math

from trio_nova.config import Config
from trio_nova.core.backoff import ExponentialBackoff, LinearBackoff
from trio_nova.core.limits import TokenBucket
from trio_nova.core.outbox import Buffer
from trio_nova.handlers import RateLimitHandler

__all__ = ["FINANCIAL", "LIGHTWEIGHT", "MESSAGING", "STANDARD"]


def _local_rate_limit() -> RateLimitHandler:
    return RateLimitHandler(limits=[TokenBucket(capacity=60, rate=1.0)])


FINANCIAL = Config(
    backoff=ExponentialBackoff(base=0.1, cap=30.0, jitter=0.25, first_delay=0.5),
    max_attempts=math.inf,
    connect_timeout=5.0,
    ping_interval=15.0,
    pong_timeout=5.0,
)
"""Back within half a second, and for ever; a silent peer is noticed within 20 s; every event is reported."""

STANDARD = Config(
    backoff=LinearBackoff(base=1.0, cap=60.0, jitter=0.25, first_delay=2.0),
    max_attempts=10,
    connect_timeout=10.0,
    ping_interval=30.0,
    pong_timeout=10.0,
    events={"connection", "error"},
    rate_limit_handler=_local_rate_limit,
)
"""Ten attempts, evenly spread; sends are limited to bursts of 60 and 1 a second."""

LIGHTWEIGHT = Config(
    backoff=ExponentialBackoff(base=2.0, cap=10.0, jitter="equal", first_delay=2.0),
    max_attempts=3,
    connect_timeout=15.0,
    ping_interval=60.0,
    pong_timeout=15.0,
    when_down="fail",
    events={"connection", "error"},
)
"""Little traffic, and fails fast."""

MESSAGING = Config(
    backoff=ExponentialBackoff(base=1.0, cap=30.0),
    max_attempts=20,
    connect_timeout=8.0,
    ping_interval=45.0,
    pong_timeout=10.0,
    when_down=Buffer(max_items=10_000, ttl=300.0),
)
"""Sends wait for the next link, at most five minutes."""
