"""What was given up on a link, and may still be heard of: for the service follows only after a while.

Some of what it has nobody ever asked for, as far as we can tell: the answer that named it was lost, or came
after we had asked anew. That is surplus, and is to be given back.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import attrs

__all__ = ["Partings"]

MAX_GIVEN_BACK = 64
"""Subscriptions that nobody wants and that are given back, on one link: a service that makes up more is left alone."""
MAX_NAMES = 64
"""Names of the service's own that were given up last: data that was on its way may still bear them."""
MAX_CHANNELS = 1024
"""Channels that were given up last: what comes of one that is wanted again may be from before."""
UNDER_WAY = 60.0
"""Seconds after which it cannot be any more."""


@attrs.define(eq=False)
class Partings:
    """Those of one link. Times are readings of one monotonic clock, in seconds."""

    surplus: list[Hashable] = attrs.field(factory=list, init=False)
    """By the service's names, what is to be given back; whoever does it takes it out, the first one first."""
    _names: dict[Hashable, bool] = attrs.field(factory=dict, init=False)
    """The oldest first, and whether it was surplus."""
    _channels: dict[Hashable, float] = attrs.field(factory=dict, init=False)
    """When which was given up, the oldest first."""
    _given_back: int = attrs.field(default=0, init=False)

    def gave_up(self, key: Hashable, server_id: Hashable | None, now: float) -> None:
        """Note that a channel is given up: by the service's name for it, or by ours where it has none."""
        if server_id is not None:
            self._note(server_id, surplus=False)
            return
        self._channels.pop(key, None)
        self._channels[key] = now
        if len(self._channels) > MAX_CHANNELS:
            del self._channels[next(iter(self._channels))]

    def give_back(self, server_id: Hashable) -> bool:
        """Put what nobody wants into `surplus`; False where that was done, or it was given up, or it is too much."""
        if server_id in self._names or self._given_back >= MAX_GIVEN_BACK:
            return False
        self._given_back += 1
        self._note(server_id, surplus=True)
        self.surplus.append(server_id)
        return True

    def was_surplus(self, server_id: Hashable) -> bool:
        """Return, once, whether what an answer names now was given back; whatever comes under the name later is new."""
        return self._names.pop(server_id, False)

    def may_be_from_before(self, key: Hashable, now: float) -> bool:
        """Return whether what comes of a channel that is wanted again may be from before it was given up."""
        return now < self._channels.get(key, -math.inf) + UNDER_WAY

    def may_be_under_way(self, name: Hashable, now: float) -> bool:
        """Return whether data may still come under a name, ours or the service's, that was given up."""
        return name in self._names or self.may_be_from_before(name, now)

    def _note(self, server_id: Hashable, *, surplus: bool) -> None:
        self._names[server_id] = surplus
        if len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]
