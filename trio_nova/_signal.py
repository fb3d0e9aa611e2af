"""What wakes tasks that wait: much smaller than the locks, events and parking lots of Trio, while nobody waits."""

from __future__ import annotations

import math

import attrs
import trio

__all__ = ["Bell", "Signal"]


@attrs.define(eq=False)
class Signal:
    """Tells one waiting task that something changed; set while nobody waits, it is kept."""

    is_set: bool = False
    """Whether it was told while nobody waited."""
    _task: trio.lowlevel.Task | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether the task waits, and has not been woken."""
        return self._task is not None

    def set(self) -> None:
        """Wake the task that waits, now or when it comes to wait."""
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
        else:
            self.is_set = True

    async def wait(self, until: float = math.inf) -> None:
        """Wait for `set`, at most `until`. Always a checkpoint. Cancelling forgets nothing."""
        if self.is_set:
            await trio.lowlevel.checkpoint()
            self.is_set = False
            return
        self._task = trio.lowlevel.current_task()
        if until == math.inf:
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        else:
            with trio.CancelScope(deadline=until):
                await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


@attrs.define(eq=False)
class Bell:
    """Wakes all who wait for it, each time it is rung."""

    _rung: trio.Event | None = attrs.field(default=None, init=False)

    def ring(self) -> None:
        """Wake all who wait now."""
        if self._rung is not None:
            self._rung.set()
            self._rung = None

    async def wait(self) -> None:
        """Wait until it is rung next."""
        if self._rung is None:
            self._rung = trio.Event()
        await self._rung.wait()
