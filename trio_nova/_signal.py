"""A flag that wakes one task."""

from __future__ import annotations

import math

import attrs
import trio

__all__ = ["Signal"]


@attrs.define(eq=False)
class Signal:
    """Tells one waiting task that something changed; set while nobody waits, it is kept."""

    _is_set: bool = False
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
            self._is_set = True

    async def wait(self, until: float = math.inf) -> None:
        """Wait for `set`, at most `until`. Always a checkpoint. Cancelling forgets nothing."""
        if self._is_set:
            await trio.lowlevel.checkpoint()
            self._is_set = False
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
