"""The scripted server, judged through wsproto: a client that shares no code with it."""

from __future__ import annotations

import errno
import os
import ssl
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Event,
    Message,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong as WsprotoPong

from trio_nova.messages import Ping, Pong
from trio_nova.testing import (
    ClosePayload,
    Disconnected,
    HangDial,
    HangTls,
    Opcode,
    Peer,
    ProtocolBreach,
    Refuse,
    Script,
    ScriptedServer,
    echo,
    encode_frame,
)
from trio_nova.testing._tls import _authority


@attrs.define(eq=False)
class RawClient:
    """A client without manners of its own: it answers nothing that it is not told to."""

    stream: trio.abc.Stream
    _wsproto: WSConnection = attrs.field(factory=lambda: WSConnection(ConnectionType.CLIENT))

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self._wsproto.send(event))

    async def receive(self) -> Event:
        """Return the next event; EOF is a CloseConnection with code 1006."""
        while True:
            for event in self._wsproto.events():
                return event
            data = await self.stream.receive_some()
            self._wsproto.receive_data(bytes(data) or None)

    async def upgrade(self, target: str = "/", headers: list[tuple[bytes, bytes]] | None = None) -> Event:
        await self.send(Request(host="server.test", target=target, extra_headers=headers or [], subprotocols=["v1"]))
        return await self.receive()


@asynccontextmanager
async def dialled(server: ScriptedServer, host: str = "server.test") -> AsyncGenerator[RawClient, None]:
    """Hold a client with an open connection in memory."""
    with trio.fail_after(1_000):
        async with await server.stream_factory(host, 80) as stream:
            client = RawClient(stream)
            assert isinstance(await client.upgrade(), AcceptConnection)
            yield client


# --------------------------------------------------------------------------- dials


async def test_each_dial_gets_its_script_and_later_ones_the_last(autojump_clock: MockClock) -> None:
    def greet(text: str) -> Script:
        async def script(peer: Peer) -> None:
            await peer.accept()
            await peer.send(text)
            await peer.serve_until_closed()

        return script

    async with ScriptedServer(greet("first"), greet("second"), then=greet("last")) as server:
        for expected in ["first", "second", "last", "last"]:
            async with dialled(server) as client:
                assert await client.receive() == TextMessage(expected)
            await trio.sleep(1.0)
    assert [(dial.number, dial.at, dial.ended) for dial in server.dials] == [
        (number, number - 1.0, "client gone") for number in (1, 2, 3, 4)
    ]


async def test_without_a_script_a_dial_is_refused() -> None:
    async with ScriptedServer(Refuse(errno.EHOSTUNREACH)) as server:
        for expected in [errno.EHOSTUNREACH, errno.ECONNREFUSED]:
            with pytest.raises(OSError, match=os.strerror(expected)) as caught:
                await server.stream_factory("server.test", 443)
            assert caught.value.errno == expected
    assert [(dial.host, dial.port, dial.ended) for dial in server.dials] == [("server.test", 443, "refused")] * 2


async def test_a_dial_that_hangs_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with ScriptedServer(HangDial()) as server:
        with trio.move_on_after(5) as scope:
            await server.stream_factory("server.test", 80)
        assert scope.cancelled_caught
        await server.dials[0].wait_ended()
    assert (server.dials[0].ended, server.dials[0].ended_at) == ("cancelled", 5.0)


async def test_a_tls_handshake_that_hangs_takes_the_connection(autojump_clock: MockClock) -> None:
    async with ScriptedServer(HangTls(), tls=True) as server:
        stream = await server.stream_factory("server.test", 443)
        client = trio.SSLStream(stream, server.client_ssl_context, server_hostname="server.test")
        with trio.move_on_after(5) as scope:
            await client.do_handshake()
        assert scope.cancelled_caught


async def test_too_many_dials_fail_the_test() -> None:
    async def retry_without_end() -> None:
        async with ScriptedServer(max_dials=2) as server:
            servers.append(server)
            while True:
                with suppress(Exception):
                    await server.stream_factory("server.test", 80)

    servers: list[ScriptedServer] = []
    with pytest.raises(AssertionError, match="dialled 2 times"):
        await retry_without_end()
    assert len(servers[0].dials) == 2


async def test_too_many_dials_over_loopback_fail_the_test_too() -> None:
    async def run() -> None:
        async with ScriptedServer(max_dials=0).listen() as listening, _over_tcp(listening.port):
            await trio.sleep_forever()

    with pytest.raises(AssertionError, match="dialled 0 times"):
        await run()


