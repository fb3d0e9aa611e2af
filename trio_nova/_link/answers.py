"""Questions that were written on a link, and their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import attrs
import outcome
import trio

from trio_nova._hooks import Handlers
from trio_nova._link.life import LinkLife
from trio_nova._outbound import Outbound
from trio_nova._session import Session, able_to_leave
from trio_nova.codecs import JsonCodec, MixedCodec
from trio_nova.core.ledger import MAX_GIVEN_UP, Identity, Late, Ledger, Pending, Unmatched, identity
from trio_nova.core.outbox import Lane, Outgoing, Purpose
from trio_nova.errors import BadMessage, ConfigError, LinkLost, NovaError, OutcomeUnknown, RequestFailed
from trio_nova.events import AnswerUnmatched, Event, RequestResolved, RequestSent, RequestUnresolved
from trio_nova.handlers.correlation import count_ids
from trio_nova.messages import Frame
from trio_nova.readings import Answer

__all__ = ["Answers", "Ask", "Asker", "Unjudged"]


class Asker(Protocol):
    """Waits for the answer to a question."""

    on_answer: Callable[[Any], object] | None
    """Shown an answer that says yes, before anything is taken in that came behind it."""

    def tell(self, result: outcome.Outcome[Any]) -> None:
        """Take note of what came of the question; told once."""
        ...


@attrs.define(eq=False, kw_only=True)
class Ask:
    """One question, from the call to its answer: told once what came of it."""

    session: Session
    outbound: Outbound
    matches: Callable[[Any], bool] | None = None
    when_written: Callable[[], object] | None = None
    on_answer: Callable[[Any], object] | None = None
    """Shown an answer that says yes, before anything is taken in that came behind it."""
    number: int = attrs.field(init=False)
    """Its id in events."""
    outgoing: Outgoing = attrs.field(init=False)
    since: float = attrs.field(factory=trio.current_time, init=False)
    """Trio's clock, seconds: the time when it was written, or else asked."""
    is_written: bool = attrs.field(default=False, init=False)
    _asked_at: float = attrs.field(factory=trio.current_time, init=False)
    _task: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task, init=False)
    _answers: Answers | None = attrs.field(default=None, init=False)
    """The answers of the link that it leaves on."""
    _pending: Pending | None = attrs.field(default=None, init=False)
    _result: outcome.Outcome[Any] | None = attrs.field(default=None, init=False)
    _is_told: bool = attrs.field(default=False, init=False)
    _waits: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.number = self.session.next_request()

    async def ask(
        self,
        message: Any,
        put: Callable[[Outgoing], None],
        *,
        priority: int = 0,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "query",
    ) -> Any:
        """Hand the question over with `put`, and return its answer. Cancelling withdraws it, or its answer is late.

        Raises:
            RequestFailed: the answer says no.
            NovaError: it was not sent, or its outcome is not known, as the kind of the error says.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        outbound, session = self.outbound, self.session
        if self.matches is None and session.hooks.identifies:
            own_id(session.handlers, message)
        kind = outbound.kind_of(message)
        self.outgoing = outbound.unmade(message, self._make, kind, priority, lane=lane, purpose=purpose)
        self.outgoing.on_settled(self._settled)
        try:
            put(self.outgoing)
        except NovaError as error:
            self.outgoing.withdraw()  # it would hold on to us
            self._fail(error)
        try:
            reply = await self._wait()
        except Exception as error:
            if isinstance(error, RequestFailed):
                outbound.limiter.heed(error.reply)
            self._tell(RequestUnresolved(id=self.number, error=error))
            raise
        self._tell(RequestResolved(id=self.number, round_trip=trio.current_time() - self._asked_at))
        return reply

    def _make(self, message: Any, answers: Answers) -> Sequence[Frame]:
        """Write it down where its answer will come, and return what is written."""
        pending, frames = answers.open(self, message, self.matches)
        self._answers = answers
        if self._is_told:  # a hook has cancelled whoever asks: as it is being written it leaves all the same
            answers.give_up(pending, sent=True)
        else:
            self._pending = pending
        return frames

    def _settled(self, outgoing: Outgoing, error: NovaError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        self.is_written, self.since = True, trio.current_time()
        self._tell(RequestSent(id=self.number))
        if self.when_written is not None:
            self.when_written()

    def _fail(self, error: NovaError) -> None:
        if not self._is_told:
            self._give_up(sent=self.is_written)
            self.tell(outcome.Error(error))

    def settle(self, answers: Answers, result: Any) -> bool:
        """Return `result` to whoever waits, in place of the answer; False where there is nobody, or it has not left."""
        if self._is_told or self._answers is not answers:
            return False
        self._give_up(sent=self.is_written)
        self.tell(outcome.Value(result))
        return True

    def tell(self, result: outcome.Outcome[Any]) -> None:
        """Let whoever waits go on with `result`."""
        self._is_told, self._result, self._pending = True, result, None
        if self._waits:
            self._waits = False
            trio.lowlevel.reschedule(self._task)

    async def _wait(self) -> Any:
        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            self._is_told, self._waits = True, False
            self._give_up(sent=not self.outgoing.withdraw())
            self.session.settled.ring()
            self._tell(RequestUnresolved(id=self.number, error=None))
            return trio.lowlevel.Abort.SUCCEEDED

        if not self._is_told:
            self._waits = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        result, self._result = self._result, None  # an error would hold on to us
        assert result is not None
        try:
            return result.unwrap()
        finally:
            del result  # the same: by its traceback, and this frame

    def _give_up(self, *, sent: bool) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and self._answers is not None:
            self._answers.give_up(pending, sent=sent)

    def _tell(self, event: Event) -> None:
        self.session.tell(event, None if self._answers is None else self._answers.epoch)


Find = Callable[[Any], Hashable | None]


class Unjudged(Answer, frozen=True):
    """An answer of which `Correlation.failure` says whether the service says yes."""


def own_id(handlers: Handlers, message: Any) -> Hashable | None:
    """Return the id that the caller gave a question; None where it has none, or answers come in order.

    Raises:
        BadMessage: it has something for an id that no answer could be matched by, or a hook fails at it.
    """
    try:
        own = handlers.correlation.request_id(message)
    except NovaError:
        raise
    except Exception as exc:
        raise BadMessage(f"the id of the question could not be read: {exc}") from exc
    if own is None or isinstance(own, Hashable):
        return own
    raise BadMessage(f"a {type(own).__name__} cannot be the id of a question")


@attrs.define(eq=False)
class Answers:
    """Every question that leaves on the link settles: with its answer, or with what is known when none can come."""

    _life: LinkLife
    _outbound: Outbound
    _ledger: Ledger = attrs.field(init=False)
    expecting: bool = attrs.field(default=False, init=False)
    """Whether something was asked on the link, so that messages may be answers, if only late ones."""
    _told_unread: bool = attrs.field(default=False, init=False)
    _held_up: list[Pending] = attrs.field(factory=list, init=False)
    """Questions that were given up as reading stood still: only while it goes on can their answers be late."""

    def __attrs_post_init__(self) -> None:
        correlation = self._life.handlers.correlation
        self._ledger = Ledger(count_ids(correlation) if correlation.per_link else self._outbound.ids)

    @property
    def epoch(self) -> int:
        """The number of the link."""
        return self._life.epoch

    # ----------------------------------------------------------------- questions

    def encode(self, message: Any) -> Sequence[Frame]:
        """Return the frames of a message that is about to leave, and asks nothing."""
        return self._life.encode(message)

    def open(
        self, asker: Asker, message: Any, matches: Callable[[Any], bool] | None = None
    ) -> tuple[Pending, Sequence[Frame]]:
        """Expect the answer to a question, and return what is awaited and what is to be written.

        Raises:
            BadMessage: it cannot be encoded, or a hook fails at its id.
            NotSent: its id is taken.
        """
        try:
            message, ids = (message, ()) if matches is not None else self._identify(message)
            frames = self._life.encode(message)
            pending = Pending(ids=self._as_written(ids, frames), matches=matches, asker=asker)
            self._ledger.open(pending, trio.current_time())
            self.expecting = True
        except NovaError:
            raise
        except Exception as exc:  # of a hook: whoever asks is to be told, and not the writer
            raise BadMessage(f"the question could not be given an id: {exc}") from exc
        return pending, frames

    def give_up(self, pending: Pending, *, sent: bool) -> None:
        """Await an answer no longer; where the question was `sent` it may still come, and is then late."""
        self._ledger.give_up(pending, trio.current_time(), sent=sent)

    def _identify(self, message: Any) -> tuple[Any, tuple[Hashable, ...]]:
        """Return the question as it is sent, and the forms in which its answer may bear its id; none: in order."""
        handlers = self._life.handlers
        if not self._life.hooks.identifies:
            return message, ()  # what comes back is text: no id can be read from it, so answers come in order
        if (own := own_id(handlers, message)) is not None:
            return message, (own,)
        correlation = handlers.correlation
        id = self._ledger.peek(str if correlation.text else int)
        tagged = correlation.tag(message, id)
        if tagged is None:
            return message, ()
        self._ledger.allot()
        return tagged, _written_ids(self._finders, partial(correlation.tag, message), id, tagged)

    def _as_written(self, ids: tuple[Hashable, ...], frames: Sequence[Any]) -> tuple[Identity, ...]:
        """Return what an id is compared by: by what was written, where that may be something else."""
        life = self._life
        is_plain = not life.hooks.encodes and all(type(id) in (int, str) for id in ids)
        if ids and not is_plain and isinstance(life.session.config.codec, JsonCodec | MixedCodec):
            with suppress(BadMessage):  # a codec may be unable to read what it writes
                ids = _ids_as_written(self._finders, ids, life.session.config.codec.decode(frames[0]))
        return tuple(identity(id) for id in ids)

    @property
    def _finders(self) -> tuple[Find, ...]:
        """The hooks that find an id in what was written: those that read answers, and the one that reads questions."""
        # Not `Dialect.read`: it may keep count of what it is shown, which is what the service says.
        return (self._read_id, self._life.handlers.correlation.request_id)

    def _read_id(self, message: Any) -> Hashable | None:
        reading = self._life.handlers.correlation.read(message)
        return None if reading is None else reading.id

    # ----------------------------------------------------------------- what is read

    @property
    def in_order(self) -> bool:
        """Whether the next answer without an id belongs to a question."""
        return bool(self._ledger.in_order)

    @property
    def by_content(self) -> bool:
        """Whether the answer to a question is told by its content, if only a late one."""
        return bool(self._ledger.matchers)

    def awaits(self, id: Hashable) -> bool:
        """Return whether an answer under this id is awaited, or may come late."""
        return self._ledger.awaits(id, trio.current_time())

    def claims(self, message: Any) -> bool:
        """Return whether the `matches` of a question says that `message` answers it."""
        for pending in self._ledger.matchers:
            with suppress(Exception):  # which its caller is told when it is shown what is none of a channel
                if not pending.given_up and pending.matches is not None and pending.matches(message):
                    return True
        return False

    def settle(self, answer: Answer, now: float) -> bool:
        """Settle the question that `answer` belongs to; False where there is none."""
        return self._settle_with(answer, now, in_order=answer.id is None)

    def settle_by_content(self, message: Any, now: float) -> bool:
        """Settle a question whose `matches` says that `message` answers it; False where there is none."""
        return bool(self._ledger.matchers) and self._settle_with(Unjudged(message), now, in_order=False)

    def settle_at_once(self, ask: Ask, result: Any) -> bool:
        """Settle a question with `result`, whatever its id; False where it was settled before."""
        return ask.settle(self, result)

    def _settle_with(self, answer: Answer, now: float, *, in_order: bool) -> bool:
        message, id, ledger = answer.payload, answer.id, self._ledger
        while isinstance(match := ledger.match(message, id, now, in_order=in_order), Unmatched):
            # A matter between that function and whoever asks with it; the message may be for another.
            self._settle(match.pending, able_to_leave(match.error), sent=True)
        match match:
            case Pending(asker=asker):
                asker.tell(self._judge(answer, asker))
                return True
            case Late():
                self._tell_unmatched(id, late=True)
                return True
            case None:
                return False

    def _judge(self, answer: Answer, asker: Asker) -> outcome.Outcome[Any]:
        """Return what whoever asks is told: the payload, or why the service says no."""
        life = self._life
        try:
            error = answer.error
            if error is None and isinstance(answer, Unjudged):
                error = life.handlers.correlation.failure(answer.payload)
            if error is None:
                if asker.on_answer is not None:
                    asker.on_answer(answer.payload)
                return outcome.Value(answer.payload)
        except Exception as exc:
            return outcome.Error(able_to_leave(exc))
        if isinstance(error, RequestFailed):
            return outcome.Error(error)
        said = life.session.redactor.show(str(error))
        return outcome.Error(RequestFailed(f"the service refused the request: {said}", reply=answer.payload))

    def _settle(self, pending: Pending, error: Exception, *, sent: bool) -> None:
        asker: Asker = pending.asker
        self.give_up(pending, sent=sent)
        asker.tell(outcome.Error(error))

    def unclaimed(self, id: Hashable) -> None:
        """Tell that nobody took a message that bears this id."""
        self._tell_unmatched(id, late=False)
        if not self._told_unread and any(len(pending.ids) > 1 for pending in self._ledger.awaited):
            self._told_unread = True
            why = (
                "an answer bears an id that nobody awaits, while questions wait whose id request_id did not find "
                "where tag had put it: let request_id read it as read finds it in an answer"
            )
            self._life.session.note(ConfigError("correlation", why), "request")

    def _tell_unmatched(self, id: Hashable | None, *, late: bool) -> None:
        session = self._life.session
        session.counts.answers_unmatched += 1
        shown = "" if id is None else session.redactor.show(str(id))
        self._life.tell(AnswerUnmatched(id=shown, late=late))

    # ----------------------------------------------------------------- where reading stands still

    def stand_still(self, *, still: bool) -> None:
        """Take note that reading stands still, or goes on: meanwhile nothing that was given up is forgotten."""
        now = trio.current_time()
        for pending in self._held_up:
            pending.give_up(math.inf if still else now)

    def give_up_hope(self, taken_at: float, patience: float, where: str, waiting: int) -> float:
        """Settle the program's questions whose answers cannot be read; return when to look again.

        These are the ones for which nobody has taken anything in the last `patience` seconds, `taken_at` being
        when somebody last did: reading stands still until somebody does.

        Args:
            taken_at: Trio's clock, seconds.
            patience: seconds.
            where: what holds most of what waits.
            waiting: the number of messages that wait there.
        """
        now = trio.current_time()
        look_again = now + patience
        why = f"reading stands still: {waiting} messages wait in {where!r}, and nobody takes them"
        for pending in self._ledger.awaited:
            ask: Asker = pending.asker
            if not isinstance(ask, Ask) or ask.outgoing.purpose != "query" or not ask.is_written:
                continue
            due = max(taken_at, ask.since) + patience
            if due > now:
                look_again = min(look_again, due)
                continue
            self._settle(pending, OutcomeUnknown(why, where=where, waiting=waiting), sent=True)
            pending.give_up(math.inf)
            self._held_up.append(pending)
            del self._held_up[:-MAX_GIVEN_UP]
        return look_again

    # ----------------------------------------------------------------- ends

    def end(self, lost: LinkLost) -> None:
        """Settle all questions: no answer to them can come any more."""
        for pending in self._ledger.end():
            error = OutcomeUnknown("the link was lost before the answer")
            error.__cause__ = lost
            pending.asker.tell(outcome.Error(error))


def _written_ids(finders: Sequence[Find], tag: Callable[[Any], Any], id: Any, tagged: Any) -> tuple[Hashable, ...]:
    """Return the forms in which an answer may bear `id`, which `tag` has put into a question.

    That is how it can be found in the question. A hook may find something there that is not the id; but what is the id,
    or its text, or changes with it, is. Where none finds it, as hooks may read answers alone: the id, and its text.
    """
    other = str(int(id) + 1) if isinstance(id, str) else id + 1
    for find in finders:
        found = _find(find, tagged)
        if found is not None and (str(found) == str(id) or _find(find, tag(other)) != found):
            return (found,)
    return (id,) if isinstance(id, str) else (id, str(id))


def _ids_as_written(finders: Sequence[Find], ids: tuple[Hashable, ...], written: Any) -> tuple[Hashable, ...]:
    """Return the forms of an id as they stand in `written`, which the codec read in what was sent.

    JSON has no form of its own for a UUID, say, and `encode_message` may have changed an id.
    """
    for find in reversed(finders):
        found = _find(find, written)
        if found is not None and (type(ids[0]) not in (int, str) or str(ids[0]) in str(found)):
            return (found,)
    return ids


def _find(find: Find, question: Any) -> Hashable | None:
    try:
        found = find(question)
        hash(found)
    except Exception:  # it reads answers, and this is none
        return None
    return found
