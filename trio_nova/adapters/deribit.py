"""Deribit, version 2 of its API: authentication, heartbeats, order books in step, and orders.

::

    async with DeribitClient.open(credentials={"client_id": "...", "client_secret": "..."}) as client:
        async with client.subscribe_to_book("BTC-PERPETUAL") as changes:
            await client.buy("BTC-PERPETUAL", 10, price=30_000, label="first")
            async for change in changes: ...

The protocol is described at https://docs.deribit.com. Every new link is told, in this order: who we are,
that we want heartbeats, what becomes of our orders when the link is lost, public channels, private ones.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from trio_nova._feeds import Feed, FeedOptions
from trio_nova.adapter import Adapter
from trio_nova.adapters.jsonrpc import JsonRpcClient, JsonRpcCorrelation, make_request, read_error
from trio_nova.codecs import JsonCodec
from trio_nova.core.limits import TokenBucket
from trio_nova.core.sequence import ChangeChain, Tracker
from trio_nova.errors import AuthFailed, ConfigError, RequestFailed
from trio_nova.handlers import (
    AuthExchange,
    AuthHandler,
    AuthOk,
    Channel,
    ConnectionHandler,
    ConnectionInfo,
    Granted,
    PingHeartbeat,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.handlers.auth import reveal
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.secrets import Secret, as_secret

__all__ = ["Deribit", "DeribitAuth", "DeribitClient", "DeribitHeartbeat", "DeribitSubscriptions", "sign"]

MAX_CHANNELS = 500
"""That one request may name."""
SHORTEST_HEARTBEAT = 10
"""Seconds: what `public/set_heartbeat` takes at least."""

TOO_MANY_REQUESTS = 10028
UNAUTHORIZED = 13009
RAW_UNAUTHORIZED = 13778
"""`.raw` channels are for who is authenticated."""

Grant: TypeAlias = Literal["client_credentials", "client_signature"]
CancelScope: TypeAlias = Literal["connection", "account"]


def sign(secret: str, timestamp: int, nonce: str, data: str = "") -> str:
    """Return the signature of the grant `client_signature`: hex HMAC-SHA256; `timestamp` in milliseconds."""
    return hmac.new(secret.encode(), f"{timestamp}\n{nonce}\n{data}".encode(), hashlib.sha256).hexdigest()


# --------------------------------------------------------------------------- strategies


@attrs.define(eq=False)
class DeribitAuth(AuthHandler):
    """Authenticates with a mapping of `client_id` and `client_secret`, and refreshes with the token that it gets.

    With the scope `connection` a token dies with its link, so every link begins with the credentials; a
    `session:` survives it. Where the refresh token is refused, the credentials are used.
    """

    with_credentials_only: ClassVar[bool] = True

    lifetime: float = 900.0
    """Seconds that a token lasts where the answer does not say, or says nonsense."""
    grant: Grant = "client_credentials"
    """"client_signature" does not send the secret, but proves that we know it."""
    scope: str = "connection"
    entropy: Callable[[int], bytes] = os.urandom
    """Unpredictable bytes, for nonces."""
    _refresh_token: Secret[str] | None = attrs.field(default=None, init=False)
    _granted_for: Secret[Any] | None = attrs.field(default=None, init=False)
    """The credentials that gave it."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        if credentials is None:
            return AuthOk()
        given, token = as_secret(credentials), self._refresh_token
        self._refresh_token = None  # a refresh token is good for one use
        lives = exchange.refresh or self.scope != "connection"
        if token is not None and lives and given == self._granted_for:
            refresh = {"grant_type": "refresh_token", "refresh_token": token.reveal()}
            try:
                return self._read_grant(await exchange.request(make_request("public/auth", refresh)), given)
            except RequestFailed:
                pass
        return self._read_grant(await exchange.request(self.encode_auth_request(credentials)), given)

    def encode_auth_request(self, credentials: Any) -> Any:
        match reveal(credentials):
            case {"client_id": client, "client_secret": secret}:
                about = {"grant_type": self.grant, "client_id": reveal(client), "scope": self.scope}
            case _:
                raise ConfigError("credentials", "Deribit takes a mapping with client_id and client_secret")
        if self.grant == "client_credentials":
            return make_request("public/auth", {**about, "client_secret": reveal(secret)})
        timestamp, nonce = round(self.wall_clock() * 1000), self.entropy(8).hex()
        signature = sign(reveal(secret), timestamp, nonce)
        proof = {"timestamp": timestamp, "nonce": nonce, "data": "", "signature": signature}
        return make_request("public/auth", {**about, **proof})

    def handle_refusal(self, reply: Any) -> bool:
        error = read_error(reply)
        if error is None or error.code not in (UNAUTHORIZED, RAW_UNAUTHORIZED):
            return False
        self._refresh_token = None  # what the service thinks of us is in doubt: begin with the credentials
        return True

    def _read_grant(self, reply: Any, given: Secret[Any]) -> AuthOk:
        match reply:
            case {"result": {"access_token": str()} as result}:
                self._granted_for = given
            case _:
                raise AuthFailed("the answer brings no access_token")
        match result:
            case {"refresh_token": str(token)}:
                self._refresh_token = Secret(token)
        match result:
            case {"expires_in": int(seconds) | float(seconds)} if seconds > 0 and seconds is not True:
                return AuthOk(float(seconds))
            case _:
                return AuthOk(self.lifetime)


