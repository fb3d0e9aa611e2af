"""What reads bytes and texts of strangers, each as a function of some bytes that raises where a promise is broken.

A target lets documented errors pass and nothing else. It knows nothing of who calls it: hypothesis does in
`test_targets.py`, and libFuzzer, by way of atheris, in `__main__.py`.
"""

from __future__ import annotations

import contextlib
import random
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import msgspec

from tests.links.wire_oracle import CLOSE, cut_frames, expected, observed, open_protocol
from trio_nova.codecs import Codec, JsonCodec, MixedCodec, RawCodec
from trio_nova.config import check_headers
from trio_nova.core.verdict import MAX_RETRY_AFTER, parse_retry_after
from trio_nova.errors import BadMessage, ConfigError, HandshakeInvalid, HandshakeRejected, printable
from trio_nova.links import Deflate
from trio_nova.links._frames import FrameScanner
from trio_nova.links._redirect import redirected
from trio_nova.links._upgrade import HEAD_LIMIT, HeadReader, Response, content_length, dechunk, judge_upgrade
from trio_nova.secrets import SHORTEST, Redactor, secrets_in_headers, secrets_in_url
from trio_nova.testing import encode_frame
from trio_nova.testing.link_contract import make_dial
from trio_nova.urls import Url

__all__ = ["TARGETS", "Target"]

Target = Callable[[bytes], None]


def cut(data: bytes, seed: int) -> list[bytes]:
    """Cut `data` into pieces: single bytes, or a few at random."""
    if seed == 0 and len(data) < 2_000:
        return [data[at : at + 1] for at in range(len(data))]
    chance = random.Random(seed)
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 8)))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


# --------------------------------------------------------------------------- frames


def frames(data: bytes) -> None:
    """Read a server's stream: as it is, or built of well-formed frames, or compressed ones; once, or many times."""
    if len(data) < 2:
        return
    limit = (100, 1_000, 70_000)[data[0] % 3]
    deflated = bool(data[0] & 0x80)
    stream = b"".join(built(data[2:], deflated)) if data[0] & 0x40 else data[2:]
    stream *= 40 if data[0] & 0x20 else 1
    whole = observed([stream], limit, deflated=deflated)
    assert observed(cut(stream, data[1]), limit, deflated=deflated) == whole
    assert whole.in_substance == expected(stream, limit, deflated=deflated).in_substance
    if not deflated and limit > 125:
        scan(stream, limit)


def built(data: bytes, deflated: bool) -> Iterator[bytes]:
    """Yield frames of which each is written as a first byte, a length, and the payload, repeated up to 2^16 times."""
    encoder = zlib.compressobj(wbits=-12)
    at = 0
    while at + 2 <= len(data):
        first, length = data[at], data[at + 1]
        payload = data[at + 2 : at + 2 + (length & 0x0F)]
        at += 2 + len(payload)
        payload *= 1 << (length >> 4) if first & 0x0F < CLOSE else 1
        fin, rsv, opcode = bool(first & 0x80), first >> 4 & 7, first & 0x0F
        if deflated and rsv == 4 and opcode in (1, 2):
            payload = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
            payload = payload.removesuffix(b"\0\0\xff\xff") if fin else payload
        yield encode_frame(opcode, payload, fin=fin, rsv=rsv)


def scan(stream: bytes, limit: int) -> None:
    """Judge the stream as it is judged for trio-websocket: alike."""
    if not all(frame.whole for frame in cut_frames(stream)):
        return  # whether the beginning of a frame is judged is for each to say
    theirs = expected(stream, limit)
    scanner = FrameScanner(limit)
    scanner.feed(stream)
    end = scanner.violation or scanner.close
    assert (None if end is None else end.code) == theirs.code
    assert scanner.messages == sum(isinstance(frame, str | bytes) for frame in theirs.frames)


# --------------------------------------------------------------------------- the answer to the upgrade

_STARTS = [
    b"",
    b"HTTP/1.1 101 Switching Protocols\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: ",
    b"HTTP/1.1 101 X\r\nSec-WebSocket-Extensions: permessage-deflate; ",
    b"HTTP/1.1 429 X\r\nRetry-After: ",
    b"HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n",
]


def head(data: bytes) -> None:
    """Read the answer to the upgrade, judge it, and what it leads to."""
    if len(data) < 2:
        return
    stream = _STARTS[data[0] % len(_STARTS)] + data[2:]
    response, rest = read_head([stream])
    again, its_rest = read_head(cut(stream, data[1]))
    assert response == again
    if response is None:
        return
    # Of pieces, the reader has only seen those up to the end of the head.
    assert rest.startswith(its_rest)
    assert all(name == name.lower() and value == value.strip(" \t") for name, value in response.headers)
    assert not any(character in value for _, value in response.headers for character in "\r\n\0")
    length = content_length(response)
    assert length is None or length >= 0
    body, _ = dechunk(rest)
    assert len(body) <= len(rest)
    judge(response)


def read_head(pieces: list[bytes]) -> tuple[Response | None, bytes]:
    """Return the response, if there is one, and what followed it."""
    reader = HeadReader()
    with contextlib.suppress(HandshakeInvalid):
        for number, piece in enumerate(pieces):
            if (response := reader.feed(piece)) is not None:
                return response, reader.rest + b"".join(pieces[number + 1 :])
            assert len(b"".join(pieces[: number + 1])) <= HEAD_LIMIT
    return None, b""


def judge(response: Response) -> None:
    with contextlib.suppress(HandshakeInvalid):
        chosen = judge_upgrade(response, "AAAAAAAAAAAAAAAAAAAAAA==", ["a", "b"])
        assert chosen in (None, "a", "b")
    with contextlib.suppress(HandshakeInvalid):
        open_protocol(1_000, Deflate(), response.values("sec-websocket-extensions"))
    for value in response.values("retry-after"):
        seconds = parse_retry_after(value, wall=1.7e9)
        assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
    follow(response)


