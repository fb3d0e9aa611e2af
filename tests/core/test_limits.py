from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trio_nova.core.limits import LEAST_WAIT, LOOK_AGAIN, Gcra, Limit, Limits, RollingWindow, TokenBucket, UseMark
from trio_nova.errors import ConfigError

Sent = list[tuple[float, float]]
"""(time, cost) of what the server saw."""

LIMITS: list[Callable[[], Limit]] = [
    lambda: TokenBucket(5.0, 2.0),
    lambda: Gcra(10, 4.0, burst=5),
    lambda: RollingWindow(5, 2.0),
    lambda: Limits([TokenBucket(5.0, 0.5), Gcra(10, 4.0, burst=6), RollingWindow(5, 2.0)]),
]
"""One of each kind; each may spend 5 at once."""


def drive(limit: Limit, steps: list[tuple[float, float]]) -> Sent:
    """Spend as early as admitted: each step idles, then sends at a cost."""
    now, sent = 1000.0, []
    for idle, cost in steps:
        now = limit.admits_at(now + idle, cost)
        assert now < math.inf
        limit.spend(now, cost)
        sent.append((now, cost))
    return sent


def worst(sent: Sent, window: float) -> float:
    """Return the most that was spent in any half-open window of this many seconds."""
    most, total, first = 0.0, 0.0, 0
    for at, cost in sent:
        total += cost
        while Fraction(at) - Fraction(sent[first][0]) >= Fraction(window):
            total -= sent[first][1]
            first += 1
        most = max(most, total)
    return most


idles = st.one_of(st.just(0.0), st.floats(0.0, 1.0), st.floats(0.0, 100.0))


def steps(costs: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(idles, costs), max_size=80)


# --------------------------------------------------------------------------- never more than declared


@given(st.integers(1, 12), st.floats(0.01, 100.0), st.floats(0.0, 10.0), st.data())
def test_a_rolling_window_never_lets_more_through_in_any_window(
    limit: int, period: float, margin: float, data: st.DataObject
) -> None:
    costs = st.integers(1, limit).map(float)
    sent = drive(RollingWindow(limit, period, margin=margin), data.draw(steps(costs)))
    assert worst(sent, period) <= limit


@given(st.integers(1, 12), st.floats(0.01, 100.0), st.floats(0.0, 10.0), st.data())
def test_gcra_never_lets_more_through_in_any_window(
    limit: int, period: float, margin: float, data: st.DataObject
) -> None:
    burst = data.draw(st.integers(1, limit))
    costs = st.integers(1, burst).map(float)
    sent = drive(Gcra(limit, period, burst, margin=margin), data.draw(steps(costs)))
    assert worst(sent, period) <= limit


@given(st.floats(1.0, 100.0), st.floats(0.01, 100.0), st.floats(0.01, 100.0), st.data())
def test_a_bucket_never_lets_more_through_than_its_capacity_and_what_it_refills(
    capacity: float, rate: float, window: float, data: st.DataObject
) -> None:
    sent = drive(TokenBucket(capacity, rate), data.draw(steps(st.floats(0.0, capacity))))
    assert worst(sent, window) <= (capacity + rate * window) * (1 + 1e-9)


@given(st.floats(1.1, 1000.0), st.floats(0.01, 1000.0), st.floats(0.05, 0.95), st.data())
def test_a_bucket_within_a_limit_never_lets_more_through_in_any_window(
    limit: float, period: float, share: float, data: st.DataObject
) -> None:
    bucket = TokenBucket.within(limit, period, burst=limit * share)
    assert bucket.capacity + bucket.rate * period <= limit
    sent = drive(bucket, data.draw(steps(st.floats(0.0, bucket.capacity))))
    assert worst(sent, period) <= limit * (1 + 1e-9)


@pytest.mark.parametrize("limit", [TokenBucket.within(100, 60.0, 20), Gcra(100, 60.0, 20), RollingWindow(100, 60.0)])
def test_a_greedy_sender_reaches_the_limit_and_never_exceeds_it(limit: Limit) -> None:
    sent = drive(limit, [(0.0, 1.0)] * 1000)
    assert worst(sent, 60.0) <= 100
    assert worst(sent, 60.0) >= 95


