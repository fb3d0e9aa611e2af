from __future__ import annotations

import copy
import pickle
import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import errors
from trio_nova.errors import (
    AuthFailed,
    BadMessage,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    Expired,
    HandshakeInvalid,
    HandshakeRejected,
    Lagged,
    LinkLost,
    MessageTooBig,
    NotSent,
    NovaError,
    OutcomeUnknown,
    Phase,
    ReceiverMoved,
    RedirectRefused,
    RequestFailed,
    RetryAdvice,
    SessionOver,
    SubscriptionRejected,
    TlsFailed,
    explain,
    printable,
)

EXAMPLES: list[NovaError] = [
    NovaError("something", retry=RetryAdvice.AFTER, retry_after=2.5),
    ConfigError("ping_interval", "must be more than 0 seconds"),
    ConnectFailed("refused", phase="tcp"),
    ConnectTimeout(phase="tls"),
    CircuitOpen("nobody dials", retry_after=2.0),
    TlsFailed("expired yesterday", reason="expired"),
    HandshakeInvalid("not HTTP", rule="status line"),
    HandshakeRejected(503, [("retry-after", "30")], b"busy", 30.0),
    RedirectRefused(HandshakeRejected(302, [("location", "/x")], b"", None), "too far"),
    LinkLost(4001, "bye", 3, detail="by the peer", remote=True),
    AuthFailed("wrong key"),
    SessionOver("gave up", attempts=5, last=LinkLost(1006)),
    NotSent("no link"),
    OutcomeUnknown("cut off"),
    Expired("waited 5 s"),
    RequestFailed("no such account", reply={"code": 13009}),
    SubscriptionRejected("no such channel"),
    Lagged("too slow"),
    MessageTooBig("20 MiB"),
    BadMessage("not JSON"),
    ReceiverMoved("handed over"),
]
"""One of each kind."""

each_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def kinds(root: type[NovaError] = NovaError) -> list[type[NovaError]]:
    """Return the kinds of this module, as the tree has them from top to bottom."""
    below = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(inner for kind in below for inner in kinds(kind))]


# --------------------------------------------------------------------------- the tree


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    trunk = ["NovaError"]
    for line in errors.__doc__.splitlines():
        if branch := re.match(r"    ((?:│   |    )*)[├└]── (\w+) {2,}\w", line):
            depth = len(branch[1]) // 4
            trunk[depth + 1 :] = [branch[2]]
            drawn[branch[2]] = trunk[depth]
    assert drawn == {kind.__name__: str(kind.__base__.__name__) for kind in kinds()[1:] if kind.__base__}


def test_every_kind_is_public_and_has_an_example_here() -> None:
    assert {kind.__name__ for kind in kinds()} <= set(errors.__all__)
    assert [type(error) for error in EXAMPLES] == kinds()


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("kind", kinds()[1:])
def test_every_kind_says_where_it_happens_whether_to_retry_and_what_to_do(kind: type[NovaError]) -> None:
    assert kind.phase in get_args(Phase) or kind in (ConnectFailed, ConnectTimeout)  # which say how far they got
    assert isinstance(kind.retry, RetryAdvice)
    assert kind.hint.endswith(".")
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (ConfigError, "never"),
        (ConnectFailed, "backoff"),
        (ConnectTimeout, "backoff"),
        (TlsFailed, "never"),
        (LinkLost, "backoff"),
        (AuthFailed, "never"),
        (SessionOver, "never"),
        (NotSent, "backoff"),
        (OutcomeUnknown, "never"),
        (Expired, "now"),
    ],
)
def test_the_advice_compares_equal_to_its_plain_string(kind: type[NovaError], advice: str) -> None:
    assert kind.retry == advice


def test_an_instance_can_know_better_than_its_kind() -> None:
    error = AuthFailed("slow down", phase="restore", retry=RetryAdvice.AFTER, retry_after=9.0)
    assert (error.phase, error.retry, error.retry_after) == ("restore", "after", 9.0)
    assert (AuthFailed.phase, AuthFailed.retry, AuthFailed.retry_after) == ("auth", "never", None)


# --------------------------------------------------------------------------- messages


def test_a_config_error_names_its_field_first() -> None:
    error = ConfigError("ping_interval", "must be more than 0 seconds")
    assert str(error) == "ping_interval: must be more than 0 seconds"
    assert (error.field, error.problem) == ("ping_interval", "must be more than 0 seconds")


def test_a_lost_link_tells_its_number_code_reason_and_detail() -> None:
    assert str(LinkLost(1006, epoch=2)) == "link 2 lost, code 1006"
    assert str(LinkLost(4001, "bye\n", 3, detail="by us")) == "link 3 lost, code 4001 'bye\\\\n' (by us)"


