"""Where the default TLS context has its authorities from, and when: no shortage of file descriptors outlives itself."""

from __future__ import annotations

import os
import resource
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trustme

from trio_nova import ConnectFailed, ErrorHandler, ListBackoff, Retry, Stop, TlsFailed, open_connection
from trio_nova.core.verdict import Disposition, of_error
from trio_nova.links import Transport, _tls
from trio_nova.links._tls import default_context
from trio_nova.testing import ScriptedServer, echo

URL = "wss://server.test/"

Factory = Callable[[str, int], Awaitable[trio.abc.Stream]]


@contextmanager
def no_file_descriptor_left() -> Iterator[None]:
    """Take all that the process may have, which is made to be few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as taken:
        highest = os.dup(0)
        taken.callback(os.close, highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        try:
            while True:
                taken.callback(os.close, os.dup(0))
        except OSError:
            pass
        yield


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA) -> Path:
    """Return the system's file of authorities, of which no context has been made yet; there is no folder of them."""
    path = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr(_tls, "_kept", None)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def over_tls(server: ScriptedServer, authority: trustme.CA, nursery: trio.Nursery) -> Factory:
    """Return what dials `server` in memory, and has it show a certificate of `authority`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("server.test").configure_cert(context)

    async def dial(host: str, port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        tls: trio.SSLStream[trio.abc.Stream] = trio.SSLStream(theirs, context, server_side=True, https_compatible=True)
        nursery.start_soon(serve, tls, host, port)
        return ours

    async def serve(tls: trio.SSLStream[trio.abc.Stream], host: str, port: int) -> None:
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:  # it does not trust us
            return
        server.serve_stream(tls, host, port)  # type: ignore[arg-type]

    return dial


async def test_the_last_file_descriptor_may_go_to_the_socket(
    bundle: Path, authority: trustme.CA, transport: Transport
) -> None:
    async with ScriptedServer(then=echo) as server, trio.open_nursery() as nursery:
        dial = over_tls(server, authority, nursery)
        with ExitStack() as shortage:

            async def take_the_last(host: str, port: int) -> trio.abc.Stream:
                shortage.enter_context(no_file_descriptor_left())
                return await dial(host, port)

            async with open_connection(URL, stream_factory=take_the_last, transport=transport) as conn:
                await conn.send("hello")
                assert await conn.receive() == "hello"
        nursery.cancel_scope.cancel(reason="all is done")


async def test_authorities_that_cannot_be_read_for_want_of_descriptors_are_read_the_next_time(bundle: Path) -> None:
    with no_file_descriptor_left(), pytest.raises(ConnectFailed, match=r"no authority.*Too many open files") as caught:
        await default_context()
    assert (caught.value.phase, caught.value.retry) == ("tls", "backoff")
    assert of_error(caught.value) is Disposition.TRANSIENT
    assert (await default_context()).cert_store_stats()["x509"] == 1


@attrs.define(eq=False)
class EndsAtTheFirstError(ErrorHandler):
    """Lets go of the descriptors when an attempt has failed."""

    shortage: ExitStack
    seen: list[Exception] = attrs.field(factory=list)

    def should_reconnect(self, error: Exception, attempt: int, advice: Retry | Stop) -> Retry | Stop:
        self.seen.append(error)
        self.shortage.close()
        return advice


@pytest.mark.parametrize("amid", [False, True], ids=["before the context", "amid the handshake"])
async def test_a_session_that_retries_its_first_connect_outlives_a_shortage_of_descriptors(
    bundle: Path, authority: trustme.CA, transport: Transport, amid: bool
) -> None:
    context = None
    if amid:  # it is read as it is needed, as a folder of authorities is: in vain, the first time
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with ScriptedServer(then=echo) as server, trio.open_nursery() as nursery:
        dial = over_tls(server, authority, nursery)
        with ExitStack() as shortage:
            handler = EndsAtTheFirstError(shortage)
            if context is not None:
                shortage.callback(context.load_verify_locations, bundle)  # once descriptors are there again
            shortage.enter_context(no_file_descriptor_left())
            async with open_connection(
                URL,
                stream_factory=dial,
                transport=transport,
                ssl_context=context,
                retry_first_connect=True,
                error_handler=handler,
                backoff=ListBackoff([0.0]),
            ):
                pass
        nursery.cancel_scope.cancel(reason="all is done")
    [error] = handler.seen
    assert isinstance(error, ConnectFailed)
    assert "Too many open files" in str(error)
    assert isinstance(error, TlsFailed) is amid


async def test_a_socket_that_cannot_be_had_is_worth_another_attempt(transport: Transport) -> None:
    with no_file_descriptor_left(), pytest.raises(ConnectFailed, match="Too many open files") as caught:
        async with open_connection("ws://127.0.0.1:9/", transport=transport):
            pass
    assert (caught.value.phase, caught.value.retry) == ("tcp", "backoff")


async def test_a_bundle_that_is_renewed_on_disk_is_read_again_and_one_that_vanishes_serves_on(
    bundle: Path, authority: trustme.CA
) -> None:
    first, other = await default_context(), trustme.CA()
    assert await default_context() is first
    authority.cert_pem.write_to_path(bundle)
    other.cert_pem.write_to_path(bundle, append=True)
    second = await default_context()
    assert second is not first
    assert second.cert_store_stats()["x509"] == 2
    remove(bundle)
    assert await default_context() is second
    write(bundle, "nothing")
    assert await default_context() is second
    other.cert_pem.write_to_path(bundle)
    assert (await default_context()).cert_store_stats()["x509"] == 1


async def test_a_machine_without_authorities_is_told_where_they_were_looked_for(bundle: Path) -> None:
    remove(bundle)
    with pytest.raises(ConnectFailed, match="no authority that vouches for certificates could be read"):
        await default_context()


async def test_an_empty_bundle_beside_a_folder_of_authorities_is_no_mistake(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bundle, "# see the folder\n")
    with pytest.raises(ConnectFailed):
        await default_context()
    folder = bundle.parent / "folder"
    folder.mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", f"{bundle.parent / 'nowhere'}{os.pathsep}{folder}")
    with pytest.raises(ConnectFailed):
        await default_context()
    (folder / "0a1b2c3d.0").touch()
    await default_context()


async def test_a_crowd_that_dials_at_once_shares_one_context(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[ssl.SSLContext] = []
    build = _tls._build_context

    def count() -> ssl.SSLContext:
        built.append(build())
        return built[-1]

    async def ask() -> None:
        assert await default_context() is built[0]

    monkeypatch.setattr(_tls, "_build_context", count)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert len(built) == 1
