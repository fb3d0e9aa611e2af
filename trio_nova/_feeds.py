"""Feeds: where the messages of a subscription wait for one consumer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._session import Session
from trio_nova.core import check_bool, check_callable, check_count, number, one_of
from trio_nova.core.bounded import Room
from trio_nova.errors import Lagged
from trio_nova.events import HighWater, LowWater

__all__ = ["Feed", "FeedOptions"]

NOTICE_SIZE = 512
"""Bytes that a notice between the messages of a feed is charged."""
FeedOverflow: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "fail"]


@attrs.frozen(kw_only=True)
class FeedOptions:
    """How one feed holds what its consumer has not yet taken."""

    size: int = attrs.field(default=1024, validator=check_count)
    """Messages that may wait; with "block", only the mark by which `HighWater` and `LowWater` are told."""
    overflow: FeedOverflow = attrs.field(
        default="block", validator=one_of("block", "drop_oldest", "drop_newest", "fail")
    )
    """When full: "drop_oldest" or "drop_newest"; "fail" ends the feed with Lagged. "block" keeps all that comes.

    What waits in the feeds that block, and in the inbox, has one bound, `Config.inbox_bytes`: there reading stops.
    Each of the others holds at most as many bytes, too.
    """
    conflate: Callable[[Any], Hashable] | None = attrs.field(
        default=None, validator=attrs.validators.optional(check_callable)
    )
    """Of the messages that wait with the same key, as this returns it, only the newest is kept.

    What it raises ends the feed, and is raised there.
    """
    notices: bool = attrs.field(default=False, validator=check_bool)
    """Whether `Gap`, `Resynced` and `Dropped` stand between the messages, in their place."""
    max_age: float = attrs.field(default=math.inf, validator=number(above=0.0, finite=False))
    """Seconds without data after which a `FeedStale` is told."""


@attrs.define(eq=False)
class Feed(Receiver[Any]):
    """The messages of one subscription, for one consumer. Made by `Connection.subscribe`.

    Iteration ends with the session, or with the block. It raises SubscriptionRejected where the service takes
    the subscription back, and Lagged where the consumer is too slow for a feed that may not drop. Once what
    waited is taken, `receive` raises SessionOver after the session's end, and trio.ClosedResourceError after
    the block's.
    """

    channel: str = ""
    options: FeedOptions = attrs.field(factory=FeedOptions)
    _latest: dict[Hashable, int] = attrs.field(factory=dict, init=False)
    """Of each conflation key, the serial number of its message in the queue."""

    @classmethod
    def _of(
        cls,
        channel: str,
        options: FeedOptions,
        session: Session,
        notice: Callable[[int], Any],
    ) -> Feed:
        def tell(kind: type[HighWater | LowWater]) -> None:
            session.tell(kind(messages=len(mailbox), size=mailbox.size, where=channel))

        mailbox: Mailbox[Any] = Mailbox(
            max_items=options.size,
            room=session.room if options.overflow == "block" else session.make_room(),
            overflow="block" if options.overflow == "fail" else options.overflow,
            notice=notice if options.notices else None,
            looked=session.looked,
            on_high_water=partial(tell, HighWater) if options.overflow == "block" else None,
            on_low_water=partial(tell, LowWater) if options.overflow == "block" else None,
        )
        mailbox.prepare()
        return cls(mailbox, channel, options)

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped."""
        return self._mailbox.dropped

    @property
    def waiting(self) -> int:
        """Messages that wait to be received."""
        return len(self._mailbox)

    # ----------------------------------------------------------------- the session's side

    @property
    def _crowded(self) -> bool:
        return self._mailbox.crowded

    async def _give_turns(self) -> None:
        await self._mailbox.give_turns()

    def _put(self, message: Any, size: int) -> None:
        """Take a message in."""
        mailbox = self._mailbox
        if self.options.conflate is not None:
            try:
                key = self.options.conflate(message)
                serial = self._latest.get(key)
            except Exception as error:
                self._end(error)  # a matter between that function and the consumer
                return
            if serial is not None and mailbox.replace(serial, message, size):
                return
            self._latest[key] = mailbox.next_serial
            if len(self._latest) > 2 * max(self.options.size, len(mailbox)):
                taken = mailbox.next_serial - len(mailbox)
                self._latest = {key: serial for key, serial in self._latest.items() if serial >= taken}
        if self.options.overflow == "fail" and mailbox.full:
            self._end(Lagged(f"the consumer of {self.channel!r} did not keep up"))
        mailbox.put_nowait(message, size)

    def _tell(self, notice: Any) -> None:
        """Put a notice between the messages, where the consumer asked for notices."""
        if self.options.notices:
            self._mailbox.put_nowait(notice, NOTICE_SIZE)

    def _end(self, error: Exception | None = None) -> None:
        """Let what is there be received; after that raise `error`, or end."""
        self._mailbox.close(error)

    def _leave(self) -> None:
        """End with the block of the subscription; what still waits may be taken, and holds up nobody."""
        self._end(trio.ClosedResourceError("the block of this subscription was left"))
        self._mailbox.move_to(Room())
