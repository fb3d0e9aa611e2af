"""One link while it is up: its parts, and the order in which they begin and end."""

from __future__ import annotations

import attrs
import trio

from trio_nova._actions import Actions
from trio_nova._feeds import Subscription
from trio_nova._hooks import Handlers, Hooks
from trio_nova._inbound import Inbound
from trio_nova._link.answers import Answers
from trio_nova._link.fills import Fills
from trio_nova._link.grant import Grant
from trio_nova._link.heartbeat import Heartbeat
from trio_nova._link.life import LinkLife
from trio_nova._link.reader import Intake, Reader
from trio_nova._link.readings import Readings
from trio_nova._link.standing import Standing
from trio_nova._link.subscriber import Subscriber
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova._session import Session
from trio_nova._subscriptions import Subscriptions
from trio_nova.config import check_spelling
from trio_nova.core.link import LinkEvent
from trio_nova.dialect import Dialect
from trio_nova.errors import AuthFailed, ConfigError, ConnectFailed, LinkLost, NovaError, RequestFailed
from trio_nova.handlers import ConnectionInfo
from trio_nova.links import Link

__all__ = ["LiveLink"]


@attrs.define(eq=False)
class LiveLink:
    """One link while it is up. All that is true of this link only lives here, and goes with it."""

    _session: Session
    _actions: Actions
    _inbound: Inbound
    _outbound: Outbound
    _subscriptions: Subscriptions
    stream: Link
    _info: ConnectionInfo
    _nursery: trio.Nursery
    life: LinkLife = attrs.field(init=False)
    writer: Writer = attrs.field(init=False)
    answers: Answers = attrs.field(init=False)
    grant: Grant = attrs.field(init=False)
    heartbeat: Heartbeat = attrs.field(init=False)
    standing: Standing = attrs.field(init=False)
    _reader: Reader = attrs.field(init=False)
    _subscriber: Subscriber | None = attrs.field(default=None, init=False)
    """There from when there is something to ask for."""

    def __attrs_post_init__(self) -> None:
        session, stream, outbound = self._session, self.stream, self._outbound
        handlers, hooks = self._speak()
        life = self.life = LinkLife(session, self._info.epoch, self._nursery, handlers, hooks)
        self.answers = Answers(life, outbound)
        self.writer = Writer(life, stream, outbound, self.answers)
        self.heartbeat = Heartbeat(life, stream, outbound, self.writer, self._actions)
        self.grant = Grant(life, outbound, self.writer, self.answers, self.heartbeat)
        fills = Fills(life, self.writer) if hooks.fetches_snapshots or hooks.backfills else None
        self.standing = Standing(life, self._subscriptions, self.writer, fills)
        readings = Readings(life, self.answers, self.standing, self.grant)
        intake = Intake(
            life,
            readings,
            self._inbound,
            outbound,
            self.writer,
            self.answers,
            self.standing,
            self.grant,
            self.heartbeat,
        )
        self._reader = Reader(life, stream, intake, self._inbound, outbound, self.answers, self.heartbeat)

    def _speak(self) -> tuple[Handlers, Hooks]:
        """Return the strategies as the dialect of this link speaks for them; else the adapter does."""
        session, adapter = self._session, self._session.target.adapter
        if adapter is None:
            return session.handlers, session.hooks
        try:
            dialect = adapter.open_link(self._info)
            if not isinstance(dialect, Dialect):
                raise ConfigError("open_link", f"answered a {type(dialect).__name__}, which is no Dialect")
            check_spelling(type(dialect), Dialect)
        except Exception as exc:
            session.handler_failed(exc)
            dialect = adapter
        if dialect is adapter:
            return session.handlers, session.hooks
        handlers = session.handlers.speak((dialect, adapter))
        return handlers, Hooks.of(handlers, session.config)

    async def serve(self) -> None:
        """Serve the link until it is lost, or a goodbye is wanted and has been said."""
        life, session = self.life, self._session
        more = self._begin()
        life.start_soon(self.writer.run, verb="writer")
        life.start_soon(self._reader.run, verb="reader")
        life.start_soon(self.heartbeat.run, lambda: self._reader.is_reading, verb="heartbeat")
        if session.hooks.ticks:
            life.start_soon(self._tick, verb="limiter")
        if more:
            life.start_soon(self._set_up, verb="setup")
        await life.ending.wait()
        await self._leave()
        self._nursery.cancel_scope.cancel(reason="the link has ended")

    def end(self) -> LinkLost:
        """Settle all that was under way on the link, whose tasks have ended; return how it was lost."""
        if self.life.is_up:
            self.life.leave()
        lost = self.life.end()
        self._session.link_lost(lost)
        self._session.link_ended(self)
        self.heartbeat.end()
        self.writer.end(lost)
        self.answers.end(lost)
        self.grant.let_go_of_early()
        self.standing.end(lost)
        self._outbound.link_lost(lost)
        self._session.settled.ring()
        return lost

    # ----------------------------------------------------------------- what the session tells

    def leave(self) -> None:
        """End it, as a wish to leave has come up."""
        self.life.ending.set()

    def reconfigure(self) -> None:
        """Take over changed durations."""
        self.heartbeat.reconfigure()

    def want(self, subscription: Subscription) -> None:
        """Ask for a subscription."""
        self.standing.want(subscription)
        self._subscribe()

    def take_over(self) -> None:
        """Be the current link from now on, in place of another."""
        self.standing.take_over()
        self.writer.wake()

    @property
    def is_at_work(self) -> bool:
        """Whether something waits to be written on it, or the service is asked for subscriptions."""
        return not self.writer.outbox.idle or (self._subscriber is not None and self._subscriber.is_at_work)

    def refused_by(self, lost: LinkLost) -> NovaError | None:
        """Return why it was of no use, where that is known; None where it was only lost. To be asked once."""
        error = self.life.take_setup_error()
        if error is not None or self._session.goodbye is not None:
            return error
        return self.grant.refused_by(lost)

    # ----------------------------------------------------------------- setup

    def _begin(self) -> bool:
        """Greet the service; return whether there is more to do before the link is ready."""
        session = self._session
        actions = session.ask(session.handlers.connection.handle_connect, self._info)
        self._actions.perform(actions, self.life, setup=self.writer)
        if session.goodbye is not None:
            return False
        if self.grant.is_needed or self._subscriptions.by_key or self.life.hooks.asks_setup:
            return True
        self._open()
        self.life.move(LinkEvent.COMPLETE)
        return False

    async def _set_up(self) -> None:
        """Do what must be done before the application's messages flow, in order; a step that fails ends the link."""
        life = self.life
        if life.ending.is_set():
            return
        try:
            if self.grant.is_needed:
                life.move(LinkEvent.AUTHENTICATE)
                await self.grant.sign_in()
                if life.ending.is_set():
                    return  # the answer came while goodbye was being said
                life.start_soon(self._keep_fresh, verb="auth")
            if life.hooks.asks_setup or self._subscriptions.by_key:
                life.move(LinkEvent.RESTORE)
            if life.hooks.asks_setup:
                await self._ask_setup()
                if life.ending.is_set():
                    return
            self._open()
            if self._subscriber is not None:
                await self._subscriber.wait_restored()
        except NovaError as error:
            life.give_up(error)
            return
        if not life.ending.is_set():
            life.move(LinkEvent.COMPLETE)
            self.writer.wake()

    async def _ask_setup(self) -> None:
        """Ask what the connection handler wants asked, in order.

        Raises:
            ConnectFailed: the service refuses, or does not answer in time.
            AuthFailed: it refuses because it does not know who we are, though we have told it twice.
        """
        session = self._session
        try:
            messages = tuple(self.life.handlers.connection.setup_requests(self._info))
        except Exception as exc:
            session.handler_failed(exc)
            return
        for message in messages:
            with trio.move_on_after(session.config.auth_timeout) as scope:
                try:
                    await self.grant.ask(message, "setup")
                except RequestFailed as error:
                    if self.grant.is_called_for(error.reply):
                        raise AuthFailed(f"a setup request was refused: {error}") from error
                    raise ConnectFailed(f"a setup request was refused: {error}", phase="restore") from error
            if scope.cancelled_caught:
                timeout = session.config.auth_timeout
                raise ConnectFailed(f"no answer to a setup request within {timeout:g} s", phase="restore")

    def _open(self) -> None:
        """Let the service be asked for subscriptions."""
        self.standing.open()
        if self._subscriptions.by_key or self.life.handlers.subscription.drops_unclaimed:
            self._subscribe(restores=bool(self._subscriptions.by_key))

    def _subscribe(self, *, restores: bool = False) -> None:
        if self.standing.is_open and self._subscriber is None:
            self._subscriber = Subscriber(
                self.life,
                self._outbound,
                self.writer,
                self.grant,
                self._subscriptions,
                self.standing,
                restored=trio.Event() if restores else None,
            )
            self.life.start_soon(self._subscriber.run, verb="subscriber")

    async def _keep_fresh(self) -> None:
        self.life.give_up(await self.grant.keep_fresh())

    async def _tick(self) -> None:
        session, limiter = self._session, self._session.handlers.rate_limit
        while True:
            await trio.sleep(limiter.tick_interval)
            self._actions.perform(session.ask(limiter.handle_tick))

    # ----------------------------------------------------------------- leaving

    async def _leave(self) -> None:
        """Say goodbye where it is wanted, and let go of the link."""
        life, session = self.life, self._session
        self.heartbeat.wake()  # it ends while goodbye is said
        life.leave()
        self.standing.leave()
        if life.lost is None and session.goodbye is not None:
            await self._say_goodbye(session.goodbye.code, session.goodbye.reason)
        elif life.lost is None and life.setup_error is not None:
            await self._say_goodbye(1000, "")
        self.stream.abort()
        if not session.is_closing:
            await self._reader.take_the_rest()
        self.standing.close()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        with trio.move_on_after(self._session.config.close_timeout) as scope:
            await self._say_farewell()
        if scope.cancelled_caught:
            self._session.note(NovaError("the farewell was not sent: the peer takes nothing"), "reply")
        await self.stream.aclose(code, reason)
        self.life.lose(LinkLost(code, reason, self.life.epoch, remote=False))

    async def _say_farewell(self) -> None:
        """Say the last word of the dialect, behind all that has been written."""
        hook, life = self.life.hooks.farewell, self.life
        if hook is None:
            return
        try:
            message = hook()
            if message is not None:
                await self.stream.send_all(life.encode(message))
        except LinkLost:
            return  # which the reader tells
        except Exception as exc:
            self._session.handler_failed(exc)
