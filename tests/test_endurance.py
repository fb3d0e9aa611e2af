"""A day, and ten thousand links: nothing grows."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import multiprocessing
import os
import site
import statistics
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
import trio
from trio._core._run import CancelReason
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova import (
    Authenticated,
    BadMessage,
    Connection,
    FeedOptions,
    Gap,
    JsonCodec,
    LinkLost,
    ListBackoff,
    NotSent,
    OutcomeUnknown,
    RequestFailed,
    State,
    open_connection,
)
from trio_nova.links import Dial, Link, WireTransport
from trio_nova.testing import Disconnected, GenericVenue, Peer, ScriptedServer, echo

URL = "ws://server.test/"
T = TypeVar("T")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("trio_nova")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


def in_a_new_process(function: Callable[..., T], *args: Any) -> T:
    """Call it where no other test ran: how full those left the last page of memory would be in its figures."""
    above_tests = str(Path(__file__).parents[1])  # last on its path: what is installed is what is tested
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=site.addsitedir, initargs=(above_tests,)) as process:
        process.submit(logging.disable, logging.CRITICAL)
        return process.submit(function, *args).result()


def live_objects(server: ScriptedServer) -> int:
    """Count what is alive, but for what the server remembers of dials past.

    Trio forgets the deadlines of scopes that were left when it comes to it, up to a thousand of them later.
    """
    del server.dials[:]
    gc.collect()
    of_deadlines = (trio.CancelScope, CancelReason, tuple)
    return sum(1 for each in gc.get_objects() if type(each) not in of_deadlines)


def resident_bytes() -> int:
    """Return how much memory this process has; what is garbage is thrown away first."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors() -> set[str]:
    """Return what this process has open, by number."""
    return set(os.listdir("/proc/self/fd"))


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_what_is_left_of_a_session_is_freed_without_a_collector(autojump_clock: trio.abc.Clock) -> None:
    """One that had to find it would cost a program that opens many as much as a part of the dial."""
    async with ScriptedServer(then=echo) as server:

        async def hold_one() -> weakref.ref[object]:
            async with open_connection(URL, stream_factory=server.stream_factory) as conn:
                await conn.send_text("hi")
                assert await conn.receive() == "hi"
                return weakref.ref(conn._outbound)

        gc.collect()
        gc.disable()
        try:
            left = await hold_one()
            await wait_all_tasks_blocked()
            assert left() is None
        finally:
            gc.enable()


async def ask_and_be_answered(conn: Connection, peer: Peer) -> None:
    await conn.request({"n": 1})


async def ask_what_cannot_be_said(conn: Connection, peer: Peer) -> None:
    with suppress(BadMessage):
        await conn.request({"n": object()})


async def ask_with_an_id_that_is_taken(conn: Connection, peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(conn.request, {"id": "hold"}))
        await wait_all_tasks_blocked()
        with suppress(NotSent):
            await conn.request({"id": "hold"})
        await peer.send_json({"id": "hold"})


async def ask_and_be_refused(conn: Connection, peer: Peer) -> None:
    with suppress(RequestFailed):
        await conn.request({"n": 1, "error": "no"})


async def ask_and_lose_the_link(conn: Connection, peer: Peer) -> None:
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            with suppress(OutcomeUnknown):
                await conn.request({"id": "hold"})

        await wait_all_tasks_blocked()
        await peer.reset()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()


async def ask_and_give_up(conn: Connection, peer: Peer) -> None:
    asker: list[weakref.ref[object]] = []

    async def ask() -> None:
        asker.append(weakref.ref(trio.lowlevel.current_task()))
        with trio.move_on_after(1.0):
            await conn.request({"id": "hold"})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    assert asker[0]() is None, "whoever gave up is kept for an answer that may come late"
    await peer.send_json({"id": "hold"})
    await wait_all_tasks_blocked()


