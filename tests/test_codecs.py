from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import (
    Allow,
    AuthOk,
    Close,
    FeedOptions,
    Granted,
    LinkOpened,
    ListBackoff,
    MessageHandler,
    Ping,
    Pong,
    Reconnect,
    Reply,
    ReplyMany,
    Secret,
    State,
    open_connection,
)
from trio_nova.codecs import Codec, JsonCodec, MixedCodec, RawCodec
from trio_nova.demo.wire import Order
from trio_nova.errors import BadMessage
from trio_nova.links import Transport
from trio_nova.testing import ScriptedServer, echo


class Trade(msgspec.Struct):
    price: float
    side: str = "buy"


class Priced(msgspec.Struct):
    price: float
    comment: str | None = None


class Positive(msgspec.Struct):
    """One that checks itself."""

    amount: int

    def __post_init__(self) -> None:
        if self.amount <= 0:
            raise ValueError("not positive")


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), finite, st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)

HOSTILE: dict[str, str | bytes] = {
    "nothing": "",
    "no bytes": b"",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "too large a number": "1e999",
    "5,000 digits": "1" * 5_000,
    "5,000 digits below zero": "-" + "9" * 5_000,
    "a lone surrogate": '"\ud800"',
    "an escaped lone surrogate": '"\\ud800"',
    "a torn surrogate pair": '"\\ud83d\\u0041"',
    "invalid UTF-8": b'"\xff\xfe"',
    "overlong UTF-8": b'"\xc0\xaf"',
    "trailing text": '{"a":1} x',
    "trailing NUL": b"{}\x00",
    "two values": "{}{}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a cut object": '{"a":',
    "a trailing comma": "[1,]",
    "single quotes": "{'a':1}",
    "a raw control character": '"\n"',
    "a leading zero": "01",
    "deep lists": "[" * 100_000,
    "deep and complete lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000,
}


# --------------------------------------------------------------------------- raw


@pytest.mark.parametrize("payload", ["", "Hello", "ü\x00", b"", b"\xff\x00"])
def test_raw_text_and_bytes_go_both_ways_unchanged(payload: str | bytes) -> None:
    codec = RawCodec()
    assert codec.encode(payload) is payload
    assert codec.decode(payload) is payload


@pytest.mark.parametrize("buffer", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"xaxb")[1::2]])
def test_raw_buffers_are_copied_when_they_are_taken(buffer: bytearray | memoryview) -> None:
    payload = RawCodec().encode(buffer)
    assert type(payload) is bytes
    assert payload == b"ab"


@pytest.mark.parametrize("message", [{"a": [1, None]}, [1, 2], 7, None, True])
def test_what_is_neither_text_nor_bytes_is_sent_raw_as_json(message: object) -> None:
    payload = RawCodec().encode(message)
    assert isinstance(payload, str)
    assert json.loads(payload) == message


# --------------------------------------------------------------------------- JSON, in good order


@given(json_values)
def test_json_reads_back_what_it_wrote(value: Any) -> None:
    codec = JsonCodec()
    payload = codec.encode(value)
    assert json.loads(payload) == value
    assert codec.decode(payload) == value
    assert codec.decode(payload.encode()) == value


def test_typed_json_makes_structs_and_ignores_fields_it_does_not_know() -> None:
    codec = JsonCodec(list[Trade])
    assert codec.decode('[{"price":1.5,"new":0},{"price":2,"side":"sell"}]') == [Trade(1.5), Trade(2.0, "sell")]
    assert codec.encode([Trade(1.5)]) == '[{"price":1.5,"side":"buy"}]'


@pytest.mark.parametrize("payload", ["{}", '{"price":"1.5"}', '{"price":1,"side":null}', "[]", "null"])
def test_typed_json_refuses_what_does_not_fit_the_type(payload: str) -> None:
    with pytest.raises(BadMessage) as caught:
        JsonCodec(Trade).decode(payload)
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)


def test_a_struct_that_refuses_its_own_value_makes_a_bad_message() -> None:
    assert JsonCodec(Positive).decode('{"amount":1}') == Positive(1)
    with pytest.raises(BadMessage):
        JsonCodec(Positive).decode('{"amount":0}')


def test_codecs_are_values() -> None:
    codec: JsonCodec = JsonCodec(Trade)
    assert codec == JsonCodec(Trade)
    assert codec != JsonCodec(Positive)
    assert RawCodec() == RawCodec()
    assert "Decoder" not in repr(JsonCodec(Trade))


# --------------------------------------------------------------------------- JSON, hostile


@pytest.mark.fault("F60", where="memory")
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_a_bad_message_and_nothing_else(kind: str) -> None:
    for codec in (JsonCodec(), JsonCodec(Trade), JsonCodec(list[Any])):
        with pytest.raises(BadMessage) as caught:
            codec.decode(HOSTILE[kind])
        assert caught.value.__cause__ is not None


