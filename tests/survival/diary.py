"""What a client process is told to do, and what it tells of it. All times are those of `time.monotonic`.

That clock is one for all processes of a machine, so that what the service did and what the client's
program saw can be put in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen(kw_only=True)
class Job:
    """How the client's program is to live."""

    url: str
    certificate: str = ""
    """The authority to trust, as a file of PEM; for wss:// URLs."""
    pause: float = 0.0
    """Seconds that the program takes over each message."""
    send_interval: float = 0.1
    """Seconds between the messages that it sends."""
    send_size: int = 100
    """Bytes of each, about."""


@attrs.frozen
class Heard:
    """A message that reached the program."""

    at: float
    number: int
    link: int
    """The number of the link that the service wrote it to."""


@attrs.frozen
class Told:
    """A notice that the program was given: messages may be missing from here on."""

    at: float
    what: str


@attrs.frozen
class Sent:
    """A message for which the program's call to send returned as if all were well."""

    at: float
    number: int


@attrs.frozen(kw_only=True)
class Diary:
    """What befell the program so far."""

    heard: Sequence[Heard] = ()
    told: Sequence[Told] = ()
    sent: Sequence[Sent] = ()
    death: str = ""
    """The exception that ended its loop; empty while it lives."""
    memory: int = 0
    """Bytes by which the resident set grew, at its peak."""


@attrs.frozen(kw_only=True)
class Left:
    """How the loop ended, when it was told to."""

    seconds: float
    error: str = ""
    """What came out; empty for a cancellation."""
