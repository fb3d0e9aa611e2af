"""Open the byte stream below a link: name, TCP, proxy, TLS.

::

    open_stream
    ├─ stream_factory             "tcp"    replaces name look-up and TCP
    ├─ resolver, then a race      "dns", "tcp"
    │  └─ one attempt per address, 0.25 s apart, losers closed
    ├─ the proxy's CONNECT        "proxy"  over either of the above
    └─ TLS                        "tls"    for wss, over whatever it is by then
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import trio

from trio_nova.core import Strategy
from trio_nova.errors import ConfigError, ConnectFailed, NovaError, RetryAdvice
from trio_nova.links._environment import proxy_for
from trio_nova.links._proxy import ENVIRONMENT, Proxy, connect_through, parse_proxy
from trio_nova.links._seam import Dial, StreamFactory
from trio_nova.links._tls import default_context, lay_tls
from trio_nova.urls import ip_address, is_address

__all__ = ["SystemResolver", "open_stream", "unix_stream", "with_context"]

STAGGER = 0.25
"""Seconds before the next address is tried beside the last one (RFC 8305 section 5)."""
AT_ONCE = 5
"""Attempts under way at the same time, however many addresses there are."""
LOOK_UPS = 4
"""Threads that a resolver may keep busy, however long its name servers are silent."""


async def open_stream(dial: Dial) -> trio.abc.Stream:
    """Open the stream that `dial` asks for, telling `dial.on_phase` each phase as it begins.

    Raises:
        ConnectFailed: or one of its kinds, with the phase it happened in.
        ConfigError: the proxy's URL is wrong, or the package that speaks to proxies is missing.

    Cancelling this closes whatever was open.
    """
    dial = await with_context(dial)  # before the socket, which may take the last file descriptor
    url = dial.url
    if (proxy := _proxy_of(dial)) is None:
        stream = await _open_transport(dial, url.address, url.port)
    else:
        stream = await connect_through(dial, proxy, _open_transport)
    if dial.ssl_context is None or not url.secure:
        return stream
    dial.on_phase("tls")
    return await lay_tls(stream, url.host, url.port, dial.ssl_context, dial.pins)


async def with_context(dial: Dial) -> Dial:
    """Return `dial` with the context that its TLS needs.

    Raises:
        ConnectFailed: it has none of its own, and no authorities for the default one can be read.
    """
    if not dial.url.secure or dial.ssl_context is not None:
        return dial
    return attrs.evolve(dial, ssl_context=await default_context())


def _proxy_of(dial: Dial) -> Proxy | None:
    if dial.proxy is None:
        return None
    url = dial.proxy.reveal()
    return proxy_for(dial.url, os.environ) if url == ENVIRONMENT else parse_proxy(url)


async def _open_transport(dial: Dial, host: str, port: int) -> trio.abc.Stream:
    if dial.stream_factory is not None:
        dial.on_phase("tcp")
        return await _call_factory(dial.stream_factory, host, port)
    addresses: Sequence[str] = (host,)
    if not is_address(host):
        dial.on_phase("dns")
        addresses = await dial.resolver.resolve(host)
        if not addresses:
            raise ConnectFailed(f"{host} has no address", phase="dns")
    dial.on_phase("tcp")
    return await _race(addresses, host, port, dial.task_name("connect"))


async def _call_factory(factory: StreamFactory, host: str, port: int) -> trio.abc.Stream:
    try:
        stream = await factory(host, port)
    except NovaError:
        raise
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise ConnectFailed(f"cannot connect to {host}:{port}: {_plain(exc)}", phase="tcp") from exc
    except Exception as exc:
        raise ConnectFailed(
            f"the stream factory failed for {host}:{port}: {type(exc).__name__}", phase="tcp", retry=RetryAdvice.NEVER
        ) from exc
    if not isinstance(stream, trio.abc.Stream):
        raise ConfigError("stream_factory", f"it must return a trio.abc.Stream, not a {type(stream).__name__}")
    return stream


async def _race(addresses: Sequence[str], host: str, port: int, name: str) -> trio.SocketStream:
    """Return the first connection of those to `addresses`, tried in order; the losers are closed."""
    if len(addresses) == 1:
        try:
            return trio.SocketStream(await _connect(addresses[0], port))
        except OSError as exc:
            raise ConnectFailed(f"cannot connect to {host}:{port}: {_plain(exc)}", phase="tcp") from exc
    won: list[trio.socket.SocketType] = []
    failures: list[OSError] = []
    lanes = trio.Semaphore(AT_ONCE)

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            sock = await _connect(address, port)
        except OSError as exc:
            failures.append(exc)
            failed.set()
            lanes.release()
            return
        won.append(sock)
        nursery.cancel_scope.cancel(reason="another address answered first")

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                await lanes.acquire()
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, name=f"{name} {address}")
                with trio.move_on_after(STAGGER):
                    await failed.wait()
        if won:
            return trio.SocketStream(won.pop(0))
    finally:
        for sock in won:  # a second one came in the same instant, or we were cancelled with a winner at hand
            sock.close()
    cause = failures[0] if len(failures) == 1 else ExceptionGroup("every address failed", failures)
    raise ConnectFailed(f"cannot connect to {host}:{port}: {_plain(failures[0])}", phase="tcp") from cause


async def _connect(address: str, port: int) -> trio.socket.SocketType:
    try:
        family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    except ValueError:
        raise OSError("the resolver returned no IP address") from None
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _plain(exc: BaseException) -> str:
    """Say what went wrong without what the error's text may carry along."""
    if isinstance(exc, OSError) and exc.errno is not None:
        return os.strerror(exc.errno) if exc.errno > 0 else type(exc).__name__
    return type(exc).__name__


