"""The services of a simulation: venues that enforce their rules, told by the seed when something happens.

Each `SimServer` wraps a venue of `trio_nova.testing` and adds what a simulation needs of it: data by the
clock, restarts with and without their memory, and the journal. `_kinds` lists them; what their clients
need is in `_dialects`.
"""

from __future__ import annotations

import abc
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import attrs
import msgspec
import trio

from trio_nova.messages import Frame
from trio_nova.testing._peer import Peer
from trio_nova.testing._venue_link import Asked, VenueLink, Verb
from trio_nova.testing._venue_server import VenueServer, decode_json
from trio_nova.testing.generic_venue import GenericVenue
from trio_nova.testing.sim._net import Host, SimNet, SimStream
from trio_nova.testing.sim._scenario import CANARY, Scenario, ServerKind
from trio_nova.testing.venue import Venue

__all__ = ["ERA_STRIDE", "DeribitServer", "GatewayServer", "JsonServer", "NodeServer", "SimServer", "find_op"]

ERA_STRIDE = 100_000
"""By which a service that has lost its memory begins its numbers elsewhere: nobody can take them for a continuation."""

_OP = re.compile(r"\bop-\d+\b")


def find_op(text: str) -> str:
    """Return the name of the operation that a message of the workload's carries; "" where it carries none."""
    found = _OP.search(text)
    return "" if found is None else found[0]


@attrs.define(eq=False)
class SimServer(abc.ABC):
    """One service of a simulation."""

    kind: ClassVar[ServerKind]
    methods: ClassVar[Mapping[str, str]]
    """What the protocol calls "auth", "subscribe", "unsubscribe" and "request"."""

    name: str
    """Its host name."""
    net: SimNet = attrs.field(repr=False)
    scenario: Scenario
    host: Host = attrs.field(init=False, repr=False)
    venue: VenueServer = attrs.field(init=False, repr=False)
    addresses: list[str] = attrs.field(init=False)
    """All host names that it serves."""
    restarts: int = attrs.field(default=0, init=False)
    """How often it has lost its memory."""
    _net_links: dict[int, int] = attrs.field(factory=dict, init=False, repr=False)
    """The network's number of a link, by that of the dial."""

    def __attrs_post_init__(self) -> None:
        self.host = self.net.listen(self.name, self._take_stream)
        self.addresses = [self.name]
        self.venue = self.make_venue()
        self.venue.on_asked = self._note_asked

    def listen_at(self, name: str) -> None:
        """Serve another host name too."""
        self.net.listen(name, self._take_stream)
        self.addresses.append(name)

    @abc.abstractmethod
    def make_venue(self) -> VenueServer:
        """Return the venue behind this server."""

    @abc.abstractmethod
    def channels(self) -> tuple[str, ...]:
        """Return the channels that there are."""

    @abc.abstractmethod
    def emit(self, channel: str, *, told: bool = True) -> None:
        """Let something happen on a channel, and write it down; tell the subscribers, or keep it from them."""

    @abc.abstractmethod
    def repeat(self, channel: str) -> None:
        """Tell again what a channel said last, if it said anything, and write that down."""

    @abc.abstractmethod
    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        """Return what tells a link that something has happened on a channel, under a number of the caller's."""

    @abc.abstractmethod
    def forget(self) -> None:
        """Lose all memory."""

    @abc.abstractmethod
    def expire(self) -> None:
        """Let every authentication expire now."""

    @abc.abstractmethod
    def has_executed(self, asked: Asked, op: str) -> bool:
        """Return whether what was asked last, an operation of this name, was done, and not refused."""

    def refuse_for_now(self, count: int) -> None:
        """Refuse the next subscriptions, for now; only asked of services that can."""
        raise NotImplementedError

    def end_stream(self, channel: str) -> None:
        """Say that there is no more to come of a channel, to those who hear it; only asked of services that can."""
        raise NotImplementedError

    def calm_down(self) -> None:
        """Take back what misbehaviour was ordered and has not happened yet."""
        self.venue.behave()

    def unacked(self) -> dict[str, list[tuple[str, int]]]:
        """Return channel and number of what was delivered and is not acknowledged, by the network's number of links."""
        return {}

    @property
    def first_number(self) -> int:
        """The number to begin with in its present life: behind those of the last one, and ahead of them, in turn.

        So that they continue nothing, in neither direction. Who asks to go on where it was must not be told that
        there is something: then it is always ahead.
        """
        behind = self.restarts % 2 == 1 and not self.scenario.resumes
        return 1 + ERA_STRIDE * (-self.restarts if behind else self.restarts)

    def breaches(self) -> list[str]:
        """Return how clients broke the service's rules, where they could have kept them."""
        return self.venue.breaches

    def restart(self, *, forget: bool) -> None:
        """Go down, with or without memory; who comes back finds it up again."""
        self.net.journal.add("server.restart", host=self.name, forget=forget)
        self.venue.reset()
        if forget:
            self.restarts += 1
            self.forget()

    async def run(self) -> None:
        """Serve, and let something happen on every channel now and then, until cancelled."""
        async with self.venue, trio.open_nursery() as nursery:
            for number, channel in enumerate(self.channels()):
                nursery.start_soon(self._feed, channel, number)

    async def _feed(self, channel: str, number: int) -> None:
        interval = self.scenario.interval
        await self.net.pause(interval * number / 7)
        while True:
            await self.net.pause(interval)
            self.emit(channel)

    def note_data(self, channel: str, number: int, *, told: bool) -> None:
        """Write down that something happened on a channel, who is told, and from whom it is withheld."""
        subscribed = [link for link in self.venue.live_links if channel in link.subscriptions]
        heard = [self.net_link(link) for link in subscribed if told and not link.muted]
        withheld = [self.net_link(link) for link in subscribed if not told or link.muted]
        self.net.journal.add("server.data", channel=channel, number=number, links=heard, withheld=withheld)

    def granted(self) -> dict[int, list[str]]:
        """Return what is granted on each living link, by its number in the network."""
        return {self.net_link(link): list(link.subscriptions) for link in self.venue.live_links}

    def net_link_of(self, peer: Peer) -> int:
        """Return the network's number of a connection."""
        return self._net_links[peer.dialled.number]

    def net_link(self, link: VenueLink) -> int:
        """Return the network's number of a venue's link."""
        return self.net_link_of(link.peer)

    def _take_stream(self, stream: SimStream, host: str, port: int) -> None:
        dialled = self.venue.server.serve_stream(stream, host, port)
        self._net_links[dialled.number] = stream.link.number

    def _note_asked(self, link: VenueLink, asked: Asked) -> None:
        op = find_op(msgspec.json.encode(asked.message).decode()) if asked.verb in ("other", "junk") else ""
        self.net.journal.add(
            "server.asked",
            link=self.net_link(link),
            verb=asked.verb,
            method=asked.method,
            channels=list(asked.channels),
            op=op,
            done=bool(op) and self.has_executed(asked, op),
        )


