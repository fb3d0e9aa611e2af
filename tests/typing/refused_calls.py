"""Calls that are wrong: checkers must refuse each line that is marked, for the word in its mark, and no other."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from trio_nova import (
    Adapter,
    Client,
    Config,
    ConfigOptions,
    Connection,
    Feed,
    JsonCodec,
    Registry,
    open_connection,
    run_connection,
)

URL = "wss://venue.example"


class Trade(msgspec.Struct):
    """A message of a venue."""

    price: float


class Venue(Adapter[Trade]):
    """A service that sends trades."""

    host = "venue.example"


class VenueClient(Client):
    """A client with words of its own."""

    adapter = Venue()
    defaults: ClassVar[ConfigOptions] = {"when_dwn": "fail"}  # error: when_dwn


class OneWay:
    """No codec, as it cannot decode."""

    def encode(self, message: object) -> str:
        return str(message)


async def misspelt(conn: Connection[Any]) -> None:
    open_connection(URL, ping_intervall=5.0)  # error: ping_intervall
    open_connection(Venue(), credential="token")  # error: credential
    open_connection(URL, codec=JsonCodec(type=Trade), when_dwn="fail")  # error: when_dwn
    VenueClient.open(ping_intervall=5.0)  # error: ping_intervall
    await VenueClient.run(ping_intervall=5.0)  # error: ping_intervall
    await run_connection(URL, ping_intervall=5.0)  # error: ping_intervall
    Registry().open_connection("one", URL, ping_intervall=5.0)  # error: ping_intervall
    conn.reconfigure(ping_intervall=5.0)  # error: ping_intervall
    Config(ping_intervall=5.0)  # error: ping_intervall


async def of_a_wrong_type(conn: Connection[Any]) -> None:
    open_connection(URL, ping_interval="5")  # error: ping_interval
    open_connection(URL, overflow="drop")  # error: overflow
    open_connection(URL, compression="gzip")  # error: compression
    open_connection(URL, codec=OneWay())  # error: codec
    open_connection(URL, headers=[("x-desk", "1")])  # error: headers
    open_connection(5)  # error: Argument
    conn.reconfigure(ping_interval="5")  # error: ping_interval
    Config(heartbeat="on")  # error: heartbeat
    wrong: ConfigOptions = {"max_redirects": "5"}  # error: int
    open_connection(URL, **wrong)


async def when_it_is_too_late(conn: Connection[Any]) -> None:
    conn.reconfigure(codec=JsonCodec())  # error: codec
    conn.reconfigure(transport=None)  # error: transport


async def messages_taken_for_others(conn: Connection[Trade], feed: Feed[Trade]) -> None:
    text: str = await conn.receive()  # error: Trade
    text = await feed.receive()  # error: Trade
    print((await conn.request({"op": "last"}, type=Trade)).prise)  # error: prise
    raw: Connection[str | bytes] = conn  # error: Trade
    async with conn.subscribe("trades", type=Trade) as trades:
        text = await trades.receive()  # error: Trade
    async with open_connection(URL) as plain:
        text = await plain.receive()  # error: bytes
    async with open_connection(Venue()) as typed:
        text = await typed.receive()  # error: Trade
    async with open_connection(URL, codec=JsonCodec(type=Trade)) as typed:
        print((await typed.receive()).prise)  # error: prise
    async for delivery in conn.deliveries():
        text = delivery.payload  # error: Trade
    print(text, raw)
