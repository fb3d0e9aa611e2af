"""What a session is and knows from its first link to its end, and the verbs by which hooks and calls change it.

Nothing here decides what `core` can decide, and nothing waits but for a state. What is true of one link only is in
`_link`, and goes with it; `_supervisor` makes links.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import trio

from trio_nova._hooks import Handlers, Hooks
from trio_nova._hub import Hub
from trio_nova._mailbox import Mailbox
from trio_nova._route import Route
from trio_nova._signal import Bell
from trio_nova.adapter import Settled
from trio_nova.codecs import weigher
from trio_nova.config import Config, check_failover, check_plaintext
from trio_nova.core.bounded import Room
from trio_nova.core.link import LinkEvent
from trio_nova.core.recovery import wait_wished_for
from trio_nova.core.session import TERMINAL, SessionEvent, State, StateMachine
from trio_nova.core.verdict import Attempts
from trio_nova.errors import ConfigError, LinkLost, NovaError, SessionOver
from trio_nova.events import BecameReady, ErrorEvent, Event, Reconfigured, Reconnected, SecretRevealed, StateChanged
from trio_nova.messages import ACTIONS, Action, CloseInfo, Reconnect, Retry
from trio_nova.secrets import (
    CredentialsSource,
    Redactor,
    Secret,
    ask_credentials,
    forget_frames,
    forget_locals,
    place_of,
    secrets_in,
    secrets_in_headers,
    secrets_in_subprotocols,
    secrets_in_url,
)
from trio_nova.urls import Url

if TYPE_CHECKING:
    from trio_nova._link import LinkLife, LiveLink

__all__ = ["Counts", "Goodbye", "Session", "able_to_leave"]

E = TypeVar("E", bound=BaseException)


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
    pongs_missed: int = 0
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

    def look(self, state: State) -> None:
        self.reached = self.reached or state is self.wanted
        if self.reached or state in TERMINAL:
            self.event.set()


_SHOWS_AS = {
    LinkEvent.AUTHENTICATE: SessionEvent.AUTHENTICATE,
    LinkEvent.RESTORE: SessionEvent.RESTORE,
    LinkEvent.COMPLETE: SessionEvent.COMPLETE,
}
"""What happens to the session where it happens to its current link."""

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


def _tell_nobody() -> None:
    """Take the place of a callback that has gone."""


@attrs.define(eq=False, repr=False)
class Session:
    """The state that outlives a link."""

    target: Settled
    """What it was opened with."""
    id: str = attrs.field(default=attrs.Factory(lambda self: self.target.config.entropy(4).hex(), takes_self=True))
    url: Url = attrs.field(init=False)
    """The target's: by its origin we know what may go along to another."""
    config: Config = attrs.field(init=False)
    handlers: Handlers = attrs.field(init=False)
    hooks: Hooks = attrs.field(init=False)
    hub: Hub = attrs.field(init=False)
    room: Room = attrs.field(init=False)
    """Room for all that was received, waits, and must not be dropped: where it is full reading stops."""
    crowds: dict[Mailbox[Any], None] = attrs.field(factory=dict, init=False)
    """Mailboxes of feeds in which much waits; in the order of a dict, as that of a set differs from run to run."""
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
    links: list[LiveLink] = attrs.field(factory=list, init=False)
    """The links that are up, the oldest first: one, or two while one takes the place of the other."""
    current: LiveLink | None = attrs.field(default=None, init=False)
    """The link that messages of the application leave on, and whose state is the session's."""
    route: Route = attrs.field(factory=Route, init=False)
    """What is known about the next link."""
    ready_since: float | None = attrs.field(default=None, init=False)
    down_since: float | None = attrs.field(default=None, init=False)
    opened: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set at the first READY, or at the end where that never comes."""
    over: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the session has come to its end."""
    seen_out: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the session is over, and those have had their time who were still to take what was received."""
    taken: Bell = attrs.field(factory=Bell, init=False)
    """Rung whenever a consumer has taken something, or has found that there will be nothing more."""
    settled: Bell = attrs.field(factory=Bell, init=False)
    """Rung when a message, a question or a subscription is settled, for those who want fewer to be on their way."""
    _on_failure: Callable[[], object] = attrs.field(default=_tell_nobody, alias="on_failure")
    """Told when `failure` is set, which is to leave the user's block."""
    _root: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    """The root of the run of Trio that the session lives in."""
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _waits_in: trio.CancelScope | None = attrs.field(default=None, init=False)
    """What a wish to leave interrupts; see `interrupt`."""
    login_refusals: int = attrs.field(default=0, init=False)
    """Logins in a row that the service has refused."""
    block: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Around the user's block."""
    _requests: int = attrs.field(default=0, init=False)
    _machine: StateMachine = attrs.field(factory=StateMachine, init=False)
    _waiters: list[_StateWaiter] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.url, self.config = self.target.url, self.target.config
        self.keep_secret(self.config)
        self.handlers = Handlers.of(self.target)
        self.hooks = Hooks.of(self.handlers, self.config)
        self.check_credentials(self.config)
        check_failover(self.url, self.config, names_dial=self.hooks.names_dial)
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

    def check_credentials(self, config: Config) -> None:
        """Refuse credentials the answer to which could never be understood.

        Raises:
            ConfigError: there are some.
        """
        if config.credentials is not None and self.hooks.reads_text_only and not self.hooks.reads_login:
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
            waiter.look(new)

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
            if trio.lowlevel.current_root_task() is self._root:
                return
        except RuntimeError:  # there is no run at all
            pass
        error = ConfigError(
            "connection",
            "it belongs to another trio.run: call it there, as by trio.from_thread.run with its trio_token",
        )
        self.sign(error)
        raise error

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
        self.sign(over)
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
            self._on_failure()

    def give_up(self, error: BaseException) -> None:
        """End the session with `error` where there is no link to say goodbye on."""
        self.failure = able_to_leave(error)
        if not self.is_over:
            self.apply(SessionEvent.GIVE_UP)
        self._on_failure()

    def redial(self, delay: float, reason: str = "") -> None:
        """Want another link in `delay` seconds, in place of the present one if there is one."""
        if self.goodbye is None and not self.is_over:
            self.goodbye = Goodbye(1000, reason, Retry(delay))
            self._leave()

    def _leave(self) -> None:
        for link in self.links:
            link.leave()
        if self._waits_in is not None:
            self._waits_in.cancel(reason="the session is to go elsewhere")

    def interrupt(self, scope: trio.CancelScope) -> None:
        """Let a wish to leave cancel this scope, in place of the one before; one that has been left takes no notice."""
        self._waits_in = scope

    def take_goodbye(self) -> Goodbye | None:
        """Return the wish to leave, if there is one, and consider it granted."""
        wish, self.goodbye = self.goodbye, None
        return wish

    def finish(self) -> None:
        """Reach the terminal state."""
        if not self.is_over:
            self.apply(SessionEvent.END if self.failure is None else SessionEvent.GIVE_UP)

    def begin(self, nursery: trio.Nursery) -> None:
        """Live in this run of Trio, with `nursery` for the tasks that last as long as the session."""
        self._root, self._nursery = trio.lowlevel.current_root_task(), nursery

    def start_soon(self, function: Callable[[], Awaitable[object]], verb: str) -> None:
        """Start a task that lives until the session ends."""
        assert self._nursery is not None
        self._nursery.start_soon(function, name=self.task_name(verb))

    def let_go(self) -> None:
        """Hold on to nothing that holds on to us: what is left of a session is freed at once, without a collector."""
        self._nursery, self._on_failure = None, _tell_nobody

    def next_request(self) -> int:
        """Return the number of the next question, by which events name it."""
        self._requests += 1
        return self._requests

    def measured(self, rtt: float, link: LinkLife) -> None:
        """Note a round trip of a link: the latency is that of the current one."""
        self.counts.pongs_received += 1
        if link.is_current:
            self.latency = rtt

    # ----------------------------------------------------------------- links

    def link_opened(self, link: LiveLink) -> None:
        """Take a link in, whose matter a wish to leave is from now on; without another it is the current one."""
        self.links.append(link)
        self._waits_in = None
        if self.current is None:
            self._follow(link)

    def link_moved(self, link: LinkLife, event: LinkEvent) -> None:
        """Let the state of the current link show in the session's."""
        if self.current is not None and self.current.life is link and not self.is_closing:
            self.apply(_SHOWS_AS[event])

    def link_left(self, link: LinkLife) -> None:
        """Go on with another link that is up, if there is one: `link` takes nothing any more."""
        if self.current is None or self.current.life is not link:
            return
        self.current = next((each for each in self.links if each.life.is_up), None)
        if self.current is not None and self.current.life.is_ready:
            self.epoch = self.current.life.epoch
            self.current.take_over()
            return
        if not self.is_closing:
            self.apply(SessionEvent.LOSE)
        if self.current is not None:
            self._follow(self.current)
            self.current.take_over()

    def link_ended(self, link: LiveLink) -> None:
        """Forget a link."""
        self.links.remove(link)

    def _follow(self, link: LiveLink) -> None:
        self.current, self.epoch = link, link.life.epoch
        if not self.is_closing:
            self.apply(SessionEvent.UPGRADE)
            if link.life.reached_by is not None:
                self.apply(_SHOWS_AS[link.life.reached_by])

    def reconfigure(self, config: Config, changed: tuple[str, ...]) -> None:
        """Use other options from now on; ConfigError where they would send secrets in plain text."""
        check_failover(self.url, config, names_dial=self.hooks.names_dial)
        self.keep_secret(config)
        self.config = config
        self.hub.tell_families(config.events)
        self.attempts.reconfigure(config.max_attempts, config.min_uptime)
        self.tell(Reconfigured(fields=changed))

    # ----------------------------------------------------------------- secrets

    def keep_secret(self, config: Config, owner: str = "options") -> None:
        """Learn what of these options must never be shown; ConfigError where it would travel in plain text.

        `owner` is another one for options that are not those of the session yet.
        """
        headers = config.headers if isinstance(config.headers, Mapping) else {}
        texts = [*secrets_in_headers(headers)]
        for url in (self.url, *config.failover):
            check_plaintext(url, config, headers, config.subprotocols)
            texts += secrets_in_url(url.full)
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
            self.tell(SecretRevealed(secret=owner, to=f"{type(self.handlers.auth).__name__}.authenticate"))
        return credentials

    def protect(self, error: BaseException) -> None:
        """Let `error`, where it is ours, show no secret in its words; nor in our frames, if that is asked for."""
        if self.config.scrub_tracebacks:
            forget_locals(error)
        if isinstance(error, NovaError):
            self.redactor.cleanse(error)
            self.sign(error)

    def sign(self, error: BaseException) -> None:
        """Let `error`, where it is ours and says no other session, say which session it happened in."""
        if isinstance(error, NovaError) and not error.session:
            error.session = self.name
            error.add_note(f"in the session {self.name}")

    def link_lost(self, lost: LinkLost) -> None:
        """Keep how the last link ended, without secrets, and without frames, which would keep the dead link alive."""
        self.protect(lost)
        forget_frames(lost)
        self.close_info = CloseInfo.of(lost)
        self.last_error = lost

    # ----------------------------------------------------------------- events and hooks

    def tell(self, event: Event, epoch: int | None = None) -> None:
        """Tell what happened on a link, if no other is named the current or the last one, to all who hear it."""
        if isinstance(error := getattr(event, "error", None), BaseException):
            self.protect(error)
        kind: type = type(event)
        for name in _quotes(kind):
            said = getattr(event, name)
            if said and (shown := self.redactor.redact(said)) != said:
                event = attrs.evolve(event, **{name: shown})
        self.hub.tell(event, self.epoch if epoch is None else epoch)

    def _observer_failed(self, error: Exception) -> None:
        self.note(error, "observer")

    def ask(self, hook: Callable[..., Any], *args: Any) -> tuple[Action, ...]:
        """Call a hook and return the actions that it answers; what it raises follows `on_handler_error`."""
        try:
            answer = hook(*args)
            actions = tuple(answer) if isinstance(answer, list | tuple) else () if answer is None else (answer,)
            for action in actions:
                if not isinstance(action, ACTIONS):
                    raise ConfigError(hook.__name__, f"answered a {type(action).__name__}, which is not an action")
        except Exception as exc:
            self.handler_failed(exc)
            return ()
        return actions

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

    def report(self, error: Exception, context: str) -> tuple[Action, ...]:
        """Note an error and return what the error handler answers."""
        self.note(error, context)
        return self.ask(self.handlers.error.handle_error, error, context)

    def go_elsewhere(self, action: Retry | Reconnect, epoch: int) -> None:
        """Take another link in place of the link `epoch`, unless that is being done, or was."""
        if epoch != self.epoch or self.state in (State.RECONNECTING, State.CONNECTING):
            return
        if isinstance(action, Retry):
            self.redial(action.delay)
        else:
            self.attempts.failed(trio.current_time())
            self.redial(wait_wished_for(self.attempts, self.config.backoff, self.config.spread()), action.reason)

    def login_refused(self) -> bool:
        """Count a refusal; return whether a provider may have handed out what has expired, and is asked once more."""
        self.login_refusals += 1
        return callable(self.config.credentials) and self.login_refusals < 2

    def login_accepted(self) -> None:
        """Begin to count refusals anew."""
        self.login_refusals = 0
