"""How a link ended."""

from __future__ import annotations

import attrs

from trio_nova.errors import LinkLost

__all__ = ["FAREWELL_WAIT", "Ending"]

FAREWELL_WAIT = 1.0
"""Seconds that a close frame may take which nobody waits for."""


@attrs.frozen
class Ending:
    """Why nothing goes over a link any more; see `LinkLost` for the fields."""

    code: int
    reason: str = ""
    detail: str = ""
    remote: bool | None = None
    cause: BaseException | None = None

    def as_error(self, epoch: int) -> LinkLost:
        """Return what is raised for it: a new exception each time, as each has a traceback of its own."""
        lost = LinkLost(self.code, self.reason, epoch, detail=self.detail, remote=self.remote)
        lost.__cause__ = self.cause
        return lost
