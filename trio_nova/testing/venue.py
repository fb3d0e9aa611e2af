"""A venue like Deribit, that holds its clients to the rules: JSON-RPC 2.0, tokens, heartbeats, limits, books, orders.

::

    async with Venue(limit=RateLimit(TokenBucket(100, 20.0))) as venue:
        async with open_connection(Deribit(), stream_factory=venue.stream_factory, credentials=...) as conn:
            async with conn.subscribe("book.BTC-PERPETUAL.100ms") as feed:
                change = venue.tick("book.BTC-PERPETUAL.100ms")
                ...
    venue.assert_auth_came_first()

Nothing is random, and nothing moves by itself: data comes by `tick`, or by `feed`, at the pace of the test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NoReturn, TypeAlias

import attrs
import trio

from trio_nova.messages import Frame
from trio_nova.testing._accounts import Order, Orders, Token, Tokens, VenueError, invalid_params
from trio_nova.testing._market import Book, Channel, Market, epoch_ms, parse_channel
from trio_nova.testing._venue_link import Asked, VenueLink, Verb
from trio_nova.testing._venue_server import VenueServer, decode_json

__all__ = ["Venue"]

MIN_HEARTBEAT = 10
"""Seconds: the shortest interval that `public/set_heartbeat` takes."""
MAX_SIGNATURE_AGE = 60.0
"""Seconds for which a signed timestamp is good."""

_SILENT = object()
"""The result of a method that has no answer."""

_Method: TypeAlias = Callable[[VenueLink, dict[str, Any]], Any]

_VERBS: dict[str, Verb] = {
    "auth": "auth",
    "subscribe": "subscribe",
    "unsubscribe": "unsubscribe",
    "unsubscribe_all": "unsubscribe_all",
}


@attrs.define(eq=False)
class _Seat:
    """What is true of one link."""

    token: Token | None = None
    ids: set[tuple[type, Any]] = attrs.field(factory=set)
    interval: float | None = None
    """Seconds between heartbeats; None: none are sent."""
    interval_set: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    test_owed: bool = False
    """A test_request went out, and no public/test has come since."""
    cancels: bool = False
    """Whether the loss of the link cancels the orders that came over it."""
    logged_out: bool = False
    due_snapshots: list[Channel] = attrs.field(factory=list)
    """Books just subscribed to: their snapshots follow the answer."""


@attrs.define(eq=False, kw_only=True)
class Venue(VenueServer):
    """A server that speaks Deribit's protocol; `VenueServer` has what it shares with other venues."""

    credentials: Mapping[str, str] = attrs.field(factory=lambda: {"client": "secret"}, repr=False)
    """Secrets by client id; they share one account."""
    instruments: tuple[str, ...] = ("BTC-PERPETUAL", "ETH-PERPETUAL")
    token_life: float = 900.0
    """Seconds for which a token is good."""
    max_channels: int = 500
    """Channels that one request may name."""
    wall_clock: Callable[[], float] = time.time
    """Unix time, for the age of signatures and for `public/get_time`. All else goes by Trio's clock."""

    tokens: Tokens = attrs.field(init=False, repr=False)
    """Every token granted."""
    orders: Orders = attrs.field(init=False, repr=False)
    """Every order executed."""
    market: Market = attrs.field(init=False, repr=False)
    """What is true of every channel."""
    revoked: set[str] = attrs.field(factory=set, init=False)
    """Channels that are granted to nobody any more; who has them keeps them."""
    _account_cancels: bool = attrs.field(default=False, init=False, repr=False)
    _seats: dict[int, _Seat] = attrs.field(factory=dict, init=False, repr=False)
    """By the link's number, as long as the link lasts."""
    _methods: dict[str, _Method] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.tokens = Tokens(self.credentials, self.token_life, MAX_SIGNATURE_AGE)
        self.orders = Orders(self.instruments)
        self.market = Market(self.instruments)
        self._methods = {
            "public/auth": self._auth,
            "public/disable_heartbeat": self._disable_heartbeat,
            "public/get_instruments": self._get_instruments,
            "public/get_order_book": self._get_order_book,
            "public/get_time": lambda link, params: round(self.wall_clock() * 1000),
            "public/hello": self._hello,
            "public/set_heartbeat": self._set_heartbeat,
            "public/status": lambda link, params: {"locked": "false", "locked_indices": []},
            "public/subscribe": self._subscribe,
            "public/test": self._test,
            "public/unsubscribe": self._unsubscribe,
            "public/unsubscribe_all": self._unsubscribe_all,
            "private/buy": partial(self._place, "buy"),
            "private/cancel": self._cancel,
            "private/disable_cancel_on_disconnect": partial(self._set_cancel_on_disconnect, False),
            "private/enable_cancel_on_disconnect": partial(self._set_cancel_on_disconnect, True),
            "private/get_account_summary": self._get_account_summary,
            "private/get_cancel_on_disconnect": self._get_cancel_on_disconnect,
            "private/logout": self._logout,
            "private/sell": partial(self._place, "sell"),
            "private/subscribe": self._subscribe,
            "private/unsubscribe": self._unsubscribe,
            "private/unsubscribe_all": self._unsubscribe_all,
        }

    # ------------------------------------------------------------------- the market

    @property
    def emitted(self) -> dict[str, list[Any]]:
        """All data of each channel but snapshots, oldest first, heard or not."""
        return self.market.emitted

    def book(self, channel: str) -> Book:
        """Return the true book behind a channel."""
        return self.market.book(channel)

    def tick(self, channel: str) -> Any:
        """Let something happen on a channel, tell who is subscribed, and return the data."""
        data = self.market.move(channel)
        self._notify(channel, data)
        return data

    def skip(self, channel: str) -> Any:
        """Let something happen on a channel and tell nobody: a gap. Return the data."""
        return self.market.move(channel)

    def repeat(self, channel: str) -> Any:
        """Tell again what a channel said last, and return it."""
        data = self.emitted[channel][-1]
        self._notify(channel, data)
        return data

    def swap(self, channel: str) -> tuple[Any, Any]:
        """Let two things happen on a channel, tell the later first, and return them in their true order."""
        first, second = self.market.move(channel), self.market.move(channel)
        self._notify(channel, second)
        self._notify(channel, first)
        return first, second

    async def feed(self, channel: str, interval: float, count: int | None = None) -> None:
        """Tick every `interval` seconds, `count` times or until cancelled; to be run beside the client."""
        due, number = trio.current_time(), 0
        while count is None or number < count:
            due, number = due + interval, number + 1
            await trio.sleep_until(due)
            self.tick(channel)

    def _notify(self, channel: str, data: Any) -> None:
        for link in self.live_links:
            if channel in link.subscriptions:
                _notify_link(link, channel, data)

    # ------------------------------------------------------------------- more misbehaviour

    def revoke(self, *channels: str) -> None:
        """Grant these channels to nobody from now on; who has them keeps them."""
        self.revoked.update(channels)

    def expire_tokens(self) -> None:
        """Let every token expire now, whatever the client was told; refresh tokens stay good."""
        self.tokens.expire()

    # ------------------------------------------------------------------- more to assert

    def executions(self, label: str) -> int:
        """Return how many orders with this label were executed."""
        return sum(order.label == label for order in self.orders.placed)

    def assert_no_order_twice(self) -> None:
        """Assert that no label was executed more than once."""
        repeated = self.orders.repeated_labels()
        assert not repeated, f"executed more than once: {repeated}"

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        match message:
            case {"id": answered, "result": {"access_token": str()}}:
                return any(asked.verb == "auth" and _same_id(asked.id, answered) for asked in link.journal)
            case _:
                return False

    # ------------------------------------------------------------------- requests

    def _seat(self, link: VenueLink) -> _Seat:
        return self._seats.setdefault(link.number, _Seat())

    def _take(self, link: VenueLink, payload: Frame) -> None:
        asked = _read_request(payload)
        link.journal.append(asked)
        admitted = self._admit(link)
        method, params = asked.method, _params_of(asked.message)
        try:
            if not admitted:
                raise VenueError(10028, "too_many_requests")
            self._check_request(link, asked)
            result = self._methods[method](link, params)
        except VenueError as exc:
            if exc.breach:
                self.breach(link, f"{method or 'a message'}: {exc.message} {exc.reason}".rstrip())
            if asked.id is not None or asked.verb == "junk":
                data = {"data": {"reason": exc.reason}} if exc.reason else {}
                error = {"code": exc.code, "message": exc.message, **data}
                self._answer(link, method, {"jsonrpc": "2.0", "id": asked.id, "error": error, **_stamps()})
        else:
            if asked.id is not None and result is not _SILENT:
                self._answer(link, method, {"jsonrpc": "2.0", "id": asked.id, "result": result, **_stamps()})
        self._send_snapshots(link)
        if not admitted and self.limit is not None and self.limit.closes:
            link.close(1008, "too_many_requests")

    def _check_request(self, link: VenueLink, asked: Asked) -> None:
        """Let pass what may be executed.

        Raises:
            VenueError: it may not.
        """
        if asked.verb == "junk":
            code, message = (-32700, "Parse error") if isinstance(asked.message, str | bytes) else _INVALID_REQUEST
            raise VenueError(code, message, breach=True)
        if asked.id is None:
            self.breach(link, f"{asked.method}: a request without an id")
        else:
            seat, key = self._seat(link), (type(asked.id), asked.id)
            if key in seat.ids:
                self.breach(link, f"{asked.method}: the id {asked.id!r} was used before")
            seat.ids.add(key)
        if asked.method not in self._methods:
            raise VenueError(-32601, "Method not found", breach=True)
        if not isinstance(asked.message.get("params", {}), dict):
            raise invalid_params("params: an object")
        if asked.private and not self._authorised(link, _params_of(asked.message)):
            raise VenueError(13009, "unauthorized")

    def _authorised(self, link: VenueLink, params: Mapping[str, Any]) -> bool:
        """Return whether the link is authenticated, or the request brings a token of its own."""
        access = params.get("access_token")
        token = self._seat(link).token if access is None else self.tokens.find(access)
        if access is not None and token is not None and trio.current_time() >= token.told_until:
            self.breach(link, "an access_token that the client knows has expired")
        elsewhere = token is not None and token.link not in (None, link.number)
        return token is not None and token.valid and not elsewhere

    def _lose(self, link: VenueLink) -> None:
        super()._lose(link)
        seat = self._seats.pop(link.number, _Seat())
        self.tokens.lose_link(link.number)
        if (seat.cancels or self._account_cancels) and not seat.logged_out:
            for order in self.orders.of_link(link.number):
                self._tell_order(self.orders.cancel(order.id))

    # ------------------------------------------------------------------- session methods

    def _auth(self, link: VenueLink, params: dict[str, Any]) -> Any:
        token = self.tokens.grant(params, link.number, self.wall_clock())
        self._seat(link).token = token
        return {
            "access_token": token.access,
            "refresh_token": token.refresh,
            "expires_in": math.floor(self.token_life),
            "scope": f"{token.scope} account:read_write trade:read_write",
            "token_type": "bearer",
        }

    def _logout(self, link: VenueLink, params: dict[str, Any]) -> Any:
        """End the link in peace: orders stay, whatever was said about cancelling, and there is no answer."""
        seat = self._seat(link)
        seat.logged_out = True
        if seat.token is not None and params.get("invalidate_token", True):
            seat.token.revoked = True
        link.close(1000, "logout")
        return _SILENT

    def _hello(self, link: VenueLink, params: dict[str, Any]) -> Any:
        if not all(isinstance(params.get(name), str) for name in ("client_name", "client_version")):
            raise invalid_params("client_name and client_version: text")
        return {"version": "1.2.26"}

    def _test(self, link: VenueLink, params: dict[str, Any]) -> Any:
        # Without an id it is a notification, and answers nothing (JSON-RPC 2.0 section 4.1).
        if link.journal[-1].id is not None:
            self._seat(link).test_owed = False
        return {"version": "1.2.26"}

    def _set_heartbeat(self, link: VenueLink, params: dict[str, Any]) -> Any:
        interval = params.get("interval")
        if not isinstance(interval, int | float) or isinstance(interval, bool) or interval < MIN_HEARTBEAT:
            raise invalid_params(f"interval: at least {MIN_HEARTBEAT} seconds")
        self._set_interval(link, float(interval))
        return "ok"

    def _disable_heartbeat(self, link: VenueLink, params: dict[str, Any]) -> Any:
        self._set_interval(link, None)
        return "ok"

    def _set_interval(self, link: VenueLink, interval: float | None) -> None:
        seat = self._seat(link)
        seat.interval, seat.test_owed = interval, False
        seat.interval_set.unpark_all()

    async def _watch(self, link: VenueLink) -> NoReturn:
        """Send heartbeats where they were asked for, and give up a client that does not answer them."""
        seat = self._seat(link)
        while True:
            with trio.move_on_after(math.inf if seat.interval is None else seat.interval) as nap:
                await seat.interval_set.park()
            if not nap.cancelled_caught:
                continue
            if seat.test_owed:
                self.breach(link, "a test_request was not answered by public/test with an id in time")
                link.close(1008, "heartbeat not answered")
                await trio.sleep_forever()
            for kind in ("heartbeat", "test_request"):
                link.say({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": kind}})
            seat.test_owed = not link.muted  # who cannot hear the question owes no answer

    def _set_cancel_on_disconnect(self, enabled: bool, link: VenueLink, params: dict[str, Any]) -> Any:
        if self._cod_scope(params) == "account":
            self._account_cancels = enabled
        else:
            self._seat(link).cancels = enabled
        return "ok"

    def _get_cancel_on_disconnect(self, link: VenueLink, params: dict[str, Any]) -> Any:
        scope = self._cod_scope(params)
        enabled = self._account_cancels if scope == "account" else self._seat(link).cancels
        return {"scope": scope, "enabled": enabled}

    def _cod_scope(self, params: Mapping[str, Any]) -> Any:
        scope = params.get("scope", "connection")
        if scope not in ("connection", "account"):
            raise invalid_params("scope: connection or account")
        return scope

    # ------------------------------------------------------------------- subscriptions

    def _subscribe(self, link: VenueLink, params: dict[str, Any]) -> Any:
        private = link.journal[-1].private
        authorised = self._authorised(link, params)
        known = [channel for name in self._named(params) if (channel := parse_channel(name)) is not None]
        if any(channel.raw for channel in known) and not authorised:
            raise VenueError(13778, "raw_subscriptions_not_available_for_unauthorized")
        granted = [channel for channel in known if self._grants(channel, private and authorised)]
        for channel in granted:
            if channel.kind == "book" and channel.name not in link.subscriptions:
                self._seat(link).due_snapshots.append(channel)
            link.subscriptions[channel.name] = None
        return [channel.name for channel in granted]

    def _grants(self, channel: Channel, private: bool) -> bool:
        return self.market.has(channel) and channel.name not in self.revoked and (private or not channel.private)

    def _unsubscribe(self, link: VenueLink, params: dict[str, Any]) -> Any:
        given_up = [name for name in self._named(params) if name in link.subscriptions]
        for name in given_up:
            link.subscriptions.pop(name, None)
        return given_up

    def _unsubscribe_all(self, link: VenueLink, params: dict[str, Any]) -> Any:
        link.subscriptions.clear()
        return "ok"

    def _named(self, params: Mapping[str, Any]) -> list[str]:
        channels = params.get("channels")
        if not isinstance(channels, list) or not channels or not all(isinstance(name, str) for name in channels):
            raise invalid_params("channels: an array of text")
        if len(channels) > self.max_channels:
            raise invalid_params(f"channels: at most {self.max_channels}")
        return channels

    def _send_snapshots(self, link: VenueLink) -> None:
        """Send the books just subscribed to: the answer goes first, as on the wire of the real venue."""
        seat = self._seat(link)
        due, seat.due_snapshots = seat.due_snapshots, []
        for channel in due:
            _notify_link(link, channel.name, self.market.snapshot(channel))

    # ------------------------------------------------------------------- trading

    def _place(self, direction: Literal["buy", "sell"], link: VenueLink, params: dict[str, Any]) -> Any:
        order = self.orders.place(link.number, direction, params)
        self._tell_order(order)
        return {"order": order.as_message(), "trades": [_trade_of(order)] if order.state == "filled" else []}

    def _cancel(self, link: VenueLink, params: dict[str, Any]) -> Any:
        order = self.orders.cancel(params.get("order_id"))
        self._tell_order(order)
        return order.as_message()

    def _tell_order(self, order: Order) -> None:
        """Tell an order's owner how it stands, and what was traded."""
        news = {"orders": order.as_message(), "trades": [_trade_of(order)] if order.state == "filled" else None}
        heard = {name for link in self.live_links for name in link.subscriptions}
        for channel in filter(None, map(parse_channel, sorted(heard))):
            data = news.get(channel.topic)
            if data is not None and channel.instrument in (order.instrument, "any"):
                self._notify(channel.name, self.market.emit(channel.name, data))

    def _get_account_summary(self, link: VenueLink, params: dict[str, Any]) -> Any:
        currency = params.get("currency")
        if not isinstance(currency, str):
            raise invalid_params("currency: text")
        return {"currency": currency, "balance": 10.0, "equity": 10.0, "available_funds": 10.0}

    def _get_instruments(self, link: VenueLink, params: dict[str, Any]) -> Any:
        currency = params.get("currency", "any")
        traded = [name for name in self.instruments if currency in ("any", name.partition("-")[0])]
        return [{"instrument_name": name, "kind": "future", "is_active": True, "tick_size": 0.5} for name in traded]

    def _get_order_book(self, link: VenueLink, params: dict[str, Any]) -> Any:
        """Return the book behind `book.{instrument}.100ms`, or behind whichever of its channels came first."""
        name, depth = params.get("instrument_name"), params.get("depth", 5)
        if name not in self.instruments:
            raise VenueError(10020, "invalid_or_unsupported_instrument")
        if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
            raise invalid_params("depth: a number above 0")
        shown = next((key for key in self.market.books if key.startswith(f"book.{name}.")), f"book.{name}.100ms")
        book = self.market.book(shown)
        bids, asks = (side[:depth] for side in book.levels())
        about = {"instrument_name": name, "timestamp": epoch_ms(), "change_id": book.change_id, "state": "open"}
        return {**about, "bids": bids, "asks": asks}


# --------------------------------------------------------------------------- the protocol

_INVALID_REQUEST = (-32600, "Invalid Request")


def _read_request(payload: Frame) -> Asked:
    """Read one JSON-RPC request; what is none is junk. Deribit takes no batches."""
    now = trio.current_time()
    if not isinstance(payload, str):
        return Asked(now, "junk", payload)
    try:
        message = decode_json(payload)
    except ValueError:
        return Asked(now, "junk", payload)
    match message:
        case {"jsonrpc": "2.0", "method": str() as method} if _is_id(message.get("id")):
            side, _, verb = method.partition("/")
            channels = _params_of(message).get("channels")
            named = tuple(name for name in channels if isinstance(name, str)) if isinstance(channels, list) else ()
            known = _VERBS.get(verb, "other")
            return Asked(now, known, message, method, message.get("id"), named, side == "private")
        case dict() as other if _is_id(other.get("id")):
            return Asked(now, "junk", other, id=other.get("id"))
        case _:
            # In a tuple, as a text that is valid JSON is not a text that could not be parsed.
            return Asked(now, "junk", (message,))


def _is_id(value: Any) -> bool:
    """Return whether JSON-RPC 2.0 section 4 allows `value` as an id, or it is absent."""
    return value is None or (isinstance(value, int | str) and not isinstance(value, bool))


def _same_id(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _params_of(message: Any) -> dict[str, Any]:
    params = message.get("params") if isinstance(message, dict) else None
    return params if isinstance(params, dict) else {}


def _stamps() -> dict[str, Any]:
    now = epoch_ms() * 1000
    return {"usIn": now, "usOut": now, "usDiff": 0, "testnet": True}


def _notify_link(link: VenueLink, channel: str, data: Any) -> None:
    link.say({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})


def _trade_of(order: Order) -> dict[str, Any]:
    return {
        "trade_id": f"{order.id}-1",
        "order_id": order.id,
        "instrument_name": order.instrument,
        "direction": order.direction,
        "amount": order.amount,
        "price": order.price,
        "label": order.label,
        "timestamp": epoch_ms(),
    }