@attrs.define(eq=False)
class DeribitSetup(ConnectionHandler):
    """Asks for heartbeats, and for orders to be cancelled when the link is lost."""

    heartbeat_interval: int | None
    cancel_on_disconnect: CancelScope | None

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        requests: list[Any] = []
        if self.heartbeat_interval is not None:
            requests.append(make_request("public/set_heartbeat", {"interval": self.heartbeat_interval}))
        if self.cancel_on_disconnect is not None:
            scope = {"scope": self.cancel_on_disconnect}
            requests.append(make_request("private/enable_cancel_on_disconnect", scope))
        return requests


@attrs.frozen
class DeribitHeartbeat(PingHeartbeat):
    """Answers the service's `test_request`, which closes the link otherwise; our own probe is a ping."""

    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False, repr=False)

    def answer(self, message: Any) -> Any:
        match message:
            case {"method": "heartbeat", "params": {"type": "test_request"}}:
                return {**make_request("public/test", {}), "id": f"{_TEST}{next(self._numbers)}"}
            case _:
                return None

    def is_beat(self, message: Any) -> bool:
        match message:
            case {"method": "heartbeat"}:
                return True
            case {"id": str(id)}:
                return id.startswith(_TEST)
            case _:
                return False


_TEST = "test-"
"""What the ids of our answers to a test_request begin with: what comes back under them is of no interest."""


@attrs.define(eq=False)
class DeribitSubscriptions(SubscriptionHandler):
    """Channels in large batches, public before private; order books are kept in step by their change ids."""

    correlated: ClassVar[bool] = True
    drops_unclaimed: ClassVar[bool] = True

    max_batch: int = 10 * MAX_CHANNELS

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        if params:
            raise ConfigError("params", f"a channel of Deribit takes none; its name says all: {channel!r}")
        return channel

    def split_batch(self, channels: Sequence[Channel]) -> Iterator[Sequence[Channel]]:
        for private in (False, True):
            group = [channel for channel in channels if _is_private(channel.name) is private]
            for start in range(0, len(group), MAX_CHANNELS):
                yield group[start : start + MAX_CHANNELS]

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return _about_channels("subscribe", [channel.name for channel in channels])

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return _about_channels("subscribe", [channel])

    def encode_unsubscription_request(self, channel: str) -> Any:
        return _about_channels("unsubscribe", [channel])

    def read_grants(self, reply: Any, asked: Sequence[Channel]) -> Iterable[SubscriptionAnswer]:
        names = reply.get("result")
        granted = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set[str]()
        return [Granted(channel.key) for channel in asked if channel.name in granted]

    def channel_of(self, message: Any) -> Hashable | None:
        match message:
            case {"method": "subscription", "params": {"channel": str(channel)}}:
                return channel
            case _:
                return None

    def data_of(self, message: Any) -> Any:
        return message["params"].get("data")

    def tracker(self, channel: Channel) -> Tracker | None:
        if not channel.name.startswith("book."):
            return None
        chain = ChangeChain(
            read_id=lambda message: _data(message).get("change_id"),
            read_previous=lambda message: _data(message).get("prev_change_id"),
            # Books in groups come whole each time, without a type, and follow nothing.
            is_snapshot=lambda message: (
                _data(message).get("type") == "snapshot" or "prev_change_id" not in _data(message)
            ),
        )
        return Tracker(chain, resync=True)


