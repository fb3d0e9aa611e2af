"""How to find out whether the peer lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from trio_nova.core import Strategy
from trio_nova.messages import Ping
from trio_nova.readings import Beat, HeartbeatAsked

__all__ = ["Heartbeat", "MessageHeartbeat", "NoHeartbeat", "PingHeartbeat", "ServerHeartbeat"]


@attrs.define(unsafe_hash=True)
class Heartbeat(Strategy):
    """What a session asks its heartbeat. When to ask is `Config.ping_interval`'s and `pong_timeout`'s."""

    answered = True
    """Whether a sign of life is due, within `pong_timeout`, after a probe."""
    asks = False
    """Whether a probe is a request, with an id of the session's, and the answer to it answers the probe."""

    def probe(self, payload: bytes) -> Any:
        """Return what to send as a probe: a `Ping` with this unique payload, or a message; None to send nothing."""
        return None

    def read(self, message: Any) -> Beat | HeartbeatAsked | None:
        """Return `message` as a sign of life, or as the peer's wish for one; None where it is neither."""
        return None


@attrs.define(unsafe_hash=True)
class PingHeartbeat(Heartbeat):
    """The protocol's own ping and pong (RFC 6455 sections 5.5.2 and 5.5.3): the default."""

    def probe(self, payload: bytes) -> Ping:
        return Ping(payload)


@attrs.define(unsafe_hash=True)
class MessageHeartbeat(Heartbeat):
    """An application message, for services that want one: it leaves each `ping_interval`, whatever is received."""

    message: Any
    expects: Callable[[Any], bool] = attrs.field(default=lambda message: False)
    """Whether a received message is the answer."""
    answered: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    """False: a beat that nobody answers. The link is not judged by it, only by `idle_timeout` and by its writes."""
    asks: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool), kw_only=True)
    """Whether the message is a request: it is sent with an id of the session's, and its answer is what is expected."""

    def probe(self, payload: bytes) -> Any:
        return self.message

    def read(self, message: Any) -> Beat | None:
        return Beat(answers=True) if self.expects(message) else None


@attrs.define(unsafe_hash=True)
class ServerHeartbeat(Heartbeat):
    """The server asks, we answer. Set `idle_timeout` above its interval to notice when it stops asking."""

    respond: Callable[[Any], Any]
    """Returns the answer to a received message that asks for one, else None."""

    def read(self, message: Any) -> HeartbeatAsked | None:
        reply = self.respond(message)
        return None if reply is None else HeartbeatAsked(reply)


@attrs.define(unsafe_hash=True)
class NoHeartbeat(Heartbeat):
    """Off. A dead peer is then noticed only by `idle_timeout`, or by a write that makes no progress."""
