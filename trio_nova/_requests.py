"""Questions and their answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Literal, Protocol

import attrs
import outcome
import trio

from trio_nova._outbound import Outbound
from trio_nova._session import Session, able_to_leave
from trio_nova.codecs import JsonCodec, MixedCodec, RawCodec
from trio_nova.core.ledger import MAX_GIVEN_UP, Identity, Late, Ledger, Pending, Unmatched, identity
from trio_nova.core.outbox import Lane, Outgoing, Purpose
from trio_nova.core.session import State
from trio_nova.errors import (
    BadMessage,
    ConfigError,
    Expired,
    LinkLost,
    NotSent,
    NovaError,
    OutcomeUnknown,
    RequestFailed,
    SessionOver,
)
from trio_nova.events import AnswerUnmatched, RequestResolved, RequestSent, RequestUnresolved
from trio_nova.handlers import Correlation
from trio_nova.handlers.correlation import ids_as_written, written_ids

__all__ = ["Requests"]


@attrs.define(eq=False)
class _Waiter:
    """The task that waits for an answer; told once."""

    task: trio.lowlevel.Task
    outgoing: Outgoing | None = None
    epoch: int = 0
    """The link that the question was written on; 0 while it is not."""
    since: float = attrs.field(factory=trio.current_time)
    """Trio's clock, seconds: the time when it was written, or else asked."""
    missed: int = 0
    """The link that was lost already when the question was asked, though not everybody knew; else 0."""
    on_answer: Callable[[Any], object] | None = None
    """Shown the answer before anything is taken in that came behind it."""
    result: outcome.Outcome[Any] | None = None
    is_waiting: bool = False

    def tell(self, result: outcome.Outcome[Any]) -> None:
        """Let it go on with `result`."""
        self.result = result
        if self.is_waiting:
            trio.lowlevel.reschedule(self.task)

    async def wait(self, give_up: Callable[[], None]) -> Any:
        """Wait to be told; raises what the result does. Calls `give_up` where it is cancelled before."""

        def abort(raise_cancel: object) -> trio.lowlevel.Abort:
            give_up()
            return trio.lowlevel.Abort.SUCCEEDED

        if self.result is None:
            self.is_waiting = True
            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        assert self.result is not None
        return self.result.unwrap()


class Renewal(Protocol):
    """Who authenticates the link again, where an answer says that it is not."""

    @property
    def grants(self) -> int:
        """How often the service has accepted us."""
        ...

    def is_called_for(self, reply: Any) -> bool:
        """Whether an answer that says no says so because we are not authenticated."""
        ...

    async def renew(self, seen: int) -> None:
        """Authenticate again, unless that was done since there were `seen` grants; raises NovaError."""
        ...


