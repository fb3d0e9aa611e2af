from __future__ import annotations

import math
import ssl
from email.utils import formatdate
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.verdict import (
    CLOSE_CODES,
    MAX_RETRY_AFTER,
    STATUS_CLASSES,
    STATUSES,
    Attempts,
    Disposition,
    categorize,
    may_pass,
    of_close_code,
    of_error,
    of_status,
    parse_retry_after,
)
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
    OutcomeUnknown,
    ReceiverMoved,
    RedirectRefused,
    RequestFailed,
    RetryAdvice,
    SessionOver,
    SubscriptionRejected,
    TlsFailed,
)
from trio_nova.events import Category

FATAL, TRANSIENT, REFRESH = Disposition.FATAL, Disposition.TRANSIENT, Disposition.REFRESH


# --------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_has_the_verdict_that_is_promised(status: int) -> None:
    transient = status in (408, 421, 425, 429) or status >= 500
    assert of_status(status) is (TRANSIENT if transient else FATAL)


@pytest.mark.parametrize("status", [-1, 0, 99, 600, 999, 10**9])
def test_what_is_no_status_is_fatal(status: int) -> None:
    assert of_status(status) is FATAL


@pytest.mark.fault("F93", where="memory")
def test_every_close_code_has_the_verdict_that_is_promised() -> None:
    promised = {1010: FATAL, 3000: REFRESH, 3003: FATAL}
    assert [of_close_code(code) for code in range(1000, 5000)] == [
        promised.get(code, TRANSIENT) for code in range(1000, 5000)
    ]


def test_every_code_of_the_rfc_that_can_arrive_or_be_reported_is_listed() -> None:
    assert {code for code in CLOSE_CODES if code < 3000} == {*range(1000, 1004), *range(1005, 1016)}


def test_every_ruling_has_a_reason_and_a_category_that_exists() -> None:
    for ruling in [*STATUSES.values(), *STATUS_CLASSES.values(), *CLOSE_CODES.values()]:
        assert ruling.reason
        assert ruling.category in get_args(Category)


# --------------------------------------------------------------------------- errors

ERRORS: list[tuple[Exception, Disposition, Category]] = [
    (HandshakeRejected(401), FATAL, "authentication"),
    (HandshakeRejected(403), FATAL, "authentication"),
    (HandshakeRejected(404), FATAL, "handshake"),
    (HandshakeRejected(407), FATAL, "authentication"),
    (HandshakeRejected(408), TRANSIENT, "timeout"),
    (HandshakeRejected(418), FATAL, "handshake"),
    (HandshakeRejected(429), TRANSIENT, "rate_limit"),
    (HandshakeRejected(503), TRANSIENT, "handshake"),
    (HandshakeRejected(504), TRANSIENT, "timeout"),
    (HandshakeRejected(302), FATAL, "handshake"),
    (LinkLost(1000), TRANSIENT, "network"),
    (LinkLost(1006), TRANSIENT, "network"),
    (LinkLost(1002), TRANSIENT, "protocol"),
    (LinkLost(1010), FATAL, "handshake"),
    (LinkLost(1015), TRANSIENT, "ssl"),
    (LinkLost(3000), REFRESH, "authentication"),
    (LinkLost(3003), FATAL, "authentication"),
    (LinkLost(3008), TRANSIENT, "timeout"),
    (LinkLost(4004), TRANSIENT, "unknown"),
    (ConnectFailed(phase="dns"), TRANSIENT, "network"),
    (ConnectFailed(phase="tls"), TRANSIENT, "network"),
    (ConnectFailed(retry=RetryAdvice.NEVER), FATAL, "network"),
    (ConnectTimeout(phase="tcp"), TRANSIENT, "timeout"),
    (CircuitOpen(retry_after=2.0), TRANSIENT, "network"),
    (TlsFailed("expired", reason="expired"), FATAL, "ssl"),
    (TlsFailed("cut", reason="protocol", retry=RetryAdvice.BACKOFF), TRANSIENT, "ssl"),
    (HandshakeInvalid("wrong key", rule="accept"), TRANSIENT, "handshake"),
    (AuthFailed(), FATAL, "authentication"),
    (AuthFailed(retry=RetryAdvice.AFTER, retry_after=5.0), TRANSIENT, "authentication"),
    (NotSent(), TRANSIENT, "network"),
    (OutcomeUnknown(), FATAL, "network"),
    (Expired(), TRANSIENT, "timeout"),
    (RequestFailed(), FATAL, "unknown"),
    (SubscriptionRejected(), FATAL, "unknown"),
    (Lagged(), FATAL, "unknown"),
    (MessageTooBig(), FATAL, "protocol"),
    (BadMessage(), FATAL, "protocol"),
    (ReceiverMoved(), FATAL, "unknown"),
    (ConfigError("base", "is wrong"), FATAL, "unknown"),
    (SessionOver(), FATAL, "unknown"),
    (SessionOver(last=HandshakeRejected(429)), FATAL, "rate_limit"),
    (TimeoutError(), FATAL, "timeout"),
    (ssl.SSLCertVerificationError(), FATAL, "ssl"),
    (ConnectionResetError(), FATAL, "network"),
    (KeyError("a bug"), FATAL, "unknown"),
]


