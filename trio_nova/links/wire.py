"""Links over any byte stream of Trio's: the default transport.

::

    receive_some ──► stream ──► WireProtocol ──► a batch of frames
    send_all, send_nowait ◄── encoded, joined ──► stream
    and, in the link's nursery, only while it is needed:
        answer    writes the pongs that could not be written at once
        close     closes a stream that cannot be closed without waiting

Reading is done by whoever calls `receive_some`, and writing by whoever calls `send_all`: an idle link
has no task of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import attrs
import trio

from trio_nova._signal import Bell
from trio_nova.core import Strategy
from trio_nova.errors import BadMessage, LinkLost
from trio_nova.links._block import LinkBlock
from trio_nova.links._dial import open_stream, with_context
from trio_nova.links._ending import FAREWELL_WAIT, Ending
from trio_nova.links._handshake import CHUNK, receive_rejection, receive_response
from trio_nova.links._patience import Patience
from trio_nova.links._seam import Dial, Link, Sent
from trio_nova.links._uplink import Transit, Uplink, socket_below
from trio_nova.links._wire import WireProtocol
from trio_nova.messages import Frame

__all__ = ["WireTransport"]

_MAX_ANSWERS = 16
"""Pongs that wait for a write to end; RFC 6455 section 5.5.3 allows to answer the latest ping only."""
_MAX_READ = 4 * CHUNK
"""Bytes that are read at a time, at most."""
_MAX_BATCH = 704
"""Frames that `receive_some` returns at a time, however many one read completes: others get to run between."""
_MAX_UNTAKEN = 256
"""Frames kept for `receive_some` that arrive while the link is being closed."""
_FULL_CHECKPOINT_EVERY = 8
"""Writes."""


@attrs.define(unsafe_hash=True)
class WireTransport(Strategy):
    """Opens links over the stream itself: the fastest way, and the one with compression."""

    async def prepare(self, dial: Dial) -> Dial:
        """Load the authorities that TLS needs; see `Transport`."""
        return await with_context(dial)

    def open(self, dial: Dial) -> AbstractAsyncContextManager[Link]:
        """Return a block that holds one open link; see `Transport.open`."""
        return LinkBlock(dial, _make)


async def _make(dial: Dial) -> _WireLink:
    stream = await open_stream(dial)
    link = _WireLink(dial, stream)
    try:
        await link.ask()
    except BaseException:  # cancelled: the block that would abort the link has not been entered
        await trio.aclose_forcefully(stream)
        raise
    return link


class _WireLink:
    """One WebSocket over a stream, which becomes its own to close."""

    def __init__(self, dial: Dial, stream: trio.abc.Stream) -> None:
        self._dial = dial
        self._stream = stream
        self._socket = socket_below(stream)
        self._uplink = Uplink.of(stream)
        self._is_socket = isinstance(stream, trio.SocketStream) and _has_descriptor(stream.socket)
        """Whether the stream is no more than a socket, so that bytes can be read without asking it."""
        self._write_some: Callable[[bytes], int] | None = getattr(stream, "send_some_nowait", None)
        """Writes as much as is taken without waiting, and returns how many bytes; None where the stream cannot."""
        if self._is_socket and self._socket is not None:
            self._write_some = partial(_write_to, self._socket)
        self._protocol = WireProtocol(dial)
        self._nursery: trio.Nursery
        self._headers: Sequence[tuple[str, str]] = ()
        self._ending: Ending | None = None
        """Why nothing can be sent any more; the first reason stays."""
        self._aborted = False
        self._mute = False
        """Nothing more is written: we said goodbye, or a write failed, or was torn."""
        self._reading = False
        self._read_size = CHUNK
        self._more = False
        """Whether there is likely to be more to read, as the last read was as large as it could be."""
        self._read = Bell()
        """For those who want to read while somebody does."""
        self._untaken: list[Frame] = []
        self._writing = False
        self._written = Bell()
        """For those who want to write while somebody does."""
        self._patience = Patience(dial.message_timeout) if dial.message_timeout < math.inf else None
        self._stalled_since: float | None = None
        self.heard_at = -math.inf
        """Trio's time when bytes last arrived."""
        self._writes = 0
        self._answers: list[bytes] = []
        """Pongs and the close frame that wait for the write under way."""
        self._begun: tuple[Frame, bytes] | None = None
        """A frame that `send_nowait` could not write whole, and its rest."""
        self._parting = False
        """Our goodbye is being written: nothing may follow it."""

    # ----------------------------------------------------------------- the upgrade

    async def ask(self) -> None:
        """Ask for the upgrade. That comes first: what is to be done meanwhile takes the server's time, not ours."""
        self._dial.on_phase("http")
        with contextlib.suppress(LinkLost):  # where that fails, reading tells why
            await self._write(self._protocol.request())

    async def start(self, nursery: trio.Nursery) -> None:
        """Take the answer; raises ConnectFailed where there is none, or no upgrade."""
        self._nursery = nursery
        dial, stream = self._dial, self._stream
        response, rest = await receive_response(stream, dial.url)
        if response.status != 101:
            raise await receive_rejection(stream, response, rest, dial.wall_clock())
        self._protocol.upgraded(response)
        self._headers = response.headers
        self._untaken = self._take_in(rest)

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return self._headers

    # ----------------------------------------------------------------- receiving

    async def receive_some(self) -> Sequence[Frame]:
        """Wait for what comes next and return it, at most `_MAX_BATCH` frames of one read; see `Link.receive_some`."""
        while self._reading:
            await self._read.wait()
        if self._untaken:
            await trio.lowlevel.checkpoint()
            return self._batch(self._untaken)
        if not self._finished:
            frames = await self._receive()
            if frames or not self._finished:
                return self._batch(frames)
        await self._take_leave()
        raise (self._ending or Ending(1006)).as_error(self._dial.epoch)

    def _batch(self, frames: list[Frame]) -> list[Frame]:
        """Return the first of `frames`, and keep the others for the next call."""
        self._untaken = frames[_MAX_BATCH:]
        return frames[:_MAX_BATCH] if self._untaken else frames

    @property
    def _finished(self) -> bool:
        """Whether nothing will be received any more."""
        return self._aborted or self._protocol.ending is not None

    async def _receive(self) -> list[Frame]:
        self._reading = True
        patience = self._patience
        began = 0.0 if patience is None else trio.current_time()
        try:
            data: bytes | bytearray | None = None
            if self._is_socket and not self._more:
                # What `receive_some` of the stream does, but it tries to read before it waits: in vain, most times.
                assert self._socket is not None
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    data = os.read(self._socket.fileno(), self._read_size)
                except BlockingIOError:
                    data = None
            if data is None:
                data = await self._stream.receive_some(self._read_size)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self._stream_ended("broke", exc)
            return []
        finally:
            if patience is not None:
                patience.wait(trio.current_time() - began)
            self._reading = False
            self._read.ring()
        if not data:
            self._stream_ended("closed")
            return []
        self.heard_at = trio.current_time()
        # Whoever sends much is read in larger pieces: the cost of a read is in the reading, not in its size.
        self._more = len(data) == self._read_size
        self._read_size = min(2 * self._read_size, _MAX_READ) if self._more else max(self._read_size // 2, CHUNK)
        return self._take_in(bytes(data))

    def _take_in(self, data: bytes) -> list[Frame]:
        protocol, patience = self._protocol, self._patience
        begun = patience is not None and not protocol.between_messages
        frames = protocol.feed(data)
        if patience is not None:
            within_one = begun and not any(isinstance(frame, str | bytes) for frame in frames)
            if patience.is_over(within_one=within_one):
                protocol.give_up(patience.rule)
        if answers := protocol.data_to_send():
            self._answer(answers)
        if protocol.ending is not None:
            self._end(protocol.ending)
        return frames

    def _stream_ended(self, how: str, cause: Exception | None = None) -> None:
        where = "between two messages" if self._protocol.between_messages else "inside a message"
        self._end(Ending(1006, detail=f"the connection {how} {where}", cause=cause))
        self._protocol.ending = self._ending
        self._mute = True

    async def _take_leave(self) -> None:
        """Wait until what answers the end has been written, if that can be done soon."""
        await trio.lowlevel.checkpoint()
        if not self._says_farewell:
            return
        with trio.move_on_after(min(self._dial.close_timeout, FAREWELL_WAIT)):
            while self._says_farewell:
                await self._written.wait()

    @property
    def _says_farewell(self) -> bool:
        return bool(self._writing or self._answers) and not self._aborted and not self._mute

    # ----------------------------------------------------------------- sending

    @property
    def stalled_since(self) -> float | None:
        since = self._stalled_since
        return None if since is None else self._uplink.stalled_since(since)

    @property
    def transit(self) -> Transit | None:
        return self._uplink.look()

    def send_nowait(self, frame: Frame) -> Sent:
        """Write one frame as far as that can be done without waiting; see `Link.send_nowait`."""
        write_some = self._write_some
        if write_some is None or self._writing or self._begun is not None or self._mute or self._ending is not None:
            return "not"
        try:
            data = self._protocol.encode(frame)
        except UnicodeEncodeError:  # send_all tells it
            return "not"
        sent = write_some(data)
        if sent == len(data):
            return "whole"
        if sent == 0 and not self._protocol.compresses:
            return "not"
        self._begun = (frame, data[sent:])
        return "begun"

    async def send_all(self, frames: Sequence[Frame]) -> None:
        """Hand the frames to the operating system, joined; see `Link.send_all`.

        Raises:
            LinkLost: any of the frames may have left.
            BadMessage: a text holds half a surrogate pair, which UTF-8 cannot say; it and what follows did not leave.
        """
        while self._writing and not self._aborted:
            await self._written.wait()
        if self._ending is not None or self._mute:
            await trio.lowlevel.checkpoint()
            raise (self._ending or Ending(1006, detail="a write failed")).as_error(self._dial.epoch)
        pieces, problem = [], None
        if self._begun is not None:
            (begun, rest), self._begun = self._begun, None
            pieces.append(rest)
            if frames and frames[0] is begun:
                frames = frames[1:]
        for frame in frames:
            try:
                pieces.append(self._protocol.encode(frame))
            except UnicodeEncodeError as exc:
                problem = exc
                break
        await self._write(b"".join(pieces))
        if problem is not None:
            raise BadMessage("a text that is no valid Unicode cannot be sent") from problem

    async def _write(self, data: bytes) -> None:
        """Write `data`, then the answers that wait; raises LinkLost where that fails."""
        self._writing = True
        self._writes += 1
        try:
            # Even the writer of a peer that takes all at once lets others run, now and then.
            if self._writes % _FULL_CHECKPOINT_EVERY:
                await trio.lowlevel.checkpoint_if_cancelled()
            else:
                await trio.lowlevel.checkpoint()
            await self._write_slices(data)
            while self._answers:
                await self._write_slices(self._answers.pop(0))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self._mute = True
            # What came before it broke can still be received; then reading tells the same.
            ending = self._ending or Ending(1006, detail="a write failed", cause=exc)
            raise ending.as_error(self._dial.epoch) from exc
        except BaseException:
            self._mute = True  # half a frame may be out: another one would be read as its rest
            raise
        finally:
            self._writing = False
            self._stalled_since = None
            self._written.ring()

    async def _write_slices(self, data: bytes) -> None:
        """Write in slices, so that a slow peer and a silent one can be told apart."""
        sent = 0 if self._write_some is None else self._write_some(data[:CHUNK])
        if sent == len(data):
            return
        self._stalled_since = trio.current_time()
        self._uplink.mark()
        with memoryview(data) as whole:
            for at in range(sent, len(data), CHUNK):
                await self._stream.send_all(whole[at : at + CHUNK])
                self._stalled_since = trio.current_time()
                self._uplink.mark()

    # ----------------------------------------------------------------- what the protocol answers

    def _answer(self, answers: Sequence[bytes]) -> None:
        """Write pongs and the answer to a close frame: at once, or in a task, or after the write under way."""
        if self._mute or self._parting:
            return
        for answer in answers:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.pop(0)
            self._answers.append(answer)
        if self._writing:
            return
        rest = b""
        if self._begun is not None:
            if self._protocol.ending is None:
                return  # whoever began that frame will go on with it, which at the end nobody can
            rest, self._begun = self._begun[1], None
        while self._answers and not rest and self._write_some is not None:
            answer = self._answers.pop(0)
            rest = answer[self._write_some(answer) :]
        if rest or self._answers:
            self._writing = True
            self._nursery.start_soon(self._finish_answers, rest, name=self._dial.task_name("answer"))

    async def _finish_answers(self, rest: bytes) -> None:
        with contextlib.suppress(LinkLost):  # reading tells it as well
            await self._write(rest)

    # ----------------------------------------------------------------- the end

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye and wait for the answer, at most `Dial.close_timeout` seconds; see `Link.aclose`."""
        try:
            with trio.move_on_after(self._dial.close_timeout):
                await trio.lowlevel.checkpoint_if_cancelled()
                if self._ending is None:
                    await self._say_goodbye(code, reason)
                while not self._finished:
                    if self._reading:
                        await self._read.wait()
                    else:
                        frames = await self._receive()
                        self._untaken += frames[: max(_MAX_UNTAKEN - len(self._untaken), 0)]
        finally:
            self.abort()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        self._end(Ending(code, reason, remote=False))
        while self._writing and not self._aborted:
            await self._written.wait()
        if not self._mute and not self._finished:
            rest = b"" if self._begun is None else self._begun[1]
            self._begun = None
            self._parting = True
            pongs = b"".join(self._answers)
            self._answers.clear()
            with contextlib.suppress(LinkLost):
                await self._write(rest + pongs + self._protocol.goodbye(code, reason))
            self._mute = True

    def abort(self) -> None:
        """Close at once, without a goodbye: both directions end with LinkLost."""
        if self._aborted:
            return
        self._end(Ending(1006, detail="aborted"))
        self._aborted = self._mute = True
        if self._socket is not None:
            self._socket.close()
        else:
            self._nursery.start_soon(trio.aclose_forcefully, self._stream, name=self._dial.task_name("close"))
        self._read.ring()
        self._written.ring()

    def _end(self, ending: Ending) -> None:
        """Note why the link ended, unless that is known already."""
        if self._ending is None:
            self._ending = ending


def _write_to(sock: trio.socket.SocketType, data: bytes) -> int:
    """Return how many bytes the operating system took at once."""
    try:
        # Not sock.send: Trio's lets other tasks run each time, which costs more than the write.
        return os.write(sock.fileno(), data)
    except OSError:  # it would block; or it is broken, as whoever writes next will find
        return 0


def _has_descriptor(sock: trio.socket.SocketType) -> bool:
    """Return whether the operating system writes what is written to this socket's number, which simulated ones lack."""
    try:
        return os.name == "posix" and sock.fileno() >= 0
    except NotImplementedError:
        return False
