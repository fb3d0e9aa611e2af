"""The reading of messages on a link: each is read once, by the first that has a word for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from trio_nova._link.answers import Answers, Unjudged
from trio_nova._link.grant import Grant
from trio_nova._link.life import LinkLife
from trio_nova._link.standing import Standing
from trio_nova.errors import BadMessage
from trio_nova.handlers.subscription import ANSWERS, SubscriptionAnswer
from trio_nova.readings import Answer, AuthOk, AuthRefused, Data, Many, Other, Reading

__all__ = ["Readings"]

Read = Callable[[Any], Reading | None]


@attrs.define(eq=False)
class Readings:
    """Reads messages: the strategies that were given at the call, then the dialect, then the default reading.

    That is composed of the hooks of all strategies.
    """

    _life: LinkLife
    _answers: Answers
    _standing: Standing
    _grant: Grant
    _first: tuple[Read, ...] = attrs.field(init=False)
    """The readers that come before the default reading."""
    _reads_heartbeats: Read | None = attrs.field(init=False)
    _reads_answers: Callable[[Any], Answer | None] | None = attrs.field(init=False)
    _reads_channels: Read | None = attrs.field(init=False)
    _reads_grants: bool = attrs.field(init=False)
    """Whether a hook may read a grant in any message; else its type says that it is one."""
    _has_read_grants: bool = attrs.field(init=False)
    """Whether that hook has been asked about every message that is read by default."""
    _field: str = attrs.field(init=False)
    """The name under which a mapping bears an id."""

    def __attrs_post_init__(self) -> None:
        handlers, hooks = self._life.handlers, self._life.hooks
        self._first = tuple(self._given_readers()) + (() if hooks.reads is None else (hooks.reads,))
        # What was given at the call has been asked already: by default it is not asked again.
        is_asked = handlers.is_given
        reads_heartbeats = hooks.reads_heartbeats and not is_asked("heartbeat")
        self._reads_heartbeats = handlers.heartbeat.read if reads_heartbeats else None
        self._reads_answers = handlers.correlation.read if hooks.reads_answers else None
        reads_channels = hooks.reads_channels and not is_asked("subscription_handler")
        self._reads_channels = handlers.subscription.read if reads_channels else None
        self._reads_grants = hooks.reads_grants
        self._has_read_grants = hooks.reads_grants and is_asked("subscription_handler")
        self._field = handlers.correlation.field

    def _given_readers(self) -> Sequence[Read]:
        """Return the hooks that strategies given at the call have of their own."""
        handlers, hooks = self._life.handlers, self._life.hooks
        given: list[Read] = []
        if handlers.is_given("heartbeat") and hooks.reads_heartbeats:
            given.append(handlers.heartbeat.read)
        if handlers.is_given("auth_handler"):
            given.append(self._read_login)
        if handlers.is_given("correlation") and hooks.reads_answers:
            given.append(self._read_awaited)
        if handlers.is_given("subscription_handler"):
            if hooks.reads_channels:
                given.append(handlers.subscription.read)
            if hooks.reads_grants:
                given.append(self._read_grants)
        return given

    @property
    def matter(self) -> bool:
        """Whether messages must be read: else all of them are ordinary ones."""
        return bool(self._first or self._answers.expecting or self._standing.active or self._grant.is_asked) or (
            self._reads_heartbeats is not None
        )

    def read_all(self, messages: Sequence[Any]) -> Iterable[Reading]:
        """Return what each message is; a message is read when those before it have been handed on."""
        reads_all = self._life.hooks.reads_all
        if reads_all is None or len(self._first) > 1 or len(messages) == 1:
            return map(self.read, messages)
        try:
            readings = reads_all(messages)
            if len(readings) != len(messages):
                raise ValueError(f"read_all answered {len(readings)} readings of {len(messages)} messages")
        except BadMessage:
            return map(self.read, messages)  # one by one it will show which
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return map(self.read, messages)
        return map(self._or_by_default, readings, messages)

    def _or_by_default(self, reading: Reading | None, message: Any) -> Reading:
        return self._read_with((), message) if reading is None else reading

    def read(self, message: Any) -> Reading:
        """Return what a message is. A hook that fails leaves it an ordinary one."""
        return self._read_with(self._first, message)

    def _read_with(self, readers: Sequence[Read], message: Any) -> Reading:
        try:
            for read in readers:
                reading = read(message)
                if reading is not None:
                    return reading
            return self._read_by_default(message)
        except BadMessage as exc:
            self._life.session.note(exc, "message")
            return Many(())
        except Exception as exc:
            self._life.session.handler_failed(exc)
            return Other(message)

    # ----------------------------------------------------------------- the default

    def _read_by_default(self, message: Any) -> Reading:
        """Read a message by the hooks of the strategies.

        A message of a channel is data, unless it tells an outcome, and its id is awaited, or a question claims it.
        """
        if self._reads_heartbeats is not None and (beat := self._reads_heartbeats(message)) is not None:
            return beat
        answers, standing = self._answers, self._standing
        if not answers.expecting and not self._grant.is_asked:
            return self._read_channel(message) or Other(message) if standing.active else Other(message)
        answer = self._read_answer(message) if answers.expecting else None
        is_awaited = answer is not None and answers.awaits(answer.id)
        if answer is not None and is_awaited and (self._reads_answers is not None or self._has_outcome(message)):
            return answer
        told = self._read_channel(message)
        if told is not None and standing.knows(told):
            is_claimed = isinstance(told, Data) and answers.by_content and self._is_claimed(message)
            return Unjudged(message) if is_claimed else told
        if answer is not None and is_awaited:
            return answer
        if self._grant.is_asked and (login := self._read_login(message)) is not None:
            return login
        if answers.in_order and answer is None:
            return Unjudged(message)
        return (told if standing.active else None) or answer or Other(message)

    def _is_claimed(self, message: Any) -> bool:
        return self._has_outcome(message) and self._answers.claims(message)

    def _has_outcome(self, message: Any) -> bool:
        return self._life.handlers.correlation.has_outcome(message)

    def _read_answer(self, message: Any) -> Answer | None:
        if self._reads_answers is not None:
            answer = self._reads_answers(message)
            if isinstance(answer, Answer) and answer.error is None:
                return Unjudged(answer.payload, answer.id)
            return answer
        if not isinstance(message, (dict, Mapping)) or not self._life.hooks.identifies or "method" in message:
            return None
        id = message.get(self._field)
        return Unjudged(message, id) if id is not None and isinstance(id, (str, int, Hashable)) else None

    def _read_awaited(self, message: Any) -> Answer | None:
        """Return a message as an answer where that is awaited: else it may be data that bear an id."""
        answer = self._read_answer(message) if self._answers.expecting else None
        return answer if answer is not None and self._answers.awaits(answer.id) else None

    def _read_channel(self, message: Any) -> Reading | None:
        if self._reads_channels is not None and (reading := self._reads_channels(message)) is not None:
            return reading
        is_mapping = isinstance(message, (dict, Mapping))
        if is_mapping and message.get("type") not in ANSWERS:
            channel = message.get("channel")
            if channel is not None and isinstance(channel, (str, Hashable)):
                # A hook that reads grants may know one that has the form of data, and is of nothing we have asked for.
                asks = self._reads_grants and not self._has_read_grants
                return (self._read_grants(message) if asks else None) or Data(channel, message)
        return None if self._has_read_grants else self._read_grants(message)

    def _read_grants(self, message: Any) -> Reading | None:
        handler = self._life.handlers.subscription
        if handler.correlated:
            return None
        answers: Sequence[SubscriptionAnswer] | SubscriptionAnswer | None
        answers = handler.handle_subscription_response(message)
        if answers is None or not isinstance(answers, Sequence):
            return answers
        return Many(list(answers))

    def _read_login(self, message: Any) -> AuthOk | AuthRefused | None:
        return self._life.handlers.auth.handle_auth_response(message) if self._grant.is_asked else None
