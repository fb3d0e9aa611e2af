"""Samples of what a service says, and of what it answers, from who knows it; and the service that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from trio_nova.codecs import LinkCodec, MixedCodec
from trio_nova.codecs import encode_json as write_json
from trio_nova.errors import RequestFailed
from trio_nova.messages import Ping, Pong
from trio_nova.readings import Many, as_step
from trio_nova.testing._peer import Peer

__all__ = ["Exchange", "JsonService", "Sample", "Service", "fits", "is_read_as", "parts_of"]


# --------------------------------------------------------------------------- what an author gives


@attrs.frozen
class Sample:
    """A message of the service's, and what it is."""

    message: Any
    """As it is on the wire: a text or bytes are a frame, a tuple is several frames, all else is sent as JSON.

    A service that writes otherwise has a codec of its own: see `AdapterContract.open_service`.
    """
    reading: Any = ...
    """What the adapter shall read in it: a reading, in which `...` stands for anything; or its class alone.

    None: an ordinary message. `...`: anything at all. A message of several readings has a list of them.
    """


@attrs.frozen(init=False)
class Exchange:
    """What the client says, and what the service answers: `Exchange({"op": "join", "room": ...}, answer)`.

    `asked` is compared to what the client says, decoded if it is JSON: of a mapping only the fields that are named,
    `...` stands for anything, and a function says whether a message is meant. None: the service speaks first, as soon
    as a link is up. Of several exchanges the first that fits answers.

    Each answer is a `Sample`, a message without a reading, or a function that makes one of these of what was asked,
    as it has to where an answer repeats an id: `lambda asked: Sample({"id": asked["id"], "result": 5}, Answer)`.
    """

    asked: Any
    answers: tuple[Any, ...]

    def __init__(self, asked: Any, *answers: Any) -> None:
        object.__setattr__(self, "asked", asked)
        object.__setattr__(self, "answers", answers)

    def answer(self, said: Any) -> list[Sample]:
        """Return what the service answers."""
        made = [answer(said) if callable(answer) else answer for answer in self.answers]
        return [each if isinstance(each, Sample) else Sample(each) for each in made]

    @property
    def samples(self) -> list[Sample]:
        """The answers that depend on nothing."""
        return [each for each in self.answers if isinstance(each, Sample)]


# --------------------------------------------------------------------------- comparing


def fits(pattern: Any, value: Any, *, whole: bool = False) -> bool:
    """Return whether a value is as a pattern has it; `whole`: mappings have no fields beside those of the pattern."""
    if pattern is ...:
        return True
    if callable(pattern):
        try:
            return bool(pattern(value))
        except Exception:  # it is made for messages of one kind, and shown those of all kinds
            return False
    match pattern:
        case Mapping():
            return (
                isinstance(value, Mapping)
                and all(name in value and fits(part, value[name], whole=whole) for name, part in pattern.items())
                and not (whole and len(pattern) != len(value))
            )
        case list() | tuple():
            return (
                isinstance(value, list | tuple)
                and len(pattern) == len(value)
                and all(fits(part, each, whole=whole) for part, each in zip(pattern, value, strict=True))
            )
        case _:
            return bool(pattern == value)


def likeness(pattern: Any, value: Any) -> float:
    """Return how much of a pattern fits, from 0 to 1."""
    if not isinstance(pattern, Mapping) or not isinstance(value, Mapping) or not pattern:
        return float(fits(pattern, value))
    return sum(name in value and likeness(part, value[name]) for name, part in pattern.items()) / len(pattern)


def parts_of(reading: Any) -> list[Any]:
    """Return the readings that a message has."""
    if isinstance(reading, Many):
        return [part for each in reading.readings for part in parts_of(each)]
    return list(reading) if isinstance(reading, list | tuple) else [reading]


