"""The fuzz targets, on what hypothesis comes up with and on the corpus: the quick part of `nox -s fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.targets import TARGETS
from tests.links.wire_oracle import observed

CORPUS = Path(__file__).with_name("corpus")
SEEDS = sorted(path for path in CORPUS.rglob("*") if path.is_file())

WORDS: dict[str, list[str]] = {
    "head": [
        *["HTTP/1.1", " 101 ", " 302 ", "\r\n", "\n", "\0", ": ", ", ", "; ", "Upgrade", "websocket", "chunked"],
        *["Connection", "Content-Length", "Transfer-Encoding", "Location", "Retry-After", "ws://server.test/", "//"],
        *["Sec-WebSocket-Extensions", "permessage-deflate", "server_max_window_bits=12", "Sec-WebSocket-Protocol"],
        *["Wed, 21 Oct 2015 07:28:00 GMT", "120", "\t", "\xff", "ffffffff"],
    ],
    "codecs": ["{", "}", "[", "]", ",", ":", '"', '"x"', "\\u", "d800", "1", "-", "e", "999", "null", "true", "é"],
    "addresses": ["ws", "wss", "http", ":", "//", "/", "@", "?", "#", "&", "=", "[", "]", "::1", "%", "%2f", "."],
    "headers": ["Authorization", "Bearer ", "Cookie", ":", ";", "=", "\r", "\n", "Host", "Sec-WebSocket-Key", "é"],
    "redaction": ["secret", "secrets", "\n", "se", "cret", "…", "*", "'", "\x1b", "\u202e"],
}
TEXTS = {name: st.lists(st.sampled_from(words), max_size=24).map("".join) for name, words in WORDS.items()}
FRAMES = st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b"\x81\x02", b"\x01\xf1", b"\x88\x02\x03\xe8"])))


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Return bytes at random, and such as mean something to the target."""
    anything = st.binary(max_size=300)
    if name == "frames":
        return st.one_of(anything, st.builds(lambda mode, more: mode + b"".join(more), st.binary(max_size=2), FRAMES))
    texts = st.one_of(TEXTS[name], st.text(max_size=60)).map(lambda text: text.encode("utf-8", "surrogatepass"))
    if name == "head":
        return st.one_of(anything, st.builds(lambda mode, text: mode + text, st.binary(min_size=2, max_size=2), texts))
    return st.one_of(anything, texts)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_documented_errors_comes_of_what_strangers_send(name: str) -> None:
    @settings(max_examples=200)
    @given(inputs(name))
    def search(data: bytes) -> None:
        TARGETS[name](data)

    search()


@pytest.mark.parametrize("path", SEEDS, ids=[path.relative_to(CORPUS).as_posix() for path in SEEDS])
def test_what_was_found_once_stays_right(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS)


def test_a_target_can_find_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "expected", lambda stream, limit, **how: observed([stream[1:]], limit, **how))
    with pytest.raises(AssertionError):
        TARGETS["frames"](b"\x02\x01\x81\x05hello")
