"""A program's own kind of any strategy may have an `__init__` that sets what it likes, and calls no other."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from inspect import isfunction
from typing import Any

import attrs
import pytest
import trio

import trio_nova
from trio_nova import (
    Adapter,
    AdoptedTransport,
    AuthHandler,
    BadMessage,
    Config,
    ConfigError,
    ConnectionHandler,
    Correlation,
    Dialect,
    ErrorHandler,
    ExponentialBackoff,
    Gcra,
    JsonCodec,
    ListBackoff,
    LoggingHandler,
    MessageHandler,
    MessageHeartbeat,
    MetricsCollector,
    PingHeartbeat,
    RateLimitHandler,
    RollingWindow,
    ServerHeartbeat,
    SubscriptionHandler,
    TokenBucket,
    WireTransport,
    codecs,
    open_connection,
)
from trio_nova.adapters import deribit, echo, jsonrpc
from trio_nova.codecs import BinaryCodec, LengthPrefixed, Lines, MsgpackCodec, Packets, Records, ZlibStream, ZstdStream
from trio_nova.config import configure
from trio_nova.core import Strategy
from trio_nova.handlers import RateRequest
from trio_nova.testing import Peer, ScriptedServer

WRAPPED: Mapping[str, Any] = {"inner": JsonCodec()}
MUST_BE_SET: Mapping[type, Mapping[str, Any]] = {
    AdoptedTransport: {"ws": object()},
    BinaryCodec: {"_encode": bytes, "_decode": str},
    Gcra: {"limit": 5, "period": 1.0},
    LengthPrefixed: WRAPPED,
    Lines: WRAPPED,
    ListBackoff: {"delays": (1.0, 2.0)},
    MessageHeartbeat: {"message": "ping"},
    Packets: {**WRAPPED, "length": len},
    Records: WRAPPED,
    RollingWindow: {"limit": 5, "period": 1.0},
    ServerHeartbeat: {"respond": str},
    ZlibStream: WRAPPED,
    ZstdStream: WRAPPED,
}
"""The fields that have no default: an `__init__` of one's own has to set them."""

HOME = (deribit, echo, jsonrpc)
"""Modules that nothing else imports: their strategies are found, too."""


def kinds(kind: type = Strategy) -> Iterator[type[attrs.AttrsInstance]]:
    subclasses: list[type] = kind.__subclasses__()
    for each in subclasses:
        is_real = getattr(sys.modules[each.__module__], each.__name__, None) is each  # and not what attrs replaced
        if is_real and each.__module__.startswith("trio_nova.") and not each.__name__.startswith("_"):
            yield each
        yield from kinds(each)


KINDS = sorted({*kinds()}, key=lambda kind: kind.__qualname__)


def test_every_public_class_that_can_be_a_strategy_is_one() -> None:
    roles = ("decode", "open_link", "delay", "admits_at", "open", "resolve", "probe", "request_id")
    public = [each for home in (trio_nova, codecs) for each in vars(home).values() if isinstance(each, type)]
    values = [
        each for each in public if attrs.has(each) and any(isfunction(getattr(each, role, None)) for role in roles)
    ]
    handlers = [each for each in public if each.__name__.endswith("Handler")]
    assert [each for each in {*values, *handlers, MetricsCollector} if not issubclass(each, Strategy)] == []
    assert len(values) > 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_fields_that_an_own_init_leaves_alone_have_their_defaults(kind: type[attrs.AttrsInstance]) -> None:
    must = MUST_BE_SET.get(kind, {})

    class Own(kind):  # type: ignore[misc, valid-type]
        def __init__(self, mine: int) -> None:
            self.mine = mine
            for name, value in must.items():
                setattr(self, name, value)

    own, model = Own(7), kind(**{name.lstrip("_"): value for name, value in must.items()})
    assert own.mine == 7
    for field in attrs.fields(kind):
        found, expected = getattr(own, field.name), getattr(model, field.name)
        assert type(found) is type(expected), field.name
        if field.eq is not False and getattr(type(expected), "__eq__", None) is not object.__eq__:
            assert found == expected, field.name
    if kind.__hash__ is not None and getattr(kind, "__eq__", None) is not object.__eq__:
        assert hash(own) == hash(Own(7))


def test_a_dialect_may_have_an_init_as_any_plain_class_may() -> None:
    class Own(Dialect):
        def __init__(self) -> None:
            self.mine = 7

    assert Own().mine == 7


