"""Authentication on a link: before anything of the application's, and again before the grant expires."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import attrs
import trio

from trio_nova._outbound import Outbound
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._signal import Signal
from trio_nova.config import configure
from trio_nova.core.outbox import Lane
from trio_nova.core.session import State
from trio_nova.core.verdict import refuses_login
from trio_nova.errors import (
    AuthFailed,
    ConnectFailed,
    LinkLost,
    NotSent,
    NovaError,
    RequestFailed,
    RetryAdvice,
)
from trio_nova.events import Authenticated, AuthStarted, AuthUnsuccessful
from trio_nova.handlers import AuthHandler, AuthOk, AuthRefused
from trio_nova.secrets import CredentialsSource, Redactor, secrets_in

__all__ = ["Authenticator"]

SHORTEST_GRANT = 10.0
"""Seconds. A service that grants less, or nonsense, is taken to grant this: it must not make us ask without end."""
REFRESH_TRIES = 3
"""How often a refresh may fail before the link is given up."""
_FIRST = -1
"""The priority of authentication: ahead of subscriptions, which would be of no use without."""


@attrs.define(eq=False)
class _Exchange:
    """What an AuthHandler talks through, see `AuthExchange`."""

    _requests: Requests
    _outbound: Outbound
    _redactor: Redactor
    refresh: bool

    async def ask(self, message: Any, judge: Callable[[Any], AuthOk | AuthRefused | None]) -> AuthOk:
        try:
            reply = await self._requests.request(
                message, matches=lambda m: judge(m) is not None, priority=_FIRST, lane=Lane.SETUP, purpose="auth"
            )
        except RequestFailed as error:
            match judge(error.reply):
                case AuthRefused(reason):
                    raise AuthFailed(self._words(reason), retry=error.retry) from error
                case _:
                    raise
        match judge(reply):
            case AuthOk() as ok:
                return ok
            case AuthRefused(reason):
                raise AuthFailed(self._words(reason))
            case _:
                raise AuthFailed("the service's answer was not understood")

    def _words(self, reason: str) -> str:
        return f"the service refuses the credentials: {self._redactor.show(reason)}"

    async def request(self, message: Any) -> Any:
        return await self._requests.request(message, priority=_FIRST, lane=Lane.SETUP, purpose="auth")

    async def send(self, message: Any) -> None:
        frame, kind = self._outbound.encode(message), self._outbound.kind_of(message)
        await self._outbound.send(frame, kind, _FIRST, Lane.SETUP, "auth")


@attrs.define(eq=False)
class Authenticator:
    """Proves who we are, on every link, and keeps the proof fresh."""

    _session: Session
    _outbound: Outbound
    _requests: Requests
    _refusals: int = attrs.field(default=0, init=False)
    """How often in a row the service has refused."""
    _expires_at: float = attrs.field(default=math.inf, init=False)
    _granted_at: float = attrs.field(default=0.0, init=False)
    _renewed: Signal = attrs.field(factory=Signal, init=False)
    _turn: trio.Lock | None = attrs.field(default=None, init=False)
    """One authentication at a time: two at once could end with the older credentials."""
    grants: int = attrs.field(default=0, init=False)
    """How often the service has accepted us."""

    def __attrs_post_init__(self) -> None:
        self._requests.renewal = self

    @property
    def needed(self) -> bool:
        """Whether a link must be authenticated before it is ready."""
        handler = type(self._session.handlers.auth)
        overridden = (
            handler.authenticate is not AuthHandler.authenticate
            or handler.encode_auth_request is not AuthHandler.encode_auth_request
        )
        return self._session.config.credentials is not None or (overridden and not handler.with_credentials_only)

    def is_called_for(self, reply: Any) -> bool:
        """Whether an answer that says no calls for another authentication."""
        session = self._session
        try:
            return self.needed and session.handlers.auth.handle_refusal(reply)
        except Exception as exc:
            session.handler_failed(exc)
            return False

    async def renew(self, seen: int) -> None:
        """Authenticate the present link again, unless that was done since there were `seen` grants.

        Raises:
            AuthFailed, ConnectFailed: as `sign_in`.
        """
        await self.sign_in(refresh=True, seen=seen)

    async def change(self, credentials: CredentialsSource) -> None:
        """Authenticate the present link with other credentials, which are those of the session once they are accepted.

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
            if self.needed:
                with suppress(AuthFailed, ConnectFailed):
                    await self.sign_in(refresh=True)
                    in_doubt = False
            raise
        except NovaError:
            in_doubt = False  # nothing was asked, or its link is gone
            raise
        finally:
            if in_doubt and self.needed:
                self._expires_at = self._granted_at = trio.current_time()
                self._renewed.set()

    async def sign_in(
        self, *, refresh: bool = False, seen: int | None = None, credentials: CredentialsSource = None
    ) -> None:
        """Authenticate the present link; not if, meanwhile, there are other than `seen` grants.

        Args:
            refresh: whether it has been authenticated before.
            seen: how many grants there were when the caller found that it is not authenticated; None: whatever.
            credentials: to be used in place of the session's, and to become those if they are accepted.

        Raises:
            AuthFailed: the service refuses, or does not answer in time.
            ConnectFailed: the provider of credentials failed.
            NotSent: the link was lost, or left, before it was this one's turn.
        """
        session = self._session
        if self._turn is None:
            self._turn = trio.Lock()
        async with self._turn:
            if seen not in (None, self.grants):
                return
            if self._outbound.link is None or session.state is State.DISCONNECTED:
                raise NotSent("the link to be authenticated is gone") from LinkLost(1006, "", session.epoch)
            session.tell(AuthStarted(refresh=refresh))
            started = trio.current_time()
            try:
                ok: AuthOk | None = None
                with trio.move_on_after(session.config.auth_timeout):
                    ok = await self._authenticate(refresh, credentials)
                if ok is None:
                    raise AuthFailed(
                        f"no answer to the authentication within {session.config.auth_timeout:g} s",
                        retry=RetryAdvice.BACKOFF,
                    )
            except NovaError as error:
                session.tell(AuthUnsuccessful(refresh=refresh, error=error))
                raise
            if ok.tokens:
                session.redactor.keep("grant", secrets_in(ok.tokens))
            self._refusals = 0
            self.grants += 1
            if credentials is not None:
                session.reconfigure(configure(session.config, {"credentials": credentials}), ("credentials",))
            self._granted_at = trio.current_time()
            lasts = None if ok.expires_in is None else _lifetime(ok.expires_in)
            self._expires_at = math.inf if lasts is None else self._granted_at + lasts
            duration = self._granted_at - started
            session.tell(Authenticated(refresh=refresh, duration=duration, expires_in=lasts))
            self._renewed.set()

    async def _authenticate(self, refresh: bool, on_trial: CredentialsSource) -> AuthOk:
        session = self._session
        source = session.config.credentials if on_trial is None else on_trial
        credentials = await session.ask_credentials(source)
        try:
            exchange = _Exchange(self._requests, self._outbound, session.redactor, refresh)
            ok = await session.handlers.auth.authenticate(exchange, credentials)
            if not isinstance(ok, AuthOk):
                raise TypeError(f"authenticate() returned {type(ok).__name__}, not AuthOk")
        except (AuthFailed, RequestFailed) as error:
            again = on_trial is None and self._may_be_stale()
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
        if not self.needed or not lost.remote or not refuses_login(lost.code):
            return None
        said = f": {self._session.redactor.show(lost.reason)}" if lost.reason else ""
        refused = AuthFailed(
            f"the service closed the link amid the login, with code {lost.code}{said}",
            retry=RetryAdvice.BACKOFF if self._may_be_stale() else RetryAdvice.NEVER,
        )
        refused.__cause__ = lost
        self._session.tell(AuthUnsuccessful(refresh=False, error=refused))
        return refused

    def _may_be_stale(self) -> bool:
        """Count a refusal; return whether a provider may have handed out what has expired, and is asked once more."""
        self._refusals += 1
        return callable(self._session.config.credentials) and self._refusals < 2

    async def keep_fresh(self) -> NovaError:
        """Authenticate the living link again before each grant expires; return the error when that fails for good.

        So it does at the third failure in a row, and at the first after the grant has expired: the next
        link is authenticated afresh, and on this one nobody would know any more who sends.
        """
        session = self._session
        failures = 0
        while True:
            now = trio.current_time()
            if now < self._refresh_at():
                await self._renewed.wait(self._refresh_at())
                continue
            remaining = self._expires_at - now
            if remaining > 0 and not self._wants_refresh(remaining):
                await self._renewed.wait(now + max(1.0, remaining / 10))
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
        return max(half, self._expires_at - self._session.handlers.auth.refresh_before)

    def _wants_refresh(self, remaining: float) -> bool:
        try:
            return self._session.handlers.auth.needs_reauthentication(remaining)
        except Exception as exc:
            self._session.handler_failed(exc)
            return True


def _lifetime(seconds: float) -> float:
    # A handler may pass on what the service says as it is: a text, or NaN; or a Decimal, as a codec reads it.
    if isinstance(seconds, Decimal):
        seconds = float(seconds)
    if not isinstance(seconds, int | float) or not seconds >= SHORTEST_GRANT:
        return SHORTEST_GRANT
    return seconds if seconds <= sys.float_info.max else math.inf
