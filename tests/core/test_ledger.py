"""Which answer belongs to which question, where no id tells it."""

from __future__ import annotations

from trio_nova.core.ledger import LATEST, MAX_LATE_MATCHERS, Late, Ledger, Pending


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
    assert not ledger.expects


def test_a_matcher_that_was_given_up_is_remembered_for_a_while_and_on_its_link_only() -> None:
    ledger = Ledger()
    given_up(ledger, "a", now=5.0)
    given_up(ledger, "b", now=6.0)
    assert ledger.match("a", None, 5.0 + LATEST) is None
    assert ledger.match("b", None, 5.0 + LATEST) == Late()
    given_up(ledger, "a", now=100.0)
    ledger.link_lost()
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
