"""The application that each client serves: it takes messages, sends some, and writes down what it is told."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import attrs
import trio

from tests.bench.contenders.base import resident_bytes
from tests.survival.diary import Diary, Heard, Job, Sent, Told

_LOOK_INTERVAL = 0.02
"""Seconds between two looks at the memory."""


class Enough(Exception):
    """The program's own error, raised where it is to be left by one."""


@attrs.define(eq=False)
class Program:
    """The same for all clients: what differs is the loop that calls it."""

    job: Job
    death: str = ""
    enough: trio.Event = attrs.field(factory=trio.Event)
    """Set where the program is to fail with an error of its own."""
    _heard: list[Heard] = attrs.field(factory=list)
    _told: list[Told] = attrs.field(factory=list)
    _sent: list[Sent] = attrs.field(factory=list)
    _number: int = 0
    """Of the last message that it tried to send."""
    _memory_before: int = attrs.field(factory=resident_bytes)
    _memory_peak: int = 0

    async def take(self, message: str | bytes) -> None:
        """Consume one message, as slowly as the job says."""
        assert isinstance(message, str), "the service sends text"
        number, link, _ = message.split(" ", 2)
        self._heard.append(Heard(time.monotonic(), int(number), int(link)))
        if self.job.pause:
            await trio.sleep(self.job.pause)

    def told(self, what: object) -> None:
        """Note that the program was told: a connection is gone, a send failed, messages were dropped."""
        text = f"{type(what).__name__}: {what}" if isinstance(what, BaseException) else str(what)
        self._told.append(Told(time.monotonic(), text[:200]))

    async def send_all(
        self, send: Callable[[str], Awaitable[object]], goes_on_after: tuple[type[Exception], ...] = ()
    ) -> NoReturn:
        """Send numbered messages for ever; an error ends it, unless it is one after which the same `send` is good."""
        padding = "x" * self.job.send_size
        while True:
            await trio.sleep(self.job.send_interval)
            self._number += 1
            try:
                await send(f"{self._number} {padding}")
            except goes_on_after as exc:
                self.told(exc)
            else:
                self._sent.append(Sent(time.monotonic(), self._number))

    async def fail(self) -> NoReturn:
        """Fail as soon as it is enough."""
        await self.enough.wait()
        raise Enough

    async def watch_memory(self) -> NoReturn:
        """Look at the memory, often enough to see its peak."""
        while True:
            self._memory_peak = max(self._memory_peak, resident_bytes())
            await trio.sleep(_LOOK_INTERVAL)

    def diary(self) -> Diary:
        """Return what befell the program so far."""
        return Diary(
            heard=self._heard,
            told=self._told,
            sent=self._sent,
            death=self.death,
            memory=max(0, self._memory_peak - self._memory_before),
        )
