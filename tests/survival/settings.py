"""What all clients are set to: their own defaults, made shorter by the same measure, so that a run takes minutes."""

from __future__ import annotations

CONNECT_TIMEOUT = 3.0
"""Seconds for one attempt to connect."""
PING_INTERVAL = 1.0
"""Seconds between two pings."""
PONG_TIMEOUT = 2.0
"""Seconds of patience with a pong."""
CLOSE_TIMEOUT = 1.0
"""Seconds for the closing handshake."""
HASTE = 5.0
"""The back-off of websockets is its default divided by this, that of the others what RFC 6455 suggests, too."""
FIRST_DELAY = 5.0 / HASTE
"""Seconds, at most, before the first retry."""
LONGEST_DELAY = 120.0 / HASTE
"""Seconds, at most, before any retry, of trio_nova and of the hand-written loop."""
