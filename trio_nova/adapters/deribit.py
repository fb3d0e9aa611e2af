"""Deribit, version 2 of its API: authentication, heartbeats, order books in step, and orders.

::

    async with DeribitClient.open(credentials={"client_id": "...", "client_secret": "..."}) as client:
        async with client.subscribe_to_book("BTC-PERPETUAL") as changes:
            await client.buy("BTC-PERPETUAL", 10, price=30_000, label="first")
            async for change in changes: ...

Every new link is told, in this order: who we are, that we want heartbeats, what becomes of our orders when
the link is lost, public channels, private ones.

The protocol is JSON-RPC 2.0, described at https://docs.deribit.com. Where a docstring names a method, as
`public/auth`, the page of that method is the source; "Error Codes" and "Rate Limits" are pages too.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import attrs

from trio_nova._feeds import Feed, FeedOptions
from trio_nova.adapters.jsonrpc import JsonRpc, JsonRpcClient, make_request, read_error
from trio_nova.codecs import JsonCodec
from trio_nova.core import check_number
from trio_nova.core.limits import TokenBucket
from trio_nova.core.sequence import Step, Tracker
from trio_nova.errors import AuthFailed, BadMessage, ConfigError, RequestFailed, RetryAdvice
from trio_nova.handlers import AuthExchange, AuthHandler, Channel, ConnectionInfo, RateLimitHandler
from trio_nova.handlers.auth import reveal
from trio_nova.readings import AuthOk, Beat, Data, Granted, HeartbeatAsked, Other, Reading
from trio_nova.secrets import Secret, as_secret

__all__ = ["Deribit", "DeribitAuth", "DeribitClient", "sign"]


MAX_CHANNELS = 500
"""That one `public/subscribe` may name."""
SHORTEST_HEARTBEAT = 10
"""Seconds: what `public/set_heartbeat` takes at least."""
LONGEST_LABEL = 64
"""Characters of the label of an order, see `private/buy`."""
LONGEST_GRANT = 366 * 24 * 3600
"""Seconds. A service that says its token lasts longer is not believed."""

UNAUTHORIZED = 13009
"""No token, or a dead one: nothing was done."""
RAW_UNAUTHORIZED = 13778
"""`.raw` channels are for those who are authenticated: nothing was subscribed to."""
BUSY = frozenset({10028, 10040, 10041, 10047, 10066, 11051, 13028})
"""too_many_requests, retry, settlement_in_progress, matching_engine_queue_full, too_many_concurrent_requests,
system_maintenance, temporarily_unavailable: the same may succeed later (see "Error Codes")."""

COSTS: Mapping[str, float] = {
    **dict.fromkeys(("public/subscribe", "private/subscribe"), 9.0),
    **dict.fromkeys(
        (
            "private/buy",
            "private/sell",
            "private/edit",
            "private/cancel",
            "private/cancel_all",
            "private/cancel_all_by_currency",
            "private/cancel_all_by_instrument",
            "private/cancel_by_label",
            "private/close_position",
        ),
        4.5,
    ),
}
"""What a request takes from a bucket of 90 that regains 19 a second, 1 where it is not listed here.

