"""Compression (permessage-deflate, RFC 7692): what is offered, what is accepted, and what it may cost."""

from __future__ import annotations

import functools
import os
import socket
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trio.testing
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode as WebSocketOpcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tests.links.conftest import Peer
from tests.links.wire_oracle import open_protocol
from trio_nova import (
    Config,
    ConfigError,
    Deflate,
    LinkLost,
    TrioWebsocketTransport,
    WireTransport,
    open_connection,
    run_connection,
)
from trio_nova.errors import BadMessage, HandshakeInvalid, MessageTooBig, explain
from trio_nova.links import Dial, _deflate
from trio_nova.links._deflate import Agreed, Inflater, agree
from trio_nova.links._frames import FrameViolation
from trio_nova.links._wire import WireProtocol
from trio_nova.messages import Frame, Ping
from trio_nova.testing import encode_frame, make_dial

if TYPE_CHECKING:
    from websockets.trio.server import ServerConnection

BOUND = 100.0
"""Seconds, real ones, after which a test has failed."""
RSV1 = 4
TAIL = b"\0\0\xff\xff"
ALL_TERMS = Deflate(
    server_max_window_bits=10,
    client_max_window_bits=11,
    server_no_context_takeover=True,
    client_no_context_takeover=True,
)


def offer(terms: Deflate | None) -> str | None:
    """Return the Sec-WebSocket-Extensions of an upgrade request."""
    dial: Dial = attrs.evolve(make_dial(url="ws://peer.test/"), compression=terms)
    head = WireProtocol(dial).request().decode()
    values = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Extensions")]
    return values[0] if values else None


# --------------------------------------------------------------------------- the terms


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (None, None),
        (Deflate(), "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12, permessage-deflate"),
        (
            Deflate(server_max_window_bits=15, client_max_window_bits=15),
            "permessage-deflate; client_max_window_bits=15, permessage-deflate",
        ),
        (
            ALL_TERMS,
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover;"
            " server_max_window_bits=10; client_max_window_bits=11,"
            " permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
    ],
)
def test_a_plainer_offer_without_windows_follows_the_first(terms: Deflate | None, said: str | None) -> None:
    assert offer(terms) == said


FORGETFUL = "server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("terms", "answer", "agreed"),
    [
        # (their window, ours, they forget, we forget)
        (Deflate(), "permessage-deflate", (15, 12, False, False)),
        (Deflate(), f"permessage-deflate; {FORGETFUL}", (15, 12, True, True)),
        (
            Deflate(),
            "permessage-deflate;client_no_context_takeover ;  server_no_context_takeover",
            (15, 12, True, True),
        ),
        (Deflate(), "permessage-deflate; server_no_context_takeover", (15, 12, True, False)),
        (Deflate(), "permessage-deflate; client_no_context_takeover", (15, 12, False, True)),
        *[
            (Deflate(), f"permessage-deflate; server_max_window_bits={bits}", (bits, 12, False, False))
            for bits in range(8, 16)
        ],
        *[
            (
                Deflate(),
                f"permessage-deflate; client_max_window_bits={bits}; server_max_window_bits=12",
                (12, min(bits, 12), False, False),
            )
            for bits in range(8, 16)
        ],
        (Deflate(), 'permessage-deflate; server_max_window_bits="10"', (10, 12, False, False)),
        (Deflate(), "permessage-deflate; server_max_window_bits = 10", (10, 12, False, False)),
        (Deflate(), "permessage-deflate; client_max_window_bits=10", (15, 10, False, False)),
        (Deflate(), ", permessage-deflate ,,", (15, 12, False, False)),
        (Deflate(server_max_window_bits=15), "permessage-deflate", (15, 12, False, False)),
        (Deflate(client_no_context_takeover=True), "permessage-deflate", (15, 12, False, True)),
        (ALL_TERMS, f"permessage-deflate; {FORGETFUL}", (15, 11, True, True)),
        (ALL_TERMS, "permessage-deflate; server_no_context_takeover; server_max_window_bits=10", (10, 11, True, True)),
        (Deflate(), "", None),
    ],
)
def test_every_answer_that_the_rfc_allows_is_taken(terms: Deflate, answer: str, agreed: tuple[Any, ...] | None) -> None:
    assert agree(terms, answer) == (None if agreed is None else Agreed(*agreed))


