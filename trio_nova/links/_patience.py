"""How long one message may take to arrive: a peer that drips it would else hold its memory for ever."""

from __future__ import annotations

import attrs

__all__ = ["Patience"]


@attrs.define
class Patience:
    """Adds up the waits for one message, where all of `limit` may pass, in seconds.

    Only what reading waits for the peer counts: what lies unread for lack of room is not held against it.
    """

    limit: float
    _waited: float = attrs.field(default=0.0, init=False)

    @property
    def rule(self) -> str:
        """What a peer breaks for which this is over."""
        return f"a message took more than {self.limit:g} s"

    def is_over(self, waited: float, *, within_one: bool) -> bool:
        """Return whether a wait was one too many; `within_one`: a message began before it, and did not end with it."""
        self._waited = self._waited + waited if within_one else 0.0
        return self._waited > self.limit
