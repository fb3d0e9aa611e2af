"""A server that plays the recording of a real service to whoever subscribes to what was recorded.

A line of a recording is `TIME: MESSAGE` (received), `URL <- TIME: MESSAGE` (sent by the client that was recorded),
`URL <-> TIME` (the link came up), or `URL -> TIME: BODY` (an HTTP answer); times are Unix time in seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

import attrs
import trio

from trio_nova import Adapter
from trio_nova.testing import ClosePayload, Peer

__all__ = ["Line", "Player", "Recording", "Venue"]

_RECEIVED = re.compile(r"(?P<at>\d+(?:\.\d+)?): (?P<text>.*)")
_OTHER = re.compile(r"(?P<url>\S+) (?P<arrow><->|<-|->) (?P<at>\d+(?:\.\d+)?)(?:: (?P<text>.*))?")
_KINDS: Mapping[str | None, Literal["up", "sent", "fetched"]] = {"<->": "up", "<-": "sent", "->": "fetched"}


@attrs.frozen
class Line:
    """One thing that happened."""

    kind: Literal["up", "sent", "received", "fetched"]
    at: float
    """Unix time, seconds."""
    text: str = ""
    url: str = ""

    @cached_property
    def message(self) -> Any:
        """What its text says, as JSON; a text that is none stays as it is."""
        try:
            return json.loads(self.text)
        except ValueError:
            return self.text


@attrs.frozen
class Recording:
    """All that was recorded of one link."""

    lines: Sequence[Line]

    @classmethod
    def read(cls, *paths: Path) -> Recording:
        """Read files that were recorded together; raises ValueError where a line is none of a recording."""
        lines = [line for path in paths for line in cls._lines(path)]
        return cls(sorted(lines, key=lambda line: line.at))

    @staticmethod
    def _lines(path: Path) -> Sequence[Line]:
        lines: list[Line] = []
        for number, text in enumerate(path.read_text("utf-8").split("\n"), 1):
            if found := _RECEIVED.fullmatch(text):
                lines.append(Line("received", float(found["at"]), found["text"]))
            elif found := _OTHER.fullmatch(text):
                lines.append(Line(_KINDS[found["arrow"]], float(found["at"]), found["text"] or "", found["url"]))
            elif text.strip():
                raise ValueError(f"{path.name}:{number} is no line of a recording: {text[:80]!r}")
        return lines

    def of(self, kind: str) -> Iterator[Line]:
        """Return the lines of a kind, in their order."""
        return (line for line in self.lines if line.kind == kind)


class Venue(Protocol):
    """What must be known of a service to play it, and to judge what was made of it."""

    def adapter(self, url: str, fetch: Callable[[str], Any]) -> Adapter:
        """Return the adapter that is put to the test; `fetch` asks for a URL by HTTP."""
        ...

    def asks(self, message: Any) -> Sequence[str]:
        """Return the channels that a client's message asks for."""
        ...

    def gives_up(self, message: Any) -> Sequence[str]:
        """Return the channels that a client's message gives up."""
        ...

    def confirms(self, message: Any) -> Sequence[str]:
        """Return the channels that the service confirms with a message."""
        ...

    def replies(self, message: Any) -> Sequence[Any]:
        """Return what answers a client's message under the id that the client has given it."""
        ...

    def is_reply(self, message: Any) -> bool:
        """Return whether a message bears the id of a client's: the player makes such ones anew."""
        ...

    def data(self, message: Any) -> tuple[str, Any] | None:
        """Return the channel that a message is data of, and what its reader is to get; None where it is no data."""
        ...

    def is_beat(self, message: Any) -> bool:
        """Return whether a message is a sign of life, which nobody receives."""
        ...

    def streams(self, url: str) -> Sequence[str]:
        """Return the channels that the address of a link asks for."""
        ...

    def spoil(self, message: Any) -> Any:
        """Return a message as it is after something has gone wrong with it; None where nobody could tell."""
        ...