@pytest.mark.parametrize(
    ("terms", "answer", "named"),
    [
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits=7",
            "server_max_window_bits must be a number from 8 to 15: '7'",
        ),
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits=16",
            "server_max_window_bits must be a number from 8 to 15: '16'",
        ),
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits=012",
            "server_max_window_bits must be a number from 8 to 15: '012'",
        ),
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits=abc",
            "server_max_window_bits must be a number from 8 to 15: 'abc'",
        ),
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits",
            "server_max_window_bits must be a number from 8 to 15: 'nothing'",
        ),
        (
            Deflate(),
            "permessage-deflate; client_max_window_bits",
            "client_max_window_bits must be a number from 8 to 15: 'nothing'",
        ),
        (
            Deflate(),
            "permessage-deflate; client_max_window_bits=16",
            "client_max_window_bits must be a number from 8 to 15: '16'",
        ),
        (
            Deflate(),
            "permessage-deflate; client_max_window_bits=-9",
            "client_max_window_bits must be a number from 8 to 15: '-9'",
        ),
        (
            Deflate(),
            "permessage-deflate; server_max_window_bits=12; server_max_window_bits=12",
            "server_max_window_bits is there twice",
        ),
        (
            Deflate(),
            f"permessage-deflate; {FORGETFUL}; client_no_context_takeover",
            "client_no_context_takeover is there twice",
        ),
        (
            Deflate(),
            "permessage-deflate; server_no_context_takeover=1",
            "server_no_context_takeover takes no value: '1'",
        ),
        (Deflate(), 'permessage-deflate; unheard_of="x"', "permessage-deflate has no such parameter: 'unheard_of'"),
        (
            Deflate(),
            "permessage-deflate; Server_Max_Window_Bits=12",
            "permessage-deflate has no such parameter: 'Server_Max_Window_Bits'",
        ),
        (Deflate(), "permessage-deflate, permessage-deflate", "permessage-deflate is there twice"),
        (Deflate(), "permessage-deflate, x-also", "an extension that was not offered: 'x-also'"),
        (Deflate(), "permessage-bzip2", "an extension that was not offered: 'permessage-bzip2'"),
        (Deflate(), "x-webkit-deflate-frame", "an extension that was not offered: 'x-webkit-deflate-frame'"),
        (ALL_TERMS, "permessage-deflate; server_max_window_bits=10", "server_no_context_takeover is missing"),
        (Deflate(), "permessage-deflate;;;", "no list of extensions: 'permessage-deflate;;;'"),
        (Deflate(), 'permessage-deflate; server_max_window_bits="1', "no list of extensions"),
        (Deflate(), ",", "no list of extensions"),
        (Deflate(), "\xff\xfe", "not ASCII"),
        (Deflate(), "permessage-deflate; " + "x" * 2_000, "too long"),
    ],
)
def test_an_answer_that_the_rfc_forbids_is_refused_by_the_name_of_what_is_wrong(
    terms: Deflate, answer: str, named: str
) -> None:
    with pytest.raises(HandshakeInvalid) as caught:
        agree(terms, answer)
    assert (caught.value.rule, caught.value.retry) == ("extension", "never")
    assert named in str(caught.value)
    assert "not a WebSocket server" not in explain(caught.value)


@pytest.mark.parametrize(
    ("terms", "answers"),
    [
        (Deflate(), ["permessage-deflate; server_max_window_bits=12"] * 2),
        (Deflate(), ["permessage-deflate", "x-also"]),
        (None, ["permessage-deflate"]),
    ],
)
def test_what_several_headers_say_is_judged_together(terms: Deflate | None, answers: Sequence[str]) -> None:
    with pytest.raises(HandshakeInvalid) as caught:
        open_protocol(1_000, terms, answers)
    assert caught.value.rule == "extension"


def test_a_server_that_declines_gets_plain_frames() -> None:
    protocol = open_protocol(1_000, Deflate())
    assert not protocol.compresses
    assert protocol.encode("x" * 100)[0] == 0x81
    assert protocol.feed(encode_frame(1, b"plain")) == ["plain"]


