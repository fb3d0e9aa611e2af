"""The public face of a session: `open_connection`, `run_connection`, and the `Connection` they give."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeVar, Unpack, overload

import attrs
import msgspec
import trio

from trio_nova._actions import Actions
from trio_nova._feeds import Delivery, Feed, FeedOptions
from trio_nova._hub import Listener, ListenerOverflow
from trio_nova._inbound import Inbound
from trio_nova._limiter import Limiter
from trio_nova._mailbox import Mailbox, Receiver
from trio_nova._outbound import Outbound, check_payload
from trio_nova._requests import Requests
from trio_nova._session import Session
from trio_nova._subscriptions import Subscriptions
from trio_nova._supervisor import Supervisor
from trio_nova.adapter import Settled, Target, settle
from trio_nova.codecs import encode_json
from trio_nova.config import RECONFIGURABLE, Config, configure
from trio_nova.core.session import State
from trio_nova.errors import BadMessage, ConfigError, LinkLost, NotSent, NovaError, OutcomeUnknown, SessionOver
from trio_nova.events import Event, OwnershipTransferred
from trio_nova.messages import CloseInfo, M_co, MessageOrRaw, Ping, Pong, check_close
from trio_nova.options import ConfigOptions, ReconfigurableOptions
from trio_nova.secrets import discreet, discreet_if_asked, forget_locals

__all__ = ["Connection", "ConnectionBlock", "Health", "Statistics", "open_connection", "run_connection"]


T = TypeVar("T")

_PLAIN_FEED = FeedOptions()


def _texts(channels: object) -> Sequence[str]:
    """Return the names of channels; ConfigError where they are none."""
    if not isinstance(channels, list | tuple | set | frozenset) or not channels:
        raise ConfigError("channel", f"must be a str, or a list of some, not {type(channels).__name__}")
    for channel in channels:
        if not isinstance(channel, str):
            raise ConfigError("channel", f"must be a str, not {type(channel).__name__}")
    return list(channels)


def convert_answer(reply: Any, type: Any) -> Any:
    """Return an answer as a type; BadMessage where it is not of it."""
    try:
        return msgspec.convert(reply, type)
    except (msgspec.ValidationError, TypeError, ValueError, RecursionError) as exc:
        raise BadMessage(f"the answer is not of the type that was asked for: {exc}") from exc


@attrs.frozen(kw_only=True)
class Statistics:
    """What a session has done so far: a snapshot."""

    dials: int
    links: int
    """How many of the dials led to a link."""
    messages_sent: int
    messages_received: int
    bytes_sent: int
    """Of payload; a character of text counts as one."""
    bytes_received: int
    messages_dropped: int
    """By the overflow policy of the inbox."""
    inbox_messages: int
    """Waiting to be received."""
    inbox_bytes: int
    outbox_messages: int
    """Waiting to be sent."""
    outbox_bytes: int
    pings_sent: int
    pongs_received: int
    pongs_missed: int
    """Probes that nothing has answered in time."""
    answers_unmatched: int
    """Answers that bore the id of no request under way, or came too late."""
    errors: int
    ready_time: float
    """Seconds that the session has been ready, in all."""


@attrs.frozen(kw_only=True)
class Health:
    """How a session is: a snapshot."""

    status: str
    """"ok" or "degraded" where application messages flow, "down" where they wait for a link, "over".

    Degraded: the service has rejected a subscription that is still wanted; or reading stands still, and with
    it every answer and the watch over the peer, as messages fill the inbox or a feed and nobody takes them.
    """
    state: State
    epoch: int
    latency: float | None
    failures_in_a_row: int
    last_error: Exception | None
    reading: bool
    """False while reading stands still: paused, or because `inbox_bytes` wait to be taken."""
    pongs_missed: int = 0
    """Probes in a row that nothing has answered, on the current link."""
    full: str = ""
    """Then, what holds most of it: "inbox", the channel of a feed, or "handlers"."""
    details: Mapping[str, object] = attrs.field(factory=dict)
    """What `ConnectionHandler.status` adds."""


class Connection(Generic[M_co]):
    """A session with a WebSocket service, stable across reconnects. Made by `open_connection`.

    `Connection[Trade]` receives what its codec decodes as a `Trade`.

    Any task of the same `trio.run` may use it. No call takes a time-out: the caller's cancel scope is
    the time-out.
    """

    def __init__(self, block: ConnectionBlock[M_co]) -> None:
        self._session = block.session
        self._inbound = block.inbound
        self._outbound = block.outbound
        self._requests = block.requests
        self._subscriptions = block.subscriptions
        self._receiver: Receiver[M_co] = block.inbound.receiver

    def __repr__(self) -> str:
        session = self._session
        return f"<Connection {session.name} to {session.url}: {session.state.value}, epoch {session.epoch}>"

    # ----------------------------------------------------------------- what it is

    @property
    def id(self) -> str:
        """The stable id: given by `Registry.open_connection`, else drawn at random."""
        return self._session.id

    @property
    def url(self) -> str:
        """The address that it connects to, without secrets: the target's, or the one of `failover` that is in use."""
        return str(self._session.route.stand_by or self._session.url)

    @property
    def state(self) -> State:
        """Where in its life the session is."""
        return self._session.state

    @property
    def epoch(self) -> int:
        """The number of the present link, or of the last one; the first is 1."""
        return self._session.epoch

    @property
    def latency(self) -> float | None:
        """Seconds of the last round trip measured; None before the first."""
        return self._session.latency

    @property
    def close_info(self) -> CloseInfo | None:
        """How the last link that ended did end."""
        return self._session.close_info

    @property
    def config(self) -> Config:
        """The options now in force."""
        return self._session.config

    def statistics(self) -> Statistics:
        """Return what the session has done so far."""
        session, counts = self._session, self._session.counts
        ready = 0.0 if session.ready_since is None else trio.current_time() - session.ready_since
        inbox, backlog = self._inbound.inbox, self._outbound.backlog
        return Statistics(
            dials=counts.dials,
            links=counts.links,
            messages_sent=counts.messages_sent,
            messages_received=counts.messages_received,
            bytes_sent=counts.bytes_sent,
            bytes_received=counts.bytes_received,
            messages_dropped=self._inbound.announced,
            inbox_messages=len(inbox),
            inbox_bytes=inbox.size,
            outbox_messages=backlog.length,
            outbox_bytes=backlog.size,
            pings_sent=counts.pings_sent,
            pongs_received=counts.pongs_received,
            pongs_missed=counts.pongs_missed,
            answers_unmatched=counts.answers_unmatched,
            errors=counts.errors,
            ready_time=counts.ready_time + ready,
        )

    def health(self) -> Health:
        """Return how the session is."""
        session = self._session
        return Health(
            status=self._status(),
            state=session.state,
            epoch=session.epoch,
            latency=session.latency,
            failures_in_a_row=session.attempts.made,
            last_error=session.last_error,
            reading=not (self._inbound.pauses or self._inbound.clogged),
            full=self._inbound.find_fullest()[0] if self._inbound.clogged else "",
            pongs_missed=0 if session.current is None else session.current.heartbeat.missed,
            details=session.status(),
        )

    def _status(self) -> str:
        if self._session.is_over:
            return "over"
        if not self._session.ready:
            return "down"
        return "degraded" if self._subscriptions.degraded or self._inbound.clogged else "ok"

    # ----------------------------------------------------------------- sending

    async def send(self, message: Any, *, priority: int = 0, epoch: int = 0) -> None:
        """Send a message, through the message handler's `encode_message` and the codec.

        Returns when the operating system has all of it. While there is no ready link, `when_down`
        decides. Cancelling withdraws the message, unless it is being written: then it leaves whole.

        Args:
            message: for the codec; or a `Ping`, or a `Pong`.
            priority: a lower one overtakes a higher one; equals leave in the order of the calls.
            epoch: the number of the link that the message is for, as what answers one of its messages; 0: any.

        Raises:
            NotSent: nothing left this machine; it is safe to send it again. Or the link of `epoch` is gone.
            Expired: it waited longer than `Buffer.ttl`, and was not sent.
            OutcomeUnknown: the link was lost while it was being written.
            BadMessage: it cannot be encoded.
            ConfigError: `priority` or `epoch` is not a whole number.
            SessionOver: the session has ended.
        """
        self._session.check_run()
        try:
            if priority != 0 or epoch != 0:
                _check_whole("priority", priority)
                _check_whole("epoch", epoch)
            outbound = self._outbound
            if isinstance(message, Ping | Pong):
                await outbound.send(message)
                return
            await outbound.send_message(message, priority, epoch)
        except NovaError as error:
            self._session.sign(error)
            raise

    async def send_text(self, text: str) -> None:
        """Send a text frame with exactly this text; otherwise like `send`."""
        self._session.check_run()
        try:
            if not isinstance(text, str):
                raise BadMessage(f"send_text takes a str, not a {type(text).__name__}")
            await self._outbound.send(check_payload(text))
        except NovaError as error:
            self._session.sign(error)
            raise

    async def send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Send a binary frame with exactly these bytes; otherwise like `send`."""
        self._session.check_run()
        try:
            if not isinstance(data, bytes | bytearray | memoryview):
                raise BadMessage(f"send_bytes takes bytes, not a {type(data).__name__}")
            await self._outbound.send(bytes(data))
        except NovaError as error:
            self._session.sign(error)
            raise

    async def send_json(self, message: Any) -> None:
        """Send a message as JSON in a text frame, whatever the codec; otherwise like `send`."""
        self._session.check_run()
        outbound = self._outbound
        try:
            await outbound.send(encode_json(message), outbound.kind_of(message))
        except NovaError as error:
            self._session.sign(error)
            raise

    @overload
    async def request(
        self,
        message: Any,
        *,
        matches: Callable[[Any], bool] | None = None,
        idempotent: bool = False,
        priority: int = 0,
        type: type[T],
    ) -> T: ...
    @overload
    async def request(
        self,
        message: Any,
        *,
        matches: Callable[[Any], bool] | None = None,
        idempotent: bool = False,
        priority: int = 0,
        type: Any = None,
    ) -> Any: ...
    async def request(
        self,
        message: Any,
        *,
        matches: Callable[[Any], bool] | None = None,
        idempotent: bool = False,
        priority: int = 0,
        type: Any = None,
    ) -> Any:
        """Send a question and return its answer. Any task may ask, any number at once.

        `Config.correlation` says how an answer is told: by its id, which the session allots where the
        question has none; or, for services without ids, by the order. Cancelling stops waiting; an
        answer that comes later is not given to anybody else.

        Args:
            message: the question, for the codec.
            matches: tells the answer by its content, where neither id nor order does. What it raises, this
                call raises: it is shown every message that is not data of a feed, so look before you index.
            idempotent: ask again on the next link where this one is lost first. Nothing else is ever repeated.
            priority: as for `send`.
            type: what the answer is converted to, any type that msgspec knows; None: it stays as it is.

        Raises:
            RequestFailed: the answer says no; `reply` is what it says.
            NotSent, Expired: as for `send`; also where a question of the same id is under way, or was given
                up a moment ago.
            OutcomeUnknown: the link was lost before the answer came.
            BadMessage: it cannot be encoded, or a hook fails at its id; or the answer is not of the `type`.
            ConfigError: `matches` is not callable, or `priority` not a whole number.
            SessionOver: the session has ended.

        An answer that stands behind messages which nobody receives is held up with them, once they fill
        the inbox and `overflow` is "block".
        """
        self._session.check_run()
        try:
            if priority != 0:
                _check_whole("priority", priority)
            if matches is not None and not callable(matches):
                raise ConfigError("matches", f"must be a function of a message, not {matches.__class__.__name__}")
            reply = await self._requests.request(message, matches=matches, idempotent=idempotent, priority=priority)
            return reply if type is None else convert_answer(reply, type)
        except NovaError as error:
            self._session.sign(error)
            raise

    @overload
    def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: type[T],
    ) -> AbstractAsyncContextManager[Feed[T]]: ...
    @overload
    def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: Any = None,
    ) -> AbstractAsyncContextManager[Feed[Any]]: ...
    @asynccontextmanager
    async def subscribe(
        self,
        channel: str | Sequence[str],
        /,
        *,
        params: Mapping[str, Any] | None = None,
        feed: FeedOptions | None = None,
        type: Any = None,
    ) -> AsyncIterator[Feed[Any]]:
        """Hear a channel, or several, while in the block: `async with conn.subscribe("trades.BTC") as feed`.

        The block is entered once the service has confirmed the subscription, which waits for a link if
        there is none. It is restored on every later link, in the order in which subscriptions were first
        made, until the block is left. Two blocks of one channel are one subscription on the wire, each
        with a feed of its own. Of several channels one feed has all messages, in the order in which they come; its
        `deliveries` say which channel each is of.

        Args:
            channel: what the service calls it; or a list of such names.
            params: what else the service is to be told, of each channel.
            feed: how the feed holds what is not yet taken; see `FeedOptions`.
            type: what its messages are converted to, any type that msgspec knows; None: they stay as they are. One
                that is not of the type is reported as `BadMessage`, and not delivered.

        Raises:
            SubscriptionRejected: the service refuses, or does not answer; of several channels for any of them.
            NotSent: the connection is being drained.
            ConfigError: `channel` is no text, nor a list of some, or `feed` no `FeedOptions`; or the channel is
                subscribed to already, with other `params`; or nothing here can read the service's confirmation.
            SessionOver: the session has ended.
        """
        self._session.check_run()
        made = None
        try:
            names = [channel] if isinstance(channel, str) else list(_texts(channel))
            if not isinstance(feed, FeedOptions | None):
                raise ConfigError("feed", f"must be FeedOptions(...), not {feed.__class__.__name__}")
            if not isinstance(params, Mapping | None):
                raise ConfigError("params", f"must be a mapping, not {params.__class__.__name__}")
            async with self._subscriptions.subscribe(names, feed or _PLAIN_FEED, params or {}, type) as made:
                yield made
        except NovaError as error:
            if made is None:  # else it comes from the user's block, and may be another session's
                self._session.sign(error)
            raise

    def export_subscriptions(self) -> str:
        """Return what is subscribed to, as JSON, for `import_subscriptions` of another session."""
        return encode_json(self._subscriptions.export())

    def import_subscriptions(self, text: str) -> None:
        """Want all that an export holds, until `unsubscribe`; its messages are received as ordinary ones.

        A block of `subscribe` for the same channel takes them over while it lasts.

        Raises:
            ConfigError: it is not what `export_subscriptions` returns; nothing is changed.
        """
        self._session.check_run()
        try:
            rows = msgspec.json.decode(text, type=list[Any])
        except (msgspec.MsgspecError, RecursionError, TypeError) as exc:
            raise ConfigError("subscriptions", "not an export of subscriptions") from exc
        self._subscriptions.load(rows)

    def unsubscribe(self, channel: str, /, *, params: Mapping[str, Any] | None = None) -> None:
        """Give up what `import_subscriptions` wants; blocks of `subscribe` keep theirs.

        Raises:
            ConfigError: it was not imported.
        """
        self._session.check_run()
        self._subscriptions.unload(channel, params or {})

    def subscriptions(self) -> Mapping[str, str]:
        """Return the state of every subscription, by channel: wanted, requested, confirmed or rejected."""
        return self._subscriptions.states()

    async def authenticate(self, credentials: Any = None) -> None:
        """Authenticate the living link again, now; with other credentials from now on, where some are given.

        If those are not accepted the session keeps the ones before, and authenticates the link with them
        again. Cancelling stops waiting; then, too, the ones before stay in force.

        Raises:
            AuthFailed: the service refuses, or does not answer within `auth_timeout`.
            ConfigError: the credentials would travel in plain text, or nothing here can read the answer to them.
            ConnectFailed: what provides the credentials failed.
            NotSent, OutcomeUnknown: the link was lost meanwhile.
            SessionOver: the session has ended.
        """
        self._session.check_run()
        session = self._session
        session.check_open()
        try:
            await session.wait_state(State.READY)
            if session.current is None:
                raise NotSent("the link to be authenticated is gone") from session.last_error
            if credentials is None:
                await session.current.grant.sign_in(refresh=True)
            else:
                on_trial = configure(session.config, {"credentials": credentials})
                session.check_credentials(on_trial)
                session.keep_secret(on_trial, "options on trial")
                await session.current.grant.change(on_trial.credentials)
        except NovaError as error:
            session.sign(error)
            raise

    async def ping(self) -> float:
        """Send a ping and return the seconds until its pong. Cancelling stops waiting for it.

        Raises:
            NotSent: there is no link, or the rate limit refused the ping.
            LinkLost: the link ended before the pong came.
            SessionOver: the session has ended.
        """
        self._session.check_run()
        self._session.check_open()
        try:
            if self._session.current is None:
                await trio.lowlevel.checkpoint()
                raise NotSent("there is no link to ping on") from self._session.last_error
            return await self._session.current.heartbeat.ping()
        except NovaError as error:
            self._session.sign(error)
            raise

    # ----------------------------------------------------------------- receiving

    async def receive(self) -> M_co:
        """Return the next message, waiting for it if need be. Cancelling loses nothing.

        What has been received can still be taken after the session has ended. A call that does not wait
        lets other tasks run at least once in 64 times.

        Raises:
            SessionOver: nothing will come any more.
            ReceiverMoved: `hand_over` gave the receive side to somebody else.
        """
        self._session.check_run()
        try:
            return await self._receiver.receive()
        except NovaError as error:
            self._session.sign(error)
            raise

    def receive_nowait(self) -> M_co:
        """Return the next message; raises trio.WouldBlock where there is none, else like `receive`."""
        self._session.check_run()
        try:
            return self._receiver.receive_nowait()
        except NovaError as error:
            self._session.sign(error)
            raise

    async def receive_batch(self) -> list[M_co]:
        """Return all messages there are, at least one, waiting for it if need be; raises like `receive`."""
        self._session.check_run()
        try:
            return await self._receiver.receive_batch()
        except NovaError as error:
            self._session.sign(error)
            raise

    def __aiter__(self) -> Receiver[M_co]:
        """Iterate over messages until the session is over."""
        self._session.check_run()
        return self._receiver

    def deliveries(self) -> Receiver[Delivery[M_co]]:
        """Return a receiver of ordinary messages, each a `Delivery`: with the link that brought it, and when.

        To be called before anything is received, and once for all: then `receive` raises ConfigError.

        Raises:
            ConfigError: something has been received already.
            ReceiverMoved: `hand_over` gave the receive side to somebody else.
        """
        self._session.check_run()
        return self._inbound.deliveries()

    def hand_over(self, to: str = "") -> Receiver[M_co]:
        """Give the receive side away: return a `Receiver` for another task, and let nobody else receive.

        Calls that wait here, and later ones, raise ReceiverMoved. No message is lost or seen twice.

        Args:
            to: who gets it, for the event OwnershipTransferred.
        """
        self._session.check_run()
        receiver = self._inbound.hand_over()
        self._session.tell(OwnershipTransferred(to=to))
        return receiver

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Stop reading while in the block: the peer feels it, and its silence is not held against it."""
        self._session.check_run()
        self._inbound.pause()
        try:
            yield
        finally:
            self._inbound.resume()

    @asynccontextmanager
    async def listen(
        self, *kinds: type[Event], size: int = 1024, overflow: ListenerOverflow = "drop_oldest", messages: bool = False
    ) -> AsyncIterator[Listener]:
        """Listen to the events of this session, in order, in a bounded queue of one's own.

        Iteration ends with the session, or with the block. A listener that is too slow loses events, by
        its own overflow policy, and is told how many by a `Dropped` in their place; it slows nobody.
        `observations()` of the listener says where and when each event happened.

        Args:
            kinds: which events, subclasses included; none named: all but those made for each message.
            size: how many events may wait.
            overflow: "drop_oldest", "drop_newest", or "fail": then receiving raises Lagged.
            messages: whether to be told of everything, each message too.
        """
        self._session.check_run()
        hub = self._session.hub
        listener = hub.listen(size, overflow, (Event,) if messages else kinds or None)
        if self._session.is_over:
            listener.end()
        try:
            yield listener
        finally:
            hub.leave(listener)

    # ----------------------------------------------------------------- the life of the session

    async def wait_ready(self) -> None:
        """Wait until application messages flow.

        Raises:
            SessionOver: they will not any more.
        """
        await self.wait_state(State.READY)

    async def wait_state(self, state: State) -> None:
        """Wait until the session is in `state`, or passes through it.

        Raises:
            SessionOver: the session has ended in another.
            ConfigError: there is no such state.
        """
        self._session.check_run()
        try:
            state = State(state)
        except ValueError:
            raise ConfigError("state", f"must be one of {', '.join(map(repr, map(str, State)))}") from None
        await self._session.wait_state(state)

    async def wait_closed(self) -> None:
        """Wait until the session is over, and, where it failed, what was received is taken; see `open_connection`."""
        self._session.check_run()
        await self._session.seen_out.wait()

    async def reconnect(self, reason: str = "") -> None:
        """Close the present link, open another at once, and wait until it is ready.

        Where there is none, the wait for the next attempt is cut short. Cancelling stops waiting; the
        reconnect goes on.

        Raises:
            SessionOver: the session ended before.
        """
        self._session.check_run()
        check_close(1000, reason)
        session = self._session
        session.check_open()
        epoch = session.epoch
        session.redial(0.0, reason)
        await trio.lowlevel.checkpoint()
        while session.epoch == epoch or not session.ready:
            await session.wait_state(State.READY if not session.ready else State.DISCONNECTED)

    def reconfigure(self, **changes: Unpack[ReconfigurableOptions]) -> None:
        """Change options of the living session; those about the dial count from the next one.

        Raises:
            ConfigError: naming an option that does not exist, has a wrong value, or cannot be changed now.
        """
        self._session.check_run()
        try:
            for name in changes:
                if name in attrs.fields_dict(Config) and name not in RECONFIGURABLE:
                    raise ConfigError(name, "cannot be changed while the session lives")
            self._session.reconfigure(configure(self._session.config, changes), tuple(changes))
        except NovaError as error:
            self._session.sign(error)
            raise
        for link in self._session.links:
            link.reconfigure()

    async def drain(self) -> None:
        """Take no new work, finish what is under way, then close.

        New sends, requests and subscriptions raise NotSent from now on. Sends that wait are sent first, also if
        that needs a new link; the answers to what was asked are waited for, for as long as their link lasts, or
        until whoever asked gives up. So bound this, as you do a request, by a cancel scope. Cancelling stops
        waiting, and leaves the connection draining: `aclose` then closes it.
        """
        self._session.check_run()
        session = self._session
        self._outbound.drain()
        await trio.lowlevel.checkpoint()
        while not session.is_closing and self._is_at_work:
            await session.settled.wait()
        await self.aclose()

    @property
    def _is_at_work(self) -> bool:
        """Whether something waits to be written or answered."""
        return (
            self._outbound.backlog.length > 0
            or self._requests.under_way > 0
            or any(link.is_at_work for link in self._session.links)
        )

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the session: say goodbye, wait for the answer for at most `close_timeout`, and let go.

        What still waits to be sent is not: its senders get NotSent. May be called more than once, by any
        task. Cancelling stops waiting; the session closes all the same.

        Raises:
            ConfigError: a close frame may not carry this code, or this reason.
        """
        self._session.check_run()
        check_close(code, reason)
        self._session.close(code, reason)
        await self._session.over.wait()


class ScrubbingConnection(Connection[M_co]):
    """A connection whose calls' errors leave without the locals of our frames: where `scrub_tracebacks` is on."""

    @asynccontextmanager
    async def subscribe(self, channel: str | Sequence[str], /, **named: Any) -> AsyncIterator[Feed[Any]]:
        try:
            async with super().subscribe(channel, **named) as feed:
                yield feed
        except BaseException as error:
            del named
            raise forget_locals(error)  # noqa: B904 - it is the same one


