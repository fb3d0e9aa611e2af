"""The server reads upgrade requests strictly."""

from __future__ import annotations

import pytest

from trio_nova.testing import Headers, ProtocolBreach
from trio_nova.testing._upgrade import accept_key, format_response, parse_request

HEAD = (
    b"GET /chat?room=a%20b&empty= HTTP/1.1\r\nHost: server.test\r\n"
    b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: v2, v1\r\nX-Twice: one\r\nx-twice: two\r\n\r\n"
)


def test_a_request_is_taken_apart() -> None:
    request = parse_request(HEAD)
    assert (request.method, request.target, request.path) == ("GET", "/chat?room=a%20b&empty=", "/chat")
    assert request.query == {"room": "a b", "empty": ""}
    assert request.subprotocols == ("v2", "v1")
    assert request.headers["HOST"] == "server.test"
    assert request.headers["X-Twice"] == "one, two"
    assert request.headers.get_all("x-TWICE") == ["one", "two"]
    assert "x-other" not in request.headers
    assert list(request.headers)[-1] == "x-twice"
    assert len(request.headers) == 7


def test_the_accept_key_is_that_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (b"GET", b"POST", "method is GET"),
        (b"HTTP/1.1", b"HTTP/1.0", "request line"),
        (b"/chat?", b"chat?", "target is a path"),
        (b"Host: server.test\r\n", b"", "one Host"),
        (b"Host: ", b"Host: other.test\r\nHost: ", "one Host"),
        (b"WebSocket\r\n", b"h2c\r\n", "Upgrade names"),
        (b", Upgrade", b"", "Connection names"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl", "16 bytes"),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"!", "16 bytes"),
        (b"Version: 13", b"Version: 8", "Version is 13"),
        (b"v2, v1", b"v1, v1", "twice"),
        (b"X-Twice: one", b"X-Twice : one", "header line"),
        (b"one\r\n", b"one\r\n folded\r\n", "header line"),
        (b"one", b"o\nne", "header line"),
        (b"one", b"o\x00ne", "header line"),
    ],
)
def test_a_breach_of_the_request_is_named(old: bytes, new: bytes, rule: str) -> None:
    assert old in HEAD
    with pytest.raises(ProtocolBreach, match=rule):
        parse_request(HEAD.replace(old, new, 1))


def test_a_response_has_exactly_its_headers() -> None:
    assert (
        format_response(429, {"Retry-After": "7"}, b"slow")
        == b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\nslow"
    )
    assert format_response(520, [("A", "1"), ("A", "2")]) == b"HTTP/1.1 520 Unassigned\r\nA: 1\r\nA: 2\r\n\r\n"


def test_headers_are_equal_by_what_they_hold() -> None:
    assert Headers((("A", "1"),)) == Headers((("A", "1"),))
