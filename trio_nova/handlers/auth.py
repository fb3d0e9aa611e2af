"""Who we are, on every link anew."""

from __future__ import annotations

import hashlib
import hmac
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import attrs

from trio_nova.core import number
from trio_nova.errors import ConfigError

__all__ = ["AuthExchange", "AuthHandler", "AuthOk", "AuthRefused"]


@attrs.frozen
class AuthOk:
    """The service accepts us."""

    expires_in: float | None = None
    """Seconds for which it does; None: as long as the link lasts."""
    tokens: Sequence[str] = attrs.field(default=(), repr=False)
    """What it gave us that nobody may see: all that is in force now, also if it was given before.

    They are taken out of all that the session says; those that are not named any more only for a while, and where
    none are named, those of the grant before stay.
    """


@attrs.frozen
class AuthRefused:
    """The service refuses us."""

    reason: str = ""


class AuthExchange(Protocol):
    """What an `authenticate` of several steps talks through. Everything goes ahead of the application's messages."""

    @property
    def refresh(self) -> bool:
        """Whether a living link is authenticated again."""
        ...

    async def ask(self, message: Any, judge: Callable[[Any], AuthOk | AuthRefused | None]) -> AuthOk:
        """Send a question and return how `judge` reads its answer.

        The answer is the one with the question's id, where the service has ids; a notification never
        counts. Elsewhere it is the first message of which `judge` makes something.

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


@attrs.define(eq=False)
class AuthHandler:
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
