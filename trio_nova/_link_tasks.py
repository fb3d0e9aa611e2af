"""The tasks that serve one link: reader, writer, heartbeat, limiter, and the setup before them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import trio

from trio_nova._auth import Authenticator
from trio_nova._inbound import Inbound
from trio_nova._outbound import Outbound
from trio_nova._reader import Reader
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Signal
from trio_nova._subscriptions import Subscriptions
from trio_nova.core.outbox import Idle, Lane, Outgoing, WaitUntil, Write
from trio_nova.core.pulse import Dead, Probe, Pulse, Wait
from trio_nova.core.session import SessionEvent
from trio_nova.errors import (
    AuthFailed,
    ConnectFailed,
    LinkLost,
    NovaError,
    RequestFailed,
    SessionOver,
)
from trio_nova.events import ClockJumped, PeerSilent, PingSent, PongReceived
from trio_nova.handlers import ConnectionHandler, ConnectionInfo, RateLimitHandler
from trio_nova.links import Link, Transit
from trio_nova.messages import Frame, Ping, Pong

__all__ = ["LinkTasks"]

MAX_PINGS = 64
"""Pings whose pongs are awaited; the oldest is given up for a new one."""
LAST_TURNS = 8
"""Turns of Trio's loop that reading gets once a deadline has passed: layers like TLS take more than one."""
MAX_LAST_TURNS = 1000
"""The same, with those in which what was read before is still being handed out."""
CLOCK_JUMP = 5.0
"""Seconds by which the wall clock must outrun ours before we believe that the machine slept."""


@attrs.define(eq=False)
class _AwaitedPong:
    sent_at: float
    """When the ping was handed to the operating system; before that, when it was queued."""
    task: trio.lowlevel.Task | None = None
    """Who waits for it, in `LinkTasks.ping`."""
    rtt: float | None = None
    refused: NovaError | None = None
    """Why the ping was not sent at all."""


