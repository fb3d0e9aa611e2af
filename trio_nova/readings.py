"""The meanings of received messages: the dozen things that session protocols say, as values.

`Dialect.read` answers with one of these, and the session does the rest. They are cheap to make, as one is made for
each message; all of them are frozen, and compare by value.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec

from trio_nova.core.sequence import Step as Step
from trio_nova.core.verdict import MAX_RETRY_AFTER
from trio_nova.errors import RequestFailed

__all__ = [
    "Answer",
    "AuthOk",
    "AuthRefused",
    "Beat",
    "ByServerId",
    "Call",
    "Data",
    "Done",
    "Ended",
    "GoAway",
    "Granted",
    "HeartbeatAsked",
    "Item",
    "Many",
    "Other",
    "Position",
    "Reading",
    "Refused",
    "Step",
    "Throttled",
    "Welcome",
    "as_step",
    "is_key",
    "seconds",
]


class _Value(msgspec.Struct, frozen=True):
    """A frozen value with slots, made in C."""


# --------------------------------------------------------------------------- answers


class Answer(_Value, frozen=True):
    """The answer to a request: it settles whoever asked."""

    payload: Any
    """The value that `Connection.request` returns."""
    id: Hashable | None = None
    """The id of the request; None: the oldest one that is unanswered, in the order of the wire."""
    error: str | RequestFailed | None = None
    """Why the service says no, or the very error that the caller gets; None: it says yes."""


class Item(_Value, frozen=True):
    """One of the many answers to a request that opened a stream."""

    id: Hashable
    payload: Any


class Done(_Value, frozen=True):
    """The end of a stream of answers."""

    id: Hashable
    error: str | RequestFailed | None = None
    """Why the service ended it; None: it is complete."""


def is_key(said: object) -> bool:
    """Return whether anything of ours could be called so: a service may well name an array."""
    try:
        hash(said)
    except TypeError:
        return False
    return True


def seconds(said: object) -> float | None:
    """Return the seconds that a service names; None where it names none, or nonsense."""
    if isinstance(said, bool) or not isinstance(said, int | float | Decimal) or said != said:
        return None
    return float(min(max(said, 0), MAX_RETRY_AFTER))


# --------------------------------------------------------------------------- channels


class ByServerId(_Value, frozen=True):
    """A channel by the name that the service gave it on this link, as `Granted` told."""

    id: Hashable


class Data(_Value, frozen=True):
    """A message of a channel, or of several."""

    channel: Hashable | ByServerId | list[Hashable]
    """The key of its subscription, which is the channel's name unless `key` makes another; of several, a list."""
    payload: Any
    """The value that the consumer of the feed gets."""
    step: Step | int | None = None
    """Its place in the channel's sequence; a number is short for `Step(number)`."""
    id: Hashable | None = None
    """The same each time that the service delivers this message, and another for each other one."""
    ack: Any = None
    """The message that acknowledges it to the service."""


def as_step(step: Step | int | None) -> Step | None:
    """Return a step of which the number alone may be given."""
    return step if step is None or isinstance(step, Step) else Step(step)


class Granted(_Value, frozen=True):
    """The service has confirmed a subscription."""

    channel: Hashable | None
    """Its key. In the answer to the request for it None: the channels that were asked for, each in its place."""
    server_id: Hashable | None = None
    """The service's name for it on this link, where that is not the channel."""


class Refused(_Value, frozen=True):
    """The service has refused a subscription, or taken it back."""

    channel: Hashable | None
    """As of `Granted`."""
    reason: str = ""
    retry_after: float | None = None
    """Seconds after which to ask again, where it was refused for now; None: for good."""


class Ended(_Value, frozen=True):
    """A subscription has come to its end, as the service says: there is no more to come."""

    channel: Hashable | ByServerId
    reason: str = ""
    """Why it broke off: the feed ends with SubscriptionRejected. "": it is complete."""


# --------------------------------------------------------------------------- the setup of a link


class Welcome(_Value, frozen=True):
    """The first word of a service that speaks unasked: `AuthExchange.receive` returns it."""

    payload: Any


class AuthOk(_Value, frozen=True):
    """The service accepts us."""

    expires_in: float | None = None
    """Seconds for which it does; None: as long as the link lasts."""
    tokens: Sequence[str] = ()
    """Secrets that it gave us: all that are in force now, also if they were given before.

    They are masked in all that the session says. One that a later grant does not name is masked for a while longer;
    a grant that names none leaves those of the grant before in force.
    """

    def __repr__(self) -> str:
        return f"AuthOk(expires_in={self.expires_in!r})"


class AuthRefused(_Value, frozen=True):
    """The service refuses us."""

    reason: str = ""
    retry: bool = False
    """True: the same credentials may be accepted later."""


# --------------------------------------------------------------------------- the service's own wishes


class HeartbeatAsked(_Value, frozen=True):
    """The service asks for a sign of life."""

    reply: Any
    """The message to send, ahead of any queue; None: nothing."""
    asks: bool = False
    """True: the reply is a request. It is sent with an id of the session's, and its answer is of no interest."""


class Beat(_Value, frozen=True):
    """A sign of the service's life, which nobody receives."""

    answers: bool = False
    """True: it answers our probe, and so tells the round-trip time."""


class Call(_Value, frozen=True):
    """A request of the service's, which wants an answer of ours under this id."""

    id: Hashable
    payload: Any


class Position(_Value, frozen=True):
    """The token that resumes the service's session on another link: `ConnectionInfo.position` of the next dials."""

    token: Any

    def __repr__(self) -> str:
        return "Position(***)"


class GoAway(_Value, frozen=True):
    """The service asks us to take another link."""

    within: float | None = None
    """Seconds until it closes this one; None: it does not say."""
    url: str | None = None
    """The address to go to; None: that of the session."""
    reason: str = ""


class Throttled(_Value, frozen=True):
    """The service says that we send too fast."""

    retry_after: float | None = None
    """Seconds for which to be silent; None: it does not say."""
    what: Any = None
    """The message that it did not take, if it says so."""


# --------------------------------------------------------------------------- the rest


class Many(_Value, frozen=True):
    """Several readings of one message, in their order; none: the message is of no interest to anybody."""

    readings: Sequence[Any]


class Other(_Value, frozen=True):
    """An ordinary message: message handlers see it, and `Connection.receive` returns it."""

    payload: Any


Reading: TypeAlias = (
    Answer
    | Item
    | Done
    | Data
    | Granted
    | Refused
    | Ended
    | Welcome
    | AuthOk
    | AuthRefused
    | HeartbeatAsked
    | Beat
    | Call
    | Position
    | GoAway
    | Throttled
    | Many
    | Other
)
"""The meaning of a message."""
