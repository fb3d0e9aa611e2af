"""TLS below a link: the default context, the handshake, and what its failures mean."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Collection

import attrs
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

_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
"""X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT and its kin: the authority is not known, or could not be read."""
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@attrs.frozen
class _Kept:
    """The default context, and what the files looked like that it was read from."""

    context: ssl.SSLContext
    read_from: tuple[object, ...]


_kept: _Kept | None = None
"""The process's own."""
_building: trio.lowlevel.RunVar[trio.Lock] = trio.lowlevel.RunVar("trio_nova default context")


async def default_context() -> ssl.SSLContext:
    """Return the process's own context: it verifies, and offers ALPN http/1.1 only.

    It is built at the first call, and where the system's authorities have been renewed on disk since; in a thread, as
    loading them takes tens of milliseconds. Cancelling this leaves the building to the thread.

    Raises:
        ConnectFailed: no authority could be read, as where file descriptors are short: worth another attempt.
    """
    if _kept is None or _kept.read_from != _look_at_authorities():
        try:
            lock = _building.get()
        except LookupError:
            lock = trio.Lock()
            _building.set(lock)
        async with lock:  # a thousand sessions that dial at once need one between them
            if _kept is None or _kept.read_from != _look_at_authorities():
                # A limiter of its own: the default one may be pinned by somebody's black hole.
                await trio.to_thread.run_sync(_renew, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    assert _kept is not None
    return _kept.context


def _places() -> tuple[str, ...]:
    """Return the file and the folders that OpenSSL has the system's authorities from, whether they exist or not."""
    paths = ssl.get_default_verify_paths()
    folders = os.environ.get(paths.openssl_capath_env) or paths.openssl_capath
    return os.environ.get(paths.openssl_cafile_env) or paths.openssl_cafile, *folders.split(os.pathsep)


def _look_at_authorities() -> tuple[object, ...]:
    """Return what changes when the system's authorities do: where they are, and what the file system says of them."""
    return tuple((place, *_look_at(place)) for place in _places())


def _look_at(path: str) -> tuple[object, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _renew() -> None:
    """Build the default context anew. One without authorities is never kept: the last good one serves on."""
    global _kept
    read_from = _look_at_authorities()  # before they are read: what changes meanwhile will be read again
    try:
        context = _build_context()
    except OSError as exc:  # which ssl.SSLError is too
        if _kept is not None:
            return
        why = os.strerror(exc.errno) if not isinstance(exc, ssl.SSLError) and exc.errno else type(exc).__name__
        looked_in = " and ".join(_places())
        raise ConnectFailed(
            f"no authority that vouches for certificates could be read ({why}): looked in {looked_in}", phase="tls"
        ) from exc
    _kept = _Kept(context, read_from)


def _build_context() -> ssl.SSLContext:
    """Build a context that trusts the system's authorities; OSError where there are none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509"]:
        # OpenSSL has said nothing of a file that it could not open. Now it does, or reads it after all.
        file, *folders = _places()
        try:
            context.load_verify_locations(file)
        except (FileNotFoundError, ssl.SSLError):  # there is none, or nothing in it
            if not any(os.path.isdir(folder) and os.listdir(folder) for folder in folders):  # read as they are needed
                raise
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
        failure = tls_failure(exc, host, port)  # before the stream gives its file descriptor back
        await trio.aclose_forcefully(stream)
        raise failure or ConnectFailed(f"the TLS handshake with {host}:{port} was cut off", phase="tls") from exc
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
        refused = f"the certificate of {at} is refused: {printable(root.verify_message)}"
        if code in _UNKNOWN_AUTHORITY and (shortage := _shortage()):
            # OpenSSL opens files in a folder of authorities only now, and does not tell that it could not.
            return TlsFailed(
                f"{refused}; but its authority may be known: {shortage}", reason=reason, retry=RetryAdvice.BACKOFF
            )
        return TlsFailed(refused, reason=reason)
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


def _shortage() -> str:
    """Return why no file can be opened for now; "" where one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno in _SHORTAGES:
            return os.strerror(exc.errno)
    return ""
