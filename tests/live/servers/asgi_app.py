"""An application for any ASGI server; the path says what it does. It is imported by the server, not by the tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any


async def app(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """Serve one WebSocket."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 426, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()  # websocket.connect
    if scope["path"] == "/forbidden":
        await send({"type": "websocket.close"})  # before it was accepted: the server answers 403
        return
    await send({"type": "websocket.accept"})
    if scope["path"] == "/offer":
        offered = [value.decode() for name, value in scope["headers"] if name == b"sec-websocket-extensions"]
        await send({"type": "websocket.send", "text": ", ".join(offered)})
    while (event := await receive())["type"] == "websocket.receive":
        if scope["path"] == "/crash":
            raise RuntimeError("the application crashes")
        text = event.get("text")
        await send({"type": "websocket.send", **({"bytes": event["bytes"]} if text is None else {"text": text})})
