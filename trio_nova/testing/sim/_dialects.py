"""What a client needs to speak to each kind of simulated service: a target, options, messages."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from trio_nova.adapter import Target
from trio_nova.adapters.deribit import Deribit, DeribitAuth
from trio_nova.adapters.jsonrpc import JsonRpc, make_request
from trio_nova.codecs import JsonCodec
from trio_nova.core.sequence import Tracker
from trio_nova.errors import AuthFailed
from trio_nova.handlers import (
    AuthExchange,
    AuthHandler,
    Channel,
    ConnectionHandler,
    ConnectionInfo,
    MessageHandler,
    MessageHeartbeat,
    SubscriptionHandler,
)
from trio_nova.handlers.auth import reveal
from trio_nova.handlers.subscription import SubscriptionAnswer
from trio_nova.readings import AuthOk, AuthRefused, Data, Granted, Other, Reading
from trio_nova.testing.sim._scenario import BACKUP, CANARY, Scenario, ServerKind
from trio_nova.testing.sim._servers import SimServer

__all__ = ["DeribitDialect", "Dialect", "GatewayDialect", "JsonDialect", "NodeDialect"]


@attrs.define(eq=False)
class _Alternating(ConnectionHandler):
    """Dials the other address after the first failure in a row, and then in turn."""

    other: str

    def connection_info(self, info: ConnectionInfo) -> ConnectionInfo:
        if info.attempt % 2 == 0:
            return info
        return attrs.evolve(info, url=info.url.full.replace(info.url.host, self.other, 1))


@attrs.define(eq=False)
class Dialect(abc.ABC):
    """How one kind of service is spoken to."""

    kind: ClassVar[ServerKind]
    sends: ClassVar[bool] = True
    """Whether messages may be sent that nobody answers."""
    acknowledges: ClassVar[bool] = False
    """Whether what feeds deliver is acknowledged, once it has been processed."""

    host: str
    scenario: Scenario
    server: SimServer
    """What stands behind the host."""
    note: Callable[..., object]
    """Writes down what the client does."""

    @abc.abstractmethod
    def target(self) -> Target:
        """Return where to connect to."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the options of a session."""

    @abc.abstractmethod
    def question(self, op: str) -> Any:
        """Return a request that carries the name of an operation."""

    def backup_options(self) -> dict[str, Any]:
        """Return the options for a service with another address."""
        return {"connection_handler": lambda: _Alternating(BACKUP), "redirect_origins": [f"ws://{BACKUP}"]}

    def statement(self, op: str) -> Any:
        """Return a message without an answer that carries the name of an operation."""
        return self.question(op)

    @abc.abstractmethod
    def number(self, channel: str, item: Any) -> int:
        """Return the number of what a feed delivered: those of a channel count up by one."""

    def is_snapshot(self, item: Any) -> bool:
        """Return whether what a feed delivered contains all that came before."""
        return False

    def is_tracked(self, channel: str) -> bool:
        """Return whether the client notices what is missing from a channel."""
        return self.scenario.tracked

    def book(self, feed: int, channel: str, item: Any) -> str | None:
        """Return the book of a feed, once what it delivered is in there; None where it has none."""
        return None


class _Numbered(SubscriptionHandler):
    """Watches `seq`."""

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"channel": str(channel), "seq": int(seq)}:
                return Data(channel, message, seq)
            case _:
                return None

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker(window=math.inf)


class _Resuming(_Numbered):
    """Asks to go on after the last message."""

    resumes = True

    def resume(self, channel: Channel, last: Any) -> Mapping[str, Any]:
        return {**channel.params, "since": last["seq"]}


@attrs.define(eq=False)
class JsonDialect(Dialect):
    """The plain JSON that the default strategies speak."""

    kind: ClassVar[ServerKind] = "json"

    def target(self) -> Target:
        return f"ws://{self.host}/stream"

    def options(self) -> dict[str, Any]:
        scenario = self.scenario
        handler = (_Resuming if scenario.resumes else _Numbered) if scenario.tracked else SubscriptionHandler
        return {
            "codec": JsonCodec(),
            "headers": {"X-Api-Key": CANARY},
            "credentials": {"token": CANARY},
            "allow_plaintext_credentials": True,
            "auth_handler": lambda: AuthHandler(refresh_before=5.0, wall_clock=lambda: 0.0),
            "subscription_handler": lambda: handler(max_batch=1 if scenario.resumes else scenario.batch),
        }

    def question(self, op: str) -> Any:
        return {"type": "request", "op": op}

    def number(self, channel: str, item: Any) -> int:
        number: int = item["seq"]
        return number