@attrs.define(eq=False)
class Requests:
    """Every question settles: with its answer, or with what is known of it when no answer can come."""

    _session: Session
    _outbound: Outbound
    _ledger: Ledger = attrs.field(factory=Ledger, init=False)
    _pending: dict[Pending, _Waiter] = attrs.field(factory=dict, init=False)
    _by_id: bool = attrs.field(init=False)
    _asked: int = attrs.field(default=0, init=False)
    _reads_answers: bool = attrs.field(init=False)
    """Whether a hook of the service's own says what is an answer."""
    _told_unread: bool = attrs.field(default=False, init=False)
    under_way: int = attrs.field(default=0, init=False)
    """The number of questions that wait for their answer, or to be asked again."""
    _held_up: list[Pending] = attrs.field(factory=list, init=False)
    """Those that were given up as reading stood still: only while it goes on can their answers be late."""
    renewal: Renewal | None = attrs.field(default=None, init=False)
    """The authenticator puts itself here."""

    def __attrs_post_init__(self) -> None:
        # A raw codec returns text: no id can be read from it, so its answers come in order.
        self._by_id = not isinstance(self._session.config.codec, RawCodec)
        self._reads_answers = type(self._session.config.correlation).reply_id is not Correlation.reply_id

    async def request(
        self,
        message: Any,
        *,
        matches: Callable[[Any], bool] | None = None,
        idempotent: bool = False,
        priority: int = 0,
        lane: Lane = Lane.APPLICATION,
        purpose: Purpose = "query",
        when_written: Callable[[], object] | None = None,
        on_answer: Callable[[Any], object] | None = None,
        renews: bool = True,
    ) -> Any:
        """Send a question and return its answer; see `Connection.request`.

        `when_written` is called once the question has left; `on_answer` with the answer, by the reader,
        before it takes in what came behind it. `renews` says whether a refusal may call for another
        authentication.
        """
        session, renewal = self._session, self.renewal if renews and purpose != "auth" else None
        known: OutcomeUnknown | RequestFailed | None = None  # of an earlier try, for when another comes to nothing
        is_new = True
        self.under_way += 1
        try:
            while True:
                epoch, grants = session.epoch, 0 if renewal is None else renewal.grants
                is_accepted = session.ready or session.config.when_down != "fail"
                try:
                    return await self._ask(message, matches, priority, lane, purpose, when_written, on_answer, is_new)
                except RequestFailed as error:
                    if renewal is None or not renewal.is_called_for(error.reply):
                        raise
                    try:
                        await renewal.renew(grants)
                    except NovaError as failure:
                        # On a link that is lost, or left: the next is authenticated afresh, and can be asked then.
                        is_gone = isinstance(failure.__cause__, LinkLost) and lane is Lane.APPLICATION
                        if not is_gone or session.config.when_down == "fail" or session.is_closing:
                            raise error from failure
                    renewal, known = None, known or error  # once
                except (NotSent, OutcomeUnknown, Expired) as error:
                    if isinstance(error, OutcomeUnknown):
                        known = error
                    lost = isinstance(error.__cause__, LinkLost) and error.__cause__.epoch >= epoch
                    if not (idempotent and lost and is_accepted) or session.is_closing:
                        if known in (None, error):
                            raise
                        raise known from known.__cause__
                    while not session.ready and session.config.when_down == "fail":
                        # Asked again now, it would be refused: it is the next link that is to be asked.
                        try:
                            await session.wait_state(State.READY)
                        except SessionOver as over:
                            raise (known or error) from over
                is_new = False
        finally:
            self.under_way -= 1
            self._outbound.settled.ring()

    async def _ask(
        self,
        message: Any,
        matches: Callable[[Any], bool] | None,
        priority: int,
        lane: Lane,
        purpose: Purpose,
        when_written: Callable[[], object] | None,
        on_answer: Callable[[Any], object] | None,
        is_new: bool,
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        session, started = self._session, trio.current_time()
        self._asked += 1
        number = self._asked
        message, ids = (message, ()) if matches is not None else self._identify(message)
        frame, kind = self._outbound.encode(message), self._outbound.kind_of(message)
        pending = Pending(ids=self._as_written(ids, frame), matches=matches)
        self._ledger.open(pending, started)  # NotSent, where the id is taken
        missed = session.epoch if session.state is State.DISCONNECTED else 0
        waiter = _Waiter(trio.lowlevel.current_task(), on_answer=on_answer, missed=missed)
        self._pending[pending] = waiter

        def settled(outgoing: Outgoing, error: NovaError | None) -> None:
            if error is not None:
                self._settle(pending, outcome.Error(error))
            else:
                waiter.epoch, waiter.since = session.epoch, trio.current_time()
                session.tell(RequestSent(id=number))
                if when_written is not None:
                    when_written()

        def give_up() -> None:
            sent = waiter.outgoing is None or not self._outbound.withdraw(waiter.outgoing)
            del self._pending[pending]
            self._ledger.give_up(pending, trio.current_time(), sent=sent)
            session.tell(RequestUnresolved(id=number, error=None))

        try:
            waiter.outgoing = self._outbound.post(frame, settled, kind, priority, lane, purpose, is_new=is_new)
        except NovaError as error:
            del self._pending[pending]
            self._ledger.give_up(pending, trio.current_time(), sent=False)
            session.tell(RequestUnresolved(id=number, error=error))
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise
        try:
            reply = await waiter.wait(give_up)
            reason = session.config.correlation.failure(reply)
            if reason is not None:
                self._outbound.heed(reply)
                if isinstance(reason, RequestFailed):
                    raise reason
                raise RequestFailed(f"the service refused the request: {session.redactor.show(reason)}", reply=reply)
        except Exception as error:
            session.tell(RequestUnresolved(id=number, error=error))
            raise
        session.tell(RequestResolved(id=number, round_trip=trio.current_time() - started))
        return reply

    def _identify(self, message: Any) -> tuple[Any, tuple[Hashable, ...]]:
        """Return the question as it is to be sent, and the forms in which its answer may bear its id; none: in order.

        Raises:
            BadMessage: it has something for an id that no answer could be matched by.
        """
        correlation = self._session.config.correlation
        if not self._by_id:
            return message, ()
        own = correlation.request_id(message)
        if isinstance(own, Hashable) and own is not None:
            return message, (own,)
        if own is not None:
            raise BadMessage(f"a {type(own).__name__} cannot be the id of a question")
        id = self._ledger.allot()
        tagged = correlation.tag(message, id)
        return (message, ()) if tagged is None else (tagged, written_ids(correlation, message, id, tagged))

    def _as_written(self, ids: tuple[Hashable, ...], frame: str | bytes) -> tuple[Identity, ...]:
        """Return what an id is compared by: by what was written, where that may be something else."""
        config = self._session.config
        is_plain = not self._outbound.changes_messages and all(type(id) in (int, str) for id in ids)
        if ids and not is_plain and isinstance(config.codec, JsonCodec | MixedCodec):
            with suppress(BadMessage):  # a codec may be unable to read what it writes
                ids = ids_as_written(config.correlation, ids, config.codec.decode(frame))
        return tuple(identity(id) for id in ids)

    def _settle(self, pending: Pending, result: outcome.Outcome[Any]) -> None:
        waiter = self._pending.pop(pending, None)
        if waiter is not None:
            self._ledger.give_up(pending, trio.current_time(), sent=waiter.epoch != 0)
            waiter.tell(result)

    # ----------------------------------------------------------------- the reader's side

    @property
    def expecting(self) -> bool:
        """Whether a message might be an answer, if only a late one; else `take` need not be asked."""
        return self._by_id or self._ledger.expects

    def take(self, message: Any, now: float, is_data: Callable[[Any], bool]) -> Literal["answer", "unmatched"] | None:
        """Settle the question that `message` answers, and say that it is an answer: it goes no further.

        What `is_data` of a subscription answers nothing, whatever id it bears, unless it tells an outcome; without
        an id not even then. "unmatched": it bears the id of no question, which any other message may; `unclaimed`
        is to be told where it proves to be none of a subscription's either.
        """
        correlation, ledger = self._session.config.correlation, self._ledger
        id = correlation.reply_id(message) if self._by_id else None
        is_awaited = id is not None and ledger.awaits(id, now)
        if not is_awaited and not ledger.expects:
            return None if id is None else "unmatched"
        is_told = is_awaited and (self._reads_answers or correlation.has_outcome(message))
        is_of_channel = not is_told and is_data(message)
        if is_of_channel and not correlation.has_outcome(message):
            return None
        if self._settle_with(message, id, now, in_order=id is None and not is_of_channel):
            return "answer"
        return None if id is None else "unmatched"

    def take_batch(self, messages: Any, now: float) -> bool:
        """Settle the question that one frame's messages answer all together, as only its `matches` can say."""
        return self._ledger.expects_batch and self._settle_with(messages, None, now, in_order=False)

    def _settle_with(self, message: Any, id: Hashable | None, now: float, *, in_order: bool) -> bool:
        while isinstance(match := self._ledger.match(message, id, now, in_order=in_order), Unmatched):
            # A matter between that function and whoever asks with it; the message may be for another.
            self._settle(match.pending, outcome.Error(able_to_leave(match.error)))
        match match:
            case Pending() as pending:
                waiter = self._pending.pop(pending, None)
                if waiter is not None:
                    if waiter.on_answer is not None:
                        waiter.on_answer(message)
                    waiter.tell(outcome.Value(message))
                return True
            case Late():
                self._tell_unmatched(id, late=True)
                return True
            case None:
                return False

    def unclaimed(self, message: Any) -> None:
        """Tell that an "unmatched" message was taken by nobody."""
        self._tell_unmatched(self._session.config.correlation.reply_id(message), late=False)
        if not self._told_unread and any(len(pending.ids) > 1 for pending in self._pending):
            self._told_unread = True
            why = (
                "an answer bears an id that nobody awaits, while questions wait whose id reply_id and request_id did "
                "not find where tag had put it: let request_id read it as reply_id reads it in an answer"
            )
            self._session.note(ConfigError("correlation", why), "request")

    def _tell_unmatched(self, id: Hashable | None, *, late: bool) -> None:
        self._session.counts.answers_unmatched += 1
        shown = "" if id is None else self._session.redactor.show(str(id))
        self._session.tell(AnswerUnmatched(id=shown, late=late))

    # ----------------------------------------------------------------- where reading stands still

    def stand_still(self, *, still: bool) -> None:
        """Take note that reading stands still, or goes on: meanwhile nothing that was given up is forgotten."""
        now = trio.current_time()
        for pending in self._held_up:
            pending.given_up_at = math.inf if still else now

    def give_up_hope(self, taken_at: float, patience: float, find_fullest: Callable[[], tuple[str, int]]) -> float:
        """Settle the program's questions whose answers cannot be read; return when to look again.

        These are the ones for which nobody has taken anything in the last `patience` seconds, `taken_at` being
        when somebody last did: reading stands still until somebody does.
        """
        now = trio.current_time()
        look_again = now + patience
        where, waiting = find_fullest()
        why = f"reading stands still: {waiting} messages wait in {where!r}, and nobody takes them"
        for pending, waiter in list(self._pending.items()):
            outgoing = waiter.outgoing
            if outgoing is None or outgoing.purpose != "query":
                continue
            due = max(taken_at, waiter.since) + patience
            if due > now:
                look_again = min(look_again, due)
                continue
            when_settled = outgoing.when_settled
            if waiter.epoch:
                self._settle(pending, outcome.Error(OutcomeUnknown(why, where=where, waiting=waiting)))
                pending.given_up_at = math.inf
                self._held_up.append(pending)
                del self._held_up[:-MAX_GIVEN_UP]
            elif self._outbound.withdraw(outgoing):
                self._settle(pending, outcome.Error(NotSent(why)))
            else:
                outgoing.when_settled = when_settled  # it is being written
        return look_again

    # ----------------------------------------------------------------- ends

    def link_lost(self, lost: LinkLost) -> None:
        """Settle all questions that were accepted while this link was up: no answer to them can come.

        What waited for it to leave again settles as NotSent; what was asked since is not affected.
        """
        for pending, waiter in list(self._pending.items()):
            if waiter.epoch:
                self._fail(pending, OutcomeUnknown("the link was lost before the answer"), lost)
            elif waiter.missed == lost.epoch:
                continue
            elif waiter.outgoing is not None and self._outbound.withdraw(waiter.outgoing):
                self._fail(pending, NotSent("the link was lost before it was written"), lost)
        self._ledger.link_lost()
        self._held_up.clear()

    def end(self) -> None:
        """Settle all that is left: no answer can come any more."""
        for pending in list(self._pending):
            self._settle(pending, outcome.Error(OutcomeUnknown("the session ended before the answer")))

    def _fail(self, pending: Pending, error: NovaError, cause: LinkLost) -> None:
        error.__cause__ = cause
        self._settle(pending, outcome.Error(error))
