"""The bytes of a server, as `WireProtocol` and as the package websockets by itself understand them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import product

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.links.wire_oracle import BINARY, CONTINUATION, OVERHEAD, TEXT, expected, observed
from trio_nova.testing import ClosePayload, encode_frame
from trio_nova.testing._frames import encode

RSV1 = 4
LIMITS = [100, 1_000, 70_000]
PATTERN = "aé☂\U0001f600z".encode() * 7_000


# --------------------------------------------------------------------------- streams


@attrs.frozen
class Stream:
    """What a server sends, and how much of a message it may send at once."""

    limit: int
    data: bytes
    deflated: bool
    forgets: bool = False


@st.composite
def payloads(draw: st.DrawFn, limit: int) -> bytes:
    sizes = [*range(limit - 2, limit + 2), limit - 65, limit - 64, limit - 63, limit - 129, limit - 128, limit - 127]
    sizes += [65_535, 65_536] if limit > 65_536 else [124, 125, 126, 127]
    size = draw(st.one_of(st.integers(0, 20), st.sampled_from([max(each, 0) for each in sizes])))
    start = draw(st.integers(0, 10))
    return PATTERN[start : start + size]


@st.composite
def texts(draw: st.DrawFn, limit: int) -> bytes:
    """Return what is UTF-8, mostly: the pattern is cut anywhere, once in a while."""
    payload = draw(payloads(limit))
    return payload if draw(st.integers(0, 9)) == 0 else payload.decode("utf-8", "ignore").encode()


@st.composite
def controls(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([9, 10, 9, 10, 9, 10, 8]))
    if kind != 8:
        return encode_frame(kind, PATTERN[: draw(st.sampled_from([0, 1, 7, 125, 126]))])
    code = draw(st.sampled_from([1000, 1001, 1005, 1006, 1012, 999, 2999, 3000, 4999, 5000, 0]))
    reason = draw(st.sampled_from([b"", b"bye", "adé".encode(), b"\xff", b"x" * 123]))
    return encode_frame(8, draw(st.sampled_from([b"", b"\x03", code.to_bytes(2, "big") + reason])))


@st.composite
def illegal_frames(draw: st.DrawFn) -> bytes:
    """Return a frame at random: most of them break a rule."""
    payload = PATTERN[: draw(st.sampled_from([0, 1, 5, 125, 126, 300]))]
    length = draw(st.sampled_from([None, None, None, 10, 126, 65_536, 2**31, 2**62, 2**63, 2**64 - 1]))
    frame = encode_frame(
        draw(st.integers(0, 15)),
        payload,
        fin=draw(st.booleans()),
        rsv=draw(st.sampled_from([0, 0, 0, 1, 2, 4])),
        mask=draw(st.integers(0, 4)) == 0,
        length=length,
    )
    if draw(st.integers(0, 4)) == 0 and len(payload) < 126 and length is None:  # a length in too many bytes
        wide = draw(st.booleans())
        form = b"\x7f" + bytes(7) if wide else b"\x7e\0"
        frame = frame[:1] + form + bytes((len(payload),)) + payload
    return frame


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    limit = draw(st.sampled_from(LIMITS))
    deflated, forgets = draw(st.booleans()), draw(st.booleans())
    history = b""
    data = b""
    for _ in range(draw(st.integers(1, 6))):
        match draw(st.sampled_from([*["message", "fragments"] * 3, "control", "control", "alike", "alike", "illegal"])):
            case "control":
                data += draw(controls())
            case "illegal":
                data += draw(illegal_frames())
            case "alike":
                data += draw(many_alike(limit))
            case shape:
                opcode = draw(st.sampled_from([TEXT, BINARY]))
                payload = draw(texts(limit) if opcode == TEXT else payloads(limit))
                rsv = 0
                if deflated and draw(st.booleans()):
                    said, rsv = payload, RSV1
                    payload = draw(squeezed(said, b"" if forgets else history))
                    history += said
                if shape == "message":
                    data += encode_frame(opcode, payload, rsv=rsv)
                else:
                    data += draw(fragments(opcode, payload, rsv))
    return Stream(limit, draw(mutated(data)), deflated, forgets)


@st.composite
def squeezed(draw: st.DrawFn, payload: bytes, history: bytes) -> bytes:
    """Return what a server with the largest window may make of a message, in blocks of any kind."""
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    data, encoder, at = b"", None, 0
    ends = [*cuts, len(payload)]
    for end in ends:
        if encoder is None:
            level = draw(st.sampled_from([0, 1, 6, 9]))
            encoder = zlib.compressobj(level, wbits=-15, zdict=(history + payload[:at])[-32_768:])
        flush = draw(st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH, zlib.Z_FINISH]))
        data += encoder.compress(payload[at:end]) + encoder.flush(flush)
        at = end
        if flush == zlib.Z_FINISH:
            encoder = None
    if encoder is None:
        return data + draw(st.sampled_from([b"\0", b""]))  # RFC 7692 section 7.2.3.4; and those who forget it
    return data.removesuffix(b"\0\0\xff\xff")


@st.composite
def many_alike(draw: st.DrawFn, limit: int) -> bytes:
    """Return messages of one length, one after the other, of which one may differ in what it holds or is."""
    opcode, other = draw(st.permutations([TEXT, BINARY]))
    payload = draw(texts(min(limit, 300)) if opcode == TEXT else payloads(min(limit, 300)))
    frames = [encode_frame(opcode, payload)] * draw(st.integers(5, 40))
    at = draw(st.integers(0, len(frames) - 1))
    match draw(st.sampled_from(["same", "same", "bad", "other", "longer", "fragment"])):
        case "bad":
            frames[at] = encode_frame(opcode, b"\xff" * len(payload))
        case "other":
            frames[at] = encode_frame(other, payload)
        case "longer":
            frames[at] = encode_frame(opcode, payload + b".")
        case "fragment":
            frames[at] = encode_frame(opcode, payload, fin=False)
        case _:
            pass
    return b"".join(frames)


@st.composite
def fragments(draw: st.DrawFn, opcode: int, payload: bytes, rsv: int) -> bytes:
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=5)))
    data = b""
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
        if number and draw(st.integers(0, 2)) == 0:
            data += draw(controls())
        kind, marked = (opcode, rsv) if number == 0 else (CONTINUATION, 0)
        data += encode_frame(kind, payload[start:stop], fin=number == len(cuts), rsv=marked)
    return data


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Damage what was right, mostly not at all."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 1, 2]))):
        if not data:
            break
        at = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([3, 40, 2**20])))))
        match draw(st.sampled_from(["flip", "truncate", "swap", "remove"])):
            case "flip":
                data = data[:at] + bytes((data[at] ^ 1 << draw(st.integers(0, 7)),)) + data[at + 1 :]
            case "truncate":
                data = data[:at]
            case "swap":
                data = data[:at] + data[at + 1 : at + 2] + data[at : at + 1] + data[at + 2 :]
            case _:
                data = data[:at] + data[at + 1 :]
    return data


def cut_at(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut `data` at these places; with one cut only, beyond its end, into single bytes."""
    if list(cuts) == [len(data)] and len(data) < 2_000:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(at % (len(data) + 1) for at in cuts)
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


