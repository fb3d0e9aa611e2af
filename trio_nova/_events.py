"""Events on their way to those who want them: logging, metrics, and any number of listeners."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeAlias

import attrs
import trio

from trio_nova._mailbox import Mailbox, Receiver
from trio_nova.core.bounded import Overflow
from trio_nova.errors import ConfigError, Lagged
from trio_nova.handlers import LoggingHandler, MetricsCollector
from trio_nova.messages import ConnectionEvent, Dropped, ErrorEvent, Event, MessageEvent, RateConsumed

__all__ = ["Hub", "Listener", "ListenerOverflow"]

_logger = logging.getLogger("trio_nova")

ListenerOverflow: TypeAlias = Literal["drop_oldest", "drop_newest", "fail"]


@attrs.define(eq=False)
class Listener(Receiver[Event]):
    """One listener's own bounded queue of events. A slow listener loses events, is told so, and slows nobody.

    A `Dropped` stands where events were dropped. With overflow "fail" the queue ends where it
    overflowed: receiving then raises Lagged.
    """

    _overflow: ListenerOverflow = "drop_oldest"
    messages: bool = False
    """Whether it is told of every message too."""

    @classmethod
    def of_size(cls, size: int, overflow: ListenerOverflow, messages: bool) -> Listener:
        if overflow not in ("drop_oldest", "drop_newest", "fail"):
            raise ConfigError("overflow", f"must be 'drop_oldest', 'drop_newest' or 'fail', not {overflow!r}")
        if size < 1:
            raise ConfigError("size", f"must be at least 1, not {size!r}")
        policy: Overflow = "block" if overflow == "fail" else overflow
        mailbox: Mailbox[Event] = Mailbox(max_items=size, overflow=policy, sized=False, notice=_dropped)
        return cls(mailbox, overflow, messages)

    def hear(self, event: Event) -> None:
        """Take an event in, or drop one."""
        if self._overflow == "fail" and self._mailbox.full:
            self._mailbox.close(Lagged("a listener did not keep up with the events"))
        self._mailbox.put_nowait(event, 0)

    def end(self) -> None:
        """Let what is there be received; after that iteration ends."""
        self._mailbox.close()


def _dropped(count: int) -> Dropped:
    return Dropped(at=trio.current_time(), epoch=0, count=count, where="listener")


@attrs.define(eq=False, repr=False)
class Hub:
    """Tells each event to all who want it. A failure of logging or metrics is reported once and costs nothing else."""

    logging_handler: LoggingHandler
    metrics: MetricsCollector
    families: Collection[str]
    """The families of events that logging and metrics are told."""
    _listeners: list[Listener] = attrs.field(factory=list, init=False)
    _failed: dict[str, None] = attrs.field(factory=dict, init=False)
    _metrics_look_at_messages: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        overridden = type(self.metrics).handle_message_event
        self._metrics_look_at_messages = overridden is not MetricsCollector.handle_message_event

    @property
    def wants_messages(self) -> bool:
        """Whether anybody wants an event for every message."""
        if self.messages_are_heard:
            return True
        return "message" in self.families and (self._metrics_look_at_messages or self._logging_wants_messages())

    def _logging_wants_messages(self) -> bool:
        try:
            return self.logging_handler.wants_messages()
        except Exception as exc:
            self._report("wants_messages", exc)
            return False

    @property
    def messages_are_heard(self) -> bool:
        """Whether a listener is given every message."""
        return bool(self._listeners) and any(listener.messages for listener in self._listeners)

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        self._listeners.remove(listener)
        listener.end()

    def emit(self, event: Event) -> None:
        """Tell `event` to all who want it, in the order in which things happened."""
        for hook in self._hooks_of(event):
            try:
                hook(event)
            except Exception as exc:
                # Whoever only watches must not be able to bring the session down.
                self._report(hook.__name__, exc)
        for listener in self._listeners:
            if listener.messages or not isinstance(event, MessageEvent | RateConsumed):
                listener.hear(event)

    def _hooks_of(self, event: Event) -> tuple[Callable[[Any], None], ...]:
        """Return the hooks of logging and metrics that are to be told of it."""
        logging, metrics = self.logging_handler, self.metrics
        match event:
            case ConnectionEvent() if "connection" in self.families:
                return logging.log_connection_event, metrics.handle_connection_event
            case MessageEvent() if "message" in self.families:
                return logging.log_message_event, metrics.handle_message_event
            case ErrorEvent() if "error" in self.families:
                return logging.log_error_event, metrics.handle_error_event
            case _:
                return ()

    def count(self, direction: str, messages: int, size: int) -> None:
        """Tell metrics of a batch of messages."""
        try:
            self.metrics.handle_message_batch(direction, messages, size)
        except Exception as exc:
            self._report("handle_message_batch", exc)

    def close(self) -> None:
        """End all listeners."""
        for listener in self._listeners:
            listener.end()

    def _report(self, hook: str, exc: Exception) -> None:
        if hook not in self._failed:
            self._failed[hook] = None
            _logger.warning("%s() failed, and is not reported again: %s", hook, type(exc).__name__, exc_info=exc)