@pytest.mark.parametrize("terms", [None, Deflate()], ids=["not offered", "declined"])
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("fin", [True, False])
def test_what_is_compressed_without_agreement_is_a_breach(terms: Deflate | None, opcode: int, fin: bool) -> None:
    protocol = open_protocol(1_000, terms)
    assert protocol.feed(encode_frame(opcode, deflated(b"hello"), rsv=RSV1, fin=fin)) == []
    assert protocol.ending is not None
    assert (protocol.ending.code, protocol.ending.remote) == (1002, False)


def test_a_server_that_cannot_bear_our_window_gets_plain_frames_and_may_compress_its_own() -> None:
    protocol = open_protocol(1_000, Deflate(), ["permessage-deflate; client_max_window_bits=8"])
    assert not protocol.compresses
    assert protocol.encode("x" * 100)[0] == 0x81
    assert protocol.feed(encode_frame(1, deflated(b"squeezed"), rsv=RSV1)) == ["squeezed"]


@pytest.mark.parametrize("enter", [open_connection, run_connection])
async def test_a_transport_that_cannot_compress_says_so_before_anything_is_begun(enter: Any) -> None:
    options: dict[str, Any] = {"transport": TrioWebsocketTransport(), "compression": "deflate"}
    if enter is open_connection:
        with pytest.raises(ConfigError) as caught:
            open_connection("ws://127.0.0.1:1/", **options)
        with pytest.raises(ConfigError):
            open_connection("ws://127.0.0.1:1/", config=Config(**options))
    else:
        with pytest.raises(ConfigError) as caught:
            await run_connection("ws://127.0.0.1:1/", **options)
    assert caught.value.field == "compression"
    assert "WireTransport" in caught.value.problem


# --------------------------------------------------------------------------- messages


def deflated(payload: bytes, encoder: Any = None) -> bytes:
    encoder = encoder or zlib.compressobj(wbits=-12)
    data: bytes = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(TAIL)


def compressing(limit: int, *terms: str) -> Any:
    said = "; ".join(["permessage-deflate", "server_max_window_bits=12", *terms])
    return open_protocol(limit, Deflate(), [said])


def test_the_servers_window_goes_on_from_message_to_message() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    payload = os.urandom(1_000).hex()
    first, second = (deflated(payload.encode(), encoder) for _ in range(2))
    assert len(second) < 100 < len(first)
    for data in (first, second):
        assert protocol.feed(encode_frame(1, data, rsv=RSV1)) == [payload]


def test_our_window_goes_on_from_message_to_message_unless_it_must_not() -> None:
    payload = os.urandom(1_000).hex()
    going_on, forgetful = compressing(100_000), compressing(100_000, "client_no_context_takeover")
    assert [len(going_on.encode(payload)) < 100 for _ in range(3)] == [False, True, True]
    assert [len(forgetful.encode(payload)) < 100 for _ in range(3)] == [False] * 3


@pytest.mark.parametrize("takeover", [True, False])
def test_all_that_is_sent_is_understood(takeover: bool) -> None:
    protocol = compressing(2**20, *([] if takeover else ["client_no_context_takeover"]))
    server = ServerProtocol(state=OPEN, max_size=None)
    server.extensions = [PerMessageDeflate(not takeover, False, 12, 12)]
    messages: list[Frame] = ["", b"", "hällo ☂", Ping(b"plain"), b"\0" * 5_000, os.urandom(5_000), "same", "same"]
    server.receive_data(b"".join(map(protocol.encode, messages)))
    assert server.parser_exc is None
    events = [event for event in server.events_received() if isinstance(event, WebSocketFrame)]
    kinds: dict[int, Any] = {1: lambda data: data.decode(), 2: bytes, 9: Ping}
    assert [kinds[int(event.opcode)](bytes(event.data)) for event in events] == messages


