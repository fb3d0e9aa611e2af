"""A broker: topics and filters, and messages that it delivers again until they are acknowledged."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import msgspec
import trio

from trio_nova.core.ledger import LATEST
from trio_nova.messages import Frame
from trio_nova.testing._venue_link import Asked, VenueLink, Verb
from trio_nova.testing._venue_server import VenueServer
from trio_nova.testing.sim._packets import HEADER, PacketReader, pack
from trio_nova.testing.sim._scenario import CANARY, ServerKind
from trio_nova.testing.sim._servers import ERA_STRIDE, SimServer

__all__ = ["BrokerServer"]

MOST_IN_FLIGHT = 300
"""Messages that a client may have, and not have acknowledged."""
TEXT = 120 * "x"
"""In each message: so that they have some weight where they wait."""
BUNDLE = 4
"""Messages that leave together, where so many wait."""
_VERBS: Mapping[str, Verb] = {"connect": "auth", "subscribe": "subscribe", "unsubscribe": "unsubscribe"}


@attrs.frozen
class _Message:
    filter: str
    topic: str
    number: int
    again: bool = False
    """Whether it was delivered before."""


@attrs.define(eq=False)
class _Subscriber:
    """What the broker remembers of a client, also while its link is gone."""

    id: str
    waiting: dict[str, deque[_Message]] = attrs.field(factory=dict)
    """By filter: what is to be delivered."""
    flight: dict[int, _Message] = attrs.field(factory=dict)
    """By packet id: what was delivered, and is not acknowledged."""
    spent: set[int] = attrs.field(factory=set)
    """Packet ids of messages that the client has given up with their filter, and may acknowledge still."""
    link: VenueLink | None = None
    """The last one."""
    pids: Iterator[int] = attrs.field(factory=lambda: itertools.cycle(range(1, 65_536)))

    def take_back(self) -> None:
        """Let all that is in flight be delivered again, before what waits: the link has gone."""
        for message in reversed(self.flight.values()):
            if message.filter in self.waiting:
                self.waiting[message.filter].appendleft(attrs.evolve(message, again=True))
        self.flight.clear()
        self.spent.clear()

    def allot(self) -> int:
        """Return a packet id that is not in use."""
        return next(pid for pid in self.pids if pid not in self.flight and pid not in self.spent)


@attrs.define(eq=False)
class _Encoder:
    """Makes frames of what is said on one link: those of data end, and begin, in the middle of packets."""

    count: int = 0

    def __call__(self, message: Any) -> Sequence[str | bytes]:
        if isinstance(message, str):
            return (message,)
        if message.get("op") != "bundle":
            return (pack(message),)
        self.count += 1
        packets = b"".join(pack(each) for each in message["messages"])
        cut = (len(packets), 1, HEADER, len(packets) // 2)[self.count % 4]
        return [piece for piece in (packets[:cut], packets[cut:]) if piece]


@attrs.define(eq=False, kw_only=True)
class _BrokerVenue(VenueServer):
    """Speaks JSON in packets; see `PacketReader`.

    ======================================================  ==================================================
    the client                                              the broker
    ======================================================  ==================================================
    `{"op": "connect", "token", "position"}`                `{"op": "connected", "link", "position"}`
    `{"op": "subscribe" | "unsubscribe", "filter"}`         nothing, or
                                                            `{"op": "refused", "filter", "retry_after"}`
                                                            `{"op": "publish", "pid", "topic", "number", "again"}`
    `{"op": "ack", "pid", "link"}`
                                                            `{"op": "ended", "filter"}`
    `{"op": "execute", "id", "name"}`                       `{"op": "executed", "id", "name"}`
    `{"op": "tell", "name"}`
    `{"op": "disconnect"}`                                  else, at the end of the link, a will is published
    ======================================================  ==================================================
    """

    token: str = attrs.field(repr=False)
    note: Callable[..., object]
    """Writes down what happens on a link."""
    executed: list[str] = attrs.field(factory=list, init=False)
    refusing: int = attrs.field(default=0, init=False)
    """How many subscriptions to refuse for now."""
    _subscribers: dict[str, _Subscriber] = attrs.field(factory=dict, init=False)
    _seats: dict[int, _Subscriber] = attrs.field(factory=dict, init=False)
    """By the link's number, once it is known whose it is."""
    _readers: dict[int, PacketReader] = attrs.field(factory=dict, init=False)
    _farewells: set[int] = attrs.field(factory=set, init=False)
    _serial: Iterator[int] = attrs.field(factory=lambda: itertools.count(1), init=False)

    def publish(self, filter: str, number: int) -> None:
        """Tell every client whose filter matches; those that are away are told when they are back."""
        for subscriber in self._subscribers.values():
            if filter in subscriber.waiting:
                subscriber.waiting[filter].append(_Message(filter, f"{filter[:-1]}{number % 3}", number))
        for link in self.live_links:
            self._flush(link)

    def end_stream(self, filter: str) -> None:
        """Say that there is no more to come of a filter, to those who have been told all that there was."""
        for link in self.live_links:
            subscriber = self._seats.get(link.number)
            if subscriber is None or filter not in link.subscriptions or link.muted:
                continue
            self._flush(link)
            if not subscriber.waiting[filter]:
                del subscriber.waiting[filter], link.subscriptions[filter]
                self.note("server.ended", link, channel=filter)
                link.say({"op": "ended", "filter": filter})

    def listeners(self, filter: str) -> list[VenueLink]:
        """Return the last link of each client whose filter matches, be it up or not."""
        found = [each.link for each in self._subscribers.values() if filter in each.waiting]
        return [link for link in found if link is not None]

    def forget(self) -> None:
        """Lose all memory of clients."""
        self._subscribers.clear()
        self._seats.clear()

    def unacked(self, link: VenueLink) -> list[tuple[str, int]]:
        """Return the filter and the number of what was delivered on a link, and is not acknowledged."""
        subscriber = self._seats.get(link.number)
        return [] if subscriber is None else [(each.filter, each.number) for each in subscriber.flight.values()]

    def _flush(self, link: VenueLink) -> None:
        subscriber = self._seats.get(link.number)
        if subscriber is None or link.muted:
            return
        bundle: list[Any] = []
        for filter in link.subscriptions:
            waiting = subscriber.waiting[filter]
            while waiting and len(subscriber.flight) < MOST_IN_FLIGHT:
                message, pid = waiting.popleft(), subscriber.allot()
                subscriber.flight[pid] = message
                if message.again:
                    self.note("server.again", link, channel=filter, number=message.number)
                data = {"op": "publish", "pid": pid, "topic": message.topic, "number": message.number}
                bundle.append({**data, "again": message.again, "text": TEXT})
        for begin in range(0, len(bundle), BUNDLE):
            link.say({"op": "bundle", "messages": bundle[begin : begin + BUNDLE]})

    # ------------------------------------------------------------------- what the client says

    def _encoder(self) -> Callable[[Any], Sequence[str | bytes]]:
        return _Encoder()

    def _hear(self, link: VenueLink, payload: Frame) -> None:
        if not isinstance(payload, bytes):
            self.breach(link, "a packet comes in binary frames")
            return
        for packet in self._readers.setdefault(link.number, PacketReader()).feed(payload):
            super()._hear(link, packet.decode())

    def _take(self, link: VenueLink, payload: Frame) -> None:
        message = msgspec.json.decode(str(payload))
        op, filter = str(message["op"]), str(message.get("filter"))
        named = (filter,) if "subscribe" in op else ()
        link.journal.append(Asked(trio.current_time(), _VERBS.get(op, "other"), message, op, message.get("id"), named))
        subscriber = self._seats.get(link.number)
        match op:
            case "connect":
                self._seat(link, message)
            case "disconnect":
                self._farewells.add(link.number)
            case _ if subscriber is None:
                link.close(4003, "you have not said who you are, or somebody else has")
            case "ack":
                self._acknowledge(link, subscriber, message)
            case "subscribe" if self.refusing:
                self.refusing -= 1
                self.note("server.busy", link, channel=filter, retry_after=3.0)
                link.say({"op": "refused", "filter": filter, "retry_after": 3.0})
            case "subscribe":
                link.subscriptions[filter] = None
                subscriber.waiting.setdefault(filter, deque())
                self._flush(link)
            case "unsubscribe":
                link.subscriptions.pop(filter, None)
                subscriber.waiting.pop(filter, None)
                given_up = [pid for pid, each in subscriber.flight.items() if each.filter == filter]
                subscriber.spent.update(given_up)
                for pid in given_up:
                    del subscriber.flight[pid]
            case "execute":
                self._execute(link, message)
            case _:
                self.executed.append(str(message.get("name")))

    def _seat(self, link: VenueLink, message: Mapping[str, Any]) -> None:
        if message.get("token") != self.token:
            link.close(4004, "who are you?")
            return
        position = str(message.get("position"))
        subscriber = self._subscribers.get(position.partition(".")[0])
        self.note("server.resume", link, channel=position, accepted=subscriber is not None)
        if subscriber is None:
            subscriber = _Subscriber(f"client-{next(self._serial)}")
            self._subscribers[subscriber.id] = subscriber
        else:
            self._seats = {number: each for number, each in self._seats.items() if each is not subscriber}
            subscriber.take_back()
        self._seats[link.number], subscriber.link = subscriber, link
        position = f"{subscriber.id}.{next(self._serial)}"
        self.note("server.position", link, token=position)
        self._answer(link, "connect", {"op": "connected", "link": self._name(link), "position": position})

    def _name(self, link: VenueLink) -> str:
        return f"link-{link.number}"

    def _acknowledge(self, link: VenueLink, subscriber: _Subscriber, message: Mapping[str, Any]) -> None:
        pid = int(message["pid"])
        if message.get("link") != self._name(link):
            self.breach(link, f"what {message.get('link')} had brought was acknowledged on {self._name(link)}")
        elif pid in subscriber.flight:
            acked = subscriber.flight.pop(pid)
            self.note("server.acked", link, channel=acked.filter, number=acked.number)
            self._flush(link)
        elif pid in subscriber.spent:
            subscriber.spent.remove(pid)
        else:
            self.breach(link, f"packet {pid} was acknowledged, and is not in flight")

    def _execute(self, link: VenueLink, message: Mapping[str, Any]) -> None:
        now, id = trio.current_time(), message["id"]
        before = [each.at for each in link.journal[:-1] if each.id == id and each.at > now - LATEST]
        if before and not any(said.at >= before[-1] and _answers(said.message, id) for said in link.said):
            self.breach(
                link, f"the id {id} was used again, {now - before[-1]:.3f} s after a question without an answer"
            )
        self.executed.append(str(message["name"]))
        self._answer(link, "execute", {"op": "executed", "id": id, "name": message["name"]})

    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        return isinstance(message, dict) and message.get("op") == "connected"

    def _lose(self, link: VenueLink) -> None:
        super()._lose(link)
        self._readers.pop(link.number, None)
        subscriber = self._seats.pop(link.number, None)
        if subscriber is not None:
            subscriber.take_back()
            if link.number not in self._farewells:
                self.note("server.will", link)