@pytest.mark.parametrize(
    "ask",
    [
        ask_and_be_answered,
        ask_what_cannot_be_said,
        ask_with_an_id_that_is_taken,
        ask_and_be_refused,
        ask_and_lose_the_link,
        ask_and_give_up,
    ],
)
async def test_what_is_left_of_a_question_is_freed_without_a_collector(
    autojump_clock: trio.abc.Clock, ask: Callable[[Connection, Peer], Awaitable[None]]
) -> None:
    """It holds the link that it was asked on."""
    peers: list[Peer] = []

    async def answer(peer: Peer) -> None:
        await peer.accept()
        peers.append(peer)
        with suppress(Disconnected):
            while isinstance(frame := await peer.receive(), str):
                if (message := json.loads(frame))["id"] != "hold":
                    await peer.send_json(message)

    async with (
        ScriptedServer(then=answer) as server,
        open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec()) as conn,
    ):
        await ask(conn, peers[-1])  # what is made once is made now
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await ask(conn, peers[-1])
            await wait_all_tasks_blocked()
            gc.collect()
            of_trio = trio.CancelScope  # in its heap of deadlines
            assert [each for each in gc.garbage if not isinstance(each, of_trio)] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


@attrs.frozen
class NotesLinks:
    """A transport, which also notes the links that it has opened, and keeps none alive."""

    links: list[weakref.ref[Link]] = attrs.field(factory=list)

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncIterator[Link]:
        async with WireTransport().open(dial) as link:
            self.links.append(weakref.ref(link))
            yield link


async def test_a_link_that_was_lost_is_not_kept_by_the_error_that_says_so(autojump_clock: trio.abc.Clock) -> None:
    """That error is kept until the next one: thousands of sessions would keep as many dead links, with their TLS."""

    async def break_off(peer: Peer) -> None:
        await peer.accept()
        await trio.sleep(10)
        await peer.reset()

    transport = NotesLinks()
    async with ScriptedServer(break_off, then=echo) as server:
        async with open_connection(URL, stream_factory=server.stream_factory, transport=transport) as conn:
            await trio.sleep(60)
            gc.collect()
            assert isinstance(conn.health().last_error, LinkLost)
            assert [link() is not None for link in transport.links] == [False, True]