for _name, _method in vars(Connection).items():
    if inspect.isfunction(_method) and not _name.startswith("_") and _name not in vars(ScrubbingConnection):
        setattr(ScrubbingConnection, _name, discreet(_method))


@discreet_if_asked
def open_connection(
    target: Target[MessageOrRaw],
    *,
    config: Config[MessageOrRaw] | None = None,
    **overrides: Unpack[ConfigOptions[MessageOrRaw]],
) -> ConnectionBlock[MessageOrRaw]:
    """Open a session that stays up while the block lasts.

    Use it as `async with open_connection("wss://host/path") as conn`.

    The block is entered once the connection is ready. By default the first connect is tried once, and
    its error raised. A link that is lost later is replaced, until the block is left. Leaving says
    goodbye, and takes no longer than `close_timeout`, whatever the peer does and however it is left.

    What the block raises leaves it unwrapped. Where the session fails (it gives up, or a handler raises)
    the block is cancelled, and that error leaves in its place. Only where both raised is it a group. If
    messages wait then for somebody who has been receiving, the block is cancelled once these are taken and more
    is asked for, or once nothing has been taken for `close_timeout`.

    Args:
        target: a ws:// or wss:// URL, or an `Adapter` (its class, where that needs no arguments).
        config: the options to start from; `trio_nova.profiles` has some. What suits an adapter's service
            wins over them.
        overrides: options by name, see `Config`; they win over everything else.

    Raises:
        ConfigError: an option is wrong; raised at once, by the call itself.
        ConnectFailed: the first connect failed, if `retry_first_connect` is off.
        SessionOver: the session gave up after `max_attempts`, or a hook closed it before it was ready.
    """
    return ConnectionBlock(settle(target, config, overrides))


