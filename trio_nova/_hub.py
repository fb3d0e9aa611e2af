"""The hub of a session: tells what happens to logging, metrics, observers, and any number of listeners."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Literal, TypeAlias

import attrs
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova.core.bounded import Overflow
from trio_nova.errors import ConfigError, Lagged, SessionOver
from trio_nova.events import ONLY_WHERE_NAMED, Dropped, Event, MessageEvent, Observation, Observer
from trio_nova.observe import LoggingHandler, MetricsCollector

__all__ = ["Hub", "Listener", "ListenerOverflow"]

_logger = logging.getLogger("trio_nova")

MAX_NESTED = 1024
"""Events that may be told from inside observers before those that wait are given up."""

ListenerOverflow: TypeAlias = Literal["drop_oldest", "drop_newest", "fail"]


@attrs.define(eq=False)
class Listener:
    """The events of a session, in a bounded queue of one's own. Made by `Connection.listen`.

    A slow listener loses events, is told so by a `Dropped` in their place, and slows nobody. With overflow
    "fail" the queue ends where it overflowed: receiving then raises Lagged.
    """

    _mailbox: Mailbox[Observation]
    _overflow: ListenerOverflow
    _hears: tuple[type[Event], ...] | None
    """None: all but the events that are made for each message."""
    _receiver: Receiver[Observation] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._receiver = Receiver(self._mailbox)

    def observations(self) -> Receiver[Observation]:
        """Return the receiver of the same queue that says, around each event, where and when it happened."""
        return self._receiver

    async def receive(self) -> Event:
        """Return the next event, waiting for it if need be. Cancelling loses nothing.

        Raises:
            SessionOver: no event will come any more.
            Lagged: the queue has overflowed, and the overflow policy is "fail".
        """
        return (await self._receiver.receive()).event

    def receive_nowait(self) -> Event:
        """Return the next event; raises trio.WouldBlock where there is none, else like `receive`."""
        return self._receiver.receive_nowait().event

    async def receive_batch(self) -> list[Event]:
        """Return all events there are, at least one, waiting for it if need be; raises like `receive`."""
        return [observation.event for observation in await self._receiver.receive_batch()]

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over events until the session is over."""
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.receive()
        except SessionOver:
            raise StopAsyncIteration from None

    # ----------------------------------------------------------------- the session's side

    def hears(self, kind: type[Event]) -> bool:
        return _names(self._hears, kind)

    def hear(self, observation: Observation) -> None:
        """Take an event in, or drop one."""
        if self._overflow == "fail" and self._mailbox.full:
            self._mailbox.close(Lagged("a listener did not keep up with the events"))
        self._mailbox.put_nowait(observation, 0)

    def end(self) -> None:
        """Let what is there be received; after that iteration ends."""
        self._mailbox.close()


def _names(kinds: tuple[type[Event], ...] | None, kind: type[Event]) -> bool:
    """Return whether an event of `kind` is among `kinds`; None names all but `ONLY_WHERE_NAMED`."""
    return not issubclass(kind, ONLY_WHERE_NAMED) if kinds is None else issubclass(kind, kinds)


@attrs.define(eq=False)
class _Ear:
    """One who is told, until it fails."""

    hook_for: Callable[[type[Event]], Observer | None]
    """Returns what is to be called for events of a kind; None where they are not heard."""
    failed: bool = False


