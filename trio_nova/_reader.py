"""Reading a link: by a task of its own, or by whoever waits for what will be read.

What one task reads and hands to another costs a turn of Trio's loop more than what its consumer reads
itself, and a turn is a good part of a round trip. So the reader's task reads only while no task does
that waits for what is read::

    a task in receive() ─ finds nothing ─► reads until there is something ─► goes its way
    the reader          ─ stands by ─────────────────────────────────────► reads on, unless that one is back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio

from trio_nova._inbound import Inbound
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Signal
from trio_nova.core.pulse import Pulse
from trio_nova.errors import LinkLost
from trio_nova.events import ConsumerCaughtUp, ConsumerLagged
from trio_nova.links import Link
from trio_nova.messages import Frame

__all__ = ["Reader"]

PATIENCE = 20.0
"""Seconds for which an answer is awaited that cannot be read, while nothing is taken; or `pong_timeout`, if less."""


@attrs.define(eq=False)
class Reader:
    """Reads one link until it ends, in whatever task."""

    _session: Session
    _inbound: Inbound
    _requests: Requests
    _link: Link
    _pulse: Pulse
    _pulse_changed: Signal
    _ending: trio.Event
    """Set when no more is to be read than is being read."""
    _take_in: Callable[[Sequence[Frame]], None]
    _lose: Callable[[LinkLost], None]
    _held: Sequence[Frame] = attrs.field(default=(), init=False)
    """What arrived when reading had just been paused."""
    is_reading: bool = attrs.field(default=False, init=False)
    """Whether some task reads now."""
    _helped: object | None = attrs.field(default=None, init=False)
    """What is read for by a task that waits for it."""
    _is_called: bool = attrs.field(default=False, init=False)
    """Whether there may be something for that task."""
    _helper: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    """That task."""
    _help: trio.CancelScope = attrs.field(init=False)
    """What it reads in."""
    _left: Signal = attrs.field(factory=Signal, init=False)
    """Tells that it reads no more."""
    _defect: BaseException | None = attrs.field(default=None, init=False)
    """What went wrong in it, and is not its own fault."""

    # ----------------------------------------------------------------- in a task of its own

    async def run(self) -> None:
        """Read while nobody else does."""
        source, inbound = self._session.source, self._inbound
        source.reader = self
        in_vain = False
        try:
            while not self._ending.is_set():
                if self._defect is not None:
                    raise self._defect
                if self.is_reading:
                    await self._left.wait()
                elif inbound.pauses or inbound.clogged:
                    await self._stand_still()
                elif self._held:
                    self.take_held()
                elif inbound.crowded and not in_vain:
                    await inbound.give_turns()
                    in_vain = inbound.crowded
                else:
                    source.was_awaited = in_vain = False
                    await self._read()
                    if source.was_awaited:
                        # The task that got it may soon be back, and read itself. Twice, as Trio may run us first.
                        await trio.lowlevel.checkpoint()
                        await trio.lowlevel.checkpoint()
        except LinkLost as lost:
            self._lose(lost)
        finally:
            source.reader = None

    async def _read(self) -> None:
        """Wait for what comes next, and take it in; raises LinkLost."""
        self.is_reading = True
        try:
            frames = await self._link.receive_some()
        finally:
            self.is_reading = False
        self._pulse.heard(trio.current_time())
        if self._inbound.pauses:
            self._held = frames
        elif frames and not self._session.is_closing:
            self._take_in(frames)

    def take_held(self) -> None:
        """Take in what arrived when reading had just been paused."""
        held, self._held = self._held, ()  # whoever comes next must not take it in again
        self._take_in(held)

    async def _stand_still(self) -> None:
        """Do not read for as long as the user's side wants, or has no room; nobody's silence counts meanwhile."""
        session, inbound, since = self._session, self._inbound, trio.current_time()
        self._pulse.hold()
        lagged = inbound.clogged
        if lagged:
            where, waiting = inbound.find_fullest()
            session.tell(ConsumerLagged(where=where, waiting=waiting))
        try:
            while inbound.pauses:
                await inbound.resumed.wait()
            await self._wait_for_room()
        finally:
            self._pulse.release(trio.current_time())
            self._pulse_changed.set()
        if lagged:
            session.tell(ConsumerCaughtUp(stalled=trio.current_time() - since))

    async def _wait_for_room(self) -> None:
        """Wait until less waits. Where nothing at all is taken, let nobody wait for an answer that cannot be read.

        Who asks may be the very one who alone could make room.
        """
        session, inbound, requests, has_room = self._session, self._inbound, self._requests, Signal()
        taken_at = trio.current_time()

        def look() -> None:
            nonlocal taken_at
            taken_at = trio.current_time()
            if not inbound.clogged:
                has_room.set()

        session.room.on_take = look
        requests.stand_still(still=True)
        try:
            while inbound.clogged:
                patience = min(session.config.pong_timeout, PATIENCE)
                await has_room.wait(requests.give_up_hope(taken_at, patience, inbound.find_fullest))
        finally:
            session.room.on_take = None
            requests.stand_still(still=False)

    # ----------------------------------------------------------------- in a task that waits

    @property
    def is_free(self) -> bool:
        """Whether a task that waits may read."""
        if self.is_reading or self._held or self._defect is not None or self._ending.is_set():
            return False
        inbound = self._inbound
        return not (inbound.pauses or inbound.crowded or inbound.clogged)

    @trio.lowlevel.enable_ki_protection
    async def read_for(self, wanted: object) -> None:
        """Read until `wanted` is to be looked at again, or reading is not free any more.

        Always a checkpoint. Cancelling loses nothing.
        """
        redactor = self._session.redactor
        guarded = redactor.guard_task()
        self._helped, self._helper, self._is_called = wanted, trio.lowlevel.current_task(), False
        try:
            with trio.CancelScope() as self._help:
                await self._read()
                while not self._is_called and self.is_free:
                    await self._read()
        except LinkLost as lost:
            self._lose(lost)
        except (trio.Cancelled, GeneratorExit):
            raise
        except BaseException as exc:  # the session's, not that task's
            self._defect = exc
        finally:
            self._helped = self._helper = None
            self._left.set()
            redactor.leave_task(guarded)

    def look_again(self, wanted: object) -> None:
        """Let the task that reads for `wanted` look at it again: where it reads just now, before it reads on."""
        if self._helped is wanted:
            self._is_called = True
            if self._helper is not trio.lowlevel.current_task():
                self._help.cancel(reason="what is read for is to be looked at again")

    async def finish(self) -> None:
        """Wait until nobody reads any more: to be called when the reader's own task has ended, and the link.

        Raises what went wrong in the task that did, where the reader's own had no time to.
        """
        while self._helped is not None:
            self._help.cancel(reason="the link has ended")
            await self._left.wait()
        if self._defect is not None:
            raise self._defect
