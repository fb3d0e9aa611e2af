"""The venues, judged through wsproto: they keep their rules, their books are right, and they misbehave as told."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Pong, RejectConnection, Request, TextMessage

from trio_nova.testing import (
    CUT,
    UNKNOWN_ID,
    GenericVenue,
    Peer,
    RateLimit,
    RollingWindow,
    TokenBucket,
    Twist,
    Venue,
    VenueServer,
    after,
    cut_after,
    cut_before,
    followed_by,
    in_batch,
    lookalike,
    never,
    preceded_by,
    twice,
    with_fields,
    with_result,
    with_unknown_id,
    worst_window,
)
from trio_nova.testing._accounts import sign

BTC = "BTC-PERPETUAL"
BOOK = f"book.{BTC}.100ms"
TRADES = f"trades.{BTC}.100ms"
TICKER = f"ticker.{BTC}.100ms"
LOGIN = {"grant_type": "client_credentials", "client_id": "client", "client_secret": "secret"}


@attrs.define(eq=False)
class Client:
    """Speaks JSON over wsproto, one message at a time, and has no manners of its own."""

    stream: trio.abc.Stream
    _wsproto: WSConnection = attrs.field(factory=lambda: WSConnection(ConnectionType.CLIENT))
    _parts: list[str] = attrs.field(factory=list)
    _next_id: int = 1
    between: list[Any] = attrs.field(factory=list)
    """What came while an answer was waited for."""

    async def write(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self._wsproto.send(event) for event in events))

    async def event(self) -> Event:
        while True:
            for event in self._wsproto.events():
                return event
            data = await self.stream.receive_some()
            self._wsproto.receive_data(bytes(data) or None)

    async def text(self) -> str:
        while True:
            event = await self.event()
            assert isinstance(event, TextMessage), event
            self._parts.append(event.data)
            if event.message_finished:
                whole, self._parts = "".join(self._parts), []
                return whole

    async def send(self, *messages: Any) -> None:
        await self.write(*(TextMessage(m if isinstance(m, str) else json.dumps(m)) for m in messages))

    async def receive(self) -> Any:
        return json.loads(await self.text())

    async def quiet(self, seconds: float = 1.0) -> bool:
        """Return whether nothing comes for so long."""
        with trio.move_on_after(seconds):
            self.between.append(await self.receive())
            return False
        return True

    def request(self, method: str, **params: Any) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params}
        self._next_id += 1
        return message

    async def answer(self, id: Any) -> dict[str, Any]:
        while True:
            message = await self.receive()
            if isinstance(message, dict) and message.get("id") == id:
                return message
            self.between.append(message)

    async def call(self, method: str, **params: Any) -> Any:
        """Return the result."""
        request = self.request(method, **params)
        await self.send(request)
        return (await self.answer(request["id"]))["result"]

    async def refused(self, method: str, **params: Any) -> int:
        """Return the error's code."""
        request = self.request(method, **params)
        await self.send(request)
        code = (await self.answer(request["id"]))["error"]["code"]
        assert isinstance(code, int)
        return code

    async def subscribe(self, *channels: str) -> list[str]:
        granted = await self.call("public/subscribe", channels=channels)
        assert isinstance(granted, list)
        return granted

    async def notified(self) -> tuple[str, Any]:
        message = await self.receive()
        assert message["method"] == "subscription"
        return message["params"]["channel"], message["params"]["data"]


@asynccontextmanager
async def dialled(venue: VenueServer) -> AsyncGenerator[Client, None]:
    with trio.fail_after(10_000):
        async with await venue.stream_factory("venue.test", 80) as stream:
            client = Client(stream)
            await client.write(Request(host="venue.test", target="/ws/api/v2"))
            assert isinstance(await client.event(), AcceptConnection)
            yield client


# --------------------------------------------------------------------------- counting


def test_the_worst_window_is_half_open() -> None:
    assert worst_window([], 1.0) == 0
    assert worst_window([0.0, 0.0, 0.5, 1.0, 1.4, 1.5], 1.0) == 3
    assert worst_window([0.0, 0.1 + 0.2, 0.3 + 1.0], 1.0) == 2
    assert worst_window([float(n) for n in range(100)], 10.0) == 10


def test_a_window_refuses_the_one_too_many_and_does_not_count_it() -> None:
    counter = RollingWindow(2, 1.0).counter()
    verdicts = [(0.0, True), (0.5, True), (0.9, False), (1.0, True), (1.4, False), (1.5, True)]
    assert [counter.admit(at) for at, _ in verdicts] == [verdict for _, verdict in verdicts]


def test_a_bucket_refills_up_to_its_capacity() -> None:
    counter = TokenBucket(2, 1.0).counter()
    assert [counter.admit(at) for at in (0.0, 0.0, 0.0, 1.0, 1.5, 100.0, 100.0, 100.0)] == [
        True, True, False, True, False, True, True, False,
    ]  # fmt: skip


