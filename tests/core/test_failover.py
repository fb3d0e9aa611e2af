from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.failover import Addresses


def test_each_address_is_tried_once_in_a_round_and_the_next_round_begins_with_the_same() -> None:
    addresses = Addresses(3)
    for _ in range(2):
        tried = [addresses.in_use]
        while addresses.failed(0.0, None):
            tried.append(addresses.in_use)
        assert tried == [0, 1, 2]
        assert addresses.in_use == 0


def test_a_single_address_is_never_dialled_at_once() -> None:
    addresses = Addresses(1)
    assert not addresses.failed(0.0, None)
    assert addresses.in_use == 0


def test_the_one_that_served_is_the_first_of_the_next_round() -> None:
    addresses = Addresses(3)
    assert addresses.failed(0.0, None)
    addresses.served()
    tried = [addresses.in_use]
    while addresses.failed(0.0, None):
        tried.append(addresses.in_use)
    assert tried == [1, 2, 0]


def test_who_asked_for_patience_is_left_out_until_it_is_over() -> None:
    addresses = Addresses(2)
    assert addresses.failed(0.0, 30.0)
    assert not addresses.failed(1.0, None)
    assert addresses.in_use == 1  # which may be dialled sooner
    assert addresses.wait(1.0) == 0.0
    assert not addresses.failed(5.0, None)
    assert addresses.failed(31.0, None)
    assert addresses.in_use == 0


def test_where_all_ask_for_patience_the_one_is_next_that_asked_for_the_least() -> None:
    addresses = Addresses(3)
    assert [addresses.failed(0.0, asked) for asked in (30.0, 10.0, 20.0)] == [True, True, False]
    assert addresses.in_use == 1
    assert addresses.wait(4.0) == 6.0


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.none() | st.floats(0.0, 60.0), st.booleans()), max_size=60),
)
def test_no_address_is_dialled_twice_in_a_row_without_a_pause_nor_while_it_wants_to_be_left_alone(
    count: int, steps: list[tuple[float, float | None, bool]]
) -> None:
    addresses, now = Addresses(count), 0.0
    at_once: set[int] = {0}
    alone_until = dict.fromkeys(range(count), 0.0)
    for pause, asked, serves in steps:
        assert 0 <= addresses.in_use < count
        assert now >= alone_until[addresses.in_use]
        if serves:
            addresses.served()
            at_once = {addresses.in_use}
        if asked:
            alone_until[addresses.in_use] = now + asked
        if addresses.failed(now, asked):
            assert addresses.in_use not in at_once
            at_once.add(addresses.in_use)
        else:
            now += max(pause, addresses.wait(now))
            now = max(now, alone_until[addresses.in_use])  # rounding
            at_once = {addresses.in_use}