async def test_a_server_is_dialled_only_while_it_runs() -> None:
    server = ScriptedServer(echo)
    with pytest.raises(RuntimeError, match="not running"):
        await server.stream_factory("server.test", 80)
    async with server:
        with pytest.raises(RuntimeError, match="running already"):
            async with server:
                pass


async def test_a_dial_can_be_waited_for() -> None:
    async with ScriptedServer(echo) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.stream_factory, "one.test", 80)
        assert (await server.wait_dialled(1)).host == "one.test"


# --------------------------------------------------------------------------- scripts


async def test_an_assertion_in_a_script_leaves_the_servers_block_bare(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("this")

    async def run() -> None:
        async with ScriptedServer(script) as server:
            servers.append(server)
            async with dialled(server) as client:
                await client.send(TextMessage("that"))
                await trio.sleep_forever()

    servers: list[ScriptedServer] = []
    with pytest.raises(AssertionError, match="expected 'this', the client sent 'that'"):
        await run()
    assert servers[0].dials[0].ended == "failed"


async def test_what_the_block_raises_leaves_bare() -> None:
    async def run() -> None:
        async with ScriptedServer(echo) as server, dialled(server):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await run()


async def test_a_failed_script_and_a_failed_block_leave_together() -> None:
    async def script(peer: Peer) -> None:
        raise KeyError("script")

    async def run() -> None:
        async with ScriptedServer(script) as server:
            await server.stream_factory("server.test", 80)
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError("block")

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert {type(exc) for exc in caught.value.exceptions} == {KeyError, LookupError}


async def test_leaving_the_block_cancels_scripts(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.hang()

    async with ScriptedServer(script) as server:
        stream = await server.stream_factory("server.test", 80)
        await wait_all_tasks_blocked()
    assert server.dials[0].ended == "cancelled"
    assert await stream.receive_some() == b""


async def test_a_client_that_hangs_up_ends_a_script_quietly_also_in_a_nursery() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.receive)

    async with ScriptedServer(script) as server:
        async with dialled(server):
            pass
        await server.dials[0].wait_ended()
    assert server.dials[0].ended == "client gone"


async def test_a_client_that_hangs_up_does_not_meet_an_expectation() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        with pytest.raises(AssertionError, match="expected 'words', the client hung up"):
            await peer.expect("words")

    async with ScriptedServer(script) as server:
        async with dialled(server):
            pass
        await server.dials[0].wait_ended()


async def test_what_fails_in_a_scripts_own_nursery_is_not_taken_for_a_quiet_end() -> None:
    async def fail() -> None:
        raise KeyError("script")

    async def script(peer: Peer) -> None:
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async def run() -> None:
        async with ScriptedServer(script) as server, dialled(server):
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert [type(exc) for exc in caught.value.exceptions] == [KeyError]


async def test_a_script_that_returns_closes_with_1000(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()

    async with ScriptedServer(script) as server, dialled(server) as client:
        goodbye = await client.receive()
        assert goodbye == CloseConnection(1000, "")
        await client.send(CloseConnection(1000))
        await server.dials[0].wait_ended()
        assert server.dials[0].ended == "closed"


async def test_a_script_that_returns_after_the_clients_goodbye_answers_it(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        assert await peer.receive() == ClosePayload(4000, "bye")

    async with ScriptedServer(script) as server, dialled(server) as client:
        await client.send(CloseConnection(4000, "bye"))
        assert await client.receive() == CloseConnection(4000, "bye")


async def test_a_script_that_returns_without_accepting_drops() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()

    async with ScriptedServer(script) as server, await server.stream_factory("server.test", 80) as stream:
        client = RawClient(stream)
        await client.send(Request(host="server.test", target="/"))
        assert await stream.receive_some() == b""
    assert server.dials[0].ended == "dropped"


# --------------------------------------------------------------------------- the upgrade


async def test_the_upgrade_is_seen_and_answered() -> None:
    async def script(peer: Peer) -> None:
        with pytest.raises(RuntimeError, match="not been read"):
            _ = peer.request
        await peer.accept([("X-Twice", "1"), ("X-Twice", "2")], subprotocol="v1")
        assert peer.request.query == {"key": "value"}
        assert peer.request.headers["x-token"] == "secret"

    async with ScriptedServer(script) as server, await server.stream_factory("server.test", 80) as stream:
        answer = await RawClient(stream).upgrade("/path?key=value", [(b"X-Token", b"secret")])
    assert isinstance(answer, AcceptConnection)
    assert answer.subprotocol == "v1"
    assert answer.extra_headers == [(b"x-twice", b"1"), (b"x-twice", b"2")]
    assert server.dials[0].request is not None
    assert server.dials[0].request.subprotocols == ("v1",)


async def test_a_rejection_has_status_headers_and_body() -> None:
    async def script(peer: Peer) -> None:
        await peer.reject(503, headers={"Retry-After": "7"}, body=b"later")

    async with ScriptedServer(script) as server, await server.stream_factory("server.test", 80) as stream:
        client = RawClient(stream)
        answer = await client.upgrade()
        assert isinstance(answer, RejectConnection)
        assert (answer.status_code, dict(answer.headers)[b"retry-after"]) == (503, b"7")
        assert await client.receive() == RejectData(b"later", body_finished=False)
        assert await stream.receive_some() == b""
    assert server.dials[0].ended == "rejected"


@pytest.mark.parametrize(
    ("sent", "rule"),
    [
        (b"PUT / HTTP/1.1\r\n\r\n", "method is GET"),
        (b"GET / HTTP/1.1\r\n\r\n\x81", "more before its request is answered"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, "more than 65536 bytes"),
    ],
)
async def test_a_bad_request_fails_the_test(sent: bytes, rule: str) -> None:
    async def run() -> None:
        async with ScriptedServer(echo, max_buffer=100_000) as server:
            stream = await server.stream_factory("server.test", 80)
            await stream.send_all(sent)
            await trio.sleep_forever()

    with pytest.raises(ProtocolBreach, match=rule):
        await run()


# --------------------------------------------------------------------------- frames


async def test_messages_are_echoed_and_journalled_with_their_time(autojump_clock: MockClock) -> None:
    async with ScriptedServer(echo) as server, dialled(server) as client:
        await client.send(TextMessage("☂"))
        assert await client.receive() == TextMessage("☂")
        await trio.sleep(2.5)
        await client.send(Message(b"\x00"))
        reply = await client.receive()
        assert isinstance(reply, Message)
        assert reply.data == b"\x00"
        await client.send(CloseConnection(1001, "bye"))
        assert await client.receive() == CloseConnection(1001, "bye")
        dial = server.dials[0]
        await dial.wait_ended()
    assert [(received.at, received.frame) for received in dial.journal] == [
        (0.0, "☂"),
        (2.5, b"\x00"),
        (2.5, ClosePayload(1001, "bye")),
    ]
    assert all(len(received.mask) == 4 for received in dial.journal)
    assert (dial.ended, dial.ended_at) == ("closed", 2.5)


async def test_a_dialogue_in_json() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        assert await peer.receive_json() == {"id": 1}
        await peer.send_json({"id": 1, "result": None})
        await peer.expect_close(1000)

    async with ScriptedServer(script) as server, dialled(server) as client:
        await client.send(TextMessage('{"id": 1}'))
        assert await client.receive() == TextMessage('{"id":1,"result":null}')
        await client.send(CloseConnection(1000))
        assert await client.receive() == CloseConnection(1000, "")
        await server.dials[0].wait_ended()


async def test_a_ping_is_answered_and_passed_over_unless_told_otherwise() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("after the ping")
        peer.answer_pings = False
        await peer.expect(Ping(b"two"))
        await peer.send(Ping(b"mine"))
        await peer.expect(Pong(b"mine"))
        await peer.serve_until_closed()

    async with ScriptedServer(script) as server, dialled(server) as client:
        await client.send(WsprotoPing(b"one"))
        await client.send(TextMessage("after the ping"))
        assert await client.receive() == WsprotoPong(b"one")
        await client.send(WsprotoPing(b"two"))
        ping = await client.receive()
        assert ping == WsprotoPing(b"mine")
        await client.send(WsprotoPong(b"mine"))
        await client.send(CloseConnection(1000))
        assert await client.receive() == CloseConnection(1000, "")
        assert server.dials[0].frames[:2] == [Ping(b"one"), "after the ping"]


async def test_a_breach_of_the_client_fails_the_test() -> None:
    async def run() -> None:
        async with ScriptedServer(echo) as server, dialled(server) as client:
            await client.stream.send_all(encode_frame(Opcode.TEXT, b"not masked"))
            await trio.sleep_forever()

    with pytest.raises(ProtocolBreach, match="masks every frame"):
        await run()


async def test_cancelling_receive_loses_nothing(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        frame = None
        while frame is None:
            with trio.move_on_after(0.3):
                frame = await peer.receive()
        assert frame == "dripped"

    async with ScriptedServer(script) as server, dialled(server) as client:
        for byte in encode_frame(Opcode.TEXT, b"dripped", mask=True):
            await trio.sleep(0.7)
            await client.stream.send_all(bytes([byte]))
        assert await client.receive() == CloseConnection(1000, "")


async def test_a_wrong_goodbye_is_not_the_one_expected() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        with pytest.raises(AssertionError, match="code 1000, the client sent ClosePayload"):
            await peer.expect_close(1000)

    async with ScriptedServer(script) as server, dialled(server) as client:
        await client.send(CloseConnection(4000))
        assert await client.receive() == CloseConnection(4000, "")


async def test_several_frames_leave_in_one_write() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept(glued=encode_frame(Opcode.TEXT, b"glued"))
        await peer.send("a", b"b", Ping(b"c"))
        await peer.serve_until_closed()

    async with ScriptedServer(script) as server, await server.stream_factory("server.test", 80) as stream:
        await RawClient(stream).send(Request(host="server.test", target="/"))
        assert (await stream.receive_some()).endswith(b"\r\n\r\n\x81\x05glued")
        assert await stream.receive_some() == b"\x81\x01a\x82\x01b\x89\x01c"


async def test_lies_and_garbage_are_written_as_told(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.send_frame(0x3, b"x", fin=False, rsv=5, mask=False, length=9)
        await peer.drip(b"dripdrop", chunk=3, interval=1.0)
        await peer.drop()

    async with ScriptedServer(script) as server, dialled(server) as client:
        seen = []
        while data := await client.stream.receive_some():
            seen.append((trio.current_time(), bytes(data)))
        assert b"".join(data for _, data in seen) == b"\x53\x09xdripdrop"
        assert [at for at, _ in seen][-2:] == [1.0, 2.0]


# --------------------------------------------------------------------------- endings


async def test_the_servers_goodbye_waits_for_the_answer(autojump_clock: MockClock) -> None:
    answers = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        answers.append(await peer.close(4001, "enough"))

    async with ScriptedServer(script) as server, dialled(server) as client:
        assert await client.receive() == CloseConnection(4001, "enough")
        await client.stream.send_all(encode_frame(Opcode.TEXT, b"crossing", mask=True))
        await trio.sleep(1.0)
        await client.stream.send_all(encode_frame(Opcode.CLOSE, b"\x0f\xa1", mask=True))
        await server.dials[0].wait_ended()
    assert answers == [ClosePayload(4001, "")]
    assert server.dials[0].frames == ["crossing", ClosePayload(4001)]
    assert (server.dials[0].ended, server.dials[0].ended_at) == ("closed", 1.0)


async def test_the_servers_goodbye_is_not_waited_for_without_end(autojump_clock: MockClock) -> None:
    answers = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        answers.append(await peer.close(within=3.0))

    async with ScriptedServer(script) as server, dialled(server):
        await server.dials[0].wait_ended()
    assert answers == [None]
    assert (server.dials[0].ended, server.dials[0].ended_at) == ("dropped", 3.0)


async def test_a_reset_in_memory_breaks_the_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.expect("go")
        await peer.reset()

    async with ScriptedServer(script) as server, dialled(server) as client:
        await client.send(TextMessage("go"))
        with pytest.raises(trio.BrokenResourceError):
            await client.stream.receive_some()
        assert server.dials[0].ended == "reset"


async def test_a_mute_peer_reads_and_answers_nothing(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.mute()

    async with ScriptedServer(script, max_buffer=100) as server:
        async with dialled(server) as client:
            await client.send(WsprotoPing(b"?"))
            await client.send(TextMessage("x" * 1_000))
            await client.send(CloseConnection(1000))
            with trio.move_on_after(60) as scope:
                await client.stream.receive_some()
            assert scope.cancelled_caught
        await server.dials[0].wait_ended()
    assert server.dials[0].frames == [Ping(b"?"), "x" * 1_000, ClosePayload(1000)]
    assert server.dials[0].ended == "client gone"


async def test_a_peer_that_stops_reading_stalls_the_client(autojump_clock: MockClock) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.stop_reading()

    async with ScriptedServer(script, max_buffer=1_000) as server, dialled(server) as client:
        with trio.move_on_after(60) as scope:
            await client.send(TextMessage("x" * 1_000))
        assert scope.cancelled_caught


async def test_the_test_itself_may_drop_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        with pytest.raises(Disconnected, match="dropped"):
            await peer.receive()

    async with ScriptedServer(script) as server, dialled(server) as client:
        peer = server.dials[0].peer
        assert peer is not None
        await wait_all_tasks_blocked()
        await peer.drop()
        await server.dials[0].wait_ended()
        assert await client.stream.receive_some() == b""
        assert server.dials[0].ended == "dropped"


# --------------------------------------------------------------------------- loopback


@asynccontextmanager
async def _over_tcp(port: int, context: ssl.SSLContext | None = None) -> AsyncGenerator[RawClient, None]:
    with trio.fail_after(100):
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if context is not None:
            assert isinstance(stream, trio.SocketStream)
            stream = trio.SSLStream(stream, context, server_hostname="127.0.0.1", https_compatible=True)
        async with stream:
            yield RawClient(stream)


@pytest.mark.parametrize("tls", [False, True])
async def test_a_whole_conversation_over_loopback(tls: bool) -> None:
    server = ScriptedServer(echo)
    async with server.listen(tls=tls) as listening:
        assert listening.url == f"{'wss' if tls else 'ws'}://127.0.0.1:{listening.port}/"
        async with _over_tcp(listening.port, listening.client_ssl_context if tls else None) as client:
            assert isinstance(await client.upgrade(), AcceptConnection)
            await client.send(TextMessage("over loopback"))
            assert await client.receive() == TextMessage("over loopback")
            await client.send(CloseConnection(1000))
            assert await client.receive() == CloseConnection(1000, "")
            assert await client.stream.receive_some() == b""
        await server.dials[0].wait_ended()
    assert server.dials[0].ended == "closed"
    assert server.dials[0].port == listening.port


async def test_tls_in_memory_vouches_for_the_name_dialled(autojump_clock: MockClock) -> None:
    async with ScriptedServer(echo, tls=True) as server:
        stream = await server.stream_factory("api.test", 443)
        async with trio.SSLStream(
            stream, server.client_ssl_context, server_hostname="api.test", https_compatible=True
        ) as secured:
            assert isinstance(await RawClient(secured).upgrade(), AcceptConnection)


def test_tls_without_trustme_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ImportError, match="pip install trustme"):
        _authority.__wrapped__()  # past the cache, which other tests have filled


async def test_a_client_that_does_not_trust_the_certificate_is_gone(autojump_clock: MockClock) -> None:
    async with ScriptedServer(echo, tls=True) as server:
        stream = await server.stream_factory("server.test", 443)
        client = trio.SSLStream(stream, ssl.create_default_context(), server_hostname="server.test")
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await client.do_handshake()
        await server.dials[0].wait_ended()
    assert server.dials[0].ended == "client gone"


@pytest.mark.parametrize("tls", [False, True])
async def test_a_reset_over_loopback_is_a_reset(tls: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.receive()
        await peer.reset()

    server = ScriptedServer(script)
    async with (
        server.listen(tls=tls) as listening,
        _over_tcp(listening.port, listening.client_ssl_context if tls else None) as client,
    ):
        assert isinstance(await client.upgrade(), AcceptConnection)
        await client.send(TextMessage("go"))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_a_drop_over_loopback_is_an_end_not_a_reset_even_with_input_unread() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await unread.wait()
        await peer.send("last words")
        await peer.drop()

    unread = trio.Event()
    server = ScriptedServer(script)
    async with server.listen() as listening, _over_tcp(listening.port) as client:
        assert isinstance(await client.upgrade(), AcceptConnection)
        await client.send(TextMessage("not read"))
        unread.set()
        assert await client.receive() == TextMessage("last words")
        assert await client.stream.receive_some() == b""
        await server.dials[0].wait_ended()


async def test_a_refused_dial_over_loopback_is_reset_at_once() -> None:
    async with ScriptedServer().listen() as listening, _over_tcp(listening.port) as client:
        with pytest.raises(trio.BrokenResourceError):
            await client.upgrade()


async def test_an_assertion_in_a_script_leaves_the_listening_block() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        raise AssertionError("not as scripted")

    async def run() -> None:
        async with ScriptedServer(script).listen() as listening, _over_tcp(listening.port) as client:
            await client.upgrade()
            await trio.sleep_forever()

    with pytest.raises(AssertionError, match="not as scripted"):
        await run()


async def test_a_server_comes_back_at_the_same_port() -> None:
    server = ScriptedServer(then=echo)
    async with server.listen() as first:
        pass
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", first.port)
    async with server.listen(port=first.port) as second, _over_tcp(second.port) as client:
        assert isinstance(await client.upgrade(), AcceptConnection)


async def test_a_small_receive_buffer_stalls_the_client_soon() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        await peer.stop_reading()

    server = ScriptedServer(script)
    async with server.listen(receive_buffer=4_096) as listening, _over_tcp(listening.port) as client:
        assert isinstance(await client.upgrade(), AcceptConnection)
        with trio.move_on_after(0.2) as scope:
            await client.send(Message(bytes(16 * 2**20)))
        assert scope.cancelled_caught