async def test_a_link_that_could_not_be_set_up_is_freed_without_a_collector(autojump_clock: trio.abc.Clock) -> None:
    """A service may refuse one after the other: the last is kept by the error that says so, and no other."""

    async def never_let_in(peer: Peer) -> None:
        await peer.accept()
        await peer.serve_until_closed()

    async def let_in(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.send_json({"type": "auth_success"})
        await trio.sleep(1.0)
        if len(transport.links) == 1:
            await peer.reset()
        else:
            await peer.serve_until_closed()

    transport = NotesLinks()
    async with (
        ScriptedServer(let_in, *[never_let_in] * 5, then=let_in) as server,
        open_connection(
            URL,
            stream_factory=server.stream_factory,
            transport=transport,
            codec=JsonCodec(),
            credentials="a token",
            allow_plaintext_credentials=True,
            auth_timeout=1.0,
            backoff=ListBackoff([0.0]),
        ) as conn,
    ):
        gc.collect()
        gc.disable()
        try:
            await conn.wait_state(State.DISCONNECTED)
            await conn.wait_ready()
            assert [link() is not None for link in transport.links] == [False] * 5 + [True] * 2
        finally:
            gc.enable()


async def test_a_feed_whose_block_was_left_is_freed_without_a_collector(autojump_clock: trio.abc.Clock) -> None:
    async def confirm(peer: Peer) -> None:
        await peer.accept()
        with suppress(Disconnected):
            while isinstance(frame := await peer.receive(), str):
                if (message := json.loads(frame))["type"] == "subscribe":
                    await peer.send_json({**message, "type": "subscribed"})

    async with (
        ScriptedServer(confirm) as server,
        open_connection(URL, stream_factory=server.stream_factory, codec=JsonCodec()) as conn,
    ):
        gc.collect()
        gc.disable()
        try:
            async with conn.subscribe("a") as feed:
                left: list[weakref.ref[Any]] = [weakref.ref(feed), weakref.ref(feed._mailbox)]
            del feed
            assert [each() for each in left] == [None, None]
        finally:
            gc.enable()


@pytest.mark.soak
async def test_a_day_with_an_outage_every_ten_minutes(autojump_clock: trio.abc.Clock) -> None:
    async def live_ten_minutes(peer: Peer) -> None:
        await peer.accept()
        for number in range(59):
            await trio.sleep(10)
            await peer.send(f"tick {number}")
        await trio.sleep(9)
        await peer.drop()

    received = 0
    counts: list[int] = []
    async with ScriptedServer(then=live_ten_minutes) as server:
        async with open_connection(URL, stream_factory=server.stream_factory) as conn, trio.open_nursery() as nursery:

            async def consume() -> None:
                nonlocal received
                async for _ in conn:
                    received += 1

            nursery.start_soon(consume)
            for _ in range(24):
                await trio.sleep(3600)
                counts.append(live_objects(server))
            links = conn.statistics().links
            pings = conn.statistics().pings_sent
            nursery.cancel_scope.cancel()
    assert 140 <= links <= 145
    assert received >= (links - 1) * 59
    assert pings >= (links - 1) * 28
    assert max(counts[6:]) - min(counts[6:]) <= 300


async def reconnect(cycles: int) -> tuple[list[int], list[int]]:
    """Lose one link after the other; return the live objects and the resident bytes after each tenth of them."""

    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    counts: list[int] = []
    sizes: list[int] = []
    async with ScriptedServer(then=drop) as server:
        tasks, descriptors = living_tasks(), open_descriptors()
        async with open_connection(URL, stream_factory=server.stream_factory, backoff=ListBackoff([0.001])) as conn:
            for tenth in range(1, 11):
                while conn.epoch < tenth * cycles // 10:
                    await trio.sleep(0.1)
                    del server.dials[:]
                counts.append(live_objects(server))
                sizes.append(resident_bytes())
                assert living_tasks() <= tasks + 20  # those of one link, and of its server
                assert open_descriptors() == descriptors
            assert conn.statistics().links >= cycles
        await wait_all_tasks_blocked()
        assert living_tasks() == tasks
    return counts, sizes


def reconnect_in_virtual_time(cycles: int) -> tuple[list[int], list[int]]:
    return trio.run(reconnect, cycles, clock=MockClock(autojump_threshold=0))


@pytest.mark.fault("F125", where="memory")
@pytest.mark.soak
@pytest.mark.parametrize("cycles", [10_000])
def test_thousands_of_reconnects(cycles: int) -> None:
    counts, sizes = in_a_new_process(reconnect_in_virtual_time, cycles)
    assert max(counts[2:]) - min(counts[2:]) <= 300
    assert max(sizes[2:]) - sizes[1] <= 0.5 * 1024 * 1024


async def reconnect_over_sockets() -> list[int]:
    """Lose one link after the other; return the resident bytes after each hundred of them."""

    async def drop(peer: Peer) -> None:
        await peer.accept()
        await peer.drop()

    server = ScriptedServer(then=drop, max_dials=10_000)
    sizes: list[int] = []
    with trio.fail_after(100):
        async with server.listen() as listening:
            tasks, descriptors = living_tasks(), open_descriptors()
            async with open_connection(listening.url, backoff=ListBackoff([0.001])) as conn:
                for hundred in (100, 200, 300):
                    while conn.epoch < hundred:
                        await trio.sleep(0.01)
                    del server.dials[:]
                    sizes.append(resident_bytes())
                assert len(open_descriptors()) <= len(descriptors) + 2  # one link at a time, and its server's end
            while living_tasks() > tasks:  # the server's own last words
                await trio.sleep(0.01)
            assert open_descriptors() == descriptors
    return sizes


@pytest.mark.fault("F125", where="socket")
def test_hundreds_of_reconnects_over_sockets_leave_no_descriptor_and_no_task() -> None:
    sizes = in_a_new_process(trio.run, reconnect_over_sockets)
    assert sizes[-1] - sizes[0] <= 0.5 * 1024 * 1024


MINUTE = 60.0
TOKEN_LASTS = 60 * MINUTE
CHANNELS = [f"channel {number}" for number in range(100)]


@attrs.define(eq=False, kw_only=True)
class StrictVenue(GenericVenue):
    """A venue whose tokens are good for an hour, however often one signs in with them."""

    handed_out: list[float] = attrs.field(factory=list, init=False)
    """When each token was; its name is its number."""
    told: int = attrs.field(default=0, init=False)
    """How often each channel was told something, while somebody heard it or not."""

    async def hand_out_token(self) -> str:
        """Return the present token, or the next where that is about to expire."""
        await trio.lowlevel.checkpoint()
        if not self.handed_out or trio.current_time() > self.handed_out[-1] + TOKEN_LASTS - MINUTE - 1:
            self.handed_out.append(trio.current_time())
        self.tokens = {str(len(self.handed_out))}
        self.expires_in = self.handed_out[-1] + TOKEN_LASTS - trio.current_time()
        return str(len(self.handed_out))

    def tell_all(self) -> None:
        """Tell every channel something, and remember it nowhere."""
        self.told += 1
        for link in self.live_links:
            for channel in link.subscriptions:
                link.say({"channel": channel, "seq": self.told})

    def forget(self) -> None:
        """Close the books, in which a day would be remembered."""
        del self.dials[:], self.arrivals[:]
        self.links[:] = self.live_links
        for link in self.links:
            del link.journal[:], link.said[:], link.peer.dialled.journal[:]


@pytest.mark.soak
@pytest.mark.fault("F125", where="memory")
async def test_a_day_of_a_hundred_subscriptions_with_tokens_that_expire_and_outages(
    autojump_clock: trio.abc.Clock,
) -> None:
    started = time.process_time()
    lost, heard = dict.fromkeys(CHANNELS, 0), dict.fromkeys(CHANNELS, 0)
    refreshes = 0
    sizes: list[int] = []

    async def consume(channel: str) -> None:
        """Count what is lost; that the feed has told of it before is asserted."""
        expected, warned = 1, False
        async with conn.subscribe(channel, feed=FeedOptions(notices=True)) as feed:
            async for message in feed:
                if isinstance(message, Gap):
                    warned = True
                    continue
                assert message["seq"] == expected or (warned and message["seq"] > expected)
                lost[channel] += message["seq"] - expected
                heard[channel] += 1
                expected, warned = message["seq"] + 1, False

    async def count_refreshes() -> None:
        nonlocal refreshes
        async with conn.listen() as events:
            async for event in events:
                refreshes += isinstance(event, Authenticated) and event.refresh

    async def publish() -> None:
        for minute in itertools.count(1):
            await trio.sleep_until(minute * MINUTE + 30.0)
            venue.tell_all()

    async with (
        StrictVenue() as venue,
        open_connection(
            "ws://venue.test/",
            stream_factory=venue.stream_factory,
            codec=JsonCodec(),
            backoff=ListBackoff([1.0]),
            credentials=venue.hand_out_token,
            allow_plaintext_credentials=True,
        ) as conn,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(count_refreshes)
        for channel in CHANNELS:
            nursery.start_soon(consume, channel)
        await wait_all_tasks_blocked()
        nursery.start_soon(publish)
        for outage in range(1, 145):
            # It begins 2 s before a publication, and lasts until after it: that one is lost.
            await trio.sleep_until(outage * 10 * MINUTE + 28.0)
            assert venue.link.live
            venue.refuse_dials(503, times=4)
            venue.drop()
            await trio.sleep(10.0)
            assert set(conn.subscriptions().values()) == {"confirmed"}
            assert venue.link.live
            assert set(venue.subscribed()) == set(CHANNELS)
            venue.forget()
            if outage % 6 == 0:
                sizes.append(resident_bytes())
        await trio.sleep(MINUTE)
        nursery.cancel_scope.cancel(reason="the day is over")

    assert refreshes == 24  # each a minute before the token expires
    assert set(lost.values()) == {144}
    assert {heard[channel] + lost[channel] for channel in CHANNELS} == {venue.told}
    slope, _ = statistics.linear_regression(range(len(sizes) - 6), sizes[6:])
    assert slope <= 0.1 * 1024 * 1024  # bytes an hour, once all that is kept for good has been made
    assert time.process_time() - started <= 120.0  # what takes longer is not run
