"""Who we are, on every link anew."""

from __future__ import annotations

import hashlib
import hmac
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import attrs

from trio_nova.core import Strategy, number
from trio_nova.errors import ConfigError
from trio_nova.readings import AuthOk, AuthRefused

__all__ = ["AuthExchange", "AuthHandler", "AuthOk", "AuthRefused"]


class AuthExchange(Protocol):
    """The two sides of an `authenticate` of several steps. Everything goes ahead of the application's messages.

    All of it is cancelled with the link, and after `Config.auth_timeout`.
    """

    @property
    def refresh(self) -> bool:
        """Whether a living link is authenticated again."""
        ...

    async def receive(self) -> Any:
        """Return what the service says first: the payload of the next `Welcome`, or of the next ordinary message.

        What came before this was called, since the link came up, is returned in its order.

        Raises:
            AuthFailed: the service has refused us, or this is a `refresh`: then it says nothing first.
        """
        ...

    async def ask(self, message: Any, judge: Callable[[Any], AuthOk | AuthRefused | None] | None = None) -> AuthOk:
        """Send a question and return how the service takes it: as `AuthOk` is read, or `judge` reads it.

        With a `judge` the answer is the first message of which it makes something, and a notification never
        counts; without one it is the first that is read as AuthOk or AuthRefused.

        Raises:
            AuthFailed: the answer is AuthRefused, or says no.
        """
        ...

    async def request(self, message: Any) -> Any:
        """Send a question and return its answer; raises RequestFailed where that says no."""
        ...

    async def send(self, message: Any) -> None:
        """Send a message to which no answer belongs."""
        ...

    def set_heartbeat(
        self,
        *,
        ping_interval: float | None = None,
        pong_timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> None:
        """Set durations of this link's heartbeat, as the service wants them: see the options of these names. Seconds.

        Raises:
            ConfigError: one of them is out of the bounds of its option.
        """
        ...


@attrs.define(eq=False)
class AuthHandler(Strategy):
    """The default: one question, one answer, where there are credentials.

    Credentials with a `token` send `{"type": "auth", "timestamp", "token"}`; those with an `api_key` and
    a `secret` send `{"type": "auth", "timestamp", "api_key", "signature"}`, the signature being the hex
    HMAC-SHA256 of api_key + timestamp under the secret. Answers are `auth_success`, with `expires_in` or
    `expires_at`, and `auth_error`.
    """

    with_credentials_only: ClassVar[bool] = False
    """Whether there is nothing to authenticate without credentials, though the hooks are overridden."""
    refresh_before: float = attrs.field(default=60.0, validator=number())
    """Seconds before the expiry at which to authenticate again."""
    lifetime: float = 3600.0
    """Seconds that a grant lasts where the answer does not say."""
    wall_clock: Callable[[], float] = time.time
    """Unix time, for timestamps and for `expires_at`."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        """Prove to the service who we are; for flows of several steps, override this.

        Called on every link, before anything of the application's, and again before the grant expires.

        Raises:
            AuthFailed: the service refuses.
        """
        message = self.encode_auth_request(credentials)
        if message is None:
            return AuthOk()
        return await exchange.ask(message, self.handle_auth_response)

    def encode_auth_request(self, credentials: Any) -> Any:
        """Return the message that authenticates, None where nothing is to be sent.

        Raises:
            ConfigError: the default can make nothing of these credentials.
        """
        timestamp = int(self.wall_clock() * 1000)
        match reveal(credentials):
            case None:
                return None
            case str() as token:
                return {"type": "auth", "timestamp": timestamp, "token": token}
            case {"token": token}:
                return {"type": "auth", "timestamp": timestamp, "token": reveal(token)}
            case {"api_key": api_key, "secret": secret} | {"api_key": api_key, "api_secret": secret}:
                signed = f"{reveal(api_key)}{timestamp}".encode()
                signature = hmac.new(str(reveal(secret)).encode(), signed, hashlib.sha256).hexdigest()
                return {"type": "auth", "timestamp": timestamp, "api_key": reveal(api_key), "signature": signature}
            case _:
                raise ConfigError(
                    "credentials", "the default takes a token, or a mapping: token, or api_key and secret"
                )

    def handle_auth_response(self, message: Any) -> AuthOk | AuthRefused | None:
        """Return what `message` says to the question; None where it is no answer to it."""
        if not isinstance(message, Mapping):
            return None
        match message.get("type"):
            case "auth_success":
                return AuthOk(self._lifetime(message))
            case "auth_error":
                return AuthRefused(str(message.get("reason") or message.get("message") or ""))
            case _:
                return None

    def handle_refusal(self, reply: Any) -> bool:
        """Return whether an answer that says no means that the service does not, or no more, know who we are.

        The link is then authenticated again, and the question asked again, once. It must be safe to ask
        again, so say True only where such an answer tells that nothing was done.
        """
        return False

    def needs_reauthentication(self, remaining: float) -> bool:
        """Return whether to authenticate again, when `remaining` seconds are left of the grant."""
        return remaining <= self.refresh_before

    def _lifetime(self, message: Mapping[str, Any]) -> float:
        match message:
            case {"expires_in": int() | float() as seconds} if not isinstance(seconds, bool):
                return seconds
            case {"expires_at": int() | float() as at} if not isinstance(at, bool):
                return max(0.0, min(at, sys.float_info.max)) - self.wall_clock()
            case _:
                return self.lifetime


def reveal(value: Any) -> Any:
    """Return the value of a secret, or the value itself."""
    return value.reveal() if hasattr(value, "reveal") else value


def reveal_all(credentials: Any) -> Any:
    """Return credentials as they were given: the value of a secret, and of each secret in a mapping."""
    given = reveal(credentials)
    return {name: reveal(value) for name, value in given.items()} if isinstance(given, Mapping) else given
