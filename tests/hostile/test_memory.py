"""What a bomb costs the process, in memory and in time of the processor, as the operating system counts it.

The formula of docs/reference/limits.md is held against the peak of a process of its own, which this file is
too: run as a program, it is the client that is attacked.
"""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from trio_nova import LinkLost, ListBackoff, Pong, TrioWebsocketTransport, WireTransport, open_connection
from trio_nova.links import Transport
from trio_nova.testing import Disconnected, Opcode, Peer, ScriptedServer, encode_frame

BOUND = 100.0
"""Seconds, real ones, after which a test has failed. No other bound here is on those: others may need the processor."""
AT_ONCE = 1.0
"""Seconds of its own that the client may spend on a bomb: up to the limit the longest takes 0.2. To take in all of the
half GiB would be 2, and all of the fragments many more."""
MESSAGE_LIMIT = 2**20
INBOX_LIMIT = 2**20
SLACK = 5 * 2**19
"""Bytes: the 2.5 MiB of the formula."""
TRANSPORTS: dict[str, Transport] = {"wire": WireTransport(), "trio-websocket": TrioWebsocketTransport()}
DRIPS_FOR = 0.3
"""Seconds, the `message_timeout`."""

# --------------------------------------------------------------------------- the client, a process of its own


def memory(field: str) -> int:
    """Return what the system counts for this process, in bytes: VmRSS is what it has, VmHWM the peak of that.

    `getrusage` would tell the peak too, but lets a process inherit that of its parent.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
    return int(lines[field].split()[0]) * 1024


def forget_the_peak() -> int:
    """Let the peak be what there is, and return that."""
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    return memory("VmRSS")


async def be_attacked(url: str, transport: str, options: dict[str, Any]) -> None:
    """Get acquainted on a first link, suffer on the second, and say what that cost."""
    code = 0
    plain: dict[str, Any] = {"ping_interval": math.inf, "max_message_size": MESSAGE_LIMIT, "inbox_bytes": INBOX_LIMIT}
    with suppress(LinkLost):
        async with open_connection(
            url, transport=TRANSPORTS[transport], backoff=ListBackoff([0.0]), **plain, **options
        ) as conn:
            await conn.receive()
            while conn.epoch < 2:
                await trio.sleep(0.01)
            base = forget_the_peak()
            began = time.process_time()
            await conn.send_text("ready")
            async with conn.listen() as events:
                async for event in events:
                    if code := getattr(event, "code", 0):
                        break
            spent = time.process_time() - began
            peak = memory("VmHWM")
    print(json.dumps({"code": code, "growth": peak - base, "spent": spent}))


# --------------------------------------------------------------------------- the attacks


@attrs.frozen
class Bomb:
    """What is sent, in pieces."""

    pieces: Sequence[bytes]
    code: int = 1009
    options: dict[str, Any] = attrs.field(factory=dict)
    extension: str = ""


def many(piece: bytes, count: int) -> list[bytes]:
    return [piece] * count


def too_large() -> Bomb:
    return Bomb([encode_frame(Opcode.BINARY, bytes(MESSAGE_LIMIT + 1))])


def fragments_that_add_up() -> Bomb:
    part = encode_frame(Opcode.CONTINUATION, bytes(65536), fin=False)
    return Bomb([encode_frame(Opcode.BINARY, fin=False), *many(part, 64)])


def empty_fragments() -> Bomb:
    part = encode_frame(Opcode.CONTINUATION, fin=False) * 1024
    return Bomb([encode_frame(Opcode.BINARY, fin=False), *many(part, 4096)])


def fragments_of_one_byte() -> Bomb:
    part = encode_frame(Opcode.CONTINUATION, b"x", fin=False) * 1024
    return Bomb([encode_frame(Opcode.BINARY, fin=False), *many(part, 4096)])


SQUEEZED: dict[str, Any] = {
    "options": {"compression": "deflate"},
    "extension": "permessage-deflate; server_max_window_bits=12",
}


def a_mebibyte_squeezed() -> bytes:
    compress = zlib.compressobj(9, zlib.DEFLATED, -12)
    return compress.compress(bytes(2**20)) + compress.flush(zlib.Z_FULL_FLUSH)  # may stand behind itself


def half_a_gibibyte() -> Bomb:
    return Bomb([encode_frame(Opcode.BINARY, a_mebibyte_squeezed() * 512, rsv=4)], **SQUEEZED)


def half_a_gibibyte_in_fragments() -> Bomb:
    block = a_mebibyte_squeezed()
    part = encode_frame(Opcode.CONTINUATION, block, fin=False)
    pieces = [encode_frame(Opcode.BINARY, block, rsv=4, fin=False), *many(part, 511)]
    return Bomb(pieces, **SQUEEZED)


# --------------------------------------------------------------------------- the tests


async def greet(peer: Peer) -> None:
    await peer.accept()
    await peer.send("welcome")
    await peer.drop()


async def suffer(bomb: Bomb, transport: str) -> dict[str, Any]:
    """Return what a client says of an attack."""

    async def attack(peer: Peer) -> None:
        await peer.accept([("Sec-WebSocket-Extensions", bomb.extension)] if bomb.extension else [])
        await peer._stream.receive_some(1000)  # that the client is ready; it may be compressed
        with suppress(Disconnected):
            for piece in bomb.pieces:
                await peer.send_raw(piece)
            await peer.mute()

    return await play(attack, transport, bomb.options)


async def play(attack: Callable[[Peer], Any], transport: str, options: dict[str, Any]) -> dict[str, Any]:
    with trio.fail_after(BOUND):
        async with ScriptedServer(greet, attack).listen() as listening:
            command = [sys.executable, __file__, listening.url, transport, json.dumps(options)]
            done = await trio.run_process(command, capture_stdout=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


only_with_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks /proc for the peak")


@only_with_proc
@pytest.mark.parametrize(
    ("make", "transports"),
    [
        pytest.param(too_large, TRANSPORTS, marks=[pytest.mark.fault("F49", where="socket"), pytest.mark.soak]),
        pytest.param(
            fragments_that_add_up, TRANSPORTS, marks=[pytest.mark.fault("F50", where="socket"), pytest.mark.soak]
        ),
        pytest.param(empty_fragments, TRANSPORTS, marks=[pytest.mark.fault("F51", where="socket"), pytest.mark.soak]),
        pytest.param(fragments_of_one_byte, TRANSPORTS, marks=pytest.mark.fault("F51", where="socket")),
        pytest.param(half_a_gibibyte, ["wire"], marks=[pytest.mark.fault("F53", where="socket"), pytest.mark.soak]),
        pytest.param(half_a_gibibyte_in_fragments, ["wire"], marks=pytest.mark.fault("F53", where="socket")),
    ],
)
async def test_a_bomb_costs_the_process_no_more_than_the_formula_says_and_is_over_at_once(
    make: Callable[[], Bomb], transports: Sequence[str]
) -> None:
    bomb = make()
    for transport in transports:
        spent: list[float] = []
        while not spent or (min(spent) > AT_ONCE and len(spent) < 3):
            told = await suffer(bomb, transport)
            spent.append(told["spent"])
            assert told["code"] == bomb.code
            assert told["growth"] <= MESSAGE_LIMIT + INBOX_LIMIT + SLACK
        assert min(spent) <= AT_ONCE, (transport, spent)


@only_with_proc
@pytest.mark.fault("F52", where="socket")
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_message_that_drips_costs_the_process_nothing_and_is_over_when_its_time_is(transport: str) -> None:
    dripped = 0.0

    async def drip(peer: Peer) -> None:
        nonlocal dripped
        await peer.accept()
        await peer._stream.receive_some(1000)  # that the client is ready; it may be compressed
        began = trio.current_time()
        with suppress(Disconnected):
            await peer.send_frame(Opcode.TEXT, b"x", fin=False)
            while True:
                await trio.sleep(0.01)
                await peer.send(Pong(b""))
                await peer.send_frame(Opcode.CONTINUATION, b"x", fin=False)
        dripped = trio.current_time() - began

    told = await play(drip, transport, {"message_timeout": DRIPS_FOR})
    assert told["code"] == 1008
    assert told["growth"] <= SLACK
    assert dripped >= DRIPS_FOR  # not much longer either, as is seen in virtual time


if __name__ == "__main__":
    trio.run(be_attacked, sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