def test_fragments_of_a_compressed_message_are_put_together_around_a_ping() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    data = deflated("☂".encode() * 500, encoder)
    first = encode_frame(1, data[:3], fin=False, rsv=RSV1)
    frames = protocol.feed(first + encode_frame(9, b"?") + encode_frame(0, b"", fin=False) + encode_frame(0, data[3:]))
    assert frames == [Ping(b"?"), "☂" * 500]
    assert protocol.feed(encode_frame(1, b"plain")) == ["plain"]
    assert protocol.feed(encode_frame(2, deflated(b"again", encoder), rsv=RSV1)) == [b"again"]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (encode_frame(1, b"\xff\xff\xff", rsv=RSV1), 1007),
        (encode_frame(1, deflated(b"x"), rsv=RSV1 | 2), 1002),
        (encode_frame(1, deflated(b"x"), rsv=RSV1 | 1), 1002),
        (encode_frame(9, deflated(b"x"), rsv=RSV1), 1002),
        (encode_frame(1, deflated(b"x" * 99)[:2], rsv=RSV1, fin=False) + encode_frame(0, b"", rsv=RSV1), 1002),
    ],
    ids=["no deflate", "RSV2", "RSV3", "a ping", "a continuation"],
)
def test_what_is_wrongly_compressed_is_a_breach(frames: bytes, code: int) -> None:
    protocol = compressing(1_000)
    assert [frame for frame in protocol.feed(frames) if not isinstance(frame, Ping)] == []
    assert protocol.ending is not None
    assert protocol.ending.code == code
    assert isinstance(protocol.ending.cause, BadMessage)


# --------------------------------------------------------------------------- final blocks


def finished(payload: bytes, window: bytes = b"") -> bytes:
    """Return `payload` in blocks of which the last is final (BFINAL=1), and which may refer to `window`."""
    encoder = zlib.compressobj(wbits=-12, zdict=window)
    data: bytes = encoder.compress(payload) + encoder.flush(zlib.Z_FINISH)
    return data


forgetting = pytest.mark.parametrize("forgets", [False, True], ids=["context kept", "context dropped"])
octet = pytest.mark.parametrize("end", [b"\0", b""], ids=["as the RFC says", "without the octet behind it"])


def inflating(forgets: bool, limit: int = 100_000) -> Any:
    return compressing(limit, *(["server_no_context_takeover"] if forgets else []))


@forgetting
@octet
def test_a_message_that_ends_with_a_final_block_is_whole_and_so_are_those_after_it(forgets: bool, end: bytes) -> None:
    protocol = inflating(forgets)
    encoder = zlib.compressobj(wbits=-12)
    payloads = [
        finished(b"Hello") + end,
        deflated(b"Hello again", encoder),
        finished(b"bye") + end,
        finished(b"!") + end,
    ]
    frames = b"".join(encode_frame(1, payload, rsv=RSV1) for payload in payloads)
    assert protocol.feed(frames) == ["Hello", "Hello again", "bye", "!"]
    assert protocol.ending is None


def test_the_rfcs_own_example_of_a_final_block_is_understood() -> None:
    """RFC 7692 section 7.2.3.4."""
    protocol = inflating(False)
    hello = bytes.fromhex("f348cdc9c9070000")
    assert protocol.feed(encode_frame(1, hello, rsv=RSV1) * 3) == ["Hello"] * 3


@forgetting
@octet
def test_final_blocks_in_the_middle_of_a_message_and_two_in_a_row_end_nothing(forgets: bool, end: bytes) -> None:
    protocol = inflating(forgets)
    empty = finished(b"")
    data = finished(b"one, ") + empty + empty + finished(b"two, ") + finished(b"three") + end
    assert protocol.feed(encode_frame(1, data, rsv=RSV1) * 2) == ["one, two, three"] * 2
    data = finished(b"one, ") + deflated(b"two")
    assert protocol.feed(encode_frame(1, data, rsv=RSV1) * 2) == ["one, two"] * 2


@forgetting
@octet
def test_a_final_block_may_end_with_its_fragment(forgets: bool, end: bytes) -> None:
    protocol = inflating(forgets)
    frames = encode_frame(1, finished(b"one, "), rsv=RSV1, fin=False)
    frames += encode_frame(0, finished(b"two, "), fin=False) + encode_frame(0, b"", fin=False) + encode_frame(9, b"")
    frames += encode_frame(0, finished(b"three"), fin=False) + encode_frame(0, end)
    frames += encode_frame(1, deflated(b"four"), rsv=RSV1)
    assert protocol.feed(frames) == [Ping(b""), "one, two, three", "four"]


