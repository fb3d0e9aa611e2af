from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.backoff import Backoff, ExponentialBackoff, LinearBackoff, ListBackoff, NoBackoff
from trio_nova.core.recovery import advise, wait_wished_for
from trio_nova.core.verdict import CLOSE_CODES, STATUSES, Attempts, Disposition
from trio_nova.errors import (
    AuthFailed,
    ConfigError,
    ConnectFailed,
    ConnectTimeout,
    HandshakeInvalid,
    HandshakeRejected,
    LinkLost,
    NovaError,
    RetryAdvice,
    SessionOver,
    TlsFailed,
)
from trio_nova.messages import Close, Retry, Stop

STEADY = LinearBackoff(base=4.0, step=0.0, jitter=0.0)
"""Always four seconds."""
GOODBYE = [LinkLost(code, remote=True) for code in (1000, 1001, 1005)]


def failed(times: int = 1, max_attempts: float = math.inf) -> Attempts:
    """Return the count after so many failures in a row."""
    attempts = Attempts(max_attempts, 30.0)
    for _ in range(times):
        attempts.failed(0.0)
    return attempts


def fatal(error: Exception) -> bool:
    """Say whether `error` ends a session that would retry for ever."""
    return advise(error, failed(), STEADY, 0.5) == Stop(error)


# --------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("status", STATUSES)
def test_the_status_of_a_refused_upgrade_decides_as_its_table_says(status: int) -> None:
    assert fatal(HandshakeRejected(status)) is (STATUSES[status].disposition is Disposition.FATAL)


@pytest.mark.parametrize("code", CLOSE_CODES)
def test_a_close_code_decides_as_its_table_says(code: int) -> None:
    assert fatal(LinkLost(code, remote=True)) is (CLOSE_CODES[code].disposition is Disposition.FATAL)


@pytest.mark.parametrize(
    "error",
    [
        HandshakeRejected(401),
        HandshakeRejected(403),
        HandshakeRejected(404),
        TlsFailed("expired", reason="expired"),
        AuthFailed("no"),
        ConfigError("headers", "wrong"),
        ZeroDivisionError("a bug"),
        OSError("a foreign error is a bug too"),
    ],
)
def test_what_would_fail_the_same_way_again_stops_the_session_with_the_error_itself(error: Exception) -> None:
    assert fatal(error)


@pytest.mark.parametrize(
    "error",
    [
        ConnectFailed("refused", phase="tcp"),
        ConnectTimeout(phase="tls"),
        HandshakeRejected(429),
        HandshakeRejected(503),
        LinkLost(1006),
        LinkLost(4000, remote=True),
        HandshakeInvalid("cut off", rule="response"),
        TlsFailed("not valid yet", reason="expired", retry=RetryAdvice.BACKOFF),
        *GOODBYE,
    ],
)
def test_what_may_pass_is_retried_after_the_backoff(error: Exception) -> None:
    assert advise(error, failed(), STEADY, 0.5) == Retry(4.0)


# --------------------------------------------------------------------------- the first connect


@pytest.mark.parametrize("error", [ConnectFailed("refused"), HandshakeRejected(503), *GOODBYE])
def test_a_first_connect_fails_fast_with_the_bare_error(error: Exception) -> None:
    assert advise(error, failed(), STEADY, 0.5, may_retry=False) == Stop(error)


def test_a_first_connect_that_may_be_retried_is() -> None:
    assert advise(ConnectFailed("refused"), failed(), STEADY, 0.5, may_retry=True) == Retry(4.0)


# --------------------------------------------------------------------------- who does not dial again

never_again = pytest.mark.parametrize(
    ("backoff", "max_attempts"),
    [(NoBackoff(), math.inf), (NoBackoff(), 5), (STEADY, 0)],
    ids=["no backoff", "no backoff, some attempts", "no attempts"],
)


@never_again
@pytest.mark.parametrize("error", GOODBYE)
def test_without_retries_a_peer_that_says_goodbye_closes_the_session(
    backoff: Backoff, max_attempts: float, error: LinkLost
) -> None:
    assert advise(error, failed(1, max_attempts), backoff, 0.5) == Close()


@never_again
@pytest.mark.parametrize(
    "error",
    [
        ConnectFailed("refused"),
        LinkLost(1006),
        LinkLost(1000, remote=False),
        LinkLost(1000, remote=None),
        LinkLost(1011, remote=True),
        HandshakeRejected(503, retry_after=1.0),
    ],
)
def test_without_retries_any_other_end_is_an_error_and_leaves_bare(
    backoff: Backoff, max_attempts: float, error: Exception
) -> None:
    assert advise(error, failed(1, max_attempts), backoff, 0.5) == Stop(error)


# --------------------------------------------------------------------------- giving up


