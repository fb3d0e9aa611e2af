"""Which of several addresses is to be dialled.

In a round each address is dialled once. The first of a round is dialled after the back-off; where that fails the next
one comes at once. When all of them have failed the round is over, which is one failure for the back-off. An address
that works is kept: nothing leads back to the first one but a failure of those after it.
"""

from __future__ import annotations

import math

import attrs

__all__ = ["Addresses"]


@attrs.define(eq=False)
class Addresses:
    """The addresses of one session, by their numbers."""

    count: int
    in_use: int = attrs.field(default=0, init=False)
    """The number of the one to be dialled, or that was dialled last."""
    _tried: int = attrs.field(default=1, init=False)
    """How many of them this round has come to, the one in use included."""
    _not_before: dict[int, float] = attrs.field(factory=dict, init=False)
    """When those may be dialled that have asked for patience."""

    def served(self) -> None:
        """Note that the one in use had worked: a new round begins with it."""
        self._tried = 1

    def failed(self, now: float, retry_after: float | None) -> bool:
        """Note that the one in use has failed, and use another; return whether that may be dialled at once.

        Args:
            now: the time, in seconds.
            retry_after: the seconds for which the one that failed wants to be left alone; None: it did not say.
        """
        if retry_after:
            self._not_before[self.in_use] = now + retry_after
        while self._tried < self.count:
            self._tried += 1
            self.in_use = (self.in_use + 1) % self.count
            if self.wait(now) <= 0.0:
                return True
        self._tried = 1
        after = [(self.in_use + step) % self.count for step in range(1, self.count + 1)]
        self.in_use = min(after, key=lambda number: max(self._not_before.get(number, -math.inf), now))
        return False

    def wait(self, now: float) -> float:
        """Return the seconds for which the one in use still wants to be left alone."""
        return max(self._not_before.get(self.in_use, -math.inf) - now, 0.0)
