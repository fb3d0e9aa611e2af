"""A service that nobody has described: it answers an adapter with what the adapter's own hooks understand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any
from unittest import SkipTest

import attrs

from trio_nova.adapter import Adapter
from trio_nova.codecs import Codec, RawCodec
from trio_nova.config import Config, configure, made
from trio_nova.errors import BadMessage
from trio_nova.handlers import (
    AuthHandler,
    Channel,
    ConnectionHandler,
    Correlation,
    ErrorHandler,
    Heartbeat,
    MessageHandler,
    RateLimitHandler,
    SubscriptionHandler,
)

ids_as_written = written_ids = None
from trio_nova.messages import Ping, Pong
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.readings import AuthOk, Granted, Refused
from trio_nova.testing._peer import Peer
from trio_nova.testing._words import HOSTILE_PAYLOADS, messages_of, words_of

__all__ = ["ROLES", "StandIn", "Strategies", "Tagged", "shape"]

MAX_ANSWERS = 1000
"""Answers in which the id of a question is looked for."""

ROLES: Mapping[str, type] = {
    "connection_handler": ConnectionHandler,
    "message_handler": MessageHandler,
    "subscription_handler": SubscriptionHandler,
    "auth_handler": AuthHandler,
    "error_handler": ErrorHandler,
    "rate_limit_handler": RateLimitHandler,
    "logging_handler": LoggingHandler,
    "metrics_collector": MetricsCollector,
}
"""The strategies that every session makes anew, by the field of Config that names them."""


@attrs.frozen
class Tagged:
    """A question with an id of the session's."""

    written: Any
    """As the service reads it."""
    leaves: Sequence[Any]
    """Its values, among which the id is, as it was written."""
    awaited: tuple[Hashable, ...]
    """What the session takes for its id."""

    def answers(self, strategies: Strategies) -> Iterator[Any]:
        """Yield answers that a service may give: the question itself with one more field, or what has the id elsewhere.

        Those to two questions correspond, one by one.
        """
        words = words_of(strategies.correlation.reply_id)
        yield self.written
        if isinstance(self.written, Mapping):
            for word in words:
                yield {**self.written, word: "x"}
            yield {**dict.fromkeys(words, "x"), **self.written}
            yield {name: value for name, value in self.written.items() if name != "method"}
        yield from islice(messages_of(words, self.leaves), MAX_ANSWERS)

    def read(self, correlation: Correlation, answer: Any) -> Hashable | None:
        """Return the id that is read in an answer."""
        try:
            found = correlation.reply_id(answer)
            hash(found)
        except Exception:  # what hooks raise is for the tests of hooks to say
            return None
        return found


