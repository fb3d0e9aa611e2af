from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import open_connection
from trio_nova.codecs import Codec, JsonCodec, MixedCodec, RawCodec
from trio_nova.errors import BadMessage
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
    assert JsonCodec(Trade) == JsonCodec(Trade) != JsonCodec(Positive)
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
