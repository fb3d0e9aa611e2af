"""An exchange: books and trades over WebSocket, and beside it a store from which they can be asked for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import attrs
import trio

from trio_nova.messages import Frame
from trio_nova.testing._venue_link import Asked, VenueLink, Verb
from trio_nova.testing._venue_server import VenueServer, decode_json
from trio_nova.testing.sim._scenario import CANARY, ServerKind
from trio_nova.testing.sim._servers import SimServer, find_op

__all__ = ["SPAN", "ExchangeServer", "StoreFailed", "StoreMood", "digest_book"]

SPAN = 3
"""Changes that one message of a book covers."""
PRICES = 7
"""That a book has at most."""
PAGE = 5
"""Trades on one page of the store."""
STALE = 4
"""Messages by which a snapshot is too old, where the store is behind."""

StoreMood: TypeAlias = Literal["fine", "slow", "silent", "failing", "too much", "too little", "behind"]
"""How the store answers; "behind": with the snapshot of a while ago."""


class StoreFailed(Exception):
    """The store has answered with an error."""


def digest_book(book: Mapping[int, int]) -> str:
    """Return what two books are compared by."""
    return " ".join(f"{price}:{amount}" for price, amount in sorted(book.items()))


@attrs.define(eq=False)
class _Encoder:
    """Makes frames of what is said on one link, and numbers them."""

    count: int = 0

    def __call__(self, message: Any) -> Sequence[str | bytes]:
        if isinstance(message, str):
            return (message,)
        self.count += 1
        return (json.dumps({**message, "k": self.count}, separators=(",", ":")),)


@attrs.define(eq=False, kw_only=True)
class _ExchangeVenue(VenueServer):
    """Speaks JSON; each of its messages has a number `k` on its link.

    ======================================================  ==================================================
    the client                                              the exchange
    ======================================================  ==================================================
                                                            `{"op": "welcome", "nonce"}`, first of all
    `{"op": "login", "nonce", "token"}`                     `{"op": "login", "ok", "expires_in"}`
    `{"op": "subscribe", "id", "channels": [[name, t]]}`    `{"op": "result", "id", "results": [...]}`, each of them
                                                            `{}`, or `{"refused", "retry_after"}`
    `{"op": "unsubscribe", "id", "channels": [name]}`       `{"op": "result", "id"}`
    `{"op": "execute", "id", "name"}`                       `{"op": "result", "id", "name"}`
    `{"op": "heartbeat", "id"}`                             `{"op": "result", "id"}`
                                                            `{"op": "data", "channels", "number", ...}`
                                                            `{"op": "many", "messages"}`
                                                            `{"op": "slow", "retry_after"}`
                                                            `{"op": "goaway", "url", "within"}`
    ======================================================  ==================================================
    """

    token: str = attrs.field(repr=False)
    expires_in: float | None
    note: Callable[..., object]
    """Writes down what happens on a link."""
    executed: list[str] = attrs.field(factory=list, init=False)
    refusing: int = attrs.field(default=0, init=False)
    """How many subscriptions to refuse for now."""
    tokens: dict[str, tuple[str, float]] = attrs.field(factory=dict, init=False)
    """What each token is for, and when it was given."""
    _opened: dict[int, float] = attrs.field(factory=dict, init=False)
    """By the link's number: when it came up."""
    _known: set[int] = attrs.field(factory=set, init=False)
    """The numbers of the links that are logged in."""

    def publish(self, channels: Sequence[str], message: Mapping[str, Any]) -> None:
        """Tell every link of what happened on channels, in one message; some come wrapped."""
        for link in self.live_links:
            if heard := [channel for channel in channels if channel in link.subscriptions]:
                data = {**message, "channels": heard}
                wrapped = {"op": "many", "messages": [data] if message["number"] % 2 else [data, {"op": "many"}]}
                link.say(wrapped if message["number"] % 4 < 2 else data)

    def expire(self) -> None:
        """Know nobody any more."""
        self._known.clear()

    async def _watch(self, link: VenueLink) -> None:
        self._opened[link.number] = trio.current_time()
        link.say({"op": "welcome", "nonce": _nonce(link)})
        await trio.sleep_forever()

    def _encoder(self) -> Callable[[Any], Sequence[str | bytes]]:
        return _Encoder()

    def _take(self, link: VenueLink, payload: Frame) -> None:
        message = decode_json(payload) if isinstance(payload, str) else {}
        op, asked = str(message.get("op")), message.get("channels", [])
        verbs: dict[str, Verb] = {"login": "auth", "subscribe": "subscribe", "unsubscribe": "unsubscribe"}
        names = tuple(each if op == "unsubscribe" else each[0] for each in asked)
        link.journal.append(Asked(trio.current_time(), verbs.get(op, "other"), message, op, message.get("id"), names))
        answer: dict[str, Any] = {"op": "result", "id": message.get("id")}
        match op:
            case "login":
                self._log_in(link, message)
            case "heartbeat":
                link.say(answer)
            case _ if link.number not in self._known:
                link.close(4003, "you have not said who you are")
            case "subscribe":
                self._answer(link, op, {**answer, "results": [self._grant(link, *each) for each in asked]})
            case "unsubscribe":
                for name in names:
                    link.subscriptions.pop(name, None)
                self._answer(link, op, answer)
            case _:
                self.executed.append(str(message.get("name")))
                if message.get("id") is not None:
                    self._answer(link, op, {**answer, "name": message.get("name")})

    def _log_in(self, link: VenueLink, message: Mapping[str, Any]) -> None:
        if message.get("nonce") != _nonce(link):
            self.breach(link, f"a login with the challenge {message.get('nonce')}")
        if message.get("token") != self.token:
            link.close(4004, "who are you?")
            return
        self._known.add(link.number)
        self._answer(link, "login", {"op": "login", "ok": True, "expires_in": self.expires_in})

    def _grant(self, link: VenueLink, channel: str, token: str) -> dict[str, Any]:
        granted_for, since = self.tokens.pop(token, ("", 0.0))
        if granted_for != channel or since < self._opened[link.number]:
            self.breach(link, f"{channel} was asked for with a token for {granted_for!r} of {since:.3f}")
        if self.refusing:
            self.refusing -= 1
            self.note("server.busy", link, channel=channel, retry_after=3.0)
            return {"refused": "busy", "retry_after": 3.0}
        link.subscriptions[channel] = None
        return {}

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        return isinstance(message, dict) and message.get("op") == "login"

    def _lose(self, link: VenueLink) -> None:
        super()._lose(link)
        self._known.discard(link.number)