def test_a_refusal_does_not_quote_the_payload() -> None:
    with pytest.raises(BadMessage) as caught:
        JsonCodec().decode('{"token":"s3cr3t"')
    assert "s3cr3t" not in str(caught.value)


@given(st.one_of(st.text(st.characters()), st.binary(), st.text('[]{}":,0123456789eE+-.ntfu\\ ')))
def test_no_payload_makes_decoding_raise_anything_but_bad_message(payload: str | bytes) -> None:
    for codec in (JsonCodec(), JsonCodec(Trade)):
        with suppress(BadMessage):
            codec.decode(payload)


# --------------------------------------------------------------------------- what cannot be sent


def deep(levels: int) -> list[Any]:
    """Return a list in a list in a list."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    "message",
    [object(), {(1, 2): 3}, {None: 1}, "\ud800", ["\udfff"], deep(100_000), 10**5_000, 1j, [object()]],
    ids=["object", "tuple key", "None key", "surrogate", "inner surrogate", "deep", "huge", "complex", "inner object"],
)
def test_what_json_has_no_form_for_is_a_bad_message(message: object) -> None:
    with pytest.raises(BadMessage, match="cannot be sent as JSON") as caught:
        JsonCodec().encode(message)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", [JsonCodec(), RawCodec(), MixedCodec()])
def test_numbers_that_json_does_not_know_are_not_sent_as_something_else(codec: Codec, number: float) -> None:
    order = {"side": "buy", "legs": [{"note": None, "price": number}]}
    with pytest.raises(BadMessage, match="NaN and the infinities"):
        codec.encode(order)
    with pytest.raises(BadMessage, match="NaN and the infinities"):
        codec.encode(Priced(number))


def test_null_is_sent_as_it_is() -> None:
    codec = JsonCodec()
    assert codec.encode({"a": None, "b": ("null", 1.5)}) == '{"a":null,"b":["null",1.5]}'
    assert codec.encode([msgspec.Raw(b'{"a":null}')]) == '[{"a":null}]'


@pytest.mark.parametrize("base", [RawCodec, JsonCodec, MixedCodec])
async def test_a_decode_that_a_subclass_overrides_is_asked(base: Any, autojump_clock: trio.abc.Clock) -> None:
    class One(base):  # type: ignore[misc]
        def decode(self, payload: str | bytes) -> Any:
            return ("one", super().decode(payload))

    class All(One):
        def decode_all(self, payloads: Sequence[str | bytes]) -> Sequence[Any]:
            return [("all", payload) for payload in payloads]

    async with ScriptedServer(then=echo) as server:
        for codec, heard in (One(), ("one", base().decode("[1]"))), (All(), ("all", "[1]")):
            async with open_connection("ws://server.test/", stream_factory=server.stream_factory, codec=codec) as conn:
                await conn.send_text("[1]")
                assert await conn.receive() == heard


# --------------------------------------------------------------------------- exact decimals

EXACT = "123456789012345678.100000000000000000000000000010"


class Level(msgspec.Struct):
    price: Decimal
    size: float
    rest: Any = None


@pytest.mark.parametrize("codec", [JsonCodec(decimals=True), MixedCodec(decimals=True)], ids=["json", "mixed"])
def test_numbers_with_a_fraction_or_an_exponent_keep_all_their_digits_where_that_is_wanted(codec: Codec) -> None:
    text = f'{{"p":{EXACT},"n":-0.10,"e":1E+3,"whole":7}}'
    message = codec.decode(text)
    assert [str(value) for value in message.values()] == [EXACT, "-0.10", "1E+3", "7"]
    assert [type(value) for value in message.values()] == [Decimal, Decimal, Decimal, int]
    assert codec.encode(message) == text
    assert type(type(codec)().decode('{"p": 1.5}')["p"]) is float


def test_a_batch_of_messages_keeps_its_digits_too() -> None:
    assert [str(each) for each in JsonCodec(decimals=True).decode_all(["1.10", "2.20"])] == ["1.10", "2.20"]


def test_a_type_says_by_itself_which_of_its_numbers_are_exact() -> None:
    text = '{"price":1.10,"size":1.10,"rest":1.10}'
    assert JsonCodec(Level).decode(text) == Level(Decimal("1.10"), 1.1, 1.1)
    exact = JsonCodec(Level, decimals=True).decode(text)
    assert (type(exact.price), type(exact.size), str(exact.rest)) == (Decimal, float, "1.10")


@pytest.mark.parametrize("exponent", ["1e99999999999999999999", "[1.5e-99999999999999999999]"])
def test_an_exponent_that_no_decimal_has_is_a_bad_message(exponent: str) -> None:
    codec = JsonCodec(decimals=True)
    with pytest.raises(BadMessage, match="not the JSON that was expected"):
        codec.decode(exponent)
    with pytest.raises(BadMessage, match="not the JSON that was expected"):
        codec.decode_all([exponent])
    assert MixedCodec(decimals=True).decode(exponent) == exponent


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_no_better_read_as_decimals(kind: str) -> None:
    payload = HOSTILE[kind]
    try:
        message = JsonCodec(decimals=True).decode(payload)
    except BadMessage:
        return
    assert (kind, message) == ("too large a number", Decimal("1e999"))


@pytest.mark.parametrize("codec", [RawCodec(), JsonCodec(), MixedCodec()], ids=["raw", "json", "mixed"])
def test_a_decimal_is_sent_as_the_number_that_it_is(codec: Codec) -> None:
    message = {"price": Decimal(EXACT), "sizes": [Decimal("0.10"), Decimal("-0.0"), Decimal("1E+3")]}
    assert codec.encode(message) == f'{{"price":{EXACT},"sizes":[0.10,-0.0,1E+3]}}'
    assert codec.encode(Level(Decimal("1.10"), 1.0)) == '{"price":1.10,"size":1.0,"rest":null}'
    for word in ("NaN", "sNaN", "Infinity", "-Infinity"):
        for bad in (Decimal(word), {"price": [Decimal(word)]}, Level(Decimal(word), 1.0)):
            with pytest.raises(BadMessage, match="cannot be sent as JSON"):
                codec.encode(bad)
    assert codec.encode(["NaN", "Infinity", None]) == '["NaN","Infinity",null]'


# --------------------------------------------------------------------------- objects that are no messages


@attrs.define
class Held:
    """Of the program's own: `attrs` makes it, as it makes those of the library."""

    content: Any


