"""The invariants of a session, as functions over the journal of a run.

`CHECKS` lists them. Each takes a `History` and yields a `Violation` for every way in which the run broke
it; none looks at anything but the journal, so that a journal kept in a file can be judged as well.

X4, that certificates are verified and nothing talks a client out of it, has no rule here: there is no TLS
in a simulation. It is proven by the tests of TLS, on real handshakes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TypeAlias

import attrs

from trio_nova.core.session import TRANSITIONS
from trio_nova.core.verdict import MAX_RETRY_AFTER, refuses_login
from trio_nova.messages import Ping, Pong
from trio_nova.testing._frames import ClientFrames, ClosePayload, FromClient, ProtocolBreach
from trio_nova.testing._rates import worst_window
from trio_nova.testing.sim._journal import Record
from trio_nova.testing.sim._packets import PacketReader
from trio_nova.testing.sim._scenario import (
    BACKOFF_CAP,
    BUDGET_PERIOD,
    BUDGET_RESERVE,
    CANARY,
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    DETOUR,
    ELSEWHERE,
    ILLEGAL_NUMBER,
    INBOX_BYTES,
    LIMIT_PERIOD,
    MIN_UPTIME,
    PING_INTERVAL,
    PONG_TIMEOUT,
    SETUP_TIMEOUT,
    Scenario,
)

__all__ = ["CHECKS", "Check", "History", "Violation", "check", "invariant"]

_OP = re.compile(r"\bop-\d+\b")

SLACK = 0.05
"""Seconds by which a bound may be missed: the network's own steps take a little."""
LATE = 10.0
"""Seconds after which a message that was said on a perfect network has long been heard."""
LONGEST_RETRY_AFTER = 12.0
RECOVERY = PING_INTERVAL + PONG_TIMEOUT + LONGEST_RETRY_AFTER + BACKOFF_CAP + CONNECT_TIMEOUT + 3 * SETUP_TIMEOUT
"""Seconds that it may take to notice the last fault, to wait, to dial, to authenticate and to restore."""
MOST_DIALS = 25
"""In a minute: the back-off's mean is a third of that."""
MOST_WAITING = 20
"""Messages that may wait to be sent beside those of calls: heartbeats, subscriptions, what answers the service."""
LEAST_CHARGE = 200
"""Bytes that each message which waits in a feed is charged, at least."""
CHARGE_PER_BYTE = 16
"""Bytes that are charged for each byte which is read, at most: services' messages are short, and all brackets."""
LONGEST_CHARGE = 16_384
"""Bytes that one message is charged, at most: the read that completes it need not have brought all of it."""
SETUP_ROOM = 1_048_576
"""Bytes beyond `INBOX_BYTES` that may wait while a link is set up, as is documented."""
MOST_STEPS_EACH = 3
"""Steps that the tasks of sessions may take for each thing that happens to them or that they do."""
LONGEST_SEND = 30.0
"""Seconds that a message may wait on a perfect network: for a limit, after a burst."""
MOST_TEXT = 1_000
"""Characters of what a peer says, or of a line of the log."""
ASK_AGAIN_AFTER = 0.9
"""Seconds after which a subscription that was not granted may be asked for again on the same link."""

_SENDING = {"NotSent", "Expired", "OutcomeUnknown", "SessionOver"}
OUTCOMES = {
    "send": _SENDING,
    "request": _SENDING | {"RequestFailed"},
    "ping": {"NotSent", "LinkLost", "SessionOver"},
    "authenticate": {"AuthFailed", "ConnectFailed", "NotSent", "OutcomeUnknown", "SessionOver"},
    "reconnect": {"SessionOver"},
    "pause": set[str](),
}
"""What each call is documented to raise."""


PASSING = {"HandshakeRejected", "RedirectRefused"}
"""What ends a first connect, but no session that was ready: the service may be about to be deployed."""
FIRST_FAILURES = {"AuthFailed", "ConnectFailed", "ConnectTimeout", "HandshakeInvalid", "HandshakeRejected", "LinkLost"}
"""What may end a session whose first connect is not retried."""


@attrs.frozen
class Violation:
    """One way in which a run broke an invariant."""

    rule: str
    """A key of `CHECKS`."""
    at: float
    """Virtual time, seconds."""
    text: str

    def __str__(self) -> str:
        return f"{self.rule} at {self.at:.3f}: {self.text}"


@attrs.frozen
class Sent:
    """One frame that a client handed to the network."""

    at: float
    """When its last byte was taken."""
    since: float
    """When the write that ended it began."""
    frame: FromClient
    end: int
    """Where it ends in the stream of its link, in bytes."""
    mask: bytes


@attrs.define(eq=False)
class LinkHistory:
    """One connection, as its bytes tell of it."""

    number: int
    owner: str
    """The client and its session that dialled: "1.2"."""
    host: str
    opened: float
    sent: list[Sent] = attrs.field(factory=list)
    """The client's frames, in order."""
    messages: list[Sent] = attrs.field(factory=list)
    """The client's messages, in order: of packets, which need not be frames, the JSON."""
    request: str = ""
    """The head of its upgrade request."""
    breach: tuple[float, str] | None = None
    """When and how the client broke the protocol, if it did."""
    confirmation: int | None = None
    """Where in the stream of the server it says that the client is authenticated; None: nowhere."""
    said: int = 0
    """Bytes that the server has written."""
    taken: int = 0
    """Bytes that the server has read."""
    reads: list[tuple[float, int]] = attrs.field(factory=list)
    """When the client read, and how many bytes in all by then."""
    client_closed: float | None = None
    server_closed: float | None = None
    broken: float | None = None
    """When one end or the other was reset."""

    @property
    def path(self) -> str:
        """What the client asked for; "" where it asked for nothing."""
        return " ".join(self.request.split(" ")[1:2])

    def lives_at(self, at: float) -> bool:
        """Return whether the client holds it open."""
        return self.opened <= at and (self.client_closed is None or self.client_closed > at)

    def when_read(self, end: int) -> float | None:
        """Return when the client had read so many bytes; None: never."""
        return next((at for at, total in self.reads if total >= end), None)


