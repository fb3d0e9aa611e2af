"""The echo service: what is sent comes back. For first steps and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import trio

from trio_nova.adapter import Adapter
from trio_nova.client import Client
from trio_nova.codecs import RawCodec
from trio_nova.handlers import AuthExchange, InOrder
from trio_nova.handlers.auth import reveal
from trio_nova.readings import AuthOk

__all__ = ["Echo", "EchoClient"]

PUBLIC = "echo.websocket.org"
GREETS_WITHIN = 2.0
"""Seconds. A service that was silent for so long does not greet any more."""


@attrs.define(eq=False, kw_only=True, slots=False)
class Echo(Adapter):
    """A server that answers every message with the same; `Echo(url="ws://127.0.0.1:8000/")` is one of your own.

    Text stays `str` and binary stays `bytes`; the first answer belongs to the first question.
    """

    host: str = PUBLIC
    greets: bool = attrs.Factory(lambda self: (self.host, reveal(self._address)) == (PUBLIC, None), takes_self=True)
    """Whether the server says something first, as the public one does: that is no answer, and is awaited for 2 s."""

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": RawCodec(), "correlation": InOrder()}

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        if self.greets:
            with trio.move_on_after(GREETS_WITHIN):
                await exchange.receive()
        return AuthOk()


class EchoClient(Client):
    """A client of the echo service."""

    adapter = Echo()

    async def send_message(self, text: str) -> str:
        """Send a text and return it once it has come back; errors are those of `Connection.request`.

        What else the service says is received as an ordinary message.
        """
        reply: str = await self.connection.request(text, matches=lambda message: bool(message == text))
        return reply
