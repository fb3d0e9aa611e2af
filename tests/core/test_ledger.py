"""Which answer belongs to which question."""

from __future__ import annotations

from itertools import count

import pytest

from trio_nova.core.ledger import LATEST, MAX_LATE_MATCHERS, Late, Ledger, Pending, identity
from trio_nova.errors import NotSent


def asks_under(*ids: object) -> Pending:
    return Pending(ids=tuple(identity(id) for id in ids))


def asks_for(text: str) -> Pending:
    return Pending(matches=lambda message: bool(message == text))


def given_up(ledger: Ledger, *texts: str, now: float = 0.0) -> None:
    for text in texts:
        pending = asks_for(text)
        ledger.open(pending, 0.0)
        ledger.give_up(pending, now, sent=True)


def test_a_matcher_that_was_given_up_takes_one_answer_and_then_the_next_has_its_own() -> None:
    ledger, newer = Ledger(), asks_for("a")
    given_up(ledger, "a")
    ledger.open(newer, 0.0)
    assert ledger.match("b", None, 1.0) is None
    assert ledger.match("a", None, 1.0) == Late()
    assert ledger.match("a", None, 1.0) is newer
    assert ledger.match("a", None, 1.0) is None
    assert len(ledger) == 0


def test_a_matcher_that_was_given_up_is_remembered_for_a_while_and_on_its_link_only() -> None:
    ledger = Ledger()
    given_up(ledger, "a", now=5.0)
    given_up(ledger, "b", now=6.0)
    assert ledger.match("a", None, 5.0 + LATEST) is None
    assert ledger.match("b", None, 5.0 + LATEST) == Late()
    given_up(ledger, "a", now=100.0)
    assert ledger.end() == []
    assert ledger.match("a", None, 100.0) is None
    assert len(ledger) == 0


def test_the_oldest_of_too_many_matchers_that_were_given_up_is_forgotten() -> None:
    ledger = Ledger()
    given_up(ledger, *map(str, range(MAX_LATE_MATCHERS + 1)))
    assert len(ledger) == MAX_LATE_MATCHERS
    assert ledger.match("0", None, 0.0) is None
    assert ledger.match("1", None, 0.0) == Late()


def test_a_matcher_whose_question_never_left_is_forgotten_at_once() -> None:
    ledger, pending = Ledger(), asks_for("a")
    ledger.open(pending, 0.0)
    ledger.give_up(pending, 0.0, sent=False)
    assert ledger.match("a", None, 0.0) is None
    assert len(ledger) == 0


def test_an_answer_settles_the_question_of_its_id_once_under_any_of_its_forms() -> None:
    ledger, pending = Ledger(), asks_under(1, "1")
    ledger.open(pending, 0.0)
    assert ledger.match("a", 1.0, 1.0) is None  # 1 and 1.0 are two ids
    assert ledger.match("a", "1", 1.0) is pending
    assert not ledger.awaits(1, 1.0)
    assert ledger.match("a", 1, 1.0) is None


def test_an_id_of_a_question_that_was_given_up_cannot_be_used_before_its_answer_is_not_expected_any_more() -> None:
    ledger, old = Ledger(), asks_under(1)
    ledger.open(old, 0.0)
    with pytest.raises(NotSent, match="under way already"):
        ledger.open(asks_under(1), 0.0)
    ledger.give_up(old, 0.0, sent=True)
    with pytest.raises(NotSent, match="in 59 s"):
        ledger.open(asks_under(1), 1.0)
    newer = asks_under(1)
    ledger.open(newer, LATEST)
    assert ledger.match("a", 1, LATEST) is newer


def test_ids_are_those_of_the_iterator_but_for_any_that_is_in_use() -> None:
    ids = count(5)
    first, second = Ledger(ids), Ledger(ids)
    first.open(asks_under(6), 0.0)
    assert [first.allot(), second.allot(), first.allot()] == [5, 6, 7]
    first.open(asks_under(8, 9), 0.0)
    assert (first.allot(), second.allot()) == (10, 11)


def test_the_end_of_a_link_names_each_question_that_somebody_waits_for_once_and_forgets_all() -> None:
    ledger = Ledger()
    by_id, matched, in_order = asks_under(1, "1"), asks_for("a"), Pending()
    for pending in (in_order, matched, by_id):
        ledger.open(pending, 0.0)
    for pending in (asks_under(2), asks_for("b"), Pending()):
        ledger.open(pending, 0.0)
        ledger.give_up(pending, 0.0, sent=True)
    assert ledger.end() == [by_id, matched, in_order]
    assert (len(ledger), ledger.awaited, ledger.end()) == (0, [], [])
    for id in (1, None):
        assert ledger.match("a", id, 0.0) is None


def test_what_is_given_up_after_the_end_leaves_no_trace() -> None:
    ledger = Ledger()
    questions = [asks_under(1), asks_for("a"), Pending()]
    for pending in questions:
        ledger.open(pending, 0.0)
    for pending in ledger.end():
        ledger.give_up(pending, 0.0, sent=True)
    assert len(ledger) == 0
    ledger.open(asks_under(1), 0.0)
