"""A venue that speaks the plain JSON which trio_nova's default strategies speak.

==================================================  ==============================================================
the client                                          the venue
==================================================  ==============================================================
`{"type": "auth", "token" | "api_key" + ...}`       `{"type": "auth_success", "expires_in"}` or `auth_error`
`{"type": "subscribe", "channel", "params"}`        see `Confirmation`, or `{"type": "error", "channel", "reason"}`
`{"type": "subscribe", "channels": [...]}`          the same, for each or together
`{"type": "unsubscribe", "channel" | "channels"}`   `{"type": "unsubscribed", "channel"}`
`{"type": "request", "id", ...}`                    `{"id", "type": "response", "result"}`
`{"type": "ping"}`                                  `{"type": "pong"}`
                                                    `{"channel", "seq", "data"}`
==================================================  ==============================================================

An `id` in a message comes back in every answer to it.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_nova.messages import Frame
from trio_nova.testing._venue_link import Asked, VenueLink, Verb
from trio_nova.testing._venue_server import VenueServer, decode_json

__all__ = ["Confirmation", "GenericVenue"]

Confirmation: TypeAlias = Literal["subscribed", "subscription", "together"]
"""How a subscription is confirmed: by `{"type": "subscribed", "channel"}`, by `{"type": "subscription",
"result": "success", "id"}`, where the id is the request's own or else the channel, and a refusal names it as
`subscription_id`; or, for a batch, by one `{"type": "subscribed", "channels": [...]}` that lists what was granted."""

_VERBS: dict[str, Verb] = {
    "auth": "auth",
    "subscribe": "subscribe",
    "unsubscribe": "unsubscribe",
    "unsubscribe_all": "unsubscribe_all",
    "request": "other",
    "ping": "other",
}


def _names(names: Iterable[str]) -> set[str]:
    return set(names)


def _echo(message: dict[str, Any]) -> Any:
    return {key: value for key, value in message.items() if key not in ("id", "type")}


@attrs.define(eq=False, kw_only=True)
class GenericVenue(VenueServer):
    """A server that speaks a plain JSON protocol; `VenueServer` has what it shares with other venues.

    Where there are credentials nothing but auth and ping is allowed before authentication.
    """

    tokens: set[str] = attrs.field(factory=set, converter=_names, repr=False)
    """The tokens that let a client in."""
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Secrets by api_key; a client signs with one, or sends both as `key` and `secret`."""
    expires_in: float | None = 3600.0
    """Seconds for which authentication is good, as the client is told; None where it is not told."""
    expires_as: Literal["expires_in", "expires_at"] = "expires_in"
    rejected: set[str] = attrs.field(factory=set, converter=_names)
    """Channels that are refused."""
    confirmation: Confirmation = "subscribed"
    max_batch: int = 100
    """Channels that one message may name."""
    respond: Callable[[dict[str, Any]], Any] = _echo
    """What a request results in; by default what it held beside its id and type."""
    wall_clock: Callable[[], float] = time.time
    """Unix time, for `expires_at`."""

    emitted: dict[str, list[Any]] = attrs.field(factory=dict, init=False, repr=False)
    """Every data message of each channel, oldest first, heard or not."""
    executed: list[dict[str, Any]] = attrs.field(factory=list, init=False, repr=False)
    """Every request, in order, from whatever link."""
    _let_in: dict[int, float] = attrs.field(factory=dict, init=False, repr=False)
    """Until when each link is authenticated, by its number."""

    # ------------------------------------------------------------------- data

    def publish(self, channel: str, data: Any = None) -> dict[str, Any]:
        """Tell who is subscribed to a channel, and return the message; its `seq` counts from 1."""
        message = self.skip(channel, data)
        self._notify(message)
        return message

    def skip(self, channel: str, data: Any = None) -> dict[str, Any]:
        """Keep a message from everybody: a gap. Return it."""
        told = self.emitted.setdefault(channel, [])
        message = {"channel": channel, "seq": len(told) + 1, "data": data}
        told.append(message)
        return message

    def repeat(self, channel: str) -> dict[str, Any]:
        """Tell again what a channel said last, and return it."""
        message: dict[str, Any] = self.emitted[channel][-1]
        self._notify(message)
        return message

    def _notify(self, message: dict[str, Any]) -> None:
        for link in self.live_links:
            if message["channel"] in link.subscriptions:
                link.say(message)

    def expire_auth(self) -> None:
        """Let the authentication of every link expire now, whatever the client was told."""
        self._let_in.clear()

    # ------------------------------------------------------------------- requests

    @property
    def _guarded(self) -> bool:
        return bool(self.tokens or self.secrets)

    def _take(self, link: VenueLink, payload: Frame) -> None:
        asked = _read_message(payload, self._guarded)
        link.journal.append(asked)
        if not self._admit(link):
            self._refuse(link, asked, "rate_limited")
            if self.limit is not None and self.limit.closes:
                link.close(1008, "rate_limited")
        elif asked.verb == "junk":
            self.breach(link, f"not a message of this protocol: {asked.message!r}")
            self._refuse(link, asked, "bad message")
        elif asked.private and self._let_in.get(link.number, -math.inf) <= trio.current_time():
            self._refuse(link, asked, "unauthorized")
        else:
            self._execute(link, asked)

    def _execute(self, link: VenueLink, asked: Asked) -> None:
        match asked.method:
            case "auth":
                self._authenticate(link, asked)
            case "subscribe":
                self._subscribe(link, asked)
            case "unsubscribe" | "unsubscribe_all":
                for channel in asked.channels or tuple(link.subscriptions):
                    link.subscriptions.pop(channel, None)
                    self._reply(link, asked, {"type": "unsubscribed", "channel": channel})
            case "request":
                self.executed.append(asked.message)
                self._reply(link, asked, {"type": "response", "result": self.respond(asked.message)})
            case _:
                self._reply(link, asked, {"type": "pong"})

    def _authenticate(self, link: VenueLink, asked: Asked) -> None:
        if not self._knows(asked.message):
            self._reply(link, asked, {"type": "auth_error", "reason": "wrong credentials"})
            return
        lasts = math.inf if self.expires_in is None else self.expires_in
        self._let_in[link.number] = trio.current_time() + lasts
        answer: dict[str, Any] = {"type": "auth_success"}
        if self.expires_in is not None:
            start = self.wall_clock() if self.expires_as == "expires_at" else 0.0
            answer[self.expires_as] = start + self.expires_in
        self._reply(link, asked, answer)

    def _knows(self, message: Mapping[str, Any]) -> bool:
        match message:
            case {"token": token}:
                return token in self.tokens
            case {"api_key": str() as key, "timestamp": timestamp, "signature": str() as signature}:
                secret = self.secrets.get(key, "")
                right = hmac.new(secret.encode(), f"{key}{timestamp}".encode(), hashlib.sha256).hexdigest()
                return key in self.secrets and hmac.compare_digest(signature.encode(), right.encode())
            case {"key": str() as key, "secret": secret}:
                return key in self.secrets and self.secrets[key] == secret
            case _:
                return False

    def _subscribe(self, link: VenueLink, asked: Asked) -> None:
        if not 0 < len(asked.channels) <= self.max_batch:
            self.breach(link, f"a batch of {len(asked.channels)} channels, where 1 to {self.max_batch} are allowed")
            self._refuse(link, asked, f"at most {self.max_batch} channels")
            return
        granted = [channel for channel in asked.channels if channel not in self.rejected]
        link.subscriptions.update(dict.fromkeys(granted))
        if self.confirmation == "together":
            self._reply(link, asked, {"type": "subscribed", "channels": granted})
        for channel in asked.channels:
            if channel in self.rejected:
                self._reply(link, asked, {"type": "error", **self._name(asked, channel), "reason": "not allowed"})
            elif self.confirmation == "subscribed":
                self._reply(link, asked, {"type": "subscribed", "channel": channel})
            elif self.confirmation == "subscription":
                self._reply(link, asked, {"id": channel, "type": "subscription", "result": "success"})

    def _name(self, asked: Asked, channel: str) -> dict[str, Any]:
        if self.confirmation == "subscription":
            return {"subscription_id": channel if asked.id is None else asked.id}
        return {"channel": channel}

    def _refuse(self, link: VenueLink, asked: Asked, reason: str) -> None:
        self._reply(link, asked, {"type": "error", "reason": reason})

    def _reply(self, link: VenueLink, asked: Asked, answer: dict[str, Any]) -> None:
        self._answer(link, asked.method, answer if asked.id is None else {**answer, "id": asked.id})

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        return isinstance(message, dict) and message.get("type") == "auth_success"

    def _lose(self, link: VenueLink) -> None:
        super()._lose(link)
        self._let_in.pop(link.number, None)


def _read_message(payload: Frame, guarded: bool) -> Asked:
    now = trio.current_time()
    message: Any = payload
    if isinstance(payload, str):
        with suppress(ValueError):
            message = decode_json(payload)
    match message:
        case {"type": str() as method} if method in _VERBS:
            one, many = message.get("channel"), message.get("channels")
            named = tuple(many) if isinstance(many, list) else () if one is None else (one,)
            if all(isinstance(name, str) for name in named):
                private = guarded and method not in ("auth", "ping")
                return Asked(now, _VERBS[method], message, method, message.get("id"), named, private)
        case _:
            pass
    return Asked(now, "junk", message)
