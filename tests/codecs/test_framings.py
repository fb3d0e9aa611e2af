"""Messages cut out of frames: at separators, and by their lengths."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.codecs import (
    BadFrame,
    BinaryCodec,
    JsonCodec,
    LengthPrefixed,
    Lines,
    LinkCodec,
    Packets,
    RawCodec,
    Records,
    StreamBroken,
    StreamCodec,
    open_link_codec,
)
from trio_nova.errors import BadMessage


def link_of(codec: StreamCodec, limit: int = 1_000_000) -> LinkCodec:
    link = open_link_codec(codec, limit)
    assert link is not None
    return link


def read_all(link: LinkCodec, frames: Sequence[str | bytes]) -> list[Any]:
    return [message for frame in frames for message in link.decode(frame)]


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut a stream at places, each modulo its length."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[one:next_one] for one, next_one in pairwise(places)]


def mqtt_length(head: bytes) -> int | None:
    """Tell the length of an MQTT packet: MQTT 5.0 section 2.1, a byte and then a number of up to four."""
    length = 0
    for at, byte in enumerate(head[1:5]):
        length |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return at + 2 + length
    if len(head) >= 5:
        raise ValueError("a malformed remaining length")
    return None


def mqtt_packet(message: Any) -> bytes:
    body = json.dumps(message).encode()
    length, coded = len(body), bytearray()
    while True:
        coded.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            return b"\x30" + bytes(coded) + body


def mqtt_message(packet: bytes) -> Any:
    return json.loads(packet[packet.index(b"[") :])


MQTT = Packets(BinaryCodec(encode=mqtt_packet, decode=mqtt_message), mqtt_length, 5)

FRAMINGS: dict[str, StreamCodec] = {
    "lines": Lines(JsonCodec()),
    "lines with carriage returns": Lines(JsonCodec(), crlf=True),
    "records": Records(JsonCodec()),
    "JSON text sequences": Records(JsonCodec(), leading=True),
    "length of 4 bytes": LengthPrefixed(JsonCodec()),
    "length of 2 bytes, the lowest first": LengthPrefixed(JsonCodec(), 2, "little"),
    "length as a varint": LengthPrefixed(JsonCodec(), "varint"),
    "packets of MQTT": MQTT,
}
values = st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53), st.text(max_size=200)), max_size=5)
cuts = st.lists(st.integers(0, 10_000), max_size=20)


@pytest.mark.parametrize("codec", FRAMINGS.values(), ids=FRAMINGS)
@given(messages=st.lists(values, max_size=8), cuts=cuts)
def test_however_a_stream_is_split_into_frames_the_messages_are_the_same(
    codec: StreamCodec, messages: list[Any], cuts: list[int]
) -> None:
    ours, theirs = link_of(codec), link_of(codec)
    sent = [frame for message in messages for frame in ours.encode(message)]
    stream = b"".join(frame.encode() if isinstance(frame, str) else frame for frame in sent)
    assert read_all(theirs, pieces(stream, cuts)) == messages


@pytest.mark.parametrize("codec", FRAMINGS.values(), ids=FRAMINGS)
@given(frames=st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=300)), max_size=8))
def test_garbage_is_a_bad_message_and_nothing_else(codec: StreamCodec, frames: list[str | bytes]) -> None:
    link = link_of(codec, 100)
    broken = False
    for frame in frames:
        try:
            link.decode(frame)
        except StreamBroken:
            broken = True
        except BadMessage:
            assert not broken
        else:
            assert not broken


@pytest.mark.parametrize("codec", FRAMINGS.values(), ids=FRAMINGS)
def test_a_message_without_an_end_is_kept_up_to_the_limit_and_no_further(codec: StreamCodec) -> None:
    link = link_of(codec, 100_000)
    first = b"\x1e" if codec == FRAMINGS["JSON text sequences"] else b""
    refused = 0
    tracemalloc.start()
    try:
        for number in range(300):
            frame = (first if not number else b"") + b"\x7f" * 10_000
            try:
                link.decode(frame)
            except BadMessage:
                refused += 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused
    assert peak < 600_000


# --------------------------------------------------------------------------- lines and records


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_frame_brings_several_lines_a_half_or_none(end: str) -> None:
    link = link_of(Lines(RawCodec()))
    assert link.decode(f"one{end}two{end}thr") == ["one", "two"]
    assert link.decode("e") == []
    assert link.decode("") == []
    assert link.decode(f"e{end}") == ["three"]
    assert link.decode(end * 3) == []


def test_lines_of_a_binary_frame_are_bytes() -> None:
    assert link_of(Lines(RawCodec())).decode(b"one\r\ntwo\n") == [b"one", b"two"]


def test_a_carriage_return_may_come_in_one_frame_and_its_newline_in_the_next() -> None:
    link = link_of(Lines(RawCodec()))
    assert [*link.decode("one\r"), *link.decode("\ntwo\n")] == ["one", "two"]


def test_the_end_of_a_frame_ends_a_line_where_the_service_means_it() -> None:
    link = link_of(Lines(JsonCodec(), over_frames=False))
    assert link.decode("[1]\n[2]") == [[1], [2]]
    assert link.decode("[3]") == [[3]]


def test_each_message_is_sent_as_one_line_of_its_own_frame() -> None:
    assert link_of(Lines(JsonCodec())).encode({"a": "\n"}) == ['{"a":"\\n"}\n']
    assert link_of(Lines(RawCodec(), crlf=True)).encode(b"a") == [b"a\r\n"]
    with pytest.raises(BadMessage, match=r"holds '\\n' would be taken for two"):
        link_of(Lines(RawCodec())).encode("a\nb")


def test_signalr_puts_a_record_separator_behind_each_message() -> None:
    link = link_of(Records(JsonCodec()))
    assert link.encode({"protocol": "json", "version": 1}) == ['{"protocol":"json","version":1}\x1e']
    assert link.decode('{}\x1e{"type":6}\x1e') == [{}, {"type": 6}]
    with pytest.raises(BadMessage, match="would be taken for two"):
        link_of(Records(RawCodec())).encode("a\x1eb")


def test_json_text_sequences_put_it_before_each_and_a_newline_behind() -> None:
    link = link_of(Records(JsonCodec(), leading=True))
    assert link.encode([1]) == ["\x1e[1]\n"]
    assert link.decode("\x1e[1]\n") == [[1]]  # and not only with the next one
    assert link.decode("\x1e[\n1]\n\x1e\x1e[2]\n \x1e[3") == [[1], [2]]
    assert link.decode("]\n") == [[3]]
    with pytest.raises(BadMessage, match="without '\\\\x1e' before it"):
        link.decode("[4]\n")
    assert link.decode("\x1e[5]\n") == [[5]]


def test_the_separator_can_be_another_character() -> None:
    link = link_of(Records(RawCodec(), "\0"))
    assert [*link.encode("a"), *link.decode("b\0c\0")] == ["a\0", "b", "c"]


@pytest.mark.parametrize("end", ["\n", "\n[2]\n"])
def test_a_line_that_is_too_long_is_passed_over_up_to_its_end(end: str) -> None:
    link = link_of(Lines(JsonCodec()), 10)
    assert link.decode("123456") == []
    with pytest.raises(BadMessage, match="exceeds max_message_size, 10 bytes"):
        link.decode("789012")
    assert link.decode("[1]") == []  # of the same line still
    assert link.decode(end) == ([[2]] if "2" in end else [])
    assert link.decode("[3]\n") == [[3]]


def test_a_line_that_is_too_long_when_it_ends_is_told_beside_the_others() -> None:
    link = link_of(Lines(RawCodec()), 5)
    link.decode("12345")
    with pytest.raises(BadFrame) as caught:
        link.decode("6\nnext\n1234567\nlast\n")
    assert caught.value.messages == ("next", "last")
    assert len(caught.value.bad) == 2


def test_a_line_of_text_that_goes_on_in_a_binary_frame_is_refused_and_the_next_is_read() -> None:
    link = link_of(Lines(RawCodec()))
    link.decode("on")
    with pytest.raises(BadFrame, match="another kind") as caught:
        link.decode(b"e\ntwo\nthr")
    assert caught.value.messages == (b"two",)
    assert link.decode(b"ee\n") == [b"three"]
    assert link.decode("four\n") == ["four"]


# --------------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("codec", "frame"),
    [
        (LengthPrefixed(RawCodec()), b"\x00\x00\x00\x02hi"),
        (LengthPrefixed(RawCodec(), 3, "little"), b"\x02\x00\x00hi"),
        (LengthPrefixed(RawCodec(), "varint"), b"\x02hi"),
    ],
)
def test_a_length_stands_before_each_message(codec: StreamCodec, frame: bytes) -> None:
    link = link_of(codec)
    assert link.encode("hi") == [frame]
    assert link.decode(frame * 2 + frame[:-1]) == [b"hi", b"hi"]
    assert link.decode(frame[-1:]) == [b"hi"]


def test_a_message_may_be_empty() -> None:
    link = link_of(LengthPrefixed(RawCodec(), 1))
    assert link.encode(b"") == [b"\0"]
    assert link.decode(b"\0\0\x01x") == [b"", b"", b"x"]


def test_a_long_message_has_a_varint_of_several_bytes() -> None:
    ours, theirs = (link_of(LengthPrefixed(RawCodec(), "varint")) for _ in range(2))
    (frame,) = ours.encode(b"x" * 300)
    assert frame[:2] == b"\xac\x02"
    assert theirs.decode(frame) == [b"x" * 300]


def test_a_message_whose_length_does_not_fit_is_not_sent() -> None:
    with pytest.raises(BadMessage, match="does not fit in 1"):
        link_of(LengthPrefixed(RawCodec(), 1)).encode(b"x" * 256)


def test_a_length_beyond_the_limit_breaks_the_stream_after_what_came_before() -> None:
    link = link_of(LengthPrefixed(RawCodec(), 1), 10)
    with pytest.raises(StreamBroken, match="a message of 11 bytes exceeds max_message_size, 10 bytes") as caught:
        link.decode(b"\x01a\x0a0123456789\x0b")
    assert caught.value.messages == (b"a", b"0123456789")
    with pytest.raises(StreamBroken, match="nothing more can be read on this link"):
        link.decode(b"\x01b")
    assert link.encode(b"c") == [b"\x01c"]


def test_a_varint_without_an_end_breaks_the_stream() -> None:
    with pytest.raises(StreamBroken, match="no length within 10 bytes"):
        link_of(LengthPrefixed(RawCodec(), "varint")).decode(b"\xff" * 10)


@pytest.mark.parametrize("codec", [LengthPrefixed(RawCodec(), 1), Packets(RawCodec(), lambda head: 2)], ids=type)
def test_a_text_frame_within_a_stream_of_bytes_is_refused_and_the_stream_goes_on(codec: StreamCodec) -> None:
    link = link_of(codec)
    assert link.decode(b"\x01") == []
    with pytest.raises(BadMessage, match="a text frame"):
        link.decode("a")
    assert len(link.decode(b"a")) == 1


# --------------------------------------------------------------------------- packets


def test_a_frame_brings_half_a_packet_of_mqtt_or_three() -> None:
    link = link_of(MQTT)
    stream = b"".join(mqtt_packet([number, "x" * 200]) for number in range(4))
    assert link.decode(stream[:1]) == []
    assert len(link.decode(stream[1:-1])) == 3
    assert link.decode(stream[-1:]) == [[3, "x" * 200]]


@pytest.mark.parametrize(
    ("length", "why"),
    [
        (lambda head: 0, "length answered 0"),
        (lambda head: True, "length answered True"),
        (lambda head: 2.0, "length answered 2.0"),
        (lambda head: 10**9, "a message of 1000000000 bytes exceeds max_message_size"),
        (lambda head: None, "no length within 4 bytes"),
        (lambda head: 1 // 0, "length raised ZeroDivisionError"),
    ],
)
def test_a_head_that_tells_no_length_breaks_the_stream(length: Any, why: str) -> None:
    link = link_of(Packets(RawCodec(), length, 4))
    with pytest.raises(StreamBroken, match=why):
        link.decode(b"12345")
    with pytest.raises(StreamBroken, match=why):
        link.decode(b"")
