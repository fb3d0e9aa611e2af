"""The reader's task: what arrives on a link, for as long as there is room for it."""

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
    """Reads one link until it ends."""

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
    """Whether it waits for what comes next."""

    async def run(self) -> None:
        """Read until the link ends."""
        inbound, in_vain = self._inbound, False
        try:
            while not self._ending.is_set():
                if inbound.pauses or inbound.clogged:
                    await self._stand_still()
                elif self._held:
                    self.take_held()
                elif inbound.crowded and not in_vain:
                    await inbound.give_turns()
                    in_vain = inbound.crowded
                else:
                    in_vain = False
                    await self._read()
        except LinkLost as lost:
            self._lose(lost)

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
