"""One run: a session, its service, the links between them, and the books that are compared at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import Any

import attrs
import trio

from tests.sweep.injections import BreakAt, CancelAt, CutAt, Injection, Loss
from tests.sweep.service import NEWS, TICKS, Service
from tests.sweep.streams import Lane, WatchedStream, socket_streams
from trio_nova import (
    Connection,
    Expired,
    Feed,
    JsonCodec,
    ListBackoff,
    MetricsCollector,
    NotSent,
    NovaError,
    Observation,
    OutcomeUnknown,
    Receiver,
    SessionOver,
    State,
)
from trio_nova.adapters.jsonrpc import JsonRpc, JsonRpcClient
from trio_nova.testing import ClosePayload, Dialled, MemoryStream, ScriptedServer, memory_streams

__all__ = ["CLOSE_TIMEOUT", "URL", "World", "tasks"]

URL = "ws://localhost/"
CLOSE_TIMEOUT = 1.0
PATIENCE = 60.0
"""Virtual seconds in which whatever was done to it a session is usable again."""
MOST_DIALS = 8


def tasks() -> set[trio.lowlevel.Task]:
    """Return every task of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, rest = set(), [root]
    while rest:
        task = rest.pop()
        found.add(task)
        rest += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


@attrs.define(eq=False)
class Try:
    """One message or question of ours, and what its call said became of it."""

    label: str
    outcome: str = "cancelled"
    answered: bool = False
    """Whether its answer came."""
    idempotent: bool = False


class _Cutter(MetricsCollector):
    """Tells the injection of every event, in the middle of whatever the session does."""

    def __init__(self, heard: Callable[[], None]) -> None:
        super().__init__()
        self._heard = heard

    def handle_connection_event(self, observation: Observation) -> None:
        self._heard()

    def handle_message_event(self, observation: Observation) -> None:
        self._heard()

    def handle_error_event(self, observation: Observation) -> None:
        self._heard()


