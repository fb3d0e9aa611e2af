"""The writer of a link: what waits to leave on it, and the one task that writes."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from trio_nova._link.life import LinkLife
from trio_nova._outbound import Outbound, WhenSettled, wait_settled
from trio_nova._signal import Signal
from trio_nova.core.outbox import Idle, Lane, Outbox, Outgoing, Purpose, Status, WaitUntil, Write
from trio_nova.errors import LinkLost, NovaError
from trio_nova.links import Link
from trio_nova.messages import Frame

__all__ = ["Writer"]

ANSWER_OVERHEAD = 1024
"""Bytes that an answer to a message takes beside its own while it waits to leave."""


@attrs.define(eq=False)
class Writer:
    """Writes what belongs to the link, and in its turn what the application sends."""

    _life: LinkLife
    _stream: Link
    _outbound: Outbound
    _answers: object
    """The encoder of messages that leave, where questions are written down too."""
    outbox: Outbox = attrs.field(init=False)
    _changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the task."""

    def __attrs_post_init__(self) -> None:
        self.outbox = Outbox(self._outbound.backlog, self._life.epoch)

    @property
    def is_free(self) -> bool:
        """Whether what is given to it would be written at once, and alone: then whoever gives it may write it."""
        # A limit may have ceased since it held back what still waits.
        return self._changed.is_awaited and not self._outbound.backlog.length and not self._outbound.limiter.engaged

    @property
    def epoch(self) -> int:
        """The number of the link."""
        return self._life.epoch

    @property
    def link(self) -> Writer:
        """The carrier of what the link brings."""
        return self

    def acknowledge(self, message: Any) -> None:
        """Send what acknowledges a message of the link; raises as `put`."""
        outgoing = self._outbound.outgoing_message(message, lane=Lane.SETUP, purpose="message")
        self.put(outgoing)
        self._charge(outgoing)

    def answer(self, outgoing: Outgoing) -> None:
        """Send what the service asks for as a sign of life, ahead of any queue; raises as `control`."""
        self.control_outgoing(outgoing)
        self._charge(outgoing)

    def _charge(self, outgoing: Outgoing) -> None:
        """Let what answers a message take room among what was received, until it has left.

        Else a service that says more than may be answered in the same time could fill the memory.
        """
        if outgoing.status is Status.SETTLED:
            return
        room, taken = self._life.session.room, self._life.session.taken
        size = outgoing.size + ANSWER_OVERHEAD

        def settled(outgoing: Outgoing, error: NovaError | None) -> None:
            room.give_back(size)
            taken.ring()

        room.take(size)
        outgoing.on_settled(settled)

    def wake(self) -> None:
        """Let the task look at what there is to write."""
        self._changed.set()

    # ----------------------------------------------------------------- in

    async def send(self, message: Any, priority: int, purpose: Purpose) -> None:
        """Write a message before the link is ready, and wait until the operating system has it.

        Cancelling withdraws it, unless it is being written.

        Raises:
            BadMessage: it cannot be encoded.
            NotSent, OutcomeUnknown: as their names say.
        """
        outgoing = self._outbound.outgoing_message(message, priority, lane=Lane.SETUP, purpose=purpose)
        await wait_settled(outgoing, self.put, self._life.session.settled)

    def put(self, outgoing: Outgoing) -> None:
        """Take in what belongs to the link.

        Raises:
            SessionOver: the session has ended.
            NotSent: the link is gone, or is being left.
            BadMessage: it cannot be encoded.
        """
        self._life.session.check_open()
        self._life.check_up()
        self._wait(outgoing)

    def _wait(self, outgoing: Outgoing) -> None:
        if outgoing.make is not None and self._outbound.limiter.engaged:
            outgoing.keep(outgoing.message, self._outbound.weigh(outgoing.message))  # a limit may go by the size
        self.outbox.put(outgoing)
        self.wake()

    def control(self, message: Any, when_settled: WhenSettled | None = None) -> None:
        """Send ahead of any queue: heartbeats and what answers them. Raises BadMessage where it cannot be encoded."""
        self.control_outgoing(
            self._outbound.outgoing_message(message, lane=Lane.CONTROL, purpose="control"), when_settled
        )

    def control_outgoing(self, outgoing: Outgoing, when_settled: WhenSettled | None = None) -> None:
        """Send what is ready to leave ahead of any queue."""
        outgoing.on_settled(when_settled)
        if not self.is_free or not self.write_now(outgoing):
            self._wait(outgoing)

    def write_now(self, outgoing: Outgoing) -> bool:
        """Write a message here and now, or begin to; False where nothing of it has left, nor is bound to.

        Raises:
            NovaError: there is no frame for it.
        """
        is_bound = outgoing.make is not None
        outgoing.prepare(self._answers)
        if outgoing.rest:
            self.go_on(outgoing)
            return True
        match self._stream.send_nowait(outgoing.frame):
            case "whole":
                self._outbound.count_written((outgoing,))
                outgoing.settle()
                return True
            case "not" if not is_bound:
                return False
            case _:
                self.go_on(outgoing)
                return True

    def go_on(self, outgoing: Outgoing) -> None:
        """Write the rest of a frame of which a part has left already."""
        self.outbox.begin(outgoing)
        self.wake()

    # ----------------------------------------------------------------- out

    async def run(self) -> None:
        """Write what there is, until the link ends."""
        life, outbound = self._life, self._outbound
        while not life.ending.is_set():
            match outbound.next_step(self.outbox, ready=life.is_ready and life.is_current):
                case Write(batch):
                    frames = self._frames(batch)
                    try:
                        await self._stream.send_all(frames)
                    except LinkLost as lost:
                        # The reader sees the end too, after what was received before it: that must not be lost.
                        with trio.move_on_after(life.session.config.close_timeout):
                            await life.ending.wait()
                        life.lose(lost)
                        return
                    outbound.count_written(batch)
                    self.outbox.written()
                    life.session.settled.ring()
                case WaitUntil(until):
                    life.session.settled.ring()  # what a limit has refused waits no longer
                    await self._changed.wait(until)
                case Idle():
                    life.session.settled.ring()
                    await self._changed.wait()

    def _frames(self, batch: list[Outgoing]) -> list[Frame]:
        """Make the frames of a batch, in the order of the wire; take out of it, and settle, what has none."""
        failed: list[Outgoing] = []
        for outgoing in batch:
            if outgoing.make is not None:
                try:
                    outgoing.prepare(self._answers)
                except NovaError as error:
                    failed.append(outgoing)
                    outgoing.settle(error)
        for outgoing in failed:
            batch.remove(outgoing)
        return [frame for outgoing in batch for frame in (outgoing.frame, *outgoing.rest)]

    def end(self, lost: LinkLost) -> None:
        """Settle what was to leave on the link."""
        self.outbox.end(lost)
