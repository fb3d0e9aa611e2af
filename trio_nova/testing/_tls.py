"""Certificates made on the spot, for servers that live as long as a test."""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme

__all__ = ["client_context", "server_context"]


@functools.cache
def _authority() -> trustme.CA:
    """Make the authority, once per process: its certificates are good for this process only."""
    try:
        import trustme
    except ImportError as exc:
        raise ImportError("trio_nova.testing makes certificates with trustme: pip install trustme") from exc
    return trustme.CA()


@functools.cache
def server_context(host: str) -> ssl.SSLContext:
    """Return a context for a server that vouches for `host`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _authority().issue_cert(host).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    """Return a context for a client that trusts these servers and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    _authority().configure_trust(context)
    return context