@attrs.define(eq=False, slots=False)
class Strategies:
    """What a session would ask for an adapter, and what can be found out from it."""

    connection: ConnectionHandler
    message: MessageHandler
    subscription: SubscriptionHandler
    auth: AuthHandler
    error: ErrorHandler
    by_field: Mapping[str, Any] = attrs.field(repr=False)
    """All of `ROLES`."""
    codec: Codec
    correlation: Correlation
    heartbeat: Heartbeat

    @classmethod
    def of(cls, adapter: Adapter) -> Strategies:
        """Make them, as a session would.

        Raises:
            ConfigError: what `defaults` returns will not do.
        """
        config = configure(Config(), adapter.options())
        found: dict[str, Any] = {field: made(getattr(config, field), role, field) for field, role in ROLES.items()}
        return cls(
            connection=found["connection_handler"],
            message=found["message_handler"],
            subscription=found["subscription_handler"],
            auth=found["auth_handler"],
            error=found["error_handler"],
            by_field=found,
            codec=config.codec,
            correlation=config.correlation,
            heartbeat=config.heartbeat,
        )

    def encode(self, message: Any) -> str | bytes:
        """Return the payload that a session would send."""
        return self.codec.encode(self.message.encode_message(message))

    def over_the_wire(self, message: Any) -> Any:
        """Return what becomes of a message that one side encodes and the other decodes; raises BadMessage."""
        return self.codec.decode(self.codec.encode(message))

    def messages(self, words: Sequence[str], names: Sequence[Any]) -> Iterator[Any]:
        """Yield messages that the codec can have decoded: first those that are made of words, and of names."""
        for message in messages_of(words, names):
            try:
                yield self.over_the_wire(message)
            except BadMessage:
                continue
        for payload in HOSTILE_PAYLOADS:
            try:
                yield self.codec.decode(payload)
            except BadMessage:
                continue

    def find(self, hook: Callable[[Any], Any], names: Sequence[Any], accept: Callable[[Any], bool]) -> Any:
        """Return the first message of which a hook makes what is wanted; None where none is found."""
        for message in self.messages(words_of(hook), names):
            try:
                if accept(hook(message)):
                    return message
            except Exception:  # what hooks raise is for the tests of hooks to say
                continue
        return None

    @cached_property
    def ids_asked_with(self) -> tuple[Tagged, Tagged]:
        """One question twice, each time with another id of the session's.

        Raises:
            SkipTest: none was found that has a place for an id.
        """
        if not isinstance(self.codec, RawCodec):
            for question in ({"method": "x"}, {"op": "x"}, ["x"], "x"):
                with suppress(Exception):  # it is no question to this adapter
                    if self.correlation.request_id(question) is None:
                        return self._tagged(question, 421), self._tagged(question, 536)
        raise SkipTest("it puts no ids into its questions, so their answers come in order")

    def _tagged(self, question: Any, id: int) -> Tagged:
        tagged = self.correlation.tag(question, id)
        if tagged is None:
            raise BadMessage("this kind of question has no place for an id")
        awaited = written_ids(self.correlation, question, id, tagged)
        written = self.codec.decode(self.encode(tagged))
        if type(self.message).encode_message is not MessageHandler.encode_message:
            awaited = ids_as_written(self.correlation, awaited, written)
        return Tagged(written, self._leaves_of(written), awaited)

    def _leaves_of(self, message: Any) -> list[Any]:
        match message:
            case Mapping():
                return [leaf for value in message.values() for leaf in self._leaves_of(value)]
            case list() | tuple():
                return [leaf for value in message for leaf in self._leaves_of(value)]
            case _:
                return [message]

    def question_id(self, asked: Any) -> Hashable | None:
        """Return the id that a message bears as a question."""
        if isinstance(self.codec, RawCodec):
            return None
        try:
            return self.correlation.request_id(asked)
        except BadMessage:
            return None

    def answer_under(self, id: Hashable, result: Any) -> Any:
        """Return an answer that says yes to a question; None where none is found."""
        for field in (getattr(self.correlation, "field", "id"), "id"):
            for answer in ({"jsonrpc": "2.0", field: id, "result": result}, {field: id}):
                if self.correlation.reply_id(answer) == id and self.correlation.failure(answer) is None:
                    return answer
        return None


def shape(message: Any) -> Any:
    """Return a message without what may differ from time to time: only names, order and types."""
    match message:
        case Mapping():
            return {name: shape(value) for name, value in message.items()}
        case list() | tuple():
            return [shape(value) for value in message]
        case _:
            return type(message)


