"""A service that speaks first: what it says decides how to log in, how long it may be silent, and where data stand."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any

import attrs

import trio_nova as nova


@attrs.define(eq=False, kw_only=True, slots=False)
class Challenging(nova.Adapter):
    """A service of that kind. Credentials are the shared secret."""

    correlated, resumes = True, True
    path: str = "/v1"

    def defaults(self) -> Mapping[str, Any]:
        beats = {
            "heartbeat": nova.MessageHeartbeat({"op": "ping"}, asks=True),
            "ping_interval": 10.0,
            "pong_timeout": 5.0,
        }
        return {"codec": nova.JsonCodec(), **beats}

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        hello = await exchange.receive()
        exchange.set_heartbeat(idle_timeout=float(hello["idle_timeout"]))
        proof = hmac.digest(credentials.reveal().encode(), hello["challenge"].encode(), "sha256").hex()
        return await exchange.ask({"op": "login", "proof": proof})

    def read(self, message: Any) -> nova.Reading | None:
        match message:
            case {"challenge": str()}:
                return nova.Welcome(message)
            case {"authorized": True}:
                return nova.AuthOk(message.get("expires_in"))
            case {"authorized": False}:
                return nova.AuthRefused(str(message.get("reason", "")))
            case {"id": int(id), "ok": bool(ok)}:
                return nova.Answer(message, id, None if ok else str(message.get("reason", "")))
            case {"channel": str(channel), "seq": int(seq), "data": data}:
                return nova.Data(channel, data, seq)
            case _:
                return None

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "subscribe", "channels": [channel], **params}

    def handle_subscription_response(self, message: Any) -> list[nova.Granted | nova.Refused]:
        names = message.get("granted")
        return [nova.Granted(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "unsubscribe", "channels": [channel]}

    def tracker(self, channel: nova.Channel) -> nova.Tracker:
        return nova.Tracker()

    def encode_farewell(self) -> Any:
        return {"op": "bye"}
