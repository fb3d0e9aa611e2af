"""Judge the server's answer to the upgrade request (RFC 6455 section 4.1, RFC 9112), without I/O."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

import attrs

from trio_nova.errors import HandshakeInvalid, printable
from trio_nova.links._cookies import cookie_header
from trio_nova.links._seam import Dial
from trio_nova.secrets import Secret, secret_parameter, secrets_in_headers, secrets_in_url

__all__ = [
    "HEAD_LIMIT",
    "HeadReader",
    "Response",
    "canonical_head",
    "content_length",
    "dechunk",
    "judge_upgrade",
    "upgrade_headers",
    "upgrade_request",
]

HEAD_LIMIT = 65536
"""Bytes of response head, interim responses included."""
_INTERIM_LIMIT = 8
_ACCEPT_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*)")


@attrs.frozen
class Response:
    """A parsed response head: field names in lower case, values stripped."""

    version: str
    status: int
    headers: tuple[tuple[str, str], ...]

    def values(self, name: str) -> list[str]:
        """Return the values of all fields called `name`, in order."""
        return [value for found, value in self.headers if found == name]


@attrs.define(eq=False)
class HeadReader:
    """Collect the head of the final response: interim ones are skipped, and a flood is refused at once."""

    has_body: bool = True
    """False: the response has none, so what it says of its length is not looked at."""
    rest: bytes = attrs.field(default=b"", init=False)
    """What came after the head."""
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _checked: int = attrs.field(default=0, init=False)
    _skipped: int = attrs.field(default=0, init=False)
    _interim: int = attrs.field(default=0, init=False)

    @property
    def started(self) -> bool:
        """Whether the peer said anything at all."""
        return bool(self._buffer) or self._skipped > 0

    def feed(self, data: bytes) -> Response | None:
        """Take in `data`; return the final response once its head is complete.

        Raises:
            HandshakeInvalid: what came so far cannot become a legal head.
        """
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n", max(self._checked - 3, 0))
            size = len(self._buffer) if end < 0 else end + 4
            if self._skipped + size > HEAD_LIMIT:
                raise HandshakeInvalid(f"the response head exceeds {HEAD_LIMIT} bytes", rule="head too large")
            self._check_lines(size)
            if end < 0:
                return None
            response = parse_head(bytes(self._buffer[:end]), has_body=self.has_body)
            del self._buffer[:size]
            self._checked = 0
            if response.status >= 200 or response.status == 101:
                self.rest = bytes(self._buffer)
                return response
            self._skipped += size
            self._interim += 1
            if self._interim > _INTERIM_LIMIT:
                raise HandshakeInvalid(f"more than {_INTERIM_LIMIT} interim responses", rule="interim")

    def _check_lines(self, size: int) -> None:
        """Refuse what never becomes a head, rather than wait for an end that does not come."""
        if self._checked < 7 and not self._buffer.startswith(b"HTTP/1."[: len(self._buffer)]):
            # The alert with which a server of TLS answers a plain request (RFC 8446 section 5.1), or its handshake.
            tls = self._buffer.startswith((b"\x15", b"\x16"))
            what = "not HTTP/1, but TLS: write wss://" if tls else "not HTTP/1"
            raise HandshakeInvalid(what, rule="status-line", said=bytes(self._buffer))
        at = self._buffer.find(b"\n", self._checked, size)
        while at >= 0:
            if at == 0 or self._buffer[at - 1] != 0x0D:
                raise HandshakeInvalid("a line ends with a bare LF", rule="line-ending")
            at = self._buffer.find(b"\n", at + 1, size)
        if self._buffer.find(b"\0", self._checked, size) >= 0:
            raise HandshakeInvalid("the response head holds a NUL", rule="nul")
        self._checked = size


def parse_head(head: bytes, *, has_body: bool = True) -> Response:
    """Parse a head without its last empty line, strictly (RFC 9112 sections 2.2, 4 and 5).

    Raises:
        HandshakeInvalid: rule "status-line", "obs-fold", "header" or "framing".
    """
    first, *lines = head.split(b"\r\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise HandshakeInvalid("bad status line", rule="status-line", said=first)
    headers: list[tuple[str, str]] = []
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            raise HandshakeInvalid("a header is folded over lines", rule="obs-fold")
        field = _FIELD.fullmatch(line)
        if field is None:
            raise HandshakeInvalid("bad header line", rule="header", said=line)
        name, value = field.groups()
        # Interned, as thousands of links would each keep a copy of the same few names.
        headers.append((sys.intern(name.decode("ascii").lower()), value.decode("latin-1").strip(" \t")))
    version, status = status_line.groups()
    response = Response(version.decode("ascii"), int(status), tuple(headers))
    if has_body:
        _check_framing(response)
    return response


def _check_framing(response: Response) -> None:
    """Refuse a body whose length two readers could understand differently (RFC 9112 section 6.3)."""
    lengths = response.values("content-length")
    encodings = response.values("transfer-encoding")
    if len(set(lengths)) > 1 or (lengths and encodings):
        raise HandshakeInvalid("the length of the body is ambiguous", rule="framing")
    if lengths and re.fullmatch(r"[0-9]{1,18}", lengths[0]) is None:
        raise HandshakeInvalid("Content-Length is no number", rule="framing")


def judge_upgrade(response: Response, key: str, offered: Sequence[str], extensions: bool = False) -> str | None:
    """Return the subprotocol that a 101 response agreed to, None for none (RFC 6455 section 4.1).

    Args:
        response: The server's 101 response.
        key: The Sec-WebSocket-Key that was sent.
        offered: The subprotocols that were.
        extensions: Whether extensions were: their terms are for somebody else to judge.

    Raises:
        HandshakeInvalid: rule "version", "upgrade", "connection", "accept", "extension" or "subprotocol".
    """
    if response.version != "1.1":
        raise HandshakeInvalid("the upgrade needs HTTP/1.1", rule="version")
    if [value.lower() for value in response.values("upgrade")] != ["websocket"]:
        raise HandshakeInvalid("the Upgrade header is not 'websocket'", rule="upgrade")
    if "upgrade" not in _tokens(response.values("connection")):
        raise HandshakeInvalid("the Connection header lacks 'Upgrade'", rule="connection")
    if response.values("sec-websocket-accept") != [accept_token(key)]:
        raise HandshakeInvalid("Sec-WebSocket-Accept is missing, wrong, or there twice", rule="accept")
    if not extensions and any(response.values("sec-websocket-extensions")):
        raise HandshakeInvalid("the server uses an extension that was not offered", rule="extension")
    chosen = response.values("sec-websocket-protocol")
    if not chosen:
        return None
    if len(chosen) > 1 or chosen[0] not in offered:
        raise HandshakeInvalid("a subprotocol that was not offered", rule="subprotocol", said=chosen[0])
    return chosen[0]


def upgrade_headers(dial: Dial) -> tuple[str, list[tuple[bytes, bytes]]]:
    """Return the Host header's value, and what the caller adds to the upgrade request besides.

    That is the headers, the cookies of redirects, and the login of the URL where there is no Authorization.
    """
    if dial.on_reveal is not None:
        for secret in _secrets_of(dial):
            dial.on_reveal(secret, dial.url.origin)
    given = {name.lower(): value.reveal() for name, value in dial.headers}
    headers = [
        (name.encode("ascii"), value.reveal().encode("latin-1"))
        for name, value in dial.headers
        if name.lower() not in ("host", "cookie")
    ]
    if cookies := cookie_header(dial.cookies, dial.url, given.get("cookie", "")):
        headers.append((b"Cookie", cookies.encode("latin-1")))
    if dial.url.userinfo and not any(name.lower() == b"authorization" for name, _ in headers):
        user, _, password = dial.url.userinfo.partition(":")
        login = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
        headers.append((b"Authorization", b"Basic " + base64.b64encode(login)))  # RFC 7617
    return given.get("host", dial.url.authority), headers


def _secrets_of(dial: Dial) -> Iterator[str]:
    """Yield the names, or the places, of what is secret in the request."""
    for name, value in dial.headers:
        if any(secrets_in_headers({name: value.reveal()})):
            yield f"header {name.lower()}"
    if cookie_header(dial.cookies, dial.url, ""):
        yield "cookies of a redirect"
    if dial.url.userinfo:
        yield "login of the URL"
    if any(secrets_in_url(attrs.evolve(dial.url, userinfo="").full)):
        parameter = secret_parameter(dial.url.query)
        yield "query of the URL" if parameter is None else f"parameter {printable(parameter, 40)}"
    if any(isinstance(name, Secret) for name in dial.subprotocols):
        yield "token among the subprotocols"


def upgrade_request(dial: Dial, key: str, extensions: str = "") -> bytes:
    """Return the request for an upgrade (RFC 6455 section 4.1), with what the caller adds to it.

    Args:
        dial: where to, and with what.
        key: the Sec-WebSocket-Key.
        extensions: what is offered, as Sec-WebSocket-Extensions says it; "": nothing.
    """
    host, added = upgrade_headers(dial)
    lines = [f"GET {dial.url.resource} HTTP/1.1".encode("ascii"), b"Host: " + host.encode("latin-1")]
    own = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13"
    lines.append(own.encode("ascii"))
    if extensions:
        lines.append(f"Sec-WebSocket-Extensions: {extensions}".encode("ascii"))
    if dial.subprotocols:
        lines.append(f"Sec-WebSocket-Protocol: {', '.join(dial.offered)}".encode("ascii"))
    lines += [b"%b: %b" % header for header in added]
    return b"\r\n".join([*lines, b"", b""])


def accept_token(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers `key` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _ACCEPT_GUID).encode("ascii")).digest()).decode("ascii")


def canonical_head(key: str, subprotocol: str | None) -> bytes:
    """Write the plainest 101 response that says the same: what the layer above parses is never the peer's text."""
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_token(key)}\r\n{chosen}\r\n"
    ).encode("ascii")


def content_length(response: Response) -> int | None:
    """Return the length of the body in bytes, None where its end is marked otherwise."""
    if response.status in (204, 304):
        return 0
    lengths = response.values("content-length")
    return int(lengths[0]) if lengths else None


def dechunk(coded: bytes) -> tuple[bytes, bool]:
    """Return what can be decoded of a chunked body so far, and whether that was all (RFC 9112 section 7.1)."""
    body = bytearray()
    at = 0
    while (end := coded.find(b"\r\n", at)) >= 0:
        size_line = re.match(rb"[0-9A-Fa-f]{1,8}(?=[ \t;\r])", coded[at : end + 1])
        if size_line is None:
            return bytes(body), True
        size = int(size_line[0], 16)
        if size == 0:
            return bytes(body), True
        body += coded[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(body), False


def _tokens(values: Sequence[str]) -> set[str]:
    return {token.strip().lower() for value in values for token in value.split(",")}
