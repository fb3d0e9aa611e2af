"""The seam between a session and the network: what a link is, and what opens one.

Everything outside this package is reached through these few names. An implementation turns foreign
exceptions into `trio_nova.errors` before they cross the seam; the contract suite in
`trio_nova.testing` holds each implementation to what is written here.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import attrs
import trio

from trio_nova.errors import ConfigError, Phase
from trio_nova.links._cookies import Cookie
from trio_nova.links._deflate import Deflate
from trio_nova.links._uplink import Transit
from trio_nova.messages import Frame
from trio_nova.secrets import Secret, as_secret_text, hide_tokens
from trio_nova.urls import Url

StreamFactory = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens a byte stream to (host, port). TLS, where the URL asks for it, is laid over what it returns.

A stream that has a method `send_some_nowait(data: bytes) -> int` is written to by it where nothing waits: it takes as
much as it can without waiting, and returns how many bytes; 0 where `send_all` would wait, or raise.
"""


class Resolver(Protocol):
    """Looks up a host name."""

    async def resolve(self, host: str) -> Sequence[str]:
        """Return the IP addresses of `host`, in the order to try them.

        Raises:
            ConnectFailed: with phase "dns", where there is none.
        """
        ...


def _masked(headers: Iterable[tuple[str, str | Secret[str]]]) -> tuple[tuple[str, Secret[str]], ...]:
    return tuple((name, as_secret_text(value)) for name, value in headers)


@attrs.frozen(kw_only=True)
class Dial:
    """All that a transport needs to open one link."""

    url: Url
    epoch: int
    """The number of the link to be opened, from 1."""
    headers: tuple[tuple[str, Secret[str]], ...] = attrs.field(default=(), converter=_masked, repr=False)
    """Sent with the upgrade. Already checked: no CR, LF or NUL, no name that the handshake owns."""
    cookies: tuple[Cookie, ...] = ()
    """Set by redirects of this dial."""
    subprotocols: tuple[str | Secret[str], ...] = attrs.field(default=(), converter=hide_tokens)
    """Offered with the upgrade; a token among them is a `Secret`."""
    ssl_context: ssl.SSLContext | None = None
    """None: the library's default context, which verifies and offers ALPN http/1.1 only."""
    pins: frozenset[str] = frozenset()
    """Keys, one of which the server's certificate must have: as `Config.pins`. Empty: any key will do."""
    proxy: Secret[str] | None = attrs.field(
        default=None, converter=attrs.converters.optional(as_secret_text), repr=False
    )
    """Its URL; or "env": that of the environment. None: no proxy."""
    proxy_ssl_context: ssl.SSLContext | None = None
    """For the TLS of an https:// proxy; None: the library's default context."""
    stream_factory: StreamFactory | None = None
    resolver: Resolver
    compression: Deflate | None = None
    """Offered with the upgrade (permessage-deflate, RFC 7692); None: not offered, and refused."""
    max_redirects: int = 0
    """Redirects of the upgrade that are followed, one after another; 0: each is a rejection."""
    redirect_origins: frozenset[str] = frozenset()
    """Other origins that a redirect may lead to: whatever is sent to this one is then sent there."""
    max_message_size: int
    """Bytes. A frame that announces more, or fragments that add up to more, end the link with 1009."""
    message_timeout: float = math.inf
    """Seconds that one message may keep reading waiting after its first byte; beyond it the link ends with 1008.

    A link looks as bytes arrive: total silence is for the session to notice.
    """
    close_timeout: float
    """Seconds that `Link.aclose` may take."""
    wall_clock: Callable[[], float] = attrs.field(default=time.time, repr=False)
    """Seconds since the epoch of Unix: for the dates of a Retry-After."""
    on_phase: Callable[[Phase], None] = attrs.field(default=lambda phase: None, repr=False)
    """Told each phase as it begins, so that a time-out can say how far the attempt got."""
    on_reveal: Callable[[str, str], None] | None = attrs.field(default=None, repr=False)
    """Told of each secret that bytes are made of: its name or place, and where it goes; never its value."""
    session: str = ""
    """The id of the session, for the names of tasks."""

    @property
    def offered(self) -> tuple[str, ...]:
        """The names of the subprotocols, unmasked."""
        return tuple(name.reveal() if isinstance(name, Secret) else name for name in self.subprotocols)

    def task_name(self, verb: str) -> str:
        """Return the name of a task that works for the link."""
        return f"nova[{self.session}]:{verb}#{self.epoch}"


def refuse_what_lacks(lacks: Mapping[str, str], options: attrs.AttrsInstance) -> None:
    """Raise ConfigError for an option, of a Dial or a session, that is set though the transport `lacks` it."""
    for name, why in lacks.items():
        if getattr(options, name) != getattr(attrs.fields(type(options)), name).default:
            raise ConfigError(name, why)


Sent: TypeAlias = Literal["whole", "begun", "not"]


class Link(Protocol):
    """One WebSocket, open when you get it.

    One task reads, one task writes; `aclose` and `abort` may be called by any task, at any time, more
    than once. A link answers the peer's pings and its close frame by itself.
    """

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose, if any."""
        ...

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        """The headers of the server's 101 response, names in lower case."""
        ...

    @property
    def stalled_since(self) -> float | None:
        """Trio's time when the peer last accepted a byte of the write under way; None when none is under way."""
        ...

    @property
    def transit(self) -> Transit | None:
        """How far what was written has got; None where the operating system does not tell."""
        ...

    @property
    def heard_at(self) -> float:
        """Trio's time when bytes last arrived, also if no frame was made of them yet; -inf before the first."""
        ...

    async def receive_some(self) -> Sequence[Frame]:
        """Wait for what comes next and return it, oldest first.

        Data frames are whole messages: `str` for text, `bytes` for binary. `Ping` and `Pong` are for
        information. An empty sequence is a sign of life: bytes arrived, but no frame is complete yet.
        Cancelling this loses nothing.

        Raises:
            LinkLost: when no frame will come any more; all that came before has been returned.
        """
        ...

    async def send_all(self, frames: Sequence[Frame]) -> None:
        """Hand the frames to the operating system, in order, none torn by another.

        Cancelling this may leave half a frame on the wire: the caller must then abort the link.

        Raises:
            LinkLost: the link is gone; any of the frames may have left.
            BadMessage: a text holds half a surrogate pair, which UTF-8 cannot say; what came before it has left.
        """
        ...

    def send_nowait(self, frame: Frame) -> Sent:
        """Hand one frame to the operating system, if that takes no waiting; return what became of it.

        "whole": it has left. "begun": a part of it has; pass this very frame to `send_all`, before any
        other, and the rest will follow. "not": nothing has.
        """
        ...

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye and wait for the answer, at most `Dial.close_timeout` seconds; then close.

        Needs no other task to read meanwhile. Where a write is stuck the goodbye is skipped. Cancelling
        this aborts the link. Never raises but `trio.Cancelled`.
        """
        ...

    def abort(self) -> None:
        """Close at once, without a goodbye: both directions end with LinkLost."""
        ...


class Transport(Protocol):
    """Opens links. A strategy: `Config.transport`.

    One that lacks what an option asks for may say so in an attribute `lacks`, a mapping from the option's name to the
    reason: `open_connection` then refuses that option at once.

    One that has a method `async prepare(dial: Dial) -> Dial` is asked, before a session waits for its turn to dial, to
    add what can be had without the peer.
    """

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        """Return a block that holds one open link; leaving it aborts a link that is still open.

        Entering it raises ConnectFailed, or one of its kinds, if no link came up. The time limit is
        the caller's cancel scope; cancelling leaves no socket behind.
        """
        ...
