from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova import Config, profiles
from trio_nova.core.backoff import (
    Backoff,
    DecorrelatedBackoff,
    ExponentialBackoff,
    FibonacciBackoff,
    Jitter,
    LinearBackoff,
    ListBackoff,
    NoBackoff,
)
from trio_nova.errors import ConfigError

HIGHEST = math.nextafter(1.0, 0.0)
"""The largest draw from [0, 1)."""

seconds = st.floats(0.0, 1e6)
spreads = st.floats(0.0, HIGHEST)
attempts = st.integers(1, 10**6)
jitters: st.SearchStrategy[Jitter] = st.one_of(st.sampled_from(["full", "equal"]), st.floats(0.0, 1.0))


def delays(backoff: Backoff, count: int, spread: float) -> list[float | None]:
    return [backoff.delay(attempt, spread) for attempt in range(1, count + 1)]


@pytest.mark.parametrize("spread", [0.0, 0.25, HIGHEST])
def test_the_first_retry_is_by_default_uniform_between_0_and_2_seconds_and_the_second_between_0_and_10(
    spread: float,
) -> None:
    assert Config().backoff.delay(1, spread) == 2.0 * spread
    assert Config().backoff.delay(2, spread) == 10.0 * spread


@pytest.mark.parametrize("spread", [0.0, 0.25, HIGHEST])
@pytest.mark.parametrize(
    "backoff",
    [
        ExponentialBackoff(jitter=0.0, first_delay=0.5),
        LinearBackoff(jitter="equal", first_delay=0.5),
        FibonacciBackoff(jitter=0.25, first_delay=0.5),
        DecorrelatedBackoff(first_delay=0.5),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_first_retry_of_every_back_off_comes_at_a_random_time_within_its_first_delay(
    backoff: Backoff, spread: float
) -> None:
    assert backoff.delay(1, spread) == 0.5 * spread
    assert backoff.delay(2, spread) == attrs.evolve(backoff, first_delay=None).delay(2, spread)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("profile", "longest"),
    [(profiles.FINANCIAL, 0.5), (profiles.STANDARD, 2.0), (profiles.LIGHTWEIGHT, 2.0), (profiles.MESSAGING, 1.0)],
)
def test_the_first_retry_of_every_profile_is_drawn_from_0_to_its_first_delay(profile: Config, longest: float) -> None:
    assert [profile.backoff.delay(1, spread) for spread in (0.0, 0.5)] == [0.0, longest / 2]


def test_who_is_taken_in_and_shown_out_at_once_dials_80_times_in_an_hour_at_most_and_12_in_a_minute() -> None:
    backoff, hour, minute = Config().backoff, 0, 0
    for seed in range(2_000):
        spread, at, dials, soon = random.Random(seed).random, 0.0, 0, 0
        while at < 3600.0:
            dials += 1
            soon += at < 60.0
            at += backoff.delay(dials, spread()) or 0.0
        hour, minute = max(hour, dials), max(minute, soon)
    assert 60 <= hour <= 80
    assert minute <= 12


def test_an_exponential_delay_doubles_up_to_its_cap() -> None:
    assert delays(ExponentialBackoff(1.0, 10.0, jitter=0.0), 6, 0.5) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_an_exponential_delay_grows_by_its_factor() -> None:
    assert delays(ExponentialBackoff(1.0, 100.0, factor=3, jitter=0.0), 4, 0.5) == [1.0, 3.0, 9.0, 27.0]


@pytest.mark.parametrize("attempt", [1023, 1024, 1025, 1026, 10**6, 10**400])
def test_no_number_of_attempts_overflows(attempt: int) -> None:
    assert ExponentialBackoff(jitter=0.0).delay(attempt, 0.5) == 150.0
    assert ExponentialBackoff(base=0.0, jitter=0.0).delay(attempt, 0.5) == 0.0


def test_a_linear_delay_grows_by_its_step_up_to_its_cap() -> None:
    assert delays(LinearBackoff(1.0, 4.0, 10.0, jitter=0.0), 4, 0.5) == [1.0, 5.0, 9.0, 10.0]


def test_the_step_of_a_linear_delay_is_by_default_its_base() -> None:
    assert delays(LinearBackoff(2.0, jitter=0.0), 3, 0.5) == [2.0, 4.0, 6.0]


def test_a_fibonacci_delay_is_the_sum_of_the_two_before_up_to_its_cap() -> None:
    assert delays(FibonacciBackoff(2.0, 20.0, jitter=0.0), 7, 0.5) == [2.0, 2.0, 4.0, 6.0, 10.0, 16.0, 20.0]


@pytest.mark.parametrize("base", [0.0, 5e-324, 1.0])
def test_the_millionth_fibonacci_delay_takes_no_million_steps(base: float) -> None:
    # 10**18 additions would never end: that this returns is the test.
    assert FibonacciBackoff(base, cap=1e308, jitter=0.0).delay(10**18, 0.5) == (1e308 if base else 0.0)


def test_a_decorrelated_delay_is_drawn_between_its_base_and_three_times_the_last_one() -> None:
    backoff = DecorrelatedBackoff(base=1.0, cap=60.0)
    assert backoff.delay(1, 0.0) == 1.0
    assert backoff.delay(1, 0.5) == 2.0
    assert backoff.delay(7, 0.0, previous=10.0) == 1.0
    assert backoff.delay(7, 0.5, previous=10.0) == 15.5
    assert backoff.delay(7, 0.9, previous=50.0) == 60.0


def test_a_list_is_followed_and_its_last_delay_repeated() -> None:
    assert delays(ListBackoff([0.5, 2, 8.0]), 5, 0.5) == [0.5, 2.0, 8.0, 8.0, 8.0]


def test_a_list_can_end_in_giving_up() -> None:
    assert delays(ListBackoff([0.5, 2.0], then_last=False), 4, 0.5) == [0.5, 2.0, None, None]


def test_no_backoff_gives_up_at_once() -> None:
    assert NoBackoff().delay(1, 0.5) is None


@pytest.mark.parametrize(
    ("jitter", "lowest", "middle"), [("full", 0.0, 30.0), ("equal", 30.0, 45.0), (0.25, 45.0, 52.5), (0.0, 60.0, 60.0)]
)
@pytest.mark.parametrize(
    "make",
    [
        lambda jitter: ExponentialBackoff(60.0, 60.0, jitter=jitter),
        lambda jitter: LinearBackoff(60.0, cap=60.0, jitter=jitter),
        lambda jitter: FibonacciBackoff(60.0, 60.0, jitter=jitter),
        lambda jitter: ListBackoff([60.0], jitter=jitter),
    ],
)
def test_jitter_survives_the_cap(
    make: Callable[[Jitter], Backoff], jitter: Jitter, lowest: float, middle: float
) -> None:
    assert make(jitter).delay(50, 0.0) == lowest
    assert make(jitter).delay(50, 0.5) == middle
    assert make(jitter).delay(50, HIGHEST) == pytest.approx(60.0)


@given(seconds, seconds, st.floats(1.0, 1e3), jitters, attempts, spreads)
def test_every_delay_is_finite_and_between_0_and_the_cap(
    base: float, cap: float, factor: float, jitter: Jitter, attempt: int, spread: float
) -> None:
    strategies: list[Backoff] = [
        ExponentialBackoff(base, cap, factor, jitter),
        LinearBackoff(base, cap=cap, jitter=jitter),
        FibonacciBackoff(base, cap, jitter),
        DecorrelatedBackoff(base, cap),
        ListBackoff([base, cap], jitter=jitter),
    ]
    for backoff in strategies[:-1]:
        delay = backoff.delay(attempt, spread, previous=cap)
        assert delay is not None
        assert 0.0 <= delay <= cap * (1 + 1e-15)
    last = strategies[-1].delay(attempt, spread)
    assert last is not None
    assert 0.0 <= last <= max(base, cap) * (1 + 1e-15)


@given(seconds, seconds, st.floats(1.0, 1e3), jitters, spreads)
def test_without_luck_a_delay_never_shrinks(
    base: float, cap: float, factor: float, jitter: Jitter, spread: float
) -> None:
    for backoff in (
        ExponentialBackoff(base, cap, factor, jitter),
        LinearBackoff(base, cap=cap, jitter=jitter),
        FibonacciBackoff(base, cap, jitter),
    ):
        row = [backoff.delay(attempt, spread) for attempt in range(1, 40)]
        assert all(earlier <= later for earlier, later in pairwise(row))


@pytest.mark.parametrize("value", [-1.0, -math.inf, math.inf, math.nan, "5", True, 10**400])
@pytest.mark.parametrize(
    ("strategy", "field"),
    [
        (ExponentialBackoff, "base"),
        (ExponentialBackoff, "cap"),
        (ExponentialBackoff, "factor"),
        (ExponentialBackoff, "first_delay"),
        (LinearBackoff, "base"),
        (LinearBackoff, "step"),
        (LinearBackoff, "cap"),
        (FibonacciBackoff, "base"),
        (FibonacciBackoff, "cap"),
        (DecorrelatedBackoff, "base"),
        (DecorrelatedBackoff, "cap"),
    ],
)
def test_a_wrong_number_is_refused_by_name(strategy: Callable[..., Backoff], field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        strategy(**{field: value})
    assert caught.value.field == field


def test_a_shrinking_factor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^factor: must be at least 1, not 0\.5"):
        ExponentialBackoff(factor=0.5)


@pytest.mark.parametrize("jitter", ["half", "", -0.1, 1.1, math.nan, math.inf, None, True])
@pytest.mark.parametrize("make", [ExponentialBackoff, LinearBackoff, FibonacciBackoff])
def test_a_wrong_jitter_is_refused(make: Callable[..., Backoff], jitter: object) -> None:
    with pytest.raises(ConfigError, match=r"^jitter: "):
        make(jitter=jitter)


@pytest.mark.parametrize("wrong", [[], 5.0, "12", [1.0, -1.0], [math.nan], [math.inf], [None]])
def test_a_wrong_list_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"^delays: "):
        ListBackoff(wrong)  # type: ignore[arg-type]
