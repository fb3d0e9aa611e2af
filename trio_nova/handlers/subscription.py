"""How a service is told what we want to hear, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import attrs

from trio_nova.core import Strategy, check_count
from trio_nova.core.sequence import Tracker
from trio_nova.readings import Data, Granted, Reading, Refused, Step

__all__ = ["Channel", "Hole", "Page", "SubscriptionAnswer", "SubscriptionHandler"]

ANSWERS = ("subscribed", "unsubscribed", "subscription", "error")
"""Types of messages that are answers, and no data, though they name a channel."""

SubscriptionAnswer: TypeAlias = Granted | Refused


@attrs.frozen
class Channel:
    """One thing to be subscribed to."""

    key: Hashable
    name: str
    params: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Hole:
    """A stretch of a channel's messages that no link has brought."""

    channel: Channel
    after: int | None
    """The number of the last message before it; None: the messages bear none."""
    before: int | None = None
    """The number of the first message behind it; None: none has come yet."""
    since: float
    """Unix time, seconds: when the last link was lost."""
    until: float
    """Unix time, seconds: when the channel was confirmed again."""
    start: Any = None
    """What `Page.more` of the page before was; None for the first page."""


@attrs.frozen
class Page:
    """A part of what fills a hole."""

    readings: Sequence[Data] = ()
    """In their order."""
    more: Any = None
    """What tells the next page, as `Hole.start`; None: this was the last one."""


@attrs.define(eq=False)
class SubscriptionHandler(Strategy):
    """The default: a message for each channel, answered by a message that names it.

    It asks with `{"type": "subscribe", "channel", "params"}`, gives up with `{"type": "unsubscribe",
    "channel"}`, and reads `{"type": "subscribed", "id" | "channel"}`, `{"type": "subscription", "result",
    "id" | "channel"}` and `{"type": "error", "subscription_id" | "channel", "reason"}`. Data are the
    messages with a `channel` that are none of these.
    """

    confirms: ClassVar[bool] = True
    """Whether the service says that it has a subscription; else it is taken to have it once that is asked for."""
    correlated: ClassVar[bool] = False
    """Whether the service answers a subscription as it answers a request: see `handle_subscription_response`."""
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
    """How many channels one message may ask for, or give up."""

    # ----------------------------------------------------------------- what is asked for

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        """Return what tells one subscription from others, and what its data name.

        Raises:
            ConfigError: there is no such channel, or it does not take such params.
        """
        return channel

    async def prepare(self, channel: Channel) -> Channel:
        """Return the channel as it is to be asked for on this link: with a token from elsewhere, say.

        Asked for each channel on each link, several at once, for at most `Config.subscription_timeout`; cancelled with
        the link. What it raises refuses the subscription for now.
        """
        return channel

    def split_batch(self, channels: Sequence[Channel]) -> Iterable[Sequence[Channel]]:
        """Return `channels`, which are up to `max_batch`, in the groups and the order in which to ask for them."""
        return [channels]

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        """Return the message that asks for `channel`; only called where `max_batch` is 1.

        None: there is nothing to say, as the service sends without being asked; then `confirms` is to be off.
        """
        return {"type": "subscribe", "channel": channel, "params": dict(params)}

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

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        """Return the message that gives several channels up; NotImplemented: each is given up by one of its own.

        Only called where `max_batch` is more than 1, and `unsubscribes_by_id` is off.
        """
        return NotImplemented

    def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
        """Return the params with which to ask for `channel` again after `last`; as they are where it cannot resume."""
        return channel.params

    # ----------------------------------------------------------------- what the service says

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        """Return what `message` says of subscriptions, maybe nothing new; None where it is about none.

        On a service that answers them as requests (`correlated`) it is asked about these answers only, and may leave
        the channels out (None): then each thing that it says is of the next of the channels that were asked for, in
        their order. What an answer leaves out is refused; None grants them all.
        """
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

    def read(self, message: Any) -> Reading | None:
        """Return what `message` is, where it is of a channel or about one; None: as the other hooks have it.

        Data are then the mappings with a `channel`, and what `handle_subscription_response` makes nothing of.
        """
        return None

    def matches(self, filter: str, channel: Hashable) -> bool:
        """Return whether the data of `channel` belong to the subscription of `filter`, where wildcards are.

        Where this is overridden it is asked once for each pair, as long as neither is forgotten.
        """
        return filter == channel

    # ----------------------------------------------------------------- sequences

    def tracker(self, channel: Channel) -> Tracker | None:
        """Return what watches the steps of a channel's data for gaps; None where they bear none."""
        return None

    def link_step(self, message: Any) -> Step | int | None:
        """Return where a message stands in one sequence that runs through all messages of a link; None: outside it.

        Where this is overridden it is asked about every message. Nobody knows whose messages a gap has swallowed: it
        is told to the readers of every channel but those whose own tracker counts their messages, and books are asked
        for anew.
        """
        return None

    async def snapshot(self, channel: Channel) -> Data:
        """Return the state of a channel, asked for elsewhere, to which its changes are joined.

        Where this is overridden it is asked when a channel whose tracker is `resync` needs a snapshot, in place of
        asking for the channel anew. Cancelled with the link, and after `Config.subscription_timeout`; asked again, with
        back-off, where it fails, or its step is too old for the changes that are held back.
        """
        raise NotImplementedError

    async def backfill(self, hole: Hole) -> Page:
        """Return messages that were missed, the oldest first, page by page.

        Where this is overridden it is asked when a channel is confirmed again, before what comes then is delivered,
        which is held back meanwhile. More than what was missed may be returned: what is known by its number, or by its
        id (of the last 10,000), is dropped. Cancelled with the link, and after `Config.subscription_timeout` in all,
        without the time for which the consumer takes nothing: then what is held back is delivered. The gap is told as
        lost then, unless the numbers show that nothing is missing; the next link begins anew.
        """
        raise NotImplementedError


def _hashable(name: Any) -> Hashable | None:
    """Return what a peer calls a channel; None where nothing of ours could be called so: an array, say."""
    return name if isinstance(name, (str, Hashable)) else None
