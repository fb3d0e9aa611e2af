"""The life of the connection: before a dial, after the upgrade, after the loss, and every frame."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import attrs

from trio_nova.core import Strategy
from trio_nova.errors import ConfigError, LinkLost
from trio_nova.messages import Answered
from trio_nova.secrets import HeaderMap, Secret, hide_tokens
from trio_nova.urls import Url

__all__ = ["ConnectionHandler", "ConnectionInfo"]


def _url(value: str | Url) -> Url:
    if isinstance(value, str):
        return Url.parse(value, "connection_info")
    if not isinstance(value, Url):
        raise ConfigError("connection_info", f"url must be a Url or its text, not a {type(value).__name__}")
    return value


def _header_map(value: Mapping[str, str]) -> HeaderMap:
    if isinstance(value, HeaderMap):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError("connection_info", f"headers must be a mapping, not a {type(value).__name__}")
    return HeaderMap(value)


@attrs.frozen(kw_only=True)
class ConnectionInfo:
    """What is to be dialled, or, once a link is up, what was."""

    url: Url = attrs.field(converter=_url)
    """May be given as text. Its `with_query` adds a token, its `full` shows all."""
    headers: HeaderMap = attrs.field(factory=lambda: HeaderMap({}), converter=_header_map)
    """Masked where they are printed. `info.headers | {"authorization": ...}` replaces one, in any spelling."""
    subprotocols: tuple[str | Secret[str], ...] = attrs.field(default=(), converter=hide_tokens)
    """A token among them is a `Secret`."""
    attempt: int = 0
    """How many attempts in a row have failed before this one."""
    epoch: int = 0
    """The number of the link; of the one to come while it is being dialled."""
    subprotocol: str | Secret[str] | None = None
    """The one that the server chose, as it was offered."""
    response_headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    position: Any = attrs.field(default=None, repr=False)
    """The token of the last `Position` that the service gave: what resumes its session; None: it gave none."""


@attrs.define(eq=False)
class ConnectionHandler(Strategy):
    """The default: go on."""

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo | Awaitable[ConnectionInfo]:
        """Return what to dial; asked before every attempt. `attrs.evolve` changes url, headers and subprotocols.

        May be `async def`, as an address may have to be asked for elsewhere: for at most `Config.connect_timeout`,
        which is for the whole attempt.

        Headers, login, secrets of the query and `Config.credentials` are meant for the origin of `info.url`. To
        dial another one, put others in their place, or vouch for it with `Config.redirect_origins`; what would go
        along unchanged is refused with ConfigError.
        """
        return info

    def handle_connect(self, info: ConnectionInfo) -> Answered:
        """Answer a link that has come up. A reply goes out before anything of the application's."""
        return None

    def setup_requests(self, info: ConnectionInfo) -> Sequence[Any]:
        """Return what to ask of the service on every new link, after authentication and before the subscriptions.

        Each is asked as a request, in order, when the one before is answered. A refusal, or no answer
        within `Config.auth_timeout`, is a failed attempt.
        """
        return ()

    def handle_disconnect(self, lost: LinkLost) -> Answered:
        """Answer the end of a link. A reply waits for the next one; other actions decide what follows.

        Where the link was closed on our side what follows is decided already: then only a reply counts.
        """
        return None

    def handle_frame(self, kind: str, data: str | bytes) -> Answered:
        """Answer any frame: kind is "text", "binary", "ping" or "pong"; data is its payload, whole and undecoded."""
        return None

    def handle_timeout(self, clock: str) -> Answered:
        """Answer a peer that fell silent, before its link is aborted; `clock` is "pong", "write" or "idle"."""
        return None

    def ping(self) -> Answered:
        """Answer a probe that is due. None sends the heartbeat's own; an action is performed in its place."""
        return None

    def status(self) -> Mapping[str, object]:
        """Return what to add to `Connection.health`."""
        return {}
