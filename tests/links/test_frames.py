"""What the scanner of frames lets through, and what it calls each sin."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_nova.links._frames import CloseFrame, FrameScanner, mask_frame
from trio_nova.messages import Ping, Pong

LIMIT = 4096


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = False, length: bytes = b""
) -> bytes:
    n = len(payload)
    plain = bytes((n,)) if n < 126 else b"\x7e" + n.to_bytes(2, "big") if n < 65536 else b"\x7f" + n.to_bytes(8, "big")
    second = length or plain
    return bytes((fin << 7 | rsv << 4 | opcode, second[0] | masked << 7)) + second[1:] + payload


def scan(*pieces: bytes, limit: int = LIMIT) -> tuple[FrameScanner, bytes]:
    """Feed the pieces as the guard does: nothing more after a close frame or a violation."""
    scanner, sound = FrameScanner(limit), b""
    for piece in pieces:
        if scanner.close is None and scanner.violation is None:
            sound += piece[: scanner.feed(piece)]
    return scanner, sound


def bytewise(data: bytes) -> Iterable[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


GOOD = frame(1, "schön".encode())

SINS = [
    (frame(1, b"x", masked=True), 1002, "masked"),
    (frame(1, b"x", rsv=4), 1002, "rsv"),
    (frame(1, b"x", rsv=2), 1002, "rsv"),
    (frame(9, b"x", rsv=1), 1002, "rsv"),
    *((frame(opcode), 1002, "opcode") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    (frame(9, b"x", fin=False), 1002, "control-fragmented"),
    (frame(8, b"", fin=False), 1002, "control-fragmented"),
    (frame(9, bytes(126)), 1002, "control-length"),
    (frame(8, b"\x03\xe8" + bytes(124)), 1002, "control-length"),
    (frame(0, b"x"), 1002, "continuation"),
    (frame(1, b"a", fin=False) + frame(2, b"b"), 1002, "interleaved"),
    (frame(2, b"x", length=b"\x7e\x00\x01"), 1002, "length-form"),
    (frame(2, b"x", length=b"\x7f" + (200).to_bytes(8, "big")), 1002, "length-form"),
    (frame(2, b"x", length=b"\x7f" + (1 << 63).to_bytes(8, "big")), 1002, "length-range"),
    (frame(2, b"", length=b"\x7f" + (1 << 62).to_bytes(8, "big")), 1009, "too-big"),
    (frame(2, b"", length=b"\x7e" + (LIMIT + 1).to_bytes(2, "big")), 1009, "too-big"),
    (frame(2, bytes(LIMIT - 63), fin=False), 1009, "too-big"),
    (frame(2, b"", fin=False) + frame(0, b"", fin=False) * (LIMIT // 64), 1009, "too-big"),
    (frame(1, b"\xff"), 1007, "utf-8"),
    (frame(1, b"\xc3"), 1007, "utf-8"),
    (frame(1, b"\xed\xa0\x80"), 1007, "utf-8"),
    (frame(1, b"\xc0\x80"), 1007, "utf-8"),
    (frame(1, b"\xf4\x90\x80\x80"), 1007, "utf-8"),
    (frame(1, b"\xc3", fin=False) + frame(0, b"\x28"), 1007, "utf-8"),
    (frame(1, b"\xc3", fin=False) + frame(0, b""), 1007, "utf-8"),
    (frame(8, b"\x03"), 1002, "close-length"),
    *(
        (frame(8, code.to_bytes(2, "big")), 1002, "close-code")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    ),
    (frame(8, b"\x03\xe8\xff"), 1007, "close-reason"),
]


@pytest.mark.fault("F42", "F43", "F44", "F45", "F46", "F47", "F49", "F50", "F51", where="memory")
@pytest.mark.parametrize(("wire", "code", "rule"), SINS)
@pytest.mark.parametrize("cut", [lambda data: [data], bytewise], ids=["whole", "bytewise"])
def test_each_sin_is_named_and_nothing_from_it_on_completes(
    wire: bytes, code: int, rule: str, cut: Callable[[bytes], Iterable[bytes]]
) -> None:
    scanner, sound = scan(*cut(GOOD + wire + GOOD))
    assert scanner.violation is not None
    assert (scanner.violation.code, scanner.violation.rule) == (code, rule)
    assert scanner.messages == 1
    assert sound.startswith(GOOD)
    assert len(sound) < len(GOOD + wire)


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999])
def test_a_legal_close_frame_ends_the_scan_and_what_follows_is_dropped(code: int) -> None:
    wire = frame(8, code.to_bytes(2, "big") + "tschüß".encode())
    scanner, sound = scan(GOOD + wire + GOOD + b"\xff\xff")
    assert scanner.close == CloseFrame(code, "tschüß")
    assert scanner.violation is None
    assert sound == GOOD


def test_a_close_frame_without_a_code_is_1005() -> None:
    assert scan(frame(8))[0].close == CloseFrame(1005, "")


def test_one_frame_of_exactly_the_limit_passes() -> None:
    scanner, _ = scan(frame(2, bytes(LIMIT)))
    assert scanner.messages == 1
    assert scanner.violation is None


def test_fragments_are_charged_64_bytes_each_and_may_reach_the_limit() -> None:
    wire = frame(2, bytes(1000), fin=False) + frame(0, bytes(LIMIT - 1000 - 2 * 64))
    assert scan(wire)[0].messages == 1


def test_the_charge_begins_anew_with_each_message() -> None:
    wire = frame(2, bytes(2000), fin=False) + frame(0, bytes(1000))
    assert scan(wire * 5)[0].messages == 5


@pytest.mark.fault("F44", where="memory")
def test_a_lying_length_is_judged_on_the_header() -> None:
    scanner, sound = scan(b"\x82\x7f" + (2**31).to_bytes(8, "big"))
    assert scanner.violation is not None
    assert sound == b""


@pytest.mark.fault("F46", where="memory")
@pytest.mark.parametrize("text", [b"\xff", b"ok\xed\xa0", b"\xf4\x90", b"\xc0"])
def test_invalid_utf8_is_found_before_the_frame_ends(text: bytes) -> None:
    scanner, _ = scan(b"\x81\x7e\x04\x00" + text)
    assert scanner.violation is not None
    assert scanner.violation.code == 1007


def test_pings_and_pongs_know_their_place_among_the_messages() -> None:
    wire = frame(9, b"0") + frame(2, b"a", fin=False) + frame(9, b"1") + frame(0, b"b") + frame(10, b"2")
    scanner, sound = scan(wire)
    assert scanner.controls == [(0, Ping(b"0")), (0, Ping(b"1")), (1, Pong(b"2"))]
    assert sound == wire


def test_a_stream_that_ends_inside_a_message_is_known_to_be_cut() -> None:
    assert scan(GOOD)[0].between_messages
    for cut in (b"\x81", b"\x81\x05ab", frame(1, b"a", fin=False)):
        assert not scan(cut)[0].between_messages


def test_a_masked_frame_reads_back() -> None:
    wire = mask_frame(9, b"payload", b"\x01\x02\x03\x04")
    assert wire[:2] == bytes((0x89, 0x87))
    assert bytes(byte ^ wire[2 + i % 4] for i, byte in enumerate(wire[6:])) == b"payload"


@st.composite
def legal_frames(draw: st.DrawFn) -> list[bytes]:
    frames: list[bytes] = []
    controls = st.builds(frame, st.sampled_from([9, 10]), st.binary(max_size=125))
    for _ in range(draw(st.integers(0, 6))):
        frames += draw(st.lists(controls, max_size=2))
        text = draw(st.booleans())
        payload = draw(st.text("aé€\U0001f600", max_size=200)).encode() if text else draw(st.binary(max_size=600))
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for i, part in enumerate(parts):
            frames.append(frame((1 if text else 2) if i == 0 else 0, part, fin=i == len(parts) - 1))
            if i < len(parts) - 1:
                frames += draw(st.lists(controls, max_size=1))
    if draw(st.booleans()):
        frames.append(frame(8, b"\x03\xe8bye"))
    return frames


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


def verdict(*pieces: bytes) -> tuple[object, ...]:
    scanner, controls = FrameScanner(LIMIT), []
    for piece in pieces:
        if scanner.close is None and scanner.violation is None:
            scanner.feed(piece)
            controls += scanner.controls
    sin = scanner.violation and (scanner.violation.code, scanner.violation.rule)
    return scanner.messages, controls, scanner.close, sin


@pytest.mark.fault("F57", where="memory")
@settings(deadline=None)
@given(legal_frames(), st.lists(st.integers(0, 10000)))
def test_legal_frames_pass_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(frames)
    whole = verdict(wire)
    assert whole[-1] is None
    assert verdict(*cut_up(wire, cuts)) == whole
    scanner, sound = scan(*cut_up(wire, cuts))
    expected = b"".join(frames[:-1]) if scanner.close else wire
    assert sound.startswith(expected)  # of a close frame that was cut, a beginning may have gone on


@settings(deadline=None)
@given(legal_frames(), st.lists(st.integers(0, 10000)), st.data())
def test_damaged_frames_meet_the_same_documented_verdict_however_they_are_cut(
    frames: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    wire = bytearray(b"".join(frames) or b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    whole = verdict(bytes(wire))
    assert verdict(*cut_up(bytes(wire), cuts)) == whole
    sin = whole[-1]
    assert sin is None or sin in {(code, rule) for _, code, rule in SINS}
