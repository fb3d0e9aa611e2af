"""Who may do what on a venue: credentials, tokens, and the orders of the one account."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import trio

from trio_nova.testing._market import epoch_ms

__all__ = ["Order", "Orders", "Token", "Tokens", "VenueError", "invalid_params", "sign"]


class VenueError(Exception):
    """What a venue answers in place of a result. `breach` says whether it is the client's fault."""

    def __init__(self, code: int, message: str, *, reason: str = "", breach: bool = False) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.breach = breach


def sign(secret: str, timestamp: int, nonce: str, data: str = "") -> str:
    """Return the signature that the grant `client_signature` asks for: hex HMAC-SHA256."""
    return hmac.new(secret.encode(), f"{timestamp}\n{nonce}\n{data}".encode(), hashlib.sha256).hexdigest()


@attrs.define(eq=False)
class Token:
    """What authentication gives."""

    access: str
    refresh: str
    scope: str
    """`connection`, or `session:` and a name."""
    expires_at: float
    """Trio's clock, seconds."""
    told_until: float
    """What the client was told of that: beyond it, to send the token is to send what is known to be dead."""
    link: int | None
    """The number of the link that it dies with; None where it survives."""
    revoked: bool = False
    """Refreshed, logged out, or dead with its link."""

    @property
    def valid(self) -> bool:
        """Whether it lets anybody in now."""
        return not self.revoked and trio.current_time() < self.expires_at


@attrs.define(eq=False)
class Tokens:
    """Checks credentials, and grants."""

    credentials: Mapping[str, str]
    """Secrets by client id."""
    lifetime: float
    """Seconds."""
    max_age: float
    """Seconds for which a signature's timestamp is good, either way."""
    granted: list[Token] = attrs.field(factory=list)
    """Every token, oldest first."""
    nonces: set[str] = attrs.field(factory=set)
    """Every nonce that came with a good signature."""

    def grant(self, params: Mapping[str, Any], link: int, unix_time: float) -> Token:
        """Judge an authentication, and return its token.

        Raises:
            VenueError: 13004 for wrong credentials, -32602 for wrong parameters.
        """
        scope = params.get("scope", "connection")
        named = isinstance(scope, str) and scope.startswith("session:") and len(scope) > len("session:")
        if scope != "connection" and not named:
            raise invalid_params(f"scope {scope!r}")
        match params.get("grant_type"):
            case "client_credentials":
                self._check_secret(params)
            case "client_signature":
                self._check_signature(params, unix_time)
            case "refresh_token":
                scope = self._use_refresh(params).scope
            case other:
                raise invalid_params(f"grant_type {other!r}")
        number = len(self.granted) + 1
        until = trio.current_time() + self.lifetime
        dies_with = link if scope == "connection" else None
        self.granted.append(Token(f"access-token-{number}", f"refresh-token-{number}", scope, until, until, dies_with))
        return self.granted[-1]

    def find(self, access: Any) -> Token | None:
        """Return the token with this access code, valid or not."""
        return next((token for token in self.granted if token.access == access), None)

    def expire(self) -> None:
        """Let every token expire now; they can still be refreshed."""
        for token in self.granted:
            token.expires_at = min(token.expires_at, trio.current_time())

    def lose_link(self, link: int) -> None:
        """Revoke what dies with this link."""
        for token in self.granted:
            if token.link == link:
                token.revoked = True

    def _secret(self, params: Mapping[str, Any]) -> str:
        client = params.get("client_id")
        if not isinstance(client, str) or client not in self.credentials:
            raise VenueError(13004, "invalid_credentials", reason="client_id")
        return self.credentials[client]

    def _check_secret(self, params: Mapping[str, Any]) -> None:
        if params.get("client_secret") != self._secret(params):
            raise VenueError(13004, "invalid_credentials", reason="client_secret")

    def _check_signature(self, params: Mapping[str, Any], unix_time: float) -> None:
        secret = self._secret(params)
        timestamp, nonce, data = params.get("timestamp"), params.get("nonce"), params.get("data", "")
        if not isinstance(timestamp, int) or isinstance(timestamp, bool):
            raise invalid_params("timestamp: milliseconds, a whole number")
        if not isinstance(nonce, str) or not nonce or not isinstance(data, str):
            raise invalid_params("nonce and data: text")
        given = params.get("signature")
        right = sign(secret, timestamp, nonce, data)
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), right.encode()):
            raise VenueError(13004, "invalid_credentials", reason="signature")
        if abs(timestamp / 1000 - unix_time) > self.max_age:
            raise VenueError(13004, "invalid_credentials", reason="timestamp too old", breach=True)
        if nonce in self.nonces:
            raise VenueError(13004, "invalid_credentials", reason="nonce used before", breach=True)
        self.nonces.add(nonce)

    def _use_refresh(self, params: Mapping[str, Any]) -> Token:
        given = params.get("refresh_token")
        token = next((token for token in self.granted if token.refresh == given), None)
        if token is None or token.revoked:
            raise VenueError(13004, "invalid_credentials", reason="refresh_token")
        token.revoked = True  # a refresh token is good for one refreshing
        return token


