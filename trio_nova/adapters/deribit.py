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
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import attrs

from trio_nova._feeds import Feed, FeedOptions
from trio_nova.adapters.jsonrpc import JsonRpc, JsonRpcClient, make_request, read_error
from trio_nova.core import check_number, check_text, number, one_of
from trio_nova.core.limits import TokenBucket
from trio_nova.core.sequence import Step, Tracker
from trio_nova.errors import AuthFailed, BadMessage, ConfigError, RequestFailed, RetryAdvice
from trio_nova.handlers import AuthExchange, AuthHandler, Channel, ConnectionInfo, RateLimitHandler
from trio_nova.handlers.auth import reveal_all
from trio_nova.readings import AuthOk, Beat, Data, Granted, HeartbeatAsked, Reading
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

_CANCELS = ("cancel", "cancel_all", "cancel_all_by_currency", "cancel_all_by_instrument", "cancel_by_label")
COSTS: Mapping[str, float] = {
    **{f"{side}/subscribe": 9.0 for side in ("public", "private")},
    **{f"private/{verb}": 4.5 for verb in ("buy", "sell", "edit", "close_position", *_CANCELS)},
}
"""What a request takes from a bucket of 90 that regains 19 a second, 1 where it is not listed here.

"Rate Limits" allows an account of the lowest tier 100 requests at once and 20 a second; of those that go to the
matching engine 20 and 5, and of those that subscribe 10 and 3.3. This stays below all three.
"""

T = TypeVar("T")
Grant: TypeAlias = Literal["client_credentials", "client_signature"]
CancelScope: TypeAlias = Literal["connection", "account"] | None
Interval: TypeAlias = Literal["raw", "100ms", "agg2"]
Number: TypeAlias = float | Decimal
Options: TypeAlias = FeedOptions | None
Hearing: TypeAlias = AbstractAsyncContextManager[Feed[Any]]


def sign(secret: str, timestamp: int, nonce: str, data: str = "") -> str:
    """Return the signature of the grant `client_signature` of `public/auth`: a hex HMAC-SHA256.

    Args:
        secret: the client's, under which it is made.
        timestamp: now, in milliseconds since 1970.
        nonce: a text of our own, another each time.
        data: what else is to be signed.
    """
    return hmac.new(secret.encode(), f"{timestamp}\n{nonce}\n{data}".encode(), hashlib.sha256).hexdigest()


# --------------------------------------------------------------------------- what can be said


def _instrument(name: str) -> str:
    """Return the name of an instrument; a dot or a space in it would make another channel of it."""
    return check_text("instrument", name, "[A-Za-z0-9_-]+", "a name like 'BTC-PERPETUAL'")


def _instruments(name: str) -> str:
    """Return the name of an instrument, or of all of a kind and a currency: "option.BTC", "any.any"."""
    parts = check_text("instrument", name, r"[^.]+(\.[^.]+)?", "a name, or one like 'option.BTC'").split(".")
    return ".".join(map(_instrument, parts))


def _interval(value: str) -> str:
    return check_text("interval", value, "raw|100ms|agg2", "'raw', '100ms' or 'agg2'")


def _number(field: str, value: Number, above: float = -math.inf) -> Number:
    """Return a finite number above `above`; a Decimal is one, and goes as it is."""
    number = (math.nan if value.is_nan() else float(value)) if isinstance(value, Decimal) else value
    check_number(field, number, at_least=-math.inf, above=above)
    return value


