"""What a client needs to speak to a broker."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import attrs

from trio_nova.adapter import Adapter, Target
from trio_nova.dialect import Dialect as LinkDialect
from trio_nova.handlers import AuthExchange, ConnectionInfo, Correlation
from trio_nova.handlers.auth import reveal
from trio_nova.readings import AuthOk, Data, Ended, Many, Position, Reading, Refused
from trio_nova.testing.sim._dialects import Dialect
from trio_nova.testing.sim._packets import PacketCodec
from trio_nova.testing.sim._scenario import CANARY, ServerKind

__all__ = ["LAST_ID", "BrokerDialect"]

LAST_ID = 5
"""Ids of questions go from 1 to this, and begin again."""


class _Broker(Adapter):
    """Keeps nothing that is a link's."""

    confirms = False

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": PacketCodec(), "correlation": Correlation(first=1, last=LAST_ID)}

    def open_link(self, info: ConnectionInfo) -> LinkDialect:
        return _Speech(info.position)

    def matches(self, filter: str, channel: Hashable) -> bool:
        theirs = str(channel).split("/")
        ours = filter.split("/")
        return len(ours) == len(theirs) and all(a in ("+", b) for a, b in zip(ours, theirs, strict=True))


@attrs.define(eq=False)
class _Speech(LinkDialect):
    """What is said on one link."""

    position: Any
    """Where we were, as the broker said on the link before."""
    link: str = ""
    """The broker's name for the link."""

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        if exchange.refresh:
            return AuthOk()
        return await exchange.ask({"op": "connect", "token": reveal(credentials), "position": self.position})

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "publish", "pid": pid, "topic": topic, "number": number}:
                return Data(topic, message, id=number, ack={"op": "ack", "pid": pid, "link": self.link})
            case {"op": "connected", "link": link, "position": position}:
                self.link = link
                return Many([AuthOk(), Position(position)])
            case {"op": "refused", "filter": filter, "retry_after": retry_after}:
                return Refused(filter, "busy", retry_after)
            case {"op": "ended", "filter": filter}:
                return Ended(filter)
            case _:
                return None

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "subscribe", "filter": channel}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "unsubscribe", "filter": channel}

    def encode_farewell(self) -> Any:
        return {"op": "disconnect"}


@attrs.define(eq=False)
class BrokerDialect(Dialect):
    """A broker's: filters, acknowledgements after processing, a farewell."""

    kind: ClassVar[ServerKind] = "broker"
    acknowledges: ClassVar[bool] = True

    def target(self) -> Target:
        return _Broker(url=f"ws://{self.host}/")

    def options(self) -> dict[str, Any]:
        return {"credentials": CANARY, "allow_plaintext_credentials": True}

    def question(self, op: str) -> Any:
        return {"op": "execute", "name": op}

    def statement(self, op: str) -> Any:
        return {"op": "tell", "name": op}

    def number(self, channel: str, item: Any) -> int:
        number: int = item["number"]
        return number

    def is_tracked(self, channel: str) -> bool:
        return False
