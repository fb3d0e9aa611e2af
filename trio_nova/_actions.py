"""Doing what hooks answer: replies, and what becomes of the session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from trio_nova._outbound import Outbound
from trio_nova._session import Session
from trio_nova.core.outbox import Lane, Outgoing
from trio_nova.errors import NotSent, NovaError
from trio_nova.events import Dropped
from trio_nova.messages import Action, Close, Reconnect, Reply, ReplyMany, Retry, Stop

if TYPE_CHECKING:
    from trio_nova._link import LinkLife
    from trio_nova._link.writer import Writer

__all__ = ["Actions"]

MAX_REPLIES = 1024
"""Replies of hooks that may wait to be written; what exceeds them is refused, and reported."""
REPLIES_IN_HAND = 64
"""Unwritten replies with which the dispatcher stops handling messages, so that the peer feels it."""


@attrs.define(eq=False, repr=False)
class Actions:
    """Does what hooks answer, and reports the replies that were not written: nobody waits for them."""

    _session: Session
    _outbound: Outbound
    _replies: int = attrs.field(default=0, init=False)
    _unsent: int = attrs.field(default=0, init=False)
    """Replies that were still waiting when the session ended."""
    _excuses: bool = attrs.field(default=False, init=False)
    """Whether what is replied just now answers the failure of a reply."""

    def perform(self, actions: Sequence[Action], link: LinkLife | None = None, setup: Writer | None = None) -> None:
        """Do what a hook asked for, in its order: what follows a reply is done once that is written, or cannot be.

        What it answered on a link is done to that link or not at all; without one, a reply waits for the next.

        Args:
            actions: what the hook answered.
            link: the link that it was asked on.
            setup: what writes the replies, where they are to leave before the link is ready.
        """
        for at, action in enumerate(actions):
            match action:
                case Reply(message):
                    messages: Sequence[Any] = [message]
                case ReplyMany(messages):
                    pass
                case _:
                    self._change(action, link)
                    continue
            rest = actions[at + 1 :]
            self._reply(messages, link, setup, partial(self.perform, rest, link, setup) if rest else None)
            return

    def _change(self, action: Action, link: LinkLife | None) -> None:
        session = self._session
        match action:
            case Close(code, reason):
                session.close(code, reason)
            case Stop(error):
                session.fail(error, 1000)
            case Reconnect() | Retry():
                session.go_elsewhere(action, session.epoch if link is None else link.epoch)
            case _:
                pass

    def _reply(
        self,
        messages: Sequence[Any],
        link: LinkLife | None,
        setup: Writer | None,
        then: Callable[[], None] | None,
    ) -> None:
        """Send replies; `then` is done when the last of them is settled."""
        for number, message in enumerate(messages, 1):
            last = then if number == len(messages) else None
            try:
                outgoing = self._outgoing(message, link, setup)
                (self._outbound.put if setup is None else setup.put)(outgoing)
            except NovaError as error:
                self._failed(error, self._excuses)
                if last is not None:
                    last()
            else:
                self._replies += 1
                outgoing.on_settled(partial(self._settled, is_excuse=self._excuses, then=last))
        if not messages and then is not None:
            then()

    def _outgoing(self, message: Any, link: LinkLife | None, setup: Writer | None) -> Outgoing:
        outbound = self._outbound
        if self._replies >= MAX_REPLIES:
            raise NotSent(f"{MAX_REPLIES} replies of hooks are waiting already")
        if link is not None and not link.is_up:
            raise NotSent("the link that it was for was lost") from link.lost
        if setup is not None:
            return outbound.outgoing_message(message, lane=Lane.SETUP, purpose="setup")
        return outbound.outgoing_message(message, epoch=0 if link is None else link.epoch)

    def _settled(
        self,
        outgoing: Outgoing,
        error: NovaError | None,
        *,
        is_excuse: bool,
        then: Callable[[], None] | None,
    ) -> None:
        self._replies -= 1
        self._session.settled.ring()
        self._report(error, is_excuse=is_excuse)
        if then is not None:
            then()

    def _report(self, error: NovaError | None, *, is_excuse: bool) -> None:
        if error is not None and self._session.is_over:
            self._unsent += 1
        elif error is not None:
            self._failed(error, is_excuse)

    def _failed(self, error: NovaError, is_excuse: bool) -> None:
        session = self._session
        if is_excuse or session.is_closing:
            # What answers the failure of a reply may fail in the same way: asked about that too, a hook
            # that always answers would be asked without end.
            session.note(error, "reply")
            return
        self._excuses = True
        try:
            self.perform(session.report(error, "reply"))
        finally:
            self._excuses = False

    async def wait_replies_written(self) -> None:
        """Wait until hooks have few unwritten replies: the dispatcher's backpressure."""
        while self._replies >= REPLIES_IN_HAND and not self._session.is_over:
            await self._session.settled.wait()

    def end(self) -> None:
        """Tell how many replies were not sent when the session ended."""
        if self._unsent:
            self._session.tell(Dropped(count=self._unsent, where="replies"))