@attrs.define(eq=False)
class LinkTasks:
    """One link while it is up. All that is true of this link only lives here, and goes with it."""

    _session: Session
    _inbound: Inbound
    _outbound: Outbound
    _requests: Requests
    _authenticator: Authenticator
    _subscriptions: Subscriptions
    _link: Link
    _info: ConnectionInfo
    pulse: Pulse = attrs.field(init=False)
    pulse_changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the heartbeat."""
    _nursery: trio.Nursery = attrs.field(init=False)
    _lost: LinkLost | None = attrs.field(default=None, init=False)
    setup_error: NovaError | None = attrs.field(default=None, init=False)
    """Why this link could not be set up, or not be kept authenticated."""
    is_authenticated: bool = attrs.field(default=False, init=False)
    """Whether the service knows who we are, where it is to."""
    _ending: trio.Event = attrs.field(factory=trio.Event, init=False)
    _pongs: dict[bytes, _AwaitedPong] = attrs.field(factory=dict, init=False)
    _probe_sent_at: float = attrs.field(default=math.inf, init=False)
    _transit: Transit | None = attrs.field(default=None, init=False)
    """The bytes under way when the last probe was written, or as last looked at since; None: nobody can tell."""

    def __attrs_post_init__(self) -> None:
        config = self._session.config
        self.pulse = Pulse(trio.current_time(), config.ping_interval, config.pong_timeout, config.idle_timeout)

    async def run(self) -> LinkLost:
        """Serve the link until it is lost, or a goodbye is wanted and has been said; return how it ended."""
        session, number = self._session, self._session.epoch
        session.on_leave = self._ending.set
        self._outbound.link = self._link
        reader = Reader(
            session,
            self._inbound,
            self._requests,
            self._link,
            self.pulse,
            self.pulse_changed,
            self._ending,
            self._take_in,
            self.lose,
        )
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._outbound.start_writer = self._start_writer
                more = self._begin_setup(nursery)
                self._outbound.work()
                nursery.start_soon(reader.run, name=session.task_name("reader", number))
                nursery.start_soon(self._watch, reader, name=session.task_name("heartbeat", number))
                limiter = session.handlers.rate_limit
                if type(limiter).handle_tick is not RateLimitHandler.handle_tick:
                    nursery.start_soon(self._tick, limiter, name=session.task_name("limiter", number))
                if more:
                    nursery.start_soon(self._set_up, nursery, name=session.task_name("setup", number))
                await self._ending.wait()
                await self._leave(reader)
                self._subscriptions.stop_asking()
                nursery.cancel_scope.cancel(reason="the link has ended")
        finally:
            self._settle_pongs()
        return self._lost or LinkLost(1006, "", number)

    async def _leave(self, reader: Reader) -> None:
        """Say goodbye where it is wanted, and let go of the link."""
        session = self._session
        self.pulse_changed.set()  # the heartbeat ends while goodbye is said
        if self._lost is not None:  # first: whoever waits for the state to change looks at how the link ended
            session.link_ended(self._lost)
        if session.goodbye is None or session.goodbye.then is not None:
            session.apply(SessionEvent.LOSE)
        if self._lost is None and session.goodbye is not None:
            await self._say_goodbye(session.goodbye.code, session.goodbye.reason)
        elif self._lost is None and self.setup_error is not None:
            await self._say_goodbye(1000, "")
        self._outbound.link = self._outbound.start_writer = None
        self._link.abort()
        if not session.is_closing:
            await self._take_the_rest(reader)

    def lose(self, lost: LinkLost) -> None:
        """End this link: it is gone, or as good as gone. The first reason counts."""
        if self._lost is None:
            self._lost = lost
            self._ending.set()

    def reconfigure(self) -> None:
        """Take over changed durations."""
        config = self._session.config
        self.pulse.reconfigure(
            trio.current_time(),
            ping_interval=config.ping_interval,
            pong_timeout=config.pong_timeout,
            idle_timeout=config.idle_timeout,
        )
        self.pulse_changed.set()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        await self._link.aclose(code, reason)
        if self._lost is None:
            self._lost = LinkLost(code, reason, self._session.epoch, remote=False)

    # ----------------------------------------------------------------- setup

    def _begin_setup(self, nursery: trio.Nursery) -> bool:
        """Greet the link; return whether there is more to do before it is ready."""
        session = self._session
        action = session.ask(session.handlers.connection.handle_connect, self._info)
        session.perform(action, session.epoch, Lane.SETUP)
        if session.goodbye is not None:
            return False
        if self._authenticator.needed or self._subscriptions.wanted or self._negotiates:
            return True
        self._subscriptions.open(nursery)
        session.apply(SessionEvent.COMPLETE)
        return False

    async def _set_up(self, nursery: trio.Nursery) -> None:
        """Do what must be done before the application's messages flow, in order; a step that fails ends the link."""
        session = self._session
        if self._ending.is_set():
            return
        try:
            if self._authenticator.needed:
                session.apply(SessionEvent.AUTHENTICATE)
                await self._authenticator.sign_in()
                self.is_authenticated = True
                if self._ending.is_set():
                    return  # the answer came while goodbye was being said
                nursery.start_soon(self._keep_authenticated, name=session.task_name("auth", session.epoch))
            if self._negotiates or self._subscriptions.wanted:
                session.apply(SessionEvent.RESTORE)
            if self._negotiates:
                await self._negotiate()
                if self._ending.is_set():
                    return
            self._subscriptions.open(nursery)
            await self._subscriptions.wait_restored()
        except NovaError as error:
            self._give_up(error)
            return
        if not self._ending.is_set():
            session.apply(SessionEvent.COMPLETE)
            self._outbound.work()

    @property
    def _negotiates(self) -> bool:
        handler = type(self._session.handlers.connection)
        return handler.setup_requests is not ConnectionHandler.setup_requests

    async def _negotiate(self) -> None:
        """Ask what the connection handler wants asked, in order.

        Raises:
            ConnectFailed: the service refuses, or does not answer in time.
            AuthFailed: it refuses because it does not know who we are, though we have told it twice.
        """
        session = self._session
        try:
            messages = tuple(session.handlers.connection.setup_requests(self._info))
        except Exception as exc:
            session.handler_failed(exc)
            return
        for message in messages:
            with trio.move_on_after(session.config.auth_timeout) as scope:
                try:
                    await self._requests.request(message, lane=Lane.SETUP, purpose="setup")
                except RequestFailed as error:
                    if self._authenticator.is_called_for(error.reply):
                        raise AuthFailed(f"a setup request was refused: {error}") from error
                    raise ConnectFailed(f"a setup request was refused: {error}", phase="restore") from error
            if scope.cancelled_caught:
                timeout = session.config.auth_timeout
                raise ConnectFailed(f"no answer to a setup request within {timeout:g} s", phase="restore")

    async def _keep_authenticated(self) -> None:
        self._give_up(await self._authenticator.keep_fresh())

    def _give_up(self, error: NovaError) -> None:
        """End this link, which is up but of no use; where it was lost, the reader says so."""
        if isinstance(error, SessionOver) or isinstance(error.__cause__, LinkLost):
            return
        if self.setup_error is None:
            self.setup_error = error
            self._ending.set()

    # ----------------------------------------------------------------- what was read

    async def _take_the_rest(self, reader: Reader) -> None:
        """Take in what came while the goodbye was said: the session goes on, so nothing of it may be lost.

        Nothing is taken that would wait for room: each reconnect would leave more of it behind.
        """
        reader.take_held()
        try:
            while not self._inbound.clogged:
                self._take_in(await self._link.receive_some())
        except LinkLost:
            return

    def _take_in(self, frames: Sequence[Frame]) -> None:
        if self._pongs:
            for frame in frames:
                if isinstance(frame, Pong):
                    self._pong(frame.payload)
        self._inbound.take_in(frames, self._probe_answered)

    # ----------------------------------------------------------------- writer

    def _start_writer(self) -> None:
        self._nursery.start_soon(self._write_paced, name=self._session.task_name("writer", self._session.epoch))

    async def _write_paced(self) -> None:
        session, outbound = self._session, self._outbound
        while not self._ending.is_set():
            match outbound.next_step():
                case Write(batch):
                    try:
                        await self._link.send_all([outgoing.frame for outgoing in batch])
                    except LinkLost as lost:
                        # The reader sees the end too, after what was received before it: that must not be lost.
                        with trio.move_on_after(session.config.close_timeout):
                            await self._ending.wait()
                        self.lose(lost)
                        return
                    outbound.written(batch)
                case WaitUntil(until):
                    await outbound.changed.wait(until)
                case Idle():
                    await outbound.changed.wait()

    async def _tick(self, limiter: RateLimitHandler) -> None:
        session = self._session
        while True:
            await trio.sleep(limiter.tick_interval)
            session.perform(session.ask(limiter.handle_tick), session.epoch)

    # ----------------------------------------------------------------- heartbeat

    async def _watch(self, reader: Reader) -> None:
        session = self._session
        wall, monotonic = session.config.wall_clock(), trio.current_time()
        while not self._ending.is_set():
            match self.pulse.next_step(trio.current_time(), self._link.stalled_since):
                case Wait(until):
                    await self.pulse_changed.wait(until)
                    jump = (session.config.wall_clock() - wall) - (trio.current_time() - monotonic)
                    wall, monotonic = session.config.wall_clock(), trio.current_time()
                    if jump > CLOCK_JUMP:
                        session.tell(ClockJumped(seconds=jump))
                        self.pulse.probe_now(trio.current_time())
                case Probe():
                    self._probe()
                case Dead() if await self._looks_again(reader):
                    pass
                case Dead(clock, silence):
                    session.tell(PeerSilent(clock=clock, silence=silence))
                    session.perform(session.ask(session.handlers.connection.handle_timeout, clock), session.epoch)
                    detail = f"the peer was silent for {silence:g} s, by the {clock} clock"
                    self.lose(LinkLost(1006, "", session.epoch, detail=detail))
                    return

    async def _looks_again(self, reader: Reader) -> bool:
        """Let what has arrived be read before the peer is called silent; return whether it is not, after all.

        This process may have stood still beyond the deadline, with the answer waiting in the operating system. Each
        turn asks that for news; only those count in which reading waits for it.
        """
        self._look_at_transit()
        turns = 0
        for _ in range(MAX_LAST_TURNS):
            await trio.lowlevel.checkpoint()
            self.pulse.last_heard_below(self._link.heard_at)
            verdict = self.pulse.next_step(trio.current_time(), self._link.stalled_since)
            if self._ending.is_set() or not isinstance(verdict, Dead):
                return True
            turns += verdict.clock == "write" or reader.is_reading
            if turns == LAST_TURNS:
                break
        return False

    def _look_at_transit(self) -> None:
        """Note what the peer's machine has taken since the probe was written, if there was much before it."""
        before, now = self._transit, self._link.transit
        if before is not None and now is not None and before.waiting and now.acknowledged > before.acknowledged:
            self._transit = now
            self.pulse.delivered(now.last_ack)

    def _probe(self) -> None:
        session = self._session
        now = trio.current_time()
        self.pulse.probe_queued(now)
        handler = session.handlers.connection
        action = session.ask(handler.ping) if type(handler).ping is not ConnectionHandler.ping else None
        if action is not None:
            session.perform(action, session.epoch, Lane.SETUP)
            self.pulse.probe_written(now, is_beat=True)
            return
        payload = self._ping_payload()
        try:
            message = session.config.heartbeat.probe(payload)
            frame = message if message is None or isinstance(message, Ping) else self._outbound.encode(message)
        except Exception as exc:
            self.pulse.probe_skipped()
            session.handler_failed(exc)
            return
        if frame is None:
            self.pulse.probe_skipped()
        else:
            self._await_pong(payload, _AwaitedPong(now))
            kind = "" if isinstance(message, Ping) else self._outbound.kind_of(message)
            self._outbound.control(frame, kind, self._probe_written)

    def _ping_payload(self) -> bytes:
        """Return what a pong must repeat to be believed: in ASCII, as some servers read it as text."""
        return self._session.config.entropy(8).hex().encode("ascii")

    def _probe_written(self, outgoing: Outgoing, error: NovaError | None) -> None:
        if error is None:
            self._probe_sent_at = trio.current_time()
            self._transit = self._link.transit
            is_beat, answered = not isinstance(outgoing.frame, Ping), self._session.config.heartbeat.answered
            self.pulse.probe_written(self._probe_sent_at, is_beat=is_beat, answered=answered)
            self._session.counts.pings_sent += is_beat  # a ping is counted where it is written
            self._pong_due(outgoing.frame)
            self._session.tell(PingSent())
        else:
            self.pulse.probe_skipped()

    def _pong_due(self, frame: Frame) -> None:
        if isinstance(frame, Ping) and (awaited := self._pongs.get(frame.payload)) is not None:
            awaited.sent_at = trio.current_time()

    def _await_pong(self, payload: bytes, awaited: _AwaitedPong) -> None:
        if len(self._pongs) >= MAX_PINGS:
            oldest = next(iter(self._pongs))
            if self._pongs[oldest].task is None:
                del self._pongs[oldest]
        self._pongs[payload] = awaited

    def _pong(self, payload: bytes) -> None:
        awaited = self._pongs.pop(payload, None)
        if awaited is not None:
            awaited.rtt = trio.current_time() - awaited.sent_at
            self._measured(awaited.rtt)
            if awaited.task is not None:
                trio.lowlevel.reschedule(awaited.task)

    def _probe_answered(self) -> None:
        """An application message answered the probe."""
        if self._probe_sent_at < math.inf:
            self._measured(trio.current_time() - self._probe_sent_at)
            self._probe_sent_at = math.inf

    def _measured(self, rtt: float) -> None:
        self._session.latency = rtt
        self._session.counts.pongs_received += 1
        self._session.tell(PongReceived(rtt=rtt))

    async def ping(self) -> float:
        """Send a ping and return the seconds until its pong. Cancelling stops waiting; the ping may have left.

        Raises:
            LinkLost: the link ended first.
            NotSent: the rate limit refused the ping.
        """
        payload = self._ping_payload()
        task = trio.lowlevel.current_task()
        awaited = _AwaitedPong(trio.current_time(), task)

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self._pongs.pop(payload, None)
            return trio.lowlevel.Abort.SUCCEEDED

        def settled(outgoing: Outgoing, error: NovaError | None) -> None:
            if error is None:
                self._pong_due(outgoing.frame)
                self._session.tell(PingSent())
            elif self._pongs.pop(payload, None) is not None:
                awaited.refused = error
                trio.lowlevel.reschedule(task)

        await trio.lowlevel.checkpoint_if_cancelled()
        self._await_pong(payload, awaited)
        self._outbound.control(Ping(payload), when_settled=settled)
        await trio.lowlevel.wait_task_rescheduled(abort)
        if awaited.refused is not None:
            raise awaited.refused
        if awaited.rtt is None:
            lost = self._lost or LinkLost(1006, "", self._session.epoch)
            raise LinkLost(lost.code, lost.reason, lost.epoch, detail=lost.detail, remote=lost.remote) from lost
        return awaited.rtt

    def _settle_pongs(self) -> None:
        pongs, self._pongs = self._pongs, {}
        for awaited in pongs.values():
            if awaited.task is not None:
                trio.lowlevel.reschedule(awaited.task)
