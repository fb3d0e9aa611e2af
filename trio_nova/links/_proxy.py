"""Reach a server through a proxy: HTTP CONNECT, or SOCKS, spoken by the optional package python-socks."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import unquote_to_bytes, urlsplit

import attrs
import trio

from trio_nova.core.verdict import Disposition, of_status
from trio_nova.errors import ConfigError, ConnectFailed, HandshakeInvalid, NovaError, RetryAdvice, TlsFailed
from trio_nova.links._handshake import CHUNK
from trio_nova.links._seam import Dial
from trio_nova.links._tls import default_context, lay_tls, tls_failure
from trio_nova.links._upgrade import HeadReader
from trio_nova.secrets import Secret
from trio_nova.urls import split_host

__all__ = ["ENVIRONMENT", "Proxy", "connect_through", "parse_proxy"]

ENVIRONMENT = "env"
"""In place of a proxy's URL: that which the environment names for the URL that is dialled."""
_USUAL_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
"""By scheme. The server's name is looked up by the proxy in all of them."""
_DENIED_STATUSES = {401, 407}
"""An HTTP proxy refuses the login with 407 (RFC 9110 section 15.5.8); tinyproxy, a wrong one, with 401."""
_DENIED = {"Username and password authentication failure", "No acceptable authentication methods were offered"}
"""How python-socks words a SOCKS5 proxy's refusal of the login: it has no status of its own (RFC 1929)."""
_NO_USE = {"SOCKS4": {92, 93}, "SOCKS5": {2, 7, 8}}
"""Replies that another attempt would get again: of SOCKS4, that it does not know who we are; of SOCKS5, that its rules
forbid it, or that it does not do such things (RFC 1928 section 6). The others say that the server was not reached."""


@attrs.frozen
class Proxy:
    """Where a proxy is, and the login for it."""

    scheme: str
    host: str
    """With its zone, where it is an address that has one."""
    port: int
    user: Secret[bytes]
    password: Secret[bytes]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def wants_login(self) -> bool:
        return bool(self.user.reveal() or self.password.reveal())