"Rate Limits" allows an account of the lowest tier 100 requests at once and 20 a second; of those that go to the
matching engine 20 and 5, and of those that subscribe 10 and 3.3. This stays below all three.
"""

Grant: TypeAlias = Literal["client_credentials", "client_signature"]
CancelScope: TypeAlias = Literal["connection", "account"]
Interval: TypeAlias = Literal["raw", "100ms", "agg2"]


def sign(secret: str, timestamp: int, nonce: str, data: str = "") -> str:
    """Return the signature of the grant `client_signature` of `public/auth`: a hex HMAC-SHA256.

    Args:
        secret: the client's, under which it is made.
        timestamp: now, in milliseconds since 1970.
        nonce: a text of our own, another each time.
        data: what else is to be signed.
    """
    return hmac.new(secret.encode(), f"{timestamp}\n{nonce}\n{data}".encode(), hashlib.sha256).hexdigest()


# --------------------------------------------------------------------------- strategies


@attrs.define(eq=False)
class DeribitAuth(AuthHandler):
    """Authenticates with a mapping of `client_id` and `client_secret`, and refreshes with the token that it gets.

    `public/auth` grants tokens. With the scope `connection` one dies with its link, so every link begins with
    the credentials; with `session:` and a name it survives the link. Where it cannot be refreshed, the
    credentials are used.
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
        self._refresh_token = None  # it is good for one use
        lives = exchange.refresh or self.scope != "connection"
        if token is not None and lives and given == self._granted_for:
            refresh = make_request("public/auth", {"grant_type": "refresh_token", "refresh_token": token.reveal()})
            try:
                return self._read_grant(await exchange.request(refresh), given)
            except (RequestFailed, AuthFailed) as refused:
                if refused.retry is not RetryAdvice.NEVER:  # the service is busy: no time to ask it even more
                    raise
        return self._read_grant(await exchange.request(self.encode_auth_request(credentials)), given)

    def encode_auth_request(self, credentials: Any) -> Any:
        match reveal(credentials):
            case {"client_id": client, "client_secret": secret}:
                client, secret = reveal(client), reveal(secret)
            case _:
                client = secret = None
        if not (isinstance(client, str) and isinstance(secret, str) and client and secret):
            raise ConfigError("credentials", "Deribit takes a mapping: client_id and client_secret, both text")
        about = {"grant_type": self.grant, "client_id": client, "scope": self.scope}
        if self.grant == "client_credentials":
            return make_request("public/auth", {**about, "client_secret": secret})
        timestamp, nonce = round(self.wall_clock() * 1000), self.entropy(8).hex()
        proof = {"timestamp": timestamp, "nonce": nonce, "data": "", "signature": sign(secret, timestamp, nonce)}
        return make_request("public/auth", {**about, **proof})

    def handle_refusal(self, reply: Any) -> bool:
        error = read_error(reply)
        if error is None or error.code not in (UNAUTHORIZED, RAW_UNAUTHORIZED):
            return False
        self._refresh_token = None  # what the service thinks of us is in doubt: begin with the credentials
        return True

    def _read_grant(self, reply: Any, given: Secret[Any]) -> AuthOk:
        match reply:
            case {"result": {"access_token": str(access)} as result} if access:
                refresh, seconds = result.get("refresh_token"), result.get("expires_in")
            case _:
                raise AuthFailed("the answer brings no access_token")
        tokens = [access]
        if isinstance(refresh, str):
            tokens.append(refresh)
            self._refresh_token, self._granted_for = Secret(refresh), given
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | Decimal) or seconds <= 0:
            seconds = self.lifetime
        return AuthOk(float(min(seconds, LONGEST_GRANT)), tokens)