# --------------------------------------------------------------------------- plain JSON


@attrs.define(eq=False, kw_only=True)
class _ResumableVenue(GenericVenue):
    """Replays, for who asks for a channel with `{"params": {"since": number}}`, what came after that number."""

    first: int = 1
    """The number that a channel begins with."""
    overlap: int = 0
    """How many messages before `since` are replayed too, as services do that count in batches."""
    on_resume: Callable[[VenueLink, str, bool], object] = lambda link, channel, accepted: None

    def skip(self, channel: str, data: Any = None) -> dict[str, Any]:
        told = self.emitted.setdefault(channel, [])
        message = {"channel": channel, "seq": self.first + len(told), "data": data}
        told.append(message)
        return message

    def _refuse(self, link: VenueLink, asked: Asked, reason: str) -> None:
        super()._refuse(link, asked, reason)
        if reason == "unauthorized":  # an error names no channel: a client could not tell what it answers
            link.close(3000, reason)

    def _subscribe(self, link: VenueLink, asked: Asked) -> None:
        # With the answer first, and before anything new: one replay, whole and in order.
        super()._subscribe(link, asked)
        params = asked.message.get("params")
        since = params.get("since") if isinstance(params, Mapping) else None
        if not isinstance(since, int):
            return
        for channel in asked.channels:
            told = self.emitted.get(channel, [])
            known = self.first <= since < self.first + len(told)
            self.on_resume(link, channel, known)
            for message in told[max(0, since - self.first + 1 - self.overlap) :] if known else ():
                link.say(message)