async def test_a_request_beyond_the_limit_is_refused_over_all_links(autojump_clock: MockClock) -> None:
    limit = RateLimit(RollingWindow(3, 1.0))
    async with Venue(limit=limit, strict=False) as venue:
        async with dialled(venue) as client:
            await client.call("public/test")
            await client.call("public/test")
        async with dialled(venue) as client:
            await client.call("public/test")
            assert await client.refused("public/test") == 10028
            assert venue.worst_window(1.0) == 4
            await trio.sleep(1.0)
            await client.call("public/test")
            assert venue.worst_window(1.0) == 4
    assert len(venue.breaches) == 1
    with pytest.raises(AssertionError, match=r"link 2, at 0.000000: a message beyond the limit of RollingWindow"):
        venue.assert_no_breach()


async def test_a_limit_by_connection_begins_anew_and_may_cost_the_link(autojump_clock: MockClock) -> None:
    async with Venue(limit=RateLimit(TokenBucket(1, 0.1), by="connection", closes=True), strict=False) as venue:
        for _ in range(2):
            async with dialled(venue) as client:
                await client.call("public/test")
                assert await client.refused("public/test") == 10028
                assert await client.event() == CloseConnection(1008, "too_many_requests")
    assert len(venue.breaches) == 2


async def test_a_breach_fails_the_test_when_the_block_is_left(autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match="public/set_heartbeat: Invalid params interval: at least 10 seconds"):
        async with Venue() as venue, dialled(venue) as client:
            assert await client.refused("public/set_heartbeat", interval=9) == -32602


# --------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize(
    ("sent", "code", "answered"),
    [
        ("{", -32700, None),
        ('{"jsonrpc":"2.0","id":1,"method":"public/test","params":{"x":NaN}}', -32700, None),
        ("[]", -32600, None),
        ('"text"', -32600, None),
        ({"id": 7, "method": "public/test"}, -32600, 7),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "public/test"}, -32600, None),
        ({"jsonrpc": "2.0", "id": True, "method": "public/test"}, -32600, None),
        ({"jsonrpc": "2.0", "id": "a", "method": "public/nothing"}, -32601, "a"),
        ({"jsonrpc": "2.0", "id": 7, "method": "public/test", "params": []}, -32602, 7),
        ({"jsonrpc": "2.0", "id": 7, "method": "public/subscribe", "params": {"channels": []}}, -32602, 7),
        ({"jsonrpc": "2.0", "id": 7, "method": "public/subscribe", "params": {"channels": [1]}}, -32602, 7),
        ({"jsonrpc": "2.0", "id": 7, "method": "public/auth", "params": {"grant_type": "none"}}, -32602, 7),
    ],
)
async def test_what_is_no_request_gets_its_error(
    sent: Any, code: int, answered: Any, autojump_clock: MockClock
) -> None:
    async with Venue(strict=False) as venue, dialled(venue) as client:
        await client.send(sent)
        reply = await client.receive()
        assert (reply["jsonrpc"], reply["id"], reply["error"]["code"]) == ("2.0", answered, code)
        assert len(venue.breaches) == 1


async def test_the_small_methods_answer(autojump_clock: MockClock) -> None:
    async with Venue(wall_clock=lambda: 5.0) as venue, dialled(venue) as client:
        assert await client.call("public/get_time") == 5_000
        assert await client.call("public/hello", client_name="nova", client_version="1") == {"version": "1.2.26"}
        assert (await client.call("public/status"))["locked"] == "false"
        listed = await client.call("public/get_instruments", currency="ETH")
        assert [each["instrument_name"] for each in listed] == ["ETH-PERPETUAL"]
        book = await client.call("public/get_order_book", instrument_name=BTC, depth=1)
        assert (book["bids"], book["asks"]) == ([[29_999.5, 10.0]], [[30_000.5, 10.0]])
        assert venue.link.journal[0].method == "public/get_time"


async def test_ids_used_twice_are_noticed_and_one_is_not_the_text_1(autojump_clock: MockClock) -> None:
    async with Venue(strict=False) as venue, dialled(venue) as client:
        for id in (1, "1"):
            await client.send({"jsonrpc": "2.0", "id": id, "method": "public/test"})
            assert (await client.receive())["id"] == id
        venue.assert_ids_unique()
        assert venue.breaches == []
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "public/test"})
        await client.receive()
        with pytest.raises(AssertionError, match="the id 1 was used twice"):
            venue.assert_ids_unique(venue.link)
        assert venue.breaches == ["link 1, at 0.000000: public/test: the id 1 was used before"]


async def test_a_request_without_an_id_is_executed_and_not_answered(autojump_clock: MockClock) -> None:
    async with Venue(strict=False) as venue, dialled(venue) as client:
        await client.send({"jsonrpc": "2.0", "method": "public/subscribe", "params": {"channels": [TICKER]}})
        assert await client.quiet()
        assert venue.subscribed() == [TICKER]
        assert len(venue.breaches) == 1


# --------------------------------------------------------------------------- authentication