def test_a_burst_at_the_windows_edge_waits_for_the_whole_period() -> None:
    window = RollingWindow(120, 60.0)
    window.spend(59.0, 120)
    assert window.admits_at(60.0) == 119.0


@pytest.mark.parametrize("make", [lambda: Gcra(1, 1.0), lambda: RollingWindow(1, 1.0)])
@pytest.mark.parametrize("first", [1e-17, 0.1 / 2**30, 0.9 / 2**30, 0.1, 1 / 3, 1e6 + 0.1])
def test_not_even_rounding_shortens_the_period(make: Callable[[], Limit], first: float) -> None:
    limit = make()
    limit.spend(first)
    second = limit.admits_at(first + 1.0)
    assert Fraction(second) - Fraction(first) >= 1
    assert second - first < 1.0 + 3 / 2**30


def test_a_rolling_window_remembers_a_spend_for_the_period_and_the_margin() -> None:
    window = RollingWindow(5, 4.0, margin=1.0)
    window.spend(0.0, 5)
    assert window.available(4.875) == 0.0
    assert window.admits_at(4.875) == 5.0
    assert window.available(5.0) == 5.0


def test_gcra_spaces_evenly_after_its_burst() -> None:
    sent = drive(Gcra(4, 3.0, burst=2), [(0.0, 1.0)] * 5)
    assert [at for at, _ in sent] == pytest.approx([1000.0, 1000.0, 1001.0, 1002.0, 1003.0])


def test_gcra_of_one_per_period_lets_one_through_per_period() -> None:
    sent = drive(Gcra(1, 1.0), [(0.0, 1.0)] * 4)
    assert [at for at, _ in sent] == pytest.approx([1000.0, 1001.0, 1002.0, 1003.0])


@pytest.mark.fault("F95", where="memory")
@pytest.mark.parametrize(
    "limit",
    [
        TokenBucket.within(10, 4.0, 5, margin=1.0),
        Gcra(10, 4.0, burst=5, margin=1.0),
        RollingWindow(10, 4.0, margin=1.0),
    ],
)
def test_a_margin_keeps_the_limit_although_the_network_squeezes_messages_together(limit: Limit) -> None:
    sent = drive(limit, [(0.0, 1.0)] * 200)
    for late in range(200):
        squeezed = sorted((at + (1.0 if index < late else 0.0), cost) for index, (at, cost) in enumerate(sent))
        assert worst(squeezed, 4.0) <= 10


# --------------------------------------------------------------------------- progress


@given(
    st.sampled_from(range(len(LIMITS))),
    st.lists(st.tuples(idles, st.floats(0.0, 4.0), st.floats(0.0, 1.0)), max_size=40),
    st.floats(0.0, 1e7),
)
def test_who_waits_as_told_is_admitted(which: int, sends: list[tuple[float, float, float]], start: float) -> None:
    limit, now = LIMITS[which](), start
    for idle, cost, reserve in sends:
        now += idle
        told = limit.admits_at(now, cost, reserve)
        assert now <= told < math.inf
        assert limit.admits_at(told, cost, reserve) == told
        assert limit.available(told) >= cost
        limit.spend(told, cost)
        assert limit.available(told) >= math.floor(reserve) - 1e-9
        now = told


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.floats(0.0, 1e12), st.lists(st.floats(0.0, 1.0), max_size=20))
def test_who_waits_as_told_is_admitted_at_any_scale(
    capacity: float, rate: float, start: float, shares: list[float]
) -> None:
    bucket, now = TokenBucket(capacity, rate), start
    for share in shares:
        now = bucket.admits_at(now, capacity * share)
        bucket.spend(now, capacity * share)


