"""TLS over loopback sockets: what is trusted, what never is, and what is worth another attempt."""

from __future__ import annotations

import datetime
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
import trustme

from trio_nova.errors import ConnectFailed, TlsFailed
from trio_nova.links import Dial, SystemResolver, TrioWebsocketTransport
from trio_nova.links._dial import open_stream
from trio_nova.links._tls import default_context
from trio_nova.urls import Url

Handler = Callable[[trio.SocketStream], Awaitable[object]]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        async with await listener.accept() as stream:
            await handler(stream)

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.fail_after(100):
            yield listener.socket.getsockname()[1]


def dial(port: int, context: ssl.SSLContext, phases: list[str] | None = None) -> Dial:
    return Dial(
        url=Url.parse(f"wss://localhost:{port}/"),
        epoch=1,
        resolver=SystemResolver(),
        ssl_context=context,
        max_message_size=2**20,
        close_timeout=1.0,
        on_phase=(phases if phases is not None else []).append,
    )


async def failure(handler: Handler, context: ssl.SSLContext) -> ConnectFailed:
    caught: ConnectFailed | None = None
    async with serving(handler) as port:
        try:
            async with TrioWebsocketTransport().open(dial(port, context)):
                pass
        except ConnectFailed as exc:
            caught = exc
    assert caught is not None
    return caught


def shake_hands(context: ssl.SSLContext) -> Handler:
    """Return a server of TLS that says what it finds wrong, which Trio's own does not."""

    async def handler(stream: trio.SocketStream) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = bool(tls.read(4096))
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                done = True
            try:
                await stream.send_all(outgoing.read())
                if not done:
                    incoming.write(data := bytes(await stream.receive_some(4096)))
                    done = not data
            except trio.BrokenResourceError:
                done = True

    return handler


async def test_a_trusted_server_is_reached_and_left(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    context = server_context(authority.issue_cert("localhost"))
    heard: list[bytes] = []

    async def handler(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        request = bytes(await tls.receive_some(4096))
        heard.append(request)
        await tls.send_all(b"HTTP/1.1 429 Later\r\nContent-Length: 0\r\n\r\n")

    phases: list[str] = []
    async with serving(handler) as port:
        status = None
        try:
            async with TrioWebsocketTransport().open(dial(port, trusting, phases)):
                pass
        except ConnectFailed as exc:
            status = getattr(exc, "status", None)
    assert status == 429
    assert phases == ["dns", "tcp", "tls", "http"]
    assert b"\r\nHost: localhost:" in heard[0]


@pytest.mark.parametrize("url", ["wss://[fe80::1%25eth0]/", "wss://[FE80::1]/", "wss://127.0.0.1/"])
async def test_an_address_is_what_the_certificate_must_name_and_not_its_zone(
    authority: trustme.CA, trusting: ssl.SSLContext, url: str
) -> None:
    names: list[str | None] = []
    served = server_context(authority.issue_cert(Url.parse(url).host))
    served.sni_callback = lambda connection, name, context: names.append(name)
    ours, theirs = trio.testing.memory_stream_pair()

    async def factory(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    server = trio.SSLStream(theirs, served, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        await open_stream(attrs.evolve(dial(0, trusting), url=Url.parse(url), stream_factory=factory))
    assert names == [None]  # an address is no server name (RFC 6066 section 3)


async def test_a_context_that_lets_the_server_choose_http_2_is_an_error_that_says_so(authority: trustme.CA) -> None:
    served = server_context(authority.issue_cert("localhost"))
    served.set_alpn_protocols(["h2", "http/1.1"])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    exc = await failure(shake_hands(served), context)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("protocol", "never")
    assert "'h2'" in str(exc)


async def test_tls_is_laid_over_what_a_stream_factory_returns(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    handler = shake_hands(server_context(authority.issue_cert("named.test")))
    async with serving(handler) as port:

        async def tunnel(host: str, asked_port: int) -> trio.abc.Stream:
            assert (host, asked_port) == ("named.test", 443)
            return await trio.open_tcp_stream("127.0.0.1", port)

        named = Dial(
            url=Url.parse("wss://named.test/"),
            epoch=1,
            resolver=SystemResolver(),
            ssl_context=trusting,
            stream_factory=tunnel,
            max_message_size=1000,
            close_timeout=1.0,
        )
        stream = await open_stream(named)
        assert isinstance(stream, trio.SSLStream)
        await stream.aclose()


@pytest.mark.fault("F13", where="socket")
async def test_an_expired_certificate_is_refused_for_good(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = authority.issue_cert("localhost", not_before=past, not_after=past + datetime.timedelta(days=1))
    exc = await failure(shake_hands(server_context(certificate)), trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry, exc.phase) == ("expired", "never", "tls")


@pytest.mark.fault("F14", where="socket")
async def test_a_certificate_for_another_name_is_refused_for_good(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    exc = await failure(shake_hands(server_context(authority.issue_cert("evil.test"))), trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("hostname", "never")


@pytest.mark.fault("F15", where="socket")
async def test_an_unknown_authority_is_refused_for_good(trusting: ssl.SSLContext) -> None:
    exc = await failure(shake_hands(server_context(trustme.CA().issue_cert("localhost"))), trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("untrusted", "never")


@pytest.mark.fault("F15", where="socket")
async def test_the_default_context_verifies_offers_http_1_1_only_and_is_built_once() -> None:
    context = await default_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert await default_context() is context
    exc = await failure(shake_hands(server_context(trustme.CA().issue_cert("localhost"))), context)
    assert isinstance(exc, TlsFailed)
    assert exc.reason == "untrusted"


@pytest.mark.fault("F22", where="socket")
async def test_a_missing_client_certificate_is_named(authority: trustme.CA, trusting: ssl.SSLContext) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    exc = await failure(shake_hands(context), trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("client-certificate", "never")


@pytest.mark.fault("F17", where="socket")
async def test_no_common_version_is_named(authority: trustme.CA) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    modern = ssl.create_default_context()
    authority.configure_trust(modern)
    modern.minimum_version = ssl.TLSVersion.TLSv1_3
    exc = await failure(shake_hands(context), modern)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("protocol", "never")


@pytest.mark.fault("F19", where="socket")
async def test_plain_text_on_the_tls_port_may_pass(trusting: ssl.SSLContext) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    exc = await failure(handler, trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("protocol", "backoff")


@pytest.mark.fault("F18", where="socket")
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x03\x00\x7a\x02\x00"], ids=["at once", "amid"])
async def test_a_handshake_that_is_cut_off_is_worth_another_attempt(
    trusting: ssl.SSLContext, reset: bool, begun: bytes
) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        if begun:
            await stream.send_all(begun)
        if reset:
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))

    exc = await failure(handler, trusting)
    assert type(exc) is ConnectFailed
    assert (exc.phase, exc.retry) == ("tls", "backoff")
    assert isinstance(exc.__cause__, trio.BrokenResourceError)
    assert isinstance(exc.__cause__.__cause__, OSError if reset else ssl.SSLEOFError)
