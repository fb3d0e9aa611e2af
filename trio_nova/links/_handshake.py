"""Read the server's answer to the upgrade request from a stream: its head, and the beginning of a rejection's body."""

from __future__ import annotations

import trio

from trio_nova.core.verdict import Disposition, of_status, parse_retry_after
from trio_nova.errors import ConnectFailed, HandshakeRejected, RetryAdvice
from trio_nova.links._tls import tls_failure
from trio_nova.links._upgrade import HeadReader, Response, content_length, dechunk
from trio_nova.urls import Url

__all__ = ["CHUNK", "receive_rejection", "receive_response"]

CHUNK = 65536
"""Bytes read or written at a time: what a peer accepts of a write counts as progress in these steps."""
_BODY_LIMIT = 4096
"""Bytes kept of a rejection's body."""
_BODY_WAIT = 1.0
"""Seconds that a rejection waits for its body."""


async def receive_response(stream: trio.abc.ReceiveStream, url: Url) -> tuple[Response, bytes]:
    """Return the final response to the upgrade, and what came in one piece with its head.

    Raises:
        HandshakeInvalid: it is no HTTP response, or larger than a response may be.
        ConnectFailed: the server closed the connection, or its TLS failed, before the head was complete.
    """
    reader = HeadReader()
    response = None
    while response is None:
        response = reader.feed(await _receive_head(stream, url, reader))
    return response, reader.rest


async def _receive_head(stream: trio.abc.ReceiveStream, url: Url, reader: HeadReader) -> bytes:
    cause: Exception | None = None
    try:
        data = bytes(await stream.receive_some(CHUNK))
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
        if (failure := tls_failure(exc, url.host, url.port)) is not None:
            raise failure from exc
        data, cause = b"", exc
    if not data:
        when = "amid its response" if reader.started else "without a response"
        raise ConnectFailed(
            f"{url.host}:{url.port} closed the connection {when} to the upgrade", phase="http"
        ) from cause
    return data


async def receive_rejection(
    stream: trio.abc.ReceiveStream, response: Response, begun: bytes, wall: float
) -> HandshakeRejected:
    """Return the error for a response other than 101, with an excerpt of its body.

    Args:
        stream: where the rest of the body comes from; waited for a second at most.
        response: its head.
        begun: what came in one piece with the head.
        wall: the time now, in seconds since the epoch of Unix.
    """
    body = await _receive_body(stream, response, begun)
    wait = next(iter(response.values("retry-after")), None)
    patience = parse_retry_after(wait, wall) if wait is not None else None
    if of_status(response.status) is Disposition.FATAL:
        advice = RetryAdvice.NEVER
    else:
        advice = RetryAdvice.BACKOFF if patience is None else RetryAdvice.AFTER
    return HandshakeRejected(response.status, response.headers, body, patience, retry=advice)


async def _receive_body(stream: trio.abc.ReceiveStream, response: Response, begun: bytes) -> bytes:
    """Return the beginning of the body: what is there within a second, and no more than an excerpt."""
    length = content_length(response)
    chunked = "chunked" in ",".join(response.values("transfer-encoding")).lower()
    coded = bytearray(begun)
    body, complete = b"", False
    # Chunks of one byte each cost six: the limit for them is on what is read.
    with trio.move_on_after(_BODY_WAIT):
        while True:
            body, complete = dechunk(bytes(coded)) if chunked else (bytes(coded), False)
            enough = min(length, _BODY_LIMIT) if length is not None else _BODY_LIMIT
            if complete or len(body) >= enough or len(coded) >= 8 * _BODY_LIMIT:
                break
            try:
                data = await stream.receive_some(_BODY_LIMIT)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                break
            if not data:
                break
            coded += data
    return body[: _BODY_LIMIT if length is None else min(length, _BODY_LIMIT)]