def is_read_as(expected: Any, reading: Any) -> bool:
    """Return whether a reading is what a sample says."""
    if expected is ... or isinstance(expected, type):
        return expected is ... or isinstance(reading, expected)
    if isinstance(expected, list | tuple | Many) or isinstance(reading, list | tuple | Many):
        wanted, found = parts_of(expected), parts_of(reading)
        return len(wanted) == len(found) and all(map(is_read_as, wanted, found))
    if not isinstance(expected, msgspec.Struct):
        return bool(expected == reading)
    return isinstance(reading, type(expected)) and all(
        _is_field(name, getattr(expected, name), getattr(reading, name)) for name in expected.__struct_fields__
    )


def _is_field(name: str, wanted: Any, found: Any) -> bool:
    if wanted is ...:
        return True
    if name == "step":
        return as_step(wanted) == as_step(found)
    if name == "error":
        wanted, found = (str(each) if isinstance(each, RequestFailed) else each for each in (wanted, found))
    return fits(wanted, found, whole=True)


# --------------------------------------------------------------------------- the service


class JsonService:
    """How most services write and read: JSON in text frames, and else frames as they are."""

    _codec = MixedCodec()

    def encode(self, message: Any) -> Sequence[str | bytes]:
        match message:
            case str() | bytes():
                return [message]
            case tuple():
                return message
            case _:
                return [write_json(message)]

    def decode(self, payload: str | bytes) -> Sequence[Any]:
        return [self._codec.decode(payload)]


@attrs.define(eq=False, slots=False)
class Service:
    """The service that samples make, as a script for any number of dials."""

    samples: Sequence[Sample | Exchange]
    _open: Callable[[], LinkCodec]
    heard: list[Any] = attrs.field(factory=list, init=False)
    """All that the client has said on the link that is up, or was last."""
    said: list[Sample] = attrs.field(factory=list, init=False)
    """All that it was told on it."""
    used: list[Exchange] = attrs.field(factory=list, init=False)
    """The exchanges that took place on it."""
    unanswered: list[Any] = attrs.field(factory=list, init=False)
    """The messages of the client's that fit no exchange."""
    _peer: Peer | None = attrs.field(default=None, init=False)
    _codec: LinkCodec | None = attrs.field(default=None, init=False)

    @property
    def exchanges(self) -> Iterator[Exchange]:
        return (each for each in self.samples if isinstance(each, Exchange))

    async def __call__(self, peer: Peer) -> None:
        """Serve one dial."""
        offered = (await peer.read_request()).headers.get("sec-websocket-protocol", "")
        await peer.accept(subprotocol=offered.partition(",")[0].strip() or None)
        self._peer, self._codec = peer, self._open()
        self.heard, self.said, self.used, self.unanswered = [], [], [], []
        for exchange in self.exchanges:
            if exchange.asked is None:
                await self._answer(exchange, None)
        while isinstance(frame := await peer.receive(), str | bytes | Ping | Pong):
            for said in [] if isinstance(frame, Ping | Pong) else self._codec.decode(frame):
                self.heard.append(said)
                found = (each for each in self.exchanges if each.asked is not None and fits(each.asked, said))
                if (exchange := next(found, None)) is not None:  # type: ignore[assignment]
                    await self._answer(exchange, said)
                else:
                    self.unanswered.append(said)
        await peer.finish()

    async def _answer(self, exchange: Exchange, said: Any) -> None:
        self.used.append(exchange)
        for sample in exchange.answer(said):
            await self.say(sample)

    async def say(self, sample: Sample) -> None:
        """Say something to the client."""
        assert self._peer is not None
        assert self._codec is not None
        self.said.append(sample)
        await self._peer.send(*self._codec.encode(sample.message))

    async def drop(self) -> None:
        """Lose the link."""
        assert self._peer is not None
        await self._peer.drop()

    def meant_by(self, said: Any) -> Exchange | None:
        """Return the exchange that a message is most like, where it has at least half of what that asks for."""
        like = [each for each in self.exchanges if each.asked is not None and likeness(each.asked, said) >= 0.5]
        return max(like, key=lambda each: likeness(each.asked, said), default=None)
