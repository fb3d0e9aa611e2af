"""What a client process is told to do, and what it tells of it."""

from __future__ import annotations

import attrs
import msgspec


@attrs.frozen(kw_only=True)
class Job:
    """One lap of one workload."""

    workload: str
    """The name of a method of `Contender`."""
    run: str
    """The name under which the server writes down what it did."""
    url: str
    count: int
    """Messages, or connections."""
    size: int = 0
    """Bytes of payload of each message."""
    channels: int = 1
    verify: bool = False
    """Whether to take the checksum of all that is received: it takes time, so not while the clock counts."""
    certificate: str = ""
    """The authority to trust, as a file of PEM; for wss:// URLs."""
    compressed: bool = False


@attrs.frozen(kw_only=True)
class Lap:
    """What came of a job. The clock and the processor's time cover the work, not the opening of the connection."""

    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time, of all threads of the process."""
    count: int = 0
    size: int = 0
    """Bytes of payload, received or sent."""
    last: int = 0
    """The checksum of the last message."""
    checksum: int | None = None
    """Of all messages, where the job asked for it."""
    figures: dict[str, float] = attrs.field(factory=dict)
    """What else was measured, by name."""
    failure: str = ""
    """Why there is no result; empty where there is one."""
    unavailable: bool = False
    """Whether that is because the client does not have what is asked for."""


@attrs.frozen
class Hello:
    """What a client process says first."""

    versions: dict[str, str] = attrs.field(factory=dict)
    failure: str = ""


def encode(message: object) -> bytes:
    """Return a line for the other process."""
    return msgspec.json.encode(message) + b"\n"