def test_who_waits_until_time_0_is_admitted_too() -> None:
    # The exact answer is a few 1e-16 s after 0, which in steps of the smallest float would take for ever.
    bucket, start = TokenBucket(7.925787079318163, 1.2011244316254241), -4.0720060369224305
    bucket.spend(start, 4.890985936673751)
    told = bucket.admits_at(start, bucket.capacity)
    assert 0.0 < told < 1e-14
    bucket.spend(told, bucket.capacity)


@pytest.mark.parametrize("make", LIMITS)
def test_nobody_is_told_to_wait_longer_than_needed(make: Callable[[], Limit]) -> None:
    limit = make()
    limit.spend(0.0, 5)
    told = limit.admits_at(0.0, 3)
    assert limit.available(told - 1e-6) < 3
    with pytest.raises(ValueError, match="may not be spent"):
        limit.spend(told - 1e-6, 3)
    limit.spend(told, 3)


@pytest.mark.parametrize("make", LIMITS)
@pytest.mark.parametrize(("cost", "reserve"), [(5.5, 0.0), (1e300, 0.0), (math.inf, 0.0), (5.0, 1.0), (1.0, math.inf)])
def test_what_can_never_be_admitted_is_told_so(make: Callable[[], Limit], cost: float, reserve: float) -> None:
    assert make().admits_at(0.0, cost, reserve) == math.inf


@pytest.mark.parametrize("make", LIMITS)
def test_a_reserve_is_left_to_those_who_do_not_ask_for_one(make: Callable[[], Limit]) -> None:
    limit = make()
    limit.spend(0.0, 3)
    assert limit.admits_at(0.0, 1.0, reserve=2.0) > 0.0
    assert limit.admits_at(0.0, 1.0, reserve=1.0) == 0.0
    assert limit.admits_at(0.0, 2.0) == 0.0


@pytest.mark.parametrize("make", LIMITS)
def test_what_costs_nothing_is_admitted_at_once(make: Callable[[], Limit]) -> None:
    limit = make()
    limit.spend(0.0, 5)
    assert limit.admits_at(0.0, 0.0) == 0.0
    limit.spend(0.0, 0.0)


# --------------------------------------------------------------------------- debt, clocks


@pytest.mark.parametrize("make", LIMITS)
@pytest.mark.parametrize("cost", [2.5, 6.0, math.inf])
def test_debt_is_an_error_and_takes_nothing(make: Callable[[], Limit], cost: float) -> None:
    limit = make()
    limit.spend(0.0, 3)
    with pytest.raises(ValueError, match="may not be spent"):
        limit.spend(0.0, cost)
    assert limit.available(0.0) == 2.0


@pytest.mark.parametrize("make", LIMITS)
@pytest.mark.parametrize("cost", [-1.0, math.nan])
def test_a_cost_that_is_no_cost_is_refused(make: Callable[[], Limit], cost: float) -> None:
    limit = make()
    with pytest.raises(ConfigError):
        limit.admits_at(0.0, cost)
    with pytest.raises(ConfigError):
        limit.spend(0.0, cost)
    with pytest.raises(ConfigError):
        limit.admits_at(0.0, 1.0, reserve=cost)
    assert limit.available(0.0) == 5.0


@pytest.mark.fault("F73", where="memory")
@pytest.mark.parametrize("make", LIMITS)
def test_hours_asleep_give_no_more_than_the_capacity(make: Callable[[], Limit]) -> None:
    limit = make()
    limit.spend(0.0, 5)
    assert limit.available(8 * 3600.0) == 5.0
    limit.spend(8 * 3600.0, 5)
    assert limit.admits_at(8 * 3600.0) > 8 * 3600.0


@pytest.mark.fault("F74", where="memory")
@pytest.mark.parametrize("make", LIMITS)
def test_a_clock_that_steps_back_mints_nothing_and_breaks_nothing(make: Callable[[], Limit]) -> None:
    limit = make()
    limit.spend(100.0, 4)
    assert limit.available(50.0) == 1.0
    assert limit.admits_at(50.0) == 50.0
    limit.spend(50.0)
    assert limit.available(100.0) == 0.0
    assert limit.admits_at(50.0) == limit.admits_at(100.0) > 100.0


