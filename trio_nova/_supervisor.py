"""The one owner of reconnection: dial, hold the link, ask what follows, wait, dial again."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs
import trio

from trio_nova._actions import Actions
from trio_nova._inbound import Inbound
from trio_nova._link import LiveLink
from trio_nova._outbound import Outbound
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Bell
from trio_nova._subscriptions import Subscriptions
from trio_nova.config import check_headers, check_other_origin, check_plaintext
from trio_nova.core.breaker import Passage
from trio_nova.core.failover import Addresses
from trio_nova.core.recovery import advise, wait_wished_for
from trio_nova.core.session import SessionEvent, State
from trio_nova.core.verdict import Disposition, may_pass, of_error
from trio_nova.errors import (
    AuthFailed,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    HandshakeRejected,
    LinkLost,
    NovaError,
    Phase,
)
from trio_nova.events import (
    CircuitClosed,
    CircuitOpened,
    DialQueued,
    DialStarted,
    LinkClosed,
    LinkOpened,
    RetryScheduled,
    SecretRevealed,
    SessionEnded,
)
from trio_nova.handlers import ConnectionInfo
from trio_nova.links import Dial, Link, Turn, shared_governor
from trio_nova.messages import Action, Close, Reconnect, Reply, ReplyMany, Retry, Stop
from trio_nova.secrets import (
    Secret,
    ask_provider,
    secrets_in_headers,
    secrets_in_subprotocols,
    secrets_in_url,
)
from trio_nova.urls import Url, is_one_of

__all__ = ["Supervisor"]

LAST_TURNS = 4
"""Turns of Trio's loop that others get between the loss of a link and what follows from it."""
_CONTEXTS: dict[type[Exception], str] = {LinkLost: "link", AuthFailed: "auth"}


