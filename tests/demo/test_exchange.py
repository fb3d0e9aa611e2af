"""The exchange of the demonstration: strict with a client, and exact in what it writes down."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from trio_nova.demo import market
from trio_nova.demo.exchange import LARGEST_ORDER, Exchange
from trio_nova.demo.journal import Fault, RateCount, Visit, schedule
from trio_nova.demo.market import BOOK, CHANNELS, DELISTED, STATUS, Market, apply_levels
from trio_nova.testing import Opcode, encode_frame


@asynccontextmanager
async def dialled(exchange: Exchange) -> AsyncIterator[WebSocketConnection]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(exchange.serve)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.fail_after(100):
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


# --------------------------------------------------------------------------- its goodbye


REQUEST = b"\r\n".join(
    (
        b"GET / HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==",
        b"Sec-WebSocket-Version: 13",
        b"",
        b"",
    )
)
GOODBYE = encode_frame(Opcode.CLOSE, (1012).to_bytes(2) + b"service restart")
ORDER = b'{"type":"order","id":1,"order":{"number":1,"price":1.0,"quantity":1}}'
ANSWER = encode_frame(Opcode.CLOSE, (1012).to_bytes(2), mask=True)


async def hear(stream: trio.SocketStream, wanted: bytes) -> bytes:
    """Read until these bytes have come; b"": until the exchange has hung up."""
    heard = b""
    while not wanted or wanted not in heard:
        data = await stream.receive_some()
        if not data:
            break
        heard += data
    assert wanted in heard
    return heard


@asynccontextmanager
async def told_of_a_restart(
    exchange: Exchange, *channels: str, expect: bytes = b""
) -> AsyncIterator[trio.SocketStream]:
    """Sign a client in that says nothing of itself, and read until the exchange has said goodbye, and this before."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(exchange.serve)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(REQUEST)
                await hear(stream, b"\r\n\r\n")
                auth = msgspec.json.encode({"type": "auth", "token": await exchange.issue_token()})
                await stream.send_all(encode_frame(Opcode.TEXT, auth, mask=True))
                for channel in channels:
                    subscribe = msgspec.json.encode({"type": "subscribe", "channel": channel})
                    await stream.send_all(encode_frame(Opcode.TEXT, subscribe, mask=True))
                    await hear(stream, b'"subscribed"')
                exchange.open()
                heard = await hear(stream, GOODBYE)
                assert expect in heard
                yield stream
            nursery.cancel_scope.cancel()


async def test_a_ping_that_meets_the_goodbye_of_the_exchange_is_answered() -> None:
    async with told_of_a_restart(Exchange([(0.0, Fault.RESTART)])) as stream:
        await stream.send_all(encode_frame(Opcode.PING, b"still there?", mask=True))
        await hear(stream, encode_frame(Opcode.PONG, b"still there?"))
        await stream.send_all(ANSWER)
        await hear(stream, b"")


async def test_nobody_is_struck_before_each_of_his_channels_has_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(market._EVERY, STATUS, 120)  # three times the calm that comes before a fault
    async with told_of_a_restart(Exchange([(0.0, Fault.RESTART)]), STATUS, expect=b'"state":"open"'):
        pass


@pytest.mark.parametrize(
    "crossing",
    [
        pytest.param(encode_frame(Opcode.PING, b"1", mask=True) * 3 + ANSWER, id="pings"),
        pytest.param(encode_frame(Opcode.TEXT, ORDER, mask=True) + ANSWER, id="an order"),
        pytest.param(encode_frame(Opcode.TEXT, ORDER, mask=True, fin=False) + ANSWER, id="half a message"),
        pytest.param(encode_frame(Opcode.CLOSE, (1000).to_bytes(2), mask=True), id="the client's goodbye"),
        pytest.param(ANSWER + ANSWER, id="two answers"),
        pytest.param(encode_frame(Opcode.TEXT, ORDER), id="no mask"),
        pytest.param(b"rubbish", id="rubbish"),
        pytest.param(ANSWER[:3], id="half an answer"),
    ],
)
async def test_whatever_crosses_the_goodbye_of_the_exchange_the_exchange_lives(
    crossing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_nova.demo.exchange.PATIENCE", 0.5)
    exchange = Exchange([(0.0, Fault.RESTART)])
    async with told_of_a_restart(exchange) as stream:
        await stream.send_all(crossing)
        with suppress(trio.BrokenResourceError):  # where it hung up before it had read all
            await hear(stream, b"")
    assert exchange.journal.executed == {}


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