def test_a_refused_upgrade_shows_the_start_of_the_body_without_its_tricks() -> None:
    error = HandshakeRejected(403, body=b"no\r\n\x1b[31m" + b"x" * 10_000)
    assert str(error).startswith(r"server rejected the upgrade with status 403: no\r\n\x1b[31mxxx")
    assert len(str(error)) < 300
    assert str(HandshakeRejected(403)) == "server rejected the upgrade with status 403"


def test_a_timeout_says_how_far_the_attempt_got() -> None:
    assert str(ConnectTimeout(phase="dns")) == "no connection in time; got as far as 'dns'"


# --------------------------------------------------------------------------- copies


@each_error
def test_an_error_survives_copying_and_pickling(error: NovaError) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert (str(twin), repr(twin), twin.args) == (str(error), repr(error), error.args)
        assert explain(twin) == explain(error)
        mine, other = vars(error).copy(), vars(twin).copy()
        assert str(mine.pop("last", None)) == str(other.pop("last", None))
        assert mine == other


def test_notes_are_copied_too() -> None:
    error = LinkLost(1006)
    error.add_note("while trading")
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__
    assert error.__notes__[1:] == ["while trading"]


# --------------------------------------------------------------------------- explain


@each_error
def test_an_explanation_says_what_where_whether_and_what_next(error: NovaError) -> None:
    lines = explain(error).splitlines()
    assert lines[0] == f"{type(error).__name__}: {error}"
    assert (f"  phase: {error.phase}" in lines) is (error.phase is not None)
    assert any(line.startswith(f"  retry: {error.retry}") for line in lines)
    assert (lines[-1] == f"  {error.hint}") is bool(error.hint)


def test_an_explanation_tells_the_causes_and_the_patience() -> None:
    error = HandshakeRejected(503, retry_after=30.0, retry=RetryAdvice.AFTER)
    error.__cause__ = ConnectFailed("by the proxy")
    error.__cause__.__cause__ = OSError("reset\nby peer")
    assert explain(error).splitlines() == [
        "HandshakeRejected: server rejected the upgrade with status 503",
        "  because of ConnectFailed: by the proxy",
        "  because of OSError: reset\\nby peer",
        "  phase: http",
        "  retry: after 30 s",
        f"  {HandshakeRejected.hint}",
    ]


def test_an_explanation_says_nothing_twice() -> None:
    error = AuthFailed("the service refuses the credentials: locked")
    error.__cause__ = RequestFailed("locked")
    error.__cause__.__cause__ = OSError()
    error.__cause__.__cause__.__cause__ = LinkLost(4401, "locked", 1, remote=True)
    assert explain(error).splitlines() == [
        "AuthFailed: the service refuses the credentials: locked",
        "  because of OSError",
        "  because of LinkLost: link 1 lost, code 4401 'locked'",
        "  phase: auth",
        "  retry: never",
        f"  {AuthFailed.hint}",
    ]


def test_a_foreign_error_is_explained_as_far_as_it_goes() -> None:
    assert explain(KeyError("x")) == "KeyError: 'x'"
    assert explain(KeyError()) == "KeyError"


def test_causes_that_go_in_a_circle_are_explained_once() -> None:
    one, two = NotSent("one"), LinkLost(1006)
    one.__cause__, two.__cause__ = two, one
    assert explain(one).count("because of") == 1


# --------------------------------------------------------------------------- printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcödé 例", "plain text, ünïcödé 例"),
        ("a\r\nb\tc\x00\x1b[31m\x7f\x9b", r"a\r\nb\tc\x00\x1b[31m\x7f\x9b"),
        ("\u202egnp.exe\u2066\u2069\u200f\u061c", r"\u202egnp.exe\u2066\u2069\u200f\u061c"),
        ("\u2028\u2029\u0085\u00a0\ufeff\u200b", r"\u2028\u2029\x85\xa0\ufeff\u200b"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
        (b"caf\xc3\xa9 \xff\xfe", "café \\xff\\xfe"),
    ],
)
def test_what_a_peer_sent_is_shown_without_its_tricks(text: str | bytes, shown: str) -> None:
    assert printable(text) == shown


def test_what_is_too_long_is_cut_and_says_so() -> None:
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 200 + "…"
    assert printable("abcdef", 3) == "abc…"
    assert printable(b"x" * 10**6, 3) == "xxx…"
    assert printable("\U0001f600".encode() * 3, 3) == "\U0001f600" * 3
    assert printable("\U0001f600".encode() * 4, 3) == "\U0001f600" * 3 + "…"


@pytest.mark.fault("F110", where="memory")
@given(st.one_of(st.text(st.characters()), st.binary()), st.integers(1, 50))
def test_whatever_a_peer_sends_is_printable_encodable_and_bounded(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    shown.encode()
    assert len(shown) <= 10 * limit + 1