def _nonce(link: VenueLink) -> str:
    return f"nonce-{link.number}"


@attrs.define(eq=False)
class ExchangeServer(SimServer):
    """An exchange, with a store beside it, which the client asks over some other network."""

    kind: ClassVar[ServerKind] = "exchange"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "login",
        "subscribe": "subscribe",
        "unsubscribe": "unsubscribe",
        "request": "execute",
    }
    mood: StoreMood = attrs.field(default="fine", init=False)
    """How the store answers."""
    _numbers: dict[str, int] = attrs.field(factory=dict, init=False)
    """By channel: the number of its last message."""
    _books: dict[str, list[tuple[int, dict[int, int]]]] = attrs.field(factory=dict, init=False)
    """By channel: the last states of a book, each with its number."""
    _serial: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def make_venue(self) -> VenueServer:
        return _ExchangeVenue(token=CANARY, expires_in=self.scenario.grant, strict=False, note=self._note)

    def _note(self, what: str, link: VenueLink, **fields: Any) -> None:
        self.net.journal.add(what, link=self.net_link(link), **fields)

    @property
    def _exchange(self) -> _ExchangeVenue:
        assert isinstance(self.venue, _ExchangeVenue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        names = ("trades.A", "book.A", "trades.A.copy", "book.B", "trades.B", "trades.B.copy")
        return names[: self.scenario.channels]

    # ------------------------------------------------------------------- what happens

    def _last(self, channel: str) -> int:
        return self._numbers.get(channel, self.first_number - 1)

    def emit(self, channel: str, *, told: bool = True) -> None:
        if channel.endswith(".copy"):
            return  # all its trades come in the messages of the other channel
        number = self._last(channel) + 1
        channels = [each for each in self.channels() if each.removesuffix(".copy") == channel]
        if channel.startswith("book."):
            book = dict(self._states(channel)[-1][1])
            book[number % PRICES] = number
            self._books[channel] = [*self._states(channel)[-2 * STALE :], (number, book)]
            self.net.journal.add("server.book", channel=channel, number=number, book=digest_book(book))
        for each in channels:
            self._numbers[each] = number
            self.note_data(each, number, told=told)
        if told:
            self._exchange.publish(channels, _data(channel, number))

    def repeat(self, channel: str) -> None:
        if channel in self._numbers and not channel.endswith(".copy"):
            channels = [each for each in self.channels() if each.removesuffix(".copy") == channel]
            for each in channels:
                self.net.journal.add("server.repeat", channel=each, number=self._numbers[each])
            self._exchange.publish(channels, _data(channel, self._numbers[channel]))

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        return {**_data(channel, number), "channels": [channel]}

    def forget(self) -> None:
        self._numbers.clear()
        self._books.clear()
        self._exchange.tokens.clear()

    def expire(self) -> None:
        self._exchange.expire()

    def refuse_for_now(self, count: int) -> None:
        self._exchange.refusing = count

    def calm_down(self) -> None:
        super().calm_down()
        self._exchange.refusing, self.mood = 0, "fine"

    def has_executed(self, asked: Asked, op: str) -> bool:
        return find_op("".join(self._exchange.executed[-1:])) == op

    def set_mood(self, mood: StoreMood) -> None:
        """Let the store answer so from now on."""
        self.mood = mood

    # ------------------------------------------------------------------- the store

    async def fetch_token(self, channel: str) -> str:
        """Return what is to be shown with a subscription: once, and on a link that is up.

        Raises:
            StoreFailed: the store fails.
        """
        await self._wait()
        token = f"token-{next(self._serial)}"
        self._exchange.tokens[token] = channel, trio.current_time()
        return token

    async def fetch_snapshot(self, channel: str) -> dict[str, Any]:
        """Return the state of a book; raises StoreFailed."""
        await self._wait()
        states = self._states(channel)
        number, book = states[-min(len(states), STALE + 1)] if self.mood == "behind" else states[-1]
        await self._wait()  # for the answer: what happens meanwhile is not in it
        return {"number": number, "book": [[price, amount] for price, amount in sorted(book.items())]}

    async def fetch_page(self, channel: str, after: int, before: int | None, start: int | None) -> tuple[Any, Any]:
        """Return trades between two numbers, the oldest first, and what the next page begins with; raises StoreFailed.

        Where the store is in the mood for it, it returns more than was asked for, or less.
        """
        await self._wait()
        last = self._last(channel)
        until = last if before is None else min(last, before - 1)
        first = max(after + 1, self.first_number) if start is None else start
        if self.mood == "too much":
            first, until = max(first - 3, self.first_number), min(until + 3, last)
        elif self.mood == "too little":
            first, until = first + 1, until - 1
        numbers = list(range(first, until + 1)) if first <= last + 1 else []
        more = numbers[PAGE] if len(numbers) > PAGE and self.mood != "too much" else None
        return [_data(channel, number) for number in (numbers if more is None else numbers[:PAGE])], more

    def _states(self, channel: str) -> list[tuple[int, dict[int, int]]]:
        return self._books.get(channel) or [(self.first_number - 1, {})]

    async def _wait(self) -> None:
        """Take as long as a question takes to the store, or its answer from there."""
        await trio.sleep({"slow": 1.5, "silent": 60.0}.get(self.mood, max(0.2, 2 * self.scenario.latency)))
        if self.mood == "failing":
            raise StoreFailed("503")


def _data(channel: str, number: int) -> dict[str, Any]:
    if not channel.startswith("book."):
        return {"op": "data", "number": number}
    change = {"U": SPAN * (number - 1) + 1, "u": SPAN * number, "set": [number % PRICES, number]}
    return {"op": "data", "number": number, **change}
