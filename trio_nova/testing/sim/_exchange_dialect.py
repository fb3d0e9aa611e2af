"""What a client needs to speak to an exchange, and to ask its store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from trio_nova.adapter import Adapter, Target
from trio_nova.codecs import JsonCodec
from trio_nova.core.sequence import Tracker
from trio_nova.dialect import Dialect as LinkDialect
from trio_nova.handlers import (
    AuthExchange,
    AuthHandler,
    Channel,
    ConnectionInfo,
    Hole,
    MessageHeartbeat,
    Page,
)
from trio_nova.handlers.auth import reveal
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.readings import (
    Answer,
    AuthOk,
    AuthRefused,
    Data,
    GoAway,
    Granted,
    Many,
    Reading,
    Refused,
    Step,
    Throttled,
    Welcome,
)
from trio_nova.testing.sim._dialects import Dialect
from trio_nova.testing.sim._exchange import SPAN, ExchangeServer, digest_book
from trio_nova.testing.sim._scenario import BACKUP, CANARY, ServerKind

__all__ = ["ExchangeDialect"]


class _Exchange(Adapter):
    """Asks the store; what is a link's is kept by what speaks on it."""

    correlated = True
    drops_unclaimed = True

    def __init__(self, url: str, store: ExchangeServer, note: Callable[..., object]) -> None:
        super().__init__(url=url)
        self.store, self.note = store, note

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec(), "heartbeat": MessageHeartbeat({"op": "heartbeat"}, asks=True)}

    def open_link(self, info: ConnectionInfo) -> LinkDialect:
        return _Speech(self.note)

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker(resync=True) if channel.name.startswith("book.") else Tracker(window=math.inf)

    async def prepare(self, channel: Channel) -> Channel:
        token = await self.store.fetch_token(channel.name)
        return attrs.evolve(channel, params={"token": token})

    async def snapshot(self, channel: Channel) -> Data:
        found = await self.store.fetch_snapshot(channel.name)
        return Data(channel.name, found, Step(SPAN * found["number"], snapshot=True))

    async def backfill(self, hole: Hole) -> Page:
        if hole.after is None:
            return Page()
        trades, more = await self.store.fetch_page(hole.channel.name, hole.after, hole.before, hole.start)
        numbers = [trade["number"] for trade in trades]
        self.note(
            "client.page", channel=hole.channel.name, after=hole.after, before=hole.before, numbers=numbers, more=more
        )
        return Page([Data(hole.channel.name, trade, trade["number"]) for trade in trades], more)


class _Batching(_Exchange):
    """Asks for several channels at once."""

    max_batch = 4


@attrs.define(eq=False)
class _Speech(LinkDialect):
    """What is said on one link."""

    note: Callable[..., object]
    nonce: str = ""
    """What the service said first."""
    count: int = 0
    """The number of the last message that was read."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        while not self.nonce:
            match await exchange.receive():
                case {"op": "welcome", "nonce": str(nonce)}:
                    self.nonce = nonce
                case _:
                    pass
        return await exchange.ask({"op": "login", "nonce": self.nonce, "token": reveal(credentials)})

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"k": count}:
                if count != self.count + 1:
                    self.note("client.misread", number=count, expected=self.count + 1)
                self.count = count
            case _:
                pass
        return self._read(message)

    def read_all(self, messages: Sequence[Any]) -> Sequence[Reading | None]:
        return [self.read(message) for message in messages]

    def _read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "data", "channels": channels, "U": first, "u": last}:
                return Data(_one_or_all(channels), message, Step(last, first))
            case {"op": "data", "channels": channels, "number": number}:
                return Data(_one_or_all(channels), message, number)
            case {"op": "many"}:
                return Many([each for part in message.get("messages", ()) if (each := self._read(part)) is not None])
            case {"op": "result", "id": id}:
                return Answer(message, id)
            case {"op": "welcome"}:
                return Welcome(message)
            case {"op": "login", "ok": True, "expires_in": expires_in}:
                return AuthOk(expires_in)
            case {"op": "login"}:
                return AuthRefused("no")
            case {"op": "slow", "retry_after": retry_after}:
                return Throttled(retry_after)
            case {"op": "goaway", "url": url, "within": within}:
                return GoAway(within, url, "maintenance")
            case _:
                return None

    def link_step(self, message: Any) -> Step | int | None:
        match message:
            case {"k": int(count)}:
                return count
            case _:
                return None

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        results = message.get("results", ())
        return [
            Refused(None, each["refused"], each["retry_after"]) if "refused" in each else Granted(None)
            for each in results
        ]

    def split_batch(self, channels: Sequence[Channel]) -> Iterable[Sequence[Channel]]:
        books = [each for each in channels if each.name.startswith("book.")]
        return [[each for each in channels if each not in books], books]

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "subscribe", "channels": [[channel, params.get("token")]]}

    def encode_subscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "subscribe", "channels": [[each.name, each.params.get("token")] for each in channels]}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "unsubscribe", "channels": [channel]}

    def encode_unsubscription_batch(self, channels: Sequence[Channel]) -> Any:
        return {"op": "unsubscribe", "channels": [each.name for each in channels]}


def _one_or_all(channels: list[str]) -> Any:
    return channels[0] if len(channels) == 1 else channels


@attrs.define(eq=False)
class ExchangeDialect(Dialect):
    """An exchange's: a challenge first, tokens for channels, snapshots and missed trades from a store."""

    kind: ClassVar[ServerKind] = "exchange"
    books: dict[int, dict[int, int]] = attrs.field(factory=dict, init=False)
    """By feed: the book as its consumer has it."""

    def target(self) -> Target:
        assert isinstance(self.server, ExchangeServer)
        kind = _Batching if self.scenario.batch > 1 else _Exchange
        return kind(f"ws://{self.host}/", self.server, self.note)

    def options(self) -> dict[str, Any]:
        return {
            "credentials": CANARY,
            "allow_plaintext_credentials": True,
            "auth_handler": lambda: AuthHandler(refresh_before=5.0, wall_clock=lambda: 0.0),
            "redirect_origins": [f"ws://{BACKUP}"],
        }

    def question(self, op: str) -> Any:
        return {"op": "execute", "name": op}

    def number(self, channel: str, item: Any) -> int:
        number: int = item["number"]
        return number

    def is_snapshot(self, item: Any) -> bool:
        return "book" in item

    def is_tracked(self, channel: str) -> bool:
        return True

    def book(self, feed: int, channel: str, item: Any) -> str | None:
        if not channel.startswith("book."):
            return None
        if "book" in item:
            self.books[feed] = dict(item["book"])
        else:
            price, amount = item["set"]
            self.books.setdefault(feed, {})[price] = amount
        return digest_book(self.books[feed])
