"""What was given up on a link: remembered for a while, within bounds, and given back once."""

from __future__ import annotations

from trio_nova.core.partings import MAX_CHANNELS, MAX_GIVEN_BACK, MAX_NAMES, UNDER_WAY, Partings


def test_surplus_is_given_back_once() -> None:
    partings = Partings()
    assert partings.give_back("0x1")
    assert not partings.give_back("0x1")
    assert partings.surplus.pop(0) == "0x1"
    assert not partings.give_back("0x1")  # its data may still come


def test_what_was_given_up_is_no_surplus() -> None:
    partings = Partings()
    partings.gave_up("heads", "0x1", 0.0)
    assert not partings.give_back("0x1")
    assert not partings.was_surplus("0x1")


def test_a_name_that_is_told_after_it_was_given_back_is_known_once() -> None:
    partings = Partings()
    partings.give_back("0x1")
    assert partings.was_surplus("0x1")
    assert not partings.was_surplus("0x1")


def test_a_service_that_makes_names_up_is_left_alone() -> None:
    partings = Partings()
    assert [partings.give_back(number) for number in range(MAX_GIVEN_BACK + 10)].count(True) == MAX_GIVEN_BACK
    assert len(partings.surplus) == MAX_GIVEN_BACK


def test_channels_are_remembered_for_as_long_as_something_may_be_under_way() -> None:
    partings = Partings()
    assert not partings.may_be_from_before("a", 0.0)
    partings.gave_up("a", None, 0.0)
    assert partings.may_be_from_before("a", UNDER_WAY - 1)
    assert not partings.may_be_from_before("a", UNDER_WAY)
    partings.gave_up("a", None, 100.0)
    assert partings.may_be_from_before("a", 101.0)


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    partings = Partings()
    partings.gave_up("first", None, 0.0)
    for number in range(2 * MAX_CHANNELS):
        partings.gave_up(number, None, 0.0)
        partings.gave_up("first", None, 0.0)
    assert partings.may_be_from_before("first", 1.0)
    assert sum(partings.may_be_from_before(number, 1.0) for number in range(2 * MAX_CHANNELS)) == MAX_CHANNELS - 1
    for number in range(2 * MAX_NAMES):
        partings.gave_up("any", f"name {number}", 0.0)
    assert partings.give_back("name 0")
    assert not partings.give_back(f"name {2 * MAX_NAMES - 1}")
