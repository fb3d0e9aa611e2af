"""The client's side of a link, without the link: what an adapter makes of messages, hook by hook."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property, partial
from typing import Any, TypeAlias, get_args

import attrs

from trio_nova._hooks import Handlers, Hooks
from trio_nova.adapter import Adapter, Settled
from trio_nova.codecs import LinkCodec, as_plain, open_link_codec
from trio_nova.config import Config, configure
from trio_nova.dialect import Dialect
from trio_nova.errors import ConfigError, RequestFailed, printable
from trio_nova.handlers import (
    AuthHandler,
    Channel,
    ConnectionHandler,
    ConnectionInfo,
    Correlation,
    ErrorHandler,
    Heartbeat,
    InOrder,
    MessageHandler,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.messages import ACTIONS, Ping, Pong, Reply
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.readings import (
    Answer,
    AuthOk,
    AuthRefused,
    Beat,
    ByServerId,
    Data,
    Granted,
    HeartbeatAsked,
    Many,
    Reading,
    Refused,
    Step,
)
from trio_nova.testing._samples import Sample
from trio_nova.urls import Url

__all__ = ["ROLES", "URL", "ClientSide", "label", "settled", "shown"]

URL = "ws://localhost/"

ROLES: Mapping[str, type] = {
    "connection": ConnectionHandler,
    "message": MessageHandler,
    "subscription": SubscriptionHandler,
    "auth": AuthHandler,
    "error": ErrorHandler,
    "rate_limit": RateLimitHandler,
    "logging": LoggingHandler,
    "metrics": MetricsCollector,
    "correlation": Correlation,
    "heartbeat": Heartbeat,
}
"""The strategies of a session, by the field of `Handlers`."""

Judge: TypeAlias = Callable[[Any], str | None]
"""Says what is wrong with a hook's answer; None where nothing is."""


def settled(adapter: Adapter | None, options: Mapping[str, Any]) -> Settled:
    """Return what a session would be made of; ConfigError where an option is wrong."""
    return Settled(url=Url.parse(URL), config=configure(Config(), options), adapter=adapter)


def label(hook: Any) -> str:
    """Return what an author calls a hook: by its name where it is the adapter's, and else with its class."""
    owner, name = getattr(hook, "__self__", None), getattr(hook, "__name__", repr(hook))
    if name == "handle_message" and type(owner).__module__ == Adapter.__module__:
        return "handle_platform_message"
    is_plain = owner is None or isinstance(owner, Adapter) or type(owner).__module__ == Adapter.__module__
    return name if is_plain or type(owner).__name__.startswith("_Blend") else f"{type(owner).__name__}.{name}"


def shown(value: Any, limit: int = 120) -> str:
    """Return a value for a report."""
    try:
        return printable(repr(value), limit)
    except Exception as exc:  # of a repr of the author's, or of something too deeply nested
        return f"a {type(value).__name__} (its repr raises {type(exc).__name__})"