async def test_credentials_open_the_private_methods(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        assert await client.refused("private/get_account_summary", currency="BTC") == 13009
        assert await client.refused("public/auth", **{**LOGIN, "client_secret": "wrong"}) == 13004
        assert await client.refused("public/auth", **{**LOGIN, "client_id": "nobody"}) == 13004
        granted = await client.call("public/auth", **LOGIN)
        assert granted == {
            "access_token": "access-token-1",
            "refresh_token": "refresh-token-1",
            "expires_in": 900,
            "scope": "connection account:read_write trade:read_write",
            "token_type": "bearer",
        }
        assert (await client.call("private/get_account_summary", currency="BTC"))["currency"] == "BTC"
        assert venue.breaches == []


def test_the_signature_is_that_of_the_documentation() -> None:
    assert sign("AMANDASECRECT", 1576074319000, "1iqt2wls") == (
        "56590594f97921b09b18f166befe0d1319b198bbcdad7ca73382de2f88fe9aa1"
    )


def _signed(secret: str = "secret", timestamp: int = 1_000_000, nonce: str = "n", data: str = "") -> dict[str, Any]:
    signature = sign(secret, timestamp, nonce, data)
    about = {"client_id": "client", "timestamp": timestamp, "nonce": nonce, "data": data, "signature": signature}
    return {"grant_type": "client_signature", **about}


async def test_a_signature_is_good_once_and_for_a_minute(autojump_clock: MockClock) -> None:
    async with Venue(wall_clock=lambda: 1_060.0, strict=False) as venue, dialled(venue) as client:
        assert "access_token" in await client.call("public/auth", **_signed(data="x"))
        assert await client.refused("public/auth", **_signed(data="x")) == 13004
        assert await client.refused("public/auth", **_signed(timestamp=999_999, nonce="m")) == 13004
        assert len(venue.breaches) == 2
        assert await client.refused("public/auth", **_signed("wrong", nonce="o")) == 13004
        assert len(venue.breaches) == 2
        assert await client.refused("public/auth", **{**_signed(), "timestamp": "1000000"}) == -32602
        assert await client.refused("public/auth", **{**_signed(), "nonce": ""}) == -32602


async def test_a_token_dies_with_its_link_unless_the_session_is_named(autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            short = await client.call("public/auth", **LOGIN)
            long = await client.call("public/auth", **LOGIN, scope="session:nova")
        async with dialled(venue) as client:
            assert await client.refused("private/get_account_summary", currency="BTC") == 13009
            refresh = {"grant_type": "refresh_token", "refresh_token": short["refresh_token"]}
            assert await client.refused("public/auth", **refresh) == 13004
            access = {"currency": "BTC", "access_token": short["access_token"]}
            assert await client.refused("private/get_account_summary", **access) == 13009
            access = {"currency": "BTC", "access_token": long["access_token"]}
            assert "equity" in await client.call("private/get_account_summary", **access)
            refresh = {"grant_type": "refresh_token", "refresh_token": long["refresh_token"]}
            fresh = await client.call("public/auth", **refresh)
            assert fresh["scope"].startswith("session:nova ")
            assert "equity" in await client.call("private/get_account_summary", currency="BTC")
            assert await client.refused("public/auth", **refresh) == 13004


async def test_a_token_expires_by_the_clock_or_by_command_and_can_be_refreshed(autojump_clock: MockClock) -> None:
    async with Venue(token_life=100.0) as venue, dialled(venue) as client:
        granted = await client.call("public/auth", **LOGIN)
        await trio.sleep(99.0)
        await client.call("private/get_account_summary", currency="BTC")
        await trio.sleep(1.0)
        assert await client.refused("private/get_account_summary", currency="BTC") == 13009
        granted = await client.call("public/auth", grant_type="refresh_token", refresh_token=granted["refresh_token"])
        await client.call("private/get_account_summary", currency="BTC")
        venue.expire_tokens()
        access = {"currency": "BTC", "access_token": granted["access_token"]}
        assert await client.refused("private/get_account_summary", **access) == 13009
        assert venue.breaches == []  # nobody could know
        await trio.sleep(100.0)
        assert await client.refused("private/get_account_summary", **access) == 13009
        assert len(venue.breaches) == 1
        venue.breaches.clear()


async def test_auth_comes_first_only_if_it_is_confirmed_first(autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            await client.call("public/hello", client_name="nova", client_version="1")
            await client.call("public/auth", **LOGIN)
            await client.subscribe(TICKER)
            venue.assert_auth_came_first()
        async with dialled(venue) as client:
            await client.send(
                client.request("public/auth", **LOGIN), client.request("public/subscribe", channels=[TICKER])
            )
            await client.receive()
            await client.receive()
            venue.assert_auth_came_first()  # answered in order: nothing was read before the confirmation was given
        venue.twist("public/auth", after(0.5))
        async with dialled(venue) as client:
            await client.send(
                client.request("public/auth", **LOGIN), client.request("public/subscribe", channels=[TICKER])
            )
            await client.receive()
            await client.receive()
            with pytest.raises(AssertionError, match="message 2 came before authentication was confirmed"):
                venue.assert_auth_came_first()
        async with dialled(venue) as client:
            await client.subscribe(TICKER)
            with pytest.raises(AssertionError, match="never asked to authenticate"):
                venue.assert_auth_came_first()


# --------------------------------------------------------------------------- heartbeats


async def test_heartbeats_come_by_the_interval_and_want_an_answer(autojump_clock: MockClock) -> None:
    async with Venue(strict=False) as venue, dialled(venue) as client:
        assert await client.call("public/set_heartbeat", interval=10) == "ok"
        for at in (10.0, 20.0):
            kinds = [(await client.receive())["params"]["type"] for _ in range(2)]
            assert (kinds, trio.current_time()) == (["heartbeat", "test_request"], at)
            await client.call("public/test")
        await client.receive()
        await client.receive()
        await client.send({"jsonrpc": "2.0", "method": "public/test"})  # an answer without an id is none
        assert await client.event() == CloseConnection(1008, "heartbeat not answered")
        assert trio.current_time() == 40.0
        assert [re.sub(".*: ", "", breach) for breach in venue.breaches] == [
            "a request without an id",
            "a test_request was not answered by public/test with an id in time",
        ]


async def test_heartbeats_stop_when_told(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.call("public/set_heartbeat", interval=10)
        await client.call("public/set_heartbeat", interval=30)
        assert await client.quiet(29.0)
        await client.receive()
        await client.receive()
        assert await client.call("public/disable_heartbeat") == "ok"
        assert await client.quiet(1_000.0)


async def test_who_cannot_hear_the_question_owes_no_answer(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.call("public/set_heartbeat", interval=10)
        venue.mute()
        assert await client.quiet(95.0)
        venue.unmute()
        await client.receive()
        assert trio.current_time() == 100.0


# --------------------------------------------------------------------------- subscriptions and data


async def test_only_known_and_permitted_channels_are_granted(autojump_clock: MockClock) -> None:
    raw, orders = f"trades.{BTC}.raw", "user.orders.any.any.raw"
    async with Venue() as venue, dialled(venue) as client:
        assert await client.subscribe("nonsense", "ticker.DOGE.100ms", TICKER, orders) == [TICKER]
        assert await client.refused("public/subscribe", channels=[raw, TRADES]) == 13778
        assert await client.refused("private/subscribe", channels=[orders]) == 13009
        await client.call("public/auth", **LOGIN)
        assert await client.subscribe(raw, orders) == [raw]
        assert await client.call("private/subscribe", channels=[orders, TRADES]) == [orders, TRADES]
        assert venue.subscribed() == [TICKER, raw, orders, TRADES]
        assert await client.call("public/unsubscribe", channels=[TICKER, BOOK]) == [TICKER]
        venue.revoke(TICKER)
        assert await client.subscribe(TICKER) == []
        assert await client.call("public/unsubscribe_all") == "ok"
        assert venue.subscribed() == []


async def test_a_channel_asked_twice_is_noticed_unless_given_up_between(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        for _ in range(2):
            await client.subscribe(TICKER, TRADES)
            await client.call("public/unsubscribe", channels=[TICKER, TRADES])
        await client.subscribe(TICKER)
        await client.call("public/unsubscribe_all")
        await client.subscribe(TICKER)
        venue.assert_no_channel_asked_twice()
        await client.subscribe(TICKER)
        with pytest.raises(AssertionError, match=f"{TICKER!r} was asked for twice"):
            venue.assert_no_channel_asked_twice()


async def test_a_book_begins_with_a_snapshot_and_its_changes_chain(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.tick(BOOK)
        await client.subscribe(BOOK)
        _, first = await client.notified()
        assert (first["type"], first["change_id"], "prev_change_id" in first) == ("snapshot", 1_001, False)
        mine = {side: {price: amount for _, price, amount in first[side]} for side in ("bids", "asks")}
        for number in range(50):
            venue.tick(BOOK)
            channel, change = await client.notified()
            assert (channel, change["type"], change["prev_change_id"]) == (BOOK, "change", 1_001 + number)
            for side in ("bids", "asks"):
                for action, price, amount in change[side]:
                    assert (action == "new") == (price not in mine[side])
                    if action == "delete":
                        del mine[side][price]
                    else:
                        mine[side][price] = amount
        book = venue.book(BOOK)
        assert mine == {"bids": book.bids, "asks": book.asks}
        assert len(venue.emitted[BOOK]) == 51
        asked = await client.call("public/get_order_book", instrument_name=BTC, depth=3)
        assert (asked["change_id"], len(asked["bids"])) == (book.change_id, 3)


async def test_data_goes_to_who_subscribed_and_the_truth_is_kept(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as one, dialled(venue) as other:
        await one.subscribe(TRADES)
        await other.subscribe(TICKER)
        for _ in range(3):
            venue.tick(TRADES)
        quote = venue.tick(TICKER)
        assert await other.notified() == (TICKER, quote)
        heard = [await one.notified() for _ in range(3)]
        assert [data for _, data in heard] == venue.emitted[TRADES]
        assert [trade["trade_seq"] for _, (trade,) in heard] == [1, 2, 3]
        assert await one.quiet()


async def test_gaps_duplicates_and_swaps_come_on_command(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.subscribe(TRADES)
        venue.tick(TRADES)
        venue.skip(TRADES)
        venue.tick(TRADES)
        venue.repeat(TRADES)
        venue.swap(TRADES)
        heard = [(await client.notified())[1][0]["trade_seq"] for _ in range(5)]
        assert heard == [1, 3, 3, 5, 4]
        assert [trade["trade_seq"] for (trade,) in venue.emitted[TRADES]] == [1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="no market data"):
            venue.tick("user.orders.any.any.raw")


async def test_a_feed_ticks_by_the_clock(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client, trio.open_nursery() as nursery:
        await client.subscribe(TICKER)
        nursery.start_soon(venue.feed, TICKER, 0.1, 3)
        times = []
        for _ in range(3):
            await client.notified()
            times.append(round(trio.current_time(), 6))
        assert times == [0.1, 0.2, 0.3]


# --------------------------------------------------------------------------- orders

ORDER = {"instrument_name": BTC, "amount": 10, "type": "limit", "price": 29_000.0}


async def test_orders_are_recorded_by_their_labels(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.call("public/auth", **LOGIN)
        await client.call("private/subscribe", channels=["user.orders.any.any.raw", f"user.trades.{BTC}.raw"])
        bought = await client.call("private/buy", **{**ORDER, "type": "market", "label": "a"})
        assert (bought["order"]["order_state"], len(bought["trades"])) == ("filled", 1)
        assert [note["params"]["channel"].split(".")[1] for note in client.between] == ["orders", "trades"]
        venue.assert_no_order_twice()
        sold = (await client.call("private/sell", **ORDER, label="a"))["order"]
        assert (sold["order_id"], sold["order_state"], sold["direction"]) == ("BTC-2", "open", "sell")
        assert venue.executions("a") == 2
        with pytest.raises(AssertionError, match=r"executed more than once: \{'a': 2\}"):
            venue.assert_no_order_twice()
        assert (await client.call("private/cancel", order_id="BTC-2"))["order_state"] == "cancelled"
        assert await client.refused("private/cancel", order_id="BTC-2") == 11044
        assert await client.refused("private/cancel", order_id="BTC-9") == 10004
        assert await client.refused("private/buy", **{**ORDER, "instrument_name": "DOGE"}) == 10020


@pytest.mark.parametrize("wrong", [{"amount": 0}, {"amount": True}, {"price": "1"}, {"type": "x"}, {"label": "l" * 65}])
async def test_an_order_that_makes_no_sense_is_refused(wrong: dict[str, Any], autojump_clock: MockClock) -> None:
    async with Venue(strict=False) as venue, dialled(venue) as client:
        await client.call("public/auth", **LOGIN)
        assert await client.refused("private/buy", **{**ORDER, **wrong}) == -32602
        assert venue.orders.placed == []


@pytest.mark.parametrize("scope", ["connection", "account"])
async def test_cancel_on_disconnect_cancels_when_the_link_is_lost(scope: str, autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            await client.call("public/auth", **LOGIN)
            await client.call("private/buy", **ORDER)
            assert await client.call("private/enable_cancel_on_disconnect", scope=scope) == "ok"
            enabled = await client.call("private/get_cancel_on_disconnect", scope=scope)
            assert enabled == {"scope": scope, "enabled": True}
            await client.call("private/buy", **{**ORDER, "type": "market"})
        async with dialled(venue) as client:
            await client.call("public/auth", **LOGIN)
            await client.call("private/buy", **ORDER)
        await venue.wait_until(lambda: not venue.live_links)
        states = [order.state for order in venue.orders.placed]
        assert states == ["cancelled", "filled", "cancelled" if scope == "account" else "open"]


async def test_cancel_on_disconnect_can_be_taken_back(autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            await client.call("public/auth", **LOGIN)
            await client.call("private/enable_cancel_on_disconnect")
            await client.call("private/disable_cancel_on_disconnect")
            await client.call("private/buy", **ORDER)
        await venue.wait_until(lambda: not venue.live_links)
        assert [order.state for order in venue.orders.placed] == ["open"]


async def test_logging_out_closes_the_link_and_leaves_the_orders(autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            session = await client.call("public/auth", **LOGIN, scope="session:nova")
            await client.call("private/enable_cancel_on_disconnect")
            await client.call("private/buy", **ORDER)
            await client.send(client.request("private/logout"))
            assert await client.event() == CloseConnection(1000, "logout")
        async with dialled(venue) as client:
            refresh = {"grant_type": "refresh_token", "refresh_token": session["refresh_token"]}
            assert await client.refused("public/auth", **refresh) == 13004
        assert [order.state for order in venue.orders.placed] == ["open"]


# --------------------------------------------------------------------------- misbehaviour


@pytest.mark.parametrize(
    ("twist", "expected"),
    [
        (never, []),
        (twice, ["A", "A"]),
        (after(0.5), ["A"]),
        (preceded_by({"id": 5}, "[]"), [{"id": 5}, [], "A"]),
        (followed_by({}), ["A", {}]),
        (with_unknown_id, [UNKNOWN_ID, "A"]),
        (with_fields(id=None), [None]),
        (with_fields(id="1"), ["1"]),
        (cut_before, []),
        (cut_after, ["A"]),
        (lambda answer: [CUT, answer], []),
    ],
)
async def test_an_answer_is_twisted_once_and_then_honest(
    twist: Twist, expected: list[Any], autojump_clock: MockClock
) -> None:
    def shape(message: Any) -> Any:
        if isinstance(message, dict) and "result" in message:
            return "A" if message["id"] == 1 and type(message["id"]) is int else message["id"]
        return message

    async with Venue() as venue, dialled(venue) as client:
        venue.twist("public/subscribe", twist)
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": [TICKER]}})
        assert [shape(await client.receive()) for _ in expected] == expected
        await wait_all_tasks_blocked()
        assert venue.link.journal[0].channels == (TICKER,)
        if venue.link.live:
            assert venue.subscribed() == [TICKER]
            client._next_id = 2
            assert await client.subscribe(TRADES) == [TRADES]
        else:
            assert await client.stream.receive_some() == b""
            assert venue.dials[0].ended == "dropped"


async def test_a_twist_may_last_and_hostile_fields_are_made_of_them(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.twist("public/auth", with_result(expires_in=-1), times=None)
        for _ in range(2):
            assert (await client.call("public/auth", **LOGIN))["expires_in"] == -1
        venue.twist("public/auth", with_result(expires_in=float("nan")))
        await client.send(client.request("public/auth", **LOGIN))
        assert '"expires_in":NaN' in await client.text()
        venue.twist("public/test", in_batch)
        await client.send(client.request("public/test"))
        assert (await client.receive())[0]["id"] == 4
        venue.twist("public/test", with_fields(error="no object"))
        await client.send(client.request("public/test"))
        assert (await client.receive())["error"] == "no object"


async def test_what_only_looks_like_a_login_is_no_confirmation(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.twist("public/auth", lookalike)
        await client.send(client.request("public/auth", **LOGIN))
        for _ in range(3):
            message = await client.receive()
            assert message.get("id") is None
            assert "access-token-1" in json.dumps(message)
        await client.subscribe(TICKER)
        with pytest.raises(AssertionError, match="message 2 came before"):
            venue.assert_auth_came_first()


async def test_held_answers_come_in_the_wrong_order(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.hold_answers(3)
        await client.send(*(client.request("public/test") for _ in range(4)))
        assert [(await client.receive())["id"] for _ in range(4)] == [3, 2, 1, 4]


async def test_late_answers_due_together_keep_their_order(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.twist("public/test", after(1.0), times=20)
        await client.send(*(client.request("public/test") for _ in range(21)))
        assert [(await client.receive())["id"] for _ in range(21)] == [21, *range(1, 21)]
        assert trio.current_time() == 1.0


async def test_links_are_dropped_reset_and_closed_on_command(autojump_clock: MockClock) -> None:
    async with Venue() as venue:
        async with dialled(venue) as client:
            venue.drop()
            assert await client.stream.receive_some() == b""
        async with dialled(venue) as client:
            venue.reset()
            with pytest.raises(trio.BrokenResourceError):
                await client.stream.receive_some()
        async with dialled(venue) as client:
            await client.subscribe(TICKER)
            venue.tick(TICKER)
            venue.close(4000, "told so")
            assert (await client.notified())[0] == TICKER
            assert await client.event() == CloseConnection(4000, "told so")
            await client.write(CloseConnection(4000))
            await venue.dials[2].wait_ended()
        assert [dial.ended for dial in venue.dials] == ["dropped", "reset", "closed"]
        assert [link.why for link in venue.links] == ["dropped", "reset", "closed with 4000"]


async def test_a_goodbye_of_the_client_is_answered(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.write(Ping(b"?"))
        assert await client.event() == Pong(b"?")
        await client.write(CloseConnection(1000, "bye"))
        assert await client.event() == CloseConnection(1000, "bye")
        await venue.dials[0].wait_ended()
        assert (venue.dials[0].ended, venue.link.live, venue.link.why) == ("closed", False, "")


async def test_a_mute_venue_executes_and_says_nothing(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        await client.call("public/auth", **LOGIN)
        venue.mute()
        await client.send(client.request("private/buy", **ORDER, label="a"))
        await client.write(Ping(b"?"))
        await client.write(CloseConnection(1000))
        with trio.move_on_after(60.0) as scope:
            await client.stream.receive_some()
        assert scope.cancelled_caught
        assert venue.executions("a") == 1


async def test_dials_are_refused_on_command(autojump_clock: MockClock) -> None:
    async def vanish(peer: Peer) -> None:
        await peer.read_request()
        await peer.reset()

    async with Venue() as venue:
        venue.refuse_dials(503, 2, {"Retry-After": "7"})
        venue.play_next(vanish)
        for _ in range(2):
            async with await venue.stream_factory("venue.test", 80) as stream:
                client = Client(stream)
                await client.write(Request(host="venue.test", target="/"))
                event = await client.event()
                assert isinstance(event, RejectConnection)
                assert (event.status_code, dict(event.headers)[b"retry-after"]) == (503, b"7")
        async with await venue.stream_factory("venue.test", 80) as stream:
            client = Client(stream)
            await client.write(Request(host="venue.test", target="/"))
            with pytest.raises(trio.BrokenResourceError):
                await client.event()
        async with dialled(venue) as client:
            await client.call("public/test")
        assert (len(venue.dials), len(venue.links), venue.link.number) == (4, 1, 1)


async def test_a_client_that_does_not_read_loses_its_link(autojump_clock: MockClock) -> None:
    async with Venue(max_backlog=100, max_buffer=1_000) as venue, dialled(venue) as client:
        await client.subscribe(TICKER)
        for _ in range(200):
            venue.tick(TICKER)
            await wait_all_tasks_blocked()
        assert (venue.link.live, venue.link.why) == (False, "the client does not read")


async def test_a_closing_venue_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    async with Venue(max_buffer=1_000) as venue, dialled(venue) as client:
        await client.subscribe(TICKER)
        for _ in range(50):
            venue.tick(TICKER)
        await wait_all_tasks_blocked()
        venue.close(1001)
        await venue.dials[0].wait_ended()
        assert (venue.dials[0].ended, trio.current_time()) == ("dropped", 5.0)


async def test_the_venue_says_things_unasked(autojump_clock: MockClock) -> None:
    async with Venue() as venue, dialled(venue) as client:
        venue.send({"method": "nonsense"})
        venue.send("not even JSON")
        assert await client.text() == '{"method":"nonsense"}'
        assert await client.text() == "not even JSON"
        await venue.link.flush()
        assert [said.message for said in venue.link.said] == [{"method": "nonsense"}, "not even JSON"]


async def test_a_test_waits_for_what_the_venue_sees(autojump_clock: MockClock) -> None:
    async with Venue() as venue, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            await trio.sleep(3.0)
            async with dialled(venue) as client:
                await trio.sleep(1.0)
                await client.subscribe(TICKER)

        assert (await venue.wait_link(1)).number == 1
        assert trio.current_time() == 3.0
        await venue.wait_until(lambda: venue.subscribed() == [TICKER])
        assert trio.current_time() == 4.0


@pytest.mark.parametrize("tls", [False, True])
async def test_a_venue_over_loopback(tls: bool) -> None:
    venue = Venue()
    async with venue.listen(tls=tls) as listening:
        with trio.fail_after(100):
            stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", listening.port)
            if tls:
                assert isinstance(stream, trio.SocketStream)
                stream = trio.SSLStream(
                    stream, listening.client_ssl_context, server_hostname="127.0.0.1", https_compatible=True
                )
            async with stream:
                client = Client(stream)
                await client.write(Request(host="127.0.0.1", target="/"))
                assert isinstance(await client.event(), AcceptConnection)
                await client.call("public/auth", **LOGIN)
                await client.subscribe(BOOK)
                assert (await client.notified())[1]["type"] == "snapshot"
                venue.drop()
                assert await client.stream.receive_some() == b""
    assert venue.dials[0].ended == "dropped"


async def test_a_breach_over_loopback_fails_the_test_too() -> None:
    with pytest.raises(AssertionError, match="broke the venue's rules"):
        async with Venue().listen() as listening:
            async with await trio.open_tcp_stream("127.0.0.1", listening.port) as stream:
                client = Client(stream)
                await client.write(Request(host="127.0.0.1", target="/"))
                assert isinstance(await client.event(), AcceptConnection)
                await client.send("{")
                await client.receive()


# --------------------------------------------------------------------------- the plain protocol


async def test_the_plain_protocol_from_login_to_data(autojump_clock: MockClock) -> None:
    async with GenericVenue(tokens={"t"}, rejected={"no"}, expires_in=60.0) as venue, dialled(venue) as client:
        await client.send({"type": "subscribe", "channel": "a"})
        assert await client.receive() == {"type": "error", "reason": "unauthorized"}
        await client.send({"type": "auth", "token": "wrong"}, {"type": "auth", "token": "t"})
        assert await client.receive() == {"type": "auth_error", "reason": "wrong credentials"}
        assert await client.receive() == {"type": "auth_success", "expires_in": 60.0}
        await client.send({"type": "subscribe", "channel": "a", "params": {}}, {"type": "subscribe", "channel": "no"})
        assert await client.receive() == {"type": "subscribed", "channel": "a"}
        assert await client.receive() == {"type": "error", "channel": "no", "reason": "not allowed"}
        venue.publish("a", 1)
        venue.skip("a", 2)
        venue.publish("b", 3)
        venue.publish("a", 4)
        venue.repeat("a")
        assert [await client.receive() for _ in range(3)] == [
            {"channel": "a", "seq": 1, "data": 1},
            *[{"channel": "a", "seq": 3, "data": 4}] * 2,
        ]
        assert len(venue.emitted["a"]) == 3
        await client.send({"type": "request", "id": "x", "do": 1}, {"type": "unsubscribe", "channel": "a"})
        assert await client.receive() == {"type": "response", "result": {"do": 1}, "id": "x"}
        assert await client.receive() == {"type": "unsubscribed", "channel": "a"}
        assert venue.executed == [{"type": "request", "id": "x", "do": 1}]
        await trio.sleep(60.0)
        await client.send({"type": "request", "id": "y"}, {"type": "ping"})
        assert await client.receive() == {"type": "error", "reason": "unauthorized", "id": "y"}
        assert await client.receive() == {"type": "pong"}
        with pytest.raises(AssertionError, match="message 1 came before"):
            venue.assert_auth_came_first()


async def test_the_plain_protocol_takes_signatures_and_key_with_secret(autojump_clock: MockClock) -> None:
    signature = "949b76c9400bf7abf67085bf831af324b327c1f64425c92ce2725878c7307893"  # hex HMAC-SHA256 of "k5" under "s"
    venue = GenericVenue(secrets={"k": "s"}, expires_as="expires_at", expires_in=10.0, wall_clock=lambda: 100.0)
    async with venue, dialled(venue) as client:
        await client.send({"type": "auth", "key": "k", "secret": "s"})
        assert await client.receive() == {"type": "auth_success", "expires_at": 110.0}
        venue.expire_auth()
        await client.send({"type": "request", "id": 1})
        assert (await client.receive())["reason"] == "unauthorized"
        signed = {"type": "auth", "timestamp": 5, "api_key": "k", "signature": signature}
        await client.send(signed, {**signed, "signature": "0" * 64}, {**signed, "api_key": "other"})
        assert [(await client.receive())["type"] for _ in range(3)] == ["auth_success", "auth_error", "auth_error"]
        venue.assert_auth_came_first()


@pytest.mark.parametrize(
    ("confirmation", "expected"),
    [
        ("subscribed", [{"type": "subscribed", "channel": "a"}, {"type": "error", "channel": "no"}]),
        ("subscription", [{"type": "subscription", "result": "success", "id": 9},
                          {"type": "error", "subscription_id": 9}]),
        ("together", [{"type": "subscribed", "channels": ["a"]}, {"type": "error", "channel": "no"}]),
    ],
)  # fmt: skip
async def test_a_batch_is_confirmed_in_each_manner(
    confirmation: Any, expected: list[dict[str, Any]], autojump_clock: MockClock
) -> None:
    async with GenericVenue(confirmation=confirmation, rejected={"no"}) as venue, dialled(venue) as client:
        await client.send({"type": "subscribe", "id": 9, "channels": ["a", "no"]})
        assert await client.receive() == {**expected[0], "id": 9}
        assert await client.receive() == {**expected[1], "reason": "not allowed", "id": 9}
        assert venue.subscribed() == ["a"]


async def test_what_the_plain_protocol_does_not_know_is_a_breach(autojump_clock: MockClock) -> None:
    async with GenericVenue(strict=False, max_batch=2, limit=RateLimit(RollingWindow(5, 1.0))) as venue:
        async with dialled(venue) as client:
            await client.send("{", {"type": "dance"}, {"type": "subscribe", "channels": [1]}, [])
            assert [(await client.receive())["reason"] for _ in range(4)] == ["bad message"] * 4
            await client.send({"type": "subscribe", "channels": ["a", "b", "c"]})
            assert (await client.receive())["reason"] == "at most 2 channels"
            await client.send({"type": "ping"})
            assert (await client.receive())["reason"] == "rate_limited"
            assert len(venue.breaches) == 6


async def test_five_thousand_subscriptions_are_restored_under_a_limit(autojump_clock: MockClock) -> None:
    channels = [f"c{number}" for number in range(5_000)]
    rejected = {"c7", "c2500", "c4999"}
    async with GenericVenue(limit=RateLimit(RollingWindow(50, 1.0)), rejected=rejected) as venue:
        for stop in (2_500, 5_000):
            async with dialled(venue) as client:
                for start in range(0, stop, 100):
                    await client.send({"type": "subscribe", "channels": channels[start : start + 100]})
                    for _ in range(100):
                        await client.receive()
            await trio.sleep(1.0)
        assert len(venue.links[1].subscriptions) == 4_997
        venue.assert_no_channel_asked_twice()
        assert venue.worst_window(1.0) == 50
        for channel in channels:
            venue.publish(channel)
        assert len(venue.emitted) == 5_000


async def test_one_message_a_channel_is_counted_exactly(autojump_clock: MockClock) -> None:
    async with GenericVenue(limit=RateLimit(RollingWindow(50, 1.0))) as venue, dialled(venue) as client:
        for start in range(0, 5_000, 50):
            await client.send(*({"type": "subscribe", "channel": f"c{start + n}"} for n in range(50)))
            for _ in range(50):
                await client.receive()
            await trio.sleep(1.0)
        assert venue.worst_window(1.0) == 50
        assert venue.worst_window(10.0) == 500
        assert len(venue.subscribed()) == 5_000