@attrs.define(eq=False, repr=False)
class Supervisor:
    """Keeps a session supplied with links, one after the other, until it is over."""

    _session: Session
    _actions: Actions
    _inbound: Inbound
    _outbound: Outbound
    _requests: Requests
    _subscriptions: Subscriptions
    _ended: Exception | None = attrs.field(default=None, init=False)
    """How the last link ended that has ended."""
    _gone: Bell = attrs.field(factory=Bell, init=False)
    """Rung when a link has ended."""
    _phase: Phase = attrs.field(default="dns", init=False)
    _addresses: Addresses = attrs.field(
        default=attrs.Factory(lambda self: Addresses(1 + len(self._session.config.failover)), takes_self=True),
        init=False,
    )
    _is_elsewhere: bool = attrs.field(default=False, init=False)
    """Whether the last dial was to where the service had sent us."""
    _reached_origin: str = attrs.field(default="", init=False)
    """The origin of the last dial, where that led to a link."""
    _was_unauthorized: bool = attrs.field(default=False, init=False)
    """Whether a server has answered 401 since the last link, though it was shown what is asked for afresh each time."""

    async def supervise(self) -> None:
        """Hold links until the session ends. Every wait is bounded, so this ends by its own verdict, never by force."""
        session = self._session
        while not session.is_closing:
            session.apply(SessionEvent.DIAL)
            ended = await self.dial_and_hold()
            while session.current is not None:  # another link has taken its place
                ended = await self._wait_for_end()
            answers: tuple[Action, ...] = ()
            # A login may be refused by the loss of its link.
            lost = ended.__cause__ if isinstance(ended, AuthFailed) else ended
            if isinstance(lost, LinkLost):
                await self._let_leave()
                answers = session.ask(session.handlers.connection.handle_disconnect, lost)
            if session.is_closing:
                break
            answer = self._perform_replies(answers)
            wish = session.take_goodbye()
            if session.state is not State.DISCONNECTED:
                session.apply(SessionEvent.LOSE)
            step = wish.then if wish is not None else self._follow(ended, answer)
            if session.is_closing:
                break
            match step:
                case Retry(delay):
                    session.apply(SessionEvent.RETRY)
                    session.tell(RetryScheduled(delay=delay, attempt=session.attempts.made, error=ended))
                    await self._wait(delay)
                case Stop(error):
                    session.give_up(ended if error is lost else error)
                case _:
                    session.close()

    def finish(self) -> None:
        """Reach the end, and let go of all who wait for anything of this session."""
        session = self._session
        session.finish()
        self._outbound.end()
        self._actions.end()
        self._inbound.end()
        self._subscriptions.end()
        session.tell(SessionEnded(error=session.failure))
        session.hub.close()
        session.opened.set()
        session.let_go()

    # ----------------------------------------------------------------- one link

    async def dial_and_hold(self) -> Exception:
        """Dial, and serve the link if one comes up; return how it ended, or why none came up.

        A session that has a link may have a second one beside it: that takes its place where it is lost.
        """
        session, config = self._session, self._session.config
        session.counts.dials += 1
        with trio.move_on_after(config.connect_timeout) as scope:
            session.interrupt(scope)
            try:
                info = await self._prepare()
                dial = self._dial(info)
                if (prepare := getattr(config.transport, "prepare", None)) is not None:
                    dial = await prepare(dial)
                if config.breaker is not None:
                    config.breaker.check(dial.url.origin, trio.current_time())
                left, scope.deadline = scope.deadline - trio.current_time(), math.inf  # the turn keeps to it
                async with self._turn(dial, left) as turn:
                    scope.deadline = turn.deadline
                    started = trio.current_time()
                    with self._watched(dial.url.origin, scope) as passage:
                        session.tell(DialStarted(url=str(dial.url), attempt=session.attempts.made + 1))
                        async with config.transport.open(dial) as link:
                            scope.deadline = math.inf
                            turn.release()
                            self._reached(dial.url.origin, passage)
                            return await self._hold(link, info, trio.current_time() - started)
            except (AuthFailed, ConfigError, ConnectFailed) as error:
                session.counts.dials -= isinstance(error, CircuitOpen)  # there was none
                return error
        if session.goodbye is not None:
            return ConnectFailed("the attempt was given up", phase=self._phase)
        wanted = session.route.stand_by or session.url
        return ConnectTimeout(
            f"no link to {wanted} within {config.connect_timeout:g} s, only as far as {self._phase!r}",
            phase=self._phase,
        )

    # ----------------------------------------------------------------- the circuit breaker

    @contextmanager
    def _watched(self, origin: str, scope: trio.CancelScope) -> Iterator[Passage | None]:
        """Dial in this block, if the breaker lets anybody; it is told what becomes of that.

        `scope` is around the dial, and knows its deadline.
        """
        breaker, self._reached_origin = self._session.config.breaker, ""
        if breaker is None:
            yield None
            return
        passage = breaker.enter(origin, trio.current_time())
        try:
            yield passage
        except ConnectFailed as error:
            self._tell_if(passage.failed(trio.current_time()), origin, error)
            raise
        except trio.Cancelled:
            if trio.current_time() >= scope.deadline:
                late = ConnectTimeout(phase=self._phase)
                self._tell_if(passage.failed(trio.current_time()), origin, late)
            raise
        finally:
            passage.give_back()

    def _reached(self, origin: str, passage: Passage | None) -> None:
        self._reached_origin = origin
        if passage is not None and passage.succeeded():
            self._session.tell(CircuitClosed(origin=origin))

    def _came_to_nothing(self, ended: Exception, attempt: int) -> None:
        """Tell the breaker of a link that was up, and has not lasted, or on which the login was refused."""
        breaker, origin = self._session.config.breaker, self._reached_origin
        if breaker is not None and origin and (isinstance(ended, AuthFailed) or attempt > 1):
            self._tell_if(breaker.failed(origin, trio.current_time()), origin, ended)

    def _tell_if(self, opened: bool, origin: str, error: Exception) -> None:
        breaker = self._session.config.breaker
        if opened and breaker is not None:
            until = trio.current_time() + breaker.open_for
            self._session.tell(CircuitOpened(origin=origin, until=until, error=error))

    # ----------------------------------------------------------------- what a dial needs

    async def _prepare(self) -> ConnectionInfo:
        """Ask afresh, for every dial, what may have changed since the last one."""
        session, config = self._session, self._session.config
        self._phase = "connect"
        given = config.headers
        info = ConnectionInfo(
            url=self._address(),
            headers=given if isinstance(given, Mapping) else await ask_provider(given, "headers", "connect"),
            subprotocols=config.subprotocols,
            attempt=session.attempts.made,
            epoch=session.counts.links + 1,
            position=session.route.position,
        )
        try:
            answer = session.handlers.connection.connection_info(info)
        except Exception as exc:
            session.handler_failed(exc)
            return info
        if inspect.isawaitable(answer):  # what is asked elsewhere may fail: that is worth another attempt
            asked = answer
            answer = await ask_provider(lambda: asked, "connection_info", "connect")
        try:
            if not isinstance(answer, ConnectionInfo):
                raise ConfigError("connection_info", f"answered a {type(answer).__name__}, which is no ConnectionInfo")
        except Exception as exc:
            session.handler_failed(exc)
            return info
        check_other_origin(info, answer, config, session.url)
        return answer

    def _address(self) -> Url:
        """Return what is to be dialled: where the service wants us, if its origin is vouched for."""
        session = self._session
        named = session.route.take_address()
        self._is_elsewhere = False
        if named is None:
            return session.route.stand_by or session.url
        try:
            url = Url.parse(named, "url")
            if url.origin != session.url.origin and not is_one_of(url.origin, session.config.redirect_origins):
                raise ConfigError("redirect_origins", f"the service names {url.origin}, which they do not vouch for")
        except ConfigError as error:
            session.note(error, "connect")
            return session.route.stand_by or session.url
        self._is_elsewhere = True
        return url

    def _dial(self, info: ConnectionInfo) -> Dial:
        config = self._session.config
        secrets = [*secrets_in_url(info.url.full), *secrets_in_headers(info.headers)]
        self._session.redactor.keep("dial", [*secrets, *secrets_in_subprotocols(info.subprotocols)])
        if (info.url, info.headers, info.subprotocols) != (self._session.url, config.headers, config.subprotocols):
            check_plaintext(info.url, config, info.headers, info.subprotocols)
        return Dial(
            url=info.url,
            epoch=info.epoch,
            session=self._session.id,
            headers=check_headers(info.headers),
            subprotocols=tuple(info.subprotocols),
            ssl_context=config.ssl_context,
            pins=config.pins,
            proxy=config.proxy,
            proxy_ssl_context=config.proxy_ssl_context,
            stream_factory=config.stream_factory,
            resolver=config.resolver,
            compression=config.compression,
            max_redirects=config.max_redirects,
            redirect_origins=config.redirect_origins,
            max_message_size=config.max_message_size,
            message_timeout=config.message_timeout,
            close_timeout=config.close_timeout,
            wall_clock=config.wall_clock,
            on_phase=self._enter_phase,
            on_reveal=self._revealed if self._session.hub.hears(SecretRevealed) else None,
        )

    def _turn(self, dial: Dial, within: float) -> Turn:
        """Return the turn to dial that address, and tell if it must be waited for."""
        session, failed = self._session, self._session.attempts.made
        turn = (session.config.governor or shared_governor()).turn(
            dial.url.origin, redial=failed > 0, retry=failed > 1, within=max(within, 0.0), by=session.id
        )
        if turn.must_wait:
            session.tell(DialQueued(url=str(dial.url), under_way=turn.under_way))
        return turn

    def _revealed(self, secret: str, to: str) -> None:
        self._session.tell(SecretRevealed(secret=secret, to=to))

    def _enter_phase(self, phase: Phase) -> None:
        self._phase = phase

    async def _hold(self, stream: Link, info: ConnectionInfo, connect_time: float) -> NovaError:
        """Serve a link until it ends; return how it did."""
        session = self._session
        opened = trio.current_time()
        session.counts.links += 1
        self._was_unauthorized = False
        # As it was offered: a token that the server repeats stays a Secret, whose text is ***.
        hidden = (
            name for name in info.subprotocols if isinstance(name, Secret) and name.reveal() == stream.subprotocol
        )
        chosen = next(hidden, stream.subprotocol)
        info = attrs.evolve(
            info,
            epoch=session.counts.links,
            subprotocol=chosen,
            response_headers=tuple(stream.response_headers),
        )
        link: LiveLink | None = None
        try:
            async with trio.open_nursery() as nursery:
                link = LiveLink(
                    session, self._actions, self._inbound, self._outbound, self._subscriptions, stream, info, nursery
                )
                session.link_opened(link)
                subprotocol = None if chosen is None else str(chosen)
                link.life.tell(LinkOpened(connect_time=connect_time, subprotocol=subprotocol))
                await link.serve()
        finally:  # also where a defect, or an interrupt, has ended its tasks
            assert link is not None
            lost = link.end()
            self._gone.ring()
        link.life.tell(
            LinkClosed(
                code=lost.code,
                reason=lost.reason,
                remote=lost.remote,
                duration=trio.current_time() - opened,
                detail=lost.detail,
            )
        )
        self._ended = link.refused_by(lost) or lost
        return self._ended

    async def _wait_for_end(self) -> Exception:
        """Wait until another link has ended, and return how."""
        await self._gone.wait()
        assert self._ended is not None
        return self._ended

    # ----------------------------------------------------------------- between links

    def _follow(self, ended: Exception, answer: Action) -> Retry | Stop | Close:
        """Say what follows from a failure nobody wished for.

        That is `answer`, if it decides, else what the error handler, the tables and the back-off say.
        """
        session, config = self._session, self._session.config
        fails_over = isinstance(ended, ConnectFailed) and self._use_another(ended)
        attempt = self._count(ended, fails_over)
        self._came_to_nothing(ended, attempt)
        if isinstance(ended, HandshakeRejected) and ended.status == 429:
            self._outbound.limiter.heed(ended)
        spread = config.spread()
        may_retry = session.opened.is_set() or config.retry_first_connect
        once_more = self._may_be_stale(ended) or (session.was_ready and may_pass(ended))
        if isinstance(ended, LinkLost):
            fails_over = self._leaves_address(ended, attempt)
        if fails_over:
            advice: Retry | Stop | Close = Retry(0.0)
        else:
            advice = advise(ended, session.attempts, config.backoff, spread, may_retry=may_retry, once_more=once_more)
        if isinstance(advice, Retry):
            advice = Retry(max(advice.delay, self._addresses.wait(trio.current_time())))
        if isinstance(answer, Close) or (answer is None and isinstance(advice, Close)):
            return Close()  # the end, and no trouble
        second = self._perform_replies(session.report(ended, _CONTEXTS.get(type(ended), "connect")))
        for action in (answer, second):
            match action:
                case Retry() | Stop() | Close():
                    return action
                case Reconnect():
                    if isinstance(advice, Retry):
                        return advice
                    return Retry(wait_wished_for(session.attempts, config.backoff, spread))
                case _:
                    pass
        if isinstance(advice, Close):
            return advice
        try:
            decision = session.handlers.error.should_reconnect(ended, max(attempt, 1), advice)
            if not isinstance(decision, Retry | Stop):
                raise ConfigError("should_reconnect", f"answered a {type(decision).__name__}, not Retry or Stop")
        except Exception as exc:
            session.handler_failed(exc)
            return advice
        return decision

    def _perform_replies(self, actions: Sequence[Action]) -> Action:
        """Let the replies that a hook answered wait for the next link; return what it says is to follow."""
        self._actions.perform([action for action in actions if isinstance(action, Reply | ReplyMany)])
        return next((action for action in actions if not isinstance(action, Reply | ReplyMany)), None)

    def _count(self, ended: Exception, fails_over: bool) -> int:
        """Count the failure, but for one after which another address is tried, or where nobody was dialled."""
        attempts = self._session.attempts
        if fails_over or (isinstance(ended, CircuitOpen) and attempts.made):
            return attempts.made
        return attempts.failed(trio.current_time())

    def _use_another(self, ended: NovaError) -> bool:
        """Use the next address, unless no other can help; return whether it may be dialled at once."""
        session, addresses = self._session, self._addresses
        hopeless = of_error(ended) is Disposition.FATAL and not (session.was_ready and may_pass(ended))
        if addresses.count == 1 or self._is_elsewhere or hopeless:
            return False
        at_once = addresses.failed(trio.current_time(), ended.retry_after)
        session.route.use((None, *session.config.failover)[addresses.in_use])
        return at_once

    def _leaves_address(self, lost: LinkLost, attempt: int) -> bool:
        """Use the next address where no link has lasted, this one and the one before it; see `_use_another`."""
        if attempt > 1:
            return self._use_another(lost)
        self._addresses.served()
        return False

    def _may_be_stale(self, ended: Exception) -> bool:
        """Return, once for each link, whether other credentials may please a server that wants some for the upgrade."""
        if not isinstance(ended, HandshakeRejected) or ended.status != 401 or self._was_unauthorized:
            return False
        is_fixed = isinstance(self._session.config.headers, Mapping)
        self._was_unauthorized = not is_fixed or self._session.hooks.names_dial
        return self._was_unauthorized

    async def _let_leave(self) -> None:
        """Give whoever leaves at what came last over a link the time to do so: then its loss is no trouble.

        A service closes at the last word it is told, often in one packet with its answer.
        """
        for _ in range(LAST_TURNS):
            if self._session.is_closing:
                return
            await trio.lowlevel.checkpoint()
        if self._outbound.draining and not self._outbound.backlog.length and not self._requests.under_way:
            self._session.close()

    async def _wait(self, delay: float) -> None:
        session = self._session
        with trio.move_on_after(delay) as scope:
            session.interrupt(scope)
            await trio.sleep_forever()
        if session.goodbye is not None and session.goodbye.then is not None:
            session.take_goodbye()  # the wish was to dial again: we are about to
