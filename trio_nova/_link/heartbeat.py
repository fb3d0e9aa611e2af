"""The heartbeat of a link: probes, pongs, and the verdict that the peer is gone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs
import outcome
import trio

from trio_nova._actions import Actions
from trio_nova._link.answers import Answers
from trio_nova._link.life import LinkLife
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova._signal import Signal
from trio_nova.core.ledger import Pending
from trio_nova.core.outbox import Lane, Outgoing
from trio_nova.core.pulse import Dead, Missed, Probe, Pulse, Wait
from trio_nova.errors import LinkLost, NovaError, RequestFailed
from trio_nova.events import ClockJumped, PeerSilent, PingSent, PongMissed, PongReceived
from trio_nova.links import Link, Transit
from trio_nova.messages import Frame, Ping

__all__ = ["Heartbeat"]

MAX_PINGS = 64
"""Pings whose pongs are awaited, and beats whose answers are; the oldest is given up for a new one."""
LAST_TURNS = 8
"""Turns of Trio's loop that reading gets once a deadline has passed: layers like TLS take more than one."""
MAX_LAST_TURNS = 1000
"""The same, with those in which what was read before is still being handed out."""
CLOCK_JUMP = 5.0
"""Seconds by which the wall clock must outrun ours before we believe that the machine slept."""


@attrs.define(eq=False)
class _AwaitedPong:
    sent_at: float
    """Trio's clock, seconds: the time when the ping was handed to the operating system, or before that queued."""
    task: trio.lowlevel.Task | None = None
    """Who waits for it, in `Heartbeat.ping`."""
    rtt: float | None = None
    refused: NovaError | None = None
    """Why the ping was not sent at all."""


@attrs.define(eq=False)
class _BeatAsker:
    """Waits for the answer to a beat that is a request: whatever it says, the service lives."""

    _when_answered: Callable[[], None]
    on_answer: Callable[[Any], object] | None = None

    def tell(self, result: outcome.Outcome[Any]) -> None:
        error = result.error if isinstance(result, outcome.Error) else None
        if error is None or isinstance(error, RequestFailed):
            self._when_answered()


def _heed_nothing() -> None:
    """Take in an answer that is of no interest."""


