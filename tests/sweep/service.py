"""The service that the swept sessions talk to: it counts, answers, publishes, and keeps a journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from trio_nova.testing import ClosePayload, Peer

__all__ = ["NEWS", "TICKS", "Service"]

TICKS = 4
"""Messages that the service sends on every link, unasked: `{"tick": "1:0"}`, link and number."""
NEWS = 3
"""Messages that it sends to each subscriber: `{"channel": ..., "news": "1:0"}`."""


@attrs.define(eq=False)
class Service:
    """Speaks the plain JSON of the default strategies, and JSON-RPC. It answers a goodbye when it has said its say.

    A question is a message with a `q`, at its top or in its `params`, and the answer repeats it, `after`
    seconds later.
    """

    pause: float
    """Seconds before each read."""
    said: dict[int, list[str]] = attrs.field(factory=dict)
    """By link: ticks that were sent whole."""
    published: dict[int, list[str]] = attrs.field(factory=dict)
    """By link: news that were sent whole."""
    executed: list[tuple[int, str]] = attrs.field(factory=list)
    """Link and `q` of every question."""
    subscribed: dict[int, list[str]] = attrs.field(factory=dict)
    """By link: the channels that are subscribed to."""
    tokens: dict[int, list[str]] = attrs.field(factory=dict)
    """By link: those it was authenticated with."""
    breaches: list[str] = attrs.field(factory=list)
    greets: bool = False
    """Whether it says `{"hello": link}` on each link, before anything else."""

    def greet(self) -> None:
        """Greet on each link from now on."""
        self.greets = True

    async def __call__(self, peer: Peer) -> None:
        number = peer.dialled.number
        self.said[number], self.published[number], self.subscribed[number] = [], [], []
        await peer.accept()
        if self.greets:
            await peer.send_json({"hello": number})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count, peer)
            goodbye = await self._read(peer, nursery)
        await peer.close(goodbye.code, goodbye.reason)

    async def _count(self, peer: Peer) -> None:
        for number in range(TICKS):
            tick = f"{peer.dialled.number}:{number}"
            await peer.send_json({"tick": tick})
            self.said[peer.dialled.number].append(tick)
            await trio.sleep(0.001 if number % 2 else 0.0)

    async def _read(self, peer: Peer, nursery: trio.Nursery) -> ClosePayload:
        while True:
            await trio.sleep(self.pause)
            frame = await peer.receive()
            if isinstance(frame, ClosePayload):
                return frame
            if isinstance(frame, str) and frame[:1] in "{[":
                message = json.loads(frame)
                answers = [self._answer(peer.dialled.number, each) for each in _several(message)]
                said = [answer for answer in answers if answer is not None]
                if said:
                    nursery.start_soon(self._reply, peer, said if isinstance(message, list) else said[0], message)

    def _answer(self, link: int, message: Any) -> Any:
        id = {} if "id" not in message else {"id": message["id"]}
        match message:
            case {"q": q} | {"params": {"q": q}}:
                self.executed.append((link, q))
                return {**id, "type": "response", "result": {"q": q}} if id else None
            case {"type": "auth", "token": token}:
                if link in dict(self.executed) and not self.tokens.get(link):
                    self.breaches.append(f"a question on link {link} before it was authenticated")
                self.tokens.setdefault(link, []).append(token)
                return {**id, "type": "auth_success", "expires_in": 3600}
            case {"type": "subscribe", "channel": channel} | {"method": "eth_subscribe", "params": [channel]}:
                if channel in self.subscribed[link]:
                    self.breaches.append(f"{channel} was asked for twice on link {link}")
                self.subscribed[link].append(channel)
                return {"type": "subscribed", "channel": channel} if not id else {**id, "result": channel}
            case {"type": "unsubscribe", "channel": channel} | {"method": "eth_unsubscribe", "params": [channel]}:
                if channel not in self.subscribed[link]:
                    self.breaches.append(f"{channel} was given up on link {link}, where it was not subscribed to")
                else:
                    self.subscribed[link].remove(channel)
                return {"type": "unsubscribed", "channel": channel} if not id else {**id, "result": True}
            case _:
                return None

    async def _reply(self, peer: Peer, answer: Any, message: Any) -> None:
        if isinstance(message, dict):
            await trio.sleep(message.get("after", 0.0) or _params(message).get("after", 0.0))
        await peer.send_json(answer)
        for number in range(NEWS):
            news = f"{peer.dialled.number}:{number}"
            match message:
                case {"type": "subscribe", "channel": channel}:
                    await peer.send_json({"channel": channel, "news": news})
                case {"method": "eth_subscribe", "params": [channel]}:
                    params = {"subscription": channel, "result": news}
                    await peer.send_json({"jsonrpc": "2.0", "method": "eth_subscription", "params": params})
                case _:
                    return
            self.published[peer.dialled.number].append(news)


def _several(message: Any) -> Sequence[Any]:
    return message if isinstance(message, list) else [message]


def _params(message: dict[str, Any]) -> dict[str, Any]:
    params = message.get("params")
    return params if isinstance(params, dict) else {}
