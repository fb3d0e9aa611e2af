"""Links over the package trio-websocket: the default transport, and the adoption of an open connection.

::

    the block of Transport.open
    └─ link             the task link   waits for messages; closes the socket when none will come
       └─ reader        trio-websocket's own: frames -> messages, pongs
"""

from __future__ import annotations

import contextlib

# wsproto would load this codec amid the first upgrade, where no file may be left to be opened.
import encodings.idna  # noqa: F401  # pyright: ignore[reportUnusedImport]
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import ClassVar, NoReturn, cast

import attrs
import trio
import trio_websocket

from trio_nova.core import Strategy
from trio_nova.errors import BadMessage, ConnectFailed, NovaError, RetryAdvice
from trio_nova.links._block import LinkBlock
from trio_nova.links._dial import open_stream, with_context
from trio_nova.links._ending import Ending
from trio_nova.links._guard import Guard
from trio_nova.links._handshake import CHUNK
from trio_nova.links._inbox import Inbox
from trio_nova.links._seam import Dial, Link, Sent, refuse_what_lacks
from trio_nova.links._upgrade import upgrade_headers
from trio_nova.links._uplink import Transit
from trio_nova.messages import Frame, Ping, Pong
from trio_nova.secrets import redacted

__all__ = ["AdoptedTransport", "TrioWebsocketTransport"]


