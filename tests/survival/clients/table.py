"""Which clients there are, by the name that the results bear."""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from tests.survival.program import Program

OURS = "trio_nova"

CLIENTS: Mapping[str, str] = {
    OURS: "nova",
    "websockets.trio": "websockets_client",
    "trio-websocket": "trio_websocket_client",
}
"""Where the loop of each is: only the process of a client imports its library."""


class Client(Protocol):
    """The module of a client."""

    DISTRIBUTIONS: Sequence[str]
    """Whose versions count: the library, and what it runs on."""

    async def run(self, url: str, tls: ssl.SSLContext | None, program: Program) -> None:
        """Serve the program until cancelled. Anything else that ends it is a death."""


def load(name: str) -> Client:
    """Return the client of that name; raises ImportError where its library is not installed."""
    return cast(Client, importlib.import_module(f"tests.survival.clients.{CLIENTS[name]}"))
