"""Judge the frames of a server by their headers (RFC 6455 section 5), without I/O and without keeping payloads.

What is legal goes on to whoever assembles messages; the first illegal frame, and all after it, never does.
"""

from __future__ import annotations

import codecs

import attrs

from trio_nova.errors import printable
from trio_nova.messages import Ping, Pong, is_close_code
from trio_nova.secrets import redacted

__all__ = ["CloseFrame", "FrameScanner", "FrameViolation", "close_payload", "judge_close", "mask_frame"]

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_CONTINUATION = 0x0
_OPCODES = frozenset({_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_NO_STATUS = 1005
_REASON_LIMIT = 123
"""Bytes that a close frame has for it."""
FRAGMENT_OVERHEAD = 64
"""Bytes charged for each fragment besides its payload: roughly what keeping it costs, so empty ones are not free."""


class FrameViolation(Exception):
    """A frame breaks a `rule`; `code` is what the close frame that answers it carries (RFC 6455 section 7.4.1)."""

    def __init__(self, code: int, rule: str, said: str = "") -> None:
        super().__init__(f"{rule} ({code})")
        self.code = code
        self.rule = rule
        self.said = said
        """What the frame said for all that, fit for a log."""


@attrs.frozen
class CloseFrame:
    """The peer's goodbye; `code` is 1005 where it gave none (RFC 6455 section 7.1.5)."""

    code: int
    reason: str


def close_payload(code: int, reason: str) -> bytes:
    """Return what a close frame carries: nothing for a `code` that must not be sent (RFC 6455 sections 5.5 and 7.4).

    A reason that is too long is cut between two characters.
    """
    if not is_close_code(code):
        return b""
    fitting = reason.encode("utf-8", "replace")[:_REASON_LIMIT].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + fitting.encode()


def judge_close(payload: bytes) -> CloseFrame:
    """Return what a close frame says.

    Raises:
        FrameViolation: it says nothing that it may say (RFC 6455 section 5.5.1).
    """
    if not payload:
        return CloseFrame(_NO_STATUS, "")
    code, reason = int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "backslashreplace")
    said = f"{code} {printable(redacted(reason))!r}" if reason else str(code)
    if len(payload) == 1:
        raise FrameViolation(1002, "close-length", said)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameViolation(1007, "close-reason", said) from None
    if not is_close_code(code):
        raise FrameViolation(1002, "close-code", said)
    return CloseFrame(code, reason)


def mask_frame(opcode: int, payload: bytes, mask: bytes) -> bytes:
    """Return a whole control frame as a client sends it: at most 125 bytes, masked (RFC 6455 section 5.3)."""
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes((0x80 | opcode, 0x80 | len(payload))) + mask + masked


@attrs.define(eq=False)
class FrameScanner:
    """Scan a server's byte stream, cut anywhere.

    Memory does not depend on what the peer sends: 14 bytes of header, 125 of a control frame, 3 of UTF-8.
    """

    max_message_size: int
    """Bytes. One frame may hold as many; fragments are charged 64 bytes more each."""
    violation: FrameViolation | None = attrs.field(default=None, init=False)
    """What ended the scan, if it was the peer's fault."""
    close: CloseFrame | None = attrs.field(default=None, init=False)
    """The peer's close frame, which ends the scan: what follows it is ignored."""
    messages: int = attrs.field(default=0, init=False)
    """Data messages completed so far."""
    controls: list[tuple[int, Ping | Pong]] = attrs.field(factory=list, init=False)
    """Pings and pongs of the last `feed`, each with the number of messages completed before it."""

    _head: bytearray = attrs.field(factory=bytearray, init=False)
    _left: int | None = attrs.field(default=None, init=False)
    """Bytes of payload still to come; None between frames."""
    _opcode: int = attrs.field(default=_CONTINUATION, init=False)
    _fin: bool = attrs.field(default=True, init=False)
    _message: int | None = attrs.field(default=None, init=False)
    """The opcode of the message under way; None between messages."""
    _charged: int = attrs.field(default=0, init=False)
    _control: bytearray = attrs.field(factory=bytearray, init=False)
    _tail: bytes = attrs.field(default=b"", init=False)
    """The first bytes of a character that is not complete yet."""

    @property
    def between_messages(self) -> bool:
        """Whether nothing is cut in half if the stream ends here."""
        return self._left is None and not self._head and self._message is None

    def feed(self, data: bytes) -> int:
        """Scan `data` and return how many of its first bytes may go on.

        That is all of them, or those before a close frame, or those before a frame that breaks a rule.
        Afterwards see `violation`, `close`, `messages` and `controls`.
        """
        self.controls = []
        at = begin = 0
        try:
            while at < len(data) and self.close is None:
                if self._left is None:
                    if not self._head:
                        begin = at
                    at = self._scan_head(data, at)
                else:
                    part = data[at : at + self._left]
                    at += len(part)
                    self._left -= len(part)
                    self._scan_payload(part)
                if self._left == 0:
                    self._finish_frame()
        except FrameViolation as violation:
            self.violation = violation
            return begin
        return at if self.close is None else begin

    def _scan_head(self, data: bytes, at: int) -> int:
        head = self._head
        if len(head) < 2:
            missing = 2 - len(head)
            head += data[at : at + missing]
            at = min(at + missing, len(data))
            if len(head) < 2:
                return at
            self._judge_start(head[0], head[1])
        short = head[1]
        if short < 126:
            length = short
        else:
            size = 4 if short == 126 else 10
            missing = size - len(head)
            head += data[at : at + missing]
            at = min(at + missing, len(data))
            if len(head) < size:
                return at
            length = int.from_bytes(head[2:], "big")
            # RFC 6455 section 5.2: the minimal number of bytes must be used, the top bit must be 0.
            if length < 126 or (short == 127 and length < 65536):
                raise FrameViolation(1002, "length-form")
            if length >> 63:
                raise FrameViolation(1002, "length-range")
        head.clear()
        self._judge_size(length)
        self._left = length
        return at

    def _judge_start(self, first: int, second: int) -> None:
        self._opcode, self._fin = opcode, fin = first & 0x0F, first >= 0x80
        if first & 0x70:
            raise FrameViolation(1002, "rsv")
        if opcode not in _OPCODES:
            raise FrameViolation(1002, "opcode")
        if second & 0x80:
            raise FrameViolation(1002, "masked")
        if opcode >= CLOSE:
            if not fin:
                raise FrameViolation(1002, "control-fragmented")
            if second > 125:
                raise FrameViolation(1002, "control-length")
        elif opcode == _CONTINUATION:
            if self._message is None:
                raise FrameViolation(1002, "continuation")
        elif self._message is not None:
            raise FrameViolation(1002, "interleaved")

    def _judge_size(self, length: int) -> None:
        if self._opcode >= CLOSE:
            return
        if self._opcode != _CONTINUATION:
            self._message = self._opcode
            self._charged = 0
        alone = self._fin and self._opcode != _CONTINUATION
        self._charged += length if alone else length + FRAGMENT_OVERHEAD
        if self._charged > self.max_message_size:
            raise FrameViolation(1009, "too-big")

    def _scan_payload(self, part: bytes) -> None:
        if self._opcode >= CLOSE:
            self._control += part
        elif self._message == TEXT:
            text = self._tail + part if self._tail else part
            try:
                _, used = codecs.utf_8_decode(text, "strict", False)
            except UnicodeDecodeError:
                raise FrameViolation(1007, "utf-8") from None
            self._tail = text[used:]
            # The codec waits for the third byte of a surrogate, though the second has settled the matter.
            if self._tail[:1] == b"\xed" and self._tail[1:2] >= b"\xa0":
                raise FrameViolation(1007, "utf-8")

    def _finish_frame(self) -> None:
        self._left = None
        if self._opcode >= CLOSE:
            payload = bytes(self._control)
            self._control.clear()
            if self._opcode == CLOSE:
                self.close = judge_close(payload)
            else:
                self.controls.append((self.messages, Ping(payload) if self._opcode == PING else Pong(payload)))
        elif self._fin:
            if self._tail:
                raise FrameViolation(1007, "utf-8")
            self._message = None
            self.messages += 1