@attrs.define(eq=False)
class JsonServer(SimServer):
    """A plain JSON service that authenticates, numbers its messages, and can resume."""

    kind: ClassVar[ServerKind] = "json"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "auth",
        "subscribe": "subscribe",
        "unsubscribe": "unsubscribe",
        "request": "request",
    }

    def make_venue(self) -> VenueServer:
        return _ResumableVenue(
            tokens={CANARY},
            expires_in=self.scenario.grant,
            confirmation="together" if self.scenario.batch > 1 else "subscribed",
            overlap=2,
            strict=False,
            on_resume=self._note_resume,
        )

    @property
    def _json(self) -> _ResumableVenue:
        assert isinstance(self.venue, _ResumableVenue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        return tuple(f"ticks.{number}" for number in range(self.scenario.channels))

    def emit(self, channel: str, *, told: bool = True) -> None:
        venue = self._json
        message = venue.publish(channel) if told else venue.skip(channel)
        self.note_data(channel, message["seq"], told=told)

    def repeat(self, channel: str) -> None:
        if self._json.emitted.get(channel):
            self.net.journal.add("server.repeat", channel=channel, number=self._json.repeat(channel)["seq"])

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        return {"channel": channel, "seq": number, "data": None}

    def forget(self) -> None:
        self._json.first = self.first_number
        self._json.emitted.clear()

    def expire(self) -> None:
        self._json.expire_auth()

    def has_executed(self, asked: Asked, op: str) -> bool:
        return bool(self._json.executed) and self._json.executed[-1] is asked.message

    def _note_resume(self, link: VenueLink, channel: str, accepted: bool) -> None:
        self.net.journal.add(
            "server.resume", host=self.name, link=self.net_link(link), channel=channel, accepted=accepted
        )


# --------------------------------------------------------------------------- like Deribit


@attrs.define(eq=False)
class DeribitServer(SimServer):
    """A venue like Deribit: tokens, heartbeats, books and trades, orders."""

    kind: ClassVar[ServerKind] = "deribit"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "public/auth",
        "subscribe": "public/subscribe",
        "unsubscribe": "public/unsubscribe",
        "request": "private/buy",
    }

    def make_venue(self) -> VenueServer:
        return Venue(
            credentials={"client": CANARY},
            token_life=self.scenario.grant or 900.0,
            strict=False,
            wall_clock=trio.current_time,
        )

    @property
    def _deribit(self) -> Venue:
        assert isinstance(self.venue, Venue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        names = (
            "trades.BTC-PERPETUAL.100ms",
            "book.BTC-PERPETUAL.100ms",
            "trades.ETH-PERPETUAL.100ms",
            "book.ETH-PERPETUAL.100ms",
        )
        return names[: self.scenario.channels]

    def emit(self, channel: str, *, told: bool = True) -> None:
        venue = self._deribit
        data = venue.tick(channel) if told else venue.skip(channel)
        self.note_data(channel, _number_of(channel, data), told=told)

    def repeat(self, channel: str) -> None:
        if self._deribit.emitted.get(channel):
            number = _number_of(channel, self._deribit.repeat(channel))
            self.net.journal.add("server.repeat", channel=channel, number=number)

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        data: Any = [{"trade_seq": number}]
        if channel.startswith("book."):
            data = {"type": "snapshot", "change_id": number, "bids": [], "asks": []}
        return {"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}}

    def forget(self) -> None:
        self._deribit.tokens.granted.clear()
        self._deribit.market.begin_anew(self.first_number)

    def expire(self) -> None:
        self._deribit.expire_tokens()

    def has_executed(self, asked: Asked, op: str) -> bool:
        placed = self._deribit.orders.placed
        return bool(placed) and placed[-1].label == op

    def breaches(self) -> list[str]:
        # The network may keep a question of the service's, or its answer, longer than the service waits.
        return [breach for breach in self.venue.breaches if "test_request" not in breach]


def _number_of(channel: str, data: Any) -> int:
    number: int = data["change_id"] if channel.startswith("book.") else data[0]["trade_seq"]
    return number


# --------------------------------------------------------------------------- like an Ethereum node


@attrs.define(eq=False, kw_only=True)
class _NodeVenue(VenueServer):
    """Answers JSON-RPC; each subscription has an id of its own, another one on each link."""

    executed: list[str] = attrs.field(factory=list, init=False)
    """The name of each operation, in order."""
    ids: dict[int, dict[str, str]] = attrs.field(factory=dict, init=False)
    """By the link's number: the channel of each id."""
    _serial: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def publish(self, channel: str, result: Any) -> None:
        """Tell who is subscribed to a channel."""
        for link in self.live_links:
            for id in self.ids_of(link, channel):
                link.say(self.message(id, result))

    def ids_of(self, link: VenueLink, channel: str) -> list[str]:
        """Return the ids that a link's subscriptions to a channel have."""
        return [id for id, name in self.ids.get(link.number, {}).items() if name == channel]

    def message(self, id: str, result: Any) -> dict[str, Any]:
        """Return what tells a subscriber that something has happened."""
        return {"jsonrpc": "2.0", "method": "eth_subscription", "params": {"subscription": id, "result": result}}

    def _take(self, link: VenueLink, payload: Frame) -> None:
        message = decode_json(payload) if isinstance(payload, str) else {}
        method, params, id = message.get("method", ""), message.get("params", []), message.get("id")
        granted = self.ids.setdefault(link.number, {})
        verb: Verb
        channels: tuple[str, ...]
        result: Any
        match method, params:
            case "eth_subscribe", [str(channel), *_]:
                name = f"0x{next(self._serial):x}"
                granted[name] = channel
                link.subscriptions[channel] = None
                verb, channels, result = "subscribe", (channel,), name
            case "eth_unsubscribe", [str(name)]:
                channel = granted.pop(name, "")
                if channel not in granted.values():
                    link.subscriptions.pop(channel, None)
                verb, channels, result = "unsubscribe", (channel,), bool(channel)
            case _:
                self.executed.extend(find_op(each) for each in params if isinstance(each, str))
                verb, channels, result = "other", (), params
        link.journal.append(Asked(trio.current_time(), verb, message, method, id, channels))
        if id is not None:
            self._answer(link, method, {"jsonrpc": "2.0", "id": id, "result": result})

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        return False


@attrs.define(eq=False)
class NodeServer(SimServer):
    """A node like Ethereum's: no authentication, and names for subscriptions that only the answer tells."""

    kind: ClassVar[ServerKind] = "node"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "",
        "subscribe": "eth_subscribe",
        "unsubscribe": "eth_unsubscribe",
        "request": "execute",
    }
    _numbers: dict[str, int] = attrs.field(factory=dict, init=False)

    def make_venue(self) -> VenueServer:
        return _NodeVenue(strict=False)

    @property
    def _node(self) -> _NodeVenue:
        assert isinstance(self.venue, _NodeVenue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        return ("newHeads", "logs", "syncing")[: self.scenario.channels]

    def emit(self, channel: str, *, told: bool = True) -> None:
        number = self._numbers[channel] = self._numbers.get(channel, 0) + 1
        if told:
            self._node.publish(channel, {"number": number})
        self.note_data(channel, number, told=told)

    def repeat(self, channel: str) -> None:
        if number := self._numbers.get(channel):
            self._node.publish(channel, {"number": number})
            self.net.journal.add("server.repeat", channel=channel, number=number)

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        return self._node.message(self._node.ids_of(link, channel)[0], {"number": number})

    def forget(self) -> None:
        self._numbers = dict.fromkeys(self.channels(), self.first_number)

    def expire(self) -> None:
        """Do nothing: nobody is authenticated."""

    def has_executed(self, asked: Asked, op: str) -> bool:
        return self._node.executed[-1] == op


# --------------------------------------------------------------------------- like a chat service's gateway


@attrs.define(eq=False)
class _GatewaySession:
    """What a gateway remembers of a client while its link is gone."""

    id: str
    channels: dict[str, None] = attrs.field(factory=dict)
    events: list[dict[str, Any]] = attrs.field(factory=list)
    """All that the client was told, or would have been."""


@attrs.define(eq=False, kw_only=True)
class _GatewayVenue(VenueServer):
    """Numbers all events of a session, and replays those that a client missed when it resumes.

    ======================================================  ==================================================
    the client                                              the gateway
    ======================================================  ==================================================
    `{"op": "identify", "token"}`                           `{"op": "ready", "session"}`, or `refused`
    `{"op": "resume", "token", "session", "s"}`             the events after `s`, then `{"op": "resumed"}`;
                                                            `{"op": "invalid"}` where the session is forgotten
    `{"op": "subscribe" | "unsubscribe", "channel"}`        `{"op": "subscribed" | "unsubscribed", "channel"}`
    `{"op": "execute", "id", "name"}`                       `{"op": "executed", "id"}`
    `{"op": "heartbeat"}`                                   `{"op": "ack"}`
                                                            `{"op": "event", "s", "channel", "number"}`
    ======================================================  ==================================================
    """

    token: str = attrs.field(repr=False)
    on_resume: Callable[[VenueLink, str, bool], object] = lambda link, session, accepted: None
    executed: list[str] = attrs.field(factory=list, init=False)
    sessions: dict[str, _GatewaySession] = attrs.field(factory=dict, init=False)
    _seats: dict[int, _GatewaySession] = attrs.field(factory=dict, init=False)
    """By the link's number, once it is known whose it is."""
    _serial: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def publish(self, channel: str, number: int, *, again: bool = False) -> None:
        """Tell every session that hears a channel; those that are away are told when they resume."""
        for session in self.sessions.values():
            if channel in session.channels:
                s = len(session.events) if again else len(session.events) + 1
                event = {"op": "event", "s": s, "channel": channel, "number": number}
                if not again:
                    session.events.append(event)
                for link in self.live_links:
                    if self._seats.get(link.number) is session:
                        link.say(event)

    def unseat(self) -> None:
        """Let nobody be known any more, though the sessions are remembered."""
        self._seats.clear()

    def _take(self, link: VenueLink, payload: Frame) -> None:
        message = decode_json(payload) if isinstance(payload, str) else {}
        op, channel = str(message.get("op")), str(message.get("channel"))
        verbs: dict[str, Verb] = {
            "identify": "auth",
            "resume": "auth",
            "subscribe": "subscribe",
            "unsubscribe": "unsubscribe",
        }
        verb = verbs.get(op, "other")
        named = (channel,) if "subscribe" in op else ()
        link.journal.append(Asked(trio.current_time(), verb, message, op, message.get("id"), named))
        session = self._seats.get(link.number)
        match op:
            case "identify" | "resume" if message.get("token") != self.token:
                link.close(4004, "who are you?")
            case "identify":
                session = _GatewaySession(f"session-{next(self._serial)}")
                self.sessions[session.id] = self._seats[link.number] = session
                self._answer(link, "auth", {"op": "ready", "session": session.id})
            case "resume":
                self._resume(link, message)
            case "heartbeat":
                link.say({"op": "ack"})
            case _ if session is None:
                link.close(4003, "you have not said who you are")
            case "subscribe":
                session.channels[channel] = link.subscriptions[channel] = None
                self._answer(link, op, {"op": "subscribed", "channel": channel})
            case "unsubscribe":
                session.channels.pop(channel, None)
                link.subscriptions.pop(channel, None)
                self._answer(link, op, {"op": "unsubscribed", "channel": channel})
            case _:
                self.executed.append(str(message.get("name")))
                if message.get("id") is not None:
                    self._answer(link, op, {"op": "executed", "id": message["id"]})

    def _resume(self, link: VenueLink, message: Mapping[str, Any]) -> None:
        session = self.sessions.get(str(message.get("session")))
        self.on_resume(link, str(message.get("session")), session is not None)
        if session is None:
            self._answer(link, "auth", {"op": "invalid"})
            return
        # What still comes by the link before, which may be held up somewhere, is not heard any more.
        self._seats = {number: each for number, each in self._seats.items() if each is not session}
        self._seats[link.number] = session
        for event in session.events[max(0, int(message.get("s", 0))) :]:
            link.say(event)
        session.channels.clear()  # what it wants to hear from now on, the client says anew
        self._answer(link, "auth", {"op": "resumed"})

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        return isinstance(message, dict) and message.get("op") in ("ready", "resumed")

    def _lose(self, link: VenueLink) -> None:
        super()._lose(link)
        self._seats.pop(link.number, None)


@attrs.define(eq=False)
class GatewayServer(SimServer):
    """A gateway that resumes sessions, and replays what was missed."""

    kind: ClassVar[ServerKind] = "gateway"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "auth",
        "subscribe": "subscribe",
        "unsubscribe": "unsubscribe",
        "request": "execute",
    }
    _numbers: dict[str, int] = attrs.field(factory=dict, init=False)

    def make_venue(self) -> VenueServer:
        return _GatewayVenue(token=CANARY, strict=False, on_resume=self._note_resume)

    @property
    def _gateway(self) -> _GatewayVenue:
        assert isinstance(self.venue, _GatewayVenue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        return tuple(f"room.{number}" for number in range(self.scenario.channels))

    def emit(self, channel: str, *, told: bool = True) -> None:
        number = self._numbers[channel] = self._numbers.get(channel, 0) + 1
        if told:
            self._gateway.publish(channel, number)
        self.note_data(channel, number, told=told)

    def repeat(self, channel: str) -> None:
        if number := self._numbers.get(channel):
            self._gateway.publish(channel, number, again=True)
            self.net.journal.add("server.repeat", channel=channel, number=number)

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        return {"op": "event", "s": number, "channel": channel, "number": number}

    def forget(self) -> None:
        self._gateway.sessions.clear()
        self._numbers = dict.fromkeys(self.channels(), self.restarts * ERA_STRIDE)

    def expire(self) -> None:
        self._gateway.unseat()

    def has_executed(self, asked: Asked, op: str) -> bool:
        executed = self._gateway.executed
        return bool(executed) and executed[-1] == op

    def _note_resume(self, link: VenueLink, session: str, accepted: bool) -> None:
        self.net.journal.add("server.resume", link=self.net_link(link), channel=session, accepted=accepted)
