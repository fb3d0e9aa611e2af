"""Questions that nobody stands still for: each is asked in a task of its own, so many at a time, and none for ever."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import attrs
import trio

from trio_nova._link.life import LinkLife
from trio_nova._signal import Signal

__all__ = ["Places", "Question"]

MAX_OUTSTANDING = 16
"""Questions about subscriptions whose answers are awaited, on a service that answers them as requests."""

Question: TypeAlias = Callable[[Callable[[], None]], Awaitable[None]]
"""Asks, and takes in the answer; calls its argument when the question has left."""


@attrs.define(eq=False)
class Places:
    """Those that are being asked on one link."""

    _life: LinkLife
    _places: dict[trio.CancelScope, float] = attrs.field(factory=dict, init=False)
    """What each that takes a place is asked in, the oldest first, and from when on its answer is overdue."""
    under_way: int = attrs.field(default=0, init=False)
    """The number of those that are asked, or whose answer is awaited."""
    _place: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the one who waits to ask."""

    async def ask(self, question: Question) -> None:
        """Wait for a place, ask, and return when the question has left. To be called by one task at a time.

        It keeps its place until it is answered, or its answer is overdue and the place needed.
        """
        while len(self._places) >= MAX_OUTSTANDING:
            oldest, overdue_at = next(iter(self._places.items()))
            if trio.current_time() < overdue_at:
                await self._place.wait(overdue_at)
            else:
                del self._places[oldest]
                oldest.cancel(reason="its answer is overdue, and its place is needed")
        await self._begin(question, takes_place=True)

    async def ask_quietly(self, question: Question) -> None:
        """Ask, and return when the question has left. Its answer is awaited no longer than until it is overdue."""
        await self._begin(question, takes_place=False)

    async def _begin(self, question: Question, *, takes_place: bool) -> None:
        has_left = trio.Event()
        self.under_way += 1
        self._life.start_soon(self._see_through, question, has_left, takes_place, verb="subscriber")
        # One at a time waits for the rate limit, and what is asked next cannot overtake this.
        await has_left.wait()

    async def _see_through(self, question: Question, has_left: trio.Event, takes_place: bool) -> None:
        places, scope = self._places, trio.CancelScope()
        if takes_place:
            places[scope] = math.inf

        def leave() -> None:
            overdue_at = trio.current_time() + self._life.session.config.subscription_timeout
            if not takes_place:
                scope.deadline = overdue_at
            elif scope in places:
                places[scope] = overdue_at
            has_left.set()

        try:
            with scope:
                await question(leave)
        finally:
            self.under_way -= 1
            self._life.session.settled.ring()
            has_left.set()
            if places.pop(scope, None) is not None:
                self._place.set()
