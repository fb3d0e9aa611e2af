"""The server's codec reads what others write, writes what others read, and lets no breach pass."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing

from trio_nova.messages import Ping, Pong
from trio_nova.testing import ClosePayload, FromClient, Opcode, ProtocolBreach, encode_frame
from trio_nova.testing._frames import ClientFrames, encode


def _read(*chunks: bytes) -> list[FromClient]:
    frames = ClientFrames()
    return [frame for chunk in chunks for frame, _ in frames.feed(chunk)]


def _masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    return encode_frame(opcode, payload, fin=fin, rsv=rsv, mask=True)


@given(st.text() | st.binary(), st.integers(1, 50))
def test_what_wsproto_sends_is_read_at_any_cut(message: str | bytes, size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    event = TextMessage(message) if isinstance(message, str) else BytesMessage(message)
    data = client.send(event) + client.send(WsprotoPing(b"?")) + client.send(CloseConnection(4000, "bye"))
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert _read(*chunks) == [message, Ping(b"?"), ClosePayload(4000, "bye")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_wsproto_reads_what_is_sent(size: int) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(encode("x" * size) + encode(b"y" * size) + encode(ClosePayload(1001, "bye")))
    text, binary = "", b""
    for event in client.events():
        match event:
            case TextMessage(data=part):
                text += part
            case BytesMessage(data=part):
                binary += part
            case _:
                assert event == CloseConnection(1001, "bye")
    assert (text, binary) == ("x" * size, b"y" * size)


def test_fragments_come_as_one_message_and_let_a_ping_between() -> None:
    umbrella = "☂".encode()
    assert _read(
        _masked(Opcode.TEXT, umbrella[:2], fin=False),
        _masked(Opcode.PING, b"now"),
        _masked(Opcode.CONTINUATION, umbrella[2:]),
        _masked(Opcode.PONG, b"then"),
    ) == [Ping(b"now"), "☂", Pong(b"then")]


def test_an_empty_close_is_1005() -> None:
    assert _read(_masked(Opcode.CLOSE)) == [ClosePayload(1005, "")]
    assert encode(ClosePayload()) == b"\x88\x00"


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (encode_frame(Opcode.TEXT, b"bare"), "masks every frame"),
        (_masked(Opcode.TEXT, rsv=4), "reserved bits"),
        (_masked(0x3), "opcode 0x3 is reserved"),
        (_masked(0xF), "opcode 0xf is reserved"),
        (_masked(Opcode.PING, fin=False), "not fragmented"),
        (_masked(Opcode.PING, bytes(126)), "at most 125"),
        (_masked(Opcode.CONTINUATION, b"?"), "without a first"),
        (_masked(Opcode.TEXT, fin=False) + _masked(Opcode.TEXT), "not mixed"),
        (_masked(Opcode.TEXT, b"\xff"), "is UTF-8"),
        (_masked(Opcode.CLOSE, b"\x03"), "at least a code"),
        (_masked(Opcode.CLOSE, b"\x03\xee"), "code 1006"),
        (_masked(Opcode.CLOSE, b"\x03\xe8\xff"), "is UTF-8"),
        (_masked(Opcode.CLOSE) + _masked(Opcode.PING), "no frame follows"),
        (b"\x81\xfe\x00\x05", "fewest bytes"),
        (b"\x81\xff" + (200).to_bytes(8, "big"), "fewest bytes"),
        (b"\x82\xff" + (2**62).to_bytes(8, "big"), "more than"),
    ],
)
def test_a_breach_is_named(data: bytes, rule: str) -> None:
    with pytest.raises(ProtocolBreach, match=rule):
        _read(data)


def test_a_lie_about_the_length_is_written_as_told() -> None:
    assert encode_frame(Opcode.BINARY, b"ab", length=70_000) == b"\x82\x7f" + (70_000).to_bytes(8, "big") + b"ab"
    assert encode_frame(0x7, b"", fin=False, rsv=7) == b"\x77\x00"


def test_json_of_a_big_message_survives_the_mask() -> None:
    value = {"key": ["☂"] * 10_000}
    assert json.loads(str(_read(_masked(Opcode.TEXT, json.dumps(value).encode()))[0])) == value
