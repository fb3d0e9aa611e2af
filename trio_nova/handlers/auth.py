"""Who we are, on every link anew."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs


def reveal(value: Any) -> Any:
    """Return the value of a secret, or the value itself."""
    return value.reveal() if hasattr(value, "reveal") else value


__all__ = ["AuthExchange", "AuthHandler", "AuthOk", "AuthRefused"]


@attrs.frozen
class AuthOk:
    """The service accepts us."""

    expires_in: float | None = None
    """Seconds for which it does; None: as long as the link lasts."""


@attrs.frozen
class AuthRefused:
    """The service refuses us."""

    reason: str = ""


class AuthExchange(Protocol):
    """What an `authenticate` of several steps talks through. Everything goes ahead of the application's messages."""

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

    refresh_before: float = attrs.field(default=60.0, validator=attrs.validators.ge(0.0))
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
        """Return the message that authenticates, None where nothing is to be sent."""
        given = reveal(credentials)
        if given is None:
            return None
        if isinstance(given, str):
            given = {"token": given}
        if not isinstance(given, Mapping):
            raise TypeError(
                "the default AuthHandler takes a token, or a mapping with a token, or an api_key and a secret"
            )
        timestamp = int(self.wall_clock() * 1000)
        if "token" in given:
            return {"type": "auth", "timestamp": timestamp, "token": reveal(given["token"])}
        api_key, secret = str(reveal(given["api_key"])), str(reveal(given.get("secret", given.get("api_secret"))))
        signature = hmac.new(secret.encode(), f"{api_key}{timestamp}".encode(), hashlib.sha256).hexdigest()
        return {"type": "auth", "timestamp": timestamp, "api_key": api_key, "signature": signature}

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

    def needs_reauthentication(self, remaining: float) -> bool:
        """Return whether to authenticate again, when `remaining` seconds are left of the grant."""
        return remaining <= self.refresh_before

    def _lifetime(self, message: Mapping[str, Any]) -> float:
        match message:
            case {"expires_in": int() | float() as seconds} if not isinstance(seconds, bool):
                return float(seconds)
            case {"expires_at": int() | float() as at} if not isinstance(at, bool):
                return float(at) - self.wall_clock()
            case _:
                return self.lifetime
