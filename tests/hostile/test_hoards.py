"""What legal messages that nobody takes cost the process, as the operating system counts it.

The formula of docs/reference/limits.md is held against the peak of a process of its own, which this file is
too: run as a program, it is the client that is sent more than it takes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from trio_nova import (
    JsonCodec,
    ListBackoff,
    MixedCodec,
    RawCodec,
    State,
    TrioWebsocketTransport,
    WireTransport,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import Disconnected, Opcode, Peer, ScriptedServer, encode_frame

MEBIBYTE = 2**20
MESSAGE_LIMIT = MEBIBYTE
INBOX_LIMIT = MEBIBYTE
SLACK = 5 * 2**19
"""Bytes: the 2.5 MiB of the formula."""
TRANSPORTS: dict[str, Transport] = {"wire": WireTransport(), "trio-websocket": TrioWebsocketTransport()}


class Trade(msgspec.Struct):
    """What typed JSON becomes."""

    price: float = 0.0
    note: str = ""


CODECS: dict[str, Any] = {
    "raw": RawCodec(),
    "json": JsonCodec(),
    "mixed": MixedCodec(),
    "typed": JsonCodec(type=list[Trade]),
}

# --------------------------------------------------------------------------- the client, a process of its own


def memory(field: str) -> int:
    """Return what the system counts for this process, in bytes: VmRSS is what it has, VmHWM the peak of that."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return int(lines[field].split()[0]) * 1024