@pytest.mark.parametrize("max_attempts", [1, 2, 7])
def test_the_session_is_over_after_as_many_retries_as_allowed(max_attempts: int) -> None:
    attempts, error = failed(0, max_attempts), ConnectFailed("refused")
    for _ in range(max_attempts):
        attempts.failed(0.0)
        assert isinstance(advise(error, attempts, STEADY, 0.5), Retry)
    attempts.failed(0.0)
    advice = advise(error, attempts, STEADY, 0.5)
    assert isinstance(advice, Stop)
    over = advice.error
    assert isinstance(over, SessionOver)
    assert over.last is over.__cause__ is error
    assert over.attempts == max_attempts + 1
    assert f"{max_attempts + 1} failures in a row" in str(over)


def test_a_list_of_delays_that_ends_ends_the_session() -> None:
    backoff, error = ListBackoff([1.0, 2.0], then_last=False), ConnectFailed("refused")
    assert advise(error, failed(2), backoff, 0.5) == Retry(2.0)
    advice = advise(error, failed(3), backoff, 0.5)
    assert isinstance(advice, Stop)
    assert isinstance(advice.error, SessionOver)


def test_giving_up_records_no_delay() -> None:
    attempts = failed(2, max_attempts=1)
    advise(ConnectFailed("refused"), attempts, STEADY, 0.5)
    assert attempts.previous == 0.0


# --------------------------------------------------------------------------- when


class _Telltale:
    """A back-off that shows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float, float]] = []

    def delay(self, attempt: int, spread: float, previous: float = 0.0) -> float:
        self.asked.append((attempt, spread, previous))
        return 10.0 * attempt


def test_the_backoff_is_told_the_attempt_the_draw_and_its_last_delay() -> None:
    backoff, attempts = _Telltale(), failed(0)
    for spread in (0.1, 0.2, 0.3):
        attempts.failed(0.0)
        advise(ConnectFailed("refused"), attempts, backoff, spread)
    assert backoff.asked == [(1, 0.1, 0.0), (2, 0.2, 10.0), (3, 0.3, 20.0)]
    assert attempts.previous == 30.0


def test_what_the_server_asked_for_is_no_part_of_the_recorded_delay() -> None:
    attempts = failed()
    advise(HandshakeRejected(503, retry_after=600.0), attempts, STEADY, 0.5)
    assert attempts.previous == 4.0


@given(st.floats(0.0, 900.0), st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 50))
def test_retry_after_is_honoured_and_never_comes_earlier_than_the_backoff(
    asked: float, spread: float, times: int
) -> None:
    backoff = ExponentialBackoff()
    advice = advise(HandshakeRejected(503, retry_after=asked), failed(times), backoff, spread)
    assert isinstance(advice, Retry)
    assert advice.delay >= asked
    assert advice.delay >= backoff.delay(times, spread)
    assert advice.delay <= asked + backoff.cap


def test_a_server_that_asks_for_0_seconds_for_ever_is_not_dialled_in_a_hot_loop() -> None:
    attempts = failed(0)
    delays = []
    for _ in range(5):
        attempts.failed(0.0)
        advice = advise(HandshakeRejected(503, retry_after=0.0), attempts, ExponentialBackoff(1.0, jitter=0.0), 0.5)
        assert isinstance(advice, Retry)
        delays.append(advice.delay)
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_clients_that_were_told_the_same_time_do_not_come_at_the_same_moment() -> None:
    error, backoff = HandshakeRejected(503, retry_after=60.0), ExponentialBackoff()
    delays = {advise(error, failed(), backoff, spread / 10) for spread in range(10)}
    assert len(delays) == 10


def test_any_error_of_ours_can_ask_for_patience() -> None:
    error = NovaError("slow down", retry=RetryAdvice.AFTER, retry_after=30.0)
    assert advise(error, failed(), STEADY, 0.5) == Retry(34.0)


# --------------------------------------------------------------------------- what a hook wishes for


def test_a_wish_for_another_link_waits_longer_each_time_in_a_row() -> None:
    attempts, backoff = failed(0), ExponentialBackoff(base=1.0, cap=10.0)
    delays = []
    for _ in range(6):
        attempts.failed(0.0)
        delays.append(wait_wished_for(attempts, backoff, 0.999999))
    assert delays == sorted(delays)
    assert delays[-1] == pytest.approx(10.0, abs=0.01)
    assert attempts.previous == delays[-1]


@pytest.mark.parametrize("backoff", [NoBackoff(), ListBackoff([4.0], then_last=False)])
def test_a_wish_is_fulfilled_without_a_hot_loop_where_the_back_off_would_give_up(backoff: Backoff) -> None:
    assert wait_wished_for(failed(2, max_attempts=0), backoff, 0.0) == 1.0
