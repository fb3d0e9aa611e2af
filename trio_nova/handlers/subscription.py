"""How a service is told what we want to hear, what it answers, and which message belongs to what."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import attrs

from trio_nova.core import check_count
from trio_nova.core.sequence import Tracker

__all__ = ["Channel", "Granted", "Refused", "SubscriptionAnswer", "SubscriptionHandler"]


_ANSWERS = ("subscribed", "unsubscribed", "subscription", "error")


@attrs.frozen
class Granted:
    """The service has confirmed a subscription."""

    key: Hashable
    server_id: Hashable | None = None
    """The name that its messages bear on this link, where that is not the key."""


@attrs.frozen
class Refused:
    """The service has refused a subscription."""

    key: Hashable
    reason: str = ""


SubscriptionAnswer: TypeAlias = Granted | Refused


@attrs.frozen
class Channel:
    """One thing to be subscribed to."""

    key: Hashable
    name: str
    params: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.define(eq=False)
class SubscriptionHandler:
    """The default: a message for each channel, answered by a message that names it.

    It asks with `{"type": "subscribe", "channel", "params"}`, gives up with `{"type": "unsubscribe",
    "channel"}`, and reads `{"type": "subscribed", "id" | "channel"}`, `{"type": "subscription", "result",
    "id" | "channel"}` and `{"type": "error", "subscription_id" | "channel", "reason"}`. Data are the
    messages with a `channel` that are none of these.
    """

    correlated: ClassVar[bool] = False
    """Whether the service answers a subscription as it answers a request, so that `read_grants` reads it."""
    resumes: ClassVar[bool] = False
    """Whether the service replays, on a new link, what was missed: then repetitions are expected, and dropped."""
    unsubscribes_by_id: ClassVar[bool] = False
    """Whether a subscription is given up by the server's id: then it cannot be before the server has told it.

    What the server grants though it is not wanted any more is given back under its id. With `drops_unclaimed` so
    is that of which only data come, because the answer that named it was lost: at most 64 on a link.
    """
    drops_unclaimed: ClassVar[bool] = False
    """Whether data of no subscription of ours go nowhere, rather than to whoever receives ordinary messages."""
    max_batch: int = attrs.field(default=1, validator=check_count)
    """How many channels one message may ask for."""

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return what tells this subscription from others: two of the same key are one on the wire.

        It is also what `channel_of` returns of its messages, unless the service names them by an id of its own.
        """
        return channel

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        """Return the message that asks for `channel`."""
        return {"type": "subscribe", "channel": channel, "params": dict(params)}

    def split_batch(self, channels: Sequence[Channel]) -> Iterable[Sequence[Channel]]:
        """Return `channels`, which are up to `max_batch`, in the groups and the order in which to ask for them."""
        return [channels]

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        """Return the message that asks for several channels at once; only called where `max_batch` is more than 1."""
        return {"type": "subscribe", "channels": [channel.name for channel in channels]}

    def encode_unsubscription_request(self, channel: str) -> Any:
        """Return the message that gives `channel` up; None where there is nothing to say."""
        return {"type": "unsubscribe", "channel": channel}

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        """Return the message that gives a subscription up, for services that go by ids of their own.

        Where only that id is known of it, the channel has no name.
        """
        return self.encode_unsubscription_request(channel.name)

    def read_grants(self, reply: Any, asked: Sequence[Channel]) -> Iterable[SubscriptionAnswer]:
        """Return what the answer to a request says of each channel `asked` for; what it leaves out is refused."""
        return [Granted(channel.key) for channel in asked]

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        """Return what `message` says of subscriptions, maybe nothing new; None where it is about none."""
        if not isinstance(message, Mapping):
            return None
        key = _hashable(message.get("channel", message.get("id", message.get("subscription_id"))))
        match message:
            case {"type": "subscribed", "channels": list() as names}:
                return [Granted(name) for name in names if isinstance(name, Hashable)]
            case {"type": "unsubscribed"}:
                return []
            case {"type": "subscribed"}:
                return Granted(key)
            case {"type": "subscription", "result": result}:
                return Granted(key) if result in (True, None, "ok", "success") else Refused(key, str(result))
            case {"type": "error"} if key is not None:
                return Refused(key, str(message.get("reason", "")))
            case _:
                return None

    def channel_of(self, message: Any) -> Hashable | None:
        """Return the key, or the server's id, of the subscription whose data `message` is; None where it is none."""
        if not isinstance(message, (dict, Mapping)) or message.get("type") in _ANSWERS:
            return None
        return _hashable(message.get("channel"))

    def data_of(self, message: Any) -> Any:
        """Return what the feed's consumer gets of a message."""
        return message

    def tracker(self, channel: Channel) -> Tracker | None:
        """Return what watches the sequence of a channel's messages for gaps; None where they bear no sequence."""
        return None

    def link_tracker(self) -> Tracker | None:
        """Return what watches one sequence that runs through all messages of a link; None where there is none.

        Asked for each link, and shown every message of it, of whatever kind. Nobody knows whose messages a gap in it
        has swallowed: it is told to the readers of every channel but those whose own tracker counts their messages,
        and books are asked for anew.
        """
        return None

    def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
        """Return the params with which to ask for `channel` again after `last`; as they are where it cannot resume."""
        return channel.params


def _hashable(name: Any) -> Hashable | None:
    """Return what a peer calls a channel; None where nothing of ours could be called so: an array, say."""
    return name if isinstance(name, (str, Hashable)) else None