def follow(response: Response) -> None:
    """Follow a redirect as far as may be."""
    for first in ("ws://user:secret@server.test/a/b?c", "wss://server.test:8443/"):
        dial = attrs.evolve(
            make_dial(url=first), max_redirects=1, redirect_origins=frozenset({"ws://vouched.test", "wss://b.test"})
        )
        rejection = HandshakeRejected(response.status, response.headers, b"")
        with contextlib.suppress(HandshakeRejected):
            url = redirected(dial, rejection, 0).url
            assert url.origin in {dial.url.origin, *dial.redirect_origins}
            assert url.secure or not dial.url.secure
            assert url.userinfo == dial.url.userinfo
            assert_fit(url)


# --------------------------------------------------------------------------- messages


class _Point(msgspec.Struct):
    x: int
    y: float
    name: str = ""


_CODECS: list[Codec] = [
    JsonCodec(),
    JsonCodec(dict),
    JsonCodec(_Point),
    JsonCodec(list[_Point]),
    MixedCodec(),
    RawCodec(),
]


def codecs(data: bytes) -> None:
    """Decode a payload, text and binary, with every codec; encode what came of it."""
    payloads: list[str | bytes] = [data]
    with contextlib.suppress(UnicodeDecodeError):
        payloads.append(data.decode())
    for codec in _CODECS:
        for payload in payloads:
            try:
                message = codec.decode(payload)
            except BadMessage:
                if not isinstance(codec, JsonCodec):
                    raise
                continue
            again = codec.encode(message)
            if isinstance(codec, JsonCodec):
                assert same(codec.decode(again), message)
                assert list(codec.decode_all([payload, payload])) == [message, message]
            elif isinstance(message, str | bytes):
                assert again == message == payload


def same(one: Any, other: Any) -> bool:
    """Whether two messages are equal, infinities left aside: JSON writes them as null."""
    return one == other or "inf" in repr(other)


# --------------------------------------------------------------------------- addresses, headers, secrets


def addresses(data: bytes) -> None:
    """Parse a URL; what passes says the same again, and does not show what it hides."""
    text = data.decode("utf-8", "surrogateescape")
    for candidate in (text, f"ws://{text}", f"wss://user:{text}@h.test/", f"ws://h.test/{text}", f"ws://h.test?{text}"):
        try:
            url = Url.parse(candidate)
        except ConfigError:
            continue
        assert_fit(url)
        again = Url.parse(url.full)
        assert again == url
        assert Url.parse(url.origin).origin == url.origin
        assert_hidden(url)
        redactor = Redactor()
        redactor.keep("url", secrets_in_url(url.full))
        _, _, password = url.userinfo.partition(":")
        if len(password) >= SHORTEST and "*" not in password:
            assert password not in redactor.redact(f"cannot dial {url.full}")


def assert_fit(url: Url) -> None:
    """Assert that nothing of a URL can break out of the request that it becomes a part of."""
    for part in (url.host, url.authority, url.resource, url.origin):
        assert part.isascii()
        assert part
        assert not any(character <= " " or character == "\x7f" for character in part)
    assert url.resource.startswith("/")
    assert 0 <= url.port <= 65_535


def assert_hidden(url: Url) -> None:
    """Assert that neither login nor values of the query are shown."""
    marked = attrs.evolve(url, userinfo="LOGIN:PASSWORD", query="&".join(["a=HIDDEN", url.query, "HIDDEN"]))
    assert not any(word in str(marked) + repr(marked) for word in ("LOGIN", "PASSWORD", "HIDDEN"))
    _, question, query = str(url).removeprefix(url.origin + url.path).partition("?")
    assert bool(question) == bool(url.query)
    assert all(re.fullmatch(r"([^=]*=)?\*\*\*", parameter) for parameter in query.split("&") if question)


def headers(data: bytes) -> None:
    """Check a header: what passes can be written into a request as it is."""
    name, _, value = data.decode("utf-8", "surrogateescape").partition(":")
    for pair in ({name: value}, {"X-Key": name + value}, {name: "v"}):
        with contextlib.suppress(ConfigError):
            for key, fit in check_headers(pair):
                line = f"{key}: {fit}".encode("latin-1")
                assert not any(byte in line for byte in b"\r\n\0")
                assert key.isascii()
                assert key.lower() not in ("upgrade", "connection")
                assert not key.lower().startswith("sec-websocket-")
    Redactor().keep("headers", secrets_in_headers({name: value}))


def redaction(data: bytes) -> None:
    """Take secrets out of a text, whole or cut by what makes texts fit for a log."""
    parts = data.decode("utf-8", "replace").split("\n")
    if len(parts) < 2:
        return
    text, *secrets = parts
    redactor = Redactor()
    redactor.keep("test", secrets)
    for secret in secrets:
        told = redactor.redact(f"{text}{secret}{text}")
        if len(secret) >= SHORTEST and "*" not in "".join(parts) and "…" not in "".join(parts):
            assert secret not in told
            for length in {SHORTEST, len(secret) // 2, len(secret) - 1}:
                beginning = secret[:length]
                if length >= SHORTEST and f"{text}{secret}".isprintable() and beginning not in text:
                    told = redactor.redact(printable(f"{text}{secret}{text}", len(text) + length))
                    assert beginning not in told
    shown = printable(text)
    assert shown.rstrip("…").isprintable()
    assert len(shown) <= 10 * 200 + 1


TARGETS: dict[str, Target] = {
    "frames": frames,
    "head": head,
    "codecs": codecs,
    "addresses": addresses,
    "headers": headers,
    "redaction": redaction,
}