# --------------------------------------------------------------------------- receiving


@given(streams())
@example(Stream(100, encode_frame(3, bytes(126)), deflated=False))
@example(Stream(100, encode_frame(1, bytes(101), rsv=2), deflated=False))
@example(Stream(1_000, encode_frame(1, b"a", fin=False) + encode(ClosePayload(1001, "bye")), deflated=False))
def test_every_stream_means_what_it_means_to_websockets(stream: Stream) -> None:
    ours = observed([stream.data], stream.limit, deflated=stream.deflated, forgets=stream.forgets)
    theirs = expected(stream.data, stream.limit, deflated=stream.deflated, forgets=stream.forgets)
    assert ours.in_substance == theirs.in_substance


@given(streams(), st.lists(st.integers(0, 2**20), min_size=1, max_size=12))
@example(Stream(100, encode_frame(3, bytes(126)), deflated=False), [2])
@example(Stream(100, encode_frame(9, bytes(126), fin=False), deflated=False), [2])
@example(Stream(100, encode_frame(1, bytes(126), rsv=1), deflated=False), [3])
@example(Stream(100, b"\x83\x7e\x00\x05hello", deflated=False), [2])
def test_how_a_stream_is_cut_changes_nothing(stream: Stream, cuts: list[int]) -> None:
    whole = observed([stream.data], stream.limit, deflated=stream.deflated, forgets=stream.forgets)
    assert observed(cut_at(stream.data, cuts), stream.limit, deflated=stream.deflated, forgets=stream.forgets) == whole
    if len(stream.data) < 2_000:
        single = cut_at(stream.data, [len(stream.data)])
        assert observed(single, stream.limit, deflated=stream.deflated, forgets=stream.forgets) == whole


