"""Check the checkers: plant a defect in the session, and see that the simulator finds it.

`python -m tests.sim.mutants`, or `nox -s mutants`. Each mutant is a small edit of the source of one or two
functions, applied in a process of its own. Seeds are run until an invariant is violated; a mutant that
lives through 500 of them shows an invariant that nobody checks. Before that, the session as it is must
live through its first seeds.
"""

from __future__ import annotations
import __future__

import argparse
import inspect
import linecache
import multiprocessing
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import attrs

from trio_nova import _outbound, _supervisor
from trio_nova._feeds import Delivery, Feed, Subscription
from trio_nova._link import LiveLink
from trio_nova._link.answers import Answers
from trio_nova._link.fills import Fills
from trio_nova._link.grant import Grant
from trio_nova._link.heartbeat import Heartbeat
from trio_nova._link.life import LinkLife
from trio_nova._link.reader import Intake, Reader
from trio_nova._link.readings import Readings
from trio_nova._link.standing import Standing
from trio_nova._link.subscriber import Subscriber
from trio_nova._link.writer import Writer
from trio_nova._requests import Requests
from trio_nova._route import Route
from trio_nova._session import Session
from trio_nova._subscriptions import Subscriptions
from trio_nova._supervisor import Supervisor
from trio_nova.core import backoff, recovery
from trio_nova.core.ledger import Ledger
from trio_nova.core.limits import RollingWindow
from trio_nova.core.outbox import Outgoing
from trio_nova.core.pulse import Pulse
from trio_nova.core.sequence import Tracker
from trio_nova.core.subscriptions import Book
from trio_nova.core.verdict import Attempts
from trio_nova.links import _block, _handshake, wire
from trio_nova.links._governor import Turn
from trio_nova.links._wire import WireProtocol
from trio_nova.observe import logging as log
from trio_nova.testing import sim

MOST_SEEDS = 500
"""Through which no mutant may live."""
MOST_CRASHES = 20
"""Runs that a mutant may break off before the search for a rule that it breaks is given up."""
CONTROL_SEEDS = 20
"""Through which the session as it is must live."""


