"""Any codec, seen from a session: what is opened for a link, what is charged, what is refused at once."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from sys import getsizeof
from typing import Any

import attrs
import pytest

from trio_nova import codecs
from trio_nova.codecs import (
    BadFrame,
    BinaryCodec,
    Codec,
    JsonCodec,
    LengthPrefixed,
    Lines,
    LinkCodec,
    MixedCodec,
    MsgpackCodec,
    Packets,
    RawCodec,
    Records,
    StreamBroken,
    StreamCodec,
    ZlibStream,
    ZstdStream,
    check_codec,
    open_link_codec,
    share_of,
    weigh_json,
)
from trio_nova.errors import BadMessage, ConfigError

STREAMS: list[StreamCodec] = [
    Lines(JsonCodec()),
    Records(JsonCodec()),
    Records(JsonCodec(), leading=True),
    LengthPrefixed(JsonCodec()),
    LengthPrefixed(JsonCodec(), "varint"),
    ZlibStream(JsonCodec(), both_ways=True),
    ZlibStream(JsonCodec(), both_ways=True, format="deflate"),
    ZlibStream(Lines(JsonCodec()), both_ways=True),
    ZstdStream(JsonCodec(), both_ways=True),
    ZstdStream(LengthPrefixed(MsgpackCodec()), both_ways=True),
]


def link_of(codec: StreamCodec, limit: int = 1_000_000) -> LinkCodec:
    link = open_link_codec(codec, limit)
    assert link is not None
    return link


@pytest.mark.parametrize(
    "codec", [RawCodec(), JsonCodec(), MixedCodec(), MsgpackCodec()], ids=lambda codec: type(codec).__name__
)
def test_a_plain_codec_is_used_as_it_is_on_every_link(codec: Codec) -> None:
    assert open_link_codec(codec, 100) is None


@pytest.mark.parametrize("codec", STREAMS, ids=lambda codec: type(codec).__name__)
def test_what_is_sent_is_read_back_by_the_same_codec_on_the_other_side(codec: StreamCodec) -> None:
    ours, theirs = link_of(codec), link_of(codec)
    for number in range(20):
        message = {"number": number, "text": "ü\n\x1e" * number}
        frames = ours.encode(message)
        assert [read for frame in frames for read in theirs.decode(frame)] == [message]


@pytest.mark.parametrize("codec", STREAMS, ids=lambda codec: type(codec).__name__)
def test_what_cannot_be_encoded_leaves_no_trace(codec: StreamCodec) -> None:
    ours, theirs = link_of(codec), link_of(codec)
    sent = list(ours.encode(["first"]))
    with pytest.raises(BadMessage):
        ours.encode([object()])
    sent += ours.encode(["second"])
    assert [read for frame in sent for read in theirs.decode(frame)] == [["first"], ["second"]]


class Pair:
    """A codec that makes two frames of each message."""

    remembers = False

    def open_link(self, max_message_size: int) -> LinkCodec:
        return self

    def encode(self, message: Any) -> Sequence[str | bytes]:
        return list(message)

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return [payload]


@pytest.mark.parametrize("make", [ZlibStream, ZstdStream])
def test_the_first_of_two_frames_is_not_compressed_where_the_second_cannot_be(make: Any) -> None:
    ours, theirs = link_of(make(Pair(), both_ways=True)), link_of(make(Pair()))
    sent = list(ours.encode(["one", "two"]))
    with pytest.raises(BadMessage, match="UTF-8 has no form for"):
        ours.encode(["three", "\ud800"])
    sent += ours.encode(["four", "five"])
    assert [read for frame in sent for read in theirs.decode(frame)] == [b"one", b"two", b"four", b"five"]


def test_where_what_was_compressed_cannot_be_framed_nothing_more_is_sent() -> None:
    link = link_of(LengthPrefixed(ZlibStream(RawCodec(), both_ways=True), 1))
    link.encode(b"a")
    with pytest.raises(BadMessage, match="does not fit in 1"):
        link.encode(bytes(range(256)))
    with pytest.raises(BadMessage, match=r"nothing more can be sent on this link: .* does not fit"):
        link.encode(b"b")


def test_a_message_that_does_not_fit_keeps_no_other_from_being_sent() -> None:
    link = link_of(LengthPrefixed(Lines(RawCodec()), 1))
    with pytest.raises(BadMessage, match="does not fit in 1"):
        link.encode(b"x" * 256)
    assert link.encode(b"y") == [b"\x02y\n"]


@pytest.mark.parametrize("codec", STREAMS, ids=lambda codec: type(codec).__name__)
def test_each_link_begins_anew(codec: StreamCodec) -> None:
    (frame,) = link_of(codec).encode([1])
    first = link_of(codec)
    first.decode(frame[:1])  # the beginning of a message, which is lost with the link
    assert list(link_of(codec).decode(frame)) == [[1]]


@pytest.mark.parametrize("codec", STREAMS, ids=lambda codec: type(codec).__name__)
def test_codecs_of_streams_are_values(codec: Any) -> None:
    again = attrs.evolve(codec)
    assert again == codec
    assert hash(again) == hash(codec)


# --------------------------------------------------------------------------- what is refused at once


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Lines(JsonCodec), "inner"),  # type: ignore[arg-type]
        (lambda: Lines(None), "inner"),  # type: ignore[arg-type]
        (lambda: Lines(JsonCodec(), over_frames=1), "over_frames"),  # type: ignore[arg-type]
        (lambda: Lines(JsonCodec(), crlf="yes"), "crlf"),  # type: ignore[arg-type]
        (lambda: Records(JsonCodec(), ""), "separator"),
        (lambda: Records(JsonCodec(), "\r\n"), "separator"),
        (lambda: Records(JsonCodec(), "ü"), "separator"),
        (lambda: Records(JsonCodec(), b"\x1e"), "separator"),  # type: ignore[arg-type]
        (lambda: Records(JsonCodec(), leading=None), "leading"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(object()), "inner"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(JsonCodec(), 0), "size"),
        (lambda: LengthPrefixed(JsonCodec(), 9), "size"),
        (lambda: LengthPrefixed(JsonCodec(), True), "size"),
        (lambda: LengthPrefixed(JsonCodec(), "short"), "size"),  # type: ignore[arg-type]
        (lambda: LengthPrefixed(JsonCodec(), byteorder="native"), "byteorder"),  # type: ignore[arg-type]
        (lambda: Packets(RawCodec(), 7), "length"),  # type: ignore[arg-type]
        (lambda: Packets(RawCodec(), len, 0), "head"),
        (lambda: Packets("mqtt", len), "inner"),  # type: ignore[arg-type]
        (lambda: ZlibStream(zip), "inner"),  # type: ignore[arg-type]
        (lambda: ZlibStream(JsonCodec(), level=10), "level"),
        (lambda: ZlibStream(JsonCodec(), format="gzip"), "format"),  # type: ignore[arg-type]
        (lambda: ZlibStream(JsonCodec(), text="utf-8"), "text"),  # type: ignore[arg-type]
        (lambda: ZlibStream(JsonCodec(), both_ways=1), "both_ways"),  # type: ignore[arg-type]
        (lambda: ZstdStream(7), "inner"),  # type: ignore[arg-type]
        (lambda: ZstdStream(JsonCodec(), level=0), "level"),
        (lambda: ZstdStream(JsonCodec(), window_log=31), "window_log"),
        (lambda: ZstdStream(JsonCodec(), window_log=23.0), "window_log"),  # type: ignore[arg-type]
        (lambda: MsgpackCodec(ext_hook=5), "ext_hook"),  # type: ignore[call-overload]
        (lambda: MsgpackCodec(enc_hook=""), "enc_hook"),  # type: ignore[call-overload]
        (lambda: BinaryCodec(encode=None, decode=bytes), "encode"),  # type: ignore[arg-type]
        (lambda: BinaryCodec(encode=bytes, decode="x"), "decode"),  # type: ignore[arg-type]
        (lambda: BinaryCodec(encode=bytes, decode=bytes, weigh=3), "weigh"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_that_is_wrong_is_named_at_once(make: Callable[[], object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field


def test_a_class_in_place_of_a_codec_is_told_how_one_is_made() -> None:
    with pytest.raises(ConfigError, match=r"must be an instance: write JsonCodec\("):
        Lines(JsonCodec)  # type: ignore[arg-type]


def test_a_type_that_msgspec_does_not_know_is_refused_by_the_codec_that_is_made() -> None:
    with pytest.raises(ConfigError, match="type"):
        MsgpackCodec(list[int] | set[int])


class OnlyOpens:
    def open_link(self, max_message_size: int) -> LinkCodec:
        raise NotImplementedError


@attrs.frozen
class Holder:
    codec: Any = attrs.field(validator=check_codec)


def test_a_codec_has_both_methods_or_opens_links() -> None:
    Holder(OnlyOpens())
    Holder(RawCodec())
    with pytest.raises(ConfigError, match="must have the methods encode and decode, or open_link"):
        Holder(object())


# --------------------------------------------------------------------------- what a frame of many costs


def test_the_messages_of_a_frame_share_what_they_take_together() -> None:
    link = link_of(Lines(JsonCodec()))
    frame = "[[],[]]\n" * 3
    messages = link.decode(frame)
    assert share_of(link, frame, messages) == weigh_json("[[],[]]")


def test_a_message_that_came_over_many_frames_is_charged_whole() -> None:
    link = link_of(Lines(RawCodec()))
    for _ in range(100):
        assert link.decode("x" * 100) == []
    messages = link.decode("\n")
    assert share_of(link, "\n", messages) == getsizeof("x" * 10_000)


def test_a_message_that_was_compressed_is_charged_by_what_it_is() -> None:
    ours, theirs = (link_of(ZlibStream(Lines(RawCodec()), both_ways=True)) for _ in range(2))
    (frame,) = ours.encode("x" * 100_000)
    messages = theirs.decode(frame)
    assert len(frame) < 300
    assert share_of(theirs, frame, messages) == getsizeof(b"x" * 100_000)


class Splits:
    """A codec of a link that does not weigh."""

    def encode(self, message: Any) -> Sequence[str | bytes]:
        return [message]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return payload.split()


def test_what_a_codec_does_not_weigh_is_weighed_by_what_it_made() -> None:
    frame = f"{'x' * 50} {'y' * 150}"
    assert share_of(Splits(), frame, Splits().decode(frame)) == (getsizeof("x" * 50) + getsizeof("y" * 150)) // 2


# --------------------------------------------------------------------------- what is bad in good company


def test_a_bad_message_does_not_take_the_others_of_its_frame_with_it() -> None:
    link = link_of(Lines(JsonCodec()))
    with pytest.raises(BadFrame, match="1 of 3 messages") as caught:
        link.decode("[1]\n[\n[3]\n[4")
    assert caught.value.messages == ([1], [3])
    assert [type(error) for error in caught.value.bad] == [BadMessage]
    assert share_of(link, "", caught.value.messages) == weigh_json("[1]")
    assert link.decode("]\n") == [[4]]


def test_a_frame_with_nothing_but_one_bad_message_is_that_error() -> None:
    link = link_of(Lines(JsonCodec()))
    with pytest.raises(BadMessage, match="not the JSON") as caught:
        link.decode("[\n")
    assert type(caught.value) is BadMessage
    assert link.decode("[1]\n") == [[1]]


def test_bad_messages_of_a_framing_within_a_framing_are_told_once_each() -> None:
    link = link_of(Records(Lines(JsonCodec())))
    with pytest.raises(BadFrame) as caught:
        link.decode("[1]\n[\n\x1e[2]\n\x1e{\n\x1e")
    assert caught.value.messages == ([1], [2])
    assert len(caught.value.bad) == 2
    assert link.decode("[3]\n\x1e") == [[3]]


def test_a_frame_of_countless_bad_messages_ends_the_reading_and_keeps_the_good_ones() -> None:
    link = link_of(Lines(JsonCodec()))
    with pytest.raises(StreamBroken, match="more than 64 messages of one frame are bad") as caught:
        link.decode("[1]\n" + "x\n" * 1_000)
    assert caught.value.messages == ([1],)
    assert len(caught.value.bad) == 65
    with pytest.raises(StreamBroken, match="more than 64") as again:
        link.decode("[2]\n")
    assert again.value.messages == ()


def test_a_framing_around_a_broken_stream_is_broken_too() -> None:
    ours, theirs = (link_of(LengthPrefixed(ZlibStream(JsonCodec(), both_ways=True))) for _ in range(2))
    first, second = (b"".join(ours.encode(message)) for message in ([1], [2]))  # type: ignore[arg-type]
    with pytest.raises(StreamBroken, match="cannot be inflated") as caught:
        theirs.decode(first + b"\x00\x00\x00\x04\xff\xff\xff\xff")
    assert caught.value.messages == ([1],)
    with pytest.raises(StreamBroken, match="cannot be inflated"):
        theirs.decode(second)


class Fails:
    """A codec of the user's, with a mistake in it."""

    def encode(self, message: Any) -> str:
        return str(message)

    def decode(self, payload: str | bytes) -> Any:
        return {"1": "one"}[payload]  # type: ignore[index]


