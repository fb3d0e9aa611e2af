"""The opening handshake (RFC 6455 section 4) as a server reads and answers it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import http
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

import attrs

from trio_nova.testing._frames import ProtocolBreach

__all__ = ["Headers", "HeadersLike", "Request", "accept_key", "format_response", "pairs_of", "parse_request"]

MAX_HEAD = 65_536
"""Bytes of the longest request head the server reads."""

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_LINE = re.compile(rf"({_TOKEN}):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")

HeadersLike: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""A mapping, or pairs where a name comes twice."""


@attrs.frozen
class Headers(Mapping[str, str]):
    """Headers of a request: names in any case, a repeated name's values joined by ", " (RFC 9110 section 5.3)."""

    pairs: tuple[tuple[str, str], ...] = ()
    """As they came."""

    def get_all(self, name: str) -> list[str]:
        """Return every value of `name`, in order; none is an empty list."""
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        if not (values := self.get_all(name)):
            raise KeyError(name)
        return ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.lower() for name, _ in self.pairs))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@attrs.frozen
class Request:
    """An upgrade request."""

    method: str
    target: str
    """Path and query, as they came."""
    headers: Headers

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters, decoded; of a repeated one the last."""
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client offers, best first."""
        return tuple(_listed(self.headers.get("sec-websocket-protocol", "")))


def parse_request(head: bytes) -> Request:
    """Parse a request head that ends in an empty line, and check that it asks for a WebSocket.

    Raises:
        ProtocolBreach: where it breaks RFC 9112, or RFC 6455 section 4.1.
    """
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    if not (start := re.fullmatch(r"([A-Z]+) ([!-~]+) HTTP/1\.1", first)):
        raise ProtocolBreach(f"not an HTTP/1.1 request line: {first!r}")
    pairs = []
    for line in lines:
        if not (parsed := _HEADER_LINE.fullmatch(line)):
            raise ProtocolBreach(f"not a header line: {line!r}")
        pairs.append((parsed[1], parsed[2]))
    request = Request(start[1], start[2], Headers(tuple(pairs)))
    _check_upgrade(request)
    return request


def _check_upgrade(request: Request) -> None:
    headers = request.headers
    rules = {
        "the method is GET": request.method == "GET",
        "the target is a path": request.target.startswith("/"),
        "there is one Host": len(headers.get_all("host")) == 1,
        "Upgrade names websocket": "websocket" in _listed(headers.get("upgrade", "").lower()),
        "Connection names upgrade": "upgrade" in _listed(headers.get("connection", "").lower()),
        "Sec-WebSocket-Version is 13": headers.get_all("sec-websocket-version") == ["13"],
        "Sec-WebSocket-Key is 16 bytes in base64": _is_key(headers.get("sec-websocket-key", "")),
        "no subprotocol is offered twice": len(set(request.subprotocols)) == len(request.subprotocols),
    }
    if broken := [rule for rule, held in rules.items() if not held]:
        raise ProtocolBreach(f"the upgrade request breaks RFC 6455 section 4.1: {'; '.join(broken)}")


def _is_key(value: str) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == 16
    except binascii.Error:
        return False


def _listed(value: str) -> list[str]:
    return [item for part in value.split(",") if (item := part.strip())]


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept that answers Sec-WebSocket-Key `key` (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def pairs_of(headers: HeadersLike) -> list[tuple[str, str]]:
    """Return headers as pairs, in order."""
    return list(cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers)


def format_response(status: int, headers: HeadersLike, body: bytes = b"") -> bytes:
    """Return an HTTP/1.1 response with exactly these headers."""
    phrase = http.HTTPStatus(status).phrase if status in http.HTTPStatus.__members__.values() else "Unassigned"
    head = "".join(f"{name}: {value}\r\n" for name, value in pairs_of(headers))
    return f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1") + body
