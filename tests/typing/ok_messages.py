"""What a program receives, and of what type checkers take it to be: no line of this may be refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, assert_type

import msgspec
import trio

from trio_nova import (
    Adapter,
    Client,
    Codec,
    Config,
    ConfigOptions,
    Connection,
    Delivery,
    Feed,
    FeedOptions,
    JsonCodec,
    MixedCodec,
    RawCodec,
    Receiver,
    Registry,
    Url,
    open_connection,
    profiles,
    run_connection,
)
from trio_nova.codecs import BinaryCodec, LengthPrefixed, Lines, MsgpackCodec, StreamCodec, ZlibStream

URL = "wss://venue.example"


class Trade(msgspec.Struct):
    """A message of a venue."""

    price: float


class Quote(msgspec.Struct):
    """Another one."""

    bid: float


class Listing:
    """A codec that knows nothing of `Codec`."""

    def encode(self, message: object) -> str:
        return str(message)

    def decode(self, payload: str | bytes) -> list[str]:
        return str(payload).splitlines()


class Venue(Adapter[Trade]):
    """A service that sends trades."""

    host = "venue.example"

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(type=Trade)}


class Plain(Adapter):
    """A service that does not say what it sends."""

    host = "plain.example"


class VenueClient(Client):
    """A client with words of its own."""

    adapter = Venue()
    defaults: ClassVar[ConfigOptions] = {"when_down": "fail", "ping_interval": 5.0}


async def without_a_codec() -> None:
    async with open_connection(URL) as conn:
        assert_type(conn, Connection[str | bytes])
        assert_type(await conn.receive(), str | bytes)
        assert_type(conn.receive_nowait(), str | bytes)
        assert_type(await conn.receive_batch(), list[str | bytes])
        async for message in conn:
            assert_type(message, str | bytes)
        async for delivery in conn.deliveries():
            assert_type(delivery, Delivery[str | bytes])
            assert_type(delivery.payload, str | bytes)
        assert_type(conn.hand_over(), Receiver[str | bytes])
    async with open_connection(Url.parse(URL), ping_interval=5.0, compression="deflate", config=None) as conn:
        assert_type(conn, Connection[str | bytes])


async def with_a_codec() -> None:
    async with open_connection(URL, codec=JsonCodec(type=Trade)) as trades:
        assert_type(trades, Connection[Trade])
        assert_type((await trades.receive()).price, float)
    async with open_connection(URL, codec=JsonCodec(list[Trade], decimals=True), ping_interval=5.0) as lists:
        assert_type(lists, Connection[list[Trade]])
    async with open_connection(URL, codec=JsonCodec()) as untyped:
        assert_type(untyped, Connection[Any])
    async with open_connection(URL, codec=MixedCodec()) as mixed:
        assert_type(mixed, Connection[Any])
    async with open_connection(URL, codec=RawCodec()) as raw:
        assert_type(raw, Connection[str | bytes])
    async with open_connection(URL, codec=Listing()) as listing:
        assert_type(listing, Connection[list[str]])


def parse(payload: bytes) -> Trade:
    """Return what a function reads."""
    return Trade(float(payload))


async def with_other_codecs() -> None:
    async with open_connection(URL, codec=MsgpackCodec(type=Trade)) as packed:
        assert_type(packed, Connection[Trade])
    async with open_connection(URL, codec=BinaryCodec(encode=bytes, decode=parse)) as binary:
        assert_type(binary, Connection[Trade])
    async with open_connection(URL, codec=ZlibStream(Lines(JsonCodec(type=Trade)))) as inflated:
        assert_type(inflated, Connection[Trade])
    assert_type(MsgpackCodec(), MsgpackCodec[Any])
    assert_type(LengthPrefixed(RawCodec()), LengthPrefixed[str | bytes])


async def with_a_codec_of_a_link(stream: StreamCodec[Trade]) -> None:
    async with open_connection(URL, codec=stream) as conn:
        assert_type(conn, Connection[Trade])
    assert_type(Config(codec=stream), Config[Trade])


async def open_either(either: Codec[Trade | Quote]) -> None:
    async with open_connection(URL, codec=either) as conn:
        assert_type(await conn.receive(), Trade | Quote)


async def with_a_codec_of_a_union() -> None:
    assert_type(JsonCodec(type=Trade | Quote), JsonCodec[Any])  # a union is no type: say beside what it gives
    await open_either(JsonCodec(type=Trade | Quote))


async def of_an_adapter() -> None:
    async with open_connection(Venue()) as made:
        assert_type(made, Connection[Trade])
    async with open_connection(Venue, credentials="token") as of_class:
        assert_type(of_class, Connection[Trade])
    async with open_connection(Plain()) as plain:
        assert_type(plain, Connection[Any])


async def with_a_config() -> None:
    async with open_connection(URL, config=profiles.FINANCIAL) as conn:
        assert_type(conn, Connection[Any])
    async with open_connection(URL, config=Config(codec=JsonCodec(type=Trade)), pong_timeout=1.0) as trades:
        assert_type(trades, Connection[Trade])
    bare: Config = Config()
    async with open_connection(URL, config=bare) as conn:
        assert_type(conn, Connection[Any])


async def of_a_channel(conn: Connection) -> None:
    assert_type(conn, Connection[Any])
    async with conn.subscribe("trades") as untyped:
        assert_type(untyped, Feed[Any])
    async with conn.subscribe(["a", "b"], type=Trade, feed=FeedOptions(size=10), params={"depth": 10}) as feed:
        assert_type(feed, Feed[Trade])
        assert_type(await feed.receive(), Trade)
        async for trade in feed:
            assert_type(trade, Trade)
        assert_type(feed.deliveries(), Receiver[Delivery[Trade]])
    async with conn.subscribe("both", type=Trade | Quote) as either:
        assert_type(either, Feed[Any])
    async with VenueClient.open() as client:
        assert_type(client, VenueClient)
        assert_type(client.connection, Connection[Any])
        async with client.subscribe("trades", type=Trade) as feed:
            assert_type(feed, Feed[Trade])


async def of_an_answer(conn: Connection) -> None:
    assert_type(await conn.request({"op": "last"}, type=Trade), Trade)
    assert_type(await conn.request({"op": "all"}, type=list[Trade], idempotent=True), list[Trade])
    assert_type(await conn.request({"op": "last"}), Any)
    assert_type(await conn.request({"op": "last"}, type=Trade | None), Any)


async def in_other_ways() -> None:
    async with Registry().open_connection("one", URL, codec=JsonCodec(type=Trade)) as conn:
        assert_type(conn, Connection[Trade])
    async with trio.open_nursery() as nursery:
        started: Connection[Trade] = await nursery.start(run_connection, Venue())
        show(started)


def show(conn: Connection[Trade | Quote]) -> None:
    """Take any connection that gives nothing else."""


async def give_what_is_narrower() -> None:
    async with open_connection(URL, codec=JsonCodec(type=Trade)) as conn:
        show(conn)
