"""Servers whose TLS is wrong, old, slow, cut short, or asks for more than we have."""

from __future__ import annotations

import base64
import datetime
import hashlib
import ssl
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from trio_nova import (
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    HandshakeRejected,
    LinkLost,
    TlsFailed,
    open_connection,
)
from trio_nova.links import Transport
from trio_nova.testing import Listening, Peer, ScriptedServer, encode_frame

A_DAY = datetime.timedelta(days=1)
BOUND = 100.0
"""Seconds, real ones at sockets, after which a test has failed."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    authority.configure_trust(context)
    return context


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def speak_tls(stream: trio.abc.Stream, context: ssl.SSLContext) -> None:
    """Shake hands, and say by an alert what is wrong, which Trio's own stream does not; refuse the upgrade with 429."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    shaken = over = False
    while not over:
        try:
            if not shaken:
                tls.do_handshake()
                shaken = True
            if over := bool(tls.read(65536)):
                tls.write(b"HTTP/1.1 429 Later\r\nContent-Length: 0\r\n\r\n")
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            over = True
        await stream.send_all(outgoing.read())
        if not over and (data := bytes(await stream.receive_some(65536))):
            incoming.write(data)
        else:
            over = True


async def refusal(url: str, transport: Transport, server: ssl.SSLContext, client: ssl.SSLContext) -> ConnectFailed:
    """Return what the dial of `url` fails with, where all names lead to a server of `server`'s TLS."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def hand_out(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak_tls, theirs, server)
            with pytest.raises(ConnectFailed) as caught:
                async with open_connection(url, transport=transport, stream_factory=hand_out, ssl_context=client):
                    raise AssertionError("never entered")
            nursery.cancel_scope.cancel()
    return caught.value


# --------------------------------------------------------------------------- names


@pytest.mark.fault("F16", where="memory")
@pytest.mark.parametrize(
    ("host", "vouched"),
    [
        ("192.0.2.1", "server.test"),
        ("192.0.2.1", "192.0.2.2"),
        ("[2001:db8::1]", "2001:db8::2"),
        ("server.test.", "other.test"),
        ("bücher.test", "bucher.test"),
    ],
)
async def test_a_certificate_must_hold_the_very_host(
    authority: trustme.CA, trusting: ssl.SSLContext, transport: Transport, host: str, vouched: str
) -> None:
    exc = await refusal(f"wss://{host}/", transport, serving(authority.issue_cert(vouched)), trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("hostname", "never")


@pytest.mark.fault("F16", where="memory")
@pytest.mark.parametrize(
    ("host", "vouched", "asked_for"),
    [
        ("192.0.2.1", "192.0.2.1", None),  # RFC 6066 section 3: no address is asked for by name
        ("[2001:DB8::1]", "2001:db8::1", None),
        ("Server.Test.", "server.test", "server.test"),
        ("bücher.test", "xn--bcher-kva.test", "xn--bcher-kva.test"),
    ],
)
async def test_a_host_is_verified_and_asked_for_in_its_one_spelling(
    authority: trustme.CA,
    trusting: ssl.SSLContext,
    transport: Transport,
    host: str,
    vouched: str,
    asked_for: str | None,
) -> None:
    heard: list[str | None] = []
    context = serving(authority.issue_cert(vouched))
    context.sni_callback = lambda tls, name, _: heard.append(name)
    exc = await refusal(f"wss://{host}/", transport, context, trusting)
    assert isinstance(exc, HandshakeRejected), exc  # TLS was content, and the upgrade was asked for
    assert heard == [asked_for]


# --------------------------------------------------------------------------- versions and certificates of ours


@contextmanager
def the_past() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.mark.fault("F17", where="memory")
async def test_a_server_of_the_past_is_refused_for_good(
    authority: trustme.CA, trusting: ssl.SSLContext, transport: Transport
) -> None:
    context = serving(authority.issue_cert("server.test"))
    with the_past():
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    exc = await refusal("wss://server.test/", transport, context, trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == ("protocol", "never")


@pytest.mark.fault("F22", where="memory")
@pytest.mark.parametrize(
    ("version", "shown", "reason"),
    [
        (ssl.TLSVersion.TLSv1_3, False, "client-certificate"),
        (ssl.TLSVersion.TLSv1_3, True, "client-certificate"),
        (ssl.TLSVersion.TLSv1_2, True, "client-certificate"),
        # Before TLS 1.3 a missing one was answered with handshake_failure, as is all else (RFC 5246 section 7.4.6).
        (ssl.TLSVersion.TLSv1_2, False, "protocol"),
    ],
)
async def test_a_server_that_wants_another_certificate_of_ours_is_not_asked_again(
    authority: trustme.CA,
    trusting: ssl.SSLContext,
    transport: Transport,
    version: ssl.TLSVersion,
    shown: bool,
    reason: str,
) -> None:
    context = serving(authority.issue_cert("server.test"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    authority.configure_trust(context)
    if shown:
        trustme.CA().issue_cert("client.test").configure_cert(trusting)
    exc = await refusal("wss://server.test/", transport, context, trusting)
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry) == (reason, "never")


@pytest.mark.fault("F22", where="memory")
async def test_a_certificate_of_ours_that_the_server_trusts_is_shown(
    authority: trustme.CA, trusting: ssl.SSLContext, transport: Transport
) -> None:
    context = serving(authority.issue_cert("server.test"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("client.test").configure_cert(trusting)
    exc = await refusal("wss://server.test/", transport, context, trusting)
    assert isinstance(exc, HandshakeRejected)


# --------------------------------------------------------------------------- pins


async def heard_of_the_upgrade(
    client: ssl.SSLContext, transport: Transport, certificate: trustme.LeafCert, pins: Iterable[str]
) -> tuple[ConnectFailed, bytes]:
    """Return what a dial with `pins` fails with, and what the server, which has `certificate`, decrypted of it."""
    ours, theirs = trio.testing.memory_stream_pair()
    heard = bytearray()

    async def hand_out(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    async def refuse() -> None:
        tls = trio.SSLStream(theirs, serving(certificate), server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            heard.extend(await tls.receive_some(65536))
            if heard:
                await tls.send_all(b"HTTP/1.1 429 Later\r\nContent-Length: 0\r\n\r\n")

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(ConnectFailed) as caught:
                async with open_connection(
                    "wss://server.test/",
                    transport=transport,
                    stream_factory=hand_out,
                    ssl_context=client,
                    pins=pins,
                    headers={"Authorization": "Bearer s3cr3t"},
                ):
                    raise AssertionError("never entered")
    return caught.value, bytes(heard)


@pytest.fixture
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("server.test")


def pin_of(certificate: trustme.LeafCert) -> str:
    public_key = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).public_key()
    spki = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(spki).digest()).decode()


RESERVE = base64.b64encode(hashlib.sha256(b"a key in a safe").digest()).decode()


@pytest.mark.fault("F23", where="memory")
async def test_a_server_with_another_key_hears_nothing_of_the_upgrade(
    trusting: ssl.SSLContext, transport: Transport, certificate: trustme.LeafCert
) -> None:
    exc, heard = await heard_of_the_upgrade(trusting, transport, certificate, [RESERVE])
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, exc.retry, exc.phase) == ("pin", "never", "tls")
    assert pin_of(certificate) in str(exc)
    assert heard == b""


@pytest.mark.fault("F23", where="memory")
@pytest.mark.parametrize("reserve", [[], [RESERVE]], ids=["the one pin", "one of two"])
async def test_a_server_with_a_pinned_key_is_asked_for_the_upgrade(
    trusting: ssl.SSLContext, transport: Transport, certificate: trustme.LeafCert, reserve: list[str]
) -> None:
    pins = [*reserve, pin_of(certificate)]
    exc, heard = await heard_of_the_upgrade(trusting, transport, certificate, pins)
    assert isinstance(exc, HandshakeRejected)
    assert b"s3cr3t" in heard


@pytest.mark.fault("F23", where="memory")
async def test_a_pinned_key_does_not_make_up_for_an_unknown_authority(
    trusting: ssl.SSLContext, transport: Transport
) -> None:
    forged = trustme.CA().issue_cert("server.test")
    exc, heard = await heard_of_the_upgrade(trusting, transport, forged, [pin_of(forged)])
    assert isinstance(exc, TlsFailed)
    assert (exc.reason, heard) == ("untrusted", b"")


async def test_pins_without_tls_are_refused_before_any_dial() -> None:
    with pytest.raises(ConfigError, match="pins: no key is shown over ws://"):
        async with open_connection("ws://localhost:9/", pins=[RESERVE]):
            raise AssertionError("never entered")


# --------------------------------------------------------------------------- for good


REFUSALS = ["expired", "hostname", "untrusted", "client-certificate", "protocol", "pin"]


@pytest.mark.fault("F13", "F14", "F15", "F17", "F22", "F23", where="memory")
@pytest.mark.parametrize("reason", REFUSALS)
async def test_what_tls_refuses_for_good_is_dialled_once_though_the_first_connect_is_retried(
    autojump_clock: trio.abc.Clock,
    authority: trustme.CA,
    trusting: ssl.SSLContext,
    transport: Transport,
    reason: str,
) -> None:
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    match reason:
        case "expired":
            certificate = authority.issue_cert("server.test", not_before=long_ago, not_after=long_ago + A_DAY)
        case "hostname":
            certificate = authority.issue_cert("other.test")
        case "untrusted":
            certificate = trustme.CA().issue_cert("server.test")
        case _:
            certificate = authority.issue_cert("server.test")
    server = serving(certificate)
    if reason == "client-certificate":
        server.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(server)
    if reason == "protocol":
        server.maximum_version = ssl.TLSVersion.TLSv1_2
        trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    dials = 0

    async def serve(stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            await speak_tls(stream, server)

    async def hand_out(host: str, port: int) -> trio.abc.Stream:
        nonlocal dials
        await trio.lowlevel.checkpoint()
        dials += 1
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve, theirs)
        return ours

    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            with pytest.raises(TlsFailed) as caught:
                async with open_connection(
                    "wss://server.test/",
                    transport=transport,
                    stream_factory=hand_out,
                    ssl_context=trusting,
                    pins=[RESERVE] if reason == "pin" else [],
                    retry_first_connect=True,
                ):
                    raise AssertionError("never entered")
            nursery.cancel_scope.cancel()
    assert (caught.value.reason, dials) == (reason, 1)


# --------------------------------------------------------------------------- silence and cuts


async def hang(peer: Peer) -> None:
    await peer.hang()


async def drip(peer: Peer) -> None:
    record_of_16_kib = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
    await peer.drip(record_of_16_kib + bytes(16384), interval=1.0)


@pytest.mark.fault("F20", where="memory")
@pytest.mark.parametrize("script", [hang, drip])
async def test_a_handshake_that_does_not_get_on_costs_the_connect_timeout(
    autojump_clock: trio.abc.Clock,
    trusting: ssl.SSLContext,
    transport: Transport,
    script: Callable[[Peer], Awaitable[object]],
) -> None:
    started = trio.current_time()
    async with ScriptedServer(script) as server:
        with trio.fail_after(60), pytest.raises(ConnectTimeout) as caught:
            async with open_connection(
                "wss://server.test/",
                transport=transport,
                stream_factory=server.stream_factory,
                ssl_context=trusting,
                connect_timeout=10,
            ):
                raise AssertionError("never entered")
        assert trio.current_time() - started == pytest.approx(10)
    assert (caught.value.phase, caught.value.retry) == ("tls", "backoff")


@pytest.mark.parametrize("cut", [b"", encode_frame(1, b"never whole")[:5]], ids=["between messages", "in a message"])
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("memory", marks=pytest.mark.fault("F21", where="memory")),
        pytest.param("socket", marks=pytest.mark.fault("F21", where="socket")),
    ],
)
async def test_what_came_whole_before_tls_was_cut_off_is_received_and_nothing_else(
    transport: Transport, cut: bytes, place: str
) -> None:
    async def truncate(peer: Peer) -> None:
        await peer.accept()
        await peer.send("one", "two")
        await peer.send_raw(cut)
        await peer.drop()

    received: list[object] = []
    server = ScriptedServer(truncate, tls=True)
    with trio.fail_after(BOUND):
        async with server.listen(tls=True) if place == "socket" else server as where:
            with pytest.raises(LinkLost) as caught:
                async with open_connection(
                    where.url if isinstance(where, Listening) else "wss://server.test/",
                    transport=transport,
                    stream_factory=None if place == "socket" else server.stream_factory,
                    ssl_context=server.client_ssl_context,
                    max_attempts=0,
                ) as conn:
                    async for message in conn:
                        received.append(message)
    assert received == ["one", "two"]
    assert (caught.value.code, caught.value.remote) == (1006, None)
