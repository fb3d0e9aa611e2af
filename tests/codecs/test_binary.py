"""MessagePack, and formats of one's own: one message for one binary frame."""

from __future__ import annotations

import datetime
import struct
import tracemalloc
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import Reply
from trio_nova.codecs import BinaryCodec, LengthPrefixed, MsgpackCodec, batch_decoder, open_link_codec, weigher
from trio_nova.errors import BadMessage

values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary()
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
)


class Trade(msgspec.Struct):
    price: float
    side: str = "buy"


# --------------------------------------------------------------------------- MessagePack


@given(values)
def test_messagepack_reads_back_what_it_wrote(value: Any) -> None:
    codec = MsgpackCodec()
    payload = codec.encode(value)
    assert type(payload) is bytes
    assert codec.decode(payload) == value


def test_typed_messagepack_makes_structs_and_refuses_what_does_not_fit() -> None:
    codec = MsgpackCodec(Trade)
    assert codec.decode(codec.encode({"price": 1.5, "new": 0})) == Trade(1.5)
    with pytest.raises(BadMessage, match="ValidationError"):
        codec.decode(codec.encode({"price": "1.5"}))


def test_a_timestamp_needs_no_hook() -> None:
    now = datetime.datetime(2030, 1, 2, 3, 4, 5, 678, datetime.UTC)
    assert MsgpackCodec().decode(MsgpackCodec().encode(now)) == now


@pytest.mark.parametrize("payload", [b"\xd4\x05a", b"\x91\xd4\x05a", b"\x81\xa1a\xc7\x03\x7fabc"])
def test_an_extension_type_is_refused_where_no_hook_knows_it(payload: bytes) -> None:
    with pytest.raises(BadMessage, match="extension type"):
        MsgpackCodec().decode(payload)


def test_hooks_read_and_write_an_extension_type() -> None:
    def write(value: Any) -> msgspec.msgpack.Ext:
        assert isinstance(value, complex)
        return msgspec.msgpack.Ext(1, struct.pack("dd", value.real, value.imag))

    def read(code: int, data: memoryview) -> complex:
        assert code == 1
        return complex(*struct.unpack("dd", data))

    codec = MsgpackCodec(ext_hook=read, enc_hook=write)
    assert codec.decode(codec.encode([1 + 2j])) == [1 + 2j]
    with pytest.raises(BadMessage, match="AssertionError") as caught:
        codec.decode(b"\xd4\x05a")
    assert isinstance(caught.value.__cause__, AssertionError)
    with pytest.raises(BadMessage, match="cannot be sent as MessagePack"):
        codec.encode(object())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x01\x02",
        b"\xa1\xff",
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff" * 50,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x81\x01\x02\x03",
        b"\xd7\xff" + b"\xff" * 8,
        "text",
        "",
    ],
    ids=repr,
)
def test_hostile_messagepack_is_a_bad_message_and_takes_no_memory(payload: str | bytes) -> None:
    codec = MsgpackCodec()
    with pytest.raises(BadMessage):
        codec.decode(payload)
    with pytest.raises(BadMessage):
        codec.decode_all([b"\x01", payload])


@given(st.binary())
def test_any_garbage_is_a_value_or_a_bad_message(payload: bytes) -> None:
    for codec in (MsgpackCodec(), MsgpackCodec(Trade)):
        try:
            message = codec.decode(payload)
        except BadMessage:
            continue
        assert codec.weigh(payload, message) >= len(payload)


@pytest.mark.parametrize("message", [object(), {1, object()}, 2**64, Reply("x"), [Reply("x")], {"a": Reply("x")}])
def test_what_has_no_form_in_messagepack_is_not_sent(message: object) -> None:
    with pytest.raises(BadMessage):
        MsgpackCodec().encode(message)


@pytest.mark.parametrize(
    "message",
    [
        [[]] * 20_000,
        [{}] * 20_000,
        [1.5] * 20_000,
        [1000] * 20_000,
        {str(n): n for n in range(5_000)},
        ["é"] * 9_000,
        {(1, n): 2 for n in range(3_000)},
    ],
    ids=["arrays", "objects", "floats", "numbers", "a mapping", "texts", "keys that JSON does not know"],
)
def test_messagepack_is_charged_at_least_a_third_of_what_it_takes(message: Any) -> None:
    codec = MsgpackCodec()
    payload = codec.encode(message)
    tracemalloc.start()
    try:
        decoded = codec.decode(payload)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert weigher(codec)(payload, decoded) * 3 >= taken