@pytest.mark.parametrize("make", LIMITS)
def test_asking_changes_nothing(make: Callable[[], Limit]) -> None:
    limit, untouched = make(), make()
    limit.spend(0.0, 4)
    untouched.spend(0.0, 4)
    limit.admits_at(1e6, 5, 0)
    limit.available(1e6)
    assert limit == untouched
    assert limit.available(0.0) == 1.0


@pytest.mark.parametrize("limit", [Gcra(10, 4.0, burst=5), RollingWindow(5, 2.0)])
def test_where_units_are_counted_a_fraction_counts_as_one(limit: Limit) -> None:
    limit.spend(0.0, 0.25)
    limit.spend(0.0, 1.5)
    assert limit.available(0.0) == 2.0
    assert limit.admits_at(0.0, 1.5, reserve=0.5) > 0.0


def test_the_log_of_a_rolling_window_is_bounded() -> None:
    window = RollingWindow(100, 1.0)
    drive(window, [(0.001, 0.01)] * 2000)
    assert len(window._log) <= 100
    assert window._logged == len(window._log)


# --------------------------------------------------------------------------- conservation

eighths = st.integers(0, 400).map(lambda n: n / 8)
"""With numbers like these floating point is exact, and may be compared with fractions."""


class BucketConserves(RuleBasedStateMachine):
    """The bucket against its history: what was spent, replayed in fractions."""

    @initialize(capacity=st.integers(1, 50), doubling=st.integers(-3, 3))
    def start(self, capacity: int, doubling: int) -> None:
        self.bucket = TokenBucket(float(capacity), 2.0**doubling)
        self.now = 0.0
        self.history: Sent = []

    def replayed(self) -> Fraction:
        capacity, rate = Fraction(self.bucket.capacity), Fraction(self.bucket.rate)
        level, last = capacity, Fraction(0)
        for at, cost in [*self.history, (self.now, 0.0)]:
            level = min(capacity, level + (Fraction(at) - last) * rate) - Fraction(cost)
            last = Fraction(at)
        return level

    @rule(seconds=eighths)
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(cost=eighths)
    def send_as_soon_as_admitted(self, cost: float) -> None:
        told = self.bucket.admits_at(self.now, cost)
        if cost > self.bucket.capacity:
            assert told == math.inf
            return
        short = max(Fraction(0), Fraction(cost) - self.replayed())
        assert told == self.now + short / Fraction(self.bucket.rate)
        self.now = told
        self.bucket.spend(told, cost)
        self.history.append((told, cost))

    @rule(cost=eighths)
    def try_to_run_into_debt(self, cost: float) -> None:
        assume(cost > self.replayed())
        with pytest.raises(ValueError, match="may not be spent"):
            self.bucket.spend(self.now, cost)

    @invariant()
    def what_is_available_is_what_history_left(self) -> None:
        assert self.bucket.available(self.now) == self.replayed()
        assert 0 <= self.bucket.available(self.now) <= self.bucket.capacity


class WindowConserves(RuleBasedStateMachine):
    """The rolling window against the list of all that was ever spent."""

    @initialize(limit=st.integers(1, 20), period=st.integers(1, 64).map(lambda n: n / 8))
    def start(self, limit: int, period: float) -> None:
        self.window = RollingWindow(limit, period)
        self.now = 0.0
        self.history: Sent = []

    def left(self) -> float:
        return self.window.limit - sum(cost for at, cost in self.history if self.now - at < self.window.period)

    @rule(seconds=st.integers(0, 64).map(lambda n: n / 8))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(cost=st.integers(0, 20))
    def send_as_soon_as_admitted(self, cost: int) -> None:
        told = self.window.admits_at(self.now, cost)
        if cost > self.window.limit:
            assert told == math.inf
            return
        assert (told == self.now) == (cost <= self.left())
        self.now = told
        self.window.spend(told, cost)
        self.history.append((told, cost))

    @invariant()
    def what_is_available_is_what_history_left(self) -> None:
        assert self.window.available(self.now) == self.left()