class _Redaction(logging.Filter):
    """Takes a session's secrets out of what trio-websocket logs for it; the records of others stay as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (fit := redacted(said)) != said:
            record.msg, record.args = fit, None
        return True


logging.getLogger("trio-websocket").addFilter(_Redaction())

_HANG_UP_WAIT = 1.0
"""Seconds that closing the socket politely may take, which for TLS needs one more write."""


@attrs.define(unsafe_hash=True)
class TrioWebsocketTransport(Strategy):
    """Opens links over trio-websocket, guarded against what it leaves open."""

    lacks: ClassVar[Mapping[str, str]] = {"compression": "trio-websocket has none: use WireTransport"}

    async def prepare(self, dial: Dial) -> Dial:
        """Load the authorities that TLS needs; see `Transport`."""
        return await with_context(dial)

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        """Return a block that holds one open link; see `Transport.open`."""
        refuse_what_lacks(self.lacks, dial)
        return LinkBlock(dial, _open_guarded)


@attrs.define(eq=False)
class AdoptedTransport(Strategy):
    """Hands out one connection that is open already; there is no second one.

    Nothing can be put below an open connection: its frames are judged, its limits kept, and its writes
    timed as trio-websocket does, and pings of the peer are not seen. Whoever opened it keeps the
    nursery that it runs in.
    """

    lacks: ClassVar[Mapping[str, str]] = {
        "compression": "an adopted connection has what it was opened with",
        "pins": "the adopted connection was opened without them",
        "message_timeout": "nothing can time the messages of an adopted connection",
    }

    ws: trio_websocket.WebSocketConnection
    _handed_over: bool = attrs.field(default=False, init=False)

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        """Return a block that holds the link; any but the first raises ConnectFailed, for good.

        Raises:
            ConfigError: `dial` asks for what protects only a connection that is opened here.
        """
        refuse_what_lacks(self.lacks, dial)
        return LinkBlock(dial, self._adopt)

    async def _adopt(self, dial: Dial) -> _Link:
        await trio.lowlevel.checkpoint()
        if self._handed_over:
            raise ConnectFailed("the adopted connection was used up", phase="http", retry=RetryAdvice.NEVER)
        self._handed_over = True
        if self.ws.closed is not None:
            raise ConnectFailed("the adopted connection is closed", phase="http", retry=RetryAdvice.NEVER)
        return _AdoptedLink(dial, self.ws)


async def _open_guarded(dial: Dial) -> _Link:
    stream = await open_stream(dial)
    dial.on_phase("http")
    return _GuardedLink(dial, stream)


class _Link(ABC):
    """What both kinds of link share: an inbox that is filled by one task, and an end that all agree on."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._inbox = Inbox()
        self._scope = trio.CancelScope()
        self._up = trio.Event()
        self._gone = trio.Event()
        self._failure: Exception | None = None

    # What differs.

    @property
    @abstractmethod
    def subprotocol(self) -> str | None: ...

    @property
    @abstractmethod
    def response_headers(self) -> Sequence[tuple[str, str]]: ...

    @property
    @abstractmethod
    def stalled_since(self) -> float | None: ...

    @property
    def transit(self) -> Transit | None:
        return None

    @abstractmethod
    async def _serve(self) -> None:
        """Bring the link up, pump until nothing more will come, and close the socket."""

    @abstractmethod
    async def _write(self, frame: Frame) -> None:
        """Write one frame. Any exception but NovaError and UnicodeEncodeError means that the link is lost."""

    @abstractmethod
    async def _say_goodbye(self, code: int, reason: str) -> None: ...

    @abstractmethod
    def _end(self, ending: Ending) -> None:
        """Note why the link ended, unless that is known."""

    @property
    @abstractmethod
    def _ended(self) -> Ending | None:
        """Why nothing can be written any more; None while it can."""

    # What the seam promises.

    @property
    def heard_at(self) -> float:
        return self._inbox.heard_at

    async def receive_some(self) -> Sequence[Frame]:
        """Wait for what comes next and return it, at most 256 frames, oldest first; see `Link.receive_some`."""
        frames = await self._inbox.take()
        if not frames and self._inbox.over:
            self._raise_lost()
        return frames

    def send_nowait(self, frame: Frame) -> Sent:
        """Send nothing: trio-websocket does not write without waiting."""
        return "not"

    async def send_all(self, frames: Sequence[Frame]) -> None:
        """Hand the frames to the operating system, in order; see `Link.send_all`.

        Raises:
            LinkLost: any of the frames may have left.
            BadMessage: a text holds half a surrogate pair, which UTF-8 cannot say; it and what follows did not leave.
        """
        if not frames:
            await trio.lowlevel.checkpoint()
        for frame in frames:
            if self._ended is not None:
                self._raise_lost()
            try:
                await self._write(frame)
            except NovaError:
                raise
            except UnicodeEncodeError as exc:
                raise BadMessage("a text that is no valid Unicode cannot be sent") from exc
            except Exception as exc:  # trio-websocket's and wsproto's own: nothing of theirs leaves
                self._end(Ending(1006, detail="a write failed", cause=exc))
                self._raise_lost()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye and wait for the answer, at most `Dial.close_timeout` seconds; see `Link.aclose`."""
        try:
            with trio.move_on_after(self._dial.close_timeout):
                if not self._gone.is_set():
                    await self._say_goodbye(code, reason)
                await self._gone.wait()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once, without a goodbye: both directions end with LinkLost."""
        self._end(Ending(1006, detail="aborted"))
        self._inbox.finish()
        self._scope.cancel(reason="the link is aborted")

    # What the block needs.

    async def start(self, nursery: trio.Nursery) -> None:
        """Serve the link in `nursery`, and wait for the upgrade.

        Raises:
            ConnectFailed: it failed, or the link is gone already.
        """
        nursery.start_soon(self._run, name=self._dial.task_name("link"))
        await self._up.wait()
        if self._gone.is_set() and self._failure is not None:
            if isinstance(self._failure, NovaError):
                raise self._failure
            raise ConnectFailed(
                f"the upgrade failed: {type(self._failure).__name__}", phase="http", retry=RetryAdvice.NEVER
            ) from self._failure

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        """Serve the link until it is lost or aborted; what fails below ends it, and nothing else."""
        try:
            with self._scope:
                await self._serve()
        except* Exception as group:
            self._failure = _first(group)
            what = type(self._failure).__name__
            self._end(Ending(1006, detail=f"trio-websocket failed: {what}", cause=self._failure))
        finally:
            self._end(Ending(1006, detail="the link was left"))
            self._inbox.finish()
            self._up.set()
            self._gone.set()

    async def _pump(self, ws: trio_websocket.WebSocketConnection) -> None:
        with contextlib.suppress(trio_websocket.ConnectionClosed):
            while True:
                self._inbox.put(await ws.get_message())
                await self._inbox.wait_room()

    def _raise_lost(self) -> NoReturn:
        raise (self._ended or Ending(1006)).as_error(self._dial.epoch)


