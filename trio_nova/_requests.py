"""Questions of the application, over as many links as they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from trio_nova._link.answers import Ask
from trio_nova._link.grant import Grant
from trio_nova._outbound import Outbound
from trio_nova._session import Session
from trio_nova.core.outbox import Outgoing
from trio_nova.core.session import State
from trio_nova.errors import (
    BadMessage,
    Expired,
    LinkLost,
    NotSent,
    NovaError,
    OutcomeUnknown,
    RequestFailed,
    SessionOver,
)

__all__ = ["Requests"]


@attrs.define(eq=False)
class Requests:
    """Asks once; again on the next link, and again after another login, where that is called for."""

    _session: Session
    _outbound: Outbound
    under_way: int = attrs.field(default=0, init=False)
    """The number of questions that wait for their answer, or to be asked again."""

    async def request(
        self, message: Any, *, matches: Callable[[Any], bool] | None, idempotent: bool, priority: int
    ) -> Any:
        """Send a question and return its answer; see `Connection.request`."""
        session = self._session
        known: OutcomeUnknown | RequestFailed | None = None  # of an earlier try, for when another comes to nothing
        may_log_in, is_new = True, True
        self.under_way += 1
        try:
            while True:
                epoch, is_accepted = session.epoch, session.ready or session.config.when_down != "fail"
                grant = None if session.current is None else session.current.grant
                logins = 0 if grant is None else grant.logins
                try:
                    return await self._ask(message, matches, priority, is_new=is_new)
                except RequestFailed as refusal:
                    if not may_log_in or not await self._logs_in_again(refusal, grant, logins):
                        raise
                    may_log_in, known = False, known or refusal
                except (NotSent, OutcomeUnknown, Expired, BadMessage) as error:
                    if isinstance(error, OutcomeUnknown):
                        known = error
                    lost = isinstance(error.__cause__, LinkLost) and error.__cause__.epoch >= epoch
                    if not (idempotent and lost and is_accepted) or session.is_closing:
                        if known in (None, error):
                            raise
                        raise known from known.__cause__
                    await self._wait_for_next_link(known or error)
                is_new = False
        finally:
            self.under_way -= 1
            session.settled.ring()
            known = None  # its traceback holds this frame, and so the link that was lost

    async def _ask(self, message: Any, matches: Callable[[Any], bool] | None, priority: int, *, is_new: bool) -> Any:
        def put(outgoing: Outgoing) -> None:
            self._outbound.post(outgoing, is_new=is_new)

        ask = Ask(session=self._session, outbound=self._outbound, matches=matches)
        return await ask.ask(message, put, priority=priority)

    async def _logs_in_again(self, refusal: RequestFailed, asked_on: Grant | None, logins: int) -> bool:
        """Return whether an answer that says no called for another login, which has been done, or will be.

        Raises:
            RequestFailed: it did, in vain.
        """
        session = self._session
        grant = asked_on if session.current is None else session.current.grant
        if grant is None or not grant.is_called_for(refusal.reply):
            return False
        try:
            await grant.renew(logins)
        except NovaError as failure:
            # On a link that is lost, or left: the next is authenticated afresh, and can be asked then.
            is_gone = isinstance(failure.__cause__, LinkLost)
            if not is_gone or session.config.when_down == "fail" or session.is_closing:
                raise refusal from failure
        return True

    async def _wait_for_next_link(self, known: NovaError) -> None:
        """Wait, where a question would be refused now, for another link to ask; raises `known` at the end."""
        session = self._session
        while not session.ready and session.config.when_down == "fail":
            try:
                await session.wait_state(State.READY)
            except SessionOver as over:
                raise known from over