def _answers(message: Any, id: int) -> bool:
    return isinstance(message, dict) and message.get("id") == id


@attrs.define(eq=False)
class BrokerServer(SimServer):
    """A broker that delivers at least once, to whoever comes back as well."""

    kind: ClassVar[ServerKind] = "broker"
    methods: ClassVar[Mapping[str, str]] = {
        "auth": "connect",
        "subscribe": "subscribe",
        "unsubscribe": "unsubscribe",
        "request": "execute",
    }
    _numbers: dict[str, int] = attrs.field(factory=dict, init=False)

    def make_venue(self) -> VenueServer:
        return _BrokerVenue(token=CANARY, strict=False, note=self._note)

    def _note(self, what: str, link: VenueLink, **fields: Any) -> None:
        self.net.journal.add(what, link=self.net_link(link), **fields)

    @property
    def _broker(self) -> _BrokerVenue:
        assert isinstance(self.venue, _BrokerVenue)
        return self.venue

    def channels(self) -> tuple[str, ...]:
        return tuple(f"rooms/{number}/+" for number in range(self.scenario.channels))

    def emit(self, channel: str, *, told: bool = True) -> None:
        number = self._numbers[channel] = self._numbers.get(channel, 0) + 1
        if not told:
            withheld = [self.net_link(link) for link in self._broker.listeners(channel)]
            self.net.journal.add("server.data", channel=channel, number=number, links=[], withheld=withheld)
        else:
            self.note_data(channel, number, told=told)
            self._broker.publish(channel, number)

    def repeat(self, channel: str) -> None:
        if number := self._numbers.get(channel):
            self.net.journal.add("server.repeat", channel=channel, number=number)
            self._broker.publish(channel, number)

    def message(self, link: VenueLink, channel: str, number: int) -> Any:
        return {"op": "publish", "pid": number, "topic": f"{channel[:-1]}0", "number": number, "again": False}

    def forget(self) -> None:
        self._broker.forget()
        self._numbers = dict.fromkeys(self.channels(), self.restarts * ERA_STRIDE)

    def expire(self) -> None:
        """Do nothing: who is known is known for as long as the link lasts."""

    def refuse_for_now(self, count: int) -> None:
        self._broker.refusing = count

    def calm_down(self) -> None:
        super().calm_down()
        self._broker.refusing = 0

    def end_stream(self, channel: str) -> None:
        self._broker.end_stream(channel)

    def unacked(self) -> dict[str, list[tuple[str, int]]]:
        return {str(self.net_link(link)): self._broker.unacked(link) for link in self.venue.live_links}

    def has_executed(self, asked: Asked, op: str) -> bool:
        return self._broker.executed[-1:] == [op]