class _GuardedLink(_Link):
    """A link that was dialled here: trio-websocket with a guard below it."""

    _ws: trio_websocket.WebSocketConnection

    def __init__(self, dial: Dial, stream: trio.abc.Stream) -> None:
        super().__init__(dial)
        self._guard = Guard(stream, dial, self._inbox)

    @property
    def subprotocol(self) -> str | None:
        return self._guard.subprotocol

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return self._guard.response.headers if self._guard.response is not None else ()

    @property
    def stalled_since(self) -> float | None:
        return self._guard.stalled_since

    @property
    def transit(self) -> Transit | None:
        return self._guard.uplink.look()

    @property
    def _ended(self) -> Ending | None:
        guard = self._guard
        if guard.ending is None and guard.mute:
            return Ending(1006, detail="a write failed", cause=guard.write_error)
        return guard.ending

    def _end(self, ending: Ending) -> None:
        self._guard.end(ending)

    async def _serve(self) -> None:
        guard, dial = self._guard, self._dial
        try:
            async with trio.open_nursery() as nursery:
                host, headers = upgrade_headers(dial)
                guard.on_refusal = partial(nursery.cancel_scope.cancel, reason="the upgrade was refused")
                self._ws = await trio_websocket.wrap_client_stream(
                    nursery,
                    cast("trio.SocketStream", guard),  # any stream will do: it is only sent to and received from
                    host,
                    dial.url.resource,
                    subprotocols=dial.offered,
                    extra_headers=headers,
                    message_queue_size=0,  # the inbox is the queue, and its bound the bound
                    max_message_size=dial.max_message_size,
                    receive_buffer_size=CHUNK,
                )
                self._up.set()
                await self._pump(self._ws)
                self._inbox.finish()
                with (
                    trio.move_on_after(min(dial.close_timeout, _HANG_UP_WAIT)),
                    contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError),
                ):
                    await guard.aclose()
                nursery.cancel_scope.cancel(reason="the link has ended")
        finally:
            with trio.CancelScope(shield=True):  # else, once aborted, Cancelled would take the place of what failed
                await trio.aclose_forcefully(guard)
        if guard.refusal is not None:
            raise guard.refusal

    async def _write(self, frame: Frame) -> None:
        match frame:
            case Ping(payload):
                await self._guard.send_ping(payload)
            case Pong(payload):
                await self._ws.pong(payload)
            case _:
                await self._ws.send_message(frame)
        if self._guard.mute:
            self._raise_lost()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        await self._guard.say_goodbye(code, reason)


class _AdoptedLink(_Link):
    """A link over a connection that somebody else opened."""

    def __init__(self, dial: Dial, ws: trio_websocket.WebSocketConnection) -> None:
        super().__init__(dial)
        self._ws = ws
        self._ending: Ending | None = None
        self._stalled_since: float | None = None

    @property
    def subprotocol(self) -> str | None:
        return self._ws.subprotocol

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._ws.handshake_headers]

    @property
    def stalled_since(self) -> float | None:
        return self._stalled_since

    @property
    def _ended(self) -> Ending | None:
        if self._ending is None and (closed := self._ws.closed) is not None:
            return Ending(closed.code, closed.reason or "", remote=True if closed.code != 1006 else None)
        return self._ending

    def _end(self, ending: Ending) -> None:
        self._ending = self._ended or ending

    async def _serve(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._up.set()
                await self._pump(self._ws)
                self._inbox.finish()
                nursery.cancel_scope.cancel(reason="the link has ended")
        finally:
            # Under a cancelled scope this is the way that trio-websocket has to close at once.
            with trio.CancelScope(shield=True) as at_once:
                at_once.cancel(reason="the link has ended")
                await self._ws.aclose()

    async def _write(self, frame: Frame) -> None:
        if isinstance(frame, Ping):
            self._nursery.start_soon(self._ping, frame.payload, name=self._dial.task_name("ping"))
            await trio.lowlevel.checkpoint()
            return
        self._stalled_since = trio.current_time()
        try:
            await (self._ws.pong(frame.payload) if isinstance(frame, Pong) else self._ws.send_message(frame))
        finally:
            self._stalled_since = None

    async def _ping(self, payload: bytes) -> None:
        # ValueError: the same payload is under way; the pong to the first answers both.
        with contextlib.suppress(trio_websocket.ConnectionClosed, ValueError):
            await self._ws.ping(payload)
            self._inbox.add_control(Pong(payload))

    async def _say_goodbye(self, code: int, reason: str) -> None:
        if self._ended is None:
            self._end(Ending(code, reason, remote=False))
            self._inbox.let_go()
            with contextlib.suppress(Exception):  # the connection was in no state to say it
                await self._ws.aclose(code, reason)


def _first(group: ExceptionGroup[Exception]) -> Exception:
    exc: Exception = group
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return exc