def test_a_batch_of_messagepack_is_decoded_together() -> None:
    decode_all = batch_decoder(MsgpackCodec())
    assert decode_all is not None
    assert decode_all([b"\x01", b"\xa1a"]) == [1, "a"]


# --------------------------------------------------------------------------- a format of one's own, as Protocol Buffers


@attrs.frozen
class Order:
    """`message Order { uint64 id = 1; string symbol = 2; }`."""

    id: int = 0
    symbol: str = ""


def to_varint(number: int) -> bytes:
    coded = bytearray()
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    coded.append(number)
    return bytes(coded)


def from_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a varint without an end")


def write(order: Order) -> bytes:
    symbol = order.symbol.encode()
    return b"\x08" + to_varint(order.id) + b"\x12" + to_varint(len(symbol)) + symbol


def read(data: bytes) -> Order:
    at, fields = 0, dict[str, Any]()
    while at < len(data):
        tag, at = from_varint(data, at)
        number, at = from_varint(data, at)
        match tag:
            case 0x08:
                fields["id"] = number
            case 0x12 if at + number <= len(data):
                fields["symbol"] = data[at : at + number].decode()
                at += number
            case _:
                raise ValueError("an unknown field, or one that is cut short")
    return Order(**fields)


PROTOCOL = BinaryCodec(encode=write, decode=read)


@given(id=st.integers(0, 2**64 - 1), symbol=st.text())
def test_two_functions_make_a_codec(id: int, symbol: str) -> None:
    order = Order(id, symbol)
    assert PROTOCOL.decode(PROTOCOL.encode(order)) == order


@given(st.binary())
def test_garbage_in_a_format_of_ones_own_is_a_bad_message_and_nothing_else(payload: bytes) -> None:
    try:
        message = PROTOCOL.decode(payload)
    except BadMessage:
        return
    assert isinstance(message, Order)


def test_messages_with_their_length_before_each_are_how_protocol_buffers_are_streamed() -> None:
    link = open_link_codec(LengthPrefixed(PROTOCOL, "varint"), 1_000)
    assert link is not None
    stream = b"".join(frame for number in range(3) for frame in link.encode(Order(number, "BTC")))  # type: ignore[misc]
    assert [*link.decode(stream[:10]), *link.decode(stream[10:])] == [Order(number, "BTC") for number in range(3)]


def test_what_the_functions_raise_is_a_bad_message_and_its_cause() -> None:
    with pytest.raises(BadMessage, match="a value of type str cannot be sent: AttributeError") as caught:
        PROTOCOL.encode("order")
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(BadMessage, match="not the message that was expected: IndexError"):
        PROTOCOL.decode(b"\x08")


def test_a_bad_message_that_the_functions_raise_is_left_as_it_is() -> None:
    def refuse(value: Any) -> Any:
        raise BadMessage("not on Sundays")

    codec = BinaryCodec(encode=refuse, decode=refuse)
    for ask in (codec.encode, codec.decode):
        with pytest.raises(BadMessage) as caught:
            ask(b"")
        assert str(caught.value) == "not on Sundays"


def test_a_text_frame_is_none_of_a_binary_format_and_neither_is_a_str_sent() -> None:
    with pytest.raises(BadMessage, match="a text frame"):
        PROTOCOL.decode("text")
    with pytest.raises(BadMessage, match="encode made a str, not bytes"):
        BinaryCodec(encode=str, decode=bytes).encode(Decimal(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_what_is_like_bytes_is_sent_as_bytes(made: Any) -> None:
    payload = BinaryCodec(encode=lambda message: made, decode=bytes).encode(None)
    assert type(payload) is bytes
    assert payload == b"ab"


def test_a_format_of_ones_own_is_weighed_by_its_own_function() -> None:
    assert weigher(BinaryCodec(encode=write, decode=read, weigh=lambda payload, order: 77))(b"x", Order()) == 77
    assert weigher(PROTOCOL)(b"x" * 1_000, Order()) >= 1_000