@attrs.define(eq=False, slots=False)
class ClientSide:
    """An adapter's strategies as they speak on one link, with its dialect and its codec."""

    handlers: Handlers
    hooks: Hooks
    dialect: Dialect
    config: Config
    _open_service: Callable[[], LinkCodec]
    _service: LinkCodec = attrs.field(init=False)
    _coder: LinkCodec | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.begin_anew()

    @classmethod
    def of(cls, adapter: Adapter, open_service: Callable[[], LinkCodec]) -> ClientSide:
        """Make what a link would have; raises what hooks raise, and ConfigError."""
        made = settled(adapter, adapter.options())
        handlers = Handlers.of(made)
        dialect = adapter.open_link(ConnectionInfo(url=made.url, epoch=1))
        if not isinstance(dialect, Dialect):
            raise ConfigError("open_link", f"returns a {type(dialect).__name__}, which is no Dialect")
        if dialect is not adapter:
            handlers = handlers.speak((dialect, adapter))
        return cls(handlers, Hooks.of(handlers, made.config), dialect, made.config, open_service)

    # ----------------------------------------------------------------- the wire

    def begin_anew(self) -> None:
        """Begin another link, as far as it is the codecs'."""
        self._service = self._open_service()
        self._coder = open_link_codec(self.config.codec, self.config.max_message_size)

    def frames_of(self, sample: Sample) -> Sequence[str | bytes]:
        """Return what the service puts on the wire."""
        return self._service.encode(sample.message)

    def hear(self, sample: Sample) -> list[Any]:
        """Return the messages that a sample brings."""
        return self.decode(self.frames_of(sample))

    def over_the_wire(self, message: Any) -> list[Any]:
        """Return what the service makes of a message of ours."""
        return [each for frame in self.encode(message) for each in self._service.decode(frame)]

    def encode(self, message: Any) -> Sequence[str | bytes]:
        """Return the frames of a message, as a session would send them."""
        message = self.handlers.message.encode_message(message)
        return [as_plain(self.config.codec).encode(message)] if self._coder is None else self._coder.encode(message)

    def decode(self, frames: Sequence[str | bytes]) -> list[Any]:
        """Return the messages of frames."""
        if self._coder is None:
            return [as_plain(self.config.codec).decode(frame) for frame in frames]
        return [message for frame in frames for message in self._coder.decode(frame)]

    def fault_of_message(self, message: Any) -> str | None:
        """Return why a message of ours cannot be sent."""
        try:
            frames = self.encode(message)
        except Exception as exc:
            return f"{shown(message)}, which the codec cannot encode: {type(exc).__name__}: {printable(str(exc))}"
        for frame in frames:
            if not isinstance(frame, str | bytes):
                return f"{shown(message)}, of which the codec makes a {type(frame).__name__}, neither str nor bytes"
        return None if frames else f"{shown(message)}, of which the codec makes no frame"

    # ----------------------------------------------------------------- what messages are

    def read(self, message: Any, *, as_grants: bool = False) -> list[Any]:
        """Return what a message is, or may be: a reading that is not the dialect's own depends on what is awaited.

        `as_grants`: an answer is that to a subscription, where these are asked for as requests.
        """
        handlers = self.handlers
        own = None if self.hooks.reads is None else self.hooks.reads(message)
        beat = handlers.heartbeat.read(message) if own is None else None
        found: list[Any] = [each for each in (own, beat) if each is not None]
        if not found:
            found = [handlers.correlation.read(message), handlers.subscription.read(message), self._default(message)]
            found += [None if handlers.subscription.correlated else self._grants(message)]
        found.append(handlers.auth.handle_auth_response(message))
        if as_grants and handlers.subscription.correlated and isinstance(found[0], Answer):
            found.append(self._grants(found[0].payload))
        return [each for each in found if each is not None]

    def _default(self, message: Any) -> Data | None:
        channel = message.get("channel") if isinstance(message, Mapping) else None
        return Data(channel, message) if isinstance(channel, Hashable) and channel is not None else None

    def _grants(self, message: Any) -> Any:
        grants = self.handlers.subscription.handle_subscription_response(message)
        return Many(list(grants)) if isinstance(grants, Sequence) else grants

    def reader_of(self, expected: Any) -> str:
        """Return the name of the hook that is to read something."""
        kind, handlers = expected if isinstance(expected, type) else type(expected), self.handlers
        hooks: dict[Any, Any] = {
            **dict.fromkeys((AuthOk, AuthRefused), handlers.auth.handle_auth_response),
            **dict.fromkeys((Granted, Refused), handlers.subscription.handle_subscription_response),
            **dict.fromkeys((Beat, HeartbeatAsked), handlers.heartbeat.read),
            Answer: handlers.correlation.read,
        }
        hook = hooks.get(kind, handlers.subscription.read) if self.hooks.reads is None else self.hooks.reads
        return label(hook)

    def belongs(self, data: Data, channel: Channel, server_ids: Sequence[Any]) -> bool:
        """Return whether data are of a channel, which the service calls by one of these ids."""
        for name in data.channel if isinstance(data.channel, list) else [data.channel]:
            if isinstance(name, ByServerId):
                if name.id in server_ids:
                    return True
            elif name == channel.key or self.handlers.subscription.matches(channel.name, name):
                return True
        return False

    # ----------------------------------------------------------------- hooks that look at messages

    @cached_property
    def looks(self) -> list[tuple[Callable[[Any], Any], str, Judge]]:
        """Every hook that is shown messages: how to ask it, its name, and who judges what it answers."""
        handlers, subscription = self.handlers, self.handlers.subscription
        grants = subscription.handle_subscription_response
        verdict, refusal = handlers.auth.handle_auth_response, handlers.auth.handle_refusal
        failure, handle = handlers.correlation.failure, handlers.message.handle_message
        readers = [self.hooks.reads, handlers.heartbeat.read, handlers.correlation.read, subscription.read]
        looks: list[tuple[Any, Any, Judge]] = [(read, read, self._fault_of) for read in readers if read is not None]
        looks += [
            (verdict, verdict, partial(self._fault_of, kinds=(AuthOk, AuthRefused))),
            (
                self._of_answers(grants) if subscription.correlated else grants,
                grants,
                lambda answer: self._fault_of(_as_many(answer), kinds=(Granted, Refused)),
            ),
            (self._of_answers(refusal), refusal, partial(_fault_of_type, kinds=bool)),
            (self._of_answers(failure), failure, partial(_fault_of_type, kinds=str | RequestFailed)),
            (subscription.link_step, subscription.link_step, partial(_fault_of_type, kinds=Step | int)),
            (partial(handle, "text"), handle, self._fault_of_action),
        ]
        return [(ask, label(hook), judge) for ask, hook, judge in looks]

    def _of_answers(self, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a hook that is asked only about what is read as an answer."""
        correlation, reads = self.handlers.correlation, self.hooks.reads
        in_order = isinstance(self.config.correlation, InOrder)

        def ask(message: Any) -> Any:
            reading: Any = None
            with suppress(Exception):  # which is told of the hook that raises it
                reading = None if reads is None else reads(message)
                if reading is None:
                    reading = Answer(message) if in_order else correlation.read(message)
            if not isinstance(reading, Answer) or (reading.id is None and not in_order):
                return None
            return hook(reading.payload)

        return ask

    # ----------------------------------------------------------------- what they may answer

    def _fault_of(self, answer: Any, kinds: tuple[type, ...] = get_args(Reading)) -> str | None:
        """Return what is wrong with a reading, which may be of some kinds only; or with one of several."""
        if answer is None:
            return None
        if isinstance(answer, Many):
            faults = (self._fault_of(each, kinds) if each is not None else "None for one" for each in answer.readings)
            return next((fault for fault in faults if fault is not None), None)
        if not isinstance(answer, kinds):
            names = "no reading" if len(kinds) > 2 else f"neither {' nor '.join(kind.__name__ for kind in kinds)}"
            return f"{shown(answer)}, which is {names}"
        for name, (accepts, wrong) in _FIELDS.items():
            value = getattr(answer, name, None)
            is_several = isinstance(answer, Data) and isinstance(value, list)
            if value is not None and not all(map(accepts, value if is_several else [value])):
                return f"{shown(answer)}, whose {name} {wrong}"
        said = getattr(answer, "reply", None) or getattr(answer, "ack", None)
        return None if said is None else self.fault_of_message(said)

    def _fault_of_action(self, answer: Any) -> str | None:
        for action in answer if isinstance(answer, list | tuple) else [answer]:
            if action is not None and not isinstance(action, ACTIONS):
                return f"{shown(answer)}, which is no action"
            messages = getattr(action, "messages", [action.message] if isinstance(action, Reply) else ())
            for message in messages:
                if not isinstance(message, Ping | Pong) and (fault := self.fault_of_message(message)) is not None:
                    return fault
        return None


def _as_many(answer: Any) -> Any:
    return Many(answer) if isinstance(answer, Sequence) and not isinstance(answer, str | bytes) else answer


def _fault_of_type(answer: Any, kinds: Any) -> str | None:
    good = answer is None or (isinstance(answer, kinds) and (kinds is bool or not isinstance(answer, bool)))
    return None if good else f"{shown(answer)}, which is not {getattr(kinds, '__name__', kinds)}"


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("channel", "id", "server_id"), (_is_hashable, "is not hashable")),
    **dict.fromkeys(("retry_after", "within"), (_is_number, "is not a number of seconds")),
    "reason": (lambda value: isinstance(value, str), "is not a str"),
    "error": (lambda value: isinstance(value, str | RequestFailed), "is neither a str nor a RequestFailed"),
}
"""What the fields of readings may be, other than None. `expires_in` may be what the service says, whatever that is."""