@attrs.define(eq=False)
class DeribitDialect(Dialect):
    """Deribit's, through its adapter."""

    kind: ClassVar[ServerKind] = "deribit"
    sends: ClassVar[bool] = False

    def target(self) -> Target:
        return Deribit(url=f"ws://{self.host}/ws/api/v2", heartbeat_interval=10)

    def options(self) -> dict[str, Any]:
        return {
            "credentials": {"client_id": "client", "client_secret": CANARY},
            "allow_plaintext_credentials": True,
            "auth_handler": lambda: DeribitAuth(refresh_before=5.0, wall_clock=lambda: 0.0),
        }

    def question(self, op: str) -> Any:
        order = {"instrument_name": "BTC-PERPETUAL", "amount": 10.0, "type": "market", "label": op}
        return make_request("private/buy", order)

    def backup_options(self) -> dict[str, Any]:
        return {}  # the adapter has a handler of its own

    def number(self, channel: str, item: Any) -> int:
        number: int = item["change_id"] if channel.startswith("book.") else item[0]["trade_seq"]
        return number

    def is_snapshot(self, item: Any) -> bool:
        return isinstance(item, Mapping) and item.get("type") == "snapshot"

    def is_tracked(self, channel: str) -> bool:
        return channel.startswith("book.")


@attrs.define(eq=False)
class NodeDialect(Dialect):
    """JSON-RPC 2.0, through its adapter."""

    kind: ClassVar[ServerKind] = "node"

    def target(self) -> Target:
        return JsonRpc(url=f"ws://{self.host}/")

    def options(self) -> dict[str, Any]:
        return {}

    def question(self, op: str) -> Any:
        return make_request("execute", [op])

    def number(self, channel: str, item: Any) -> int:
        number: int = item["number"]
        return number

    def is_tracked(self, channel: str) -> bool:
        return False


@attrs.define(eq=False)
class _GatewayMemory:
    """What a client of a gateway must know to resume: shared by the strategies of one session."""

    session: str = ""
    s: int = 0
    """The number of the last event."""


@attrs.define(eq=False)
class _GatewayAuth(AuthHandler):
    """Resumes where there is something to resume, and else says who we are."""

    memory: _GatewayMemory = attrs.field(kw_only=True)

    async def authenticate(self, exchange: AuthExchange, credentials: Any) -> AuthOk:
        token = reveal(credentials)
        if exchange.refresh:
            return AuthOk()  # a gateway knows us as long as the link lasts
        if self.memory.session:
            resume = {"op": "resume", "token": token, "session": self.memory.session, "s": self.memory.s}
            try:
                return await exchange.ask(resume, self._judge)
            except AuthFailed:
                self.memory.session, self.memory.s = "", 0
        return await exchange.ask({"op": "identify", "token": token}, self._judge)

    def _judge(self, message: Any) -> AuthOk | AuthRefused | None:
        match message:
            case {"op": "ready", "session": str(session)}:
                self.memory.session, self.memory.s = session, 0
                return AuthOk()
            case {"op": "resumed"}:
                return AuthOk()
            case {"op": "invalid"}:
                return AuthRefused("the session is forgotten")
            case _:
                return None


@attrs.define(eq=False)
class _GatewayMessages(MessageHandler):
    """Remembers how far we are, before anything else sees a message."""

    memory: _GatewayMemory = attrs.field(kw_only=True)

    def validate_message(self, message: Any) -> Any:
        match message:
            case {"op": "event", "s": int(s)}:
                self.memory.s = s
            case _:
                pass
        return message


class _GatewayChannels(SubscriptionHandler):
    """Its channels, whose numbers go on across links."""

    resumes = True

    def encode_subscription_request(self, channel: str, params: Mapping[str, Any]) -> Any:
        return {"op": "subscribe", "channel": channel}

    def encode_unsubscription_request(self, channel: str) -> Any:
        return {"op": "unsubscribe", "channel": channel}

    def handle_subscription_response(self, message: Any) -> Sequence[SubscriptionAnswer] | SubscriptionAnswer | None:
        match message:
            case {"op": "subscribed", "channel": str(channel)}:
                return Granted(channel)
            case {"op": "unsubscribed"}:
                return []
            case _:
                return None

    def read(self, message: Any) -> Reading | None:
        match message:
            case {"op": "event", "channel": str(channel), "number": number}:
                return Data(channel, message, number)
            case {"op": "subscribed" | "unsubscribed"}:
                return None
            case _:
                return Other(message)

    def tracker(self, channel: Channel) -> Tracker | None:
        return Tracker(window=math.inf)


@attrs.define(eq=False)
class GatewayDialect(Dialect):
    """A gateway's: who we are, or where we were; heartbeats as messages."""

    kind: ClassVar[ServerKind] = "gateway"

    def target(self) -> Target:
        return f"ws://{self.host}/?v=1"

    def options(self) -> dict[str, Any]:
        memory = _GatewayMemory()
        return {
            "codec": JsonCodec(),
            "credentials": CANARY,
            "allow_plaintext_credentials": True,
            "auth_handler": lambda: _GatewayAuth(memory=memory),
            "message_handler": lambda: _GatewayMessages(memory=memory),
            "subscription_handler": _GatewayChannels,
            "heartbeat": MessageHeartbeat({"op": "heartbeat"}, lambda message: message == {"op": "ack"}),
        }

    def question(self, op: str) -> Any:
        return {"op": "execute", "name": op}

    def number(self, channel: str, item: Any) -> int:
        number: int = item["number"]
        return number

    def is_tracked(self, channel: str) -> bool:
        return True