@pytest.mark.parametrize(("error", "disposition", "category"), ERRORS, ids=lambda value: str(value)[:40])
def test_every_error_has_its_disposition_and_category(
    error: Exception, disposition: Disposition, category: Category
) -> None:
    assert of_error(error) is disposition
    assert categorize(error) == category


def test_a_category_is_found_also_for_what_is_no_exception_proper() -> None:
    assert categorize(KeyboardInterrupt()) == "unknown"


def test_every_category_is_reached() -> None:
    assert {category for _, _, category in ERRORS} == set(get_args(Category))


# --------------------------------------------------------------------------- Retry-After

WALL = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT: the example of RFC 9110."""


@pytest.mark.fault("F36", where="memory")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7\t", 7.0),
        ("0007", 7.0),
        ("900", 900.0),
        ("901", 900.0),
        ("1000000000", 900.0),
        ("9" * 64, 900.0),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0),
        ("Sun Nov  6 08:50:07 1994", 30.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_seconds_or_one_of_the_three_dates_of_http(value: str, seconds: float) -> None:
    assert parse_retry_after(value, WALL) == seconds


@pytest.mark.fault("F36", where="memory")
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "-1",
        "+7",
        "7.5",
        "1e3",
        "0x10",
        "inf",
        "nan",
        "7, 8",
        "soon",
        "\u0667",
        "\u00b2",
        "9" * 65,
        "::",
        "99:99:99",
        "Sun, 99 Nov 1994 08:50:07 GMT",
        "Sun, 06 Nov 99999 08:50:07 GMT",
        "Sun, 06 Nov 1994 99:50:07 GMT",
        "Sun, 06 Nov 1994 08:50:07 +99999999999999999",
    ],
)
def test_junk_in_retry_after_is_ignored(value: str) -> None:
    assert parse_retry_after(value, WALL) is None


@pytest.mark.parametrize("piece", ["b", " ", "\t", "9", ":", "(", ",", "-", "Sun, ", "06 Nov 1994 ", "a ", "\0"])
def test_a_huge_retry_after_is_not_even_looked_at(piece: str) -> None:
    class Counting(str):
        looks = 0

        def strip(self, chars: str | None = None, /) -> str:
            Counting.looks += 1
            return super().strip(chars)

    assert parse_retry_after(Counting(piece * (32 * 1024 // len(piece))), WALL) is None
    assert Counting.looks == 0


@pytest.mark.fault("F36", where="memory")
@given(
    st.one_of(
        st.text(max_size=70),
        st.text(alphabet="0123456789:-+, ()SunNovGMT", max_size=70),
        st.lists(
            st.sampled_from(["Sun,", "Sunday,", "Nov", "06", "6", "1994", "06-Nov-94", "1:2:3", "GMT", "+9", ""])
        ).map(" ".join),
    )
)
def test_no_retry_after_raises_or_leaves_the_bounds(value: str) -> None:
    seconds = parse_retry_after(value, WALL)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@given(st.integers(0, 2**32), st.integers(-1000, 1000))
def test_a_date_is_as_far_away_as_it_says(wall: int, ahead: int) -> None:
    date = formatdate(max(wall + ahead, 0), usegmt=True)
    expected = min(max(max(wall + ahead, 0) - wall, 0), MAX_RETRY_AFTER)
    assert parse_retry_after(date, float(wall)) == expected


# --------------------------------------------------------------------------- counting


def test_failures_in_a_row_are_counted_from_1() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    assert [attempts.failed(float(now)) for now in range(4)] == [1, 2, 3, 4]
    assert attempts.made == 4


def test_the_count_starts_over_after_ready_for_the_minimum_uptime() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.failed(0.0)
    attempts.failed(1.0)
    attempts.previous = 4.0
    attempts.ready(10.0)
    assert attempts.made == 2
    assert attempts.failed(40.0) == 1
    assert attempts.previous == 0.0


def test_the_count_goes_on_after_less_than_the_minimum_uptime() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.failed(0.0)
    attempts.previous = 4.0
    attempts.ready(10.0)
    assert attempts.failed(39.9) == 2
    assert attempts.previous == 4.0


def test_a_link_that_was_up_for_long_but_never_ready_does_not_start_the_count_over() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.failed(0.0)
    assert attempts.failed(10_000.0) == 2


def test_one_long_session_starts_the_count_over_once() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.ready(0.0)
    assert [attempts.failed(now) for now in (100.0, 200.0, 300.0)] == [1, 2, 3]


def test_a_peer_that_accepts_and_then_closes_never_starts_the_count_over() -> None:
    attempts = Attempts(max_attempts=math.inf, min_uptime=30.0)
    now = 0.0
    for expected in range(1, 1001):
        attempts.ready(now)
        now += 0.1
        assert attempts.failed(now) == expected
        now += 60.0


def test_no_minimum_uptime_means_that_ready_is_enough() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=0.0)
    attempts.failed(0.0)
    attempts.ready(1.0)
    assert attempts.failed(1.0) == 1


@pytest.mark.parametrize("retries", [0, 1, 5])
def test_attempts_are_exhausted_after_one_failure_more_than_there_are_retries(retries: int) -> None:
    attempts = Attempts(max_attempts=retries, min_uptime=30.0)
    for now in range(retries):
        attempts.failed(float(now))
        assert not attempts.exhausted
    attempts.failed(99.0)
    assert attempts.exhausted


def test_endless_attempts_are_never_exhausted() -> None:
    attempts = Attempts(max_attempts=math.inf, min_uptime=math.inf)
    for now in range(10_000):
        attempts.failed(float(now))
    assert not attempts.exhausted


@pytest.mark.parametrize("value", [-1.0, math.nan, None, "3"])
@pytest.mark.parametrize("field", ["max_attempts", "min_uptime"])
def test_a_wrong_bound_on_attempts_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Attempts(**{"max_attempts": 5.0, "min_uptime": 30.0, field: value})
    assert caught.value.field == field


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 100.0))), st.floats(0.0, 100.0))
def test_the_count_is_the_number_of_losses_since_the_last_long_session(
    history: list[tuple[bool, float]], min_uptime: float
) -> None:
    attempts = Attempts(max_attempts=math.inf, min_uptime=min_uptime)
    expected, now = 0, 0.0
    for was_ready, lasted in history:
        if was_ready:
            attempts.ready(now)
        started, now = now, now + lasted
        expected = 1 if was_ready and now - started >= min_uptime else expected + 1
        assert attempts.failed(now) == expected


def test_what_comes_after_ready_is_no_uptime_though_nothing_has_failed() -> None:
    """As when the program wishes for another link: closing the one and dialling the other may take long."""
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.failed(0.0)
    attempts.ready(10.0)
    attempts.unready(39.9)
    assert (attempts.made, attempts.failed(50.0)) == (1, 2)


def test_a_link_that_was_ready_for_long_starts_the_count_over_however_it_ends() -> None:
    attempts = Attempts(max_attempts=5, min_uptime=30.0)
    attempts.failed(0.0)
    attempts.ready(10.0)
    attempts.unready(40.0)
    assert (attempts.made, attempts.failed(41.0)) == (0, 1)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (HandshakeRejected(404), True),
        (HandshakeRejected(401), True),
        (HandshakeInvalid("an illegal answer to the offer of compression", rule="extension"), True),
        (RedirectRefused(HandshakeRejected(301), "another origin"), True),
        (ConnectFailed("the proxy refuses to connect with status 403", phase="proxy", retry=RetryAdvice.NEVER), True),
        (TlsFailed("no version in common", reason="protocol"), True),
        *[(TlsFailed("no", reason=reason), False) for reason in ("expired", "hostname", "untrusted", "pin")],
        (TlsFailed("it refuses ours", reason="client-certificate"), False),
        (ConnectFailed("the stream factory failed", phase="tcp", retry=RetryAdvice.NEVER), False),
        (AuthFailed("no"), False),
        (LinkLost(3003), False),
        (ZeroDivisionError("a bug"), False),
    ],
)
def test_what_a_service_says_while_it_is_deployed_may_pass_and_a_refused_certificate_does_not(
    error: Exception, passes: bool
) -> None:
    assert may_pass(error) is passes
