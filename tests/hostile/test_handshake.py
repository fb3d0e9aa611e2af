"""Answers to the upgrade that are wrong, endless, or lead elsewhere; and callers who would smuggle."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from trio_nova import (
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    HandshakeInvalid,
    HandshakeRejected,
    LinkLost,
    ListBackoff,
    RedirectRefused,
    WireTransport,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import Disconnected, Opcode, Peer, ScriptedServer, echo, encode_frame

URL = "ws://server.test/"
BOUND = 100.0
"""Seconds, real ones at sockets, after which a test has failed."""
EVERY_SECOND = ListBackoff([1.0])
CANARY = "CANARY-7f3a"

Script = Callable[[Peer], Awaitable[object]]


async def refusal(script: Script, transport: Transport, **options: Any) -> ConnectFailed:
    """Return what the upgrade fails with, which must be at once: the peer keeps the connection open."""

    async def act(peer: Peer) -> None:
        try:
            await script(peer)
            await peer.hang()
        except Disconnected:
            pass

    async with ScriptedServer(act) as server:
        started = trio.current_time()
        with trio.fail_after(60), pytest.raises(ConnectFailed) as caught:
            async with open_connection(URL, transport=transport, stream_factory=server.stream_factory, **options):
                raise AssertionError("never entered")
        assert trio.current_time() == started
    return caught.value


# --------------------------------------------------------------------------- redirects


@pytest.mark.fault("F24", where="socket")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_takes_no_secret_to_another_origin(transport: Transport, status: int) -> None:
    other = ScriptedServer()

    async def redirect(peer: Peer) -> None:
        await peer.reject(status, {"Location": elsewhere})

    first = ScriptedServer(redirect)
    with trio.fail_after(BOUND):
        async with other.listen() as target, first.listen() as listening:
            elsewhere = f"{target.url}?from=redirect"
            with pytest.raises(RedirectRefused) as caught:
                async with open_connection(
                    listening.url.replace("://", f"://user:{CANARY}@") + f"?token={CANARY}",
                    transport=transport,
                    headers={"Authorization": CANARY, "Cookie": CANARY, "X-API-Key": CANARY},
                    retry_first_connect=True,
                ):
                    raise AssertionError("never entered")
    assert (caught.value.status, caught.value.retry) == (status, "never")
    assert (len(first.dials), len(other.dials)) == (1, 0)


@pytest.mark.fault("F24", where="socket")
async def test_an_origin_that_was_vouched_for_may_have_what_the_first_one_had(transport: Transport) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.reject(307, {"Location": f"{target.url}b"})

    first, other = ScriptedServer(redirect), ScriptedServer(echo)
    with trio.fail_after(BOUND):
        async with other.listen() as target, first.listen() as listening:
            async with open_connection(
                listening.url,
                transport=transport,
                headers={"X-API-Key": CANARY},
                redirect_origins=[target.url],
            ) as conn:
                await conn.send_text("hello")
                assert await conn.receive() == "hello"
    request = other.dials[0].request
    assert request is not None
    assert (request.target, request.headers["x-api-key"]) == ("/b", CANARY)


@pytest.mark.fault("F25", where="memory")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_remembered_when_its_target_drops_us(
    autojump_clock: trio.abc.Clock, transport: Transport, status: int
) -> None:
    async def serve(peer: Peer) -> None:
        if (await peer.read_request()).target == "/":
            await peer.reject(status, {"Location": "/b"})
        else:
            await peer.accept()
            await peer.drop()

    async with ScriptedServer(then=serve) as server:
        with trio.fail_after(3600):
            async with open_connection(
                URL, transport=transport, stream_factory=server.stream_factory, backoff=EVERY_SECOND
            ) as conn:
                while conn.epoch < 3:
                    await trio.sleep(0.1)
        asked = [dial.request.target for dial in server.dials if dial.request is not None]
    assert asked[:6] == ["/", "/b"] * 3


def to_itself(target: str) -> str:
    return target


def in_a_circle(target: str) -> str:
    return {"/": "/a", "/a": "/b", "/b": "/"}[target]


def further_and_further(target: str) -> str:
    return f"{target}x"


@pytest.mark.fault("F26", where="memory")
@pytest.mark.parametrize("following", [to_itself, in_a_circle, further_and_further])
async def test_redirects_without_end_end(
    autojump_clock: trio.abc.Clock, transport: Transport, following: Callable[[str], str]
) -> None:
    async def redirect(peer: Peer) -> None:
        request = await peer.read_request()
        await peer.reject(302, {"Location": following(request.target)})

    async with ScriptedServer(then=redirect) as server:
        with trio.fail_after(60), pytest.raises(RedirectRefused) as caught:
            async with open_connection(
                URL, transport=transport, stream_factory=server.stream_factory, max_redirects=10
            ):
                raise AssertionError("never entered")
    assert len(server.dials) == 11
    assert "10 redirects" in str(caught.value)
    assert caught.value.retry == "never"


@pytest.mark.fault("F26", where="memory")
async def test_all_hops_together_have_one_connect_timeout(autojump_clock: trio.abc.Clock, transport: Transport) -> None:
    async def redirect_slowly(peer: Peer) -> None:
        request = await peer.read_request()
        await trio.sleep(3)
        await peer.reject(302, {"Location": f"{request.target}x"})

    started = trio.current_time()
    async with ScriptedServer(then=redirect_slowly) as server:
        with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
            async with open_connection(
                URL, transport=transport, stream_factory=server.stream_factory, connect_timeout=10
            ):
                raise AssertionError("never entered")
        assert trio.current_time() - started == pytest.approx(10)
    assert caught.value.phase == "http"
    assert len(server.dials) == 4


@pytest.mark.fault("F27", where="memory")
@pytest.mark.parametrize(
    "target",
    [
        "ws://server.test/plain",
        "http://server.test/",
        "file:///etc/passwd",
        "ftp://server.test/",
        "wss://server.test:22/",
        "wss://169.254.169.254/latest/meta-data",
        "wss://[::1]/",
        "//elsewhere.test/",
        "https://server.test@elsewhere.test/",
        "https://server.test.elsewhere.test/",
    ],
)
async def test_a_redirect_to_where_nobody_should_go_is_not_followed(
    autojump_clock: trio.abc.Clock, transport: Transport, target: str
) -> None:
    async def redirect(peer: Peer) -> None:
        await peer.reject(307, {"Location": target})

    async with ScriptedServer(redirect, tls=True) as server:
        with trio.fail_after(60), pytest.raises(RedirectRefused) as caught:
            async with open_connection(
                "wss://server.test/",
                transport=transport,
                stream_factory=server.stream_factory,
                ssl_context=server.client_ssl_context,
                redirect_origins=["ws://server.test"],  # in vain: nothing leads from wss to ws
            ):
                raise AssertionError("never entered")
    assert (caught.value.status, caught.value.retry) == (307, "never")
    assert [(dial.host, dial.port) for dial in server.dials] == [("server.test", 443)]


# --------------------------------------------------------------------------- the answer


@pytest.mark.fault("F29", where="memory")
async def test_a_second_answer_after_the_first_is_a_breach_of_the_protocol(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def answer_twice(peer: Peer) -> None:
        await peer.read_request()
        await peer.accept(glued=encode_frame(1, b"good") + peer.upgrade_response() + encode_frame(1, b"never"))
        await peer.expect_close(1002)

    received: list[object] = []
    async with ScriptedServer(answer_twice) as server:
        with trio.fail_after(60), pytest.raises(LinkLost) as caught:
            async with open_connection(
                URL, transport=transport, stream_factory=server.stream_factory, max_attempts=0
            ) as conn:
                async for message in conn:
                    received.append(message)
        await server.dials[0].wait_ended()
    assert received == ["good"]
    assert (caught.value.code, caught.value.remote) == (1002, False)


@pytest.mark.fault("F30", where="memory")
@pytest.mark.parametrize("line", [b"X-Pad: 0123456789abcdef\r\n", b"x" * 1024], ids=["many lines", "one line"])
async def test_a_head_without_end_is_refused_in_bounded_memory(
    autojump_clock: trio.abc.Clock, transport: Transport, line: bytes
) -> None:
    sent = 0

    async def flood(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        await peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nX: y")
        for _ in range(1_000):
            await peer.send_raw(line * 16)
            sent += 16 * len(line)

    tracemalloc.start()
    try:
        exc = await refusal(flood, transport)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(exc, HandshakeInvalid)
    assert sent < 512 * 1024
    assert peak < 2 * 2**20


@pytest.mark.fault("F30", where="memory")
async def test_a_head_of_one_byte_a_packet_takes_work_that_is_linear_in_its_bytes(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    async def cost(size: int) -> float:
        async def flood(peer: Peer) -> None:
            await peer.read_request()
            await peer.send_raw(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nX-Pad: " + b"x" * size + b"\r\n\r\n")

        async with ScriptedServer(flood, slice_size=1) as server:
            before = time.process_time()
            with pytest.raises(HandshakeRejected):
                async with open_connection(URL, transport=transport, stream_factory=server.stream_factory):
                    raise AssertionError("never entered")
            return time.process_time() - before

    await cost(1_000)
    small = min([await cost(3_000) for _ in range(3)])
    large = min([await cost(30_000) for _ in range(2)])
    assert large < 30 * small  # 10 times where it is linear, 100 times where it is not


MANY = 32 * 1024
SLOW_VALUES = {
    "Sec-WebSocket-Extensions": "b" + " " * MANY + "b",
    "Sec-WebSocket-Protocol": "b," * (MANY // 2),
    "Connection": "Upgrade" + " ," * (MANY // 2),
    "Upgrade": "\t" * MANY + "x",
    "Retry-After": "1" + " " * MANY + "x",
    "Location": "wss://" + "a." * (MANY // 2) + "?" + "&" * 100,
    "X-Quoted": '"' + '\\"' * (MANY // 2),
}


@pytest.mark.fault("F32", where="memory")
@pytest.mark.parametrize("status", [101, 302, 503])
@pytest.mark.parametrize("name", SLOW_VALUES)
async def test_a_value_made_to_keep_a_parser_busy_does_not(
    autojump_clock: trio.abc.Clock, transport: Transport, name: str, status: int
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.read_request()
        if status == 101:
            await peer.accept({name: SLOW_VALUES[name]})
            await peer.drop()
        else:
            await peer.reject(status, {name: SLOW_VALUES[name]})

    took: list[float] = []
    async with ScriptedServer(then=answer) as server:
        for _ in range(3):  # somebody else may need the processor: the best of three counts
            before = time.process_time()
            with trio.fail_after(60), pytest.raises((ConnectFailed, LinkLost)):
                async with open_connection(
                    URL, transport=transport, stream_factory=server.stream_factory, max_attempts=0
                ) as conn:
                    await conn.receive()
            took.append(time.process_time() - before)
    assert min(took) < 0.1  # of the whole dial; a parser that backtracks over this takes minutes


@pytest.mark.fault("F33", where="memory")
@pytest.mark.parametrize(
    "line", ["X-N\xe4me: y", "X-Name\xa0: y", "\uff35pgrade: y", ": y", "X Name: y", "X-Name\t: y"]
)
async def test_a_name_that_is_no_token_is_refused(
    autojump_clock: trio.abc.Clock, transport: Transport, line: str
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.read_request()
        head = peer.upgrade_response().removesuffix(b"\r\n")
        await peer.send_raw(head + line.encode() + b"\r\n\r\n")

    exc = await refusal(answer, transport)
    assert isinstance(exc, HandshakeInvalid)
    assert exc.rule == "header"


@pytest.mark.fault("F39", where="memory")
@pytest.mark.parametrize(
    "value",
    [
        "x-webkit-deflate-frame",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=abc",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate, permessage-deflate",
        ";;;",
    ],
)
async def test_an_extension_that_was_not_offered_is_refused_for_good(
    autojump_clock: trio.abc.Clock, transport: Transport, value: str
) -> None:
    async def answer(peer: Peer) -> None:
        await peer.accept({"Sec-WebSocket-Extensions": value})

    exc = await refusal(answer, transport)
    assert isinstance(exc, HandshakeInvalid)
    assert (exc.rule, exc.retry) == ("extension", "never")


@pytest.mark.fault("F39", where="memory")
@pytest.mark.parametrize(
    "value",
    [
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=abc",
        "permessage-deflate; server_max_window_bits=12; server_max_window_bits=12",
        "permessage-deflate; server_max_window_bits=12; client_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=12; client_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=12; unheard_of",
        "permessage-deflate; server_max_window_bits=12, permessage-deflate; server_max_window_bits=12",
    ],
)
async def test_compression_on_illegal_terms_is_refused_for_good(autojump_clock: trio.abc.Clock, value: str) -> None:
    async def answer(peer: Peer) -> None:
        await peer.accept({"Sec-WebSocket-Extensions": value})

    exc = await refusal(answer, WireTransport(), compression="deflate")
    assert isinstance(exc, HandshakeInvalid)
    assert (exc.rule, exc.retry) == ("extension", "never")


@pytest.mark.parametrize(
    "answer",
    [
        "permessage-deflate",
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits=13",
        "permessage-deflate; client_no_context_takeover; client_max_window_bits=15",
    ],
)
async def test_a_server_that_cannot_choose_its_window_is_connected_to_all_the_same(
    autojump_clock: trio.abc.Clock, answer: str
) -> None:
    """As the common ones in Go and Java answer to whoever offers compression."""
    said = [str(number) * 10_000 for number in range(3)]

    async def agree(peer: Peer) -> None:
        await peer.accept({"Sec-WebSocket-Extensions": answer})
        for text in said:
            squeeze = zlib.compressobj(wbits=-13)
            message = squeeze.compress(text.encode()) + squeeze.flush(zlib.Z_SYNC_FLUSH)
            await peer.send_frame(Opcode.TEXT, message[:-4], rsv=4)
        await peer.serve_until_closed()

    async with ScriptedServer(agree) as server:
        with trio.fail_after(60):
            async with open_connection(URL, stream_factory=server.stream_factory, compression="deflate") as conn:
                assert [await conn.receive() for _ in said] == said
        assert len(server.dials) == 1


@pytest.mark.parametrize("bits", [8, 9, 12, 13, 15])
async def test_a_server_may_take_the_window_that_we_name_for_a_hint(autojump_clock: trio.abc.Clock, bits: int) -> None:
    squeeze = zlib.compressobj(wbits=-12)
    message = squeeze.compress(b"x" * 1000) + squeeze.flush(zlib.Z_SYNC_FLUSH)

    async def agree(peer: Peer) -> None:
        terms = f"permessage-deflate; server_max_window_bits=12; client_max_window_bits={bits}"
        await peer.accept({"Sec-WebSocket-Extensions": terms})
        await peer.send_frame(Opcode.TEXT, message[:-4], rsv=4)
        await peer.serve_until_closed()

    async with ScriptedServer(agree) as server:
        with trio.fail_after(60):
            async with open_connection(
                URL, transport=WireTransport(), stream_factory=server.stream_factory, compression="deflate"
            ) as conn:
                assert await conn.receive() == "x" * 1000


@pytest.mark.fault("F38", where="socket")
@pytest.mark.parametrize("framing", [{"Content-Length": str(10 * 2**30)}, {"Transfer-Encoding": "chunked"}])
async def test_the_endless_body_of_a_refusal_is_not_read(transport: Transport, framing: dict[str, str]) -> None:
    sent = 0

    async def refuse(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        lines = "".join(f"{name}: {value}\r\n" for name, value in framing.items())
        await peer.send_raw(f"HTTP/1.1 403 No\r\n{lines}\r\n".encode())
        block = b"x" * 65536 if "Content-Length" in framing else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while sent < 10 * 2**30:
            await peer.send_raw(block)
            sent += len(block)

    server = ScriptedServer(refuse)
    tracemalloc.start()
    try:
        with trio.fail_after(BOUND):
            async with server.listen() as listening:
                with pytest.raises(HandshakeRejected) as caught:
                    async with open_connection(listening.url, transport=transport):
                        raise AssertionError("never entered")
                await server.dials[0].wait_ended()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.status == 403
    assert caught.value.body == b"x" * 4096
    assert len(str(caught.value)) < 400
    assert sent < 64 * 2**20  # what the kernel takes between two sockets
    assert peak < 4 * 2**20


# --------------------------------------------------------------------------- what we would send


@pytest.mark.fault("F34", where="memory")
@pytest.mark.parametrize("bad", ["\r\nX-Injected: 1", "\r", "\n", "\0"])
@pytest.mark.parametrize(
    "slot", ["header name", "header value", "subprotocol", "path", "query", "host", "Origin", "proxy"]
)
async def test_no_line_end_of_the_callers_reaches_the_wire(
    autojump_clock: trio.abc.Clock, transport: Transport, slot: str, bad: str
) -> None:
    url = URL
    options: dict[str, Any] = {}
    match slot:
        case "header name":
            options = {"headers": {f"X{bad}": "y"}}
        case "header value":
            options = {"headers": {"X": f"y{bad}"}}
        case "subprotocol":
            options = {"subprotocols": [f"v1{bad}"]}
        case "path":
            url = f"{URL}{bad}"
        case "query":
            url = f"{URL}?q={bad}"
        case "host":
            url = f"ws://server{bad}.test/"
        case "Origin":
            options = {"headers": {"Origin": f"https://a.test{bad}"}}
        case _:
            options = {"proxy": f"http://user{bad}:pw@proxy.test:3128"}
    async with ScriptedServer() as server:
        with pytest.raises(ConfigError):
            async with open_connection(url, transport=transport, stream_factory=server.stream_factory, **options):
                raise AssertionError("never entered")
    assert server.dials == []


@pytest.mark.fault("F34", where="memory")
async def test_an_escaped_line_end_in_a_proxys_login_stays_within_it(
    autojump_clock: trio.abc.Clock, transport: Transport
) -> None:
    heard: list[bytes] = []
    ours, theirs = trio.testing.memory_stream_pair()

    async def hand_out(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            heard.append(bytes(await theirs.receive_some(65536)))
            await theirs.aclose()

        nursery.start_soon(listen)
        with trio.fail_after(60), pytest.raises(ConnectFailed):
            async with open_connection(
                URL,
                transport=transport,
                stream_factory=hand_out,
                proxy="http://user%0d%0aX-Injected:%201:pw@proxy.test:3128",
            ):
                raise AssertionError("never entered")
    assert b"Injected" not in heard[0]


# --------------------------------------------------------------------------- proxies


@pytest.mark.fault("F41", where="memory")
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 Connection est"], ids=["silent", "amid its answer"])
async def test_a_proxy_that_takes_too_long_costs_the_connect_timeout(
    autojump_clock: trio.abc.Clock, transport: Transport, answer: bytes
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()

    async def hand_out(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        await theirs.send_all(answer)
        return ours

    started = trio.current_time()
    with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
        async with open_connection(
            "wss://server.test/",
            transport=transport,
            stream_factory=hand_out,
            proxy="http://proxy.test:3128",
            connect_timeout=10,
        ):
            raise AssertionError("never entered")
    assert caught.value.phase == "proxy"
    assert trio.current_time() - started == pytest.approx(10)