@attrs.define(eq=False, repr=False)
class Hub:
    """Tells each event to all who hear it, in the order in which things happened.

    An observer that raises is told nothing any more, and `on_failure` is called with what it raised. What is
    told from inside an observer waits until all have been told the event before.
    """

    session: str
    """The name of the session."""
    wall_clock: Callable[[], float]
    logging: LoggingHandler
    metrics: MetricsCollector
    observers: Sequence[Observer]
    families: Collection[str]
    """The families of events that logging and metrics are told."""
    on_failure: Callable[[Exception], object]
    _ears: tuple[_Ear, ...] = attrs.field(init=False)
    _metrics: _Ear = attrs.field(init=False)
    _metrics_look_at_messages: bool = attrs.field(init=False)
    _hooks: dict[object, list[tuple[_Ear, Observer]]] = attrs.field(factory=dict, init=False)
    """Hooks to be called, by the kind of events; by their family where no observer tells kinds apart."""
    _listeners: list[Listener] = attrs.field(factory=list, init=False)
    _waiting: deque[Observation] | None = attrs.field(default=None, init=False)
    """Observations made inside an observer, still to be told; None: none is being told."""

    def __attrs_post_init__(self) -> None:
        overridden = type(self.metrics).handle_message_event
        self._metrics_look_at_messages = overridden is not MetricsCollector.handle_message_event
        self._metrics = _Ear(self._metrics_hook)
        self._ears = (_Ear(self._logging_hook), self._metrics, *(_Ear(_hook_of(each)) for each in self.observers))

    def _logging_hook(self, kind: type[Event]) -> Observer | None:
        if kind.family not in self.families or kind is MessageEvent:  # see `_logs_messages`
            return None
        hook: Observer = getattr(self.logging, f"log_{kind.family}_event")
        return hook

    def _metrics_hook(self, kind: type[Event]) -> Observer | None:
        if kind.family not in self.families or (kind is MessageEvent and not self._metrics_look_at_messages):
            return None
        hook: Observer = getattr(self.metrics, f"handle_{kind.family}_event")
        return hook

    def tell_families(self, families: Collection[str]) -> None:
        """Tell logging and metrics these families from now on."""
        self.families = families
        self._hooks.clear()

    # ----------------------------------------------------------------- who hears

    def hears(self, kind: type[Event]) -> bool:
        """Return whether anybody is told events of this kind: else none need be made."""
        return bool(self._hooks_for(kind)) or any(listener.hears(kind) for listener in self._listeners)

    def _hooks_for(self, kind: type[Event]) -> list[tuple[_Ear, Observer]]:
        key: object = kind if self.observers else kind.family
        hooks = self._hooks.get(key)
        if hooks is None:
            found = [(ear, ear.hook_for(kind)) for ear in self._ears if not ear.failed]
            hooks = self._hooks[key] = [(ear, hook) for ear, hook in found if hook is not None]
        if kind is MessageEvent and self._logs_messages():
            return [(self._ears[0], self.logging.log_message_event), *hooks]
        return hooks

    def _logs_messages(self) -> bool:
        """Return whether messages are logged, which may change at any time."""
        if "message" not in self.families or not self._ears or self._ears[0].failed:
            return False
        try:
            return self.logging.wants_messages()
        except Exception as exc:
            self._give_up(self._ears[0], self.logging.wants_messages, exc)
            return False

    @property
    def messages_are_heard(self) -> bool:
        """Whether a listener is given every message."""
        return bool(self._listeners) and any(listener.hears(MessageEvent) for listener in self._listeners)

    def listen(self, size: int, overflow: ListenerOverflow, kinds: tuple[type[Event], ...] | None) -> Listener:
        """Return a new listener, which is told what happens from now on.

        Raises:
            ConfigError: the size, or the policy, is none.
        """
        if overflow not in ("drop_oldest", "drop_newest", "fail"):
            raise ConfigError("overflow", f"must be 'drop_oldest', 'drop_newest' or 'fail', not {overflow!r}")
        if size < 1:
            raise ConfigError("size", f"must be at least 1, not {size!r}")
        policy: Overflow = "block" if overflow == "fail" else overflow
        mailbox: Mailbox[Observation] = Mailbox(max_items=size, overflow=policy, sized=False, notice=self._dropped)
        listener = Listener(mailbox, overflow, kinds)
        self._listeners.append(listener)
        return listener

    def _dropped(self, count: int) -> Observation:
        return self._observation(Dropped(count=count, where="listener"), 0)

    def leave(self, listener: Listener) -> None:
        """Tell `listener` nothing any more."""
        self._listeners.remove(listener)
        listener.end()

    # ----------------------------------------------------------------- what happens

    def tell(self, event: Event, epoch: int) -> None:
        """Tell `event`, which happened on the link `epoch`, to all who hear it."""
        if not self._listeners and not self._hooks_for(type(event)):
            return
        observation = self._observation(event, epoch)
        if self._waiting is not None:
            self._waiting.append(observation)
            return
        waiting = self._waiting = deque((observation,))
        try:
            for _ in range(MAX_NESTED):
                if not waiting:
                    return
                self._tell(waiting.popleft())
            lost = Dropped(count=len(waiting), where="observers")
            waiting.clear()
            self._tell(self._observation(lost, epoch))
        finally:
            self._waiting = None

    def _observation(self, event: Event, epoch: int) -> Observation:
        return Observation(self.session, epoch, trio.current_time(), self.wall_clock(), event)

    def _tell(self, observation: Observation) -> None:
        kind = type(observation.event)
        for ear, hook in self._hooks_for(kind):
            try:
                hook(observation)
            except Exception as exc:
                self._give_up(ear, hook, exc)
        for listener in self._listeners:
            if listener.hears(kind):
                listener.hear(observation)

    def _give_up(self, ear: _Ear, hook: object, exc: Exception) -> None:
        """Tell `ear` nothing any more: whoever only watches must not be able to bring the session down."""
        ear.failed = True
        self._hooks.clear()
        # The error event has not where it was raised.
        name = getattr(hook, "__qualname__", type(hook).__name__)
        _logger.warning("%s: %s failed, and is told nothing any more", self.session, name, exc_info=exc)
        self.on_failure(exc)

    def count(self, direction: Literal["sent", "received"], messages: int, size: int) -> None:
        """Tell metrics of a batch of messages."""
        if not self._metrics.failed:
            try:
                self.metrics.handle_message_batch(direction, messages, size)
            except Exception as exc:
                self._give_up(self._metrics, self.metrics.handle_message_batch, exc)

    def close(self) -> None:
        """End all listeners, and hold on to nobody who hears: what is left is freed without a collector."""
        for listener in self._listeners:
            listener.end()
        self._ears, self._metrics, self.on_failure = (), _Ear(_no_hook), _no_hook
        self._hooks.clear()


def _no_hook(_: object) -> None:
    return None


def _hook_of(observer: Observer) -> Callable[[type[Event]], Observer | None]:
    kinds: tuple[type[Event], ...] | None = getattr(observer, "hears", None)
    return lambda kind: observer if _names(kinds, kind) else None
