"""The way of one message through the files of the package, as it runs: few enough to keep in mind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

import trio_nova
from trio_nova import JsonCodec, open_connection
from trio_nova.testing import Peer, ScriptedServer

PACKAGE = Path(trio_nova.__file__).parent
MARK = "followed"
MOST_FILES = 8


def carries(value: Any) -> bool:
    """Return whether a value is the message, in whatever form, or holds it."""
    match value:
        case str():
            return MARK in value
        case bytes() | bytearray() | memoryview():
            return MARK.encode() in bytes(value)
        case dict():
            return MARK in value
        case list() | tuple():
            return any(map(carries, value))
        case _:
            return False


async def test_a_text_on_its_way_to_the_consumer_of_a_feed_passes_eight_files(autojump_clock: trio.abc.Clock) -> None:
    passed: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event not in ("call", "return") or PACKAGE not in file.parents or "testing" in file.parts:
            return
        name = str(file.relative_to(PACKAGE))
        if name not in passed and any(carries(value) for value in list(frame.f_locals.values())):
            passed.append(name)

    class Service:
        peer: Peer

        async def __call__(self, peer: Peer) -> None:
            self.peer = peer
            await peer.accept()
            asked = await peer.receive_json()
            await peer.send_json({"type": "subscribed", "channel": asked["channel"]})
            await peer.serve_until_closed()

    service = Service()
    async with (
        ScriptedServer(service) as server,
        open_connection("ws://server.test/", stream_factory=server.stream_factory, codec=JsonCodec()) as conn,
        conn.subscribe("trades") as feed,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def consume() -> None:
            await feed.receive()  # the first: what comes later has a way that is known
            try:
                assert await feed.receive() == {"channel": "trades", MARK: 1}
            finally:
                sys.setprofile(None)

        await wait_all_tasks_blocked()
        await service.peer.send(json.dumps({"channel": "trades"}))
        await wait_all_tasks_blocked()
        sys.setprofile(look)
        await service.peer.send(json.dumps({"channel": "trades", MARK: 1}))
    assert len(passed) <= MOST_FILES, passed
    assert passed[-1] == "_mailbox.py"
