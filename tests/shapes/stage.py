"""Where the adapters of this folder meet their services."""

from __future__ import annotations

from typing import Any, TypeVar

from trio_nova import Adapter, ConnectionBlock, Event, ListBackoff, Listener, open_connection
from trio_nova.testing import ScriptedServer

E = TypeVar("E", bound=Event)


def open_on(server: ScriptedServer, adapter: Adapter, **options: Any) -> ConnectionBlock:
    """Open a connection to a scripted server, which dials again at once, and may send credentials."""
    settings: dict[str, Any] = {
        "stream_factory": server.stream_factory,
        "backoff": ListBackoff([0.0]),
        "allow_plaintext_credentials": True,
    }
    return open_connection(adapter, **(settings | options))


async def next_of(events: Listener, kind: type[E]) -> E:
    """Return the next event, which must be of a kind."""
    event = await events.receive()
    assert isinstance(event, kind)
    return event