@attrs.define(eq=False)
class FeedHistory:
    """One block of `subscribe`."""

    owner: str
    number: int
    channel: str
    tracked: bool
    """Whether the client can tell what is missing, and what came before."""
    began: float
    confirmed: float = math.inf
    ended: float = math.inf
    completed: float = math.inf
    """When it came to its end in good order, though its session lived and its block was not left."""
    items: list[Record] = attrs.field(factory=list)
    """What was delivered, and the notices between, in order."""

    def is_open_at(self, rest: Record) -> bool:
        """Return whether the block was entered, long since, and not left when its client was asked in the end."""
        return self.owner == _owner(rest) and self.confirmed < rest.at - LATE and self.ended >= rest.at

    def __str__(self) -> str:
        return f"feed {self.number} of {self.channel}"


@attrs.define(eq=False, slots=False)
class History:
    """The records of a run, sorted by what they are about."""

    records: Sequence[Record]
    scenario: Scenario
    by_kind: dict[str, list[Record]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.by_kind = defaultdict(list)
        for record in self.records:
            self.by_kind[record.what].append(record)

    def all(self, what: str) -> list[Record]:
        """Return the records of one kind, oldest first."""
        return self.by_kind.get(what, [])

    @cached_property
    def healed_at(self) -> float:
        """When the last fault was over; the end of the journal where that never came."""
        healed = self.all("run.healed")
        return healed[0].at if healed else self.records[-1].at if self.records else 0.0

    @cached_property
    def links(self) -> dict[int, LinkHistory]:
        """All connections, by their number."""
        links: dict[int, LinkHistory] = {}
        readers: dict[int, _ClientReader] = {}
        said: dict[int, bytearray] = defaultdict(bytearray)
        confirmation = re.compile(_CONFIRMATIONS.get(self.scenario.server, "(?!)").encode())
        for record in self.records:
            match record.what:
                case "net.open":
                    links[record["link"]] = LinkHistory(record["link"], record["owner"], record["host"], record.at)
                    packets = PacketReader() if self.scenario.server == "broker" else None
                    readers[record["link"]] = _ClientReader(links[record["link"]], packets)
                case "net.write" if record["end"] == "client":
                    readers[record["link"]].read(record)
                case "net.write":
                    link, text = links[record["link"]], said[record["link"]]
                    link.said += len(record["data"])
                    if link.confirmation is None:
                        start = max(0, len(text) - _LONGEST_CONFIRMATION)
                        text += record["data"]
                        if found := confirmation.search(text, start):
                            link.confirmation = found.end()
                case "net.read" if record["end"] == "server":
                    links[record["link"]].taken += record["size"]
                case "net.read":
                    reads = links[record["link"]].reads
                    reads.append((record.at, record["size"] + (reads[-1][1] if reads else 0)))
                case "net.close" if record["end"] == "client":
                    links[record["link"]].client_closed = record.at
                case "net.close":
                    links[record["link"]].server_closed = record.at
                case "net.broken" if links[record["link"]].broken is None:
                    links[record["link"]].broken = record.at
                case _:
                    pass
        return links

    @cached_property
    def said(self) -> dict[int, bytearray]:
        """All that servers have written, by link."""
        found: dict[int, bytearray] = defaultdict(bytearray)
        for record in self.all("net.write"):
            if record["end"] == "server":
                found[record["link"]] += record["data"]
        return found

    def heard(self, pattern: bytes) -> Iterator[tuple[LinkHistory, float, re.Match[bytes]]]:
        """Yield what servers said that fits a pattern, with its link, and when the client had read it.

        What came while the client had paused reading it need not have looked at.
        """
        for number, text in self.said.items():
            link = self.links[number]
            for found in re.finditer(pattern, bytes(text)):
                read_at = link.when_read(found.end())
                if read_at is not None and not self.is_held(link.owner, read_at - LATE, read_at):
                    yield link, read_at, found

    def link_of(self, owner: str, at: float) -> LinkHistory | None:
        """Return the link that a session holds open at a time; None where it holds none, or is closing one."""
        living = [link for link in self.links.values() if link.owner == owner and link.lives_at(at)]
        return living[-1] if living else None

    @cached_property
    def feeds(self) -> list[FeedHistory]:
        """All blocks of `subscribe`, oldest first."""
        found: dict[tuple[str, int], FeedHistory] = {}
        for record in self.records:
            if "feed" not in record.fields:
                continue
            key = _owner(record), record["feed"]
            match record.what:
                case "client.subscribe":
                    found[key] = FeedHistory(*key, record["channel"], record["tracked"], record.at)
                case "client.subscribed":
                    found[key].confirmed = record.at
                case "client.unsubscribed":
                    found[key].ended = record.at
                case "client.completed":
                    found[key].completed = record.at
                case _:
                    found[key].items.append(record)
        return list(found.values())

    @cached_property
    def end(self) -> float:
        """When the run was over."""
        return self.records[-1].at if self.records else 0.0

    @cached_property
    def owners(self) -> list[str]:
        """All sessions, as client and number: "1.2"."""
        return [_owner(record) for record in self.all("client.open")]

    @cached_property
    def dials(self) -> dict[str, list[float]]:
        """When each session dialled."""
        found: dict[str, list[float]] = defaultdict(list)
        for record in self.all("net.dial"):
            found[record["owner"]].append(record.at)
        return found

    @cached_property
    def asked_by_link(self) -> dict[int, list[tuple[Record, float]]]:
        """What the service was asked, by link; each with the time at which it was written."""
        found: dict[int, list[tuple[Record, float]]] = defaultdict(list)
        messages = {number: iter([sent.since for sent in link.messages]) for number, link in self.links.items()}
        for record in self.all("server.asked"):
            found[record["link"]].append((record, next(messages[record["link"]], record.at)))
        return found

    def granted_at(self, feed: FeedHistory) -> float:
        """Return when the service was first asked for a channel after a block began."""
        return next(
            (
                record.at
                for link, asked in self.asked_by_link.items()
                if self.links[link].owner == feed.owner
                for record, _ in asked
                if record.at >= feed.began and record["verb"] == "subscribe" and feed.channel in record["channels"]
            ),
            math.inf,
        )

    def has_asked(self, feed: FeedHistory, since: float) -> bool:
        """Return whether the client has written that it wants a channel, before a block was entered."""
        return any(
            since <= sent.since <= feed.confirmed
            and '"subscribe"' in str(sent.frame)
            and feed.channel in str(sent.frame)
            for link in self.links.values()
            if link.owner == feed.owner
            for sent in link.messages
        )

    @cached_property
    def _events(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.all("client.event"):
            found[record["event"]].append(record)
        return found

    def events(self, name: str) -> list[Record]:
        """Return the events of one kind, of all sessions."""
        return self._events.get(name, [])

    @cached_property
    def _held(self) -> dict[str, list[tuple[float, float]]]:
        """When each session did not read, on purpose or because it was full: that ends with the link, too."""
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        begun: dict[tuple[str, str], float] = {}
        for record in self.records:
            match record.what, record.get("call"), record.get("event"):
                case ("client.invoke", "pause", _) | ("client.event", _, "ConsumerLagged"):
                    begun[_owner(record), record.get("op", "")] = record.at
                case ("client.return", "pause", _) | ("client.event", _, "ConsumerCaughtUp"):
                    since = begun.pop((_owner(record), record.get("op", "")), record.at)
                    found[_owner(record)].append((since, record.at))
                case ("client.event", _, "LinkClosed") if (_owner(record), "") in begun:
                    found[_owner(record)].append((begun.pop((_owner(record), "")), record.at))
                case _:
                    pass
        for (owner, _), since in begun.items():
            found[owner].append((since, math.inf))
        return found

    def holds(self, owner: str) -> Sequence[tuple[float, float]]:
        """Return when a session did not read, by its own doing."""
        return self._held.get(owner, ())

    def when_unheld(self, owner: str, at: float) -> float:
        """Return when a session read again that did not at a time, by its own doing; the time itself where it did."""
        for begin, end in self.holds(owner):
            if begin <= at <= end:
                at = end
        return at

    @cached_property
    def _leavings(self) -> dict[str, list[float]]:
        """When each session began to leave a link, or had lost it."""
        found: dict[str, list[float]] = defaultdict(list)
        for record in self.records:
            if record.what == "client.leave" or record.get("new") in ("disconnected", "closing", "failed"):
                found[_owner(record)].append(record.at)
        return found

    def left_at(self, link: LinkHistory) -> float:
        """Return when the session of a link began to leave it; the end of the journal where it never did."""
        return next((at for at in self._leavings.get(link.owner, ()) if at >= link.opened), self.end)

    def is_held(self, owner: str, since: float, until: float) -> bool:
        """Return whether a session did not read, by its own doing, at some time between the two."""
        return any(begin <= until and end >= since for begin, end in self._held.get(owner, ()))

    @cached_property
    def most_calls(self) -> Counter[str]:
        """How many calls each session had under way at most."""
        found, now = Counter[str](), Counter[str]()
        for record in self.records:
            if record.what == "client.invoke":
                owner = _owner(record)
                now[owner] += 1
                found[owner] = max(found[owner], now[owner])
            elif record.what == "client.return":
                now[_owner(record)] -= 1
        return found

    @cached_property
    def ops_written(self) -> dict[str, list[tuple[LinkHistory, Sent]]]:
        """Every message with the name of an operation that a client handed to the network, by that name."""
        found: dict[str, list[tuple[LinkHistory, Sent]]] = defaultdict(list)
        for link in self.links.values():
            for sent in link.messages:
                for op in _OP.findall(str(sent.frame)):
                    found[op].append((link, sent))
        return found

    @cached_property
    def ops_executed(self) -> Counter[str]:
        """How often the service has done each operation."""
        return Counter(record["op"] for record in self.all("server.asked") if record["done"])

    @cached_property
    def ops_refused(self) -> Counter[str]:
        """How often the service has refused each operation: to ask again then does no harm."""
        return Counter(record["op"] for record in self.all("server.asked") if record["op"] and not record["done"])


_CONFIRMATIONS = {
    "json": '"auth_success"',
    "deribit": '"access_token"',
    "gateway": '"op":"(ready|resumed)"',
    "broker": '"op":"connected"',
    "exchange": '"op":"login","ok"',
}
"""How each kind of service says that a client is authenticated."""
_LONGEST_CONFIRMATION = 20
_PROOFS = ('"auth"', '"public/auth"', '"identify"', '"resume"', '"connect"', '"login"')
"""What is in a message that authenticates."""


@attrs.define(eq=False)
class _ClientReader:
    """Reads the frames of one client out of what it wrote."""

    link: LinkHistory
    packets: PacketReader | None = None
    """Where messages are packets: reads them out of the frames."""
    frames: ClientFrames = attrs.field(factory=ClientFrames)
    head: bytearray | None = attrs.field(factory=bytearray)
    """The request, while it is not whole."""
    end: int = 0

    def read(self, record: Record) -> None:
        data: bytes = record["data"]
        if self.head is not None:
            self.head += data
            before, end, rest = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            data = bytes(rest)
            self.end, self.head, self.link.request = len(before) + len(end), None, before.decode("latin-1")
        if self.link.breach is not None:
            return
        try:
            for frame, mask in self.frames.feed(data):
                self.end = self.end + _size(frame)
                sent = Sent(record.at, record["since"], frame, self.end, mask)
                self.link.sent.append(sent)
                self._read_messages(sent)
        except ProtocolBreach as breach:
            self.link.breach = record.at, str(breach)

    def _read_messages(self, sent: Sent) -> None:
        if self.packets is not None and isinstance(sent.frame, bytes):
            packets = self.packets.feed(sent.frame)
            self.link.messages += [attrs.evolve(sent, frame=packet.decode()) for packet in packets]
        elif isinstance(sent.frame, str | bytes):
            self.link.messages.append(sent)


def _owner(record: Record) -> str:
    return f"{record['client']}.{record['session']}"


def _size(frame: FromClient) -> int:
    """Return the bytes of a client's frame, unfragmented."""
    if isinstance(frame, str):
        size = len(frame.encode())
    elif isinstance(frame, bytes):
        size = len(frame)
    elif isinstance(frame, Ping | Pong):
        size = len(frame.payload)
    else:
        size = 0 if frame.code == 1005 else 2 + len(frame.reason.encode())
    return 6 + size + (0 if size < 126 else 2 if size < 65_536 else 8)


Found: TypeAlias = Iterator[tuple[float, str]]
"""Times of violations, and their stories."""

Judge: TypeAlias = Callable[[History], Iterable[Violation]]


@attrs.frozen
class Check:
    """A row of `CHECKS`."""

    rule: str
    promise: str
    """What holds, in a sentence."""
    judge: Judge = attrs.field(repr=False)


CHECKS: dict[str, Check] = {}
"""Every invariant that is checked, by its short name."""


def invariant(rule: str, promise: str) -> Callable[[Callable[[History], Found]], Judge]:
    """Put a check into the table; it yields the time and the story of each violation."""

    def register(judge: Callable[[History], Found]) -> Judge:
        def judged(history: History) -> Iterator[Violation]:
            return (Violation(rule, at, text) for at, text in judge(history))

        CHECKS[rule] = Check(rule, promise, judged)
        return judged

    return register


def check(history: History, rules: Iterable[str] = ()) -> tuple[Violation, ...]:
    """Return what a run broke of `rules`, by default of all."""
    return tuple(violation for rule in (tuple(rules) or CHECKS) for violation in CHECKS[rule].judge(history))


# --------------------------------------------------------------------------- sending


@invariant("S1", "every send has an honest outcome: done is once, not sent is never, unknown is at most once")
def _outcomes(history: History) -> Found:
    for record in history.all("client.return"):
        op, call, outcome = record["op"], record["call"], record["outcome"]
        if not op.startswith("op-"):
            continue
        written, done, refused = len(history.ops_written[op]), history.ops_executed[op], history.ops_refused[op]
        most: float = math.inf if call == "request idempotent" else 1 + refused
        least = 1 if outcome in ("ok", "RequestFailed") else 0
        if outcome in ("NotSent", "Expired", "BadMessage"):
            most = 0
        if not least <= written <= most:
            yield record.at, f"{op} ({call}) ended as {outcome}, and was written {written} times"
        elif done > min(most, written) or (call != "send" and done + refused < least):
            yield record.at, f"{op} ({call}) ended as {outcome}, and was done {done} times"
        elif call == "send" and outcome == "ok" and not done + refused:
            link, sent = history.ops_written[op][-1]
            rest = next((each.at for each in history.all("client.rest") if _owner(each) == link.owner), -math.inf)
            if history.healed_at < sent.at < rest - LATE and link.lives_at(rest):
                yield record.at, f"{op} ({call}) was sent on a perfect network, and was not done"


@invariant("S2", "what the server reads always parses; only the end of a connection may cut it off")
def _parses(history: History) -> Found:
    for link in history.links.values():
        if link.breach is not None:
            yield link.breach[0], f"link {link.number}: {link.breach[1]}"


@invariant("S3", "nothing is sent again, unless it was said to be idempotent")
def _sent_once(history: History) -> Found:
    repeatable = {record["op"] for record in history.all("client.invoke") if record["call"] == "request idempotent"}
    for op, written in history.ops_written.items():
        if len(written) > 1 + history.ops_refused[op] and op not in repeatable:
            yield written[1][1].at, f"{op} was written on links {[link.number for link, _ in written]}"


@invariant("S4", "an answer goes to the question that it answers, where the service says which that is")
def _answers(history: History) -> Found:
    for record in history.all("client.return"):
        answered = record.get("answers", "")
        if answered not in ("", record["op"]):
            yield record.at, f"{record['op']} was given the answer to {answered}"


# --------------------------------------------------------------------------- delivery


@invariant("D1", "nothing is delivered twice, where the client can tell")
def _once(history: History) -> Found:
    repeated = Counter((record["channel"], record["number"]) for record in history.all("server.repeat"))
    for feed in history.feeds:
        seen: Counter[tuple[int, int]] = Counter()
        announced = False
        for record in feed.items:
            if record.what == "client.notice":
                announced |= record["event"] == "Gap"
            elif not record.get("snapshot"):
                number = record["number"]
                place = record.get("epoch", 0), number  # what is not acknowledged, a new link brings again
                seen[place] += 1
                # A number that a new link begins with, and that is known, is announced as a count begun anew.
                known = repeated[feed.channel, number] if announced or not feed.tracked else 0
                if seen[place] > 1 + known:
                    yield record.at, f"{feed}: {number} came {seen[place]} times"
                announced = False


@invariant(
    "D2", "every message of a wanted channel is delivered, or a notice says before the next that some are missing"
)
def _complete(history: History) -> Found:
    withheld = {(r["channel"], r["number"], link) for r in history.all("server.data") for link in r["withheld"]}
    for feed in history.feeds:
        links = [link.number for link in history.links.values() if link.owner == feed.owner]
        # Before the service grants this block's wish, what comes was meant for an earlier block.
        granted = history.granted_at(feed)
        early = {(r["channel"], r["number"]) for r in history.all("server.data") if r.at < granted}
        last: int | None = None
        announced = False
        for record in feed.items:
            if record.what == "client.notice":
                announced |= record["event"] in ("Gap", "Dropped", "Resynced") and record.get("outcome") != "resumed"
                continue
            number = record["number"]
            if last is not None and not announced and number != last + 1 and not record.get("snapshot"):
                missing = range(last + 1, number)
                unknowable = not feed.tracked and all(
                    (feed.channel, each) in early or any((feed.channel, each, link) in withheld for link in links)
                    for each in missing
                )
                if number > last and not unknowable:
                    yield record.at, f"{feed}: {number} came behind {last}, and no notice between them"
            last, announced = number, False


@invariant("D3", "what is delivered of a channel is in order")
def _ordered(history: History) -> Found:
    repeated = {(record["channel"], record["number"]) for record in history.all("server.repeat")}
    for feed in history.feeds:
        last: int | None = None
        announced, epoch = False, 0
        for record in feed.items:
            if record.what == "client.notice":
                announced |= record["event"] in ("Gap", "Resynced")
                continue
            number = record["number"]
            if record.get("epoch", epoch) != epoch:
                epoch, last = record["epoch"], None
            known = not feed.tracked and (feed.channel, number) in repeated
            known |= number == last and bool(record.get("snapshot"))  # the same state once more
            if last is not None and number <= last and not announced and not known:
                yield record.at, f"{feed}: {number} came behind {last}"
            last, announced = number, False


@invariant("D4", "nothing is delivered of an illegal frame, behind one, or of half a message, and its link is given up")
def _illegal(history: History) -> Found:
    for record in history.all("client.data") + history.all("client.unclaimed"):
        if record["number"] == ILLEGAL_NUMBER:
            yield record.at, "what stood in an illegal frame, behind one, or in half a message was delivered"
    judged: set[int] = set()
    for record in history.all("server.illegal"):
        link = history.links[record["link"]]
        if link.number in judged:
            continue  # behind another one: it is not read any more
        judged.add(link.number)
        read_at = link.when_read(record["end"])
        if read_at is None or read_at < record.at:
            continue  # it never arrived, or never left
        if link.broken is not None and link.broken <= read_at + CLOSE_TIMEOUT:
            continue
        if history.is_held(link.owner, read_at - LATE, read_at):
            continue  # nobody has looked at it yet: reading stands still
        closed = math.inf if link.client_closed is None else link.client_closed
        said = [s.frame.code for s in link.sent if isinstance(s.frame, ClosePayload) and s.at >= read_at]
        if said and said[0] != record["code"] and history.left_at(link) > read_at:
            yield read_at, f"link {link.number}: an illegal frame ({record['how']}) was answered with {said[0]}"
        if closed > read_at + CLOSE_TIMEOUT + SLACK and read_at < history.end - CLOSE_TIMEOUT - SLACK:
            yield read_at, f"link {link.number} was not given up after an illegal frame ({record['how']})"


@invariant("D5", "long after the last fault, what is said is heard")
def _heard(history: History) -> Found:
    for rest in history.all("client.rest"):
        said = {r["channel"]: r for r in history.all("server.data") if r.at < rest.at - LATE and r["links"]}
        for feed in history.feeds:
            last = said.get(feed.channel)
            if last is not None and feed.is_open_at(rest) and feed.confirmed <= last.at:
                numbers = {r["number"] for r in feed.items if r.what == "client.data" and r.at <= rest.at}
                if last["number"] not in numbers and not any(r.get("snapshot") for r in feed.items):
                    yield rest.at, f"{feed}: {last['number']} was said, and is not there"


# --------------------------------------------------------------------------- subscriptions


@invariant("U1", "long after the last fault, the service grants what is wanted, on the one living link")
def _granted(history: History) -> Found:
    for rest in history.all("client.rest"):
        owner = f"{rest['client']}.{rest['session']}"
        living = [link for link in history.links.values() if link.owner == owner and link.lives_at(rest.at)]
        if len(living) != 1:
            yield rest.at, f"client {rest['client']} has {len(living)} links"
            continue
        mine = [feed for feed in history.feeds if feed.owner == owner and feed.ended >= rest.at]
        wanted = {feed.channel for feed in mine if feed.is_open_at(rest)}
        granted = set(rest["granted"].get(str(living[0].number), []))
        if not wanted <= granted <= {feed.channel for feed in mine}:  # some were wanted only just now
            wants, grants = sorted(wanted), sorted(granted)
            yield rest.at, f"client {rest['client']} wants {wants}, the service grants {grants}"


@invariant("U2", "on each link a channel is asked for once, and after authentication")
def _asked_once(history: History) -> Found:
    for link, asked in history.asked_by_link.items():
        wanted: dict[str, float] = {}
        confirmation = history.links[link].confirmation
        heard = None if confirmation is None else history.links[link].when_read(confirmation)
        proved = math.inf if heard is None else heard
        for record, at in asked:
            match record["verb"]:
                case "auth":
                    wanted.clear()  # what was refused for want of it is asked for again
                case "subscribe":
                    if at < proved and history.scenario.server != "node":
                        yield at, f"link {link}: {record['channels']} were asked for before it was authenticated"
                    for channel in record["channels"]:
                        if at < wanted.get(channel, -math.inf) + ASK_AGAIN_AFTER:
                            yield at, f"link {link}: {channel} was asked for twice"
                        wanted[channel] = at
                case "unsubscribe":
                    for channel in record["channels"]:
                        wanted.pop(channel, None)
                case _:
                    pass


@invariant("U3", "what is not wanted any more is not asked for on a later link")
def _not_resurrected(history: History) -> Found:
    for number, asked in history.asked_by_link.items():
        link = history.links[number]
        if not link.owner:
            continue
        feeds = [feed for feed in history.feeds if feed.owner == link.owner and feed.ended >= link.opened]
        for record, at in asked:
            for channel in record["channels"] if record["verb"] == "subscribe" else ():
                if not any(feed.channel == channel and feed.began <= at for feed in feeds):
                    yield at, f"link {number}: nobody wants {channel}"


@invariant("U4", "a block of subscribe is entered only after the service was asked, on the link that is up")
def _confirmed(history: History) -> Found:
    opened: dict[str, list[float]] = defaultdict(list)
    for link in history.links.values():
        opened[link.owner].append(link.opened)
    for feed in history.feeds:
        if feed.confirmed == math.inf:
            continue
        up_since = max((at for at in opened[feed.owner] if at <= feed.confirmed), default=math.inf)
        if history.scenario.server == "broker":  # it confirms nothing: to have asked is enough
            if not history.has_asked(feed, up_since):
                yield feed.confirmed, f"{feed} was entered, and the service had not been asked"
        elif not any(
            up_since <= record.at < feed.confirmed
            and record["verb"] == "subscribe"
            and feed.channel in record["channels"]
            for link, asked in history.asked_by_link.items()
            if history.links[link].owner == feed.owner
            for record, _ in asked
        ):
            yield feed.confirmed, f"{feed} was confirmed, and the service had not been asked"


# --------------------------------------------------------------------------- rates


@invariant("R1", "in no window more is sent than the limit allows, over all links of a session")
def _rate(history: History) -> Found:
    if history.scenario.limit is None:
        return
    for owner in history.owners:
        times = sorted(
            sent.since
            for link in history.links.values()
            if link.owner == owner
            for sent in link.sent
            if not isinstance(sent.frame, ClosePayload)
        )
        worst = worst_window(times, LIMIT_PERIOD)
        if worst > history.scenario.limit:
            yield times[0], f"session {owner} sent {worst} messages within {LIMIT_PERIOD:g} s"


@invariant("R2", "dials are paced: not before the back-off, nor before what the service asks for, and never many")
def _pacing(history: History) -> Found:
    if history.scenario.budget is not None:
        started = history.events("DialStarted")
        retries = [record for record in started if record["attempt"] > 2]  # the dial before it failed
        share = max(1, math.floor(history.scenario.budget * (1.0 - BUDGET_RESERVE)))
        for dialled, most, what in ((started, history.scenario.budget, "dials"), (retries, share, "retries")):
            worst = worst_window([record.at for record in dialled], BUDGET_PERIOD)
            if worst > most:
                yield dialled[0].at, f"{worst} {what} began within {BUDGET_PERIOD:g} s, and {most} may"
    for owner, dials in history.dials.items():
        meddled = [r.at for r in history.all("client.invoke") if r["call"] == "reconnect" and _owner(r) == owner]
        worst = worst_window(dials, 60.0)
        if worst > MOST_DIALS + len(meddled):
            yield dials[0], f"session {owner} dialled {worst} times within a minute"
        waits = [
            (r.at, float(r["delay"]), f"the back-off of {r['delay']:g} s")
            for r in history.events("RetryScheduled")
            if _owner(r) == owner
        ]
        for r in history.all("server.refused"):
            link = history.links[r["link"]]
            asked = r["retry_after"] or ""
            is_read = bool(link.reads) and link.reads[-1][1] >= link.said
            if link.owner == owner and is_read and asked.isdigit():
                waits.append((r.at, min(float(asked), MAX_RETRY_AFTER), f"Retry-After: {asked}"))
        for at, seconds, why in waits:
            following = next((dial for dial in dials if dial > at), math.inf)
            if following < at + seconds - SLACK and not any(at - 30.0 <= each <= following for each in meddled):
                yield following, f"session {owner} dialled {following - at:.3f} s after {why} at {at:.3f}"


@invariant(
    "R4", "waits before a dial are spread, so that clients which were dropped together do not come back together"
)
def _spread(history: History) -> Found:
    delays: Counter[float] = Counter()
    for record in history.events("RetryScheduled"):
        delays[record["delay"]] += 1
        if record["delay"] and delays[record["delay"]] == 3:
            yield record.at, f"three waits of {record['delay']:g} s each"


@invariant("R5", "only a session that was ready for long starts its back-off over")
def _forgiveness(history: History) -> Found:
    attempts: dict[str, int] = {}
    ready: dict[str, float] = {}
    longest: dict[str, float] = defaultdict(float)
    for record in history.all("client.event"):
        owner = _owner(record)
        match record["event"]:
            case "Listening" if record["state"] == "ready":
                ready[owner] = -math.inf  # since before we looked
            case "StateChanged" if record["new"] == "ready":
                ready[owner] = record.at
            case "StateChanged" if record["old"] == "ready" and owner in ready:
                longest[owner] = max(longest[owner], record.at - ready.pop(owner))
            case "RetryScheduled":
                attempt, before = record["attempt"], attempts.get(owner, 0)
                starts_over = attempt < before or (attempt == before and record["delay"] > 0.0)
                if starts_over and longest[owner] < MIN_UPTIME - SLACK:
                    yield record.at, f"session {owner} made attempt {attempt} after attempt {before}"
                attempts[owner] = attempt
                if record["delay"] > 0.0:  # else it is a wish of the program's, which leaves what was earned
                    longest[owner] = 0.0
            case _:
                pass


def _is_heartbeat(frame: FromClient) -> bool:
    return isinstance(frame, Ping) or (isinstance(frame, str) and '"heartbeat"' in frame)


def _is_proof(frame: FromClient) -> bool:
    return isinstance(frame, str) and any(proof in frame for proof in _PROOFS)


@invariant("R3", "heartbeats and authentications are not late, whatever waits to be sent")
def _heartbeats(history: History) -> Found:
    for rest in history.all("client.rest"):
        for link in history.links.values():
            if link.owner == _owner(rest) and link.lives_at(rest.at):
                start = max(history.healed_at + 20.0, link.opened)
                pings = [sent.at for sent in link.sent if _is_heartbeat(sent.frame) and sent.at >= start]
                times = [start, *pings, rest.at]
                for before, after in itertools.pairwise(times):
                    late = after - before - PING_INTERVAL - 4 * history.scenario.latency - history.scenario.jitter
                    if late > 1.0 and not history.is_held(link.owner, before, after):
                        yield after, f"link {link.number}: no ping for {after - before:.3f} s"
    for record in history.events("AuthStarted"):
        on = history.link_of(_owner(record), record.at)
        proofs = [sent for sent in on.messages if _is_proof(sent.frame) and sent.at >= record.at] if on else []
        asked = max([record.at, *(at for link, at, _ in history.heard(rb'"op":"welcome"') if link is on)])
        if on and proofs and (first := proofs[0].since) > asked + 1.0:
            ends = {r.at for r in history.events("AuthUnsuccessful") + history.events("Authenticated")}
            is_of_another = any(record.at <= end < first for end in ends)
            is_stalled = any(sent.since < first and sent.at > record.at and sent.at > sent.since for sent in on.sent)
            # What the service says first must be read first.
            is_deaf = history.scenario.server == "exchange" and history.is_held(on.owner, record.at, first)
            if not (is_of_another or is_stalled or is_deaf):
                yield first, f"link {on.number}: the authentication of {record.at:.3f} was written at {first:.3f}"


# --------------------------------------------------------------------------- liveness


@invariant("L1", "a silent peer is given up in time, whatever the senders do")
def _silence(history: History) -> Found:
    writes: dict[int, list[Record]] = defaultdict(list)
    for record in history.all("net.write"):
        if record["end"] == "client":
            writes[record["link"]].append(record)
    for link in history.links.values():
        if not link.owner:
            continue
        end = min(history.left_at(link), link.client_closed if link.client_closed is not None else math.inf)
        held = [(since, until) for since, until in history.holds(link.owner) if since < end and until > link.opened]
        # What is held against nobody is no silence, and at its end the patience begins anew.
        marks = [link.opened, end, *(at for at, _ in link.reads if at < end)]
        marks += [at for hold in held for at in hold if link.opened < at < end]
        for before, after in itertools.pairwise(sorted(marks)):
            # A ping must wait for a write under way, which has a clock of its own.
            asked = before + PING_INTERVAL
            for write in writes[link.number]:
                if write["since"] <= asked < write.at:
                    asked = write.at
            until = asked + PONG_TIMEOUT + SLACK
            if after > until and not any(since <= before and after <= to for since, to in held):
                yield until, f"link {link.number} was silent for {after - before:.3f} s"
    progress: dict[int, float] = {}
    for record in history.all("net.write"):
        if record["end"] == "client" and record["link"] in history.links:
            left = history.left_at(history.links[record["link"]])  # from then on, the goodbye has a clock of its own
            took = min(record.at, left) - max(record["since"], progress.get(record["link"], -math.inf))
            progress[record["link"]] = record.at
            if took > PONG_TIMEOUT + SLACK:
                yield record.at, f"link {record['link']} was not given up, though a write took {took:.3f} s"


@invariant("L2", "after the last fault the session is soon ready again, and stays so")
def _recovery(history: History) -> Found:
    for rest in history.all("client.rest"):
        changes = [r for r in history.events("StateChanged") if _owner(r) == _owner(rest) and r.at <= rest.at]
        became = [r.at for r in changes if r["new"] == "ready"]
        late = (became[-1] if became else 0.0) - history.healed_at
        if rest["state"] != "ready":
            yield rest.at, f"session {_owner(rest)} is {rest['state']} in the end"
        elif late > RECOVERY + (BUDGET_PERIOD if history.scenario.budget is not None else 0.0):
            yield became[-1], f"session {_owner(rest)} was ready for good {late:.3f} s after the last fault"
    if len(history.all("client.rest")) < history.scenario.clients and history.all("client.open"):
        yield history.end, "not every client has a session in the end"


@invariant("L3", "cancellation returns at once, and leaving a session is bounded")
def _cancellation(history: History) -> Found:
    for what in ("client.return", "client.unsubscribed"):
        begun = {
            (r["client"], r.get("op"), r.get("feed")): r
            for r in history.all("client.invoke" if what == "client.return" else "client.subscribe")
        }
        for record in history.all(what):
            asked = begun.get((record["client"], record.get("op"), record.get("feed")))
            until = math.inf if asked is None or asked["until"] is None else asked["until"]
            if asked is not None and record.at > until + 1e-6:
                yield record.at, f"{asked.get('call', 'subscribe')} returned {record.at - until:.3f} s late"
    left = {_owner(record): record.at for record in history.all("client.left")}
    for record in history.all("client.leave"):
        if (took := left.get(_owner(record), history.end) - record.at) > CLOSE_TIMEOUT + SLACK:
            yield record.at, f"session {_owner(record)} took {took:.3f} s to close"


@invariant("L4", "nothing waits without an end, and nothing spins")
def _no_standstill(history: History) -> Found:
    for record in history.all("run.stuck"):
        yield record.at, "the clients had not come to their end when the run was"
    returned = {(_owner(record), record["op"]): record for record in history.all("client.return")}
    rests = {_owner(rest): rest.at for rest in history.all("client.rest")}
    for record in history.all("client.invoke"):
        owner, op, call = _owner(record), record["op"], record["call"]
        back = returned[owner, op].at if (owner, op) in returned else history.end
        written = history.ops_written[op]
        # What has been refused, each time it was written, for want of authentication may wait for the next link.
        if call == "request" and len(written) > history.ops_refused[op]:
            gone = written[-1][0].client_closed
            if gone is not None:  # who does not read learns of it afterwards, where the transport closes by itself
                gone = history.when_unheld(owner, gone)
            if gone is not None and back > gone + CLOSE_TIMEOUT + SLACK:
                yield gone, f"{op} waited for {back - gone:.3f} s after its link was gone"
        elif call == "send" and record.at < (rest := rests.get(owner, 0.0)) - LONGEST_SEND and back >= rest:
            yield record.at, f"{op} has still not been sent, or refused, {rest - record.at:.3f} s later"
    for record in history.all("run.spins"):
        yield record.at, f"{record['steps']} steps of tasks in one instant, the last of {record['task']}"


# --------------------------------------------------------------------------- resources


@invariant("M1", "queues keep within their bounds, and are empty, or nearly so, when all is well")
def _queues(history: History) -> Found:
    for rest in history.all("client.rest"):
        if rest["inbox"] > MOST_WAITING or rest["outbox"] > MOST_WAITING:
            yield rest.at, f"{rest['inbox']} messages wait to be received, {rest['outbox']} to be sent"
    yield from _unread(history)
    most_calls = history.most_calls
    for record in history.all("client.peaks"):
        acked = [each.at for each in history.all("client.acked") if _owner(each) == _owner(record)]
        acks = worst_window(acked, PING_INTERVAL + 2 * PONG_TIMEOUT)  # a write that stalls has so long
        if record["outbox"] > (most := most_calls[_owner(record)] + MOST_WAITING + acks):
            yield record.at, f"{record['outbox']} messages waited to be sent, and {most} may"


def _unread(history: History) -> Found:
    """Find where more waited to be received, in the inbox and in all feeds, than may.

    A read begins only while less waits than the bound. So what waits exceeds it by what one read brought, at most: the
    last one, or that before, where a pause keeps the last one back. But while a link is set up there is more room; what
    was held back for a snapshot, a back-fill, or the name of a subscription, comes all at once; and what then waits may
    stay.
    """
    reads: dict[str, list[int]] = defaultdict(list)
    states: dict[str, str] = {}
    for record in history.records:
        if record.get("event") in ("StateChanged", "Listening"):
            states[_owner(record)] = record.get("new", record.get("state"))
        match record.what, record.get("event"):
            case "net.read", _ if record["end"] == "client":
                reads[history.links[record["link"]].owner].append(record["size"])
            case ("client.event", "StateChanged" | "Listening" | "Resynced" | "SubscriptionConfirmed" | "Gap") | (
                "client.page",
                _,
            ):
                reads[_owner(record)].clear()
            case "client.waiting", _:
                since = reads[_owner(record)]
                waiting = record["inbox"] + LEAST_CHARGE * (record["feeds"] - record["ahead"])
                most = INBOX_BYTES + CHARGE_PER_BYTE * max(since[-2:], default=0) + LONGEST_CHARGE
                if len(since) < 3 or states.get(_owner(record)) != "ready":
                    most += SETUP_ROOM
                if waiting > most:
                    yield record.at, f"{waiting} bytes and more waited to be received, and {most} may"
            case _:
                pass


@invariant("M3", "work is in proportion to what happens")
def _proportion(history: History) -> Found:
    for record in history.all("run.steps"):
        things = sum(each.get("end") == "client" or each.what.startswith("client.") for each in history.records)
        if record["session"] > MOST_STEPS_EACH * (100 + things):
            yield record.at, f"sessions took {record['session']} steps, and {things} things happened"


@invariant("M2", "no stream and no task is left")
def _nothing_left(history: History) -> Found:
    for record in history.all("run.end"):
        if record["links"]:
            yield record.at, f"links {record['links']} were not closed"
        if record["tasks"]:
            yield record.at, f"tasks are left: {record['tasks']}"


# --------------------------------------------------------------------------- errors


@invariant("E1", "only documented exceptions leave, each call with its own")
def _documented(history: History) -> Found:
    for record in history.all("client.return"):
        call, outcome = record["call"].split()[0], record["outcome"]
        if outcome not in OUTCOMES[call] | {"ok", "cancelled", "ended"}:
            yield record.at, f"{call} raised {outcome}"
    for record in history.all("client.unsubscribed"):
        if record["outcome"] not in ("left", "cancelled", "ended", "completed", "SubscriptionRejected", "SessionOver"):
            yield record.at, f"subscribe raised {record['outcome']}"
    for record in history.all("run.crashed"):
        yield record.at, f"{record['error']} left the clients"


@invariant("E2", "a session ends by itself only of what no other attempt can mend")
def _dispositions(history: History) -> Found:
    opened = {_owner(record) for record in history.all("client.opened")}
    for record in history.all("client.left"):
        faults = [r for r in history.all("fault.begin") if r.at <= record.at]
        possible = {error for r in faults for error in r["ends_with"]}
        codes = [r["args"]["code"] for r in faults if r["kind"] in ("close", "accepted, then closed")]
        if any(map(refuses_login, codes)):
            possible.add("AuthFailed")  # a close amid the login is its refusal
        if _owner(record) in opened:
            possible -= PASSING
        elif not history.scenario.patient:
            possible |= FIRST_FAILURES
        if not possible.issuperset(record["error"]):
            yield record.at, f"session {_owner(record)} ended with {record['error']}"


@invariant("E3", "states follow the table; links follow one another, and each ends once, as does the session")
def _one_at_a_time(history: History) -> Found:
    legal = {(old.value, new.value) for old, events in TRANSITIONS.items() for new in events.values()}
    living: dict[str, int] = {}
    states: dict[str, str] = {}
    ended = Counter(_owner(record) for record in history.all("client.ended"))
    for record in history.all("client.left"):
        if (times := ended[_owner(record)]) != 1:
            yield record.at, f"session {_owner(record)} told {times} times of its end"
    for record in history.all("client.event"):
        owner, epoch = _owner(record), record["epoch"]
        match record["event"]:
            case "Listening":
                if record["state"] == "ready":
                    living[owner] = epoch  # in any other it may be up still, or no more
                states[owner] = record["state"]
            case "StateChanged":
                old, new = record["old"], record["new"]
                if (old, new) not in legal:
                    yield record.at, f"session {owner} went from {old} to {new}"
                if old != states.get(owner, old):
                    yield record.at, f"session {owner} went from {old} to {new}, and was {states[owner]}"
                states[owner] = new
            case "LinkOpened":
                if living.get(owner):
                    yield record.at, f"session {owner} opened link {epoch} beside link {living[owner]}"
                living[owner] = epoch
            case "LinkClosed":
                if living.get(owner, epoch) != epoch:
                    yield record.at, f"session {owner} closed link {epoch}, which was not up"
                living[owner] = 0
            case _:
                pass


# --------------------------------------------------------------------------- security


@invariant("X1", "a secret is seen on the wire to its service, and nowhere else")
def _canary(history: History) -> Found:
    for record in history.records:
        if not record.what.startswith("net.") and CANARY.encode() in record.line():
            yield record.at, f"a secret stands in {record.what}"


@invariant("X2", "no secret gets to another origin")
def _origins(history: History) -> Found:
    for link in history.links.values():
        if link.host == ELSEWHERE:
            said = [link.request, *(repr(sent.frame) for sent in link.sent)]
            if any(CANARY in each for each in said):
                yield link.opened, f"a secret was sent to {link.host}"


@invariant("X3", "masks are fresh")
def _masks(history: History) -> Found:
    for link in history.links.values():
        masks = [sent.mask for sent in link.sent]
        if len(masks) > 20 and len(set(masks)) < 0.9 * len(masks):
            yield link.opened, f"link {link.number}: {len(set(masks))} masks for {len(masks)} frames"


@invariant("X5", "what a peer says is escaped and cut before it reaches a log")
def _escaped(history: History) -> Found:
    for record in history.all("client.event") + history.all("log.line"):
        for name, value in record.fields.items():
            if isinstance(value, str) and not value.isprintable():
                yield record.at, f"{record.get('event', 'a log line')} has raw text of the peer's in {name}"
            elif isinstance(value, str) and len(value) > MOST_TEXT:
                yield record.at, f"{record.get('event', 'a log line')} has {len(value)} characters in {name}"


@invariant(
    "X6", "no number of a peer's makes a session wait for longer than is sensible, and no redirect is remembered"
)
def _clamped(history: History) -> Found:
    for record in history.events("RetryScheduled"):
        if record["delay"] > MAX_RETRY_AFTER + BACKOFF_CAP:
            yield record.at, f"session {_owner(record)} waits {record['delay']:g} s before it dials"
    for record in history.events("RateLimitSlowed"):
        if record["until"] > record.at + MAX_RETRY_AFTER + SLACK:
            yield record.at, f"session {_owner(record)} sends nothing for {record['until'] - record.at:g} s"
    redirected = {record["link"] for record in history.all("server.redirected")}
    before: dict[str, LinkHistory] = {}
    for link in history.links.values():
        if link.path == DETOUR and before[link.owner].number not in redirected:
            yield link.opened, f"link {link.number} begins where an earlier one had been redirected to"
        before[link.owner] = link


@invariant("X7", "the client keeps the service's rules, and uses nothing that it knows to have expired")
def _rules(history: History) -> Found:
    for record in history.all("server.breach"):
        yield record.at, record["text"]
    if history.scenario.server == "json":
        yield from _late_traffic(history)


def _late_traffic(history: History) -> Found:
    """Find what was written after an authentication had ended, as the client was told, and a renewal had failed.

    Behind a renewal that is under way it may be written: the service reads that first. One that was written in the
    instant of the failure is not the one that failed: an answer takes longer, and so does waiting for it.
    """
    for number, asked in history.asked_by_link.items():
        link = history.links[number]
        mine = [
            record
            for name in ("Authenticated", "AuthUnsuccessful")
            for record in history.events(name)
            if _owner(record) == link.owner and link.lives_at(record.at)
        ]
        if not any(record["event"] == "AuthUnsuccessful" for record in mine):
            continue
        for record, at in asked:
            earlier = sorted((each for each in mine if each.at <= at), key=lambda each: each.at)
            grants = [each for each in earlier if each["event"] == "Authenticated" and each["expires_in"]]
            if record["verb"] == "auth" or not grants or earlier[-1]["event"] == "Authenticated":
                continue
            ended = grants[-1].at + grants[-1]["expires_in"]
            is_renewed = any(other["verb"] == "auth" and earlier[-1].at <= before <= at for other, before in asked)
            if at > ended + SLACK and not is_renewed:
                yield at, f"link {number}: {record['verb']} {at - ended:.3f} s after the authentication ended"
