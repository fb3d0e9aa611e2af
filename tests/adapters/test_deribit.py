"""Deribit's adapter against a venue that holds it to Deribit's rules."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova import (
    AuthFailed,
    BadMessage,
    ConfigError,
    ConnectFailed,
    Event,
    FeedOptions,
    Gap,
    JsonCodec,
    ListBackoff,
    OutcomeUnknown,
    RateLimitSlowed,
    Resynced,
    RetryAdvice,
    SessionOver,
    State,
    SubscriptionRejected,
    explain,
)
from trio_nova.adapters.deribit import Deribit, DeribitAuth, DeribitClient, sign
from trio_nova.adapters.jsonrpc import JsonRpcError
from trio_nova.testing import (
    RateLimit,
    TokenBucket,
    Twist,
    Venue,
    VenueLink,
    after,
    cut_before,
    followed_by,
    lookalike,
    never,
    preceded_by,
    with_fields,
    with_result,
)

SECRET = "a-secret-of-thirty-two-characters"
CREDENTIALS = {"client_id": "client", "client_secret": SECRET}
BTC, ETH = "BTC-PERPETUAL", "ETH-PERPETUAL"
BOOK, TICKER, TRADES = f"book.{BTC}.100ms", f"ticker.{BTC}.100ms", f"trades.{BTC}.100ms"
ORDERS, RAW = "user.orders.any.any.raw", f"trades.{BTC}.raw"
NOW = 1_700_000_000.0
"""Unix time for the tests."""


def venue_of(**options: Any) -> Venue:
    return Venue(credentials={"client": SECRET}, wall_clock=lambda: NOW, **options)


@asynccontextmanager
async def trading(venue: Venue, adapter: Deribit | None = None, **options: Any) -> AsyncGenerator[DeribitClient, None]:
    here = attrs.evolve(adapter or Deribit(), url="ws://localhost/ws/api/v2")
    defaults: dict[str, Any] = {
        "stream_factory": venue.stream_factory,
        "credentials": CREDENTIALS,
        "backoff": ListBackoff([5.0]),
    }
    with trio.fail_after(10_000):
        async with DeribitClient.open(adapter=here, **{**defaults, **options}) as client:
            yield client


def methods(link: VenueLink) -> list[str]:
    return [asked.method for asked in link.journal]


def grants(link: VenueLink) -> list[str]:
    """Return how the client authenticated, each time that it did."""
    return [asked.message["params"]["grant_type"] for asked in link.journal if asked.verb == "auth"]


def refuses(code: int, message: str = "no", **data: Any) -> Twist:
    """Answer with an error."""
    error = {"code": code, "message": message, **({"data": data} if data else {})}

    def answer(honest: dict[str, Any]) -> list[Any]:
        return [{"jsonrpc": "2.0", "id": honest["id"], "error": error}]

    return answer


async def back_on_link(venue: Venue, client: DeribitClient, number: int) -> VenueLink:
    link = await venue.wait_link(number)
    await client.connection.wait_ready()
    await wait_all_tasks_blocked()
    return link


# --------------------------------------------------------------------------- in ordinary use


async def test_trading_from_login_to_logout(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        assert await client.get_time() == round(NOW * 1000)
        assert (await client.hello("test", "1"))["version"]
        assert (await client.status())["locked"] == "false"
        assert [each["instrument_name"] for each in await client.get_instruments("BTC", "future")] == [BTC]
        assert len((await client.get_order_book(BTC, depth=3))["bids"]) == 3
        assert (await client.get_account_summary("BTC"))["currency"] == "BTC"
        async with (
            client.subscribe_to_book(BTC) as book,
            client.subscribe_to_ticker(BTC) as ticker,
            client.subscribe_to_trades(BTC) as trades,
            client.subscribe_to_orders() as orders,
            client.subscribe_to_own_trades(ETH) as own,
        ):
            assert (await book.receive())["type"] == "snapshot"
            assert venue.tick(TICKER) == await ticker.receive()
            assert venue.tick(TRADES) == await trades.receive()
            assert venue.tick(BOOK) == await book.receive()
            order = (await client.buy(BTC, 10, price=30_000, label="first"))["order"]
            assert (await orders.receive())["order_state"] == "open"
            assert (await client.cancel(order["order_id"]))["order_state"] == "cancelled"
            assert (await orders.receive())["order_state"] == "cancelled"
            sold = await client.sell(ETH, 1, type="market", label="second")
            assert sold["order"]["order_state"] == "filled"
            assert (await own.receive())[0]["label"] == "second"
        await wait_all_tasks_blocked()
        assert venue.subscribed() == []
        await client.logout()
        await client.connection.wait_closed()
        assert methods(venue.link)[-1] == "private/logout"
    venue.assert_auth_came_first()
    venue.assert_ids_unique()
    assert len(venue.dials) == 1


async def test_an_order_may_be_exact_and_what_the_service_says_may_be_kept_exactly(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/auth", with_result(expires_in=500.5))
        async with trading(venue, codec=JsonCodec(decimals=True)) as client:
            order = (await client.buy(BTC, Decimal("10.10"), price=Decimal("30000.50"), stop=Decimal("1.10")))["order"]
            assert str(order["price"]) == "30000.5"  # the venue's own float
            for wrong in (Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal(0)):
                with pytest.raises(ConfigError, match="amount"):
                    await client.buy(BTC, wrong, price=1)
            with pytest.raises(ConfigError, match="stop"):
                await client.buy(BTC, 1, price=1, stop=Decimal("NaN"))
            await trio.sleep(439)
            assert len(grants(venue.link)) == 1
            await trio.sleep(3)  # what is said counts, not the default
            assert len(grants(venue.link)) == 2
        sent = [frame for frame in venue.dials[0].frames if isinstance(frame, str) and "private/buy" in frame]
        assert '"amount":10.10' in sent[0]
        assert '"price":30000.50' in sent[0]
        assert '"stop":1.10' in sent[0]
        assert len(sent) == 1


async def test_without_credentials_there_is_the_public_side(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue, credentials=None) as client:
        async with client.subscribe_to_ticker(BTC) as ticker:
            assert venue.tick(TICKER) == await ticker.receive()
        with pytest.raises(JsonRpcError, match="unauthorized") as caught:
            await client.buy(BTC, 10, price=1)
        assert caught.value.code == 13009
        with pytest.raises(SubscriptionRejected, match="13778"):
            async with client.subscribe_to_trades(BTC, "raw"):
                pass
        assert "public/auth" not in methods(venue.link)


async def test_a_provider_that_has_no_credentials_leaves_the_public_side(autojump_clock: MockClock) -> None:
    async def nothing() -> None:
        return None

    async with venue_of() as venue, trading(venue, credentials=nothing) as client:
        assert await client.get_time()
        assert methods(venue.link) == ["public/set_heartbeat", "public/get_time"]


async def test_messages_that_nobody_receives_stop_nothing(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue, inbox_size=10) as client:
        for number in range(100):
            venue.send({"method": "announcement", "params": number})
        venue.send({"method": "subscription", "params": {"channel": "unknown", "data": 1}})
        assert await client.get_time()
        kept = await client.connection.receive_batch()
        assert [message["params"] for message in kept if isinstance(message, dict)] == list(range(90, 100))


async def test_grouped_books_come_whole_and_have_no_gaps(autojump_clock: MockClock) -> None:
    channel = f"book.{BTC}.none.10.100ms"
    async with venue_of() as venue, trading(venue) as client:
        feed_options = FeedOptions(notices=True)
        async with client.subscribe_to_book(BTC, depth=10, feed=feed_options) as book:
            assert venue.subscribed() == [channel]
            await book.receive()
            for number in (2_000, 2_005, 2_003, 2_010):
                data: dict[str, Any] = {"change_id": number, "bids": [], "asks": []}
                venue.send({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})
            await wait_all_tasks_blocked()
            assert [item["change_id"] for item in await book.receive_batch()] == [2_000, 2_005, 2_010]
            assert methods(venue.link).count("public/subscribe") == 1


async def test_the_service_is_where_it_says() -> None:
    assert str(Deribit().url()) == "wss://www.deribit.com/ws/api/v2"
    assert str(Deribit(testnet=True).url()) == "wss://test.deribit.com/ws/api/v2"
    assert str(Deribit(url="wss://gateway.test/x").url()) == "wss://gateway.test/x"


# --------------------------------------------------------------------------- the order of setup


@pytest.mark.parametrize("end", ["drop", "reset", "close"])
async def test_every_link_is_set_up_in_the_same_order_and_each_thing_once(end: str, autojump_clock: MockClock) -> None:
    adapter = Deribit(cancel_on_disconnect="connection", heartbeat_interval=15)
    async with venue_of() as venue, trading(venue, adapter) as client:
        async with (
            client.subscribe_to_orders(),
            client.subscribe_to_book(BTC),
            client.subscribe_to_own_trades(BTC),
            client.subscribe_to_trades(BTC, "raw"),
        ):
            for number in (2, 3):
                getattr(venue, end)()
                link = await back_on_link(venue, client, number)
                assert [asked.message.get("params") for asked in link.journal[1:]] == [
                    {"interval": 15},
                    {"scope": "connection"},
                    {"channels": [BOOK, RAW]},
                    {"channels": [ORDERS, f"user.trades.{BTC}.raw"]},
                ]
                assert methods(link) == [
                    "public/auth",
                    "public/set_heartbeat",
                    "private/enable_cancel_on_disconnect",
                    "public/subscribe",
                    "private/subscribe",
                ]
                assert grants(link) == ["client_credentials"]  # the token died with its link
    for link in venue.links:
        venue.assert_auth_came_first(link)
        venue.assert_no_channel_asked_twice(link)
        venue.assert_ids_unique(link)


async def test_a_thousand_channels_take_three_requests_and_keep_their_order(autojump_clock: MockClock) -> None:
    names = tuple(f"X{number}-PERPETUAL" for number in range(1_000))
    async with venue_of(instruments=names) as venue, trading(venue) as client, trio.open_nursery() as nursery:
        wanted = [f"ticker.{name}.100ms" for name in names]
        client.connection.import_subscriptions(json.dumps([{"channel": ORDERS, "params": {}}]))
        client.connection.import_subscriptions(json.dumps([{"channel": name, "params": {}} for name in wanted]))
        await venue.wait_until(lambda: len(venue.subscribed()) == 1_001)
        venue.drop()
        link = await back_on_link(venue, client, 2)
        assert [len(asked.channels) for asked in link.journal if asked.verb == "subscribe"] == [500, 500, 1]
        assert venue.subscribed() == [*wanted, ORDERS]
        nursery.cancel_scope.cancel()


async def test_orders_are_cancelled_with_the_link_only_where_that_was_asked_for(autojump_clock: MockClock) -> None:
    for scope, left in ((None, "open"), ("connection", "cancelled"), ("account", "cancelled")):
        async with venue_of() as venue, trading(venue, Deribit(cancel_on_disconnect=scope)) as client:  # type: ignore[arg-type]
            await client.buy(BTC, 10, price=1, label="a")
            venue.drop()
            await back_on_link(venue, client, 2)
            assert [order.state for order in venue.orders.placed] == [left]


async def test_orders_stay_after_a_logout(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue, Deribit(cancel_on_disconnect="connection")) as client:
        await client.buy(BTC, 10, price=1, label="a")
        await client.logout(invalidate_token=False)
    assert [order.state for order in venue.orders.placed] == ["open"]
    assert venue.links[0].journal[-1].message["params"] == {"invalidate_token": False}


async def test_heartbeats_can_be_left_out(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue, Deribit(heartbeat_interval=None)):
        await trio.sleep(120)
        assert methods(venue.link) == ["public/auth"]


async def test_cancel_on_disconnect_needs_credentials(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        with pytest.raises(ConnectFailed, match=r"a setup request was refused: unauthorized \(code 13009\)"):
            async with trading(venue, Deribit(cancel_on_disconnect="account"), credentials=None):
                raise AssertionError("never entered")
        assert len(venue.dials) == 1


# --------------------------------------------------------------------------- authentication


def test_the_signature_is_that_of_the_documentation() -> None:
    signature = sign("AMANDASECRECT", 1576074319000, "1iqt2wls", "")
    assert signature == "56590594f97921b09b18f166befe0d1319b198bbcdad7ca73382de2f88fe9aa1"


def test_the_request_is_signed_with_the_clock_and_a_fresh_nonce() -> None:
    handler = DeribitAuth(
        grant="client_signature", wall_clock=lambda: 1576074319.0, entropy=lambda size: bytes(range(size))
    )
    request = handler.encode_auth_request({"client_id": "AMANDA", "client_secret": "AMANDASECRECT"})
    assert request["params"] == {
        "grant_type": "client_signature",
        "client_id": "AMANDA",
        "scope": "connection",
        "timestamp": 1576074319000,
        "nonce": "0001020304050607",
        "data": "",
        "signature": sign("AMANDASECRECT", 1576074319000, "0001020304050607"),
    }
    assert "AMANDASECRECT" not in repr(request)


async def test_a_signature_is_accepted_on_every_link_without_the_secret_leaving(autojump_clock: MockClock) -> None:
    handler = partial(DeribitAuth, grant="client_signature", wall_clock=lambda: NOW)
    async with venue_of() as venue, trading(venue, auth_handler=handler) as client:
        venue.drop()
        await back_on_link(venue, client, 2)
        assert [grants(link) for link in venue.links] == [["client_signature"]] * 2
        assert SECRET not in repr([link.journal for link in venue.links])


async def test_the_adapter_chooses_grant_and_scope(autojump_clock: MockClock) -> None:
    adapter = Deribit(grant="client_signature", scope="session:bot")
    async with Venue(credentials={"client": SECRET}) as venue, trading(venue, adapter):
        params = venue.link.journal[0].message["params"]
        assert (params["grant_type"], params["scope"]) == ("client_signature", "session:bot")


async def test_the_token_is_refreshed_on_the_living_link_while_messages_flow(autojump_clock: MockClock) -> None:
    async with venue_of(token_life=900.0) as venue, trading(venue) as client, trio.open_nursery() as nursery:
        nursery.start_soon(venue.feed, TICKER, 1.0)
        async with client.subscribe_to_ticker(BTC) as feed:
            heard = 0
            for _ in range(180):
                await trio.sleep(10)
                await client.get_account_summary("BTC")  # never refused: the token never expires
                heard += len(await feed.receive_batch())
        nursery.cancel_scope.cancel()
        assert heard == 1_800
        asked = [(each.at, each.message["params"]) for each in venue.link.journal if each.verb == "auth"]
        assert [round(at) for at, _ in asked] == [0, 840, 1680]
        assert [params.get("refresh_token") for _, params in asked] == [None, "refresh-token-1", "refresh-token-2"]
        assert (client.connection.epoch, len(venue.links)) == (1, 1)


@pytest.mark.parametrize(
    "refusal",
    [refuses(13004, "invalid_credentials"), refuses(-32602, "Invalid params"), with_fields(result={"what": 1})],
)
async def test_where_a_refresh_is_refused_the_credentials_are_used(refusal: Twist, autojump_clock: MockClock) -> None:
    async with venue_of(token_life=900.0) as venue, trading(venue) as client:
        venue.twist("public/auth", refusal)
        await trio.sleep(850)
        assert grants(venue.link) == ["client_credentials", "refresh_token", "client_credentials"]
        await client.get_account_summary("BTC")
        assert client.connection.epoch == 1


async def test_a_busy_service_is_not_asked_twice_for_a_refresh(autojump_clock: MockClock) -> None:
    async with venue_of(token_life=900.0) as venue, trading(venue) as client:
        venue.twist("public/auth", refuses(10028, "too_many_requests"))
        await trio.sleep(841)
        assert grants(venue.link) == ["client_credentials", "refresh_token"]
        await trio.sleep(10)
        assert grants(venue.link) == ["client_credentials", "refresh_token", "client_credentials"]
        assert client.connection.epoch == 1


async def test_the_token_of_a_session_survives_the_link_and_that_of_a_connection_does_not(
    autojump_clock: MockClock,
) -> None:
    for scope, expected in (("session:bot", "refresh_token"), ("connection", "client_credentials")):
        async with venue_of() as venue, trading(venue, Deribit(scope=scope)) as client:
            venue.drop()
            await back_on_link(venue, client, 2)
            assert [grants(link) for link in venue.links] == [["client_credentials"], [expected]]


async def test_other_credentials_do_not_use_the_token_of_the_first(autojump_clock: MockClock) -> None:
    async with Venue(credentials={"client": SECRET, "other": "other-secret"}) as venue, trading(venue) as client:
        await client.connection.authenticate({"client_id": "other", "client_secret": "other-secret"})
        assert grants(venue.link) == ["client_credentials"] * 2
        assert venue.link.journal[-1].message["params"]["client_id"] == "other"


async def test_invalid_credentials_are_fatal_and_not_tried_again(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        with pytest.raises(AuthFailed, match=r"invalid_credentials \(code 13004\)"):
            async with trading(
                venue,
                credentials={**CREDENTIALS, "client_secret": "wrong"},
                retry_first_connect=True,
                max_attempts=float("inf"),
            ):
                raise AssertionError("never entered")
        await trio.sleep(3_600)
        assert (len(venue.dials), methods(venue.link)) == (1, ["public/auth"])


async def test_credentials_that_are_revoked_later_end_the_session_on_the_next_link(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        with pytest.raises(AuthFailed):
            async with trading(venue) as client:
                venue.twist("public/auth", refuses(13004, "invalid_credentials"), times=None)
                venue.drop()
                await client.connection.wait_closed()
        await trio.sleep(3_600)
        assert len(venue.dials) == 2


@pytest.mark.parametrize(
    "credentials",
    ["token", {"client_id": "a"}, {"client_id": "a", "client_secret": 5}, {"client_id": "", "client_secret": "b"}],
)
async def test_credentials_of_another_kind_are_a_clear_error(credentials: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        with pytest.raises(ConfigError, match="credentials: Deribit takes a mapping: client_id and client_secret"):
            async with trading(venue, credentials=credentials):
                raise AssertionError("never entered")
        assert [methods(link) for link in venue.links] == [[]]


async def test_an_expired_token_is_replaced_once_and_the_request_repeated(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.expire_tokens()
        assert (await client.buy(BTC, 10, price=1, label="a"))["order"]["label"] == "a"
        assert methods(venue.link)[2:] == ["private/buy", "public/auth", "private/buy"]
        assert grants(venue.link) == ["client_credentials"] * 2
        assert venue.executions("a") == 1


async def test_a_request_that_is_unauthorized_twice_fails(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/get_account_summary", refuses(13009, "unauthorized"), times=None)
        with pytest.raises(JsonRpcError, match="unauthorized") as caught:
            await client.get_account_summary("BTC")
        assert (caught.value.code, caught.value.retry) == (13009, RetryAdvice.NEVER)
        assert methods(venue.link)[2:] == ["private/get_account_summary", "public/auth", "private/get_account_summary"]
        assert await client.get_time()


async def test_a_setup_that_is_unauthorized_twice_ends_the_session(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("private/enable_cancel_on_disconnect", refuses(13009, "unauthorized"), times=None)
        with pytest.raises(AuthFailed, match=r"unauthorized \(code 13009\)"):
            async with trading(venue, Deribit(cancel_on_disconnect="account"), retry_first_connect=True):
                raise AssertionError("never entered")
        await trio.sleep(3_600)
        assert (len(venue.dials), methods(venue.link).count("public/auth")) == (1, 2)


async def test_a_setup_that_is_unauthorized_once_goes_on(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("private/enable_cancel_on_disconnect", refuses(13009, "unauthorized"))
        async with trading(venue, Deribit(cancel_on_disconnect="account")):
            assert methods(venue.link) == [
                "public/auth",
                "public/set_heartbeat",
                "private/enable_cancel_on_disconnect",
                "public/auth",
                "private/enable_cancel_on_disconnect",
            ]


@pytest.mark.fault("F107", where="memory")
async def test_many_requests_that_are_unauthorized_at_once_authenticate_once(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client, trio.open_nursery() as nursery:
        venue.expire_tokens()
        for _ in range(20):
            nursery.start_soon(client.get_account_summary, "BTC")
        await venue.wait_until(lambda: len(venue.link.journal) >= 43)
        assert grants(venue.link) == ["client_credentials"] * 2


async def test_a_raw_channel_that_is_refused_is_authenticated_for_once_and_asked_again(
    autojump_clock: MockClock,
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.expire_tokens()
        async with client.subscribe_to_trades(BTC, "raw") as trades:
            assert methods(venue.link)[2:] == ["public/subscribe", "public/auth", "public/subscribe"]
            assert venue.tick(RAW) == await trades.receive()
        assert client.connection.epoch == 1


async def test_a_raw_channel_that_is_refused_for_good_costs_one_authentication_and_no_other_channel(
    autojump_clock: MockClock,
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("public/subscribe", refuses(13778, "raw_subscriptions_not_available_for_unauthorized"), times=2)
        with pytest.raises(SubscriptionRejected, match="raw_subscriptions_not_available"):
            async with client.subscribe_to_trades(BTC, "raw"):
                raise AssertionError("never entered")
        async with client.subscribe_to_ticker(BTC) as ticker:
            assert venue.tick(TICKER) == await ticker.receive()
        assert len(grants(venue.link)) == 2


async def test_a_batch_that_is_unauthorized_for_good_does_not_authenticate_for_each_channel(
    autojump_clock: MockClock,
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        rows = [{"channel": f"user.orders.{BTC}.{number}.raw", "params": {}} for number in range(50)]
        venue.twist("private/subscribe", refuses(13009, "unauthorized"), times=None)
        client.connection.import_subscriptions(json.dumps(rows))
        await trio.sleep(60)
        assert len(grants(venue.link)) == 2
        assert client.connection.health().status == "degraded"


@pytest.mark.fault("F122", where="memory")
async def test_what_only_looks_like_a_login_never_counts_as_one(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/auth", lookalike)
        with pytest.raises(AuthFailed, match="no answer to the authentication within 10 s"):
            async with trading(venue):
                raise AssertionError("never entered")
        assert methods(venue.link) == ["public/auth"]


async def test_a_login_is_believed_behind_what_only_looks_like_it(autojump_clock: MockClock) -> None:
    false = {"access_token": "x", "expires_in": 10, "refresh_token": "y"}
    event = {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": "auth", "data": false}, "result": false}
    async with venue_of() as venue:
        venue.twist("public/auth", preceded_by({**event, "id": 1}, {"jsonrpc": "2.0", "id": None, "result": false}))
        async with trading(venue) as client:
            await trio.sleep(100)
            assert grants(venue.link) == ["client_credentials"]  # the false one would have expired
            await client.get_account_summary("BTC")
        venue.assert_auth_came_first()


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize("life", [None, True, "900", -1, 0, 10**400, [900], 1e300])
async def test_a_lifetime_that_makes_no_sense_is_replaced(life: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/auth", with_result(expires_in=life))
        async with trading(venue):
            await trio.sleep(839)
            assert len(grants(venue.link)) == 1
            await trio.sleep(2)
            assert len(grants(venue.link)) == (2 if life not in (10**400, 1e300) else 1)


@pytest.mark.parametrize(
    "answer", [{}, None, "ok", [], {"access_token": 5}, {"access_token": ""}, {"expires_in": 5}, 7, True]
)
async def test_a_login_without_a_token_is_none(answer: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/auth", with_fields(result=answer), times=None)
        with pytest.raises(AuthFailed, match="the answer brings no access_token"):
            async with trading(venue):
                raise AssertionError("never entered")
        assert len(venue.dials) == 1


async def test_a_service_in_maintenance_is_tried_again(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/auth", refuses(11051, "system_maintenance"), times=3)
        async with trading(venue, retry_first_connect=True) as client:
            assert (client.connection.epoch, trio.current_time()) == (4, 15.0)


# --------------------------------------------------------------------------- heartbeats


async def test_a_test_request_is_answered_at_once(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue, Deribit(heartbeat_interval=10)) as client:
        await trio.sleep(3_600)
        tests = [asked for asked in venue.link.journal if asked.method == "public/test"]
        assert [round(asked.at) for asked in tests] == list(range(10, 3_600, 10))
        assert all(asked.at == pytest.approx(round(asked.at)) for asked in tests)
        with pytest.raises(trio.WouldBlock):
            client.connection.receive_nowait()  # nothing of it is an ordinary message
        venue.assert_ids_unique()


async def test_a_test_request_overtakes_thousands_of_queued_requests(autojump_clock: MockClock) -> None:
    limit = RateLimit(TokenBucket(100, 20.0))
    async with venue_of(limit=limit) as venue, trading(venue) as client, trio.open_nursery() as nursery:
        for _ in range(5_000):
            nursery.start_soon(client.get_account_summary, "BTC")
        for wait in (30, 60, 60):
            await trio.sleep(wait)
            venue.send({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}})
            sent_at = trio.current_time()
            await wait_all_tasks_blocked()
            assert [asked.at for asked in venue.link.journal if asked.method == "public/test"][-1] == sent_at
        assert client.connection.epoch == 1
        assert venue.worst_window(1.0) <= 120
        nursery.cancel_scope.cancel()


async def test_what_looks_like_a_heartbeat_and_is_none_is_an_ordinary_message(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        odd: list[Any] = [
            {"method": "heartbeat2", "params": {"type": "test_request"}},
            {"params": {"type": "test_request"}},
            {"id": 5, "method": ["heartbeat"]},
        ]
        for message in odd:
            venue.send(message)
        assert [await client.connection.receive() for _ in odd] == odd
        venue.send({"method": "heartbeat", "params": "test_request"})
        venue.send({"method": "heartbeat", "params": {"type": ["test_request"]}})
        await wait_all_tasks_blocked()
        assert "public/test" not in methods(venue.link)


# --------------------------------------------------------------------------- the rate


@pytest.mark.fault("F98", where="memory")
async def test_too_many_requests_slow_us_down_and_the_request_fails_typed(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client, client.connection.listen() as events:
        venue.twist("private/buy", refuses(10028, "too_many_requests"))
        with pytest.raises(JsonRpcError, match=r"too_many_requests \(code 10028\)") as caught:
            await client.buy(BTC, 10, price=1)
        assert (caught.value.code, caught.value.retry) == (10028, RetryAdvice.BACKOFF)
        asked_at = trio.current_time()
        await client.get_time()
        assert trio.current_time() >= asked_at + 1.0
        slowed = [event for event in await events.receive_batch() if isinstance(event, RateLimitSlowed)]
        assert len(slowed) == 1
        assert client.connection.epoch == 1


async def test_the_service_says_how_long_to_wait(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("public/get_time", refuses(10028, "too_many_requests", retry_after=7))
        with pytest.raises(JsonRpcError):
            await client.get_time()
        await client.get_time()
        assert trio.current_time() == pytest.approx(7.0)


async def test_the_limits_of_every_account_are_kept(autojump_clock: MockClock) -> None:
    limit = RateLimit(TokenBucket(100, 20.0), closes=True)
    async with venue_of(limit=limit) as venue, trading(venue) as client, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(client.get_time)
            nursery.start_soon(partial(client.buy, BTC, 1, price=1, label=str(number)))
        await venue.wait_until(lambda: len(venue.orders.placed) == 200)
        orders = [asked.at for asked in venue.link.journal if asked.method == "private/buy"]
        assert all(late - early >= 1.0 for early, late in zip(orders, orders[25:], strict=False))
        assert client.connection.epoch == 1
    venue.assert_no_order_twice()


async def test_a_subscription_refused_for_its_rate_is_asked_for_again(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("public/subscribe", refuses(10028, "too_many_requests"))
        async with client.subscribe_to_ticker(BTC) as ticker:
            assert venue.tick(TICKER) == await ticker.receive()
        assert trio.current_time() >= 1.0


# --------------------------------------------------------------------------- books


async def test_a_book_out_of_step_is_told_and_begins_anew_on_the_same_link(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        notices = FeedOptions(notices=True)
        async with (
            client.subscribe_to_book(BTC, feed=notices) as book,
            client.subscribe_to_ticker(BTC) as ticker,
        ):
            first = venue.tick(BOOK)
            venue.skip(BOOK)
            venue.tick(BOOK)
            venue.tick(TICKER)
            await wait_all_tasks_blocked()
            last = venue.tick(BOOK)
            await wait_all_tasks_blocked()
            snapshot, change, gap, resynced, anew, *rest = await book.receive_batch()
            assert (snapshot["type"], change) == ("snapshot", first)
            assert isinstance(gap, Gap)
            assert (gap.channel, gap.outcome, gap.epoch_from, gap.epoch_to) == (BOOK, "lost", 1, 1)
            assert isinstance(resynced, Resynced)
            assert (anew["type"], anew["change_id"]) == ("snapshot", last["prev_change_id"])
            assert rest == [last]
            assert ticker.waiting == 1
            assert methods(venue.link)[-2:] == ["public/unsubscribe", "public/subscribe"]
        assert len(venue.links) == 1


async def test_each_reader_of_a_book_begins_with_a_snapshot(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client, client.subscribe_to_book(BTC) as first:
        venue.tick(BOOK)
        await wait_all_tasks_blocked()
        async with client.subscribe_to_book(BTC) as second:
            await wait_all_tasks_blocked()
            last = venue.tick(BOOK)
            await wait_all_tasks_blocked()
            assert [data["type"] for data in await first.receive_batch()] == ["snapshot", "change", "change"]
            assert [data["type"] for data in await second.receive_batch()] == ["snapshot", "change"]
        async with client.subscribe_to_book(BTC) as third:
            await wait_all_tasks_blocked()
            (snapshot,) = await third.receive_batch()
            assert (snapshot["type"], snapshot["change_id"]) == ("snapshot", last["change_id"])
            assert first.waiting == 0


async def test_a_book_equals_the_true_one_whatever_is_skipped_repeated_or_swapped(autojump_clock: MockClock) -> None:
    sides: dict[str, dict[float, float]] = {"bids": {}, "asks": {}}

    def apply(data: dict[str, Any]) -> None:
        for side, levels in sides.items():
            if data["type"] == "snapshot":
                levels.clear()
            for action, price, amount in data[side]:
                if action == "delete":
                    levels.pop(price, None)
                else:
                    levels[price] = amount

    async with venue_of() as venue, trading(venue) as client, client.subscribe_to_book(BTC) as book:
        for round_ in range(30):
            venue.tick(BOOK)
            (venue.skip, venue.repeat, venue.swap, lambda channel: venue.drop())[round_ % 4](BOOK)
            await trio.sleep(10)
            await client.connection.wait_ready()
            venue.tick(BOOK)
            await wait_all_tasks_blocked()
            for data in await book.receive_batch():
                apply(data)
            truth = venue.book(BOOK)
            assert sides == {"bids": truth.bids, "asks": truth.asks}


async def test_a_channel_that_is_not_granted_raises_and_the_others_stand(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        with pytest.raises(SubscriptionRejected, match="NONE-PERPETUAL"):
            async with client.subscribe_to_ticker("NONE-PERPETUAL"):
                raise AssertionError("never entered")
        async with client.subscribe_to_trades(BTC) as trades, client.subscribe_to_ticker(BTC) as ticker:
            venue.revoke(TRADES)
            venue.drop()
            await back_on_link(venue, client, 2)
            assert venue.subscribed() == [TICKER]
            assert client.connection.health().status == "degraded"
            with pytest.raises(SubscriptionRejected):
                await trades.receive()
            assert venue.tick(TICKER) == await ticker.receive()


# --------------------------------------------------------------------------- orders on a bad day


async def test_a_link_lost_with_an_order_under_way_leaves_its_outcome_unknown_and_never_resends(
    autojump_clock: MockClock,
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/buy", cut_before)
        with pytest.raises(OutcomeUnknown):
            await client.buy(BTC, 10, price=1, label="a")
        link = await back_on_link(venue, client, 2)
        await trio.sleep(60)
        assert "private/buy" not in methods(link)
        assert venue.executions("a") == 1
    venue.assert_no_order_twice()


async def test_what_only_reads_is_asked_again_on_the_next_link(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/get_account_summary", cut_before)
        assert (await client.get_account_summary("BTC"))["currency"] == "BTC"
        assert len(venue.links) == 2


async def test_an_order_that_is_not_answered_can_be_cancelled_and_its_answer_is_nobodys(
    autojump_clock: MockClock,
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/buy", after(5.0))
        with trio.move_on_after(1.0) as scope:
            await client.buy(BTC, 10, price=1, label="a")
        assert scope.cancelled_caught
        await trio.sleep(10)
        assert await client.get_time()
        with pytest.raises(trio.WouldBlock):
            client.connection.receive_nowait()


# --------------------------------------------------------------------------- hostile fields

ODD: list[Any] = [
    [],
    [1, None, "x", []],
    5,
    1e308,
    None,
    True,
    "text",
    {},
    {"id": None},
    {"id": {}},
    {"id": [1]},
    {"id": 10**30},
    {"id": 1.5, "result": 1},
    {"id": "1", "result": 1},
    {"jsonrpc": "2.0", "id": 99_999, "result": {}},
    {"jsonrpc": "2.0", "id": None, "error": {"code": 13009, "message": "unauthorized"}},
    {"method": "subscription"},
    {"method": "subscription", "params": None},
    {"method": "subscription", "params": []},
    {"method": "subscription", "params": {"channel": None, "data": {}}},
    {"method": "subscription", "params": {"channel": ["a"], "data": {}}},
    {"method": "subscription", "params": {"channel": "nobody.hears.this", "data": {}}},
    {"method": "subscription", "params": {"channel": TICKER}},
    {"method": 5},
    {"method": None, "id": 1, "result": 1},
    {"method": "heartbeat"},
    {"method": "heartbeat", "params": []},
    "not JSON at all {",
    '{"id": 1e999}',
    "[" * 5_000,
]


@pytest.mark.fault("F121", where="memory")
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
async def test_nothing_that_the_service_says_unasked_harms_what_is_under_way(
    odd: Any, autojump_clock: MockClock
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        async with client.subscribe_to_ticker(BTC) as ticker, client.subscribe_to_book(BTC) as book:
            await book.receive()
            venue.twist("private/buy", preceded_by(odd))
            venue.twist("private/buy", followed_by(odd))
            for label in "ab":
                assert (await client.buy(BTC, 10, price=1, label=label))["order"]["label"] == label
            venue.send(odd)
            truth = venue.tick(TICKER)
            change = venue.tick(BOOK)
            await wait_all_tasks_blocked()
            assert [item for item in await ticker.receive_batch() if item is not None] == [truth]
            assert await book.receive() == change
            assert (client.connection.state, client.connection.epoch) == (State.READY, 1)


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        [],
        "text",
        {"type": "change", "change_id": "1001", "prev_change_id": "1000"},
        {"type": "change", "change_id": None, "prev_change_id": 1000},
        {"type": "change", "change_id": 10**400, "prev_change_id": {}},
        {"type": "change", "change_id": True, "prev_change_id": 1.5},
        {"type": ["snapshot"], "change_id": -1},
        {"type": 7},
        {"type": "change", "change_id": 10**30},
    ],
)
async def test_an_odd_change_of_a_book_never_hides_a_gap(data: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        async with client.subscribe_to_book(BTC, feed=FeedOptions(notices=True)) as book:
            venue.tick(BOOK)
            venue.send({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": BOOK, "data": data}})
            venue.skip(BOOK)
            venue.tick(BOOK)
            await wait_all_tasks_blocked()
            last = venue.tick(BOOK)
            await wait_all_tasks_blocked()
            items = await book.receive_batch()
            assert any(isinstance(item, Gap) for item in items)
            assert items[-1] == last
            assert client.connection.epoch == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ({"code": "10028", "message": "too_many_requests"}, 0, "too_many_requests"),
        ({"code": 10028.0, "message": "too_many_requests"}, 0, "too_many_requests"),
        ({"code": 10**400, "message": 5}, 0, "without a message"),
        ({"code": True}, 0, "without a message"),
        ({}, 0, "without a message"),
        ("refused", 0, "refused"),
        ([1], 0, "list"),
        (5, 0, "int"),
        ({"code": 10009, "message": "not_enough_funds\x1b[2J"}, 10009, r"not_enough_funds\\x1b"),
        ({"code": 10004, "message": "x" * 10_000}, 10004, "x…"),
    ],
)
async def test_an_odd_error_is_a_typed_error_all_the_same(
    error: Any, code: int, words: str, autojump_clock: MockClock
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/buy", lambda answer: [{"id": answer["id"], "error": error}])
        with pytest.raises(JsonRpcError, match=words) as caught:
            await client.buy(BTC, 10, price=1)
        assert caught.value.code == code
        assert await client.get_time()


@pytest.mark.parametrize("result", [None, "1700000000000", 1.5, [], {}])
async def test_a_result_of_another_type_is_a_bad_message(result: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("public/get_time", with_fields(result=result))
        with pytest.raises(BadMessage, match="the result of public/get_time is a"):
            await client.get_time()
        venue.twist("public/get_instruments", with_fields(result="none"))
        with pytest.raises(BadMessage, match="the result of public/get_instruments is a str, not a list"):
            await client.get_instruments("BTC")


@pytest.mark.parametrize("result", [None, "ok", {}, [5, None], [BTC], {TICKER: True}])
async def test_a_subscription_whose_answer_lists_it_not_is_refused(result: Any, autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("public/subscribe", with_fields(result=result))
        with pytest.raises(SubscriptionRejected, match="did not grant it"):
            async with client.subscribe_to_ticker(BTC):
                raise AssertionError("never entered")
        assert await client.get_time()


async def test_an_answer_without_an_id_answers_nobody(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        venue.twist("private/buy", with_fields(id=None))
        with trio.move_on_after(60) as scope:
            await client.buy(BTC, 10, price=1)
        assert scope.cancelled_caught
        assert (await client.connection.receive())["result"]["order"]["amount"] == 10


async def test_a_setup_that_is_not_answered_is_a_failed_attempt(autojump_clock: MockClock) -> None:
    async with venue_of() as venue:
        venue.twist("public/set_heartbeat", never)
        async with trading(venue, retry_first_connect=True) as client:
            assert client.connection.epoch == 2


# --------------------------------------------------------------------------- what users get wrong

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("method", "arguments", "field"),
    [
        ("buy", {"instrument": "", "amount": 1, "price": 1}, "instrument"),
        ("buy", {"instrument": "BTC PERPETUAL", "amount": 1, "price": 1}, "instrument"),
        ("buy", {"instrument": 5, "amount": 1, "price": 1}, "instrument"),
        ("buy", {"instrument": BTC, "amount": 0, "price": 1}, "amount"),
        ("buy", {"instrument": BTC, "amount": -1, "price": 1}, "amount"),
        ("buy", {"instrument": BTC, "amount": NAN, "price": 1}, "amount"),
        ("buy", {"instrument": BTC, "amount": "1", "price": 1}, "amount"),
        ("buy", {"instrument": BTC, "amount": True, "price": 1}, "amount"),
        ("sell", {"instrument": BTC, "amount": 1, "price": NAN}, "price"),
        ("sell", {"instrument": BTC, "amount": 1, "price": INF}, "price"),
        ("sell", {"instrument": BTC, "amount": 1, "price": "30000"}, "price"),
        ("sell", {"instrument": BTC, "amount": 1}, "price"),
        ("sell", {"instrument": BTC, "amount": 1, "price": 1, "type": ""}, "type"),
        ("sell", {"instrument": BTC, "amount": 1, "price": 1, "label": "x" * 65}, "label"),
        ("sell", {"instrument": BTC, "amount": 1, "price": 1, "label": 5}, "label"),
        ("sell", {"instrument": BTC, "amount": 1, "price": 1, "trigger_price": NAN}, "trigger_price"),
        ("sell", {"instrument": BTC, "amount": 1, "price": 1, "instrument_name": ETH}, "instrument_name"),
        ("cancel", {"order_id": ""}, "order_id"),
        ("cancel", {"order_id": 5}, "order_id"),
        ("get_account_summary", {"currency": None}, "currency"),
        ("get_instruments", {"currency": ""}, "currency"),
        ("get_instruments", {"currency": "BTC", "kind": 5}, "kind"),
        ("get_order_book", {"instrument": BTC, "depth": 0}, "depth"),
        ("get_order_book", {"instrument": BTC, "depth": 2.5}, "depth"),
        ("hello", {"client_name": "", "client_version": "1"}, "client_name"),
        ("hello", {"client_name": "a", "client_version": 1}, "client_version"),
    ],
)
async def test_a_call_that_cannot_be_right_is_refused_before_anything_is_sent(
    method: str, arguments: dict[str, Any], field: str, autojump_clock: MockClock
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        with pytest.raises(ConfigError) as caught:
            await getattr(client, method)(**arguments)
        assert caught.value.field == field
        assert len(venue.link.journal) == 2


@pytest.mark.parametrize(
    ("method", "arguments", "field"),
    [
        ("subscribe_to_ticker", {"instrument": "BTC.x"}, "instrument"),
        ("subscribe_to_ticker", {"instrument": BTC, "interval": "1s"}, "interval"),
        ("subscribe_to_ticker", {"instrument": BTC, "interval": 100}, "interval"),
        ("subscribe_to_trades", {"instrument": "a.b.c"}, "instrument"),
        ("subscribe_to_trades", {"instrument": "a."}, "instrument"),
        ("subscribe_to_book", {"instrument": BTC, "depth": 5}, "depth"),
        ("subscribe_to_book", {"instrument": BTC, "depth": True}, "depth"),
        ("subscribe_to_book", {"instrument": BTC, "group": "none"}, "group"),
        ("subscribe_to_book", {"instrument": BTC, "group": 5, "depth": 10}, "group"),
        ("subscribe_to_orders", {"instrument": None}, "instrument"),
        ("subscribe_to_own_trades", {"interval": ""}, "interval"),
    ],
)
async def test_a_channel_that_cannot_be_is_refused_by_the_call_itself(
    method: str, arguments: dict[str, Any], field: str, autojump_clock: MockClock
) -> None:
    async with venue_of() as venue, trading(venue) as client:
        with pytest.raises(ConfigError) as caught:
            getattr(client, method)(**arguments)
        assert caught.value.field == field


def test_a_channel_has_no_params() -> None:
    with pytest.raises(ConfigError, match="a channel of Deribit takes none"):
        Deribit().key(BOOK, {"depth": 10})
    with pytest.raises(ConfigError, match="channel: must be a text"):
        Deribit().key(5, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grant", "password"),
        ("scope", "session:"),
        ("scope", None),
        ("heartbeat_interval", 9),
        ("heartbeat_interval", "30"),
        ("heartbeat_interval", NAN),
        ("heartbeat_interval", True),
        ("cancel_on_disconnect", True),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Deribit(**{field: value})
    assert caught.value.field == field


# --------------------------------------------------------------------------- secrets


async def test_neither_secret_nor_tokens_are_ever_shown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    hidden = [SECRET, "access-token-1", "refresh-token-1", "access-token-2", "refresh-token-2"]

    def echoes(code: int) -> Twist:
        return refuses(code, f"you said {' '.join(hidden)}", reason=SECRET)

    async with venue_of(token_life=100.0) as venue:
        with pytest.raises(AuthFailed) as fatal:
            async with trading(venue) as client, client.connection.listen(messages=True) as events:
                await trio.sleep(51)  # the token is refreshed
                assert grants(venue.link) == ["client_credentials", "refresh_token"]
                for twist in (echoes(10009), echoes(13009), echoes(13009)):
                    venue.twist("private/buy", twist)
                for _ in range(2):
                    with pytest.raises(JsonRpcError) as caught:
                        await client.buy(BTC, 10, price=1)
                    shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
                    shown += [explain(caught.value), str(caught.value.message)]
                shown += [repr(client), repr(client.connection), repr(client.connection.health())]
                shown += [repr(client.connection.statistics()), repr(client.adapter)]
                venue.twist("public/auth", echoes(13004), times=None)
                await wait_all_tasks_blocked()
                shown += [repr(event) for event in await events.receive_batch() if isinstance(event, Event)]
                venue.drop()
                await client.connection.wait_closed()
    shown += ["".join(traceback.format_exception(fatal.value)), explain(fatal.value), caplog.text]
    text = "\n".join(shown)
    assert "you said" in text
    assert [each for each in hidden if each in text] == []


async def test_after_the_session_every_call_says_that_it_is_over(autojump_clock: MockClock) -> None:
    async with venue_of() as venue, trading(venue) as client:
        await client.logout()
        with pytest.raises(SessionOver):
            await client.buy(BTC, 10, price=1)