@dataclasses.dataclass
class HeldToo:
    content: Any


class HeldAsStruct(msgspec.Struct):
    content: Any


OWN = [
    Ping(b"1"),
    Pong(),
    Reply("x"),
    ReplyMany(["x"]),
    Close(),
    Reconnect(),
    Allow(),
    LinkOpened(connect_time=0.1),
    ListBackoff([1.0]),
    FeedOptions(),
    Granted("trades"),
    AuthOk(),
]
HOLDERS: list[Callable[[Any], Any]] = [
    lambda own: own,
    lambda own: [own, "t"],
    lambda own: (own,),
    lambda own: {"a": {"b": [1, own]}},
    Held,
    HeldToo,
    HeldAsStruct,
    lambda own: [Held([HeldToo({"x": HeldAsStruct((own,))})])],
]


@pytest.mark.parametrize("codec", [RawCodec(), JsonCodec(), MixedCodec()], ids=["raw", "json", "mixed"])
@pytest.mark.parametrize("own", OWN, ids=lambda own: type(own).__name__)
def test_an_object_of_the_library_is_never_sent_as_json(codec: Codec, own: Any) -> None:
    for hold in HOLDERS:
        with pytest.raises(BadMessage, match=f"a {type(own).__name__} of trio_nova is no message"):
            codec.encode(hold(own))
    with pytest.raises(BadMessage, match="cannot be sent as JSON"):
        codec.encode({"token": Secret("x")})


def test_what_the_program_makes_itself_is_sent_as_ever() -> None:
    assert JsonCodec().encode([Held(1), HeldToo({"x": HeldAsStruct((2,))}), State.READY]) == (
        '[{"content":1},{"content":{"x":{"content":[2]}}},"ready"]'
    )


async def test_no_call_and_no_hook_sends_an_object_of_the_library(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    class Confused(MessageHandler):
        def handle_message(self, kind: str, message: Any) -> ReplyMany | None:
            return ReplyMany([Reply("x"), [Ping(b"1"), "t"], "fine"]) if message == "go" else None

    async with (
        ScriptedServer(echo) as server,
        open_connection(
            "ws://server.test/", stream_factory=server.stream_factory, transport=transport, message_handler=Confused
        ) as conn,
    ):
        for bad in ([Ping(b"1"), "t"], Reply("x"), {"event": conn.close_info, "config": conn.config}):
            for send in (conn.send, conn.request, conn.send_json):
                with pytest.raises(BadMessage):
                    await send(bad)
        await conn.send("go")
        await trio.sleep(1.0)
        await conn.aclose()
        await server.dials[0].wait_ended()
        said = [frame for frame in server.dials[0].frames if isinstance(frame, str)]
    assert said == ["go", "fine"]


def test_the_messages_of_one_service_may_be_the_librarys() -> None:
    """What stands for a message of the demonstration, or of a shipped adapter, is one."""
    assert JsonCodec().encode({"order": Order(1, 2.5, 3)}) == '{"order":{"number":1,"price":2.5,"quantity":3}}'