@attrs.frozen
class Edit:
    """One place in the source of one function."""

    owner: type | ModuleType
    name: str
    """The function's, in its class, or in the module that calls it."""
    old: str
    """Text that is in its source once."""
    new: str
    """What to put in its place; further lines are indented like the one it stands in."""

    @property
    def original(self) -> Any:
        """The function that stands in that place of the class or module."""
        return vars(self.owner)[self.name]

    def edited(self) -> Any:
        """Return what is to stand there; raises ValueError where the text to be replaced is not there once."""
        function: FunctionType = inspect.unwrap(self.original)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{function.__qualname__} has {self.old!r} {source.count(self.old)} times, not once")
        line = source[: source.index(self.old)].rpartition("\n")[2]
        indent = "\n" + line[: len(line) - len(line.lstrip())]
        source = source.replace(self.old, self.new.replace("\n", indent))
        file = f"<{function.__qualname__}, edited to {self.new!r}>"
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file  # for the next edit of it
        code = compile(source, file, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
        made: dict[str, Any] = {}
        exec(code, function.__globals__, made)
        return made[self.name]


@attrs.frozen
class Mutant:
    """A defect to be planted."""

    name: str
    defect: str
    """What is wrong with it, in a sentence."""
    rules: str
    """The invariants that it is meant to break, of which one must be seen broken."""
    edits: Sequence[Edit]
    may_crash: bool = False
    """Whether it counts as found where it breaks the run itself, and no rule."""

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Have the defect in this process for as long as the block lasts."""
        originals = [(edit, edit.original) for edit in self.edits]
        try:
            for edit in self.edits:
                setattr(edit.owner, edit.name, edit.edited())
            yield
        finally:
            for edit, original in reversed(originals):
                setattr(edit.owner, edit.name, original)


MUTANTS: dict[str, Mutant] = {}
"""All of them, by name."""


def mutant(name: str, defect: str, rules: str, *edits: Edit, may_crash: bool = False) -> None:
    """Put a mutant into the table."""
    MUTANTS[name] = Mutant(name, defect, rules, edits, may_crash)


_WireLink = wire._WireLink

# --------------------------------------------------------------------------- sending

mutant(
    "early receipt",
    "A message is acknowledged before it is written.",
    "S1",
    Edit(Writer, "run", "frames = self._frames(batch)", "frames = self._frames(batch)\nself.outbox.written()"),
)
mutant(
    "torn send",
    "Cancelling a send cuts the write short, and the link is used on with half a frame on it.",
    "S2",
    Edit(
        Writer,
        "run",
        "await self._stream.send_all(frames)",
        "with trio.CancelScope() as self._stream.writing:\n    await self._stream.send_all(frames)",
    ),
    Edit(
        _outbound,
        "wait_settled",
        "outgoing.withdraw()",
        "if outgoing.status.name == 'WRITING':\n"
        "    for link in getattr(put.__self__, '_outbound', put.__self__)._session.links:\n"
        "        getattr(link.stream, 'writing', trio.CancelScope()).cancel()\n"
        "outgoing.withdraw()",
    ),
    Edit(
        _WireLink, "_write", "self._mute = True  # half a frame may be out: another one would be read as its rest", ""
    ),
)
mutant(
    "lost neighbour",
    "Cancelling a send takes the next in the queue away too, and nobody tells its sender.",
    "L4",
    Edit(
        Outgoing,
        "withdraw",
        "self._leave_queue()",
        "queue = self._queue\n"
        "self._leave_queue()\n"
        "if queue is not None and (neighbour := queue.first()) is not None:\n"
        "    neighbour._leave_queue()\n"
        "    neighbour.status = Status.SETTLED",
    ),
)
mutant(
    "false not-sent",
    "A question that was written when its link was lost is reported as not sent.",
    "S1",
    Edit(
        Answers,
        "end",
        'error = OutcomeUnknown("the link was lost before the answer")',
        'from trio_nova.errors import NotSent\nerror = NotSent("the link was lost before the answer")',
    ),
)
mutant(
    "eager repeat",
    "Every question is asked again on the next link, not only those that may be.",
    "S1 S3",
    Edit(Requests, "request", "if not (idempotent and lost and is_accepted)", "if not (lost and is_accepted)"),
)
mutant(
    "orphaned question",
    "A question whose link is lost waits on for an answer that cannot come.",
    "L4",
    Edit(Answers, "end", "pending.asker.tell(outcome.Error(error))", "pass"),
)
mutant(
    "reused ids",
    "Ids are used again and those given up are forgotten: a late answer settles a newer question.",
    "S4",
    Edit(
        Ledger,
        "peek",
        "self._next = next(self._ids)",
        "self._next = next(self._ids) % 5 + 1",
    ),
    Edit(Ledger, "give_up", "self._given_up[pending] = None", "self._forget(pending)"),
)
mutant(
    "sticky send",
    "A cancelled send does not return before its frame is written.",
    "L3",
    Edit(
        _outbound,
        "wait_settled",
        "outgoing.withdraw()",
        "if outgoing.status.name == 'WRITING':\n    return trio.lowlevel.Abort.FAILED\noutgoing.withdraw()",
    ),
)
mutant(
    "stale masks",
    "Frames bear the same mask again and again.",
    "X3",
    Edit(WireProtocol, "_mask", "return self._masks[at : at + 4]", "return self._masks[:4]"),
)

# --------------------------------------------------------------------------- receiving

mutant(
    "delivered twice",
    "A message that is known is delivered again.",
    "D1 D3",
    Edit(Subscription, "_deliver_in_sequence", "self.duplicates += 1", "self._put(data, frame, charge, now, carrier)"),
)
mutant(
    "lost last message",
    "The last message of a batch is lost.",
    "D2 D5",
    Edit(
        Intake,
        "take_in",
        "inbound = self._inbound",
        "inbound = self._inbound\nframes = frames[:-1] if len(frames) > 1 else frames",
    ),
)
mutant(
    "swallowed gap",
    "That messages are missing is found out, and not told.",
    "D2",
    Edit(
        Subscription, "tell_gap", "lost, self._lost = self._lost, None", "lost, self._lost = self._lost, None\nreturn"
    ),
)
mutant(
    "lost while paused",
    "What arrives when reading has just been paused is dropped.",
    "D2",
    Edit(Reader, "_read", "self._held = frames", "pass"),
)
mutant(
    "reversed batch",
    "The messages of one read are delivered in reverse.",
    "D3",
    Edit(_WireLink, "_take_in", "return frames", "return frames[::-1]"),
)
mutant(
    "always resumed",
    "A service that counts anew is taken for one that repeats itself.",
    "D5",
    Edit(Subscription, "link_lost", "resumed=self._session.handlers.subscription.resumes", "resumed=True"),
)
mutant(
    "never resumed",
    "What a service repeats when it resumes is taken for the first messages of a new count.",
    "D1 D3",
    Edit(Subscription, "link_lost", "resumed=self._session.handlers.subscription.resumes", "resumed=False"),
)
mutant(
    "tolerant parser",
    "An illegal frame is passed over, and its link kept.",
    "D4",
    Edit(WireProtocol, "feed", "self._fail(violation)", "self._partial.clear()"),
)
mutant(
    "reserved bits ignored",
    "A frame with a bit that nobody has agreed on is taken for one without.",
    "D4",
    Edit(WireProtocol, "_judge_start", "if first & _RSV & ~allowed:", "if False:"),
)
mutant(
    "reads on",
    "The link of an illegal frame is given up, and what stands behind the frame is delivered all the same.",
    "D4",
    Edit(
        WireProtocol,
        "feed",
        "self._fail(violation)",
        "self._fail(violation)\n"
        "if 0 < data.rfind(b'\\x81'):\n"
        "    ending, self.ending = self.ending, None\n"
        "    self._split(data[data.rfind(b'\\x81') :], frames)\n"
        "    self.ending = ending",
    ),
)
mutant(
    "hasty parser",
    "The first fragment of a message is delivered, whatever becomes of the rest.",
    "D4",
    Edit(WireProtocol, "_assemble", "if fin:", "if fin or begins:"),
)

# --------------------------------------------------------------------------- subscriptions

mutant(
    "forgotten channel",
    "One channel is taken for confirmed across the loss of a link, and not restored.",
    "U1 D5",
    Edit(
        Standing,
        "want",
        "entry = self.book.want(key, channel, params, subscription.id, now)",
        "entry = self.book.want(key, channel, params, subscription.id, now)\n"
        "if subscription.id == 1 and subscription.was_confirmed and entry.state is _S.WANTED:\n"
        "    entry.asked_at = trio.current_time()\n"
        "    self.book._move(entry, _S.CONFIRMED)",
    ),
)
mutant(
    "restored too early",
    "Channels are asked for before the link is authenticated.",
    "U2",
    Edit(LiveLink, "_set_up", "if self.grant.is_needed:", "self._open()\nif self.grant.is_needed:"),
    Edit(LiveLink, "_set_up", "return\n        self._open()", "return"),
)
mutant(
    "asked for twice",
    "A channel is asked for twice.",
    "U2",
    Edit(
        Subscriber,
        "_ask_together",
        'await self._writer.send(message, 0, "subscription")',
        'await self._writer.send(message, 0, "subscription")\nawait self._writer.send(message, 0, "subscription")',
    ),
)
mutant(
    "to ask is to have",
    "A channel counts as confirmed once it was asked for.",
    "U4",
    Edit(
        Subscriber,
        "_ask_together",
        "self._standing.book.written(batch, trio.current_time())",
        "self._standing.book.written(batch, trio.current_time())\n"
        "from trio_nova.readings import Granted\n"
        "for channel in channels:\n"
        "    self._standing.apply(Granted(channel.key))",
    ),
)
mutant(
    "unheeded farewell",
    "A channel that is given up while there is no link is restored all the same.",
    "U3",
    Edit(
        Subscriptions,
        "_release",
        "if subscription.is_wanted:",
        "if subscription.is_wanted or self._session.current is None:",
    ),
)
mutant(
    "abandoned wish",
    "A subscribe that is cancelled before it was confirmed is not taken back.",
    "U1 U3",
    Edit(
        Subscriptions,
        "subscribe",
        "self._release(subscription)",
        "subscription.was_confirmed and self._release(subscription)",
    ),
)
mutant(
    "patient subscriber",
    "A subscription that is not answered is waited for without end.",
    "L2 U1",
    Edit(Book, "expire", "if since + timeout > now:", "if since + timeout * 1e6 > now:"),
)

# --------------------------------------------------------------------------- rates

mutant(
    "forgetful limiter",
    "What was spent is forgotten with the link.",
    "R1",
    Edit(
        LiveLink,
        "serve",
        "life, session = self.life, self._session",
        "life, session = self.life, self._session\n"
        "for limit in session.handlers.rate_limit.limits:\n"
        "    limit._log.clear()\n"
        "    limit._logged = 0",
    ),
)
mutant(
    "fixed windows",
    "The limiter counts from one full period to the next, not over any period.",
    "R1",
    Edit(
        RollingWindow,
        "_is_past",
        "return math.fsum((max(now, self._seen), -spent_at, -self.period, -self.margin)) >= 0.0",
        "return max(now, self._seen) // self.period > spent_at // self.period",
    ),
    Edit(
        RollingWindow,
        "admits_at",
        "leaves = spent_at + self.period + self.margin",
        "leaves = (spent_at // self.period + 1) * self.period",
    ),
)
mutant(
    "polite pings",
    "Pings wait behind the messages of the application.",
    "R3 L1",
    Edit(
        Heartbeat,
        "_outgoing",
        'outgoing_message(message, lane=Lane.CONTROL, purpose="control")',
        'outgoing_message(message, lane=Lane.APPLICATION, purpose="message")',
    ),
)
mutant(
    "deaf to Retry-After",
    "When the service wants to be dialled again is not heeded.",
    "R2",
    Edit(
        _supervisor,
        "advise",
        "asked = (error.retry_after or 0.0) if isinstance(error, NovaError) else 0.0",
        "asked = 0.0",
    ),
)
mutant(
    "endless patience",
    "The service may ask for any wait.",
    "X6",
    Edit(_handshake, "parse_retry_after", "return min(float(value), MAX_RETRY_AFTER)", "return float(value)"),
)
mutant(
    "broken budget",
    "No dial is counted.",
    "R2",
    Edit(Turn, "_wait", "self._pace.limits.spend(now)", "pass"),
)
mutant(
    "no jitter",
    "All clients wait equally long.",
    "R4",
    Edit(backoff, "_jittered", "value * share * spread", "value * share"),
)
mutant(
    "hot loop",
    "The back-off is told and not waited for.",
    "R2",
    Edit(Supervisor, "_wait", "trio.move_on_after(delay)", "trio.move_on_after(delay / 1000)"),
)
mutant(
    "easy forgiveness",
    "A link that was ready for a moment lets the back-off start over.",
    "R5",
    Edit(Attempts, "unready", ">= self.min_uptime", ">= 0.0"),
)

# --------------------------------------------------------------------------- liveness

mutant(
    "endless write",
    "A write that makes no progress is never given up.",
    "L1 L2",
    Edit(Pulse, "next_step", "write_due = math.inf if stalled_since is None else", "write_due = math.inf if True else"),
)
mutant(
    "blind after a pause",
    "After reading stood still once, nobody's silence counts any more.",
    "L1",
    Edit(Pulse, "release", "self._held = False", "pass"),
)
mutant(
    "nobody reads",
    "When the reader has let consumers run, it does not go on.",
    "L1 L2",
    Edit(Reader, "run", "in_vain = inbound.crowded", "return"),
)
mutant(
    "one heartbeat",
    "Only the first link has a heartbeat.",
    "L1 R3",
    Edit(Heartbeat, "run", "while not life.ending.is_set():", "while life.epoch == 1:"),
)
mutant(
    "endless farewell",
    "The answer to a goodbye is waited for without end.",
    "L3",
    Edit(_WireLink, "aclose", "trio.move_on_after(self._dial.close_timeout)", "trio.move_on_after(1e6)"),
)
mutant(
    "endless dial",
    "A dial has no deadline.",
    "L2",
    Edit(Supervisor, "dial_and_hold", "scope.deadline = turn.deadline", "pass"),
)
mutant(
    "endless sign-in",
    "The answer to the authentication is waited for without end.",
    "L2",
    Edit(Grant, "_authenticate", "trio.move_on_after(session.config.auth_timeout)", "trio.CancelScope()"),
)
mutant(
    "spinning writer",
    "A writer that has nothing to do looks again at once.",
    "L4",
    Edit(Writer, "run", "await self._changed.wait()", "await trio.lowlevel.checkpoint()"),
)

# --------------------------------------------------------------------------- resources, errors, states

mutant(
    "bottomless inbox",
    "The inbox takes whatever comes.",
    "M1",
    Edit(Reader, "run", "inbound.pauses or inbound.clogged", "inbound.pauses"),
)
mutant(
    "restless heartbeat",
    "Whether a ping is due is looked at a hundred times a second.",
    "M3",
    Edit(
        Heartbeat,
        "run",
        "await self._pulse_changed.wait(until)",
        "await self._pulse_changed.wait(min(until, trio.current_time() + 0.01))",
    ),
)

mutant(
    "link left open",
    "A link that is given up is not closed.",
    "U1 E3 L1 M2",
    Edit(_WireLink, "abort", "self._nursery.start_soon(trio.aclose_forcefully, self._stream, name=", "str("),
)
mutant(
    "task left behind",
    "A task of the session outlives its block.",
    "M2",
    Edit(
        Supervisor,
        "finish",
        "session.finish()",
        'session.finish()\ntrio.lowlevel.spawn_system_task(trio.sleep_forever, name=session.task_name("left"))',
    ),
)
mutant(
    "foreign error",
    "What the network raises leaves the link as it is.",
    "E1 E2",
    Edit(
        _WireLink, "_receive", "except (trio.BrokenResourceError, trio.ClosedResourceError, OSError)", "except OSError"
    ),
)
mutant(
    "fatal 429",
    "A service that asks for patience ends the session.",
    "E2",
    Edit(
        recovery,
        "of_error",
        "return of_status(error.status)",
        "return _FATAL if error.status in (408, 429) else of_status(error.status)",
    ),
)
mutant(
    "impatient start",
    "The first connect is not retried where that was asked for.",
    "E2",
    Edit(Supervisor, "_follow", "session.opened.is_set() or config.retry_first_connect", "session.opened.is_set()"),
)
mutant(
    "silent change",
    "A change of state is not told.",
    "E3",
    Edit(
        Session,
        "apply",
        "self.tell(StateChanged(old=old.value, new=new.value))",
        "new is State.AUTHENTICATING or self.tell(StateChanged(old=old.value, new=new.value))",
    ),
)

# --------------------------------------------------------------------------- acknowledgements

mutant(
    "early acknowledgement",
    "A delivery is acknowledged when it comes, and not when its consumer says so.",
    "A1",
    Edit(
        Feed,
        "_give",
        "self._put(payload, self._delivery(data, payload, now, carrier), charge)",
        "item = self._delivery(data, payload, now, carrier)\nself._put(payload, item, charge)\nitem.ack()",
    ),
)
mutant(
    "acknowledged elsewhere",
    "What acknowledges a delivery is sent on whatever link is up.",
    "X7",
    Edit(
        Delivery,
        "ack",
        "acknowledge(ack, self._carrier)",
        "current = self._carrier._life.session.current\n"
        "acknowledge(ack, self._carrier if current is None else current.writer)",
    ),
)
mutant(
    "never acknowledged",
    "No delivery is ever acknowledged.",
    "A2",
    Edit(Delivery, "ack", "if ack is not None and", "if False and"),
)

# --------------------------------------------------------------------------- filters, ends, farewells, positions

mutant(
    "stale filters",
    "Of a channel it is remembered for ever whose filters match it.",
    "A2 D5",
    Edit(Standing, "look_at", "self._matched.clear()", "pass"),
)
mutant(
    "deaf to the end",
    "That a channel has ended is not told to those who read it.",
    "U5",
    Edit(Standing, "ended", "subscription.complete(shown)", "subscription.is_complete = True"),
)
mutant(
    "asked for again",
    "A channel that has ended is asked for again on the next link.",
    "U5",
    Edit(Standing, "want", "and subscription.refusal is None", ""),
)
mutant(
    "early end",
    "What waits in a feed is dropped where its channel ends.",
    "U5",
    Edit(
        Feed,
        "_source_ended",
        "self._sources.discard(id)",
        "self._sources.discard(id)\nself._mailbox.items and self._mailbox.pop_all()",
    ),
)
mutant(
    "impatient subscriber",
    "What is refused for now is asked for again at once.",
    "U6",
    Edit(Standing, "_again_after", "max(seconds(retry_after) or 0.0, delay or 0.0)", "0.0"),
)
mutant(
    "patient for ever",
    "What is refused for now is not asked for again.",
    "U6",
    Edit(Standing, "apply", "None if answer.retry_after is None else", "None if True else"),
)
mutant(
    "silent leave",
    "A link is left without a farewell.",
    "F1",
    Edit(LiveLink, "_say_farewell", "if hook is None:", "if True:"),
)
mutant(
    "farewell to the lost",
    "The farewell is said on a link that is given up as well.",
    "F1",
    Edit(
        LiveLink,
        "_leave",
        "self.stream.abort()",
        "with trio.move_on_after(1.0):\n    life.lost is None or await self._say_farewell()\nself.stream.abort()",
    ),
)
mutant(
    "position forgotten",
    "A session is resumed from the first position that the service ever gave.",
    "P1",
    Edit(Route, "keep_position", "self.position = token", "self.position = self.position or token"),
)
mutant(
    "ids in use",
    "An id is used again though the question before it may still be answered.",
    "X7 S4",
    Edit(Ledger, "peek", "if identity(form(self._next)) not in self._by_id:", "if True:"),
    Edit(Ledger, "open", "if (other := self._by_id.get(id)) is not None:", "if False:"),
)
mutant(
    "joint memory",
    "All links of a session decode with what the first one remembers.",
    "D2 D5 A2 L2 U1 E2",
    Edit(
        LinkLife,
        "__attrs_post_init__",
        "self.coder = open_link_codec(config.codec, config.max_message_size)",
        "made = open_link_codec(config.codec, config.max_message_size)\n"
        "self.coder = made and vars(open_link_codec).setdefault('made', made)",
    ),
)

# --------------------------------------------------------------------------- wishes, snapshots, back-fills

mutant(
    "deaf to complaints",
    "That we send too fast is read, and changes nothing.",
    "R6",
    Edit(Intake, "_is_taken", "self._outbound.limiter.slow_down(seconds(retry_after))", "pass"),
)
mutant(
    "stubborn link",
    "That the service wants another link is told, and not done.",
    "G1",
    Edit(Intake, "_move", "session.go_elsewhere(Reconnect(), life.epoch)", "pass"),
)
mutant(
    "moved for ever",
    "An address that the service has named once is dialled for ever.",
    "G1",
    Edit(Route, "take_address", "address, self._address = self._address, None", "address = self._address"),
)
mutant(
    "read twice",
    "A message is shown to the dialect a second time where it is data.",
    "K1",
    Edit(Readings, "_read_with", "if reading is not None:", "read(message)\nif reading is not None:"),
)
mutant(
    "unprepared",
    "A channel is asked for as it is, and not as it was prepared.",
    "X7",
    Edit(
        Subscriber,
        "_prepare",
        "prepared[channel.key] = attrs.evolve(found, key=channel.key)",
        "prepared[channel.key] = channel",
    ),
)
mutant(
    "old snapshot",
    "A snapshot is believed that is too old for what is held back.",
    "B1 D2",
    Edit(Tracker, "_is_too_old", "if held.entries:", "return False\nif held.entries:"),
)
mutant(
    "forgotten changes",
    "What was held back for a snapshot is not delivered behind it.",
    "B1 D2",
    Edit(
        Tracker, "_resume_from", "return BackInStep((message, *following), gap)", "return BackInStep((message,), gap)"
    ),
)
mutant(
    "hasty fill",
    "What comes while a hole is filled is delivered at once.",
    "D2 B2",
    Edit(
        Fills,
        "hold",
        "fill = self._fills[subscription]",
        "fill = self._fills[subscription]\n"
        "subscription.deliver(data, frame, charge, trio.current_time(), self._writer)\n"
        "return True",
    ),
)
mutant(
    "filled twice",
    "What a store has brought is delivered though it is known.",
    "D1 D3",
    Edit(Subscription, "fill", "not self.tracker.is_ahead(step)", "False"),
    Edit(
        Subscription,
        "fill",
        "self.deliver(data, None, None, trio.current_time(), carrier)",
        "self._put(data, None, None, trio.current_time(), carrier)",
    ),
)
mutant(
    "one page",
    "Only the first page of what was missed is asked for.",
    "B3",
    Edit(Fills, "_fetch_pages", "if page.more is None:", "if True:"),
)

# --------------------------------------------------------------------------- security

mutant(
    "talkative sign-in",
    "The credentials are logged.",
    "X1",
    Edit(
        Grant,
        "_ask_handler",
        "try:",
        "import logging\n"
        "logging.getLogger('trio_nova').info('signing in with %s', credentials and credentials.reveal())\n"
        "try:",
    ),
)
mutant(
    "raw log",
    "What a peer says is logged as it came.",
    "X5",
    Edit(log, "_clean", "printable(redacted(text))", "redacted(text)"),
)
mutant(
    "trusting redirect",
    "A redirect to another origin is followed, and the headers with it.",
    "X2",
    Edit(_block, "redirected", "if target.origin != dial.url.origin and", "if False and"),
)
mutant(
    "expired token",
    "The authentication is not renewed before it expires.",
    "L2 X7",
    Edit(Grant, "_refresh_at", "half = ", "return math.inf\nhalf = "),
)


# --------------------------------------------------------------------------- running them


@attrs.frozen
class Hunt:
    """How the search for one defect went."""

    name: str
    seeds: int
    """How many were run."""
    seconds: float
    rules: tuple[str, ...] = ()
    """What the last of them was found to break; none where the mutant lives."""
    first: str = ""
    """The first violation, or crash."""
    crashes: int = 0
    """How many of the runs ended in an exception."""

    @property
    def is_caught(self) -> bool:
        """Whether a rule found it, or a crash, and that is enough for this one."""
        return bool(self.rules) or (self.crashes > 0 and MUTANTS[self.name].may_crash)

    @property
    def verdict(self) -> str:
        """What is to be said of it."""
        lives = f"only a crash: {self.first}" if self.crashes else "IT LIVES"
        return " ".join(self.rules) or lives


def hunt(name: str, seeds: Iterable[int] = range(1, MOST_SEEDS + 1)) -> Hunt:
    """Plant a mutant and run seeds until one breaks a rule that it is meant for; a crash shows no rule."""
    planted = MUTANTS[name]
    started, count, crashes, crash = time.perf_counter(), 0, 0, ""
    with planted.planted():
        for seed in seeds:
            count += 1
            try:
                violations = sim.run(seed).violations
            except BaseException as exc:  # a mutant may break the run itself
                if isinstance(exc, KeyboardInterrupt):
                    raise
                crashes, crash = crashes + 1, crash or f"{type(exc).__name__}: {exc}"
                if planted.may_crash or crashes == MOST_CRASHES:
                    break
                continue
            rules = tuple(dict.fromkeys(violation.rule for violation in violations))
            if any(rule in planted.rules.split() for rule in rules):
                first = next(each for each in violations if each.rule in planted.rules.split())
                return Hunt(name, count, time.perf_counter() - started, rules, str(first), crashes)
    return Hunt(name, count, time.perf_counter() - started, first=crash, crashes=crashes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hunt them all and print a table; return 1 if one of them lives, or the session as it is breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("--only", help="names, or parts of them, separated by commas")
    parser.add_argument("--seeds", type=int, default=MOST_SEEDS, help=f"how many at most (default: {MOST_SEEDS})")
    parser.add_argument("--processes", type=int, default=2, help="how many run at once (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="show what was violated")
    options = parser.parse_args(arguments)
    parts = (options.only or "").split(",")
    names = [name for name in MUTANTS if any(part in name for part in parts)]
    control = sim.campaign(range(1, CONTROL_SEEDS + 1), processes=options.processes)
    print(f"as it is: {len(control.failures)} of {CONTROL_SEEDS} seeds broke a rule, {control.seconds:.1f} s\n")
    width = max(map(len, names))
    print(f"{'mutant':{width}}  seeds  seconds  meant for    broken")
    alive = crashed = 0
    jobs = [(name, range(1, options.seeds + 1)) for name in names]
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        for found in pool.imap(_hunt, jobs, chunksize=1):
            alive += not found.is_caught
            crashed += not found.rules and found.crashes > 0
            meant = MUTANTS[found.name].rules
            print(
                f"{found.name:{width}}  {found.seeds:5}  {found.seconds:7.1f}  {meant:11}  {found.verdict}", flush=True
            )
            if options.verbose and found.first:
                print(f"    {MUTANTS[found.name].defect} {found.first}")
    print(f"\n{len(names) - alive} of {len(names)} mutants caught, {crashed} of all only by a crash")
    return 1 if alive or control.failures else 0


def _hunt(job: tuple[str, range]) -> Hunt:
    sys.unraisablehook = lambda left: None  # what a run leaves behind that a mutant has broken
    return hunt(*job)


if __name__ == "__main__":
    sys.exit(main())
