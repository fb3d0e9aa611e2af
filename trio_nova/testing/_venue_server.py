"""What venues have in common: links and their books, counting, misbehaviour, and what a test may assert."""

from __future__ import annotations

import abc
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import attrs
import trio

from trio_nova.messages import Frame
from trio_nova.testing._memory import MemoryStream
from trio_nova.testing._peer import Dialled, Peer
from trio_nova.testing._rates import Counter, RateLimit, worst_window
from trio_nova.testing._server import Listening, Script, ScriptedServer
from trio_nova.testing._twists import Later, Twist
from trio_nova.testing._upgrade import HeadersLike
from trio_nova.testing._venue_link import Asked, VenueLink, as_json

__all__ = ["VenueServer", "decode_json"]


def decode_json(payload: str | bytes) -> Any:
    """Decode strictly: NaN and the infinities are no JSON (RFC 8259 section 6).

    Raises:
        ValueError: it is no JSON.
    """
    return json.loads(payload, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _ignore(link: VenueLink, asked: Asked) -> None:
    pass


@attrs.define(eq=False, kw_only=True)
class VenueServer(abc.ABC):
    """A service that keeps the books on its clients, and its rules up.

    ::

        async with Venue() as venue:
            stream = await venue.stream_factory("venue.test", 80)

    or, on loopback, `async with venue.listen() as listening`. Whoever leaves the block hears of the
    client's breaches of the rules as an AssertionError, unless `strict` is False. Commands are plain
    methods; what they do shows at the client when it next gets to run.
    """

    limit: RateLimit | None = None
    """How many messages the venue takes; None for any number."""
    strict: bool = True
    """Whether a breach of the rules fails the test when the block is left."""
    max_dials: int = 1_000
    """How many dials are too many: an endless retry would make virtual time run for ever."""
    max_backlog: int = 20_000
    """Messages that may wait for a client that does not read, before its link is dropped."""
    max_buffer: int = 65_536
    """Bytes under way in each direction of a stream in memory."""
    tls: bool = False
    """Whether dials in memory speak TLS."""
    on_asked: Callable[[VenueLink, Asked], object] = _ignore
    """Told every message of the client's, once it is in the books and answered."""

    links: list[VenueLink] = attrs.field(factory=list, init=False)
    """Every link that came up, oldest first."""
    arrivals: list[float] = attrs.field(factory=list, init=False, repr=False)
    """When messages arrived, on whatever link: seconds of Trio's clock."""
    breaches: list[str] = attrs.field(factory=list, init=False)
    """Each rule that a client broke, in a sentence. Empty it where the test broke them on purpose."""
    server: ScriptedServer = attrs.field(init=False, repr=False)
    """What takes the dials."""
    _dial_scripts: deque[Script] = attrs.field(factory=deque, init=False, repr=False)
    _twists: dict[str, deque[Twist]] = attrs.field(factory=dict, init=False, repr=False)
    _lasting_twists: dict[str, Twist] = attrs.field(factory=dict, init=False, repr=False)
    _holding: int = attrs.field(default=0, init=False, repr=False)
    _held: list[tuple[VenueLink, list[Any]]] = attrs.field(factory=list, init=False, repr=False)
    _counters: dict[int, Counter] = attrs.field(factory=dict, init=False, repr=False)
    """By the link's number; 0 is the account."""
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.server = ScriptedServer(
            then=self._serve, tls=self.tls, max_buffer=self.max_buffer, max_dials=self.max_dials
        )

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        suppressed = await self.server.__aexit__(kind, exc, traceback)
        if kind is None and self.strict:
            self.assert_no_breach()
        return suppressed

    async def stream_factory(self, host: str, port: int) -> MemoryStream:
        """Dial the venue in memory, under any name, and return the client's end."""
        return await self.server.stream_factory(host, port)

    @asynccontextmanager
    async def listen(self, *, tls: bool = False, port: int = 0) -> AsyncGenerator[Listening, None]:
        """Listen on 127.0.0.1 for as long as the block lasts."""
        async with self.server.listen(tls=tls, port=port) as listening:
            yield listening
        if self.strict:
            self.assert_no_breach()

    @property
    def dials(self) -> list[Dialled]:
        """Every dial, also those that were refused, oldest first."""
        return self.server.dials

    @property
    def link(self) -> VenueLink:
        """The newest link."""
        assert self.links, "no link has come up yet"
        return self.links[-1]

    @property
    def live_links(self) -> list[VenueLink]:
        """The links that are up, oldest first."""
        return [link for link in self.links if link.live]

    async def wait_link(self, number: int) -> VenueLink:
        """Wait until `number` links have come up, and return the last of these."""
        await self.wait_until(lambda: len(self.links) >= number)
        return self.links[number - 1]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at when a link comes or goes, and after each message."""
        await trio.lowlevel.checkpoint()
        while not condition():
            await self._changed.park()

    # ------------------------------------------------------------------- counting

    def worst_window(self, period: float) -> int:
        """Return the largest number of messages that arrived in any `period` seconds, over all links."""
        return worst_window(self.arrivals, period)

    def breach(self, link: VenueLink, rule: str) -> None:
        """Note that the client broke `rule`."""
        self.breaches.append(f"link {link.number}, at {trio.current_time():.6f}: {rule}")

    # ------------------------------------------------------------------- misbehaviour

    def send(self, message: Any) -> None:
        """Say something unasked on every live link: a `str` as it is, all else as JSON."""
        for link in self.live_links:
            link.say(message)

    def drop(self) -> None:
        """End every live link without a goodbye."""
        for link in self.live_links:
            link.drop()

    def reset(self) -> None:
        """Break every live link."""
        for link in self.live_links:
            link.reset()

    def close(self, code: int = 1001, reason: str = "") -> None:
        """Say what is due on every live link, then goodbye."""
        for link in self.live_links:
            link.close(code, reason)

    def mute(self) -> None:
        """Execute what comes on the links that are live now, and say nothing on them, not even a pong."""
        for link in self.live_links:
            link.mute()

    def unmute(self) -> None:
        """Speak again; what would have been said meanwhile is lost."""
        for link in self.live_links:
            link.mute(False)

    def play_next(self, script: Script, times: int = 1) -> None:
        """Let `script` serve the next dial, or the next `times`, in place of the venue."""
        self._dial_scripts.extend([script] * times)

    def refuse_dials(self, status: int, times: int = 1, headers: HeadersLike = (), body: bytes = b"") -> None:
        """Answer the next dials with an HTTP status."""
        self.play_next(partial(Peer.reject, status=status, headers=headers, body=body), times)

    def twist(self, method: str, twist: Twist, times: int | None = 1) -> None:
        """Do something else than answering the next request for `method`, or the next `times`; None for all.

        Requests are executed in any case. Twists for a method wait in line; a lasting one comes after them.
        """
        if times is None:
            self._lasting_twists[method] = twist
        else:
            self._twists.setdefault(method, deque()).extend([twist] * times)

    def hold_answers(self, count: int) -> None:
        """Keep the next `count` answers back, then send them, the newest first."""
        self._holding = count

    def behave(self) -> None:
        """Speak again, and take back what misbehaviour was ordered and has not happened yet."""
        self.unmute()
        self._holding = 0
        self._twists.clear()
        self._lasting_twists.clear()
        self._dial_scripts.clear()

    # ------------------------------------------------------------------- what a test may assert

    def subscribed(self, link: VenueLink | None = None) -> list[str]:
        """Return what is granted on `link`, by default the newest, in the order of granting."""
        return list((link or self.link).subscriptions)

    def assert_no_breach(self) -> None:
        """Assert that no client broke a rule."""
        assert not self.breaches, "the client broke the venue's rules:\n" + "\n".join(self.breaches)

    def assert_ids_unique(self, link: VenueLink | None = None) -> None:
        """Assert that no two requests on `link` had the same id; 1 and "1" are two."""
        seen: set[tuple[type, Any]] = set()
        for asked in (link or self.link).journal:
            if isinstance(asked.id, int | float | str):
                key = type(asked.id), asked.id
                assert key not in seen, f"the id {asked.id!r} was used twice"
                seen.add(key)

    def assert_no_channel_asked_twice(self, link: VenueLink | None = None) -> None:
        """Assert that on `link` no channel was subscribed to again without being given up in between."""
        wanted: set[str] = set()
        for asked in (link or self.link).journal:
            for channel in asked.channels:
                if asked.verb == "subscribe":
                    assert channel not in wanted, f"{channel!r} was asked for twice"
                    wanted.add(channel)
                elif asked.verb == "unsubscribe":
                    wanted.discard(channel)
            if asked.verb == "unsubscribe_all":
                wanted.clear()

    def assert_auth_came_first(self, link: VenueLink | None = None) -> None:
        """Assert that nothing private and no subscription was asked for before authentication was confirmed.

        What merely came before the confirmation, in the same instant too, was asked for too early.
        """
        link = link or self.link
        assert any(asked.verb == "auth" for asked in link.journal), "the client never asked to authenticate"
        confirmed = next((said.heard for said in link.said if self._confirms_auth(link, said.message)), None)
        for index, asked in enumerate(link.journal):
            early = confirmed is None or index < confirmed
            hasty = early and asked.verb != "auth" and (asked.private or asked.verb == "subscribe")
            assert not hasty, f"message {index + 1} came before authentication was confirmed: {asked.message!r}"

    # ------------------------------------------------------------------- serving

    async def _serve(self, peer: Peer) -> None:
        if self._dial_scripts:
            await self._dial_scripts.popleft()(peer)
            return
        await peer.accept()
        link = VenueLink(len(self.links) + 1, peer, self.max_backlog, self._encoder())
        self.links.append(link)
        self._changed.unpark_all()
        try:
            await link.run(partial(self._hear, link), partial(self._watch, link))
        finally:
            self._lose(link)
            self._changed.unpark_all()

    def _encoder(self) -> Callable[[Any], Sequence[str | bytes]]:
        """Return what makes the frames of a new link's messages."""
        return as_json

    def _hear(self, link: VenueLink, payload: Frame) -> None:
        self._take(link, payload)
        self.on_asked(link, link.journal[-1])
        self._changed.unpark_all()

    def _admit(self, link: VenueLink) -> bool:
        """Count a message of the client, and return whether it is within the limit."""
        now = trio.current_time()
        self.arrivals.append(now)
        if self.limit is None:
            return True
        number = 0 if self.limit.by == "account" else link.number
        counter = self._counters.get(number)
        if counter is None:
            counter = self._counters[number] = self.limit.rule.counter()
        if counter.admit(now):
            return True
        self.breach(link, f"a message beyond the limit of {self.limit.rule}")
        return False

    def _answer(self, link: VenueLink, method: str, answer: dict[str, Any]) -> None:
        """Say `answer`, or what the test wants in its place."""
        messages = list(self._twisted(method, answer))
        if self._holding == 0:
            _say_all(link, messages)
            return
        self._held.append((link, messages))
        self._holding -= 1
        if self._holding == 0:
            held, self._held = self._held, []
            for held_link, held_messages in reversed(held):
                _say_all(held_link, held_messages)

    def _twisted(self, method: str, answer: dict[str, Any]) -> Iterator[Any]:
        waiting = self._twists.get(method)
        twist = waiting.popleft() if waiting else self._lasting_twists.get(method)
        yield from [answer] if twist is None else twist(answer)

    @abc.abstractmethod
    def _take(self, link: VenueLink, payload: Frame) -> None:
        """Journal, judge and answer a message of the client."""

    @abc.abstractmethod
    def _confirms_auth(self, link: VenueLink, message: Any) -> bool:
        """Return whether `message`, said on `link`, tells the client that it is authenticated."""

    async def _watch(self, link: VenueLink) -> None:
        """Do what the venue does on a link by the clock; by default nothing."""
        await trio.sleep_forever()

    def _lose(self, link: VenueLink) -> None:
        """Forget what lasts as long as its link."""
        self._counters.pop(link.number, None)


def _say_all(link: VenueLink, messages: list[Any]) -> None:
    for message in messages:
        if isinstance(message, Later):
            link.say(message.message, message.seconds)
        else:
            link.say(message)