def _is_private(channel: str) -> bool:
    return channel.startswith("user.")


def _about_channels(verb: str, names: Sequence[str]) -> dict[str, Any]:
    side = "private" if any(map(_is_private, names)) else "public"
    return make_request(f"{side}/{verb}", {"channels": list(names)})


def _data(message: Any) -> Mapping[str, Any]:
    data = message["params"].get("data")
    return data if isinstance(data, Mapping) else {}


# --------------------------------------------------------------------------- the adapter


@attrs.define(eq=False, kw_only=True, slots=False)
class Deribit(Adapter):
    """Deribit: `Deribit()` is the real one, `Deribit(testnet=True)` the one without money.

    `credentials` is a mapping with `client_id` and `client_secret`; without any, there are the public channels
    and methods. Messages that belong to no request and no feed can be received as ever; while nobody does, the
    oldest are dropped.
    """

    testnet: bool = False
    host: str = attrs.field(
        default=attrs.Factory(lambda self: f"{'test' if self.testnet else 'www'}.deribit.com", takes_self=True)
    )
    path: str = "/ws/api/v2"
    grant: Grant = "client_credentials"
    """How to authenticate; see `DeribitAuth`."""
    scope: str = "connection"
    """"connection", or "session:" and a name: of the token."""
    heartbeat_interval: int | None = 30
    """Seconds between the service's heartbeats, at least 10; None: none are asked for."""
    cancel_on_disconnect: CancelScope | None = None
    """Whose orders the service cancels when the link is lost: those sent over it, or all of the account."""

    def __attrs_post_init__(self) -> None:
        if self.grant not in ("client_credentials", "client_signature"):
            raise ConfigError("grant", f"must be 'client_credentials' or 'client_signature', not {self.grant!r}")
        if not re.fullmatch(r"connection|session:.+", self.scope):
            raise ConfigError("scope", f"must be 'connection', or 'session:' and a name, not {self.scope!r}")
        interval = self.heartbeat_interval
        if interval is not None and interval < SHORTEST_HEARTBEAT:
            raise ConfigError(
                "heartbeat_interval", f"must be None, or {SHORTEST_HEARTBEAT} s or more, not {interval!r}"
            )
        if self.cancel_on_disconnect not in (None, "connection", "account"):
            raise ConfigError(
                "cancel_on_disconnect", f"must be None, 'connection' or 'account', not {self.cancel_on_disconnect!r}"
            )

    def defaults(self) -> Mapping[str, Any]:
        return {
            "codec": JsonCodec(),
            "correlation": JsonRpcCorrelation(overloaded=frozenset({TOO_MANY_REQUESTS})),
            "overflow": "drop_oldest",
            "heartbeat": DeribitHeartbeat(),
            "connection_handler": partial(DeribitSetup, self.heartbeat_interval, self.cancel_on_disconnect),
            "auth_handler": partial(DeribitAuth, grant=self.grant, scope=self.scope),
            "subscription_handler": DeribitSubscriptions,
            "rate_limit_handler": _limiter,
        }


def _limiter() -> RateLimitHandler:
    """Stay below what every account has: 20 requests a second, and 100 at once."""
    return RateLimitHandler([TokenBucket(capacity=90.0, rate=19.0)], reserve=10.0, queue_size=10_000)


# --------------------------------------------------------------------------- the client