@attrs.define(eq=False, kw_only=True, slots=False)
class Deribit(JsonRpc):
    """Deribit: `Deribit()` is the real one, `Deribit(testnet=True)` the one without money.

    `credentials` is a mapping with `client_id` and `client_secret`; without any, there are the public channels
    and methods. Messages that belong to no request and no feed can be received as ever; while nobody does, the
    oldest are dropped.
    """

    unsubscribes_by_id = False
    max_batch = sys.maxsize

    testnet: bool = False
    overloaded: frozenset[int] = BUSY
    host: str = attrs.field(
        default=attrs.Factory(lambda self: f"{'test' if self.testnet else 'www'}.deribit.com", takes_self=True)
    )
    path: str = "/ws/api/v2"
    grant: Grant = "client_credentials"
    """How to authenticate; see `DeribitAuth`."""
    scope: str = "connection"
    """"connection", or "session:" and a name: of the token."""
    heartbeat_interval: float | None = 30
    """Seconds between the service's heartbeats, at least 10; None: none are asked for."""
    cancel_on_disconnect: CancelScope | None = None
    """Whose orders the service cancels when the link is lost: those sent over it, or all of the account.

    None: it cancels none, unless the account's own settings say so. See `private/enable_cancel_on_disconnect`.
    """

    def __attrs_post_init__(self) -> None:
        if self.grant not in ("client_credentials", "client_signature"):
            raise ConfigError("grant", f"must be 'client_credentials' or 'client_signature', not {self.grant!r}")
        if not isinstance(self.scope, str) or not re.fullmatch(r"connection|session:.+", self.scope):
            raise ConfigError("scope", f"must be 'connection', or 'session:' and a name, not {self.scope!r}")
        if self.heartbeat_interval is not None:
            check_number("heartbeat_interval", self.heartbeat_interval, at_least=SHORTEST_HEARTBEAT)
        if self.cancel_on_disconnect not in (None, "connection", "account"):
            raise ConfigError(
                "cancel_on_disconnect", f"must be None, 'connection' or 'account', not {self.cancel_on_disconnect!r}"
            )

    def defaults(self) -> Mapping[str, Any]:
        return {
            "codec": JsonCodec(),
            "overflow": "drop_oldest",
            "auth_handler": partial(DeribitAuth, grant=self.grant, scope=self.scope),
            "rate_limit_handler": _limiter,
        }

    # ----------------------------------------------------------------- a new link

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        """Ask for heartbeats, and for orders to be cancelled when the link is lost."""
        requests: list[Any] = []
        if self.heartbeat_interval is not None:
            requests.append(make_request("public/set_heartbeat", {"interval": self.heartbeat_interval}))
        if self.cancel_on_disconnect is not None:
            scope = {"scope": self.cancel_on_disconnect}
            requests.append(make_request("private/enable_cancel_on_disconnect", scope))
        return requests

    def read_notification(self, message: Mapping[str, Any]) -> Reading | None:
        """Return data; or a heartbeat of the service's, of which it closes the link if one kind is not answered.

        `public/set_heartbeat` asks for both kinds; `public/test` is the answer that is wanted.
        """
        match message:
            case {"method": "subscription", "params": {"channel": str(channel)} as params}:
                data = params.get("data")
                return Data(channel, data, _step(data) if channel.startswith("book.") else None)
            case {"method": "heartbeat", "params": {"type": "test_request"}}:
                return HeartbeatAsked(make_request("public/test", {}), asks=True)
            case {"method": "heartbeat"}:
                return Beat()
            case _:
                return Other(message)

    # ----------------------------------------------------------------- channels

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        if params:
            raise ConfigError("params", f"a channel of Deribit takes none; its name says all: {channel!r}")
        return _text("channel", channel)

    def split_batch(self, channels: Sequence[Channel]) -> Iterator[Sequence[Channel]]:
        """Group channels into large batches, public before private ones."""
        for private in (False, True):
            group = [channel for channel in channels if _is_private(channel.name) is private]
            for start in range(0, len(group), MAX_CHANNELS):
                yield group[start : start + MAX_CHANNELS]

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return _about_channels("subscribe", [channel.name for channel in channels])

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        return _about_channels("unsubscribe", [channel.name])

    def handle_subscription_response(self, message: Any) -> Sequence[Granted]:
        """Return what `public/subscribe` or `private/subscribe` lists in its result; the rest is not granted."""
        names = message.get("result")
        return [Granted(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def tracker(self, channel: Channel) -> Tracker | None:
        """Keep order books in step, by their change ids."""
        return Tracker(resync=True) if channel.name.startswith("book.") else None


def _is_private(channel: str) -> bool:
    return channel.startswith("user.")


def _about_channels(verb: str, names: Sequence[str]) -> dict[str, Any]:
    side = "private" if any(map(_is_private, names)) else "public"
    return make_request(f"{side}/{verb}", {"channels": list(names)})


def _step(data: Any) -> Step | None:
    """Return where a change of a book stands; a grouped book, which has neither type nor past, is whole each time."""
    if not isinstance(data, Mapping) or "change_id" not in data:
        return None
    is_whole = data.get("type") == "snapshot" or not {"type", "prev_change_id"} & data.keys()
    return Step(data["change_id"], previous=None if is_whole else data.get("prev_change_id"), snapshot=is_whole)


def _limiter() -> RateLimitHandler:
    """Stay below what every account has, see `COSTS`, with some room for heartbeats."""
    return RateLimitHandler([TokenBucket(capacity=90.0, rate=19.0)], costs=COSTS, reserve=10.0, queue_size=10_000)


# --------------------------------------------------------------------------- the client


class DeribitClient(JsonRpcClient):
    """Deribit's methods. What only reads is asked again where its link is lost first; an order never is.

    An order whose link is lost before the answer raises OutcomeUnknown: look for its `label` among your
    orders before you send it again. For methods that are not here there is `call`.

    All raise ConfigError, before anything is sent, for an argument that cannot be right; JsonRpcError, with the
    `code` of "Error Codes", where the service refuses; else what `Connection.request` raises.
    """

    adapter = Deribit()

    # ----------------------------------------------------------------- about the service

    async def get_time(self) -> int:
        """Return the service's clock, in milliseconds since 1970."""
        match await self.call("public/get_time", {}, idempotent=True):
            case int(milliseconds):
                return milliseconds
            case other:
                raise BadMessage(f"the service's time is a {type(other).__name__}")

    async def status(self) -> Any:
        """Return whether the platform, or some of its currencies, are locked."""
        return await self.call("public/status", {}, idempotent=True)

    async def hello(self, client_name: str, client_version: str) -> Any:
        """Introduce the program, and return the version of the API."""
        params = {
            "client_name": _text("client_name", client_name),
            "client_version": _text("client_version", client_version),
        }
        return await self.call("public/hello", params, idempotent=True)

    # ----------------------------------------------------------------- market data

    async def get_instruments(self, currency: str, kind: str | None = None) -> list[Any]:
        """Return the instruments of a currency, "any" for all; kind is "future", "option", "spot" and so on."""
        params = {"currency": _text("currency", currency), **({} if kind is None else {"kind": _text("kind", kind)})}
        match await self.call("public/get_instruments", params, idempotent=True):
            case list(instruments):
                return instruments
            case other:
                raise BadMessage(f"the service's instruments are a {type(other).__name__}")

    async def get_order_book(self, instrument: str, depth: int = 5) -> Any:
        """Return the order book: bids and asks as pairs of price and amount, `depth` of each."""
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ConfigError("depth", f"must be a whole number above 0, not {depth!r}")
        params = {"instrument_name": _instrument(instrument), "depth": depth}
        return await self.call("public/get_order_book", params, idempotent=True)

    def subscribe_to_ticker(
        self, instrument: str, interval: Interval = "100ms", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear the ticker while in the block."""
        return self.subscribe(f"ticker.{_instrument(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_trades(
        self, instrument: str, interval: Interval = "100ms", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear the trades, in lists, while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"trades.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_book(
        self,
        instrument: str,
        interval: Interval = "100ms",
        *,
        group: str | None = None,
        depth: Literal[1, 10, 20] | None = None,
        feed: FeedOptions | None = None,
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear the order book while in the block: a snapshot first, then changes that follow it without a gap.

        Where a change is missing, the book is asked for anew, and the next message is a snapshot again. With
        a `depth` every message is the whole of so many levels, their prices in `group`, "none" by default.
        """
        if depth not in (None, 1, 10, 20):
            raise ConfigError("depth", f"must be 1, 10 or 20, or None for all levels, not {depth!r}")
        if depth is None and group is not None:
            raise ConfigError("group", "prices come in groups only where a depth is given")
        grouped = "" if depth is None else f".{_text('group', group or 'none')}.{depth}"
        return self.subscribe(f"book.{_instrument(instrument)}{grouped}.{_interval(interval)}", feed=feed)

    # ----------------------------------------------------------------- the account

    async def get_account_summary(self, currency: str) -> Any:
        """Return balance, equity and margins in a currency."""
        return await self.call(
            "private/get_account_summary", {"currency": _text("currency", currency)}, idempotent=True
        )

    def subscribe_to_orders(
        self, instrument: str = "any.any", interval: Interval = "raw", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear of changes to one's orders while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.orders.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_own_trades(
        self, instrument: str = "any.any", interval: Interval = "raw", *, feed: FeedOptions | None = None
    ) -> AbstractAsyncContextManager[Feed[Any]]:
        """Hear of one's trades while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.trades.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    async def buy(
        self,
        instrument: str,
        amount: float | Decimal,
        *,
        price: float | Decimal | None = None,
        type: str = "limit",
        label: str | None = None,
        **params: Any,
    ) -> Any:
        """Place an order to buy, and return it with its trades; `params` is what else `private/buy` takes.

        Raises:
            ConfigError: an argument cannot be right.
            JsonRpcError: the service refuses.
            NotSent: it did not leave.
            OutcomeUnknown: it left, and the link was lost before the answer.
        """
        return await self.call("private/buy", _order(instrument, amount, price, type, label, params))

    async def sell(
        self,
        instrument: str,
        amount: float | Decimal,
        *,
        price: float | Decimal | None = None,
        type: str = "limit",
        label: str | None = None,
        **params: Any,
    ) -> Any:
        """Place an order to sell; otherwise as `buy`."""
        return await self.call("private/sell", _order(instrument, amount, price, type, label, params))

    async def cancel(self, order_id: str) -> Any:
        """Cancel an order, and return it; raises as `buy`."""
        return await self.call("private/cancel", {"order_id": _text("order_id", order_id)})

    async def logout(self, *, invalidate_token: bool = True) -> None:
        """Tell the service that we leave in peace, so that orders stay, and close the session.

        `private/logout` has no answer; it wants an id all the same.
        """
        params = {"invalidate_token": invalidate_token}
        await self.connection.send({**make_request("private/logout", params), "id": "logout"})
        await self.aclose()


_INSTRUMENT = re.compile(r"[A-Za-z0-9_-]+")
_INTERVALS = ("raw", "100ms", "agg2")


def _text(field: str, value: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(field, f"must be a text that is not empty, not {value!r}")
    return value


def _instrument(name: str) -> str:
    """Return the name of an instrument; a dot or a space in it would make another channel of it."""
    if not _INSTRUMENT.fullmatch(_text("instrument", name)):
        raise ConfigError("instrument", f"must be a name like 'BTC-PERPETUAL', not {name!r}")
    return name


def _instruments(name: str) -> str:
    """Return the name of an instrument, or of all of a kind and a currency: "option.BTC", "any.any"."""
    kind, dot, currency = _text("instrument", name).partition(".")
    return f"{_instrument(kind)}.{_instrument(currency)}" if dot else _instrument(name)


def _interval(value: str) -> str:
    if value not in _INTERVALS:
        raise ConfigError("interval", f"must be one of {', '.join(map(repr, _INTERVALS))}, not {value!r}")
    return value


def _order(
    instrument: str,
    amount: float | Decimal,
    price: float | Decimal | None,
    type: str,
    label: str | None,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the parameters of an order. NaN would arrive as null, and a limit that is null is none: it is refused."""
    _check_number("amount", amount, above=0.0)
    order = {"instrument_name": _instrument(instrument), "amount": amount, "type": _text("type", type)}
    if price is not None:
        _check_number("price", price)  # that of a combination may be below 0
        order["price"] = price
    elif type == "limit":
        raise ConfigError("price", "an order of the type 'limit' needs one")
    if label is not None:
        if len(_text("label", label)) > LONGEST_LABEL:
            raise ConfigError("label", f"may have {LONGEST_LABEL} characters, not {len(label)}")
        order["label"] = label
    for name, value in params.items():
        if name in order:
            raise ConfigError(name, "is given twice")
        if isinstance(value, float | Decimal):
            _check_number(name, value)
    return {**order, **params}


def _check_number(field: str, value: float | Decimal, above: float = -math.inf) -> None:
    """Raise ConfigError unless `value` is a finite number above `above`; a Decimal is one, and goes as it is."""
    if isinstance(value, Decimal) and not value.is_finite():
        raise ConfigError(field, f"must be a finite number, not {value}")
    number = float(value) if isinstance(value, Decimal) else value
    check_number(field, number, at_least=-math.inf, above=above)
