"""How to find out whether the peer lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from trio_nova.messages import Ping

__all__ = ["Heartbeat", "MessageHeartbeat", "NoHeartbeat", "PingHeartbeat", "ServerHeartbeat"]


@attrs.frozen
class Heartbeat:
    """What a session asks its heartbeat. When to ask is `Config.ping_interval`'s and `pong_timeout`'s."""

    answered = True
    """Whether a sign of life is due, within `pong_timeout`, after a probe."""

    def probe(self, payload: bytes) -> Any:
        """Return what to send as a probe: a `Ping` with this unique payload, or a message; None to send nothing."""
        return None

    def is_answer(self, message: Any) -> bool:
        """Return whether `message` answers the probe: it is then not delivered, and gives the round-trip time."""
        return False

    def is_beat(self, message: Any) -> bool:
        """Return whether `message` only says that the peer lives: it is then not delivered."""
        return False

    def answer(self, message: Any) -> Any:
        """Return what to send, ahead of any queue, in answer to the peer's own probe; None where it is none."""
        return None


@attrs.frozen
class PingHeartbeat(Heartbeat):
    """The protocol's own ping and pong (RFC 6455 sections 5.5.2 and 5.5.3): the default."""

    def probe(self, payload: bytes) -> Ping:
        return Ping(payload)


@attrs.frozen
class MessageHeartbeat(Heartbeat):
    """An application message, for services that want one: it leaves each `ping_interval`, whatever is received."""

    message: Any
    expects: Callable[[Any], bool] = attrs.field(default=lambda message: False)
    """Whether a received message is the answer."""
    answered: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    """False: a beat that nobody answers. The link is not judged by it, only by `idle_timeout` and by its writes."""

    def probe(self, payload: bytes) -> Any:
        return self.message

    def is_answer(self, message: Any) -> bool:
        return self.expects(message)


@attrs.frozen
class ServerHeartbeat(Heartbeat):
    """The server asks, we answer. Set `idle_timeout` above its interval to notice when it stops asking."""

    respond: Callable[[Any], Any]
    """Returns the answer to a received message that asks for one, else None."""

    def answer(self, message: Any) -> Any:
        return self.respond(message)


@attrs.frozen
class NoHeartbeat(Heartbeat):
    """Off. A dead peer is then noticed only by `idle_timeout`, or by a write that makes no progress."""
