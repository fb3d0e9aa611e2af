"""The echo service: what is sent comes back. For first steps and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trio_nova.adapter import Adapter
from trio_nova.client import Client
from trio_nova.codecs import RawCodec
from trio_nova.handlers import InOrder

__all__ = ["Echo", "EchoClient"]


class Echo(Adapter):
    """A server that answers every message with the same; `Echo(url="ws://127.0.0.1:8000/")` is one of your own.

    Text stays `str` and binary stays `bytes`; the first answer belongs to the first question.
    """

    host = "echo.websocket.org"

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": RawCodec(), "correlation": InOrder()}


class EchoClient(Client):
    """A client of the echo service."""

    adapter = Echo()

    async def send_message(self, text: str) -> str:
        """Send a text and return it once it has come back; errors are those of `Connection.request`.

        What else the service says, a greeting for one, is received as an ordinary message.
        """
        reply: str = await self.connection.request(text, matches=lambda message: bool(message == text))
        return reply