@attrs.define(eq=False, slots=False)
class StandIn:
    """The service, as a script for any number of dials. It grants the one channel, and whoever asks is let in."""

    strategies: Strategies
    name: str
    """Of the channel."""
    params: Mapping[str, Any]
    credentials: Any = attrs.field(repr=False)
    """None: it knows of none."""
    answer: Callable[[Any], Sequence[Any] | None]
    """Asked first: what the author of the adapter knows."""
    heard: list[Any] = attrs.field(factory=list)
    """What the client said since this was emptied, decoded."""
    peer: Peer | None = None
    """The connection that is up."""

    async def __call__(self, peer: Peer) -> None:
        """Serve one dial."""
        await peer.accept()
        self.peer = peer
        while isinstance(frame := await peer.receive(), str | bytes | Ping | Pong):
            if isinstance(frame, Ping | Pong):
                continue
            asked = self.strategies.codec.decode(frame)
            self.heard.append(asked)
            for said in self._answers(asked):
                await self.say(said)
        await peer.finish()

    async def say(self, message: Any) -> None:
        """Send a message to the client."""
        assert self.peer is not None
        await self.peer.send(self.strategies.codec.encode(message))

    async def drop(self) -> None:
        """Lose the link."""
        assert self.peer is not None
        await self.peer.drop()

    # ------------------------------------------------------------------- what it knows of the adapter

    @cached_property
    def channel(self) -> Channel:
        """The channel, as the session would know it."""
        return Channel(self.strategies.subscription.key(self.name, self.params), self.name, self.params)

    def subscription_request(self) -> Any:
        """Return what the client asks for the channel with."""
        handler = self.strategies.subscription
        if handler.max_batch > 1:
            return handler.encode_subscription_batch([self.channel])
        return handler.encode_subscription_request(self.name, self.params)

    def is_said(self, expected: Any) -> bool:
        """Whether the client has said this."""
        return any(self._is(expected, asked) for asked in self.heard)

    @cached_property
    def acceptance(self) -> Any:
        """What lets the client in, where it asks one question; None where that is not found."""
        if type(self.strategies.auth).authenticate is not AuthHandler.authenticate:
            return None
        return self.strategies.find(
            self.strategies.auth.handle_auth_response, ["x"], lambda verdict: isinstance(verdict, AuthOk)
        )

    @cached_property
    def grant(self) -> tuple[Any, Granted] | None:
        """What grants the channel, a message or the result of an answer, and how it is read; None where not found."""
        handler, names = self.strategies.subscription, [self.name, "x"]
        if handler.correlated:
            results = [True, self.name, [self.name], "0x1", 1, None, {}, {"channel": self.name}, {"id": "0x1"}]
            for result in results:
                reply = self.strategies.answer_under(1, result)
                granted = _granted(handler.read_grants(reply, [self.channel]), self.channel.key) if reply else None
                if granted is not None:
                    return result, granted
            return None
        message = self.strategies.find(
            handler.handle_subscription_response, names, lambda read: _granted(read, self.channel.key) is not None
        )
        granted = None if message is None else _granted(handler.handle_subscription_response(message), self.channel.key)
        return None if granted is None else (message, granted)

    def data(self) -> Any:
        """Return data of the channel; None where none are found."""
        server_id = None if self.grant is None else self.grant[1].server_id
        wanted = self.channel.key if server_id is None else server_id
        told = () if self.grant is None else (server_id, self.grant[0])
        names = [*(name for name in told if isinstance(name, str | int)), self.name]
        handler = self.strategies.subscription
        for message in self.strategies.messages(words_of(handler.channel_of, handler.data_of), names):
            try:
                if handler.channel_of(message) == wanted and handler.data_of(message) is not None:
                    return message
            except Exception:
                continue
        return None

    # ------------------------------------------------------------------- what it answers

    def _answers(self, asked: Any) -> Sequence[Any]:
        own = self.answer(asked)
        if own is not None:
            return own
        answer = self._answer_to(asked)
        return [] if answer is None else [answer]

    def _answer_to(self, asked: Any) -> Any:
        strategies, id = self.strategies, self.strategies.question_id(asked)
        if type(strategies.subscription) is not SubscriptionHandler and self._is(self.subscription_request(), asked):
            if self.grant is None:
                return None
            return strategies.answer_under(id, self.grant[0]) if strategies.subscription.correlated else self.grant[0]
        if self.asks_who_we_are(asked) and self.acceptance is not None:
            return self.acceptance if id is None else {**self.acceptance, "id": id}
        if id is None:
            return None
        words = words_of(strategies.auth.authenticate)
        return strategies.answer_under(id, dict.fromkeys(words, "x"))

    def asks_who_we_are(self, asked: Any) -> bool:
        """Whether a message is the one that authenticates."""
        if self.credentials is None:
            return False
        request = self.strategies.auth.encode_auth_request(self.credentials)
        if request is None:
            return False
        return bool(shape(self.strategies.over_the_wire(request)) == shape(self._plain(asked, request)))

    def _is(self, expected: Any, asked: Any) -> bool:
        """Whether a message is `expected`; it may bear an id of the session's."""
        sent = self.strategies.codec.decode(self.strategies.encode(expected))
        return bool(sent == self._plain(asked, sent))

    def _plain(self, asked: Any, expected: Any) -> Any:
        """Return a message without the id that the session gave it."""
        if not isinstance(asked, Mapping) or not isinstance(expected, Mapping):
            return asked
        return {name: value for name, value in asked.items() if name in expected or name not in ("id", "jsonrpc")}


def _granted(read: Any, key: Hashable) -> Granted | None:
    answers = [] if read is None else [read] if isinstance(read, Granted | Refused) else read
    return next((answer for answer in answers if isinstance(answer, Granted) and answer.key == key), None)
