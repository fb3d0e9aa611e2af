"""The login on a link: done before anything of the application's, and again before the grant expires."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

import attrs
import trio

from trio_nova._link.answers import Answers, Ask
from trio_nova._link.heartbeat import Heartbeat
from trio_nova._link.life import LinkLife
from trio_nova._link.writer import Writer
from trio_nova._outbound import Outbound
from trio_nova._signal import Signal
from trio_nova.config import configure
from trio_nova.core.bounded import BoundedQueue, Room
from trio_nova.core.outbox import Lane, Purpose
from trio_nova.core.verdict import refuses_login
from trio_nova.errors import AuthFailed, ConnectFailed, LinkLost, NotSent, NovaError, RequestFailed, RetryAdvice
from trio_nova.events import Authenticated, AuthStarted, AuthUnsuccessful
from trio_nova.readings import AuthOk, AuthRefused
from trio_nova.secrets import CredentialsSource, secrets_in

__all__ = ["Grant"]

SHORTEST_GRANT = 10.0
"""Seconds. A service that grants less, or nonsense, is taken to grant this: it must not make us ask without end."""
REFRESH_TRIES = 3
"""How often a refresh may fail before the link is given up."""
_FIRST = -1
"""The priority of authentication: ahead of subscriptions, which would be of no use without."""


MAX_EARLY = 1024
"""Messages that may come before the login reads them; the oldest is then received as an ordinary one."""
MAX_EARLY_SIZE = 1024 * 1024
"""Bytes that they may take together, where there is more than one."""


@attrs.define(eq=False)
class _Exchange:
    """The two sides of an `authenticate`, see `AuthExchange`."""

    _grant: Grant
    refresh: bool

    async def receive(self) -> Any:
        return await self._grant.receive()

    async def ask(self, message: Any, judge: Callable[[Any], AuthOk | AuthRefused | None] | None = None) -> AuthOk:
        try:
            reply = await self._grant.ask_login(message, judge)
        except RequestFailed as error:
            verdict = error.reply if judge is None else judge(error.reply)
            if isinstance(verdict, AuthRefused):
                raise _refused(verdict, self._grant.life, error.retry) from error
            raise
        match reply if isinstance(reply, AuthOk | AuthRefused) or judge is None else judge(reply):
            case AuthOk() as ok:
                return ok
            case AuthRefused() as refused:
                raise _refused(refused, self._grant.life)
            case _:
                raise AuthFailed("the service's answer was not understood")

    async def request(self, message: Any) -> Any:
        return await self._grant.ask_unknown(message)

    async def send(self, message: Any) -> None:
        await self._grant.send_unknown(message)

    def set_heartbeat(
        self,
        *,
        ping_interval: float | None = None,
        pong_timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        named = {"ping_interval": ping_interval, "pong_timeout": pong_timeout, "idle_timeout": idle_timeout}
        self._grant.set_heartbeat({name: value for name, value in named.items() if value is not None})


@attrs.define(eq=False)
class Grant:
    """The grant of the service on the link, and the asking that needs it."""

    life: LinkLife
    _outbound: Outbound
    _writer: Writer
    _answers: Answers
    _heartbeat: Heartbeat
    is_given: bool = attrs.field(default=False, init=False)
    """Whether the service has accepted us on this link."""
    logins: int = attrs.field(default=0, init=False)
    """The number of logins that it has accepted."""
    _expires_at: float = attrs.field(default=math.inf, init=False)
    _granted_at: float = attrs.field(default=0.0, init=False)
    _changed: Signal = attrs.field(factory=Signal, init=False)
    """Wakes the login that waits for a message, or the task that keeps the grant fresh."""
    _early: BoundedQueue[tuple[Any, Callable[[], object]]] = attrs.field(
        factory=lambda: BoundedQueue(room=Room(MAX_EARLY_SIZE)), init=False
    )
    """Messages that the login may read, each with what receives it as an ordinary one."""
    _refusal: AuthRefused | None = attrs.field(default=None, init=False)
    """The service's refusal, where it came before the login had asked anything."""
    _asking: Ask | None = attrs.field(default=None, init=False)
    """The login's own question, whose answer may be read as AuthOk or AuthRefused."""
    _turn: trio.Lock | None = attrs.field(default=None, init=False)
    """One authentication at a time: two at once could end with the older credentials. None: nobody has asked."""

    @property
    def is_needed(self) -> bool:
        """Whether a link must be authenticated before it is ready."""
        return self.life.session.config.credentials is not None or self.life.hooks.logs_in

    # ----------------------------------------------------------------- what is read

    @property
    def is_asked(self) -> bool:
        """Whether a message may be an answer to the login, or be what the login depends on."""
        return self._asking is not None or self.listens

    @property
    def listens(self) -> bool:
        """Whether the login may yet want to read what the service says by itself."""
        return not self.is_given and self.life.hooks.listens_first and self.is_needed and self.life.is_up

    def take(self, verdict: AuthOk | AuthRefused) -> bool:
        """Take in the answer to the login; False where nobody waits for it."""
        if self._asking is not None and self._answers.settle_at_once(self._asking, verdict):
            return True
        if isinstance(verdict, AuthRefused) and self.listens:
            self._refusal = verdict
            if self._asking is not None:  # it need not be asked any more
                self._asking.outgoing.settle(_refused(verdict, self.life))
            self._changed.set()
            return True
        return False

    def take_early(self, payload: Any, size: int, receive: Callable[[], object]) -> None:
        """Keep a message that the login may want to read, as it `listens`; `size` is what it takes, in bytes.

        `receive` receives it as an ordinary one, where the login has left it.
        """
        early = self._early
        early.offer((payload, receive), size)
        while len(early) > MAX_EARLY or (len(early) > 1 and early.room.is_full):
            early.pop()[1]()
        self._changed.set()

    async def receive(self) -> Any:
        """Return the next of the messages that were kept for the login, waiting for it if need be."""
        await trio.lowlevel.checkpoint()
        while not self._early.items:
            if self._refusal is not None:
                raise _refused(self._refusal, self.life)
            if self.is_given:
                raise AuthFailed("a living link is authenticated: the service says nothing first")
            await self._changed.wait()
        return self._early.pop()[0]

    def let_go_of_early(self) -> None:
        """Receive as ordinary messages what the login has left."""
        while self._early.items:
            self._early.pop()[1]()

    def set_heartbeat(self, durations: Mapping[str, float]) -> None:
        """Set durations of this link's heartbeat; ConfigError where they are out of bounds."""
        configure(self.life.session.config, durations)
        self._heartbeat.set_durations(durations)

    # ----------------------------------------------------------------- asking

    async def ask_login(self, message: Any, judge: Callable[[Any], AuthOk | AuthRefused | None] | None) -> Any:
        """Ask as `ask_unknown` does, and return the answer, or what a message is read as: AuthOk, or AuthRefused."""
        # Where nobody judges, the answer is read as what it is, and so the question bears no id of ours.
        if self._refusal is not None:
            raise _refused(self._refusal, self.life)
        matches: Callable[[Any], bool] = _never if judge is None else lambda reply: judge(reply) is not None
        ask = Ask(session=self.life.session, outbound=self._outbound, matches=matches)
        self._asking = ask
        try:
            return await ask.ask(message, self._writer.put, priority=_FIRST, lane=Lane.SETUP, purpose="auth")
        finally:
            if self._asking is ask:
                self._asking = None

    async def ask_unknown(self, message: Any) -> Any:
        """Ask as somebody whom the service does not know yet, ahead of all else; return the answer."""
        ask = Ask(session=self.life.session, outbound=self._outbound)
        return await ask.ask(message, self._writer.put, priority=_FIRST, lane=Lane.SETUP, purpose="auth")

    async def send_unknown(self, message: Any) -> None:
        """Send as somebody whom the service does not know yet, ahead of all else."""
        await self._writer.send(message, _FIRST, "auth")

    async def ask(
        self,
        message: Any,
        purpose: Purpose,
        *,
        when_written: Callable[[], object] | None = None,
        on_answer: Callable[[Any], object] | None = None,
        renews: bool = True,
    ) -> Any:
        """Ask before the link is ready, and return the answer; log in again, once, where it calls for that.

        Args:
            message: the question.
            purpose: what it is sent for.
            when_written: called once the question has left.
            on_answer: called with the answer, before anything is taken in that came behind it.
            renews: whether a refusal may call for another login.
        """
        seen = self.logins
        try:
            return await self._ask(message, purpose, when_written, on_answer)
        except RequestFailed as refusal:
            if not renews or not self.is_called_for(refusal.reply):
                raise
            try:
                await self.renew(seen)
            except NovaError as failure:
                raise refusal from failure
            try:
                return await self._ask(message, purpose, when_written, on_answer)
            except NotSent:
                raise refusal from None

    async def _ask(
        self,
        message: Any,
        purpose: Purpose,
        when_written: Callable[[], object] | None,
        on_answer: Callable[[Any], object] | None,
    ) -> Any:
        ask = Ask(session=self.life.session, outbound=self._outbound, when_written=when_written, on_answer=on_answer)
        return await ask.ask(message, self._writer.put, lane=Lane.SETUP, purpose=purpose)

    def is_called_for(self, reply: Any) -> bool:
        """Return whether an answer that says no calls for another login."""
        session = self.life.session
        try:
            return self.is_needed and self.life.handlers.auth.handle_refusal(reply)
        except Exception as exc:
            session.handler_failed(exc)
            return False

    # ----------------------------------------------------------------- logging in

    async def renew(self, seen: int) -> None:
        """Authenticate again, unless that was done since there were `seen` logins; raises like `sign_in`."""
        await self.sign_in(refresh=True, seen=seen)

    async def change(self, credentials: CredentialsSource) -> None:
        """Authenticate with other credentials, which are those of the session once they are accepted.

        Where they are not, those before stay in force; and since a service may forget at a refusal who we
        were, the link is authenticated with those again. Cancelling leaves that to `keep_fresh`.

        Raises:
            AuthFailed, ConnectFailed: as `sign_in`.
        """
        in_doubt = True
        try:
            await self.sign_in(refresh=True, credentials=credentials)
            in_doubt = False
        except AuthFailed:
            if self.is_needed:
                with suppress(NovaError):  # where the link is lost over that, the next one is authenticated afresh
                    await self.sign_in(refresh=True)
                    in_doubt = False
            raise
        except NovaError:
            in_doubt = False  # nothing was asked, or its link is gone
            raise
        finally:
            if in_doubt and self.is_needed:
                self._expires_at = self._granted_at = trio.current_time()
                self._changed.set()

    async def sign_in(
        self, *, refresh: bool = False, seen: int | None = None, credentials: CredentialsSource = None
    ) -> None:
        """Authenticate the link; not if, meanwhile, there were other than `seen` logins.

        Args:
            refresh: whether it has been authenticated before.
            seen: how many logins there were when the caller found that it is not authenticated; None: whatever.
            credentials: to be used in place of the session's, and to become those if they are accepted.

        Raises:
            AuthFailed: the service refuses, or does not answer in time.
            ConnectFailed: the provider of credentials failed.
            NotSent: the link was lost, or left, before it was this one's turn.
        """
        life, session = self.life, self.life.session
        if self._turn is None:
            self._turn = trio.Lock()
        async with self._turn:
            if seen not in (None, self.logins):
                return
            life.check_up()
            life.tell(AuthStarted(refresh=refresh))
            started = trio.current_time()
            try:
                ok = await self._authenticate(refresh, credentials)
            except NovaError as error:
                life.tell(AuthUnsuccessful(refresh=refresh, error=error))
                raise
            if ok.tokens:
                session.redactor.keep("grant", secrets_in(ok.tokens))
            session.login_accepted()
            self.is_given = True
            self.logins += 1
            self.let_go_of_early()
            if credentials is not None:
                session.reconfigure(configure(session.config, {"credentials": credentials}), ("credentials",))
            self._granted_at = trio.current_time()
            lasts = None if ok.expires_in is None else _lifetime(ok.expires_in)
            self._expires_at = math.inf if lasts is None else self._granted_at + lasts
            life.tell(Authenticated(refresh=refresh, duration=self._granted_at - started, expires_in=lasts))
            self._changed.set()

    async def _authenticate(self, refresh: bool, on_trial: CredentialsSource) -> AuthOk:
        session = self.life.session
        with trio.move_on_after(session.config.auth_timeout):
            return await self._ask_handler(refresh, on_trial)
        raise AuthFailed(
            f"no answer to the authentication within {session.config.auth_timeout:g} s", retry=RetryAdvice.BACKOFF
        )

    async def _ask_handler(self, refresh: bool, on_trial: CredentialsSource) -> AuthOk:
        session = self.life.session
        credentials = await session.ask_credentials(session.config.credentials if on_trial is None else on_trial)
        auth = self.life.handlers.auth
        if credentials is None and auth.with_credentials_only:
            return AuthOk()
        try:
            ok = await auth.authenticate(_Exchange(self, refresh), credentials)
            if not isinstance(ok, AuthOk):
                raise TypeError(f"authenticate() returned {type(ok).__name__}, not AuthOk")
        except (AuthFailed, RequestFailed) as error:
            again = on_trial is None and session.login_refused()
            retry = RetryAdvice.BACKOFF if again or error.retry is RetryAdvice.BACKOFF else RetryAdvice.NEVER
            if not isinstance(error, AuthFailed):
                raise AuthFailed(str(error), retry=retry) from error
            error.retry = retry
            raise
        except NovaError:
            raise
        except Exception as exc:
            session.handler_failed(exc)
            raise AuthFailed(f"the auth handler failed: {type(exc).__name__}") from exc
        return ok

    def refused_by(self, lost: LinkLost) -> AuthFailed | None:
        """Return the refusal that a close amid the login is; None where the link was lost for another reason."""
        session = self.life.session
        if not self.is_needed or self.is_given or not lost.remote or not refuses_login(lost.code):
            return None
        said = f": {session.redactor.show(lost.reason)}" if lost.reason else ""
        refused = AuthFailed(
            f"the service closed the link amid the login, with code {lost.code}{said}",
            retry=RetryAdvice.BACKOFF if session.login_refused() else RetryAdvice.NEVER,
        )
        refused.__cause__ = lost
        self.life.tell(AuthUnsuccessful(refresh=False, error=refused))
        return refused

    async def keep_fresh(self) -> NovaError:
        """Authenticate the living link again before each grant expires; return the error when that fails for good.

        So it does at the third failure in a row, and at the first after the grant has expired: the next
        link is authenticated afresh, and on this one nobody would know any more who sends.
        """
        session = self.life.session
        failures = 0
        while True:
            now = trio.current_time()
            if now < self._refresh_at():
                await self._changed.wait(self._refresh_at())
                continue
            remaining = self._expires_at - now
            if remaining > 0 and not self._wants_refresh(remaining):
                await self._changed.wait(now + max(1.0, remaining / 10))
                continue
            try:
                await self.sign_in(refresh=True)
                failures = 0
            except (AuthFailed, ConnectFailed) as error:
                failures += 1
                left = self._expires_at - trio.current_time()
                if failures >= REFRESH_TRIES or error.retry is RetryAdvice.NEVER or left <= 0.0:
                    return error
                session.note(error, "auth")
                delay = session.config.backoff.delay(failures, session.config.spread()) or 1.0
                await trio.sleep(min(delay, left))
            except NovaError as error:
                return error

    def _refresh_at(self) -> float:
        if self._expires_at == math.inf:
            return math.inf
        half = self._granted_at + (self._expires_at - self._granted_at) / 2
        return max(half, self._expires_at - self.life.handlers.auth.refresh_before)

    def _wants_refresh(self, remaining: float) -> bool:
        try:
            return self.life.handlers.auth.needs_reauthentication(remaining)
        except Exception as exc:
            self.life.session.handler_failed(exc)
            return True


def _refused(refused: AuthRefused, life: LinkLife, retry: RetryAdvice = RetryAdvice.NEVER) -> AuthFailed:
    words = f"the service refuses the credentials: {life.session.redactor.show(refused.reason)}"
    return AuthFailed(words, retry=RetryAdvice.BACKOFF if refused.retry else retry)


def _never(message: Any) -> bool:
    return False


def _lifetime(seconds: float) -> float:
    # A handler may pass on what the service says as it is: a text, or NaN; or a Decimal, as a codec reads it.
    if isinstance(seconds, Decimal):
        seconds = float(seconds)
    if not isinstance(seconds, int | float) or not seconds >= SHORTEST_GRANT:
        return SHORTEST_GRANT
    return seconds if seconds <= sys.float_info.max else math.inf