@attrs.define(eq=False)
class World:
    """What a call under test has around it, and does to it."""

    lane: Lane
    injection: Injection
    seed: int
    service: Service = attrs.field(init=False)
    server: ScriptedServer = attrs.field(init=False)
    conn: Connection = attrs.field(init=False)
    """The session, once it is entered."""
    beside: trio.Nursery = attrs.field(init=False)
    """For calls beside the one under test."""
    stack: AsyncExitStack = attrs.field(init=False)
    """For blocks that the call under test is made in."""
    receiver: Receiver[Any] = attrs.field(init=False)
    """Who receives, where that is not the connection."""
    block: AbstractAsyncContextManager[Feed] = attrs.field(init=False)
    """A subscription's, that a call is to leave."""
    feed: Feed = attrs.field(init=False)
    client: JsonRpcClient = attrs.field(init=False)
    ends: list[tuple[Dialled, MemoryStream | trio.SocketStream]] = attrs.field(factory=list)
    """The server's end of every link."""
    streams: list[WatchedStream | trio.SocketStream] = attrs.field(factory=list)
    """The client's."""
    tries: list[Try] = attrs.field(factory=list)
    ticks: list[str] = attrs.field(factory=list)
    news: list[str] = attrs.field(factory=list)
    raised: NovaError | None = None
    """What left the call under test."""
    rpc: bool = False
    """Whether the session speaks JSON-RPC."""
    was_cut: set[int] = attrs.field(factory=set)
    """The links that were cut."""
    used_to_its_end: bool = False
    """Whether the session was used to its end: all that its last link brought was taken."""

    def __attrs_post_init__(self) -> None:
        self.service = Service(self.lane.pause)
        self.server = ScriptedServer(then=self.service)

    # ----------------------------------------------------------------- the way to the service

    @property
    def options(self) -> dict[str, Any]:
        """How sessions are opened here."""
        cuts = isinstance(self.injection, CutAt)
        return {
            "stream_factory": self.dial,
            "transport": self.lane.transport,
            "backoff": ListBackoff([0.0]),
            "close_timeout": CLOSE_TIMEOUT,
            "events": ("connection", "message", "error") if cuts else (),
            "metrics_collector": _Cutter(lambda: self.injection.heard(self.cut)),
        }

    @property
    def own_options(self) -> dict[str, Any]:
        """How a session is opened that speaks the words of the default strategies."""
        return {**self.options, "codec": JsonCodec(), "credentials": "token 0"}

    @property
    def rpc_options(self) -> dict[str, Any]:
        """How a session is opened that speaks JSON-RPC."""
        self.rpc = True
        return {**self.options, "adapter": JsonRpc(url=URL)}

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """Open a stream to the service."""
        await trio.lowlevel.checkpoint()
        assert len(self.ends) < MOST_DIALS, "a retry without end"
        if self.lane.kind == "socket":
            client, server = socket_streams()
            self.streams.append(client)
            self.ends.append((self.server.serve_stream(server, host, port), server))
            return client
        inner, end = memory_streams(self.lane.max_buffer)
        stream = WatchedStream(inner, self.injection, self.lane.sizes(self.seed))
        self.streams.append(stream)
        self.ends.append((self.server.serve_stream(end, host, port), end))
        return stream

    def cut(self, how: Loss) -> bool:
        """Cut the newest link, at once; False where none is up."""
        if not self.ends or self.ends[-1][0].ended is not None:
            return False
        dialled, end = self.ends[-1]
        dialled.end("dropped" if how == "fin" else "reset")
        self.was_cut.add(dialled.number)
        if isinstance(end, trio.SocketStream):
            end.socket.close()
        elif how == "fin":
            end.close()
        else:
            end.reset()
        return True

    # ----------------------------------------------------------------- the call under test

    @contextmanager
    def watched(
        self, raises: tuple[type[NovaError], ...] = (), *, within: float = 0.0, armed: bool = True
    ) -> Iterator[None]:
        """Make the call in the block the one under test.

        Args:
            raises: what it may raise where a fault was injected; nothing else is documented.
            within: virtual seconds in which it must have ended once it is cancelled.
            armed: whether the injection counts from the beginning; else from when the block says so.
        """
        injection = self.injection
        trio.lowlevel.add_instrument(injection)
        try:
            with injection.scope:
                if armed:
                    injection.arm()
                yield
        except raises as exc:
            # A link was lost only where it was broken, now or in what was arranged.
            if not self.was_cut and (not injection.fired or isinstance(injection, CancelAt)):
                raise
            self.raised = exc
        finally:
            injection.disarm()
            trio.lowlevel.remove_instrument(injection)
        if injection.scope.cancelled_caught:
            took = trio.current_time() - injection.fired_at
            assert took <= within, f"cancelled, it took {took} s to return"

    @contextmanager
    def trying(self, label: str, *, idempotent: bool = False) -> Iterator[Try]:
        """Keep what the call in the block says became of something of ours; what it raises goes on up."""
        attempt = Try(label, idempotent=idempotent)
        self.tries.append(attempt)
        try:
            yield attempt
        except (NotSent, Expired, SessionOver):
            attempt.outcome = "not sent"
            raise
        except OutcomeUnknown:
            attempt.outcome = "unknown"
            raise
        attempt.outcome = "sent"

    async def sends(self, send: Callable[[str], Awaitable[object]], label: str = "mine") -> None:
        """Send something of that label; raises what `send` does."""
        with self.trying(f"{label} {self.lane.padding}") as attempt:
            await send(attempt.label)

    async def asks(self, label: str, *, after: float = 0.0, idempotent: bool = False) -> None:
        """Ask something; raises what `request` does."""
        with self.trying(label, idempotent=idempotent) as attempt:
            reply = await self.conn.request(self.question(label, after), idempotent=idempotent)
            attempt.answered = True
        assert reply["result"]["q"] == label, "the answer to another question"

    def question(self, label: str, after: float = 0.0) -> dict[str, Any]:
        said = {"q": label, "after": after}
        return {"jsonrpc": "2.0", "method": "ask", "params": said} if self.rpc else {"type": "request", **said}

    def take(self, message: Any) -> None:
        """Enter a message of the inbox in the books."""
        if "tick" in message:
            self.ticks.append(message["tick"])

    def read(self, item: Any) -> None:
        """Enter what a feed brought in the books."""
        self.news.append(item["news"] if isinstance(item, dict) else item)

    # ----------------------------------------------------------------- afterwards

    async def go_on(self) -> None:
        """Use the session once more, both ways, until it has brought all there is."""
        conn, receiver = self.conn, getattr(self, "receiver", self.conn)
        with trio.fail_after(PATIENCE):
            for attempt in range(3):
                try:
                    await self.sends(conn.send_text, f"after {attempt}")
                except (NotSent, OutcomeUnknown):
                    assert not isinstance(self.injection, CancelAt)
                else:
                    break
            else:
                raise AssertionError("it cannot be sent on any more")
            while f"{len(self.ends)}:{TICKS - 1}" not in self.ticks:
                self.take(await receiver.receive())
            await self.asks("afterwards", idempotent=True)
        self.used_to_its_end = True

    async def read_on(self) -> None:
        """Take from the feed what it still has to bring."""
        with trio.fail_after(PATIENCE):
            while f"{len(self.ends)}:{NEWS - 1}" not in self.news:
                self.read(await self.feed.receive())

    async def wait_unsubscribed(self) -> None:
        """Wait until the service knows of no subscription."""
        with trio.fail_after(PATIENCE):
            while any(self.service.subscribed.get(len(self.ends), ())):
                await trio.sleep(0.01)

    async def is_over(self) -> None:
        """Close the session, if it is not, and find it over."""
        with trio.fail_after(PATIENCE):
            try:
                await self.sends(self.conn.send_text, "too late")
            except (SessionOver, NotSent):
                pass
            else:
                raise AssertionError("sent on a session that is over")
            await self.conn.aclose()

    # ----------------------------------------------------------------- the books

    def check(self) -> None:
        """Compare what the client says with what the service saw, once both are done."""
        faults = [*self._links(), *self._sendings(), *self._receivings(), *self.service.breaches]
        assert not faults, "; ".join(faults)

    def _links(self) -> Iterable[str]:
        for stream in self.streams:
            if isinstance(stream, WatchedStream):
                if not stream.closed:
                    yield "a stream is left open"
                if stream.written_when_torn:
                    yield "something was written behind half a frame"
            elif stream.socket.fileno() != -1:
                yield "a socket is left open"
        if hasattr(self, "conn") and self.conn.state is not State.CLOSED:
            yield f"the session is {self.conn.state.value}"
        for dialled, _ in self.ends:
            goodbyes = [frame for frame in dialled.frames if isinstance(frame, ClosePayload)]
            if dialled.ended == "closed" and dialled.frames[-1:] != goodbyes[:1]:
                yield f"link {dialled.number} was closed with {goodbyes}, and not last"
        if self.used_to_its_end and self.ends[-1][0].ended != "closed":
            yield f"the last link ended: {self.ends[-1][0].ended}"
        if isinstance(self.injection, CancelAt) and hasattr(self, "conn"):
            yield from (
                f"link {dialled.number} ended: {dialled.ended}"
                for dialled, _ in self.ends
                if dialled.ended != "closed" and dialled.number not in self.was_cut
            )

    def _sendings(self) -> Iterable[str]:
        seen = [frame for dialled, _ in self.ends for frame in dialled.frames]
        texts = [
            frame.decode() if isinstance(frame, bytes) else frame for frame in seen if isinstance(frame, bytes | str)
        ]
        for attempt in self.tries:
            times = sum(attempt.label in text for text in texts)
            if times > (1 if not attempt.idempotent else len(self.ends)):
                yield f"{attempt.label[:20]!r} was sent {times} times"
            if attempt.outcome == "not sent" and times:
                yield f"{attempt.label[:20]!r} was called not sent, and delivered"
            # What a cut link had still under way never reached the service.
            if attempt.outcome == "sent" and not times and (attempt.answered or not self._was_lost):
                yield f"{attempt.label[:20]!r} was acknowledged, and not delivered"
        for (link, label), times in Counter(self.service.executed).items():
            if times > 1:
                yield f"{label!r} was asked {times} times on link {link}"

    @property
    def _was_lost(self) -> bool:
        return bool(self.was_cut)

    def _receivings(self) -> Iterable[str]:
        for name, got, said, count in (
            ("tick", self.ticks, self.service.said, TICKS),
            ("news", self.news, self.service.published, NEWS),
        ):
            for link in said:
                everything = [f"{link}:{number}" for number in range(count)]
                of_link = [each for each in got if each.startswith(f"{link}:")]
                if of_link != everything[: len(of_link)]:
                    yield f"{name}s of link {link} came as {of_link}"
        if self.used_to_its_end:
            for link, said_there in self.service.said.items():
                if link in self.was_cut and isinstance(self.injection, CutAt) and self.injection.how == "reset":
                    continue
                if isinstance(self.injection, BreakAt) and link < len(self.ends):
                    continue  # its stream failed: what it had received then is gone
                if not {*said_there} <= {*self.ticks}:
                    yield f"of link {link} {said_there} was said, and {self.ticks} came"