@forgetting
def test_empty_messages_are_whole_however_they_are_written(forgets: bool) -> None:
    """As an empty block, as a final one, and with nothing at all, which a server should not."""
    protocol = inflating(forgets)
    empty = [b"\0", finished(b"") + b"\0", finished(b""), b"\x02\0", b""]
    frames = b"".join(encode_frame(1, data, rsv=RSV1) + encode_frame(1, deflated(b"x"), rsv=RSV1) for data in empty)
    frames += encode_frame(2, b"", rsv=RSV1, fin=False) + encode_frame(0, b"")
    assert protocol.feed(frames) == ["", "x"] * len(empty) + [b""]


@pytest.mark.parametrize("bits", [8, 9, 12, 15])
@pytest.mark.parametrize("size", [10, 3_000, 70_000])
def test_the_window_goes_on_behind_a_final_block(bits: int, size: int) -> None:
    """What follows may refer to all that was inflated before, in whichever message, as far as the window goes."""
    protocol = open_protocol(2**20, Deflate(), [f"permessage-deflate; server_max_window_bits={bits}"])
    window = 2**bits
    said = os.urandom(size).hex().encode()
    far = max(9, bits)

    def squeezed(payload: bytes, before: bytes, flush: int) -> bytes:
        encoder = zlib.compressobj(wbits=-far, zdict=before[-min(window, 2**far) :])
        data: bytes = encoder.compress(payload) + encoder.flush(flush)
        return data.removesuffix(TAIL)

    assert protocol.feed(encode_frame(2, squeezed(said, b"", zlib.Z_FINISH) + b"\0", rsv=RSV1)) == [said]
    again = said[-window // 4 :]
    second = squeezed(again, said, zlib.Z_FINISH)
    assert len(second) < len(again) / 2 + 20
    third = squeezed(again, said + again, zlib.Z_SYNC_FLUSH)
    frames = encode_frame(2, second, rsv=RSV1, fin=False) + encode_frame(0, third)
    assert protocol.feed(frames) == [again + again]
    fourth = squeezed(again, said + again + again, zlib.Z_SYNC_FLUSH)
    assert protocol.feed(encode_frame(2, fourth, rsv=RSV1)) == [again]


def test_a_server_that_forgets_may_not_refer_to_what_was_before_a_final_block_of_another_message() -> None:
    protocol = inflating(True)
    said = os.urandom(1_000).hex().encode()
    assert protocol.feed(encode_frame(2, finished(said) + b"\0", rsv=RSV1)) == [said]
    assert protocol.feed(encode_frame(2, finished(said, window=said) + b"\0", rsv=RSV1)) == []
    assert protocol.ending.code == 1007


RUBBISH = [
    b"\xff",
    b"abc",
    b"\x4b",
    b"\x01",
    b"\0\0",
    b"rubbish that is longer than a block's head",
    TAIL,
    b"\0" + TAIL,
]


@forgetting
@pytest.mark.parametrize("rubbish", RUBBISH[:-1], ids=repr)
def test_rubbish_behind_a_final_block_is_an_error_and_no_message(forgets: bool, rubbish: bytes) -> None:
    for frames in (
        encode_frame(1, finished(b"Hello") + rubbish, rsv=RSV1),
        encode_frame(1, finished(b"Hello"), rsv=RSV1, fin=False) + encode_frame(0, rubbish),
    ):
        protocol = inflating(forgets)
        assert protocol.feed(encode_frame(1, deflated(b"before"), rsv=RSV1) + frames) == ["before"]
        assert protocol.ending is not None
        assert (protocol.ending.code, protocol.ending.remote) == (1007, False)
        assert isinstance(protocol.ending.cause, BadMessage)


@forgetting
@pytest.mark.parametrize("cut", [1, 2, 5, 20, 30])
@pytest.mark.parametrize("ends", ["final", "flushed"])
def test_a_message_that_is_cut_within_a_block_is_an_error_and_not_a_shorter_message(
    forgets: bool, cut: int, ends: str
) -> None:
    payload = b"0123456789abcdefghijklmnopqrstuvwxyz" * 2
    data = (finished if ends == "final" else deflated)(payload)
    if ends == "flushed":
        cut += 1  # the last byte holds no more than the head of an empty block
    data = data[:-cut]
    protocol = inflating(forgets)
    assert protocol.feed(encode_frame(1, data, rsv=RSV1)) == []
    assert protocol.ending is not None
    assert protocol.ending.code == 1007


@forgetting
def test_a_server_that_leaves_the_tail_in_place_is_understood(forgets: bool) -> None:
    protocol = inflating(forgets)
    data = deflated(b"Hello") + TAIL
    frames = encode_frame(1, data, rsv=RSV1) + encode_frame(1, deflated(b"you"), rsv=RSV1)
    assert protocol.feed(frames) == ["Hello", "you"]


@pytest.mark.fault("F53", where="memory")
@forgetting
def test_final_blocks_without_end_are_refused_before_they_keep_us_busy(forgets: bool) -> None:
    """Each of them costs a decompressor, and takes two bytes."""
    allowed = 16 + 100_000 // 1024
    protocol = inflating(forgets)
    assert protocol.feed(encode_frame(2, finished(b"") * allowed + b"\0", rsv=RSV1) * 2) == [b"", b""]
    assert protocol.feed(encode_frame(2, finished(b"") * 40_000, rsv=RSV1)) == []
    assert protocol.ending.code == 1009


def test_what_follows_many_final_blocks_is_not_copied_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    class Witness:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.decoder = zlib.decompressobj(*args, **options)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal given
            given += len(data)
            return self.decoder.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.decoder, name)

    monkeypatch.setattr(_deflate, "zlib", SimpleNamespace(decompressobj=Witness, error=zlib.error))
    inflater = Inflater(bits=15, forgets=False, limit=2**24)
    block, count = os.urandom(500), 6_000
    data = finished(block) * count
    assert inflater.inflate(data, final=True) == block * count
    assert given < len(data) + 5_000 * count  # as often as not it would be half of `data` for each