@attrs.define(eq=False)
class Order:
    """One order that was executed: taken into the book, or filled."""

    id: str
    link: int
    """The number of the link it came over."""
    at: float
    """Trio's clock, seconds."""
    instrument: str
    direction: Literal["buy", "sell"]
    amount: float
    type: Literal["limit", "market"]
    price: float
    label: str
    """The client's own name for it: the same twice is an order placed twice."""
    state: Literal["open", "filled", "cancelled"]

    def as_message(self) -> dict[str, Any]:
        """Return what the wire says of it."""
        return {
            "order_id": self.id,
            "order_state": self.state,
            "order_type": self.type,
            "instrument_name": self.instrument,
            "direction": self.direction,
            "amount": self.amount,
            "filled_amount": self.amount if self.state == "filled" else 0.0,
            "price": self.price,
            "label": self.label,
            "creation_timestamp": epoch_ms(),
            "api": True,
        }


@attrs.define(eq=False)
class Orders:
    """The account's orders, oldest first."""

    instruments: tuple[str, ...]
    placed: list[Order] = attrs.field(factory=list)

    def place(self, link: int, direction: Literal["buy", "sell"], params: Mapping[str, Any]) -> Order:
        """Execute an order: one at market is filled at once, one with a limit stays open.

        Raises:
            VenueError: -32602, or 10020 where the instrument is not traded.
        """
        kind, label, price = params.get("type", "limit"), params.get("label", ""), params.get("price")
        if params.get("instrument_name") not in self.instruments:
            raise VenueError(10020, "invalid_or_unsupported_instrument")
        if kind not in ("limit", "market"):
            raise invalid_params("type: limit or market")
        if not isinstance(label, str) or len(label) > 64:
            raise invalid_params("label: text of at most 64 characters")
        amount = _positive(params.get("amount"), "amount")
        at = 30_000.0 if kind == "market" else _positive(price, "price")
        number = f"{params['instrument_name'].partition('-')[0]}-{len(self.placed) + 1}"
        state: Literal["open", "filled"] = "filled" if kind == "market" else "open"
        now, name = trio.current_time(), params["instrument_name"]
        self.placed.append(Order(number, link, now, name, direction, amount, kind, at, label, state))
        return self.placed[-1]

    def cancel(self, order_id: Any) -> Order:
        """Cancel an open order.

        Raises:
            VenueError: 10004 where there is none, 11044 where it is not open.
        """
        order = next((order for order in self.placed if order.id == order_id), None)
        if order is None:
            raise VenueError(10004, "order_not_found")
        if order.state != "open":
            raise VenueError(11044, "not_open_order")
        order.state = "cancelled"
        return order

    def of_link(self, link: int) -> list[Order]:
        """Return the open orders that came over a link."""
        return [order for order in self.placed if order.link == link and order.state == "open"]

    def repeated_labels(self) -> dict[str, int]:
        """Return how often each label was executed, of those executed more than once."""
        counts = Counter(order.label for order in self.placed if order.label)
        return {label: count for label, count in counts.items() if count > 1}


def invalid_params(reason: str) -> VenueError:
    """Return the error for parameters that no correct client sends."""
    return VenueError(-32602, "Invalid params", reason=reason, breach=True)


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise invalid_params(f"{name}: a number above 0")
    return float(value)
