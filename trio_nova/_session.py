"""What a session is and knows from its first link to its end, and the verbs by which hooks and calls change it.

Nothing here decides what `core` can decide, and nothing waits but for a state. The two directions of
traffic are `_outbound` and `_inbound`; `_link_tasks` and `_supervisor` have the tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import trio

from trio_nova._hub import Hub
from trio_nova._signal import Bell, Latch
from trio_nova.codecs import RawCodec, weigher
from trio_nova.config import Config, check_plaintext, made
from trio_nova.core.bounded import Room
from trio_nova.core.outbox import Lane
from trio_nova.core.recovery import wait_wished_for
from trio_nova.core.session import TERMINAL, SessionEvent, State, StateMachine
from trio_nova.core.verdict import Attempts
from trio_nova.errors import ConfigError, LinkLost, NovaError, SessionOver
from trio_nova.events import BecameReady, ErrorEvent, Event, Reconfigured, Reconnected, StateChanged
from trio_nova.handlers import (
    AuthHandler,
    ConnectionHandler,
    ErrorHandler,
    MessageHandler,
    RateLimitHandler,
    SubscriptionHandler,
)
from trio_nova.messages import ACTIONS, Action, Close, CloseInfo, Reconnect, Reply, ReplyMany, Retry, Stop
from trio_nova.observe import LoggingHandler, MetricsCollector
from trio_nova.secrets import (
    CredentialsSource,
    Redactor,
    Secret,
    ask_credentials,
    forget_locals,
    place_of,
    secrets_in,
    secrets_in_headers,
    secrets_in_subprotocols,
    secrets_in_url,
)
from trio_nova.urls import Url

__all__ = ["Counts", "Goodbye", "Handlers", "Session", "able_to_leave"]

E = TypeVar("E", bound=BaseException)


@attrs.frozen(kw_only=True)
class Handlers:
    """The eight strategies of one session."""

    connection: ConnectionHandler
    message: MessageHandler
    subscription: SubscriptionHandler
    auth: AuthHandler
    error: ErrorHandler
    rate_limit: RateLimitHandler
    logging: LoggingHandler
    metrics: MetricsCollector

    @classmethod
    def of(cls, config: Config) -> Handlers:
        return cls(
            connection=made(config.connection_handler, ConnectionHandler, "connection_handler"),
            message=made(config.message_handler, MessageHandler, "message_handler"),
            subscription=made(config.subscription_handler, SubscriptionHandler, "subscription_handler"),
            auth=made(config.auth_handler, AuthHandler, "auth_handler"),
            error=made(config.error_handler, ErrorHandler, "error_handler"),
            rate_limit=made(config.rate_limit_handler, RateLimitHandler, "rate_limit_handler"),
            logging=made(config.logging_handler, LoggingHandler, "logging_handler"),
            metrics=made(config.metrics_collector, MetricsCollector, "metrics_collector"),
        )


@attrs.define
class Counts:
    """What a session has done so far."""

    dials: int = 0
    links: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    pings_sent: int = 0
    pongs_received: int = 0
    answers_unmatched: int = 0
    errors: int = 0
    ready_time: float = 0.0
    """Seconds that the session has been ready, the present link not counted."""


@attrs.frozen
class Goodbye:
    """That a link is to be closed on purpose, how, and what then."""

    code: int
    reason: str
    then: Retry | None = None
    """When to dial again; None: the session is over."""


@attrs.define(eq=False)
class _StateWaiter:
    wanted: State
    event: trio.Event = attrs.field(factory=trio.Event)
    reached: bool = False


_QUOTES = frozenset({"cause", "channel", "detail", "reason", "to", "where"})
"""Fields of events that may repeat what somebody else said."""


@functools.cache
def _quotes(kind: type) -> tuple[str, ...]:
    """Return which of these the events of a kind have."""
    return tuple(field.name for field in attrs.fields(kind) if field.name in _QUOTES)


def able_to_leave(error: E) -> E | RuntimeError:
    """Return `error`; or what can be raised in its place, where Python lets it leave no coroutine (PEP 479)."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    instead = RuntimeError(f"a hook raised {type(error).__name__}{place_of(error)}")
    instead.__cause__ = error
    return instead