TestBucketConserves: Any = BucketConserves.TestCase
TestWindowConserves: Any = WindowConserves.TestCase


# --------------------------------------------------------------------------- several at once


def test_without_limits_all_is_admitted() -> None:
    none = Limits()
    assert none.admits_at(7.0, 1e9, 1e9) == 7.0
    assert none.available(7.0) == math.inf
    none.spend(7.0, 1e9)


def test_several_limits_admit_when_the_slowest_does() -> None:
    limits = Limits([TokenBucket(2.0, 1.0), RollingWindow(3, 60.0)])
    limits.spend(0.0, 2)
    assert limits.admits_at(0.0) == 1.0
    limits.spend(1.0)
    assert limits.admits_at(1.0) == 60.0
    assert limits.available(60.0) == 2.0


def test_several_limits_spend_in_all_or_in_none() -> None:
    wide, narrow = TokenBucket(10.0, 1.0), RollingWindow(3, 60.0)
    limits = Limits([wide, narrow])
    limits.spend(0.0, 2)
    with pytest.raises(ValueError, match="2 may not be spent: 1 is available"):
        limits.spend(0.0, 2)
    assert wide.available(0.0) == 8.0
    assert narrow.available(0.0) == 1.0


def test_several_limits_are_asked_again_until_all_agree() -> None:
    @attrs.define
    class OpenEvery:
        """Admits in the first second of each `period` only."""

        period: float

        def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
            return now if now % self.period < 1.0 else now - now % self.period + self.period

        def spend(self, now: float, cost: float = 1.0) -> None: ...

        def available(self, now: float) -> float:
            return math.inf

    assert Limits([OpenEvery(3.0), OpenEvery(5.0)]).admits_at(4.0) == 15.0


@attrs.define
class Vague:
    """Answers any question with a time that far from the one it is asked about."""

    ahead: Any

    def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> Any:
        return now + self.ahead if isinstance(self.ahead, float) else self.ahead

    def spend(self, now: float, cost: float = 1.0) -> None: ...

    def available(self, now: float) -> float:
        return 0.0


@pytest.mark.parametrize("others", [[], [TokenBucket(5.0, 1.0)], [Vague(0.02)]], ids=["alone", "bucket", "two"])
def test_a_limit_that_always_says_to_ask_again_is_asked_again_when_it_says(others: list[Limit]) -> None:
    assert Limits([Vague(0.05), *others]).admits_at(7.0) == 7.05


def test_a_limit_that_says_in_a_moment_for_ever_is_not_asked_without_a_pause() -> None:
    assert Limits([Vague(1e-12)]).admits_at(7.0) == 7.0 + LEAST_WAIT


def test_a_limit_that_names_a_time_in_the_past_admits_now() -> None:
    assert Limits([Vague(-5.0)]).admits_at(7.0) == 7.0
    assert Limits([Vague(-5.0), Vague(0.05)]).admits_at(7.0) == 7.05


@pytest.mark.parametrize("answer", [math.nan, None, "soon", True])
def test_a_limit_that_answers_no_time_is_named(answer: Any) -> None:
    with pytest.raises(ConfigError, match=r"Vague\.admits_at answered .*, which is no time"):
        Limits([Vague(answer)]).admits_at(7.0)


# --------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, None, "60", True])
@pytest.mark.parametrize(
    ("make", "field"),
    [
        (TokenBucket, "capacity"),
        (TokenBucket, "rate"),
        (Gcra, "limit"),
        (Gcra, "period"),
        (Gcra, "burst"),
        (RollingWindow, "limit"),
        (RollingWindow, "period"),
        (TokenBucket.within, "limit"),
        (TokenBucket.within, "period"),
        (TokenBucket.within, "burst"),
    ],
)
def test_a_wrong_number_is_refused_by_name(make: Callable[..., Limit], field: str, value: object) -> None:
    right: dict[str, object] = {} if make is TokenBucket else {"limit": 10, "period": 60.0}
    if make == TokenBucket.within:
        right["burst"] = 5
    with pytest.raises(ConfigError) as caught:
        make(**{**right, field: value})
    assert caught.value.field == field


