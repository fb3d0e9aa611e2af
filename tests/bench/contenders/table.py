"""Which clients there are, by the name that the results bear."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from tests.bench.contenders.base import Contender

CONTENDERS: Mapping[str, str] = {
    "trio_nova": "nova:Nova",
    "trio_nova/trio-websocket": "nova:NovaOverTrioWebsocket",
    "trio-websocket": "trio_websocket:TrioWebsocket",
    "websockets.trio": "websockets_trio:WebsocketsTrio",
    "httpx-ws": "httpx_ws_client:HttpxWs",
    "websockets.asyncio": "websockets_asyncio:WebsocketsAsyncio",
    "websockets.asyncio/uvloop": "websockets_asyncio:WebsocketsUvloop",
    "aiohttp": "aiohttp_client:Aiohttp",
    "picows.websockets": "picows_client:PicowsWebsockets",
    "picows": "picows_client:Picows",
    "raw Trio stream": "raw:RawStream",
}
"""Where the class of each is: only the process of a client imports its library."""


def load(name: str) -> Contender:
    """Return the client of that name; raises ImportError where its library is not installed."""
    module, _, kind = CONTENDERS[name].partition(":")
    made: Contender = getattr(importlib.import_module(f"tests.bench.contenders.{module}"), kind)()
    return made