def _no_replies(messages: Sequence[Any], lane: Lane) -> None:
    raise AssertionError("a session without a send side")


def _no_block() -> None:
    """Tell nobody of a failure: the session is over."""


def _no_tasks(*args: Any, name: str) -> None:
    raise AssertionError("a session that has not begun")


@attrs.define(eq=False, repr=False)
class Session:
    """The state that outlives a link."""

    url: Url
    config: Config
    id: str = attrs.field(default=attrs.Factory(lambda self: self.config.entropy(4).hex(), takes_self=True))
    handlers: Handlers = attrs.field(init=False)
    hub: Hub = attrs.field(init=False)
    room: Room = attrs.field(init=False)
    """Room for all that was received, waits, and must not be dropped: where it is full reading stops."""
    attempts: Attempts = attrs.field(init=False)
    counts: Counts = attrs.field(factory=Counts, init=False)
    redactor: Redactor = attrs.field(factory=Redactor, init=False)
    """Knows what of this session must never be shown."""

    epoch: int = attrs.field(default=0, init=False)
    """The number of the present link, or of the last one."""
    latency: float | None = attrs.field(default=None, init=False)
    """Seconds of the last round trip that was measured."""
    close_info: CloseInfo | None = attrs.field(default=None, init=False)
    last_error: Exception | None = attrs.field(default=None, init=False)
    failure: BaseException | None = attrs.field(default=None, init=False)
    """What ends the session: it leaves the user's block."""
    goodbye: Goodbye | None = attrs.field(default=None, init=False)
    """Set while somebody wants the link, or the whole session, to end."""
    send_replies: Callable[[Sequence[Any], Lane], None] = attrs.field(default=_no_replies, init=False)
    """Where the replies of hooks go: the send side puts itself here."""
    start_soon: Callable[..., None] = attrs.field(default=_no_tasks, init=False)
    """Starts a task that lives until the session ends; there from the first dial on."""
    on_leave: Callable[[], object] | None = attrs.field(default=None, init=False)
    """Interrupts what the supervisor waits for: told when `goodbye` is set."""
    ready_since: float | None = attrs.field(default=None, init=False)
    down_since: float | None = attrs.field(default=None, init=False)
    opened: Latch = attrs.field(factory=Latch, init=False)
    """Set at the first READY, or at the end where that never comes."""
    over: Latch = attrs.field(factory=Latch, init=False)
    """Set when the session has come to its end."""
    seen_out: Latch = attrs.field(factory=Latch, init=False)
    """Set when the session is over, and those have had their time who were still to take what was received."""
    looked: Bell = attrs.field(factory=Bell, init=False)
    """Rung after the end, whenever a consumer has taken something, or has found that there is nothing more."""
    on_failure: Callable[[], object] = attrs.field(default=_no_block, init=False)
    """Told when `failure` is set, which is to leave the user's block."""
    root: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    """The root of the run of Trio that the session lives in."""
    block: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around the user's block."""
    _machine: StateMachine = attrs.field(factory=StateMachine, init=False)
    _waiters: list[_StateWaiter] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.keep_secret(self.config)
        self.handlers = Handlers.of(self.config)
        self.check_credentials(self.config)
        self.room = self.make_room()
        self.hub = Hub(
            self.name,
            self.config.wall_clock,
            self.handlers.logging,
            self.handlers.metrics,
            self.config.observers,
            self.config.events,
            self._observer_failed,
        )
        self.attempts = Attempts(self.config.max_attempts, self.config.min_uptime)

    def make_room(self) -> Room:
        """Return room for `inbox_bytes`, in which messages of the session's codec are weighed."""
        return Room(self.config.inbox_bytes, weigher(self.config.codec))

    # ----------------------------------------------------------------- what it is called

    @property
    def name(self) -> str:
        """The host and the id: what events, errors and logs call it."""
        return f"{self.url.authority}[{self.id}]"

    def task_name(self, verb: str, epoch: int | None = None) -> str:
        """Return the name of a task of the session, or of its link `epoch`."""
        return f"nova[{self.id}]:{verb}" + ("" if epoch is None else f"#{epoch}")

    # ----------------------------------------------------------------- what can be read

    @property
    def reads_text_only(self) -> bool:
        """Whether the hooks are shown messages as they came, text: the default ones can read nothing in them."""
        validates = type(self.handlers.message).validate_message is not MessageHandler.validate_message
        return type(self.config.codec) is RawCodec and not validates

    def check_credentials(self, config: Config) -> None:
        """Refuse credentials the answer to which could never be understood.

        Raises:
            ConfigError: there are some.
        """
        handler = type(self.handlers.auth)
        if (
            config.credentials is not None
            and self.reads_text_only
            and all(
                getattr(handler, hook) is getattr(AuthHandler, hook)
                for hook in ("authenticate", "encode_auth_request", "handle_auth_response")
            )
        ):
            raise ConfigError(
                "credentials",
                "the default hooks cannot read the answer to them in a text: set codec=JsonCodec(), or an auth_handler",
            )

    # ----------------------------------------------------------------- states

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def is_over(self) -> bool:
        return self._machine.state in TERMINAL

    @property
    def ready(self) -> bool:
        return self._machine.state is State.READY

    def apply(self, event: SessionEvent) -> None:
        """Move to the state that follows, and tell those who wait for it."""
        old = self._machine.state
        new = self._machine.apply(event)
        now = trio.current_time()
        if new is State.READY:
            self._became_ready(now)
        elif old is State.READY and self.ready_since is not None:
            self.counts.ready_time += now - self.ready_since
            self.ready_since = None
            self.down_since = now
            self.attempts.unready(now)
        self.tell(StateChanged(old=old.value, new=new.value))
        if new is State.READY:
            self.tell(BecameReady())
        for waiter in self._waiters:
            waiter.reached = waiter.reached or waiter.wanted is new
            if waiter.reached or new in TERMINAL:
                waiter.event.set()

    def _became_ready(self, now: float) -> None:
        self.ready_since = now
        self.opened.set()
        if self.down_since is not None:
            self.tell(Reconnected(attempts=self.attempts.made, outage=now - self.down_since))
            self.down_since = None
        self.attempts.ready(now)

    async def wait_state(self, wanted: State) -> None:
        """Wait until the session is, or passes through, `wanted`; SessionOver where that cannot be any more."""
        if self.state is wanted:
            await trio.lowlevel.checkpoint()
            return
        if self.is_over:
            raise self.session_over()
        waiter = _StateWaiter(wanted)
        self._waiters.append(waiter)
        try:
            await waiter.event.wait()
        finally:
            self._waiters.remove(waiter)
        if not waiter.reached:
            raise self.session_over()

    @property
    def was_ready(self) -> bool:
        """Whether the session has ever been ready."""
        return self.ready_since is not None or self.down_since is not None

    @property
    def is_closing(self) -> bool:
        """Whether the session is over, or on its way there."""
        return self.is_over or (self.goodbye is not None and self.goodbye.then is None)

    def check_run(self) -> None:
        """Raise ConfigError in another run of Trio than the session's, or in none: nothing here is safe there."""
        try:
            if trio.lowlevel.current_root_task() is self.root:
                return
        except RuntimeError:  # there is no run at all
            pass
        raise ConfigError(
            "connection",
            "it belongs to another trio.run: call it there, as by trio.from_thread.run with its trio_token",
        )

    def check_open(self) -> None:
        """Raise SessionOver if the session is over, or will be in a moment."""
        if self.is_closing:
            raise self.session_over()

    def session_over(self) -> SessionOver:
        """Return the error for calls that come too late."""
        over = SessionOver(
            f"the session is over ({self.state.value})", attempts=self.attempts.made, last=self.last_error
        )
        over.__cause__ = self.failure
        return over

    # ----------------------------------------------------------------- ends

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Want the session to end, with a goodbye if there is a link."""
        if self.is_closing:
            return
        self.goodbye = Goodbye(code, reason)
        self.apply(SessionEvent.CLOSE)
        self._leave()

    def fail(self, error: BaseException, code: int = 1011) -> None:
        """End the session with `error`, which leaves the user's block. The first error counts."""
        if self.failure is None and not self.is_over:
            self.failure = able_to_leave(error)
            self.close(code)
            self.on_failure()

    def give_up(self, error: BaseException) -> None:
        """End the session with `error` where there is no link to say goodbye on."""
        self.failure = able_to_leave(error)
        if not self.is_over:
            self.apply(SessionEvent.GIVE_UP)
        self.on_failure()

    def redial(self, delay: float, reason: str = "") -> None:
        """Want another link in `delay` seconds, in place of the present one if there is one."""
        if self.goodbye is None and not self.is_over:
            self.goodbye = Goodbye(1000, reason, Retry(delay))
            self._leave()

    def _leave(self) -> None:
        if self.on_leave is not None:
            self.on_leave()

    def finish(self) -> None:
        """Reach the terminal state."""
        if not self.is_over:
            self.apply(SessionEvent.END if self.failure is None else SessionEvent.GIVE_UP)

    def let_go(self) -> None:
        """Hold on to nothing that holds on to us: what is left of a session is freed at once, without a collector."""
        self.send_replies, self.start_soon, self.on_leave, self.on_failure = _no_replies, _no_tasks, None, _no_block

    def reconfigure(self, config: Config, changed: tuple[str, ...]) -> None:
        """Use other options from now on; ConfigError where they would send secrets in plain text."""
        self.keep_secret(config)
        self.config = config
        self.hub.tell_families(config.events)
        self.attempts.max_attempts, self.attempts.min_uptime = config.max_attempts, config.min_uptime
        self.tell(Reconfigured(fields=changed))

    # ----------------------------------------------------------------- secrets

    def keep_secret(self, config: Config, owner: str = "options") -> None:
        """Learn what of these options must never be shown; ConfigError where it would travel in plain text.

        `owner` is another one for options that are not those of the session yet.
        """
        headers = config.headers if isinstance(config.headers, Mapping) else {}
        check_plaintext(self.url, config, headers, config.subprotocols)
        texts = [*secrets_in_url(self.url.full), *secrets_in_headers(headers)]
        texts += secrets_in_subprotocols(config.subprotocols)
        if config.proxy is not None:
            texts += secrets_in_url(config.proxy.reveal())
        if isinstance(config.credentials, Secret):
            texts += secrets_in(config.credentials)
        self.redactor.keep(owner, texts)

    async def ask_credentials(self, source: CredentialsSource) -> Secret[Any] | None:
        """Return the credentials that `source` holds or provides now; None where there are none.

        They are never shown from then on, whoever repeats them. The caller bounds the wait.

        Raises:
            AuthFailed, ConfigError, ConnectFailed: the provider failed.
        """
        credentials = await ask_credentials(source)
        if credentials is not None:
            owner = "credentials" if source is self.config.credentials else "credentials on trial"
            self.redactor.keep(owner, secrets_in(credentials))
        return credentials

    def protect(self, error: BaseException) -> None:
        """Let `error` show no secret: not in the locals of our frames and, where it is ours, not in its words."""
        forget_locals(error)
        if isinstance(error, NovaError):
            self.redactor.cleanse(error)
            self.sign(error)

    def sign(self, error: BaseException) -> None:
        """Let `error`, where it is ours and says no other session, say which session it happened in."""
        if isinstance(error, NovaError) and not error.session:
            error.session = self.name
            error.add_note(f"in the session {self.name}")

    def link_ended(self, lost: LinkLost) -> None:
        """Keep how the last link ended, without secrets."""
        self.protect(lost)
        self.close_info = CloseInfo.of(lost)
        self.last_error = lost

    # ----------------------------------------------------------------- events and hooks

    def tell(self, event: Event) -> None:
        """Tell what happened on the present link, or the last one, to all who hear it."""
        if isinstance(error := getattr(event, "error", None), BaseException):
            self.protect(error)
        kind: type = type(event)
        for name in _quotes(kind):
            said = getattr(event, name)
            if said and (shown := self.redactor.redact(said)) != said:
                event = attrs.evolve(event, **{name: shown})
        self.hub.tell(event, self.epoch)

    def _observer_failed(self, error: Exception) -> None:
        self.note(error, "observer")

    def ask(self, hook: Callable[..., Any], *args: Any) -> Action:
        """Call a hook and return the action it answers; what it raises follows `on_handler_error`."""
        try:
            answer = hook(*args)
            if answer is not None and not isinstance(answer, ACTIONS):
                raise ConfigError(hook.__name__, f"answered a {type(answer).__name__}, which is not an action")
        except Exception as exc:
            self.handler_failed(exc)
            return None
        return answer

    def type_of(self, message: Any) -> str:
        """Return the type of a message, as the message handler says; "" where that fails."""
        try:
            return self.handlers.message.message_type(message)
        except Exception as exc:
            self.handler_failed(exc)
            return ""

    def status(self) -> Mapping[str, object]:
        """Return what the connection handler adds to the health; nothing where that fails."""
        try:
            return self.handlers.connection.status()
        except Exception as exc:
            self.handler_failed(exc)
            return {}

    def handler_failed(self, error: Exception) -> None:
        """Treat what user code raised in a hook as `on_handler_error` says."""
        match self.config.on_handler_error:
            case "raise":
                self.note(error, "handler")
                self.fail(error)
            case "close":
                self.note(error, "handler")
                self.close(1011, "internal error")
            case _:
                self.note(error, "handler")

    def note(self, error: Exception, context: str) -> None:
        """Count an error, tell it to logging and metrics, and to the error handler's own log."""
        self.protect(error)
        self.counts.errors += 1
        self.last_error = error
        try:
            category = self.handlers.error.classify_error(error)
            self.handlers.error.log_error(error, context)
        except Exception as exc:
            category = "unknown"
            if context != "handler":
                self.handler_failed(exc)
        self.tell(ErrorEvent(error=error, category=category, context=context))

    def report(self, error: Exception, context: str) -> Action:
        """Note an error and return what the error handler answers."""
        self.note(error, context)
        return self.ask(self.handlers.error.handle_error, error, context)

    def _is_current(self, epoch: int) -> bool:
        """Whether no other link is being waited for, dialled, or up in place of this one."""
        return epoch == self.epoch and self.state not in (State.RECONNECTING, State.CONNECTING)

    def perform(self, action: Action, epoch: int, lane: Lane = Lane.APPLICATION) -> None:
        """Do what a hook asked for; what belongs to a link that is gone is not done to another."""
        match action:
            case None:
                pass
            case Reply(message):
                self.send_replies([message], lane)
            case ReplyMany(messages):
                self.send_replies(messages, lane)
            case Close(code, reason):
                self.close(code, reason)
            case Stop(error):
                self.fail(error, 1000)
            case Reconnect(reason) if self._is_current(epoch):
                self.attempts.failed(trio.current_time())
                self.redial(wait_wished_for(self.attempts, self.config.backoff, self.config.spread()), reason)
            case Retry(delay) if self._is_current(epoch):
                self.redial(delay)
            case _:
                pass
