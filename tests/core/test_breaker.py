from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.breaker import MAX_ORIGINS, PROBE_WAIT, TRANSITIONS, CircuitBreaker, CircuitState
from trio_nova.errors import CircuitOpen, ConfigError

ORIGIN = "wss://a.example:443"
CLOSED, OPEN, HALF_OPEN = CircuitState


def refused_for(breaker: CircuitBreaker, now: float, origin: str = ORIGIN) -> float | None:
    """Return for how many seconds nobody may dial; None: somebody may."""
    try:
        breaker.check(origin, now)
    except CircuitOpen as error:
        return error.retry_after
    return None


def tripped(**options: float) -> CircuitBreaker:
    """Return a breaker of three failures in 10 s, which is open from 2.0 to 32.0."""
    breaker = CircuitBreaker(3, within=10.0, open_for=30.0)
    for now in (0.0, 1.0, 2.0):
        breaker.enter(ORIGIN, now).failed(now)
    return breaker


def test_so_many_failures_in_time_open_the_circuit_of_that_origin_alone() -> None:
    breaker = CircuitBreaker(3, within=10.0, open_for=30.0)
    assert [breaker.enter(ORIGIN, now).failed(now) for now in (0.0, 1.0, 2.0)] == [False, False, True]
    assert breaker.state(ORIGIN) is OPEN
    assert refused_for(breaker, 2.0) == 30.0
    assert refused_for(breaker, 31.0) == 1.0
    assert refused_for(breaker, 2.0, "wss://b.example:443") is None


def test_failures_that_lie_too_far_apart_open_nothing() -> None:
    breaker = CircuitBreaker(3, within=10.0, open_for=30.0)
    assert not any(breaker.enter(ORIGIN, now).failed(now) for now in (0.0, 1.0, 10.5, 20.0, 21.0, 31.0))
    assert breaker.state(ORIGIN) is CLOSED


def test_one_probe_goes_through_when_it_was_open_for_long_enough_and_its_success_closes_it() -> None:
    breaker = tripped()
    probe = breaker.enter(ORIGIN, 32.0)
    assert breaker.state(ORIGIN) is HALF_OPEN
    assert refused_for(breaker, 32.0) == PROBE_WAIT
    with pytest.raises(CircuitOpen):
        breaker.enter(ORIGIN, 33.0)
    assert probe.succeeded()
    assert breaker.state(ORIGIN) is CLOSED
    assert not any(breaker.enter(ORIGIN, now).failed(now) for now in (34.0, 34.1))  # it begins anew


def test_a_probe_that_fails_opens_it_for_as_long_again() -> None:
    breaker = tripped()
    assert breaker.enter(ORIGIN, 40.0).failed(41.0)
    assert refused_for(breaker, 41.0) == 30.0


def test_a_probe_that_is_given_up_lets_another_one_try_at_once() -> None:
    breaker = tripped()
    breaker.enter(ORIGIN, 40.0).give_back()
    assert breaker.state(ORIGIN) is OPEN
    assert breaker.enter(ORIGIN, 40.0).succeeded()


def test_dials_that_began_before_it_opened_do_not_open_it_for_longer_but_close_it_where_they_succeed() -> None:
    breaker = CircuitBreaker(2, within=10.0, open_for=30.0)
    late = [breaker.enter(ORIGIN, 0.0) for _ in range(4)]
    assert [passage.failed(1.0) for passage in late[:2]] == [False, True]
    assert not late[2].failed(20.0)
    assert refused_for(breaker, 20.0) == 11.0
    probe = breaker.enter(ORIGIN, 31.0)
    assert late[3].succeeded()
    assert breaker.state(ORIGIN) is CLOSED
    assert not probe.failed(32.0)


def test_what_became_of_a_dial_is_told_once() -> None:
    breaker = CircuitBreaker(2, within=10.0, open_for=30.0)
    passage = breaker.enter(ORIGIN, 0.0)
    assert not passage.succeeded()
    assert not any(passage.failed(1.0) for _ in range(5))
    assert breaker.state(ORIGIN) is CLOSED
    assert [breaker.failed(ORIGIN, 1.0), breaker.failed(ORIGIN, 2.0)] == [False, True]


def test_the_origins_that_are_remembered_are_bounded() -> None:
    breaker = CircuitBreaker(1)
    for number in range(2 * MAX_ORIGINS):
        breaker.failed(f"wss://{number}.example:443", 0.0)
    assert len(breaker._circuits) == MAX_ORIGINS
    assert breaker.state(f"wss://{2 * MAX_ORIGINS - 1}.example:443") is OPEN


@given(
    st.integers(1, 5),
    st.floats(0.1, 100.0),
    st.floats(0.1, 100.0),
    st.lists(st.tuples(st.floats(0.0, 50.0), st.sampled_from(["succeed", "fail", "give back"])), max_size=80),
)
def test_whoever_waits_as_told_gets_through_and_no_more_fail_in_a_window_than_are_allowed(
    failures: int, within: float, open_for: float, dials: list[tuple[float, str]]
) -> None:
    breaker = CircuitBreaker(failures, within=within, open_for=open_for)
    now = 0.0
    for idle, outcome in dials:
        now += idle
        waited = 0
        while (wait := refused_for(breaker, now)) is not None:
            assert wait > 0.0
            now += wait
            waited += 1
            assert waited <= 3
        passage = breaker.enter(ORIGIN, now)
        match outcome:
            case "succeed":
                passage.succeeded()
                assert breaker.state(ORIGIN) is CLOSED
            case "fail":
                opened = passage.failed(now)
                assert opened == (breaker.state(ORIGIN) is OPEN)
            case _:
                passage.give_back()
        assert breaker.state(ORIGIN) is not HALF_OPEN


def test_every_state_can_be_left() -> None:
    assert set(TRANSITIONS) == set(CircuitState)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize(
    "options", [{"failures": 0}, {"failures": 1.5}, {"within": 0.0}, {"open_for": -1.0}, {"within": "1"}]
)
def test_a_breaker_refuses_nonsense(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CircuitBreaker(**options)  # type: ignore[arg-type]
