"""The contract of links can be broken: each fault here is caught by the sentence that forbids it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from trio_nova.errors import ConnectFailed, HandshakeRejected, LinkLost
from trio_nova.links import Dial, Link, Sent, Transport, TrioWebsocketTransport
from trio_nova.messages import Frame, Pong
from trio_nova.testing import LinkContract


@attrs.define(eq=False)
class Sound:
    """A link that leaves all to a good one: the start for the faulty ones."""

    good: Link

    @property
    def subprotocol(self) -> str | None:
        return self.good.subprotocol

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return self.good.response_headers

    @property
    def transit(self) -> None:
        return None

    @property
    def heard_at(self) -> float:
        return self.good.heard_at

    @property
    def stalled_since(self) -> float | None:
        return self.good.stalled_since

    async def receive_some(self) -> Sequence[Frame]:
        return await self.good.receive_some()

    def send_nowait(self, frame: Frame) -> Sent:
        return "not"

    async def send_all(self, frames: Sequence[Frame]) -> None:
        await self.good.send_all(frames)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self.good.aclose(code, reason)

    def abort(self) -> None:
        self.good.abort()


class Losing(Sound):
    async def receive_some(self) -> Sequence[Frame]:
        return (await self.good.receive_some())[1:]


class Shuffling(Sound):
    async def send_all(self, frames: Sequence[Frame]) -> None:
        await self.good.send_all(frames[::-1])


class Hiding(Sound):
    async def receive_some(self) -> Sequence[Frame]:
        return [frame for frame in await self.good.receive_some() if not isinstance(frame, Pong)]


class Forgetting(Sound):
    async def receive_some(self) -> Sequence[Frame]:
        try:
            return await self.good.receive_some()
        except LinkLost as lost:
            raise LinkLost(lost.code, lost.reason, remote=lost.remote) from lost


class Rude(Sound):
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.abort()


class Stubborn(Sound):
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self.good.aclose(code, reason)
        await trio.sleep(10.0)


class Polite(Sound):
    def abort(self) -> None:
        trio.lowlevel.spawn_system_task(self.good.aclose)


class Blind(Sound):
    @property
    def stalled_since(self) -> float | None:
        return None


@attrs.frozen
class Around:
    """Opens good links and hands out faulty ones."""

    kind: type[Sound]

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        async with TrioWebsocketTransport().open(dial) as link:
            yield self.kind(link)


class Grouping:
    """Keeps a nursery around the block, and lets its groups out."""

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        async with TrioWebsocketTransport().open(dial) as link, trio.open_nursery():
            yield link


class Parting:
    """Says goodbye where it ought to abort."""

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        async with TrioWebsocketTransport().open(dial) as link:
            yield link
            await link.aclose()


class Impatient:
    """Dials without the caller's headers, and does not read what a rejection says."""

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        try:
            async with TrioWebsocketTransport().open(attrs.evolve(dial, headers=())) as link:
                yield link
        except HandshakeRejected as exc:
            raise HandshakeRejected(exc.status) from exc


class Credulous:
    """Takes every failure for the same."""

    @asynccontextmanager
    async def open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        try:
            async with TrioWebsocketTransport().open(dial) as link:
                yield link
        except ConnectFailed as exc:
            raise ConnectFailed(str(exc)) from exc


class Generous:
    """Takes messages of any size."""

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        return TrioWebsocketTransport().open(attrs.evolve(dial, max_message_size=2**30))


FAULTS: list[tuple[Transport, str]] = [
    (Around(Losing), "test_a_batch_arrives_whole_and_in_order"),
    (Around(Losing), "test_all_that_was_sent_before_a_drop_comes_first"),
    (Around(Shuffling), "test_text_and_bytes_come_back_as_they_went"),
    (Around(Hiding), "test_the_pong_to_a_ping_is_returned"),
    (Around(Forgetting), "test_the_code_and_reason_of_the_peers_close_are_told"),
    (Around(Forgetting), "test_a_reset_is_1006"),
    (Around(Rude), "test_aclose_sends_its_code_and_reason"),
    (Around(Rude), "test_aclose_waits_for_a_mute_peer_as_long_as_it_may"),
    (Around(Stubborn), "test_aclose_is_bounded_while_the_peer_keeps_talking"),
    (Around(Stubborn), "test_aclose_does_not_wait_for_a_stuck_write"),
    (Around(Polite), "test_abort_says_no_goodbye"),
    (Around(Blind), "test_a_stuck_write_is_seen_while_it_lasts"),
    (Grouping(), "test_what_the_block_raises_leaves_bare"),
    (Parting(), "test_leaving_the_block_aborts_a_link_that_is_open"),
    (Impatient(), "test_the_peer_sees_resource_host_headers_and_subprotocols"),
    (Impatient(), "test_a_rejected_upgrade_says_status_headers_body_and_patience"),
    (Credulous(), "test_a_wrong_accept_key_is_not_believed"),
    (Credulous(), "test_a_refused_dial_is_a_failed_connect"),
    (Generous(), "test_a_header_that_announces_too_much_ends_the_link_with_1009"),
]


@pytest.mark.parametrize(("transport", "sentence"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_fault_is_caught(transport: Transport, sentence: str, autojump_clock: MockClock) -> None:
    contract = LinkContract()
    contract.transport = transport
    with pytest.raises((AssertionError, trio.TooSlowError, ExceptionGroup)):
        await getattr(contract, sentence)(autojump_clock)


async def test_what_has_no_fault_passes(autojump_clock: MockClock) -> None:
    contract = LinkContract()
    contract.transport = Around(Sound)
    await contract.test_a_batch_arrives_whole_and_in_order(autojump_clock)
    await contract.test_the_pong_to_a_ping_is_returned(autojump_clock)