def test_an_own_init_may_set_fields_and_call_the_other_one_too() -> None:
    class Sets(ExponentialBackoff):
        def __init__(self) -> None:
            self.base, self.cap = 1.0, 4.0

    class Calls(ExponentialBackoff):
        def __init__(self, name: str) -> None:
            super().__init__(base=1.0, cap=4.0)
            self.name = name

    class Twice(Calls):
        def __init__(self) -> None:
            self.name = "nobody"

    assert [Sets().delay(attempt, 1.0) for attempt in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 4.0]
    assert (Calls("a").base, Calls("a").name) == (1.0, "a")
    assert (Twice().base, Twice().factor) == (5.0, 2.0)
    with pytest.raises(ConfigError, match="base"):
        Sets().base = -1.0


def test_a_class_that_attrs_makes_of_a_strategy_is_made_as_ever() -> None:
    seen: list[str] = []

    def note(name: str) -> str:
        seen.append(name)
        return name

    @attrs.define
    class Made(ExponentialBackoff):
        name: str = attrs.field(default="x", converter=attrs.Converter(note))  # type: ignore[misc]

    class Below(Made):
        def __init__(self) -> None:
            self.mine = 7

    assert (Made(base=1.0, name="y").name, seen) == ("y", ["y"])
    assert (Below().name, Below().mine, seen) == ("x", 7, ["y", "x", "x"])


class Amounts(JsonCodec[Any]):
    def __init__(self, kind: type) -> None:
        self.type = kind


class Sizes(MsgpackCodec[Any]):
    def __init__(self, kind: type) -> None:
        self.type = kind


def test_a_codec_decodes_what_its_fields_say_when_they_are_set_later() -> None:
    assert Amounts(int).decode("1") == 1
    assert Sizes(int).decode(b"\x01") == 1
    for codec, payload in ((Amounts(int), '"1"'), (Sizes(int), b"\xa11")):
        with pytest.raises(BadMessage):
            codec.decode(payload)
    plain = JsonCodec()
    plain.decimals = True
    assert str(plain.decode("1.10")) == "1.10"


def test_a_rate_limit_holds_that_is_set_later() -> None:
    class Own(RateLimitHandler):
        def __init__(self) -> None:
            self.limits = [TokenBucket(capacity=1.0, rate=1.0)]

    request, handler = RateRequest(kind="message", size=1, now=0.0), Own()
    answers = [handler.check_rate_limit(request) for _ in range(2)]
    assert [type(answer).__name__ for answer in answers] == ["Allow", "Queue"]


def test_what_cannot_be_is_refused_when_it_is_set_and_changes_nothing() -> None:
    handler = RateLimitHandler(limits=[TokenBucket(capacity=1.0)])
    with pytest.raises(ConfigError, match="costs"):
        handler.costs = {"order": 2.0}
    assert handler.costs == {}
    handler.limits = [TokenBucket(capacity=2.0)]
    handler.costs = {"order": 2.0}
    assert handler.costs == {"order": 2.0}


class Said:
    """What the strategies of one session note, to be looked at."""

    def __init__(self) -> None:
        self.words: list[str] = []


async def test_a_session_of_strategies_with_inits_of_their_own_is_like_any_other(
    autojump_clock: trio.abc.Clock,
) -> None:
    said = Said()

    def own(kind: type) -> Any:
        class Own(kind):  # type: ignore[misc]
            def __init__(self) -> None:
                self.said = said
                said.words.append(kind.__name__)

        return Own()

    class Service(Adapter):
        host = "venue.example"

        def __init__(self) -> None:
            self.secure = False

    options: dict[str, Any] = {
        "connection_handler": own(ConnectionHandler),
        "message_handler": own(MessageHandler),
        "subscription_handler": own(SubscriptionHandler),
        "auth_handler": own(AuthHandler),
        "error_handler": own(ErrorHandler),
        "rate_limit_handler": own(RateLimitHandler),
        "logging_handler": own(LoggingHandler),
        "metrics_collector": own(MetricsCollector),
        "codec": own(JsonCodec),
        "backoff": own(ExponentialBackoff),
        "heartbeat": own(PingHeartbeat),
        "correlation": own(Correlation),
        "transport": own(WireTransport),
    }
    assert len(said.words) == len(options)

    async def answer(peer: Peer) -> None:
        await peer.accept()
        subscribe = await peer.receive_json()
        await peer.send_json({"type": "subscribed", "channel": subscribe["channel"]})
        await peer.send_json({"channel": "trades", "price": 1})
        question = await peer.receive_json()
        await peer.send_json({"id": question["id"], "result": "yes"})
        await peer.serve_until_closed()

    async with ScriptedServer(answer) as server:
        async with open_connection(Service(), stream_factory=server.stream_factory, **options) as conn:
            assert conn.url == "ws://venue.example/"
            async with conn.subscribe("trades") as feed:
                assert await feed.receive() == {"channel": "trades", "price": 1}
                assert (await conn.request({"op": "ask"}))["result"] == "yes"
    assert configure(Config(), options).codec is options["codec"]
    assert math.isinf(Config().max_attempts)
