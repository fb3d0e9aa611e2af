"""What is done to a call: at its k-th moment it is cancelled, its stream fails, or its link is cut; or nothing is."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs
import trio

__all__ = ["BreakAt", "CancelAt", "CutAt", "Failure", "Injection", "Loss"]

Failure: TypeAlias = Literal["broken", "closed", "os", "eof"]
"""How a call of the stream fails: BrokenResourceError, ClosedResourceError, OSError; or reading finds the end."""
Loss: TypeAlias = Literal["fin", "reset"]
"""How a link is cut: what is under way to the client still arrives, or is lost."""


@attrs.define(eq=False)
class Injection(trio.abc.Instrument):
    """One fault, at the `at`-th moment of its kind while it is armed. This one does nothing at any."""

    at: int
    moments: int = 0
    """How many moments there have been."""
    fired_at: float = math.inf
    """Trio's clock, seconds; inf while it has not."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around the call."""
    _armed: bool = False

    @property
    def fired(self) -> bool:
        return self.fired_at < math.inf

    @property
    def exhausted(self) -> bool:
        """Whether the call was over before the moment came: then there are no later moments either."""
        return self.moments < self.at

    def arm(self) -> None:
        self._armed = True

    def disarm(self) -> None:
        self._armed = False

    def breaks(self) -> BaseException | None:
        """Return what a call of the stream shall raise just now; EOFError where reading shall find the end."""
        return None

    def heard(self, cut: Callable[[Loss], bool]) -> None:
        """Be told that the session has emitted an event."""

    def _comes(self) -> bool:
        """Count a moment; return whether it is the one."""
        if not self._armed:
            return False
        self.moments += 1
        return self.moments == self.at


class CancelAt(Injection):
    """Cancels the call after so many steps of any task; 0: before the first."""

    def arm(self) -> None:
        super().arm()
        if self.at == 0:
            self._cancel()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._comes():
            self._cancel()

    def _cancel(self) -> None:
        self.fired_at = trio.current_time()
        self.scope.cancel(reason=f"the sweep: after step {self.at}")


@attrs.define(eq=False)
class BreakAt(Injection):
    """Lets one call of the client's stream fail. A send has then written one half; a receive loses what it got."""

    how: Failure = "broken"

    def breaks(self) -> BaseException | None:
        if not self._comes():
            return None
        self.fired_at = trio.current_time()
        match self.how:
            case "broken":
                return trio.BrokenResourceError("the sweep")
            case "closed":
                return trio.ClosedResourceError("the sweep")
            case "os":
                return ConnectionResetError(errno.ECONNRESET, "the sweep")
            case "eof":
                return EOFError("the sweep")


@attrs.define(eq=False)
class CutAt(Injection):
    """Cuts the newest link while the session emits an event."""

    how: Loss = "fin"

    def heard(self, cut: Callable[[Loss], bool]) -> None:
        if self._comes() and cut(self.how):
            self.fired_at = trio.current_time()