class DeribitClient(JsonRpcClient):
    """Deribit's methods. What only reads is asked again where its link is lost first; an order never is.

    An order whose link is lost before the answer raises OutcomeUnknown: look for its `label` among your
    orders before you send it again.
    """

    adapter = Deribit()

    # ----------------------------------------------------------------- about the service

    async def get_time(self) -> int:
        """Return the service's clock, in milliseconds since 1970."""
        result: int = await self.call("public/get_time", {}, idempotent=True)
        return result

    async def status(self) -> Any:
        """Return whether the platform, or some of its currencies, are locked."""
        return await self.call("public/status", {}, idempotent=True)

    async def hello(self, client_name: str, client_version: str) -> Any:
        """Introduce the program, and return the version of the API."""
        params = {"client_name": client_name, "client_version": client_version}
        return await self.call("public/hello", params, idempotent=True)

    # ----------------------------------------------------------------- market data

    async def get_instruments(self, currency: str, kind: str | None = None) -> list[Any]:
        """Return the instruments of a currency, "any" for all; kind is "future", "option", "spot" and so on."""
        params = _without_none(currency=currency, kind=kind)
        result: list[Any] = await self.call("public/get_instruments", params, idempotent=True)
        return result

    async def get_order_book(self, instrument: str, depth: int | None = None) -> Any:
        """Return the order book: bids and asks as pairs of price and amount, `depth` of each."""
        params = _without_none(instrument_name=instrument, depth=depth)
        return await self.call("public/get_order_book", params, idempotent=True)

    def subscribe_to_ticker(
        self, instrument: str, interval: str = "100ms", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Hear the ticker while in the block; intervals are "raw", "100ms" and "agg2"."""
        return self.subscribe(f"ticker.{instrument}.{interval}", feed=feed)

    def subscribe_to_trades(
        self, instrument: str, interval: str = "100ms", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Hear the trades, in lists, while in the block."""
        return self.subscribe(f"trades.{instrument}.{interval}", feed=feed)

    def subscribe_to_book(
        self,
        instrument: str,
        interval: str = "100ms",
        *,
        group: str | None = None,
        depth: int | None = None,
        feed: FeedOptions | None = None,
    ) -> AbstractAsyncContextManager[Feed]:
        """Hear the order book while in the block: a snapshot first, then changes that follow it without a gap.

        Where a change is missing, the book is asked for anew, and the next message is a snapshot again. With
        a `depth` (1, 10 or 20) prices come in `group`, "none" by default.
        """
        if depth is None and group is not None:
            raise ConfigError("group", "prices come in groups only where a depth is given")
        grouped = "" if depth is None else f".{group or 'none'}.{depth}"
        return self.subscribe(f"book.{instrument}{grouped}.{interval}", feed=feed)

    # ----------------------------------------------------------------- the account

    async def get_account_summary(self, currency: str) -> Any:
        """Return balance, equity and margins in a currency."""
        return await self.call("private/get_account_summary", {"currency": currency}, idempotent=True)

    def subscribe_to_orders(
        self, instrument: str = "any.any", interval: str = "raw", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Hear of changes to one's orders while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.orders.{instrument}.{interval}", feed=feed)

    def subscribe_to_own_trades(
        self, instrument: str = "any.any", interval: str = "raw", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed]:
        """Hear of one's trades while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.trades.{instrument}.{interval}", feed=feed)

    async def buy(
        self,
        instrument: str,
        amount: float,
        *,
        price: float | None = None,
        type: str = "limit",
        label: str | None = None,
        **params: Any,
    ) -> Any:
        """Place an order to buy, and return it with its trades; `params` is what else Deribit takes.

        Raises:
            JsonRpcError: the service refuses.
            NotSent: it did not leave.
            OutcomeUnknown: it left, and the link was lost before the answer.
        """
        about = _without_none(instrument_name=instrument, amount=amount, price=price, type=type, label=label)
        return await self.call("private/buy", {**about, **params})

    async def sell(
        self,
        instrument: str,
        amount: float,
        *,
        price: float | None = None,
        type: str = "limit",
        label: str | None = None,
        **params: Any,
    ) -> Any:
        """Place an order to sell; otherwise as `buy`."""
        about = _without_none(instrument_name=instrument, amount=amount, price=price, type=type, label=label)
        return await self.call("private/sell", {**about, **params})

    async def cancel(self, order_id: str) -> Any:
        """Cancel an order, and return it; raises as `buy`."""
        return await self.call("private/cancel", {"order_id": order_id})

    async def logout(self, *, invalidate_token: bool = True) -> None:
        """Tell the service that we leave in peace, so that orders stay, and close the session."""
        params = {"invalidate_token": invalidate_token}
        await self.connection.send({**make_request("private/logout", params), "id": "logout"})
        await self.aclose()


def _without_none(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