@discreet_if_asked
async def run_connection(
    target: Target,
    *,
    config: Config | None = None,
    task_status: trio.TaskStatus[Connection[Any]] = trio.TASK_STATUS_IGNORED,
    **overrides: Unpack[ConfigOptions],
) -> None:
    """Run a session as a task: `conn = await nursery.start(run_connection, target)`.

    Reports the connection through `task_status` once it is ready, and returns when the session is over;
    arguments and errors are those of `open_connection`. Cancelling closes the session.
    """
    async with open_connection(target, config=config, **overrides) as conn:
        task_status.started(conn)
        await conn.wait_closed()


class ConnectionBlock(Generic[M_co]):
    """The block of `open_connection`: `async with` enters and leaves it, once.

    The tasks of the session are shielded, so that on leaving the user's code unwinds before them, and
    its last words can still be sent. So nothing is cancelled here but by the session's own verdict; what
    bounds the leaving is that every wait of the session for its peer is bounded.
    """

    def __init__(self, settled: Settled, **id: str) -> None:
        session = self.session = Session(settled, on_failure=self._failed, **id)
        self.outbound = Outbound(session, Limiter(session))
        self.actions = Actions(session, self.outbound)
        self.requests = Requests(session, self.outbound)
        self.subscriptions = Subscriptions(session, self.outbound)
        self.inbound = Inbound(session, self.actions, self.subscriptions)
        self.supervisor = Supervisor(
            session, self.actions, self.inbound, self.outbound, self.requests, self.subscriptions
        )
        self._untaken: Sequence[Mailbox[Any]] = ()
        """Mailboxes from which consumers were still to take when the session failed."""
        self._seeing_out = trio.CancelScope()
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._task: trio.lowlevel.Task | None = None
        """The task that entered the block, and is to leave it."""
        self._tasks: trio.CancelScope | None = None
        """Around all tasks of the session, and shielded; None: they have not begun."""

    # Left in the middle by a KeyboardInterrupt, either of these would leave Trio's scopes misnested.
    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> Connection[M_co]:
        session = self.session
        if self._manager is not None:
            raise ConfigError("target", "a connection block can be entered once; call open_connection again")
        if not trio.lowlevel.in_trio_task():
            raise ConfigError(
                "open_connection",
                "needs Trio's event loop, and this is another's: run your program by trio.run(main), or by "
                "anyio.run(main, backend='trio'); docs/how-to/use-other-event-loops.md has more",
            )
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._task = trio.lowlevel.current_task()
        self._nursery.start_soon(self._serve, name=session.task_name("supervisor"))
        try:
            await session.opened.wait()
        except BaseException:
            await self._leave(self._manager)
            raise
        if session.failure is not None:
            await self._leave(self._manager)
            _raise_with_own_context(session.failure)
        if not session.was_ready:
            await self._leave(self._manager)
            raise session.session_over()
        session.block.__enter__()
        return ScrubbingConnection(self) if session.config.scrub_tracebacks else Connection(self)

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._manager is not None
        if trio.lowlevel.current_task() is not self._task:
            await self._leave_from_afar()
        rest = raised
        try:
            if self.session.block.__exit__(kind, raised, trace):
                rest = None
        except BaseException as left:  # a group, without the cancellation that was ours
            rest = left
        await self._leave(self._manager)
        failure = self.session.failure
        if failure is not None and _is_mere_consequence(rest):
            _raise_with_own_context(failure)
        if failure is not None and rest is not None and failure is not rest:
            raise BaseExceptionGroup("both the session and the block that used it failed", [rest, failure]) from None
        if rest is not raised and rest is not None:
            _raise_with_own_context(rest)

    async def _leave_from_afar(self) -> NoReturn:
        """End the session of a block that another task leaves than entered it, which no block of Trio survives.

        So does the finalizer of an asynchronous generator that was dropped amid the block. To leave the nursery
        would wait without end; whoever entered the block is told by Trio that its scopes are corrupted.
        """
        self.session.close()
        with trio.CancelScope(shield=True):
            await self.session.over.wait()
        raise RuntimeError(
            "a connection block was left in another task than entered it, as when an asynchronous generator around it "
            "is dropped: enter the generator with `async with contextlib.aclosing(...)`"
        )

    async def _leave(self, manager: AbstractAsyncContextManager[trio.Nursery]) -> None:
        """End the session and wait until nothing of it is left. A KeyboardInterrupt cuts it short, and goes on up."""
        self._nursery.cancel_scope.shield = True
        self._seeing_out.cancel(reason="the connection block was left")
        self.session.close()
        try:
            await self.session.over.wait()
        except BaseException:  # KeyboardInterrupt: nothing else passes the shield
            if self._tasks is not None:
                self._tasks.cancel(reason="interrupted while closing")
            raise
        finally:
            await manager.__aexit__(None, None, None)

    @trio.lowlevel.enable_ki_protection
    async def _serve(self) -> None:
        """Supervise, with the tasks that the session needs beside, until the session is over."""
        session = self.session
        session.redactor.guard_task()
        try:
            async with trio.open_nursery() as nursery:
                self._tasks = nursery.cancel_scope
                self._tasks.shield = True
                session.begin(nursery)
                if session.hooks.dispatches:
                    session.start_soon(self.inbound.dispatch, "dispatcher")
                await self.supervisor.supervise()
                if nursery.child_tasks:
                    nursery.cancel_scope.cancel(reason="the session is over")
        except BaseException as exc:
            cancelled, defect = _split_cancelled(exc)
            if defect is not None:
                session.give_up(defect)
            if cancelled is not None:
                raise cancelled from None
        finally:
            if not session.is_over:
                session.close()
            self.supervisor.finish()
            session.over.set()
        try:
            await self._see_out()
        finally:
            session.seen_out.set()

    def _failed(self) -> None:
        """Cancel the block, unless somebody in it is still to take what was received before: then see that out."""
        self._untaken = self.inbound.find_untaken()
        if not self._untaken:
            self.session.block.cancel(reason="the session has failed")

    async def _see_out(self) -> None:
        """Let consumers take what they were still to take when the session failed, then cancel the block.

        One who takes nothing for `close_timeout` is waited for no longer.
        """
        if not self._untaken:
            return
        session = self.session
        with self._seeing_out:
            patience = trio.CancelScope()
            while not patience.cancelled_caught and not all(mailbox.is_finished for mailbox in self._untaken):
                with trio.move_on_after(session.config.close_timeout) as patience:
                    await session.taken.wait()
        session.block.cancel(reason="the session has failed")


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(name, f"must be a whole number, not {type(value).__name__}")


def _split_cancelled(exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Return the cancellations in `exc`, and the rest; a rest of one exception without the group around it."""
    if isinstance(exc, trio.Cancelled):
        return exc, None
    if not isinstance(exc, BaseExceptionGroup):
        return None, exc
    cancelled, rest = exc.split(trio.Cancelled)
    while isinstance(rest, BaseExceptionGroup) and len(rest.exceptions) == 1:
        rest = rest.exceptions[0]
    return cancelled, rest


def _is_mere_consequence(exc: BaseException | None) -> bool:
    """Whether what left the user's block only says that it was cancelled, or the session over, or its link lost."""
    if exc is None or isinstance(exc, SessionOver | NotSent | OutcomeUnknown | LinkLost | trio.Cancelled):
        return True
    return isinstance(exc, BaseExceptionGroup) and all(map(_is_mere_consequence, exc.exceptions))


def _raise_with_own_context(error: BaseException) -> NoReturn:
    """Raise `error` as it is: without the exception now being handled as its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context  # no reference cycle through this frame
