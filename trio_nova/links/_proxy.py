"""Reach a server through a proxy: HTTP CONNECT or SOCKS, spoken by the optional package python-socks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

import attrs
import trio

from trio_nova.core.verdict import Disposition, of_status
from trio_nova.errors import ConfigError, ConnectFailed, NovaError, RetryAdvice
from trio_nova.links._seam import Dial
from trio_nova.secrets import Secret, discreet, forget_locals

__all__ = ["connect_through"]

_HEAD_LIMIT = 16384
"""Bytes of an HTTP proxy's answer."""
_SCHEMES = {
    "http": ("HTTP", 80),
    "socks4": ("SOCKS4", 1080),
    "socks4a": ("SOCKS4", 1080),
    "socks5": ("SOCKS5", 1080),
    "socks5h": ("SOCKS5", 1080),
}
"""What python-socks calls each, and its usual port. The name is looked up by the proxy in all of them."""
_DENIED_STATUSES = {401, 407}
"""An HTTP proxy refuses the login with 407 (RFC 9110 section 15.5.8); tinyproxy, a wrong one, with 401."""
_DENIED = {"Username and password authentication failure", "No acceptable authentication methods were offered"}
"""How python-socks words a SOCKS5 proxy's refusal of the login: it has no status of its own (RFC 1929)."""
_NO_USE = {"SOCKS4": {92, 93}, "SOCKS5": {2, 7, 8}}
"""Replies that another attempt would get again: of SOCKS4, that it does not know who we are; of SOCKS5, that its rules
forbid it, or that it does not do such things (RFC 1928 section 6). The others say that the server was not reached."""


@attrs.frozen
class _Proxy:
    kind: str
    host: str
    port: int
    user: Secret[str] | None
    password: Secret[str] | None


async def connect_through(
    dial: Dial, open_transport: Callable[[Dial, str, int], Awaitable[trio.abc.Stream]]
) -> trio.abc.Stream:
    """Return a stream to the server of `dial.url`, opened by `dial.proxy`, which looks up its name.

    Args:
        dial: `dial.proxy` is set.
        open_transport: Opens the stream to the proxy itself.

    Raises:
        ConfigError: the proxy's URL is wrong, or python-socks is not installed.
        ConnectFailed: with phase "proxy". It says the proxy's status and never its words, which may echo the login.
    """
    assert dial.proxy is not None
    proxy = _parse(dial.proxy)
    try:
        import python_socks
        from python_socks.async_.trio.v2 import Proxy
    except ImportError:
        raise ConfigError("proxy", "needs the package python-socks: install trio-nova[proxy]") from None

    where = f"{proxy.host}:{proxy.port}"
    dial.on_phase("proxy")
    try:
        stream = await open_transport(dial, proxy.host, proxy.port)
    except ConnectFailed as exc:
        raise ConnectFailed(f"cannot reach the proxy: {exc}", phase="proxy", retry=exc.retry) from exc
    dial.on_phase("proxy")
    leg = _Leg(stream)
    connector = Proxy(
        proxy_type=python_socks.ProxyType[proxy.kind],
        host=proxy.host,
        port=proxy.port,
        username=None if proxy.user is None else proxy.user.reveal(),
        password=None if proxy.password is None else proxy.password.reveal(),
        rdns=True,
        forward=leg,  # type: ignore[arg-type]
    )
    try:
        await connector.connect(dial.url.host, dial.url.port, timeout=float("inf"))
    except NovaError as exc:
        raise forget_locals(exc)  # noqa: B904 - it is the same one
    except python_socks.ProxyError as exc:
        refused = exc.error_code in _DENIED_STATUSES or str(exc) in _DENIED
        status = f" with status {exc.error_code}" if exc.error_code is not None else ""
        why = "wants other credentials" if refused else "refuses to connect"
        fatal = refused or (exc.error_code is not None and _is_of_no_use(proxy.kind, exc.error_code))
        advice = RetryAdvice.NEVER if fatal else RetryAdvice.BACKOFF
        # Not `from exc`: a proxy may repeat in its answer what was sent to it.
        raise ConnectFailed(f"the proxy {where} {why}{status}", phase="proxy", retry=advice) from None
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise ConnectFailed(f"the connection through the proxy {where} was cut off", phase="proxy") from forget_locals(
            exc
        )
    except Exception as exc:
        why = f"the proxy {where} cannot be used: {type(exc).__name__}"
        raise ConnectFailed(why, phase="proxy") from forget_locals(exc)
    return stream


@discreet
def _is_of_no_use(kind: str, status: int) -> bool:
    """Return whether a proxy that answers so would answer so again: 403, say, is a rule of its own, as of a server."""
    return of_status(status) is Disposition.FATAL if kind == "HTTP" else status in _NO_USE[kind]


def _parse(url: Secret[str]) -> _Proxy:
    """Take the proxy's URL apart; no message repeats it, as it holds the login."""
    try:
        parts = urlsplit(url.reveal())
        port = parts.port
    except ValueError:
        raise ConfigError("proxy", "is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigError("proxy", f"the scheme must be one of {', '.join(_SCHEMES)}")
    if not parts.hostname:
        raise ConfigError("proxy", "the URL has no host")
    user = password = None
    if parts.username is not None:
        user, password = Secret(unquote(parts.username)), Secret(unquote(parts.password or ""))
    kind, usual_port = _SCHEMES[parts.scheme]
    return _Proxy(kind, parts.hostname, port or usual_port, user, password)


@attrs.define(eq=False)
class _Leg:
    """The stream to the proxy, in the shape that python-socks writes to and reads from.

    python-socks takes one read for the whole of an HTTP proxy's answer. Here that one read ends with
    the answer, however it was cut: what belongs to the tunnel is not swallowed, and a byte too many is
    an error, not the first byte of TLS.
    """

    stream: trio.abc.Stream

    async def connect(self, dest_host: str, dest_port: int) -> _Leg:
        await trio.lowlevel.checkpoint()
        return self

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self, max_bytes: int = 65536) -> bytes:
        head = bytearray()
        while (end := head.find(b"\r\n\r\n")) < 0:
            if len(head) >= _HEAD_LIMIT:
                raise ConnectFailed("the proxy's answer is too long", phase="proxy")
            data = await self.stream.receive_some(4096)
            if not data:
                raise ConnectFailed("the proxy closed the connection", phase="proxy")
            head += data
        if end + 4 < len(head) and head.split(maxsplit=2)[1:2] == [b"200"]:
            raise ConnectFailed("the proxy sent more than its answer", phase="proxy")
        return bytes(head)

    async def read_exactly(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n:
            part = await self.stream.receive_some(n - len(data))
            if not part:
                raise ConnectFailed("the proxy closed the connection", phase="proxy")
            data += part
        return bytes(data)

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)
