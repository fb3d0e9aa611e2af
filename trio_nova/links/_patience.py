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

    def wait(self, seconds: float) -> None:
        """Add a wait, whether or not it brought anything."""
        self._waited += seconds

    def is_over(self, *, within_one: bool) -> bool:
        """Return, of waits that brought something, whether they took too long.

        `within_one`: a message began before them, and did not end with them.
        """
        if not within_one:
            self._waited = 0.0
        return self._waited > self.limit