def test_a_mistake_in_a_codec_inside_is_a_bad_message_and_its_cause() -> None:
    link = link_of(Lines(Fails()))
    with pytest.raises(BadFrame) as caught:
        link.decode("1\n2\n1\n")
    assert caught.value.messages == ("one", "one")
    (error,) = caught.value.bad
    assert isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize("frame", ["[\n\x1e", "[\n\x1e1\n\x1e"], ids=["alone", "in good company"])
@pytest.mark.parametrize(
    "codec", [JsonCodec(), Fails(), Lines(JsonCodec())], ids=["plain", "with a mistake", "framing"]
)
def test_an_error_that_is_done_with_keeps_no_payload_alive(codec: Any, frame: str) -> None:
    link = link_of(Records(codec))
    errors: list[weakref.ref[BadMessage]] = []
    gc.disable()
    try:
        try:
            link.decode(frame)
        except BadMessage as exc:
            errors += [weakref.ref(error) for error in (exc, *getattr(exc, "bad", ()))]
        assert errors
        assert [error() for error in errors] == [None] * len(errors)
    finally:
        gc.enable()


def test_a_codec_that_reads_many_at_once_is_asked_one_by_one_where_some_are_bad() -> None:
    link = link_of(LengthPrefixed(JsonCodec(), 1))
    with pytest.raises(BadFrame) as caught:
        link.decode(b"\x011\x01x\x013")
    assert caught.value.messages == (1, 3)


def test_the_library_for_zstandard_is_imported_by_the_first_codec_that_needs_it() -> None:
    program = (
        "import sys, trio_nova\n"
        "names = ('backports.zstd', 'compression.zstd')\n"
        "assert not any(name in sys.modules for name in names)\n"
        "trio_nova.codecs.ZstdStream(trio_nova.JsonCodec())\n"
        "assert any(name in sys.modules for name in names)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_library_for_zstandard_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backports.zstd", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r'pip install "trio-nova\[zstd\]"'):
        ZstdStream(JsonCodec())


def test_everything_that_is_offered_is_there() -> None:
    assert [name for name in codecs.__all__ if not hasattr(codecs, name)] == []