@forgetting
def test_what_is_inflated_stays_within_the_limit_behind_a_final_block_too(forgets: bool) -> None:
    inflater = Inflater(bits=12, forgets=forgets, limit=1_000)
    assert inflater.inflate(finished(b"x" * 500), final=False) == b"x" * 500
    assert inflater.inflate(finished(b"x" * 500), final=True) == b"x" * 500
    inflater.inflate(finished(b"x" * 500), final=False)
    with pytest.raises(FrameViolation) as caught:
        inflater.inflate(finished(b"x" * 501), final=True)
    assert caught.value.code == 1009


def test_the_largest_limit_there_is_does_no_harm() -> None:
    assert Inflater(bits=12, forgets=False, limit=2**70).inflate(deflated(b"Hello"), final=True) == b"Hello"


# --------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("size", [0, 1, 2_043, 2_044, 50_000, 99_935, 99_936, 99_999, 100_000])
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("stored", [False, True])
def test_a_message_within_the_limit_passes(size: int, opcode: int, stored: bool) -> None:
    encoder = zlib.compressobj(wbits=-12)
    payload = (os.urandom(size // 2 + 1).hex().encode() if stored else b"z" * size)[:size]
    (message,) = compressing(100_000).feed(encode_frame(opcode, deflated(payload, encoder), rsv=RSV1))
    assert message == (payload.decode() if opcode == 1 else payload)


@functools.cache
def bomb(size: int) -> bytes:
    return deflated(bytes(size), zlib.compressobj(9, wbits=-12))


@pytest.mark.fault("F53", where="memory")
@pytest.mark.parametrize("shape", ["one frame", "fragments", "a few bytes at a time", "one byte too many"])
def test_a_bomb_ends_at_the_limit_with_1009(shape: str) -> None:
    protocol = compressing(100_000)
    data = bomb(100_001 if shape == "one byte too many" else 30_000_000)
    if shape == "fragments":
        pieces = [data[at : at + 50] for at in range(0, len(data), 50)]
        stream = encode_frame(2, pieces[0], rsv=RSV1, fin=False)
        stream += b"".join(encode_frame(0, piece, fin=False) for piece in pieces[1:])
    else:
        stream = encode_frame(2, data, rsv=RSV1)
    step = 40 if shape == "a few bytes at a time" else len(stream)
    tracemalloc.start()
    try:
        frames: list[Frame] = []
        for at in range(0, len(stream), step):
            frames += protocol.feed(stream[at : at + step])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames == []
    assert protocol.ending is not None
    assert protocol.ending.code == 1009
    assert isinstance(protocol.ending.cause, MessageTooBig)
    assert peak < 1_000_000


def test_every_message_has_the_whole_limit() -> None:
    protocol, encoder = compressing(100_000), zlib.compressobj(wbits=-12)
    for number in range(20):
        payload = bytes([number]) * 100_000
        assert protocol.feed(encode_frame(2, deflated(payload, encoder), rsv=RSV1)) == [payload]


# --------------------------------------------------------------------------- over sockets


async def test_a_message_that_did_not_fit_is_not_missing_from_the_window(peer: Peer) -> None:
    """What was compressed once must leave: later messages refer to it."""
    ours, theirs = trio.socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far = trio.SocketStream(theirs)
    peer = Peer(far, trio.SocketStream(ours))
    answer = b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=12"
    server = ServerProtocol(state=OPEN, max_size=None)
    server.extensions = [PerMessageDeflate(False, False, 12, 12)]
    heard: list[str] = []
    sent = [f"{number}:{os.urandom(400).hex()}" for number in range(200)]

    async def read() -> None:
        while len(heard) < 2 * len(sent):
            server.receive_data(await far.receive_some(65_536))
            assert server.parser_exc is None
            for event in server.events_received():
                assert isinstance(event, WebSocketFrame)
                assert event.opcode is WebSocketOpcode.TEXT
                heard.append(bytes(event.data).decode())

    with trio.fail_after(BOUND):
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(peer.accept, answer))
            async with WireTransport().open(peer.dial(compression=Deflate())) as link:
                rest = [message for message in sent for _ in range(2)]
                unread = True
                while rest:
                    match link.send_nowait(rest[0]):
                        case "whole":
                            rest.pop(0)
                        case "begun" | "not":
                            if unread:
                                nursery.start_soon(read)
                                unread = False
                            await link.send_all([rest.pop(0)])
                if unread:
                    nursery.start_soon(read)
    assert heard == [message for message in sent for _ in range(2)]


@pytest.fixture
def serve_websockets() -> Callable[..., Any]:
    """Return the server on Trio of websockets, which the oldest that serve us do not have."""
    serve: Callable[..., Any] = pytest.importorskip("websockets.trio.server").serve
    return serve


@pytest.mark.parametrize(
    ("terms", "factory"),
    [
        (Deflate(), ServerPerMessageDeflateFactory()),
        (Deflate(server_max_window_bits=15, client_max_window_bits=15, level=1), ServerPerMessageDeflateFactory()),
        (ALL_TERMS, ServerPerMessageDeflateFactory()),
        (Deflate(), ServerPerMessageDeflateFactory(server_max_window_bits=9, client_max_window_bits=9)),
        (
            Deflate(),
            ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True),
        ),
        (Deflate(), None),
        (None, ServerPerMessageDeflateFactory()),
    ],
    ids=["defaults", "wide", "all terms", "narrow", "forgetful", "declined", "not offered"],
)
async def test_a_server_over_loopback_echoes_what_it_was_sent(
    serve_websockets: Callable[..., Any], terms: Deflate | None, factory: ServerPerMessageDeflateFactory | None
) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    messages = ["", b"", "hällo ☂", "x" * 70_000, os.urandom(70_000), *["tick " * 20] * 50]
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            serving = functools.partial(
                serve_websockets, echo, 0, host="127.0.0.1", compression=None, extensions=[factory] if factory else None
            )
            server = await nursery.start(serving)
            port = server.listeners[0].socket.getsockname()[1]
            async with open_connection(f"ws://127.0.0.1:{port}/", compression=terms) as conn:
                for message in messages:
                    await conn.send(message)
                    assert await conn.receive() == message
            nursery.cancel_scope.cancel()


async def test_a_session_ends_a_link_that_sends_a_bomb(serve_websockets: Callable[..., Any]) -> None:
    async def explode(connection: ServerConnection) -> None:
        await connection.send(bytes(2_000_000))
        await connection.wait_closed()

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(functools.partial(serve_websockets, explode, 0, host="127.0.0.1"))
            port = server.listeners[0].socket.getsockname()[1]
            with pytest.raises(LinkLost) as caught:
                async with open_connection(
                    f"ws://127.0.0.1:{port}/", compression="deflate", max_message_size=1_000_000, max_attempts=0
                ) as conn:
                    await conn.receive()
            nursery.cancel_scope.cancel()
    assert caught.value.code == 1009
