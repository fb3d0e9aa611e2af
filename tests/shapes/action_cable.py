"""Action Cable: JSON in JSON, a welcome before all else, and pings that the service sends by itself."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from typing import Any

import attrs

import trio_nova as nova

STALE = 6.0
"""Seconds: the service pings every three."""
REPLY_TO = "reply_to"
"""The field by which an application lets its answer be told from what it broadcasts; the protocol has none."""


def identifier(channel: str, params: Mapping[str, Any]) -> str:
    """Return the text by which both sides call a subscription: it must be the same, letter for letter, each time."""
    return json.dumps({"channel": channel, **params}, sort_keys=True, separators=(",", ":"))


def perform(channel: str, action: str, params: Mapping[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """Return what calls an action of a channel, which must be subscribed to."""
    name = identifier(channel, params or {})
    return {"command": "message", "identifier": name, "data": {"action": action, **data}}


@attrs.define(eq=False, kw_only=True, slots=False)
class ActionCable(nova.Adapter):
    """A cable of an application on Rails. Who we are is said by the URL or the headers; it checks `origin`, too."""

    path: str = "/cable"

    def defaults(self) -> Mapping[str, Any]:
        names = ["actioncable-v1-json", "actioncable-unsupported"]
        return {
            "subprotocols": names,
            "codec": nova.JsonCodec(),
            "heartbeat": nova.NoHeartbeat(),
            "idle_timeout": STALE,
        }

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        said = await exchange.receive()
        if said["type"] != "welcome":
            raise nova.AuthFailed(f"the service turns us away: {said.get('reason')}")
        return nova.AuthOk()

    def read(self, message: Any) -> nova.Reading | None:
        match message:
            case {"type": "ping"}:
                return nova.Beat()
            case {"type": "welcome"} | {"type": "disconnect", "reconnect": False}:
                return nova.Welcome(message)
            case {"type": "disconnect"}:
                return nova.GoAway(reason=str(message.get("reason", "")))
            case {"type": "confirm_subscription", "identifier": str(name)}:
                return nova.Granted(name)
            case {"type": "reject_subscription", "identifier": str(name)}:
                return nova.Refused(name, "the channel rejects it")
            case {"identifier": str(), "message": {"reply_to": int(id)} as said}:
                return nova.Answer(said, id, said.get("error"))
            case {"identifier": str(name), "message": said}:
                return nova.Data(name, said)
            case _:
                return nova.Other(message)

    def handle_platform_message(self, message: Any) -> nova.Answered:
        match message:
            case {"type": "disconnect"}:
                return nova.Stop(nova.AuthFailed(f"the service does not want us back: {message.get('reason')}"))
            case _:
                return None

    def key(self, channel: str, params: Mapping[str, Any]) -> Hashable:
        return identifier(channel, params)

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"command": "subscribe", "identifier": identifier(channel, params)}

    def encode_unsubscription(self, channel: nova.Channel, server_id: Hashable | None) -> Any:
        return {"command": "unsubscribe", "identifier": channel.key}

    def request_id(self, message: Any) -> Hashable | None:
        match message:
            case {"data": {"reply_to": int(id)}}:
                return id
            case _:
                return None

    def tag(self, message: Any, id: Any) -> Any:
        return {**message, "data": {**message["data"], REPLY_TO: id}} if "data" in message else None

    def encode_message(self, message: Any) -> Any:
        match message:
            case {"data": Mapping() as data}:
                return {**message, "data": json.dumps(data)}
            case _:
                return message