@pytest.mark.parametrize("make", [Gcra, RollingWindow])
def test_a_limit_on_units_is_a_whole_number(make: Callable[..., Limit]) -> None:
    with pytest.raises(ConfigError, match=r"^limit: must be a whole number"):
        make(2.5, 60.0)


@pytest.mark.parametrize("margin", [-1.0, math.inf, math.nan])
@pytest.mark.parametrize("make", [Gcra, RollingWindow])
def test_a_wrong_margin_is_refused(make: Callable[..., Limit], margin: float) -> None:
    with pytest.raises(ConfigError, match=r"^margin: "):
        make(10, 60.0, margin=margin)


def test_a_burst_of_gcra_is_within_its_limit() -> None:
    with pytest.raises(ConfigError, match=r"^burst: must be at most the limit of 10"):
        Gcra(10, 60.0, burst=11)


@pytest.mark.parametrize("burst", [100, 120])
def test_a_bucket_whose_burst_leaves_nothing_to_refill_is_impossible(burst: int) -> None:
    with pytest.raises(ConfigError, match=r"^burst: must be below the limit of 100"):
        TokenBucket.within(100, 60.0, burst)


def test_a_bucket_whose_rate_would_round_to_nothing_is_impossible() -> None:
    with pytest.raises(ConfigError, match=r"^limit: is too small"):
        TokenBucket.within(1e-320, 1e9, 5e-321)


# --------------------------------------------------------------------------- nearly used up


COARSE: list[Callable[[], Limit]] = [
    lambda: TokenBucket(20.0, 0.7),
    lambda: Gcra(40, 7.0, burst=20),
    lambda: RollingWindow(20, 3.0),
]
"""One of each kind; each may spend 20 at once."""


@pytest.mark.parametrize("make", COARSE)
def test_the_mark_is_reached_at_nine_tenths_and_left_at_a_half_each_told_once(make: Callable[[], Limit]) -> None:
    limit, now = make(), 1000.0
    mark = UseMark((limit,))
    for _ in range(17):
        limit.spend(now)
        assert not mark.crossed(now)
    limit.spend(now)
    assert mark.used(now) == pytest.approx(0.9)
    assert mark.crossed(now)
    assert not mark.crossed(now)
    eases = mark.eases_at(now)
    assert not mark.crossed(eases - 2 * LEAST_WAIT)
    assert mark.crossed(eases)
    assert mark.used(eases) <= 0.5 + 1e-9
    assert not mark.is_reached
    assert not mark.crossed(eases)


@given(st.integers(0, 2), st.lists(st.tuples(idles, st.integers(1, 12)), max_size=60))
def test_whoever_looks_again_as_told_finds_the_mark_left_at_last(which: int, sends: list[tuple[float, int]]) -> None:
    limit, now = COARSE[which](), 1000.0
    mark = UseMark((limit,))
    for idle, cost in sends:
        now = limit.admits_at(now + idle, cost)
        limit.spend(now, cost)
        was = mark.is_reached
        assert mark.crossed(now) == (mark.is_reached != was)
        assert 0.0 <= mark.used(now) <= 1.0
    if mark.is_reached:
        assert mark.crossed(mark.eases_at(now))


def test_limits_of_a_few_at_once_and_no_limits_at_all_have_no_mark() -> None:
    limit = RollingWindow(9, 1.0)
    limit.spend(0.0, 9.0)
    for mark in (UseMark((limit,)), UseMark(())):
        assert not mark.crossed(0.0)
        assert mark.used(0.0) == 0.0


def test_a_limit_that_names_no_time_is_looked_at_again_after_a_while() -> None:
    @attrs.define
    class Closed(RollingWindow):
        def admits_at(self, now: float, cost: float = 1.0, reserve: float = 0.0) -> float:
            return math.inf

    mark = UseMark((Closed(20, 1.0),))
    assert mark.eases_at(5.0) == 5.0 + LOOK_AGAIN