@attrs.define(eq=False)
class Player:
    """Plays a recording on each link: its `serve` is a script for `ScriptedServer`.

    Nothing is played before all channels were asked for, in however many messages. What the service sent then comes
    in the order of the recording, confirmations too; where they bear the client's id, each message is answered at once.
    A channel that is asked for anew is confirmed once more.
    """

    venue: Venue
    recording: Recording
    edit: Callable[[int, str], str | None] = lambda number, text: text
    """Returns what is played in place of a received message, of which the first has the number 0; None: nothing."""
    until: int | None = None
    """The number of the received message from which on only confirmations are played; None: all are."""
    is_paced: bool = False
    """Whether messages come as far apart as they did."""
    asked: list[str] = attrs.field(factory=list, init=False)
    """The channels that the client has asked for, in order."""
    given_up: list[str] = attrs.field(factory=list, init=False)
    """The channels that the client has given up, in order."""
    fetched: list[str] = attrs.field(factory=list, init=False)
    """The addresses that were asked for by HTTP, in order."""
    played: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when all has been played."""
    _all_asked: trio.Event = attrs.field(factory=trio.Event, init=False)
    _begun: float | None = attrs.field(default=None, init=False)
    """Trio's clock at Unix time 0; None: nothing has been played."""

    @property
    def channels(self) -> Sequence[str]:
        """The channels that the recorded client asked for, and the service confirmed where it does."""
        asked: dict[str, None] = {}
        for line in self.recording.lines:
            if line.kind == "up":
                asked |= dict.fromkeys(self.venue.streams(line.url))
            elif line.kind == "sent":
                asked |= dict.fromkeys(self.venue.asks(line.message))
        confirmed = {name for line in self.recording.of("received") for name in self.venue.confirms(line.message)}
        return [name for name in asked if name in confirmed] if confirmed else list(asked)

    async def serve(self, peer: Peer) -> None:
        """Play to one client, and stay until it leaves."""
        await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._play, peer)
            while not isinstance(frame := await peer.receive(), ClosePayload):
                if isinstance(frame, str):
                    await self._answer(peer, json.loads(frame) if frame[:1] in "{[" else frame)
            await peer.close(frame.code, frame.reason)
            nursery.cancel_scope.cancel(reason="the client has left")

    async def fetch(self, url: str) -> Any:
        """Answer to HTTP what was answered about the same symbol, the last answer again and again."""
        await trio.lowlevel.checkpoint()
        symbol = _symbol(url)
        answers = [line for line in self.recording.of("fetched") if _symbol(line.url) == symbol]
        if not answers:
            raise LookupError(f"nothing was recorded of {url}")
        answer = answers[min(len([each for each in self.fetched if _symbol(each) == symbol]), len(answers) - 1)]
        self.fetched.append(url)
        if self.is_paced:
            await self._all_asked.wait()
            await trio.sleep_until(self._time_of(answer))
        return answer.message

    def _time_of(self, line: Line) -> float:
        if self._begun is None:
            self._begun = trio.current_time() - self.recording.lines[0].at
        return self._begun + line.at

    async def _answer(self, peer: Peer, message: Any) -> None:
        names = self.venue.asks(message)
        again = [name for name in names if name in self.asked]
        self.asked += names
        self.given_up += self.venue.gives_up(message)
        for reply in self.venue.replies(message):
            await peer.send_json(reply)
        if again and not self.venue.replies(message):
            for line in self.recording.of("received"):
                if set(self.venue.confirms(line.message)) & set(again):
                    await peer.send(line.text)
        if set(self.asked) >= set(self.channels):
            self._all_asked.set()

    async def _play(self, peer: Peer) -> None:
        await self._all_asked.wait()
        for number, line in enumerate(self.recording.of("received")):
            is_late = self.until is not None and number >= self.until and not self.venue.confirms(line.message)
            is_left_out = is_late or self.venue.is_reply(line.message)
            text = None if is_left_out else self.edit(number, line.text)
            if text is not None:
                if self.is_paced:
                    await trio.sleep_until(self._time_of(line))
                await peer.send(text)
        self.played.set()


def _symbol(url: str) -> Sequence[str]:
    return parse_qs(urlsplit(url).query).get("symbol", [])