def parse_proxy(url: object, name: str = "proxy") -> Proxy:
    """Take a proxy's URL apart.

    Raises:
        ConfigError: of the option `proxy`, saying what is wrong with `name`; it quotes nothing, as all may be a login.
    """
    says = "" if name == "proxy" else f"{name} in the environment "
    # White space and control characters are to be escaped: urllib would drop some of them without a word.
    if not isinstance(url, str) or any(c <= " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in url):
        raise ConfigError("proxy", f"{says}must be a URL, without white space")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError("proxy", f"{says}is not a URL: its host or its port is malformed") from None
    if parts.scheme not in _USUAL_PORTS or not parts.netloc:
        raise ConfigError("proxy", f"{says}must be a URL that begins with one of {', '.join(_USUAL_PORTS)}, and ://")
    try:
        host, zone = split_host(parts.netloc, "proxy")
    except ConfigError as exc:
        raise ConfigError("proxy", f"{says}is wrong: {exc.problem}") from None
    login, _, _ = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    return Proxy(
        parts.scheme,
        f"{host}%{zone}" if zone else host,
        port or _USUAL_PORTS[parts.scheme],
        Secret(unquote_to_bytes(user)),
        Secret(unquote_to_bytes(password)),
    )


async def connect_through(
    dial: Dial, proxy: Proxy, open_transport: Callable[[Dial, str, int], Awaitable[trio.abc.Stream]]
) -> trio.abc.Stream:
    """Return a stream to the server of `dial.url`, opened by `proxy`, which looks up its name.

    Args:
        dial: Where to.
        proxy: Through whom.
        open_transport: Opens the stream to the proxy itself.

    Raises:
        ConfigError: python-socks is not installed.
        ConnectFailed: with phase "proxy". It says the proxy's status and never its words, which may echo the login.
    """
    connect = _connect_http if proxy.scheme in ("http", "https") else _socks_connector()
    dial.on_phase("proxy")
    context = None
    if proxy.scheme == "https":
        context = dial.proxy_ssl_context or await default_context()
    try:
        stream = await open_transport(dial, proxy.host, proxy.port)
    except ConnectFailed as exc:
        raise ConnectFailed(f"cannot reach the proxy: {exc}", phase="proxy", retry=exc.retry) from exc
    dial.on_phase("proxy")
    if context is not None:
        stream = await _lay_tls(stream, proxy, context)
    if proxy.wants_login and dial.on_reveal is not None:
        dial.on_reveal("login of the proxy", f"{proxy.scheme}://{proxy}")
    try:
        await connect(stream, dial, proxy)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        await trio.aclose_forcefully(stream)
        host, _, _ = proxy.host.partition("%")
        # A proxy of TLS 1.3 refuses a client's certificate only after the handshake.
        failure: ConnectFailed | None = tls_failure(exc, host, proxy.port) if context is not None else None
        failure = failure or ConnectFailed(f"the connection through the proxy {proxy} was cut off")
        failure.phase = "proxy"
        raise failure from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _lay_tls(stream: trio.abc.Stream, proxy: Proxy, context: ssl.SSLContext) -> trio.abc.Stream:
    host, _, _ = proxy.host.partition("%")
    try:
        return await lay_tls(stream, host, proxy.port, context)
    except TlsFailed as exc:
        exc.phase = "proxy"
        raise
    except ConnectFailed as exc:
        raise ConnectFailed(f"cannot reach the proxy: {exc}", phase="proxy", retry=exc.retry) from exc


def _refused(proxy: Proxy, status: int | None, *, login: bool, for_good: bool) -> ConnectFailed:
    says = f" with status {status}" if status is not None else ""
    why = "wants other credentials" if login else "refuses to connect"
    advice = RetryAdvice.NEVER if login or for_good else RetryAdvice.BACKOFF
    return ConnectFailed(f"the proxy {proxy} {why}{says}", phase="proxy", retry=advice)


# --------------------------------------------------------------------------- HTTP


async def _connect_http(stream: trio.abc.Stream, dial: Dial, proxy: Proxy) -> None:
    """Ask for a tunnel by CONNECT: any 2xx opens it, whatever it says of a body (RFC 9110 section 9.3.6)."""
    url = dial.url
    where = f"[{url.host}]:{url.port}" if ":" in url.host else f"{url.host}:{url.port}"
    await stream.send_all(_connect_request(where, proxy))
    reader = HeadReader(has_body=False)
    response = None
    while response is None:
        data = bytes(await stream.receive_some(CHUNK))
        if not data:
            raise ConnectFailed(f"the proxy {proxy} closed the connection", phase="proxy")
        try:
            response = reader.feed(data)
        except HandshakeInvalid as exc:
            why = f"the proxy {proxy} does not answer in proper HTTP/1 ({exc.rule})"
            raise ConnectFailed(why, phase="proxy") from None
    status = response.status
    if not 200 <= status < 300:
        denied = status in _DENIED_STATUSES
        # 403, say, is a rule of its own, as of a server: it would answer so again.
        raise _refused(proxy, status, login=denied, for_good=of_status(status) is Disposition.FATAL)
    if reader.rest:
        # Nobody speaks before us: it would be taken for the first byte of TLS, or of the server's answer.
        raise ConnectFailed(f"the proxy {proxy} sent more than its answer", phase="proxy")


def _connect_request(where: str, proxy: Proxy) -> bytes:
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.wants_login:
        login = base64.b64encode(proxy.user.reveal() + b":" + proxy.password.reveal())
        lines.append(f"Proxy-Authorization: Basic {login.decode('ascii')}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


# --------------------------------------------------------------------------- SOCKS


def _socks_connector() -> Callable[[trio.abc.Stream, Dial, Proxy], Awaitable[None]]:
    """Return what asks a SOCKS proxy for a tunnel; ConfigError where the package for it is missing.

    Also ConnectFailed, where it is there and cannot be loaded.
    """
    try:
        import python_socks
        from python_socks.async_.trio.v2 import Proxy as Connector
    except ImportError:
        raise ConfigError("proxy", "SOCKS needs the package python-socks: install trio-nova[proxy]") from None
    except OSError as exc:  # no file can be opened, for now
        raise ConnectFailed("python-socks cannot be loaded", phase="proxy") from exc

    async def connect(stream: trio.abc.Stream, dial: Dial, proxy: Proxy) -> None:
        kind = proxy.scheme[:6].upper()
        try:
            connector = Connector(
                proxy_type=python_socks.ProxyType[kind],
                host=proxy.host,
                port=proxy.port,
                username=proxy.user.reveal().decode("utf-8", "replace") if proxy.wants_login else None,
                password=proxy.password.reveal().decode("utf-8", "replace") if proxy.wants_login else None,
                rdns=True,
                forward=_Leg(stream),  # type: ignore[arg-type]
            )
            await connector.connect(dial.url.host, dial.url.port, timeout=float("inf"))
        except NovaError:
            raise
        except python_socks.ProxyError as exc:
            code = exc.error_code
            # Not `from exc`: a proxy may repeat in its answer what was sent to it.
            raise _refused(
                proxy, code, login=str(exc) in _DENIED, for_good=code is not None and code in _NO_USE[kind]
            ) from None
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as exc:
            why = f"the proxy {proxy} cannot be used: {type(exc).__name__}"
            # Not the proxy's doing, whatever it answers: a login that cannot be written, or another python-socks.
            raise ConnectFailed(why, phase="proxy", retry=RetryAdvice.NEVER) from exc

    return connect


@attrs.define(eq=False)
class _Leg:
    """The stream to the proxy, in the shape that python-socks writes to and reads from."""

    stream: trio.abc.Stream

    async def connect(self, dest_host: str, dest_port: int) -> _Leg:
        await trio.lowlevel.checkpoint()
        return self

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

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
