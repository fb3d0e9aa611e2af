"""WAMP: arrays whose places say what they are, and subscriptions by ids that the router gives."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import attrs

import trio_nova as nova
from trio_nova.handlers.auth import reveal_all

HELLO, WELCOME, ABORT, CHALLENGE, AUTHENTICATE, GOODBYE, ERROR = 1, 2, 3, 4, 5, 6, 8
PUBLISH, PUBLISHED, SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, UNSUBSCRIBED, EVENT = 16, 17, 32, 33, 34, 35, 36
CALL, RESULT, REGISTER, REGISTERED, UNREGISTER, UNREGISTERED, INVOCATION, YIELD = 48, 50, 64, 65, 66, 67, 68, 70
ASKS = (PUBLISH, SUBSCRIBE, UNSUBSCRIBE, CALL, REGISTER, UNREGISTER)
ROLES: Mapping[str, Any] = {"publisher": {}, "subscriber": {}, "caller": {}, "callee": {}}


class Payload(NamedTuple):
    """What a call, a result or an event brings."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


def call(procedure: str, *args: Any, **kwargs: Any) -> list[Any]:
    return [CALL, None, {}, procedure, list(args), kwargs]


def publish(topic: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Return what publishes to a topic, and wants to know that it did: for `Connection.request`."""
    return [PUBLISH, None, {"acknowledge": True}, topic, list(args), kwargs]


@attrs.define(eq=False, kw_only=True, slots=False)
class Wamp(nova.Adapter):
    """A realm of a router. Messages are arrays; credentials a mapping with `authid` and `secret`."""

    correlated, unsubscribes_by_id, drops_unclaimed = True, True, True
    realm: str = "realm1"

    def defaults(self) -> Mapping[str, Any]:
        ids = nova.Correlation(first=1, last=2**53)
        return {"subprotocols": ["wamp.2.json"], "codec": nova.JsonCodec(), "correlation": ids}

    def open_link(self, info: nova.ConnectionInfo) -> nova.Dialect:
        return _Session()

    async def authenticate(self, exchange: nova.AuthExchange, credentials: Any) -> nova.AuthOk:
        login, details = reveal_all(credentials) or {}, dict[str, Any](roles=ROLES)
        if login:
            details |= {"authid": login["authid"], "authmethods": ["wampcra", "ticket"]}
        answer = await exchange.request([HELLO, self.realm, details])
        if answer[0] == CHALLENGE:
            await exchange.request([AUTHENTICATE, sign(answer, login["secret"]), {}])
        return nova.AuthOk()

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return [SUBSCRIBE, None, dict(params), channel]

    def handle_subscription_response(self, message: Any) -> list[nova.Granted]:
        match message:
            case [int(kind), _, int(id), *_] if kind == SUBSCRIBED:
                return [nova.Granted(None, id)]
            case _:  # a RESULT under the id of our question, say
                return []

    def encode_unsubscription(self, channel: nova.Channel, server_id: Hashable | None) -> Any:
        return [UNSUBSCRIBE, None, server_id]


def sign(challenge: list[Any], secret: str) -> str:
    """Return what answers a CHALLENGE: the secret itself, or its proof."""
    if challenge[1] == "ticket":
        return secret
    return base64.b64encode(hmac.digest(secret.encode(), challenge[2]["challenge"].encode(), "sha256")).decode()


@attrs.define(eq=False)
class _Session(nova.Dialect):
    """One link: its ids begin with 1, and the second who says goodbye answers the first."""

    _before: int | None = None
    """The last id that the session gave out on another link."""
    _farewell: str = "wamp.close.close_realm"

    def read(self, message: Any) -> nova.Reading | None:
        match message:
            case [int(kind), *_] if kind in (WELCOME, CHALLENGE):
                return nova.Answer(message)
            case [int(kind), _, str(reason)] if kind == ABORT:
                return nova.Answer(message, error=reason)
            case [int(kind), int(id), _, *payload] if kind == RESULT:
                return nova.Answer(Payload(*payload[:2]), id)
            case [int(kind), _, int(id), _, str(reason), *_] if kind == ERROR:
                return nova.Answer(message, id, reason)
            case [int(kind), int(id), *_] if kind in (PUBLISHED, SUBSCRIBED, UNSUBSCRIBED, REGISTERED, UNREGISTERED):
                return nova.Answer(message, id)
            case [int(kind), int(subscription), int(publication), _, *payload] if kind == EVENT:
                return nova.Data(nova.ByServerId(subscription), Payload(*payload[:2]), id=publication)
            case [int(kind), int(id), *_] if kind == INVOCATION:
                return nova.Call(id, message)
            case [int(kind), _, str(reason)] if kind == GOODBYE:
                self._farewell = "wamp.close.goodbye_and_out"
                return nova.GoAway(reason=reason)
            case _:
                return nova.Other(message)

    def request_id(self, message: Any) -> Hashable | None:
        return message[1] if message[0] in ASKS else None

    def tag(self, message: Any, id: Any) -> Any:
        if message[0] not in ASKS:
            return None
        if self._before is None:
            self._before = id - 1
        return [message[0], id - self._before, *message[2:]]

    def encode_farewell(self) -> Any:
        return [GOODBYE, {}, self._farewell]