def _order(instrument: str, amount: Number, price: Number | None, label: str | None, more: dict[str, Any]) -> Any:
    """Return the parameters of an order. NaN would arrive as null, and a limit that is null is none: it is refused."""
    if "instrument_name" in more:
        raise ConfigError("instrument_name", "is given twice")
    if check_text("type", more.setdefault("type", "limit")) == "limit" and price is None:
        raise ConfigError("price", "an order of the type 'limit' needs one")
    order = {"instrument_name": _instrument(instrument), "amount": _number("amount", amount, above=0.0), **more}
    if price is not None:
        order["price"] = _number("price", price)  # that of a combination may be below 0
    if label is not None:
        words = f"a text of 1 to {LONGEST_LABEL} characters"
        order["label"] = check_text("label", label, f".{{1,{LONGEST_LABEL}}}", words)
    numbers = {name: _number(name, value) for name, value in order.items() if isinstance(value, float | Decimal)}
    return {**order, **numbers}


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
    _refresh: tuple[Secret[str], Secret[Any]] | None = attrs.field(default=None, init=False)
    """The token that refreshes the grant, and the credentials that gave it."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        given, refresh = as_secret(credentials), self._refresh
        self._refresh = None  # it is good for one use
        if refresh is not None and refresh[1] == given and (exchange.refresh or self.scope != "connection"):
            params = {"grant_type": "refresh_token", "refresh_token": refresh[0].reveal()}
            try:
                return self._read_grant(await exchange.request(make_request("public/auth", params)), given)
            except (RequestFailed, AuthFailed) as refused:
                if refused.retry is not RetryAdvice.NEVER:  # the service is busy: no time to ask it even more
                    raise
        return self._read_grant(await exchange.request(self.encode_auth_request(credentials)), given)

    def encode_auth_request(self, credentials: Any) -> Any:
        match reveal_all(credentials):
            case {"client_id": str(client), "client_secret": str(secret)} if client and secret:
                proof: dict[str, Any] = {"client_secret": secret}
            case _:
                raise ConfigError("credentials", "Deribit takes a mapping: client_id and client_secret, both text")
        if self.grant == "client_signature":
            proof = {"timestamp": round(self.wall_clock() * 1000), "nonce": self.entropy(8).hex(), "data": ""}
            proof["signature"] = sign(secret, **proof)
        about = {"grant_type": self.grant, "client_id": client, "scope": self.scope}
        return make_request("public/auth", {**about, **proof})

    def handle_refusal(self, reply: Any) -> bool:
        is_stranger = getattr(read_error(reply), "code", 0) in (UNAUTHORIZED, RAW_UNAUTHORIZED)
        self._refresh = None if is_stranger else self._refresh  # its view of us is in doubt: begin with the credentials
        return is_stranger

    def _read_grant(self, reply: Any, given: Secret[Any]) -> AuthOk:
        match reply:
            case {"result": {"access_token": str(access), **more}} if access:
                refresh, seconds = more.get("refresh_token"), more.get("expires_in")
            case _:
                raise AuthFailed("the answer brings no access_token")
        self._refresh = (Secret(refresh), given) if isinstance(refresh, str) else None
        if isinstance(seconds, bool) or not isinstance(seconds, int | float | Decimal) or seconds <= 0:
            seconds = self.lifetime
        return AuthOk(float(min(seconds, LONGEST_GRANT)), [each for each in (access, refresh) if isinstance(each, str)])


def _limiter() -> RateLimitHandler:
    """Stay below what every account has, see `COSTS`, with some room for heartbeats."""
    return RateLimitHandler([TokenBucket(capacity=90.0, rate=19.0)], costs=COSTS, reserve=10.0, queue_size=10_000)


def _check_scope(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    check_text("scope", value, r"connection|session:.+", "'connection', or 'session:' and a name")


@attrs.define(eq=False, kw_only=True, slots=False)
class Deribit(JsonRpc):
    """Deribit: `Deribit()` is the real one, `Deribit(testnet=True)` the one without money.

    `credentials` is a mapping with `client_id` and `client_secret`; without any, there are the public channels
    and methods. Messages that belong to no request and no feed can be received as ever; while nobody does, the
    oldest are dropped.
    """

    unsubscribes_by_id = False
    max_batch = 1_000_000_000

    testnet: bool = False
    overloaded: frozenset[int] = BUSY
    host: str = attrs.Factory(lambda self: f"{'test' if self.testnet else 'www'}.deribit.com", takes_self=True)
    path: str = "/ws/api/v2"
    grant: Grant = attrs.field(default="client_credentials", validator=one_of("client_credentials", "client_signature"))
    """How to authenticate; see `DeribitAuth`."""
    scope: str = attrs.field(default="connection", validator=_check_scope)
    """"connection", or "session:" and a name: of the token."""
    heartbeat_interval: float | None = attrs.field(default=30, validator=number(at_least=SHORTEST_HEARTBEAT, none=True))
    """Seconds between the service's heartbeats, at least 10; None: none are asked for."""
    cancel_on_disconnect: CancelScope = attrs.field(default=None, validator=one_of("connection", "account", None))
    """Whose orders the service cancels when the link is lost: those sent over it, or all of the account.

    None: it cancels none, unless the account's own settings say so. See `private/enable_cancel_on_disconnect`.
    """

    def defaults(self) -> Mapping[str, Any]:
        auth = partial(DeribitAuth, grant=self.grant, scope=self.scope)
        return {**super().defaults(), "auth_handler": auth, "rate_limit_handler": _limiter}

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        """Ask for heartbeats, and for orders to be cancelled when the link is lost."""
        beats = {"interval": self.heartbeat_interval}, "public/set_heartbeat"
        cancels = {"scope": self.cancel_on_disconnect}, "private/enable_cancel_on_disconnect"
        return [make_request(method, params) for params, method in (beats, cancels) if None not in params.values()]

    def read(self, message: Any) -> Reading | None:
        """Return data; or a heartbeat of the service's, of which it closes the link if one kind is not answered.

        `public/set_heartbeat` asks for both kinds; `public/test` is the answer that is wanted.
        """
        match message:
            case {"method": "subscription", "params": {"channel": str(channel), **more}}:
                return Data(channel, more.get("data"), _step(channel, more.get("data")))
            case {"method": "heartbeat", "params": {"type": "test_request"}}:
                return HeartbeatAsked(make_request("public/test", {}), asks=True)
            case {"method": "heartbeat"}:
                return Beat()
        return super().read(message)

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        if params:
            raise ConfigError("params", f"a channel of Deribit takes none; its name says all: {channel!r}")
        return check_text("channel", channel)

    def split_batch(self, channels: Sequence[Channel]) -> Iterator[Sequence[Channel]]:
        """Group channels into large batches, public before private ones."""
        for side in ("public", "private"):
            group = [channel for channel in channels if _side(channel) == side]
            yield from (group[start : start + MAX_CHANNELS] for start in range(0, len(group), MAX_CHANNELS))

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return make_request(f"{_side(channels[0])}/subscribe", {"channels": [channel.name for channel in channels]})

    def encode_unsubscription(self, channel: Channel, server_id: Hashable | None) -> Any:
        return make_request(f"{_side(channel)}/unsubscribe", {"channels": [channel.name]})

    def handle_subscription_response(self, message: Any) -> Sequence[Granted]:
        """Return what `public/subscribe` or `private/subscribe` lists in its result; the rest is not granted."""
        names = message.get("result")
        return [Granted(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def tracker(self, channel: Channel) -> Tracker | None:
        """Keep order books in step, by their change ids."""
        return Tracker(resync=True) if channel.name.startswith("book.") else None


def _side(channel: Channel) -> str:
    return "private" if channel.name.startswith("user.") else "public"


def _step(channel: str, data: Any) -> Step | None:
    """Return where a change of a book stands; a grouped book, which has neither type nor past, is whole each time."""
    if not channel.startswith("book.") or not isinstance(data, Mapping) or "change_id" not in data:
        return None
    is_whole = data.get("type") == "snapshot" or not {"type", "prev_change_id"} & data.keys()
    return Step(data["change_id"], previous=None if is_whole else data.get("prev_change_id"), snapshot=is_whole)


# --------------------------------------------------------------------------- the client


class DeribitClient(JsonRpcClient):
    """Deribit's methods. What only reads is asked again where its link is lost first; an order never is.

    An order whose link is lost before the answer raises OutcomeUnknown: look for its `label` among your
    orders before you send it again. For methods that are not here there is `call`.

    All raise ConfigError, before anything is sent, for an argument that cannot be right; JsonRpcError, with the
    `code` of "Error Codes", where the service refuses; BadMessage where its answer is of another type; else what
    `Connection.request` raises.
    """

    adapter = Deribit()

    # ----------------------------------------------------------------- about the service

    async def get_time(self) -> int:
        """Return the service's clock, in milliseconds since 1970."""
        return await self._read("public/get_time", int)

    async def status(self) -> Any:
        """Return whether the platform, or some of its currencies, are locked."""
        return await self._read("public/status", object)

    async def hello(self, client_name: str, client_version: str) -> Any:
        """Introduce the program, and return the version of the API."""
        name, version = check_text("client_name", client_name), check_text("client_version", client_version)
        return await self._read("public/hello", object, client_name=name, client_version=version)

    # ----------------------------------------------------------------- market data

    async def get_instruments(self, currency: str, kind: str | None = None) -> list[Any]:
        """Return the instruments of a currency, "any" for all; kind is "future", "option", "spot" and so on."""
        more = {} if kind is None else {"kind": check_text("kind", kind)}
        return await self._read("public/get_instruments", list, currency=check_text("currency", currency), **more)

    async def get_order_book(self, instrument: str, depth: int = 5) -> Any:
        """Return the order book: bids and asks as pairs of price and amount, `depth` of each."""
        if type(depth) is not int or depth < 1:
            raise ConfigError("depth", f"must be a whole number above 0, not {depth!r}")
        return await self._read("public/get_order_book", object, instrument_name=_instrument(instrument), depth=depth)

    def subscribe_to_ticker(self, instrument: str, interval: Interval = "100ms", *, feed: Options = None) -> Hearing:
        """Hear the ticker while in the block."""
        return self.subscribe(f"ticker.{_instrument(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_trades(self, instrument: str, interval: Interval = "100ms", *, feed: Options = None) -> Hearing:
        """Hear the trades, in lists, while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"trades.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_book(
        self,
        instrument: str,
        interval: Interval = "100ms",
        *,
        group: str | None = None,
        depth: Literal[1, 10, 20] | None = None,
        feed: Options = None,
    ) -> Hearing:
        """Hear the order book while in the block: a snapshot first, then changes that follow it without a gap.

        Where a change is missing, the book is asked for anew, and the next message is a snapshot again. With
        a `depth` every message is the whole of so many levels, their prices in `group`, "none" by default.
        """
        levels = check_text("depth", str(depth), "None|1|10|20", "1, 10 or 20, or None for all levels")
        if depth is None and group is not None:
            raise ConfigError("group", "prices come in groups only where a depth is given")
        grouped = "" if depth is None else f".{check_text('group', group or 'none')}.{levels}"
        return self.subscribe(f"book.{_instrument(instrument)}{grouped}.{_interval(interval)}", feed=feed)

    # ----------------------------------------------------------------- the account

    async def get_account_summary(self, currency: str) -> Any:
        """Return balance, equity and margins in a currency."""
        return await self._read("private/get_account_summary", object, currency=check_text("currency", currency))

    def subscribe_to_orders(
        self, instrument: str = "any.any", interval: Interval = "raw", *, feed: Options = None
    ) -> Hearing:
        """Hear of changes to one's orders while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.orders.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    def subscribe_to_own_trades(
        self, instrument: str = "any.any", interval: Interval = "raw", *, feed: Options = None
    ) -> Hearing:
        """Hear of one's trades while in the block: of an instrument, or of "{kind}.{currency}"."""
        return self.subscribe(f"user.trades.{_instruments(instrument)}.{_interval(interval)}", feed=feed)

    async def buy(
        self, instrument: str, amount: Number, *, price: Number | None = None, label: str | None = None, **params: Any
    ) -> Any:
        """Place an order to buy, and return it with its trades.

        Args:
            instrument: its name.
            amount: above 0, in the unit of the instrument.
            price: an order of the type "limit", which is the default, needs one.
            label: a text of at most 64 characters of your own, to find the order by.
            params: what else `private/buy` takes, such as `type="market"`.

        Raises:
            ConfigError: an argument cannot be right.
            JsonRpcError: the service refuses.
            NotSent: it did not leave.
            OutcomeUnknown: it left, and the link was lost before the answer.
        """
        return await self.call("private/buy", _order(instrument, amount, price, label, params))

    async def sell(
        self, instrument: str, amount: Number, *, price: Number | None = None, label: str | None = None, **params: Any
    ) -> Any:
        """Place an order to sell; otherwise as `buy`."""
        return await self.call("private/sell", _order(instrument, amount, price, label, params))

    async def cancel(self, order_id: str) -> Any:
        """Cancel an order, and return it; raises as `buy`."""
        return await self.call("private/cancel", {"order_id": check_text("order_id", order_id)})

    async def logout(self, *, invalidate_token: bool = True) -> None:
        """Tell the service that we leave in peace, so that orders stay, and close the session.

        `private/logout` has no answer; it wants an id all the same.
        """
        params = {"invalidate_token": invalidate_token}
        await self.connection.send({**make_request("private/logout", params), "id": "logout"})
        await self.aclose()

    async def _read(self, method: str, type: type[T], /, **params: Any) -> T:
        """Call a method that changes nothing, and return its result; BadMessage where that is not of a type."""
        result = await self.call(method, params, idempotent=True)
        if not isinstance(result, type):
            raise BadMessage(f"the result of {method} is a {result.__class__.__name__}, not a {type.__name__}")
        return result
