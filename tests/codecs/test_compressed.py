"""Messages in one compressed stream for all of a link."""

from __future__ import annotations

import importlib
import random
import sys
import tracemalloc
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.codecs import (
    JsonCodec,
    Lines,
    LinkCodec,
    MixedCodec,
    RawCodec,
    StreamBroken,
    StreamCodec,
    ZlibStream,
    ZstdStream,
    open_link_codec,
)
from trio_nova.errors import BadMessage

zstd: Any = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

STREAMS: dict[str, StreamCodec] = {
    "zlib": ZlibStream(RawCodec(), both_ways=True),
    "bare deflate": ZlibStream(RawCodec(), both_ways=True, format="deflate"),
    "zstd": ZstdStream(RawCodec(), both_ways=True),
}
messages_of_bytes = st.lists(st.binary(min_size=1, max_size=2_000), max_size=8)


def link_of(codec: StreamCodec, limit: int = 1_000_000) -> LinkCodec:
    link = open_link_codec(codec, limit)
    assert link is not None
    return link


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    """Cut a stream at places, each modulo its length."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[one:next_one] for one, next_one in pairwise(places)]


@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
@given(messages=messages_of_bytes)
def test_a_stream_is_read_back_message_by_message(codec: StreamCodec, messages: list[bytes]) -> None:
    ours, theirs = link_of(codec), link_of(codec)
    for message in messages:
        (frame,) = ours.encode(message)
        assert theirs.decode(frame) == [message]


@pytest.mark.parametrize("codec", [STREAMS["zlib"], STREAMS["bare deflate"]], ids=["zlib", "bare deflate"])
@given(messages=messages_of_bytes, cuts=st.lists(st.integers(0, 10_000), max_size=10), level=st.integers(0, 9))
def test_a_message_of_zlib_may_be_split_into_frames_anywhere(
    codec: ZlibStream, messages: list[bytes], cuts: list[int], level: int
) -> None:
    encoder = zlib.compressobj(level, zlib.DEFLATED, 15 if codec.format == "zlib" else -15)
    theirs = link_of(codec)
    for message in messages:
        sent = encoder.compress(message) + encoder.flush(zlib.Z_SYNC_FLUSH)
        assert [read for frame in pieces(sent, cuts) for read in theirs.decode(frame)] == [message]


@pytest.mark.parametrize("name", ["zlib", "zstd"])
@given(lines=st.lists(st.integers(), max_size=20), cuts=st.lists(st.integers(0, 10_000), max_size=10))
def test_with_a_framing_inside_flushes_and_messages_need_not_agree(
    name: str, lines: list[int], cuts: list[int]
) -> None:
    make: Any = {"zlib": ZlibStream, "zstd": ZstdStream}[name]
    ours, theirs = (link_of(make(inner, both_ways=True)) for inner in (RawCodec(), Lines(JsonCodec())))
    stream = b"".join(b"%d\n" % line for line in lines)
    sent = [frame for piece in pieces(stream, cuts) for frame in ours.encode(piece)]
    assert [read for frame in sent for read in theirs.decode(frame)] == lines


@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
@given(frames=st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=10)), max_size=8), begins=st.booleans())
def test_garbage_is_a_bad_message_and_nothing_else(codec: StreamCodec, frames: list[str | bytes], begins: bool) -> None:
    ours, link = link_of(codec), link_of(codec, 1_000)
    if begins:
        link.decode(ours.encode(b"hello")[0])
    for frame in frames:
        try:
            messages = link.decode(frame)
        except BadMessage:
            continue
        assert all(len(message) <= 1_000 for message in messages)


# --------------------------------------------------------------------------- zlib


def test_the_whole_of_a_link_is_one_zlib_stream_as_discord_has_it() -> None:
    encoder = zlib.compressobj()
    sent = [encoder.compress(b'{"op":%d}' % op) + encoder.flush(zlib.Z_SYNC_FLUSH) for op in (10, 11, 0)]
    link = link_of(ZlibStream(JsonCodec()))
    assert sent[0][:2] == b"\x78\x9c"
    assert all(frame.endswith(FLUSH) for frame in sent)
    assert [link.decode(frame) for frame in sent] == [[{"op": 10}], [{"op": 11}], [{"op": 0}]]
    assert list(link.encode({"op": 1})) == ['{"op":1}']


FLUSH = b"\x00\x00\xff\xff"


def test_the_bytes_of_a_flush_within_a_message_do_not_end_it() -> None:
    """They stand in a stored block here, as what is compressed holds them, and a frame ends behind them."""
    message = random.Random(1).randbytes(100) + FLUSH + random.Random(2).randbytes(100)
    encoder = zlib.compressobj(0)
    sent = encoder.compress(message) + encoder.flush(zlib.Z_SYNC_FLUSH)
    cut = sent.index(FLUSH) + len(FLUSH)
    assert cut < len(sent)
    link = link_of(ZlibStream(RawCodec()))
    assert link.decode(sent[:cut]) == []
    assert link.decode(sent[cut:]) == [message]


def test_a_flush_of_nothing_is_no_message() -> None:
    encoder = zlib.compressobj()
    link = link_of(ZlibStream(RawCodec()))
    sent = encoder.compress(b"a") + encoder.flush(zlib.Z_SYNC_FLUSH)
    assert link.decode(sent) == [b"a"]
    assert link.decode(FLUSH[:0]) == []
    assert link.decode(b"\x00" + FLUSH) == []
    assert link.decode(encoder.compress(b"b") + encoder.flush(zlib.Z_FULL_FLUSH)) == [b"b"]


def test_the_end_of_the_stream_ends_its_last_message_and_nothing_may_follow() -> None:
    link = link_of(ZlibStream(RawCodec()))
    assert link.decode(zlib.compress(b"all")) == [b"all"]
    with pytest.raises(StreamBroken, match="has ended"):
        link.decode(b"x")


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([b"{}"], "does not begin as a zlib stream does"),
        ([b"\x78", b"\x00"], "does not begin as a zlib stream does"),
        ([b"\x78\xf9"], "wants a dictionary"),
        ([b"\x78\x9c\xff"], "cannot be inflated"),
    ],
)
def test_what_is_no_zlib_stream_breaks_the_reading_of_the_link(frames: list[bytes], why: str) -> None:
    link = link_of(ZlibStream(RawCodec()))
    *before, last = frames
    for frame in before:
        assert link.decode(frame) == []
    for frame in (last, zlib.compress(b"fine")):
        with pytest.raises(StreamBroken, match=why):
            link.decode(frame)


# --------------------------------------------------------------------------- zstd


def test_frames_of_zstandard_may_end_with_a_message_or_with_the_link() -> None:
    link = link_of(ZstdStream(JsonCodec()))
    encoder = zstd.ZstdCompressor()
    assert link.decode(zstd.compress(b"[1]")) == [[1]]
    assert link.decode(encoder.compress(b"[2]", encoder.FLUSH_BLOCK)) == [[2]]
    assert link.decode(encoder.compress(b"[3]", encoder.FLUSH_FRAME) + zstd.compress(b"")) == [[3]]
    assert link.decode(zstd.compress(b"[") + zstd.compress(b"4]")) == [[4]]
    assert link.decode(b"") == []


def test_a_message_of_zstandard_that_is_flushed_later_comes_later() -> None:
    link = link_of(ZstdStream(JsonCodec()))
    encoder = zstd.ZstdCompressor()
    sent = encoder.compress(b"[%s1]" % (b" " * 1_000), encoder.FLUSH_BLOCK)
    assert [*link.decode(sent[:-2]), *link.decode(sent[-2:])] == [[1]]


def test_a_crowd_of_empty_frames_of_zstandard_breaks_the_stream() -> None:
    with pytest.raises(StreamBroken, match="more than 16 frames of Zstandard"):
        link_of(ZstdStream(RawCodec())).decode(zstd.compress(b"") * 17)


def test_a_window_beyond_what_is_allowed_breaks_the_stream() -> None:
    option = zstd.CompressionParameter
    encoder = zstd.ZstdCompressor(options={option.window_log: 24, option.compression_level: 1})
    sent = encoder.compress(b"a" * 100, encoder.FLUSH_BLOCK)
    assert link_of(ZstdStream(RawCodec(), window_log=24)).decode(sent) == [b"a" * 100]
    with pytest.raises(StreamBroken, match="cannot be decompressed"):
        link_of(ZstdStream(RawCodec())).decode(sent)


# --------------------------------------------------------------------------- both


@pytest.mark.parametrize("make", [ZlibStream, ZstdStream])
def test_text_is_handed_on_as_text_where_that_is_asked_for(make: Any) -> None:
    ours, theirs = (link_of(make(MixedCodec(), both_ways=True, text=True)) for _ in range(2))
    for message in ("héllo", {"a": 1}):
        assert theirs.decode(ours.encode(message)[0]) == [message]
    with pytest.raises(BadMessage, match="not UTF-8"):
        theirs.decode(ours.encode(b"\xff")[0])
    assert theirs.decode(ours.encode("again")[0]) == ["again"]


@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
def test_a_text_frame_is_refused_and_the_stream_goes_on(codec: StreamCodec) -> None:
    ours, theirs = link_of(codec), link_of(codec)
    for message in (b"one", b"two"):
        assert theirs.decode(ours.encode(message)[0]) == [message]
        with pytest.raises(BadMessage, match="a text frame"):
            theirs.decode("three")


@pytest.mark.parametrize("codec", [ZlibStream(JsonCodec()), ZstdStream(JsonCodec())], ids=["zlib", "zstd"])
def test_a_message_that_is_bad_json_does_not_break_the_stream(codec: Any) -> None:
    ours = link_of(type(codec)(RawCodec(), both_ways=True))
    theirs = link_of(codec)
    with pytest.raises(BadMessage, match="not the JSON"):
        theirs.decode(ours.encode(b"{")[0])
    assert theirs.decode(ours.encode(b"{}")[0]) == [{}]


@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
def test_the_limit_holds_for_what_comes_out_to_the_byte(codec: StreamCodec) -> None:
    ours, theirs = link_of(codec), link_of(codec, 1_000)
    assert theirs.decode(ours.encode(b"x" * 1_000)[0]) == [b"x" * 1_000]
    for message in (b"x" * 1_001, b"y"):
        with pytest.raises(StreamBroken, match="exceeds max_message_size, 1000 bytes"):
            theirs.decode(ours.encode(message)[0])


def test_a_message_over_many_frames_is_held_to_the_limit_too() -> None:
    encoder = zlib.compressobj()
    link = link_of(ZlibStream(RawCodec()), 1_000)
    link.decode(encoder.compress(b"x" * 900) + encoder.flush(zlib.Z_SYNC_FLUSH)[:-1])
    with pytest.raises(StreamBroken, match="exceeds max_message_size"):
        link.decode(b"\xff" + encoder.compress(b"x" * 900) + encoder.flush(zlib.Z_SYNC_FLUSH))


@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
def test_a_bomb_is_refused_within_the_limit(codec: StreamCodec) -> None:
    size = 50_000_000
    (bomb,) = link_of(codec).encode(b"\0" * size)
    link = link_of(codec, 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(StreamBroken, match="exceeds max_message_size"):
            link.decode(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(bomb) < size / 900
    assert peak < 4_000_000


@pytest.mark.parametrize("limit", [1, sys.maxsize, sys.maxsize * 2])
@pytest.mark.parametrize("codec", STREAMS.values(), ids=STREAMS)
def test_any_limit_will_do(codec: StreamCodec, limit: int) -> None:
    (frame,) = link_of(codec).encode(b"x")
    assert link_of(codec, limit).decode(frame) == [b"x"]
