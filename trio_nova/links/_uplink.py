"""How far what was written has got, where the operating system tells: it holds megabytes that no peer has seen yet.

A peer whose machine acknowledges some of that is alive, though no write makes progress, and though the pong to a
ping that stands behind it all cannot come. Linux tells by TCP_INFO; elsewhere, and of other streams, nothing is known.
"""

from __future__ import annotations

import math
import socket
import struct
import sys

import attrs
import trio

__all__ = ["Transit", "Uplink", "socket_below"]

_TCP_INFO = socket.TCP_INFO if sys.platform == "linux" else 0
_UNACKNOWLEDGED, _LAST_ACK, _ACKNOWLEDGED, _UNSENT = 24, 56, 120, 144
"""Where tcpi_unacked, tcpi_last_ack_recv, tcpi_bytes_acked and tcpi_notsent_bytes stand in Linux's struct tcp_info."""
_INFO_SIZE = 148


@attrs.frozen
class Transit:
    """What is known of the bytes that were handed to the operating system."""

    acknowledged: int
    """Bytes that the peer's machine has acknowledged, in all."""
    waiting: bool
    """Whether there is more than a segment that it has not."""
    last_ack: float
    """Trio's time when it last acknowledged any."""


@attrs.define(eq=False)
class Uplink:
    """Watches what the operating system has yet to deliver of what was written to a stream."""

    _socket: trio.socket.SocketType | None
    _marked: Transit | None = attrs.field(default=None, init=False)
    _moved_at: float = attrs.field(default=-math.inf, init=False)

    @classmethod
    def of(cls, stream: trio.abc.Stream) -> Uplink:
        sock = socket_below(stream)
        return cls(sock if _TCP_INFO and sock is not None else None)

    def look(self) -> Transit | None:
        """Return how things stand; None where that is not known."""
        if self._socket is None:
            return None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO_SIZE)
        except (OSError, NotImplementedError):  # not of TCP, or simulated, or closed
            info = b""
        if not isinstance(info, bytes) or len(info) < _INFO_SIZE:
            self._socket = None
            return None
        (segments,) = struct.unpack_from("=I", info, _UNACKNOWLEDGED)
        (unsent,) = struct.unpack_from("=I", info, _UNSENT)
        (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK)
        (acknowledged,) = struct.unpack_from("=Q", info, _ACKNOWLEDGED)
        return Transit(acknowledged, segments > 1 or unsent > 0, trio.current_time() - milliseconds / 1000)

    def mark(self) -> None:
        """Remember how things stand: a write begins to wait, or goes on."""
        self._marked = self.look()

    def stalled_since(self, since: float) -> float:
        """Return since when a write that has waited since `since`, when `mark` was called, has made no progress."""
        marked, now = self._marked, self.look() if self._marked is not None else None
        if marked is not None and now is not None and now.acknowledged > marked.acknowledged:
            self._marked, self._moved_at = now, now.last_ack
        return max(since, self._moved_at)


def socket_below(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    """Return the socket whose closing closes the stream at once, where there is one."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream.socket if isinstance(stream, trio.SocketStream) else None