def forget_the_peak() -> int:
    """Let the peak be what there is, and return that."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return memory("VmRSS")


async def hoard(url: str, transport: str, codec: str) -> None:
    """Get acquainted on a first link, take nothing on the second, and say what that cost."""
    async with open_connection(
        url,
        transport=TRANSPORTS[transport],
        codec=CODECS[codec],
        backoff=ListBackoff([0.0]),
        ping_interval=math.inf,
        max_message_size=MESSAGE_LIMIT,
        inbox_bytes=INBOX_LIMIT,
    ) as conn:
        await conn.wait_state(State.RECONNECTING)
        await conn.wait_ready()
        base = forget_the_peak()
        await conn.send_text("ready")
        while conn.health().reading:
            await trio.sleep(0.01)
        await trio.sleep(0.2)  # what comes behind comes too
        print(
            json.dumps(
                {
                    "growth": memory("VmHWM") - base,
                    "left": memory("VmRSS") - base,
                    "messages": conn.statistics().inbox_messages,
                }
            )
        )


# --------------------------------------------------------------------------- the hoards


def whole(payload: bytes, opcode: Opcode = Opcode.TEXT) -> bytes:
    return encode_frame(opcode, payload)


def in_fragments(payload: bytes, size: int = 2**16) -> bytes:
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    frames = [
        encode_frame(Opcode.CONTINUATION if at else Opcode.TEXT, piece, fin=at == len(pieces) - 1)
        for at, piece in enumerate(pieces)
    ]
    return b"".join(frames)


def filled(pattern: bytes, size: int = MESSAGE_LIMIT - 2) -> bytes:
    return b"[" + b",".join([pattern] * (size // (len(pattern) + 1))) + b"]"


LARGE = MESSAGE_LIMIT - MESSAGE_LIMIT // 128  # fragments are charged too
EMOJI = "\N{GRINNING FACE}".encode()
HOARDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "ascii": ("raw", lambda: whole(b"x" * (MESSAGE_LIMIT - 1))),
    "ascii in fragments": ("raw", lambda: in_fragments(b"x" * LARGE)),
    "binary": ("raw", lambda: whole(bytes(MESSAGE_LIMIT - 1), Opcode.BINARY)),
    "half a message": ("raw", lambda: whole(b"x" * (MESSAGE_LIMIT // 2))),
    "an emoji first": ("raw", lambda: whole(EMOJI + b"x" * (MESSAGE_LIMIT - 4))),
    "an emoji last": ("raw", lambda: whole(b"x" * (MESSAGE_LIMIT - 4) + EMOJI)),
    "ever wider": (
        "raw",
        lambda: whole(
            b"x" * (MESSAGE_LIMIT // 4 - 16)
            + "\N{LATIN SMALL LETTER E WITH ACUTE}".encode()
            + b"x" * (MESSAGE_LIMIT // 2 - 16)
            + "\N{EURO SIGN}".encode()
            + b"x" * (MESSAGE_LIMIT // 4 - 16)
            + EMOJI
        ),
    ),
    "an emoji first, in fragments": ("raw", lambda: in_fragments(EMOJI + b"x" * (LARGE - 4))),
    "an emoji last, in fragments": ("raw", lambda: in_fragments(b"x" * (LARGE - 4) + EMOJI)),
    "an emoji in each fragment": (
        "raw",
        lambda: in_fragments((EMOJI + b"x" * (2**16 - 4)) * (LARGE // 2**16)),
    ),
    "tiny": ("raw", lambda: whole("\N{EURO SIGN}".encode()) * 20_000),
    "empty": ("raw", lambda: whole(b"") * 20_000),
    "brackets": ("json", lambda: whole(filled(b"[]"))),
    "brackets, in binary": ("json", lambda: whole(filled(b"[]"), Opcode.BINARY)),
    "brackets behind an emoji, in fragments": (
        "json",
        lambda: in_fragments(b'["' + EMOJI + b'",' + filled(b"[]", LARGE - 40)[1:]),
    ),
    "braces": ("mixed", lambda: whole(filled(b"{}"))),
    "small objects": ("json", lambda: whole(filled(b'{"a":1}'))),
    "short strings": ("json", lambda: whole(filled(b'"\xc3\xa9"'))),
    "many keys": (
        "json",
        lambda: whole(b"{" + b",".join(b'"%06x":"\xc3\xa9"' % n for n in range(MESSAGE_LIMIT // 15)) + b"}"),
    ),
    "an emoji that is escaped": ("json", lambda: whole(b'["\\ud83d\\ude00' + b"x" * (MESSAGE_LIMIT - 20) + b'"]')),
    "typed": ("typed", lambda: whole(filled(b"{}"))),
    "small messages": ("json", lambda: whole(b'{"channel":"ticks","n":123456}') * 2_000),
}


def bound(codec: str, kind: str) -> int:
    """Return what the formula allows."""
    if codec != "raw":
        return 3 * INBOX_LIMIT + 40 * MESSAGE_LIMIT + SLACK
    return INBOX_LIMIT + (3 if kind in NARROW else 12) * MESSAGE_LIMIT + SLACK


NARROW = ("ascii", "ascii in fragments", "binary", "half a message", "empty")
"""Those of bytes, or of text that is ASCII."""


async def take(kind: str, transport: str) -> dict[str, Any]:
    codec, make = HOARDS[kind]
    piece = make()

    async def greet(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    async def flood(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        with suppress(Disconnected):
            while True:
                await peer.send_raw(piece)

    async with ScriptedServer(greet, flood).listen() as listening:
        command = [sys.executable, __file__, listening.url, transport, codec]
        done = await trio.run_process(command, capture_stdout=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


SAMPLE = [("ascii", "wire"), ("an emoji in each fragment", "trio-websocket"), ("brackets", "wire")]
"""Those that are tried every time: each takes seconds, so that the others are left to the soak."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks /proc for the peak")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in SAMPLE else pytest.mark.soak)
        for kind in HOARDS
        for name in TRANSPORTS
    ],
)
async def test_what_nobody_takes_costs_the_process_no_more_than_the_formula_says(kind: str, name: str) -> None:
    told = await take(kind, name)
    assert told["messages"] > 0
    assert told["growth"] <= bound(HOARDS[kind][0], kind)


if __name__ == "__main__":
    trio.run(hoard, sys.argv[1], sys.argv[2], sys.argv[3])