def unix_stream(path: str | os.PathLike[str]) -> StreamFactory:
    """Return a stream factory that connects to the Unix socket at `path`, whatever the URL's host says."""

    async def open_unix_stream(host: str, port: int) -> trio.abc.Stream:
        return await trio.open_unix_socket(os.fspath(path))

    return open_unix_stream


# --------------------------------------------------------------------------- names

_AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[str | int | bytes, ...]]
_GetAddrInfo: TypeAlias = Callable[[str], Sequence[_AddressInfo]]


def _getaddrinfo(host: str) -> Sequence[_AddressInfo]:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


@attrs.define(eq=False)
class _LookUp:
    """One name being asked for, and those who wait for it."""

    host: str
    waiting: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)
    answer: Sequence[_AddressInfo] | Exception = ()


@attrs.define(eq=False)
class _Desk:
    """The look-ups of one resolver in one run of Trio."""

    under_way: dict[str, _LookUp] = attrs.field(factory=dict)
    """Asked or queued, by host."""
    queue: deque[_LookUp] = attrs.field(factory=deque)
    busy: int = 0
    """Threads that have not come back."""


@attrs.define(eq=False)
class SystemResolver(Strategy):
    """Asks the operating system, in threads of its own.

    Callers who ask for the same host share one look-up, and cancelling one leaves it to the others. A
    look-up that nobody waits for any more keeps its thread until the system gives up: at most 4
    threads are ever busy, and none of them counts against Trio's default limiter.
    """

    getaddrinfo: _GetAddrInfo = _getaddrinfo
    """Blocks until the answer is there; called in a thread."""
    _desks: trio.lowlevel.RunVar[_Desk] = attrs.field(
        factory=lambda: trio.lowlevel.RunVar("trio_nova.SystemResolver"), init=False, repr=False
    )

    async def resolve(self, host: str) -> Sequence[str]:
        """Return the addresses of `host`, families taking turns (RFC 8305 section 4).

        Raises:
            ConnectFailed: with phase "dns", where there is none.
        """
        known = _known_addresses(host)
        if known:
            await trio.lowlevel.checkpoint()
            return known
        look_up = self._join(host)
        try:
            await look_up.done.wait()
        finally:
            look_up.waiting -= 1
        if isinstance(look_up.answer, Exception):
            raise ConnectFailed(f"cannot look up {host}: {_why(look_up.answer)}", phase="dns") from look_up.answer
        addresses = _take_turns(look_up.answer)
        if not addresses:
            raise ConnectFailed(f"{host} has no address", phase="dns")
        return addresses

    def _join(self, host: str) -> _LookUp:
        try:
            desk = self._desks.get()
        except LookupError:
            desk = _Desk()
            self._desks.set(desk)
        look_up = desk.under_way.get(host)
        if look_up is None:
            look_up = desk.under_way[host] = _LookUp(host)
            desk.queue.append(look_up)
        look_up.waiting += 1
        self._ask(desk)
        return look_up

    def _ask(self, desk: _Desk) -> None:
        """Give queued look-ups to idle threads; those that nobody waits for any more are dropped."""
        while desk.queue and desk.busy < LOOK_UPS:
            look_up = desk.queue.popleft()
            if look_up.waiting == 0:
                del desk.under_way[look_up.host]
            else:
                desk.busy += 1
                self._start_thread(desk, look_up)

    def _start_thread(self, desk: _Desk, look_up: _LookUp) -> None:
        # Not to_thread.run_sync: it would need a task to wait in, and that task an owner to outlive the caller.
        run = trio.lowlevel.current_trio_token()

        def settle(answer: Sequence[_AddressInfo] | Exception) -> None:
            look_up.answer = answer
            look_up.done.set()
            del desk.under_way[look_up.host]
            desk.busy -= 1
            self._ask(desk)

        def ask() -> Sequence[_AddressInfo] | Exception:
            try:
                return self.getaddrinfo(look_up.host)
            except Exception as exc:
                return exc

        def deliver(answer: Sequence[_AddressInfo] | Exception) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # the run is over, and everybody who waited with it
                run.run_sync_soon(settle, answer)

        trio.lowlevel.start_thread_soon(ask, lambda answer: deliver(answer.unwrap()), f"nova:dns {look_up.host}")


def _known_addresses(host: str) -> Sequence[str]:
    """Return the addresses of what needs no look-up: literals, and this machine (RFC 6761 section 6.3)."""
    if host == "localhost" or host.endswith(".localhost"):
        return ("127.0.0.1", "::1")
    return (host,) if is_address(host) else ()


def _take_turns(infos: Sequence[_AddressInfo]) -> list[str]:
    """Return the addresses of both families in turn, beginning with the one that the system prefers."""
    families: dict[int, list[str]] = {}
    for family, _, _, _, where in infos:
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        address = str(where[0])
        zone = where[3] if len(where) == 4 else 0
        if isinstance(zone, int) and zone != 0 and "%" not in address:
            address += f"%{zone}"  # a link-local address is none without its zone
        if address not in families.setdefault(family, []):
            families[family].append(address)
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def _why(exc: Exception) -> str:
    return str(exc.strerror) if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
