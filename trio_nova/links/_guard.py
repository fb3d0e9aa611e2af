"""The stream below trio-websocket that lets only sound bytes through.

trio-websocket leaves a few things open: it answers a wrong handshake with a foreign error or a long
silence, drops a peer that breaks the protocol without saying why, keeps endless empty fragments, and
loses what was received when a write fails. All of that is settled here, one layer below::

    trio-websocket    requests the upgrade, assembles messages, masks what we send
    Guard             judges the response and every frame, says goodbye, times writes
    the dialled stream

To trio-websocket the guard is a stream that never breaks: it only ends.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import attrs
import trio

from trio_nova.errors import BadMessage, MessageTooBig, NovaError
from trio_nova.links._ending import FAREWELL_WAIT, Ending
from trio_nova.links._frames import CLOSE, PING, FrameScanner, FrameViolation, close_payload, mask_frame
from trio_nova.links._handshake import CHUNK, receive_rejection, receive_response
from trio_nova.links._inbox import Inbox
from trio_nova.links._patience import Patience
from trio_nova.links._seam import Dial
from trio_nova.links._upgrade import Response, canonical_head, judge_upgrade
from trio_nova.links._uplink import Uplink

__all__ = ["Guard"]

_KEY = re.compile(rb"\r\nsec-websocket-key:[ \t]*([!-~]+)", re.IGNORECASE)


@attrs.define(eq=False)
class Guard(trio.abc.Stream):
    """Guards `stream`, which becomes its own to close."""

    stream: trio.abc.Stream
    dial: Dial
    inbox: Inbox
    """Told of bytes that arrive, and of pings and pongs."""
    on_refusal: Callable[[], object] = attrs.field(default=lambda: None, init=False)
    """Called once where the upgrade fails: trio-websocket would wait on."""
    refusal: NovaError | None = attrs.field(default=None, init=False)
    response: Response | None = attrs.field(default=None, init=False)
    """The server's 101 response, once it was found right."""
    subprotocol: str | None = attrs.field(default=None, init=False)
    uplink: Uplink = attrs.field(init=False)
    _stalled_since: float | None = attrs.field(default=None, init=False)
    ending: Ending | None = attrs.field(default=None, init=False)
    """Why no frame will come any more; the first reason stays."""
    mute: bool = attrs.field(default=False, init=False)
    """Nothing more is written: we said goodbye, or a write failed, or was torn."""
    write_error: Exception | None = attrs.field(default=None, init=False)

    _scanner: FrameScanner = attrs.field(init=False)
    _patience: Patience = attrs.field(init=False)
    _key: str = attrs.field(default="", init=False)
    _unscanned: bytes = attrs.field(default=b"", init=False)
    """What came in one piece with the response."""
    _left: bool = attrs.field(default=False, init=False)
    """Our close frame was sent on our own account: the peer's is waited for, however full the inbox is."""
    _stream_ended: bool = attrs.field(default=False, init=False)
    _writing: trio.StrictFIFOLock = attrs.field(factory=trio.StrictFIFOLock, init=False)

    def __attrs_post_init__(self) -> None:
        self._scanner = FrameScanner(self.dial.max_message_size)
        self.uplink = Uplink.of(self.stream)
        self._patience = Patience(self.dial.message_timeout)

    # ----------------------------------------------------------------------- what trio-websocket calls

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write `data`, which is one whole frame, in slices. A failure shows in `mute`, not as an exception.

        An exception would make trio-websocket forget what it received and has not delivered yet.
        """
        if self.response is None and (key := _KEY.search(data)):
            self._key = key[1].decode("ascii")
        async with self._writing:
            if not self.mute:
                await self._write(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a write is likely to be taken at once."""
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return sound bytes, or b"" when no more will come: see `refusal` and `ending`."""
        if self.response is None:
            return await self._receive_response()
        while not self._finished:
            if not self._left:
                await self.inbox.wait_room()
            data = self._unscanned or await self._read()
            self._unscanned = b""
            sound = self._scan(data)
            if sound:
                return sound
        await self._take_leave()
        return b""

    async def aclose(self) -> None:
        """Close the stream, politely where that can be done at once."""
        await self.stream.aclose()

    # ----------------------------------------------------------------------- what the link calls

    @property
    def stalled_since(self) -> float | None:
        """Trio's time when the peer last accepted a part of the write under way; None: none is under way."""
        since = self._stalled_since
        return None if since is None else self.uplink.stalled_since(since)

    def end(self, ending: Ending) -> None:
        """Note why the link ended, unless that is known already."""
        if self.ending is None:
            self.ending = ending

    async def send_ping(self, payload: bytes) -> None:
        """Write a ping, between two frames of trio-websocket's, which would wait for the pong as well."""
        async with self._writing:
            if not self.mute:
                await self._write(mask_frame(PING, payload, os.urandom(4)))

    async def say_goodbye(self, code: int, reason: str) -> None:
        """Write a close frame, unless the link has ended already; what does not fit the inbox is dropped from now on.

        Waits for the write under way: the caller bounds it. Cancelling it may tear a frame.
        """
        self.inbox.let_go()
        if self.ending is not None:
            await trio.lowlevel.checkpoint()
            return
        self.end(Ending(code, reason, remote=False))
        async with self._writing:
            if not self.mute and not self._finished:
                self._left = self.mute = True
                await self._write(_close_frame(code, reason))

    # ----------------------------------------------------------------------- the upgrade

    async def _receive_response(self) -> bytes:
        try:
            await self._upgrade()
        except NovaError as exc:
            self.refusal = exc
            self.on_refusal()
            return b""
        return canonical_head(self._key, self.subprotocol)

    async def _upgrade(self) -> None:
        url = self.dial.url
        response, rest = await receive_response(self.stream, url)
        if response.status != 101:
            raise await receive_rejection(self.stream, response, rest, self.dial.wall_clock())
        self.subprotocol = judge_upgrade(response, self._key, self.dial.offered)
        self.response = response
        self._unscanned = rest

    # ----------------------------------------------------------------------- frames

    @property
    def _finished(self) -> bool:
        scanner = self._scanner
        return scanner.close is not None or scanner.violation is not None or self._stream_ended

    async def _read(self) -> bytes:
        """Return what the peer sent next; b"" for the end of the stream, however it came."""
        cause: Exception | None = None
        began = trio.current_time()
        try:
            data = bytes(await self.stream.receive_some(CHUNK))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            data, cause = b"", exc
        if not data:
            self._stream_ended = True
            where = "between two messages" if self._scanner.between_messages else "inside a message"
            how = "closed" if cause is None else "broke"
            self.end(Ending(1006, detail=f"the connection {how} {where}", cause=cause))
        self._patience.wait(trio.current_time() - began)
        return data

    def _scan(self, data: bytes) -> bytes:
        scanner = self._scanner
        begun, completed = not scanner.between_messages, scanner.messages
        sound = scanner.feed(data)
        within_one = begun and scanner.messages == completed
        if self._patience.is_over(within_one=within_one) and not self._finished:
            scanner.violation, sound = FrameViolation(1008, self._patience.rule), 0
        if scanner.violation is not None:
            code, rule, said = scanner.violation.code, scanner.violation.rule, scanner.violation.said
            kind = MessageTooBig if code == 1009 else BadMessage
            detail = f"{rule}: {said}" if said else rule
            self.end(Ending(code, detail=detail, remote=False, cause=kind(f"the peer broke a rule: {rule}")))
        elif scanner.close is not None:
            self.end(Ending(scanner.close.code, scanner.close.reason, remote=True))
        if data:
            self.inbox.announce(scanner.messages, scanner.controls)
        return data if sound == len(data) else data[:sound]

    async def _take_leave(self) -> None:
        """Answer what ended the scan with a close frame (RFC 6455 section 5.5.1), if that can be done soon."""
        scanner = self._scanner
        if scanner.violation is not None:
            farewell = _close_frame(scanner.violation.code, scanner.violation.rule)
        elif scanner.close is not None:
            farewell = _close_frame(scanner.close.code, scanner.close.reason)
        else:
            return
        with trio.move_on_after(min(self.dial.close_timeout, FAREWELL_WAIT)):
            async with self._writing:  # a frame of ours that is under way must not be torn by this one
                if not self.mute:
                    self.mute = True
                    await self._write(farewell)

    # ----------------------------------------------------------------------- bytes

    async def _write(self, data: bytes | bytearray | memoryview) -> None:
        """Write in slices, so that a slow peer and a silent one can be told apart. Holds `_writing`."""
        self._stalled_since = trio.current_time()
        self.uplink.mark()
        try:
            with memoryview(data) as whole:
                for at in range(0, len(whole), CHUNK):
                    await self.stream.send_all(whole[at : at + CHUNK])
                    self._stalled_since = trio.current_time()
                    self.uplink.mark()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self.mute = True
            self.write_error = exc
        except BaseException:
            self.mute = True  # half a frame may be out: another one would be read as its rest
            raise
        finally:
            self._stalled_since = None


def _close_frame(code: int, reason: str) -> bytes:
    return mask_frame(CLOSE, close_payload(code, reason), os.urandom(4))