@attrs.define(eq=False)
class Heartbeat:
    """Watches over the peer of one link."""

    _life: LinkLife
    _stream: Link
    _outbound: Outbound
    _writer: Writer
    _actions: Actions
    _pulse: Pulse = attrs.field(init=False)
    _pulse_changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the task."""
    _pongs: dict[bytes, _AwaitedPong] = attrs.field(factory=dict, init=False)
    _asked: deque[Pending] = attrs.field(factory=deque, init=False)
    """Beats that are requests, the last ones: a service may answer none of them."""
    _probe_sent_at: float = attrs.field(default=math.inf, init=False)
    _durations: Mapping[str, float] = attrs.field(default=MappingProxyType({}), init=False)
    """Durations that the service wants on this link."""
    _transit: Transit | None = attrs.field(default=None, init=False)
    """The bytes under way when the last probe was written, or as last looked at since; None: nobody can tell."""

    def __attrs_post_init__(self) -> None:
        config = self._life.session.config
        self._pulse = Pulse(
            trio.current_time(),
            config.ping_interval,
            config.pong_timeout,
            config.idle_timeout,
            config.max_missed_pongs,
        )

    @property
    def missed(self) -> int:
        """Probes in a row that nothing has answered."""
        return self._pulse.missed

    def set_durations(self, durations: Mapping[str, float]) -> None:
        """Use these durations on this link, by the names of their options, and not those of the session."""
        self._durations = {**self._durations, **durations}
        self.reconfigure()

    def reconfigure(self) -> None:
        """Take over changed durations."""
        config = self._life.session.config
        ours = {name: getattr(config, name) for name in ("ping_interval", "pong_timeout", "idle_timeout")}
        self._pulse.reconfigure(trio.current_time(), **{**ours, **self._durations}, max_missed=config.max_missed_pongs)
        self._pulse_changed.set()

    # ----------------------------------------------------------------- what the reader tells

    def heard(self) -> None:
        """Note a sign of life."""
        self._pulse.heard(trio.current_time())

    def hold(self) -> None:
        """Hold nobody's silence against the peer, as nothing is read."""
        self._pulse.hold()

    def release(self) -> None:
        """Listen again."""
        self._pulse.release(trio.current_time())
        self._pulse_changed.set()

    def pong(self, payload: bytes) -> None:
        """Take in a pong of the peer's, which may be one that is awaited."""
        awaited = self._pongs.pop(payload, None)
        if awaited is not None:
            awaited.rtt = trio.current_time() - awaited.sent_at
            self._measured(awaited.rtt)
            if awaited.task is not None:
                trio.lowlevel.reschedule(awaited.task)

    def probe_answered(self) -> None:
        """Take note that an application message answered the probe."""
        if self._probe_sent_at < math.inf:
            self._measured(trio.current_time() - self._probe_sent_at)
            self._probe_sent_at = math.inf

    def _measured(self, rtt: float) -> None:
        self._life.session.measured(rtt, self._life)
        self._life.tell(PongReceived(rtt=rtt))

    # ----------------------------------------------------------------- the task

    async def run(self, is_reading: Callable[[], bool]) -> None:
        """Probe the peer, and end the link when it has fallen silent."""
        life, session = self._life, self._life.session
        wall, monotonic = session.config.wall_clock(), trio.current_time()
        while not life.ending.is_set():
            match self._pulse.next_step(trio.current_time(), self._stream.stalled_since):
                case Wait(until):
                    await self._pulse_changed.wait(until)
                    jump = (session.config.wall_clock() - wall) - (trio.current_time() - monotonic)
                    wall, monotonic = session.config.wall_clock(), trio.current_time()
                    if jump > CLOCK_JUMP:
                        life.tell(ClockJumped(seconds=jump))
                        self._pulse.probe_now(trio.current_time())
                case Probe():
                    self._probe()
                case Missed() | Dead() if await self._looks_again(is_reading):
                    pass
                case Missed(count, silence):
                    session.counts.pongs_missed += 1
                    self._pulse.probe_missed(trio.current_time())
                    life.tell(PongMissed(missed=count, allowed=session.config.max_missed_pongs - 1, silence=silence))
                case Dead(clock, silence, missed):
                    session.counts.pongs_missed += clock == "pong"
                    life.tell(PeerSilent(clock=clock, silence=silence, missed=missed))
                    self._actions.perform(session.ask(session.handlers.connection.handle_timeout, clock))
                    detail = f"the peer was silent for {silence:g} s, by the {clock} clock"
                    life.lose(LinkLost(1006, "", life.epoch, detail=detail))
                    return

    def wake(self) -> None:
        """Let the task see that the link is ending."""
        self._pulse_changed.set()

    async def _looks_again(self, is_reading: Callable[[], bool]) -> bool:
        """Let what has arrived be read before the peer is called silent; return whether it is not, after all.

        This process may have stood still beyond the deadline, with the answer waiting in the operating system. Each
        turn asks that for news; only those count in which reading waits for it.
        """
        self._look_at_transit()
        turns = 0
        for _ in range(MAX_LAST_TURNS):
            await trio.lowlevel.checkpoint()
            self._pulse.last_heard_below(self._stream.heard_at)
            verdict = self._pulse.next_step(trio.current_time(), self._stream.stalled_since)
            if self._life.ending.is_set() or not isinstance(verdict, Missed | Dead):
                return True
            turns += (isinstance(verdict, Dead) and verdict.clock == "write") or is_reading()
            if turns == LAST_TURNS:
                break
        return False

    def _look_at_transit(self) -> None:
        """Note what the peer's machine has taken since the probe was written, if there was much before it."""
        before, now = self._transit, self._stream.transit
        if before is not None and now is not None and before.waiting and now.acknowledged > before.acknowledged:
            self._transit = now
            self._pulse.delivered(now.last_ack)

    # ----------------------------------------------------------------- probes

    def _probe(self) -> None:
        session = self._life.session
        now = trio.current_time()
        self._pulse.probe_queued(now)
        actions = session.ask(session.handlers.connection.ping) if session.hooks.pings else ()
        if actions:
            self._actions.perform(actions, self._life, setup=self._writer)
            self._pulse.probe_written(now, is_beat=True)
            return
        payload, heartbeat = self._ping_payload(), self._life.handlers.heartbeat
        try:
            message = heartbeat.probe(payload)
            if message is None:
                self._pulse.probe_skipped()
                return
            outgoing = self._outgoing(message, self.probe_answered if heartbeat.asks else None)
            self._await_pong(payload, _AwaitedPong(now))
            self._writer.control_outgoing(outgoing, self._probe_written)
        except Exception as exc:
            self._pulse.probe_skipped()
            session.handler_failed(exc)

    def answer(self, reply: Any, *, asks: bool) -> None:
        """Send what the service asks for as a sign of life, ahead of any queue; raises BadMessage.

        Where it is a request (`asks`), its answer is taken in, and forgotten.
        """
        self._writer.answer(self._outgoing(reply, _heed_nothing if asks else None))

    def _outgoing(self, message: Any, when_answered: Callable[[], None] | None) -> Outgoing:
        if when_answered is None or isinstance(message, Ping):
            return self._outbound.outgoing_message(message, lane=Lane.CONTROL, purpose="control")

        def make(message: Any, answers: Answers) -> Sequence[Frame]:
            pending, frames = answers.open(_BeatAsker(when_answered), message)
            self._asked.append(pending)
            if len(self._asked) > MAX_PINGS:
                answers.give_up(self._asked.popleft(), sent=True)
            return frames

        return self._outbound.unmade(message, make, "", 0, lane=Lane.CONTROL, purpose="control")

    def _probe_written(self, outgoing: Outgoing, error: NovaError | None) -> None:
        if error is not None:
            self._pulse.probe_skipped()
            return
        session = self._life.session
        self._probe_sent_at = trio.current_time()
        self._transit = self._stream.transit
        is_beat, answered = not isinstance(outgoing.frame, Ping), self._life.handlers.heartbeat.answered
        self._pulse.probe_written(self._probe_sent_at, is_beat=is_beat, answered=answered)
        session.counts.pings_sent += is_beat  # a ping is counted where it is written
        self._pong_due(outgoing.frame)
        self._life.tell(PingSent())

    def _ping_payload(self) -> bytes:
        """Return what a pong must repeat to be believed: in ASCII, as some servers read it as text."""
        return self._life.session.config.entropy(8).hex().encode("ascii")

    def _pong_due(self, frame: Frame) -> None:
        if isinstance(frame, Ping) and (awaited := self._pongs.get(frame.payload)) is not None:
            awaited.sent_at = trio.current_time()

    def _await_pong(self, payload: bytes, awaited: _AwaitedPong) -> None:
        if len(self._pongs) >= MAX_PINGS:
            oldest = next(iter(self._pongs))
            if self._pongs[oldest].task is None:
                del self._pongs[oldest]
        self._pongs[payload] = awaited

    async def ping(self) -> float:
        """Send a ping and return the seconds until its pong. Cancelling stops waiting; the ping may have left.

        Raises:
            LinkLost: the link ended first.
            NotSent: the rate limit refused the ping.
        """
        life, payload = self._life, self._ping_payload()
        task = trio.lowlevel.current_task()
        awaited = _AwaitedPong(trio.current_time(), task)

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self._pongs.pop(payload, None)
            return trio.lowlevel.Abort.SUCCEEDED

        def settled(outgoing: Outgoing, error: NovaError | None) -> None:
            if error is None:
                self._pong_due(outgoing.frame)
                life.tell(PingSent())
            elif self._pongs.pop(payload, None) is not None:
                awaited.refused = error
                trio.lowlevel.reschedule(task)

        await trio.lowlevel.checkpoint_if_cancelled()
        self._await_pong(payload, awaited)
        self._writer.control(Ping(payload), when_settled=settled)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if awaited.refused is not None:
            raise awaited.refused
        if awaited.rtt is None:
            lost = life.lost or LinkLost(1006, "", life.epoch)
            raise LinkLost(lost.code, lost.reason, lost.epoch, detail=lost.detail, remote=lost.remote) from lost
        return awaited.rtt

    def end(self) -> None:
        """Let go of those who wait for a pong: none will come."""
        pongs, self._pongs = self._pongs, {}
        for awaited in pongs.values():
            if awaited.task is not None:
                trio.lowlevel.reschedule(awaited.task)
