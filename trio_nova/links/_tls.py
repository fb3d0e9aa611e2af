"""TLS below a link: the default context, the handshake, and what its failures mean."""

from __future__ import annotations

import ssl
from collections.abc import Collection

import trio

from trio_nova.errors import ConnectFailed, RetryAdvice, TlsFailed, printable
from trio_nova.links._pins import public_key_pin

__all__ = ["default_context", "lay_tls", "tls_failure"]

_EXPIRED = {9, 10}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_WRONG_NAME = {62, 63, 64}
"""X509_V_ERR_HOSTNAME_MISMATCH, _EMAIL_MISMATCH and _IP_ADDRESS_MISMATCH."""
_CLIENT_CERTIFICATE = (
    "CERTIFICATE_REQUIRED",
    "ALERT_BAD_CERTIFICATE",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNKNOWN_CA",
    "ALERT_ACCESS_DENIED",
)
_NO_COMMON_GROUND = (
    "UNSUPPORTED_PROTOCOL",
    "PROTOCOL_VERSION",
    "WRONG_SSL_VERSION",
    "VERSION_TOO_LOW",
    "NO_PROTOCOLS_AVAILABLE",
    "HANDSHAKE_FAILURE",
    "INSUFFICIENT_SECURITY",
)

_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE")
"""What OpenSSL says of an answer that is no TLS at all, such as one in HTTP."""

_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)

_context: ssl.SSLContext | None = None


async def default_context() -> ssl.SSLContext:
    """Return the process's own context: it verifies, and offers ALPN http/1.1 only.

    It is built at the first call, in a thread: loading the system's authorities takes tens of milliseconds.
    Cancelling this leaves the building to the thread.
    """
    global _context
    if _context is None:
        # A limiter of its own: the default one may be pinned by somebody's black hole.
        _context = await trio.to_thread.run_sync(
            _build_context, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )
    return _context


def _build_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])  # RFC 6455 needs HTTP/1.1; a server must not choose h2
    return context


async def lay_tls(
    stream: trio.abc.Stream, host: str, port: int, context: ssl.SSLContext, pins: Collection[str] = ()
) -> trio.abc.Stream:
    """Shake hands over `stream` and return the encrypted one, if its peer has a key of `pins`; without any, all do.

    Raises:
        TlsFailed: the peer cannot be trusted, does not trust us, or speaks no TLS that we speak; or its key is
            not pinned; or `context` let it choose another protocol than HTTP/1.1.
        ConnectFailed: the handshake was cut off, as by a load balancer that restarts: worth another attempt.

    On any error, cancellation included, `stream` is closed.
    """
    try:
        tls = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        await tls.do_handshake()
        _check_alpn(tls.selected_alpn_protocol(), host, port)
        if pins:
            _check_pins(tls.getpeercert(binary_form=True), pins, host, port)
    except ValueError as exc:
        await trio.aclose_forcefully(stream)
        raise ConnectFailed(f"TLS cannot ask for {host!r}", phase="tls", retry=RetryAdvice.NEVER) from exc
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
        await trio.aclose_forcefully(stream)
        raise tls_failure(exc, host, port) or ConnectFailed(
            f"the TLS handshake with {host}:{port} was cut off", phase="tls"
        ) from exc
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


def _check_alpn(chosen: str | None, host: str, port: int) -> None:
    """Refuse a protocol in which no upgrade can be asked for: the server would hang up without a word."""
    if chosen not in (None, "http/1.1"):
        raise TlsFailed(
            f"{host}:{port} chose {printable(chosen)!r} by ALPN: let ssl_context offer http/1.1 only", reason="protocol"
        )


def _check_pins(certificate: bytes | None, pins: Collection[str], host: str, port: int) -> None:
    """Refuse a peer that shows none of the keys: nothing has been said to it yet."""
    try:
        pin = public_key_pin(certificate or b"")
    except ValueError as exc:
        raise TlsFailed(f"{host}:{port} shows no certificate whose key can be compared", reason="pin") from exc
    if pin not in pins:
        raise TlsFailed(f"the key of {host}:{port} is none of the pinned ones: its pin is {pin}", reason="pin")


def tls_failure(exc: BaseException, host: str, port: int) -> TlsFailed | None:
    """Return what the root cause of `exc` says about TLS; None where the connection was merely cut off.

    A server of TLS 1.3 refuses a client's certificate only after the handshake, so this is asked again
    for what breaks while the upgrade is read.
    """
    root: BaseException = exc
    while root.__cause__ is not None:
        root = root.__cause__
    at = f"{host}:{port}"
    if isinstance(root, ssl.SSLCertVerificationError):
        code = root.verify_code
        reason = "expired" if code in _EXPIRED else "hostname" if code in _WRONG_NAME else "untrusted"
        return TlsFailed(f"the certificate of {at} is refused: {printable(root.verify_message)}", reason=reason)
    if not isinstance(root, ssl.SSLError) or isinstance(root, _CUT_OFF):
        return None
    library_reason = root.reason or ""
    if any(mark in library_reason for mark in _CLIENT_CERTIFICATE):
        return TlsFailed(f"{at} refuses our certificate: {library_reason}", reason="client-certificate")
    if any(mark in library_reason for mark in _NO_COMMON_GROUND):
        return TlsFailed(f"no TLS version or cipher in common with {at}: {library_reason}", reason="protocol")
    # A plain HTTP answer, or none of TLS's: often a server that is being set up, so worth another attempt.
    plain = "; if it is a plain port, write ws://" if library_reason in _NO_TLS else ""
    return TlsFailed(
        f"{at} does not speak TLS properly: {library_reason or 'unknown'}{plain}",
        reason="protocol",
        retry=RetryAdvice.BACKOFF,
    )
