"""The exchange of the demonstration: strict with a client, and exact in what it writes down."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from trio_nova.demo.exchange import LARGEST_ORDER, Exchange
from trio_nova.demo.journal import RateCount, Visit, schedule
from trio_nova.demo.market import BOOK, CHANNELS, DELISTED, STATUS, Market, apply_levels


@asynccontextmanager
async def dialled(exchange: Exchange) -> AsyncIterator[WebSocketConnection]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(exchange.serve)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(5):
                yield await wrap_client_stream(nursery, stream, "127.0.0.1", "/")
        nursery.cancel_scope.cancel()


async def tell(client: WebSocketConnection, **message: Any) -> None:
    await client.send_message(msgspec.json.encode(message).decode())


async def ask(client: WebSocketConnection, **message: Any) -> Any:
    await tell(client, **message)
    return msgspec.json.decode(await client.get_message())


async def sign_in(client: WebSocketConnection, exchange: Exchange) -> None:
    reply = await ask(client, type="auth", token=await exchange.issue_token())
    assert reply["type"] == "auth_success"


async def closed(client: WebSocketConnection) -> tuple[int, str | None]:
    with pytest.raises(ConnectionClosed) as caught:
        await client.get_message()
    assert caught.value.reason is not None
    return caught.value.reason.code, caught.value.reason.reason


@pytest.mark.parametrize(
    "early",
    [
        {"type": "subscribe", "channel": STATUS},
        {"type": "order", "id": 1, "order": {"number": 1, "price": 1.0, "quantity": 1}},
    ],
)
async def test_who_does_not_authenticate_first_is_dismissed(early: dict[str, Any]) -> None:
    exchange = Exchange(schedule(20.0))
    async with dialled(exchange) as client:
        await tell(client, **early)
        assert await closed(client) == (1008, "authenticate first")
    assert exchange.journal.executed == {}
    assert [(visit.phases, visit.granted) for visit in exchange.journal.visits] == [([early["type"]], [])]


async def test_a_token_is_good_for_one_link() -> None:
    exchange = Exchange(schedule(20.0))
    token = await exchange.issue_token()
    async with dialled(exchange) as client:
        assert (await ask(client, type="auth", token=token))["type"] == "auth_success"
        assert (await ask(client, type="auth", token=token))["type"] == "auth_error"
        assert (await closed(client))[0] == 1008
    assert exchange.journal.tokens == [token]


async def test_a_channel_is_granted_once_and_a_book_begins_with_its_snapshot() -> None:
    exchange = Exchange(schedule(20.0))
    async with dialled(exchange) as client:
        await sign_in(client, exchange)
        assert (await ask(client, type="subscribe", channel=BOOK))["type"] == "subscribed"
        assert msgspec.json.decode(await client.get_message())["snapshot"] is True
        assert (await ask(client, type="subscribe", channel=BOOK))["reason"] == "asked for already"
        exchange.market.listed.discard(DELISTED)
        assert (await ask(client, type="subscribe", channel=DELISTED))["reason"] == "delisted"
        (visit,) = exchange.journal.visits
        assert (visit.asked, visit.granted) == ([BOOK, BOOK, DELISTED], [BOOK])
        assert exchange.journal.refused == {BOOK, DELISTED}
        assert visit.phases == ["auth", "subscribe"]


async def test_an_order_is_executed_or_declined_and_answered_under_its_id() -> None:
    exchange = Exchange(schedule(20.0))
    order = {"number": 7, "price": 1.0, "quantity": LARGEST_ORDER}
    async with dialled(exchange) as client:
        await sign_in(client, exchange)
        assert await ask(client, type="order", id=3, order=order) == {"id": 3, "executed": order}
        reply = await ask(client, type="order", id=4, order={**order, "number": 8, "quantity": LARGEST_ORDER + 1})
        assert reply == {"id": 4, "error": {"message": "the order is too large"}}
    assert (exchange.journal.executed, exchange.journal.declined) == ({7: 1}, {8})


async def test_who_sends_too_much_is_dismissed() -> None:
    exchange = Exchange(schedule(20.0))
    exchange.journal.rate.limit = 3
    async with dialled(exchange) as client:
        await sign_in(client, exchange)
        for _ in range(3):
            await tell(client, type="unsubscribe", channel=STATUS)
        assert await closed(client) == (1008, "too many messages")
    assert (exchange.journal.rate.worst, exchange.journal.rate.turned_away) == (4, 1)


# --------------------------------------------------------------------------- its books


def test_the_rate_is_counted_in_every_window() -> None:
    rate = RateCount(limit=2, period=1.0)
    assert [rate.admit(at) for at in (0.0, 0.9, 1.0, 1.5, 2.6)] == [True, True, True, False, True]
    assert (rate.worst, rate.turned_away, rate.current(9.0)) == (3, 1, 0)


def test_a_visit_remembers_the_phases_in_their_order() -> None:
    visit = Visit()
    for kind in ("auth", "subscribe", "subscribe", "order", "order", "subscribe"):
        visit.note(kind)
    assert visit.phases == ["auth", "subscribe", "order", "subscribe"]


def test_the_numbers_of_each_channel_have_no_holes() -> None:
    market = Market(random.Random(0))
    heard: dict[str, list[int]] = {channel: [] for channel in CHANNELS}
    for step in range(1, 401):
        for news in market.step(step):
            heard[news["channel"]].append(news["seq"])
    last = market.close()
    heard[last["channel"]].append(last["seq"])
    assert all(seqs == list(range(1, market.emitted[channel] + 1)) for channel, seqs in heard.items())
    assert all(heard.values())


def test_what_is_delisted_says_nothing_more() -> None:
    market = Market(random.Random(0))
    market.listed.discard(DELISTED)
    assert not any(news["channel"] == DELISTED for step in range(1, 401) for news in market.step(step))


def test_a_snapshot_and_the_changes_behind_it_make_the_book() -> None:
    market = Market(random.Random(0))
    for step in range(1, 201):
        list(market.step(step))
    mine = dict(market.snapshot()["levels"])
    for step in range(201, 401):
        for news in market.step(step):
            if news["channel"] == BOOK:
                apply_levels(mine, news["levels"])
    assert mine == market.levels
    assert 0 not in mine.values()
