"""The contract that every transport keeps, as tests against a scripted server.

Subclass `LinkContract` in a test module of yours, with the transport to be judged; pytest-trio runs the
tests, so `trio_mode = true` must be set::

    class TestMyTransport(LinkContract):
        transport = MyTransport()

What is promised is written in `trio_nova.links._seam`; each test here is one sentence of it.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_nova.errors import ConnectFailed, HandshakeInvalid, HandshakeRejected, LinkLost, TlsFailed
from trio_nova.links import Dial, Link, StreamFactory, Transport
from trio_nova.messages import Frame, Ping, Pong
from trio_nova.testing._frames import ClosePayload, Opcode, encode, encode_frame
from trio_nova.testing._peer import Peer, echo
from trio_nova.testing._server import HangDial, Refuse, ScriptedServer
from trio_nova.urls import Url

__all__ = ["LinkContract", "make_dial"]

PATIENCE = 60.0
"""Seconds, virtual ones but for the tests over TCP, after which a test has failed rather than hangs."""

MAX_MESSAGE_SIZE = 100_000
CLOSE_TIMEOUT = 5.0


@attrs.frozen
class _Loopback:
    """Resolves every name to this machine."""

    async def resolve(self, host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return ["127.0.0.1"]


def make_dial(
    server: ScriptedServer | None = None,
    url: str = "ws://server.test/path?key=value",
    *,
    epoch: int = 1,
    headers: Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    ssl_context: ssl.SSLContext | None = None,
    max_message_size: int = MAX_MESSAGE_SIZE,
    close_timeout: float = CLOSE_TIMEOUT,
    stream_factory: StreamFactory | None = None,
) -> Dial:
    """Return what a transport needs to dial `server` in memory, or `url` over loopback TCP where there is no server."""
    if server is not None and stream_factory is None:
        stream_factory = server.stream_factory
    return Dial(
        url=Url.parse(url),
        epoch=epoch,
        headers=tuple(headers),
        subprotocols=tuple(subprotocols),
        ssl_context=ssl_context,
        stream_factory=stream_factory,
        resolver=_Loopback(),
        max_message_size=max_message_size,
        close_timeout=close_timeout,
    )


class LinkContract:
    """The promises of `Transport` and `Link`. Subclass it and set `transport`."""

    transport: Transport
    """What is judged. May be a property, to make a new one for each test."""

    # ------------------------------------------------------------------- the upgrade

    async def test_the_peer_sees_resource_host_headers_and_subprotocols(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server:
            dial = make_dial(server, headers=[("X-Key", "one"), ("X-Key", "two")], subprotocols=["a.v2", "a.v1"])
            async with self._open(dial) as link:
                await link.aclose()
        request = server.dials[0].request
        assert request is not None
        assert request.target == "/path?key=value"
        assert request.headers["host"] == "server.test"
        assert request.headers.get_all("x-key") == ["one", "two"]
        assert request.subprotocols == ("a.v2", "a.v1")

    async def test_the_host_header_names_a_port_that_is_not_the_default(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server, "ws://server.test:8080/")) as link:
            await link.aclose()
        request = server.dials[0].request
        assert request is not None
        assert request.headers["host"] == "server.test:8080"

    async def test_the_link_knows_what_the_server_answered(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept({"X-Server": "7"}, subprotocol="a.v1")
            await peer.serve_until_closed()

        async with (
            ScriptedServer(script) as server,
            self._open(make_dial(server, subprotocols=["a.v2", "a.v1"])) as link,
        ):
            assert link.subprotocol == "a.v1"
            assert ("x-server", "7") in link.response_headers
            await link.aclose()

    async def test_without_subprotocols_there_is_none(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            assert link.subprotocol is None

    async def test_a_frame_glued_to_the_upgrade_is_not_lost(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(glued=encode("early"))
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            assert await _receive(link, 1) == ["early"]

    async def test_an_upgrade_that_drips_in_is_waited_for(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.drip(peer.upgrade_response() + encode("slow"), interval=0.01)
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            assert await _receive(link, 1) == ["slow"]

    async def test_a_rejected_upgrade_says_status_headers_body_and_patience(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.reject(503, {"Retry-After": "7", "X-Server": "busy"}, b"come back later")

        async with ScriptedServer(script) as server:
            failure = await self._fail(make_dial(server))
        assert isinstance(failure, HandshakeRejected)
        assert failure.status == 503
        assert ("x-server", "busy") in [(name.lower(), value) for name, value in failure.headers]
        assert failure.body == b"come back later"
        assert failure.retry_after == 7.0

    async def test_a_rejection_without_end_is_cut(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send_raw(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                await peer.send_raw(b"400\r\n" + bytes(1024) + b"\r\n")

        async with ScriptedServer(script) as server:
            failure = await self._fail(make_dial(server))
        assert isinstance(failure, HandshakeRejected)
        assert failure.status == 403
        assert len(failure.body) <= 4096

    async def test_a_wrong_accept_key_is_not_believed(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(key="s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
            await peer.mute()

        async with ScriptedServer(script) as server:
            assert isinstance(await self._fail(make_dial(server)), HandshakeInvalid)
            await server.dials[0].wait_ended()

    async def test_a_subprotocol_that_was_not_offered_is_refused(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept(subprotocol="other")
            await peer.mute()

        async with ScriptedServer(script) as server:
            assert isinstance(await self._fail(make_dial(server, subprotocols=["mine"])), HandshakeInvalid)

    async def test_an_answer_that_is_not_http_is_refused(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send_raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
            await peer.mute()

        async with ScriptedServer(script) as server:
            assert isinstance(await self._fail(make_dial(server)), HandshakeInvalid)

    async def test_a_drop_during_the_upgrade_fails_at_once(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.send_raw(b"HTTP/1.1 101 Sw")
            await peer.drop()

        async with ScriptedServer(script) as server:
            failure = await self._fail(make_dial(server))
        assert failure.phase == "http"
        assert failure.retry == "backoff"
        assert trio.current_time() == server.dials[0].at

    async def test_a_reset_during_the_upgrade_fails_at_once(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.reset()

        async with ScriptedServer(script) as server:
            failure = await self._fail(make_dial(server))
        assert failure.phase == "http"
        assert trio.current_time() == server.dials[0].at

    async def test_a_refused_dial_is_a_failed_connect(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(Refuse()) as server:
            failure = await self._fail(make_dial(server))
        assert type(failure) is ConnectFailed
        assert failure.phase == "tcp"
        assert isinstance(failure.__cause__, OSError)

    async def test_cancelling_the_open_leaves_nothing_behind(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.read_request()
            await peer.mute()

        async with ScriptedServer(script, HangDial()) as server:
            for _ in range(2):
                with trio.move_on_after(3.0) as scope:
                    async with self._open(make_dial(server)):
                        raise AssertionError("the link opened")
                assert scope.cancelled_caught
            with trio.fail_after(PATIENCE):
                await server.dials[0].wait_ended()
        assert server.dials[0].ended == "client gone"
        assert server.dials[0].ended_at == server.dials[0].at + 3.0

    # ------------------------------------------------------------------- messages

    async def test_text_and_bytes_come_back_as_they_went(self, autojump_clock: MockClock) -> None:
        messages: list[Frame] = ["hällo ☂ \U0001f600", b"\x00\xff", "", b"", "x" * 125, "x" * 126, b"y" * 65_536]
        async with ScriptedServer(echo, max_buffer=2**20) as server, self._open(make_dial(server)) as link:
            await link.send_all(messages)
            assert await _receive(link, len(messages)) == messages

    async def test_a_batch_arrives_whole_and_in_order(self, autojump_clock: MockClock) -> None:
        sent: list[Frame] = [f"{number}" for number in range(1_000)]

        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send(*sent)
            assert [await peer.receive() for _ in sent] == sent
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            await link.send_all(sent)
            assert await _receive(link, len(sent)) == sent
            await link.aclose()

    async def test_an_empty_batch_sends_nothing(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            await link.send_all([])
            await link.aclose()
        assert server.dials[0].frames == [ClosePayload(1000)]

    async def test_frames_cut_into_single_bytes_are_put_together(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo, slice_size=1) as server, self._open(make_dial(server)) as link:
            await link.send_all(["hällo ☂", b"y" * 300])
            assert await _receive(link, 2) == ["hällo ☂", b"y" * 300]

    async def test_a_message_of_the_greatest_size_passes(self, autojump_clock: MockClock) -> None:
        message = b"z" * MAX_MESSAGE_SIZE
        async with ScriptedServer(echo, max_buffer=2**20) as server, self._open(make_dial(server)) as link:
            await link.send_all([message])
            assert await _receive(link, 1) == [message]

    async def test_a_fragmented_message_is_returned_whole(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            umbrella = "☂".encode()
            await peer.send_frame(Opcode.TEXT, umbrella[:1], fin=False)
            await peer.send(Ping(b"between"))
            await peer.send_frame(Opcode.CONTINUATION, fin=False)
            await peer.send_frame(Opcode.CONTINUATION, umbrella[1:])
            await peer.expect(Pong(b"between"))
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            assert await _receive(link, 1) == ["☂"]
            await link.aclose()

    async def test_each_frame_is_masked_with_a_key_of_its_own(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            await link.send_all(["same"] * 100)
            await _receive(link, 100)
            assert len({received.mask for received in server.dials[0].journal}) == 100

    async def test_cancelling_receive_some_loses_nothing(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            for number in range(10):
                await peer.drip(encode(f"{number}"), interval=0.7)
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            received: list[Frame] = []
            while len(received) < 10:
                with trio.move_on_after(0.3):
                    received += await link.receive_some()
            assert received == [f"{number}" for number in range(10)]

    async def test_an_answer_that_never_grows_whole_shows_as_a_sign_of_life(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send_frame(Opcode.TEXT, b"begun", length=50)
            await peer.hang()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            assert list(await link.receive_some()) == []

    # ------------------------------------------------------------------- pings

    async def test_a_ping_is_answered_while_receiving(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send(Ping(b"are you there?"))
            await peer.expect(Pong(b"are you there?"))
            await peer.send("thanks")
            await peer.serve_until_closed()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            assert await _receive(link, 1) == ["thanks"]

    async def test_the_pong_to_a_ping_is_returned(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            await link.send_all([Ping(b"x")])
            frames: list[Frame] = []
            while Pong(b"x") not in frames:
                frames += await link.receive_some()
            assert frames == [Pong(b"x")]
            assert server.dials[0].frames == [Ping(b"x")]

    # ------------------------------------------------------------------- how the peer ends it

    async def test_the_code_and_reason_of_the_peers_close_are_told(self, autojump_clock: MockClock) -> None:
        answers = []

        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send("last words")
            answers.append(await peer.close(4001, "enough"))

        async with ScriptedServer(script) as server, self._open(make_dial(server, epoch=7)) as link:
            frames, lost = await _receive_all(link)
            await server.dials[0].wait_ended()
        assert frames == ["last words"]
        assert (lost.code, lost.reason, lost.epoch, lost.remote) == (4001, "enough", 7, True)
        assert answers == [ClosePayload(4001, "enough")] or answers == [ClosePayload(4001)]
        assert server.dials[0].ended == "closed"

    async def test_a_close_that_says_nothing_is_1005(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.close(1005)

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            _, lost = await _receive_all(link)
            assert (lost.code, lost.reason, lost.remote) == (1005, "", True)

    async def test_what_follows_a_close_is_not_returned(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send("before", ClosePayload(1001), "after")
            await peer.mute()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            frames, lost = await _receive_all(link)
            assert frames == ["before"]
            assert lost.code == 1001

    async def test_a_peer_that_says_goodbye_but_stays_does_not_hold_us(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send(ClosePayload(1001))
            await peer.mute()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            _, lost = await _receive_all(link)
            assert lost.code == 1001
            assert trio.current_time() <= server.dials[0].at + CLOSE_TIMEOUT

    async def test_all_that_was_sent_before_a_drop_comes_first(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send(*[f"{number}" for number in range(100)])
            await peer.send_frame(Opcode.TEXT, b"torn", length=100)
            await peer.drop()

        async with ScriptedServer(script, slice_size=64) as server, self._open(make_dial(server, epoch=3)) as link:
            frames, lost = await _receive_all(link)
            assert frames == [f"{number}" for number in range(100)]
            assert (lost.code, lost.epoch, lost.remote) == (1006, 3, None)

    async def test_a_reset_is_1006(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await trio.sleep(1.0)
            await peer.reset()

        async with ScriptedServer(script) as server, self._open(make_dial(server, epoch=3)) as link:
            _, lost = await _receive_all(link)
            assert (lost.code, lost.epoch, lost.remote) == (1006, 3, None)

    async def test_a_lost_link_stays_lost(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.close(1012, "restart")

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            for _ in range(2):
                _, lost = await _receive_all(link)
                assert (lost.code, lost.reason) == (1012, "restart")
            assert (await _fail_to_send(link)).code == 1012
            await link.aclose()
            link.abort()

    async def test_a_write_to_a_peer_that_is_gone_is_lost(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await trio.sleep(1.0)
            await peer.reset()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            await server.dials[0].wait_ended()
            assert (await _fail_to_send(link)).code == 1006

    # ------------------------------------------------------------------- what the peer may not do

    async def test_text_that_is_not_utf8_ends_the_link_with_1007(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.TEXT, b"\xce\xba\xed\xa0\x80"), 1007)

    async def test_a_masked_frame_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.TEXT, b"masked", mask=True), 1002)

    async def test_a_reserved_opcode_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(0x3, b"?"), 1002)

    async def test_a_reserved_bit_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.TEXT, b"?", rsv=0b010), 1002)

    async def test_a_continuation_of_nothing_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.CONTINUATION, b"?"), 1002)

    async def test_a_fragmented_ping_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.PING, b"?", fin=False), 1002)

    async def test_an_impossible_close_code_ends_the_link_with_1002(self, autojump_clock: MockClock) -> None:
        await self._ends(encode(ClosePayload(1006)), 1002)

    async def test_a_header_that_announces_too_much_ends_the_link_with_1009(self, autojump_clock: MockClock) -> None:
        await self._ends(encode_frame(Opcode.BINARY, length=MAX_MESSAGE_SIZE + 1), 1009)

    async def test_fragments_that_add_up_to_too_much_end_the_link_with_1009(self, autojump_clock: MockClock) -> None:
        half = bytes(MAX_MESSAGE_SIZE // 2 + 1)
        first = encode_frame(Opcode.BINARY, half, fin=False)
        await self._ends(first + encode_frame(Opcode.CONTINUATION, half, fin=False), 1009)

    # ------------------------------------------------------------------- how we end it

    async def test_aclose_sends_its_code_and_reason(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            assert await peer.expect_close(4000) == ClosePayload(4000, "good night")

        async with ScriptedServer(script) as server, self._open(make_dial(server, epoch=2)) as link:
            await link.aclose(4000, "good night")
            _, lost = await _receive_all(link)
            assert (lost.code, lost.reason, lost.epoch, lost.remote) == (4000, "good night", 2, False)
            await server.dials[0].wait_ended()
        assert server.dials[0].ended == "closed"
        assert trio.current_time() == server.dials[0].at

    async def test_aclose_wakes_the_task_that_receives(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_receive_all, link)
                await wait_all_tasks_blocked()
                await link.aclose()
            assert trio.current_time() == server.dials[0].at
            await server.dials[0].wait_ended()
            assert server.dials[0].ended == "closed"

    async def test_aclose_may_be_called_by_two_tasks_and_again(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo) as server, self._open(make_dial(server)) as link:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.aclose, 1000, "")
                nursery.start_soon(link.aclose, 1000, "")
            await link.aclose()
            assert server.dials[0].frames == [ClosePayload(1000)]

    async def test_aclose_waits_for_a_mute_peer_as_long_as_it_may(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.mute()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            started = trio.current_time()
            await link.aclose(1000, "bye")
            assert trio.current_time() - started <= CLOSE_TIMEOUT
            await server.dials[0].wait_ended()
            assert server.dials[0].frames == [ClosePayload(1000, "bye")]

    async def test_aclose_is_bounded_while_the_peer_keeps_talking(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            while True:
                await peer.send("and another thing")
                await trio.sleep(0.5)

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            started = trio.current_time()
            await link.aclose()
            assert trio.current_time() - started <= CLOSE_TIMEOUT

    async def test_aclose_does_not_wait_for_a_stuck_write(self, autojump_clock: MockClock) -> None:
        async with (
            ScriptedServer(_accept_and_stop_reading, max_buffer=1024) as server,
            self._open(make_dial(server)) as link,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_fail_to_send, link)
            await trio.sleep(10.0)
            started = trio.current_time()
            await link.aclose()
            assert trio.current_time() - started <= CLOSE_TIMEOUT

    async def test_cancelling_aclose_aborts_the_link(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.mute()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            with trio.move_on_after(1.0) as scope:
                await link.aclose()
            assert scope.cancelled_caught
            await server.dials[0].wait_ended()
            assert trio.current_time() == server.dials[0].at + 1.0

    async def test_abort_ends_both_directions(self, autojump_clock: MockClock) -> None:
        async with (
            ScriptedServer(_accept_and_stop_reading, max_buffer=1024) as server,
            self._open(make_dial(server, epoch=5)) as link,
        ):
            losses: list[LinkLost] = []

            async def receive() -> None:
                losses.append((await _receive_all(link))[1])

            async def send() -> None:
                losses.append(await _fail_to_send(link))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                nursery.start_soon(send)
                await wait_all_tasks_blocked()
                link.abort()
                link.abort()
            assert [(lost.code, lost.epoch, lost.remote) for lost in losses] == [(1006, 5, None)] * 2
            assert trio.current_time() == server.dials[0].at

    async def test_abort_says_no_goodbye(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.mute()

        async with ScriptedServer(script) as server, self._open(make_dial(server)) as link:
            link.abort()
            await server.dials[0].wait_ended()
            assert server.dials[0].frames == []
            assert server.dials[0].ended == "client gone"

    async def test_a_stuck_write_is_seen_while_it_lasts(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await trio.sleep(10.0)
            await peer.serve_until_closed()

        async with ScriptedServer(script, max_buffer=1024) as server, self._open(make_dial(server)) as link:
            assert link.stalled_since is None
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.send_all, [bytes(50_000)])
                await trio.sleep(5.0)
                assert link.stalled_since == started
            assert link.stalled_since is None

    # ------------------------------------------------------------------- the block

    async def test_leaving_the_block_aborts_a_link_that_is_open(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.mute()

        async with ScriptedServer(script) as server:
            async with self._open(make_dial(server)):
                pass
            await server.dials[0].wait_ended()
        assert server.dials[0].frames == []
        assert trio.current_time() == server.dials[0].at

    async def test_what_the_block_raises_leaves_bare(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.mute()

        raised = LookupError("mine")
        async with ScriptedServer(script) as server:
            try:
                async with self._open(make_dial(server)):
                    raise raised
            except LookupError as caught:
                assert caught is raised  # noqa: PT017
            else:
                raise AssertionError("the exception was swallowed")
            await server.dials[0].wait_ended()
        assert trio.current_time() == server.dials[0].at

    async def test_cancelling_the_block_leaves_at_once(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(_accept_and_stop_reading) as server:
            with trio.move_on_after(2.0) as scope:
                async with self._open(make_dial(server)) as link:
                    await _receive_all(link)
            assert scope.cancelled_caught
            assert trio.current_time() == server.dials[0].at + 2.0

    # ------------------------------------------------------------------- over TCP

    async def test_a_link_goes_over_tcp(self) -> None:
        server = ScriptedServer(echo)
        async with server.listen() as listening, self._open(make_dial(url=listening.url)) as link:
            await link.send_all(["over TCP"])
            assert await _receive(link, 1) == ["over TCP"]
            await link.aclose()
            await server.dials[0].wait_ended()
        assert server.dials[0].ended == "closed"

    async def test_a_link_goes_over_tls(self) -> None:
        server = ScriptedServer(echo)
        async with server.listen(tls=True) as listening:
            dial = make_dial(url=listening.url, ssl_context=listening.client_ssl_context)
            async with self._open(dial) as link:
                await link.send_all(["over TLS"])
                assert await _receive(link, 1) == ["over TLS"]
                await link.aclose()

    async def test_tls_is_laid_over_what_the_stream_factory_returns(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo, tls=True) as server:
            dial = make_dial(server, "wss://server.test/", ssl_context=server.client_ssl_context)
            async with self._open(dial) as link:
                await link.send_all(["over TLS"])
                assert await _receive(link, 1) == ["over TLS"]

    async def test_a_certificate_that_nobody_vouches_for_is_refused(self) -> None:
        async with ScriptedServer(echo).listen(tls=True) as listening:
            failure = await self._fail(make_dial(url=listening.url))
        assert isinstance(failure, TlsFailed)
        assert failure.reason == "untrusted"
        assert failure.retry == "never"

    async def test_a_certificate_for_another_name_is_refused(self, autojump_clock: MockClock) -> None:
        async with ScriptedServer(echo, tls=True) as server:

            async def misdirect(host: str, port: int) -> trio.abc.Stream:
                return await server.stream_factory("other.test", port)

            context = server.client_ssl_context
            failure = await self._fail(
                make_dial(url="wss://server.test/", ssl_context=context, stream_factory=misdirect)
            )
        assert isinstance(failure, TlsFailed)
        assert failure.reason == "hostname"

    async def test_a_drop_during_the_tls_handshake_is_worth_another_try(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            await peer.drop()

        async with ScriptedServer(script) as server:
            failure = await self._fail(make_dial(server, "wss://server.test/"))
        assert type(failure) is ConnectFailed
        assert failure.phase == "tls"
        assert failure.retry == "backoff"

    async def test_a_connection_reset_over_tcp_is_1006(self) -> None:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.expect("go")
            await peer.reset()

        async with ScriptedServer(script).listen() as listening, self._open(make_dial(url=listening.url)) as link:
            await link.send_all(["go"])
            _, lost = await _receive_all(link)
            assert (lost.code, lost.remote) == (1006, None)

    # ------------------------------------------------------------------- pieces

    @asynccontextmanager
    async def _open(self, dial: Dial) -> AsyncGenerator[Link, None]:
        """Open a link, and fail rather than hang in what follows."""
        with trio.fail_after(PATIENCE):
            async with self.transport.open(dial) as link:
                yield link

    async def _fail(self, dial: Dial) -> ConnectFailed:
        """Dial, and return how it failed."""
        try:
            async with self._open(dial):
                raise AssertionError("the link opened")
        except ConnectFailed as failure:
            return failure

    async def _ends(self, offence: bytes, code: int) -> None:
        """Assert that the peer is told `code` for its `offence`, and nothing from there on is returned."""

        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send_raw(encode("before") + offence + encode("after"))
            await peer.expect_close(code)

        async with ScriptedServer(script, max_buffer=2**20) as server, self._open(make_dial(server, epoch=9)) as link:
            frames, lost = await _receive_all(link)
            await server.dials[0].wait_ended()
        assert frames == ["before"]
        assert (lost.code, lost.epoch, lost.remote) == (code, 9, False)
        assert trio.current_time() == server.dials[0].at


async def _accept_and_stop_reading(peer: Peer) -> None:
    await peer.accept()
    await peer.stop_reading()


async def _receive(link: Link, count: int) -> list[Frame]:
    """Return the next `count` messages, passing over the peer's pings."""
    messages: list[Frame] = []
    while len(messages) < count:
        messages += [frame for frame in await link.receive_some() if isinstance(frame, str | bytes)]
    return messages


async def _receive_all(link: Link) -> tuple[list[Frame], LinkLost]:
    """Return all messages up to the end, and the end."""
    messages: list[Frame] = []
    try:
        while True:
            messages += await _receive(link, 1)
    except LinkLost as lost:
        return messages, lost


async def _fail_to_send(link: Link) -> LinkLost:
    """Send a message too big for any buffer, and return how the link was lost."""
    try:
        while True:
            await link.send_all([bytes(MAX_MESSAGE_SIZE)])
    except LinkLost as lost:
        return lost
