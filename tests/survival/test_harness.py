"""The benchmark of survival judges right: what it is made of is tested here, quickly; no figure is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from tests.survival import report
from tests.survival.clients.table import CLIENTS, OURS
from tests.survival.diary import Diary, Heard, Left, Sent, Told
from tests.survival.judge import Account, NoResult, judge
from tests.survival.plan import SITUATIONS, TO_BE_SLOW_IN
from tests.survival.results import Results, dials_per_minute, dials_per_minute_alive
from tests.survival.run import Certificate, Lap, Survival
from tests.survival.service import Link, Service, Visit

RESET, SLOW = SITUATIONS["rst"], TO_BE_SLOW_IN["slow-small"]


def service(*, struck: float = 5.5, reachable: float = 7.5, messages: int = 20, links: int = 2, **more: Any) -> Service:
    """Return a service that made a message each second from 1 on, on as many links."""
    visit = cast("Visit", None)  # never used
    return Service(
        produced=[float(number) for number in range(1, messages + 1)],
        links=[Link(number, 0.0, visit) for number in range(1, links + 1)],
        struck_at=struck,
        struck_link=1,
        reachable_at=reachable,
        **more,
    )


def heard(*numbers: int, link: int = 1) -> list[Heard]:
    return [Heard(number + 0.1, number, link) for number in numbers]


WHOLE = Diary(heard=[*heard(1, 2, 3, 4, 5), *heard(8, 9, 10, link=2)], told=[Told(6.0, "gone")])


def account(diary: Diary, made: Service | None = None, ended_at: float = 11.0, left: Left | None = None) -> Account:
    return judge(RESET, service() if made is None else made, diary, left, ended_at)


def test_recovery_is_from_when_a_dial_would_be_served_to_the_first_message_of_a_new_link() -> None:
    assert account(WHOLE).recovery == pytest.approx(8.1 - 7.5)


def test_a_late_message_of_the_old_link_is_no_recovery() -> None:
    assert account(attrs.evolve(WHOLE, heard=heard(1, 2, 3, 4, 5, 8, 9, 10))).recovery is None


def test_a_hole_after_a_notice_is_missed_but_told() -> None:
    found = account(WHOLE)
    assert (found.missed, found.missed_untold, found.twice) == (2, 0, 0)


def test_a_hole_without_a_notice_is_untold() -> None:
    found = account(attrs.evolve(WHOLE, told=[]))
    assert (found.missed, found.missed_untold) == (2, 2)


def test_a_notice_that_comes_after_the_hole_is_too_late_for_it() -> None:
    assert account(attrs.evolve(WHOLE, told=[Told(8.2, "gone")])).missed_untold == 2


def test_each_hole_needs_a_notice_of_its_own() -> None:
    holes = [*heard(1, 2, 3, 4, 5), *heard(8, 10, link=2)]
    assert account(attrs.evolve(WHOLE, heard=holes)).missed_untold == 1
    told = [Told(6.0, "gone"), Told(6.5, "gone again")]
    assert account(attrs.evolve(WHOLE, heard=holes, told=told)).missed_untold == 0


def test_what_is_missing_at_the_end_is_a_hole_but_for_what_is_under_way_and_what_a_slow_consumer_has_not_come_to() -> (
    None
):
    silent = Diary(heard=heard(1, 2, 3, 4, 5))
    assert account(silent, ended_at=10.4).missed_untold == 4
    assert account(silent, ended_at=10.6).missed_untold == 5
    assert judge(SLOW, service(), silent, None, 10.6).missed == 0


def test_a_message_that_comes_again_is_counted() -> None:
    assert account(attrs.evolve(WHOLE, heard=[*WHOLE.heard, *heard(10, 10, link=2)])).twice == 2


def test_a_send_that_returned_and_never_arrived_is_lost_and_untold_where_no_notice_followed() -> None:
    sent = [Sent(5.0, 1), Sent(5.4, 2), Sent(9.0, 3), Sent(10.9, 4)]
    found = account(attrs.evolve(WHOLE, sent=sent), service(received=[1]))
    assert (found.unsent, found.unsent_untold) == (2, 1)


def test_dials_count_while_the_service_is_down() -> None:
    found = account(WHOLE, service(dials=[1.0, 5.5, 6.0, 7.4, 7.5, 9.0]))
    assert (found.dials, found.outage) == (3, 2.0)
    assert dials_per_minute(found) == 90
    assert dials_per_minute_alive(attrs.evolve(found, death="ValueError")) is None


def test_a_goodbye_counts_if_it_was_said_on_leaving() -> None:
    left = Left(seconds=0.5)
    assert account(WHOLE, service(goodbyes=[6.0, 11.2]), left=left).goodbye
    found = account(WHOLE, service(goodbyes=[6.0]), left=left)
    assert (found.goodbye, found.leave) == (False, 0.5)


@pytest.mark.parametrize(
    ("diary", "made", "complaint"),
    [
        (WHOLE, service(lateness=1.0), "too busy"),
        (WHOLE, service(breaches=["not masked"]), "not masked"),
        (Diary(heard=heard(8, 9)), service(), "no message reached"),
        (attrs.evolve(WHOLE, told=[Told(2.0, "gone")]), service(), "lost its link before"),
        (attrs.evolve(WHOLE, heard=[*WHOLE.heard, *heard(21)]), service(), "never sent"),
        (attrs.evolve(WHOLE, heard=[*WHOLE.heard, *heard(11, link=3)]), service(), "never sent"),
        (attrs.evolve(WHOLE, heard=[*WHOLE.heard, Heard(10.5, 11, 2)]), service(), "before it was sent"),
        (attrs.evolve(WHOLE, heard=[*WHOLE.heard, Heard(10.5, 9, 2)]), service(), "came after"),
    ],
)
def test_a_story_that_cannot_be_true_is_no_result(diary: Diary, made: Service, complaint: str) -> None:
    with pytest.raises(NoResult, match=complaint):
        account(diary, made)


def results(*accounts: Account) -> Results:
    return Results(
        date="2000-01-01",
        machine={},
        versions={OURS: {}},
        seed=1,
        rounds=len(accounts),
        seconds=1.0,
        repeated=0,
        laps={"rst": {OURS: accounts}},
    )


def test_the_page_says_who_did_not_come_back_and_whose_loop_ended() -> None:
    lines = report.page(results(Account(recovery=0.5), Account(), Account(death="ValueError: no")))
    (row, *_) = (line for line in lines if line.startswith("| reset |"))
    assert "0.50 s (0.50 - 0.50), **loop ended** in 1 of 3: `ValueError`, **not within 15 s** in 1 of 3" in row


def test_the_page_is_what_the_results_say() -> None:
    root = Path(__file__).parents[2]
    kept = Results.read(root / report.RESULTS)
    assert "\n".join(report.page(kept)) + "\n" == (root / report.PAGE).read_text("utf-8")
    assert kept.laps.keys() == SITUATIONS.keys()


def test_a_lap_that_failed_is_found() -> None:
    failed = Lap(failure="it did not start")
    assert Survival.failures({"rst": {OURS: [Lap(account=Account()), failed]}}) == [("rst", OURS, failed)]


async def test_a_whole_lap_gives_an_account(tmp_path: Path) -> None:
    survival = Survival(1, Certificate.make(tmp_path), lambda _: None, warm_up=0.2, settle=0.1)
    laps = await survival.measure([RESET], [OURS], 1)
    (lap,) = laps["rst"][OURS]
    assert lap.failure == ""
    assert lap.account is not None
    assert lap.account.recovery is not None
    assert (lap.account.links, lap.account.missed_untold, lap.account.goodbye, lap.account.death) == (2, 0, True, "")


async def test_a_client_that_cannot_start_gives_no_comparison(tmp_path: Path) -> None:
    survival = Survival(1, Certificate.make(tmp_path), lambda _: None)
    laps = await survival.measure([RESET], ["no such client"], 1)
    ((_, _, lap),) = survival.failures(laps)
    assert "KeyError: 'no such client'" in lap.failure
    assert survival.repeated == 1


def test_each_client_has_a_loop() -> None:
    folder = Path(__file__).parent / "clients"
    assert all((folder / f"{module}.py").exists() for module in CLIENTS.values())