# --------------------------------------------------------------------------- every border by itself


def borders() -> Iterator[tuple[str, int, bytes]]:
    """Yield the name of a border, the limit of a message, and a stream on one side of it."""
    for limit in LIMITS:
        for opcode in (TEXT, BINARY):
            for size in (limit - 1, limit, limit + 1):
                yield "a message", limit, encode_frame(opcode, b"m" * size)
            for count in (1, 2, 3, 10):
                for size in (limit - OVERHEAD * count + off for off in (-1, 0, 1)):
                    if size >= count:
                        rest = b"".join(encode_frame(0, b"f", fin=number == count - 2) for number in range(count - 1))
                        first = encode_frame(opcode, b"f" * (size - count + 1), fin=False)
                        yield f"{count} fragments", limit, first + rest
        for opcode, count, size in product((TEXT, BINARY), (7, 8, 9, 40), (0, 1, 60, 125, 126, limit, limit + 1)):
            frame = encode_frame(opcode, b"m" * size)
            for end in (
                b"",
                frame[:-1],
                encode_frame(opcode, b"\xff" * size),
                encode_frame(opcode, b"m" * size, fin=False),
                encode(ClosePayload(1001, "bye")),
            ):
                if size < 70_000:
                    yield "many alike", limit, frame * count + end
    for start, size in product(range(256), (70, 126, 127, 128 + 70, 255)):
        yield "many alike of any kind", 1_000, (bytes((start, size)) + b"m" * size) * 10
    for opcode, size in product((TEXT, BINARY), (0, 5, 125)):
        yield "many alike of any kind", 1_000, (bytes((0x80 | opcode, 126, 0, size)) + b"m" * size) * 200
    for length in (0, 125, 126, 127, 65_535, 65_536, 2**31, 2**62, 2**63, 2**64 - 1):
        for form, size in ((b"\x7e", 2), (b"\x7f", 8)):
            if length < 1 << 8 * size:
                for opcode in (TEXT, BINARY, 9):
                    payload = bytes(length) if length < 70_000 else b"..."
                    yield "a length's form", 70_000, bytes((0x80 | opcode,)) + form + length.to_bytes(size) + payload
    for opcode in (8, 9, 10):
        for size in (124, 125, 126, 127):
            yield "a control frame", 1_000, encode_frame(opcode, b"\x03\xe8" + b"c" * (size - 2))
    for before in (b"", encode_frame(TEXT, b"begun", fin=False)):
        for start in range(256):
            for second in (0x00, 0x02, 0x80):
                yield "a first byte", 1_000, before + bytes((start, second)) + b"\x03\xe8"
    for code in range(990, 1020):
        yield "a close code", 1_000, encode_frame(8, code.to_bytes(2))


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("name", sorted({name for name, _, _ in borders()}))
def test_both_sides_of_every_border_mean_what_they_mean_to_websockets(name: str, deflated: bool) -> None:
    for _, limit, stream in (border for border in borders() if border[0] == name):
        whole = observed([stream], limit, deflated=deflated)
        assert whole.in_substance == expected(stream, limit, deflated=deflated).in_substance, stream[:20]
        assert observed([stream[:3], stream[3:]], limit, deflated=deflated) == whole, stream[:20]
