"""Questions that were written on a link, and their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Literal

import attrs
import outcome
import trio

from trio_nova._link.life import LinkLife
from trio_nova._outbound import Outbound
from trio_nova._session import Session, able_to_leave
from trio_nova.codecs import JsonCodec, MixedCodec, RawCodec
from trio_nova.core.ledger import MAX_GIVEN_UP, Identity, Late, Ledger, Pending, Unmatched, identity
from trio_nova.core.outbox import Lane, Outgoing, Purpose
from trio_nova.errors import BadMessage, ConfigError, LinkLost, NovaError, OutcomeUnknown, RequestFailed
from trio_nova.events import AnswerUnmatched, Event, RequestResolved, RequestSent, RequestUnresolved
from trio_nova.handlers.correlation import ids_as_written, written_ids

__all__ = ["Answers", "Ask"]


@attrs.define(eq=False, kw_only=True)
class Ask:
    """One question, from the call to its answer: told once what came of it."""

    session: Session
    outbound: Outbound
    matches: Callable[[Any], bool] | None = None
    when_written: Callable[[], object] | None = None
    on_answer: Callable[[Any], object] | None = None
    """Shown the answer before anything is taken in that came behind it."""
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
        if self.matches is None:
            own_id(session, message)
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
            if (reason := session.config.correlation.failure(reply)) is not None:
                outbound.limiter.heed(reply)
                if isinstance(reason, RequestFailed):
                    raise reason
                raise RequestFailed(f"the service refused the request: {session.redactor.show(reason)}", reply=reply)
        except Exception as error:
            self._tell(RequestUnresolved(id=self.number, error=error))
            raise
        self._tell(RequestResolved(id=self.number, round_trip=trio.current_time() - self._asked_at))
        return reply

    def _make(self, message: Any, answers: Answers) -> str | bytes:
        """Write it down where its answer will come, and return what is written."""
        pending, frame = answers.open(self, message)
        self._answers = answers
        if self._is_told:  # a hook has cancelled whoever asks: as it is being written it leaves all the same
            answers.give_up(pending, sent=True)
        else:
            self._pending = pending
        return frame

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


def own_id(session: Session, message: Any) -> Hashable | None:
    """Return the id that the caller gave a question; None where it has none, or answers come in order.

    Raises:
        BadMessage: it has something for an id that no answer could be matched by, or a hook fails at it.
    """
    if isinstance(session.config.codec, RawCodec):
        return None
    try:
        own = session.config.correlation.request_id(message)
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
    _by_id: bool = attrs.field(init=False)
    _told_unread: bool = attrs.field(default=False, init=False)
    _held_up: list[Pending] = attrs.field(factory=list, init=False)
    """Questions that were given up as reading stood still: only while it goes on can their answers be late."""

    def __attrs_post_init__(self) -> None:
        self._ledger = Ledger(self._outbound.ids)
        # A raw codec returns text: no id can be read from it, so its answers come in order.
        self._by_id = not isinstance(self._life.session.config.codec, RawCodec)

    @property
    def epoch(self) -> int:
        """The number of the link."""
        return self._life.epoch

    # ----------------------------------------------------------------- questions

    def open(self, ask: Ask, message: Any) -> tuple[Pending, str | bytes]:
        """Expect the answer to a question, and return what is awaited and what is to be written.

        Raises:
            BadMessage: it cannot be encoded, or a hook fails at its id.
            NotSent: its id is taken.
        """
        try:
            message, ids = (message, ()) if ask.matches is not None else self._identify(message)
            frame = self._outbound.encode(message)
            pending = Pending(ids=self._as_written(ids, frame), matches=ask.matches, asker=ask)
            self._ledger.open(pending, trio.current_time())
        except NovaError:
            raise
        except Exception as exc:  # of a hook: whoever asks is to be told, and not the writer
            raise BadMessage(f"the question could not be given an id: {exc}") from exc
        return pending, frame

    def give_up(self, pending: Pending, *, sent: bool) -> None:
        """Await an answer no longer; where the question was `sent` it may still come, and is then late."""
        self._ledger.give_up(pending, trio.current_time(), sent=sent)

    def _identify(self, message: Any) -> tuple[Any, tuple[Hashable, ...]]:
        """Return the question as it is sent, and the forms in which its answer may bear its id; none: in order."""
        session, correlation = self._life.session, self._life.session.config.correlation
        if not self._by_id:
            return message, ()
        if (own := own_id(session, message)) is not None:
            return message, (own,)
        id = self._ledger.allot()
        tagged = correlation.tag(message, id)
        return (message, ()) if tagged is None else (tagged, written_ids(correlation, message, id, tagged))

    def _as_written(self, ids: tuple[Hashable, ...], frame: str | bytes) -> tuple[Identity, ...]:
        """Return what an id is compared by: by what was written, where that may be something else."""
        session = self._life.session
        codec, correlation = session.config.codec, session.config.correlation
        is_plain = not session.hooks.encodes and all(type(id) in (int, str) for id in ids)
        if ids and not is_plain and isinstance(codec, JsonCodec | MixedCodec):
            with suppress(BadMessage):  # a codec may be unable to read what it writes
                ids = ids_as_written(correlation, ids, codec.decode(frame))
        return tuple(identity(id) for id in ids)

    # ----------------------------------------------------------------- what is read

    @property
    def expecting(self) -> bool:
        """Whether a message might be an answer, if only a late one; else `take` need not be asked."""
        return self._by_id or bool(self._ledger.matchers or self._ledger.in_order)

    def take(self, message: Any, now: float, is_data: Callable[[Any], bool]) -> Literal["answer", "unmatched"] | None:
        """Settle the question that `message` answers, and say that it is an answer: it goes no further.

        What `is_data` of a subscription answers nothing, whatever id it bears, unless it tells an outcome; without
        an id not even then. "unmatched": it bears the id of no question, which any other message may; `unclaimed`
        is to be told where it proves to be none of a subscription's either.
        """
        session, ledger = self._life.session, self._ledger
        correlation = session.config.correlation
        id = correlation.reply_id(message) if self._by_id else None
        is_awaited = id is not None and ledger.awaits(id, now)
        if not is_awaited and not ledger.matchers and not ledger.in_order:
            return None if id is None else "unmatched"
        is_told = is_awaited and (session.hooks.reads_answers or correlation.has_outcome(message))
        is_of_channel = not is_told and is_data(message)
        if is_of_channel and not correlation.has_outcome(message):
            return None
        if self._settle_with(message, id, now, in_order=id is None and not is_of_channel):
            return "answer"
        return None if id is None else "unmatched"

    def take_batch(self, messages: Any, now: float) -> bool:
        """Settle the question that one frame's messages answer all together, as only its `matches` can say."""
        return bool(self._ledger.matchers) and self._settle_with(messages, None, now, in_order=False)

    def _settle_with(self, message: Any, id: Hashable | None, now: float, *, in_order: bool) -> bool:
        while isinstance(match := self._ledger.match(message, id, now, in_order=in_order), Unmatched):
            # A matter between that function and whoever asks with it; the message may be for another.
            self._settle(match.pending, able_to_leave(match.error), sent=True)
        match match:
            case Pending(asker=ask):
                if ask.on_answer is not None:
                    ask.on_answer(message)
                ask.tell(outcome.Value(message))
                return True
            case Late():
                self._tell_unmatched(id, late=True)
                return True
            case None:
                return False

    def _settle(self, pending: Pending, error: Exception, *, sent: bool) -> None:
        ask: Ask = pending.asker
        self.give_up(pending, sent=sent)
        ask.tell(outcome.Error(error))

    def unclaimed(self, message: Any) -> None:
        """Tell that an "unmatched" message was taken by nobody."""
        self._tell_unmatched(self._life.session.config.correlation.reply_id(message), late=False)
        if not self._told_unread and any(len(pending.ids) > 1 for pending in self._ledger.awaited):
            self._told_unread = True
            why = (
                "an answer bears an id that nobody awaits, while questions wait whose id reply_id and request_id did "
                "not find where tag had put it: let request_id read it as reply_id reads it in an answer"
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
            ask: Ask = pending.asker
            if ask.outgoing.purpose != "query" or not ask.is_written:
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
