"""The benchmarks measure right: what they are made of is tested here, quickly; no figure is."""

from __future__ import annotations

import zlib

import attrs
import pytest

from tests.bench import frames, report
from tests.bench.contenders.table import CONTENDERS
from tests.bench.frames import TEXT, Script
from tests.bench.job import Job, Lap
from tests.bench.plan import CELLS, GOALS, LIMIT, OURS, Goal
from tests.bench.report import beyond_limit, page
from tests.bench.results import Outcome, Results, Spread, is_met
from tests.bench.run import Client, disagreement, open_bench

RECEIVE, ECHO, CONNECT = CELLS["receive-200"], CELLS["echo"], CELLS["connect"]
GOOD = Lap(seconds=2.0, cpu=1.0, count=10, size=2000, last=7, checksum=9)
REPORT = {"count": 10, "size": 2000, "last": 7}


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_masked_frame_is_read_as_it_was_made(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    wire = frames.frame(TEXT, payload, mask=b"\x01\x80\xff\x00")
    assert len(wire) == frames.masked_length(size)
    received = frames.parse(b"??" + wire + b"more", 2)
    assert received is not None
    assert (received.opcode, received.payload, received.end) == (TEXT, payload, 2 + len(wire))
    assert frames.parse(wire[:-1]) is None


def test_a_frame_that_is_not_masked_is_no_clients() -> None:
    with pytest.raises(ValueError, match="not masked"):
        frames.parse(frames.frame(TEXT, b"hello"))


def test_a_compressed_frame_is_inflated() -> None:
    text = b"the same again, the same again" * 9
    squeezed = frames.deflate(text)
    assert len(squeezed) < len(text)
    received = frames.parse(frames.frame(TEXT, squeezed, mask=b"abcd", compressed=True))
    assert received is not None
    assert received.payload == text


@pytest.mark.parametrize("size", [16, 200, 4096])
def test_the_texts_of_a_flood_have_the_size_that_was_asked_for_and_differ(size: int) -> None:
    texts = frames.plain_texts(size, 50)
    assert {len(text) for text in texts} == {size}
    assert len(set(texts)) == 50


def test_the_trades_of_a_flood_take_the_channels_in_turn() -> None:
    texts = frames.json_texts(200, 6, channels=3)
    assert {len(text) for text in texts} == {200}
    assert [b"ch.00002" in text for text in texts] == [False, False, True] * 2


def test_a_script_knows_what_a_flood_of_any_length_holds() -> None:
    script = Script.of([b"one", b"three", b"four"])
    assert script.bytes_of(5) == 3 + 5 + 4 + 3 + 5
    assert script.last(5) == zlib.crc32(b"three")
    assert script.checksum(5) == zlib.crc32(b"onethreefouronethree")
    assert script.wire[: script.ends[1]] == b"\x81\x03one\x81\x05three"


def test_a_result_that_both_sides_tell_alike_is_believed() -> None:
    assert disagreement(RECEIVE, 10, GOOD, REPORT, 9) == ""
    assert disagreement(CONNECT, 10, GOOD, {"opened": 10, "closed": 10}, None) == ""


@pytest.mark.parametrize(
    ("lap", "report", "complaint"),
    [
        (attrs.evolve(GOOD, count=9), REPORT, "it did 9 of 10"),
        (GOOD, {**REPORT, "count": 9}, "the server counted 9 of 10"),
        (GOOD, {}, "the server counted 0 of 10"),
        (attrs.evolve(GOOD, size=1999), REPORT, "1999 bytes here"),
        (attrs.evolve(GOOD, size=1999), {**REPORT, "size": 1999}, "2000 asked for"),
        (attrs.evolve(GOOD, last=8), REPORT, "the last message"),
        (attrs.evolve(GOOD, checksum=8), REPORT, "not what was sent"),
        (attrs.evolve(GOOD, checksum=None), REPORT, "not what was sent"),
    ],
)
def test_a_result_that_the_sides_tell_differently_is_a_failure(
    lap: Lap, report: dict[str, int], complaint: str
) -> None:
    assert complaint in disagreement(RECEIVE, 10, lap, report, 9)


def test_connections_that_the_server_did_not_see_are_a_failure() -> None:
    assert "saw 9 of 10" in disagreement(CONNECT, 10, GOOD, {"opened": 9}, None)
    assert "goodbye of 9 of 10" in disagreement(CONNECT, 10, GOOD, {"opened": 10, "closed": 9}, None)


def outcome(*rates: float) -> Outcome:
    return Outcome.of(RECEIVE, [attrs.evolve(GOOD, count=10, seconds=10 / rate) for rate in rates])


def results(**outcomes: Outcome) -> Results:
    return Results(
        date="2000-01-01",
        machine={},
        versions={},
        rounds=3,
        seconds=0.1,
        quick=True,
        cells={"receive-200": {name.replace("_trio", ".trio"): made for name, made in outcomes.items()}},
    )


def test_a_ratio_is_made_of_laps_of_the_same_round() -> None:
    made = results(ours=outcome(2, 40, 9), theirs=outcome(1, 10, 3))
    assert made.ratio("receive-200", "rate", "ours", "theirs") == Spread(3, 2, 4)


def test_one_failed_lap_leaves_no_figure_and_no_ratio() -> None:
    failed = Outcome.of(RECEIVE, [GOOD, attrs.evolve(GOOD, failure="it did 9 of 10")])
    made = results(ours=outcome(2, 40, 9), theirs=failed)
    assert failed.values == {}
    assert made.ratio("receive-200", "rate", "ours", "theirs") is None
    assert made.ratio("receive-200", "rate", "theirs", "ours") is None


def test_a_goal_without_a_result_is_not_met_and_the_page_says_why() -> None:
    failed = Outcome.of(RECEIVE, [attrs.evolve(GOOD, failure="it did 9 of 10")])
    made = results(trio_nova=outcome(2, 40, 9), websockets_trio=failed)
    assert (
        made.reached(Goal(cell="receive-200", metric="rate", bound=5, at_least=True, than="websockets.trio"), OURS)
        is None
    )
    lines = page(made)
    assert "| websockets.trio | failed: it did 9 of 10 |  |  |" in lines
    assert "| receive-200 rate >= 5 x websockets.trio |  | no result |" in lines


def test_a_client_as_fast_as_the_stream_alone_is_pointed_out() -> None:
    made = attrs.evolve(
        results(),
        cells={"receive-200": {"slow": outcome(5, 5, 5), "fast": outcome(9, 11, 10), LIMIT: outcome(9, 10, 11)}},
    )
    assert beyond_limit(made, RECEIVE) == ["fast"]


@pytest.mark.parametrize(
    ("at_least", "reached", "met"), [(True, 5, True), (True, 4.9, False), (False, 5, True), (False, 5.1, False)]
)
def test_a_goal_is_met_by_the_median_at_its_bound(at_least: bool, reached: float, met: bool) -> None:
    goal = Goal(cell="receive-200", metric="rate", bound=5, at_least=at_least)
    assert is_met(goal, Spread(reached, 0, 100)) is met


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_each_goal_is_about_what_is_measured(goal: Goal) -> None:
    cell = CELLS[goal.cell]
    assert goal.metric in {metric.name for metric in cell.metrics}
    assert OURS in cell.contenders
    if goal.than:
        assert goal.than in cell.contenders
    if goal.than_cell:
        assert CELLS[goal.than_cell].together == cell.together != ""


def test_each_cell_is_measured_with_clients_that_there_are() -> None:
    assert {name for cell in CELLS.values() for name in cell.contenders} == set(CONTENDERS)


def test_the_page_is_drawn_from_the_results_of_a_whole_run() -> None:
    results = Results.read(report.RESULTS)
    assert not results.quick
    assert set(results.cells) == set(CELLS)
    assert "\n".join(page(results)) + "\n" == report.PAGE.read_text("utf-8"), "nox -s bench -- --redraw"


async def test_a_whole_run_gives_figures_that_server_and_clients_agree_on() -> None:
    cells = [
        attrs.evolve(CELLS[name], contenders=(OURS, "raw Trio stream"), first_count=20)
        for name in ("receive-200", "echo", "send", "tls-200")
    ]
    told: list[str] = []
    async with open_bench([OURS, "raw Trio stream"], rounds=2, seconds=0.002, quick=True, tell=told.append) as bench:
        laps = await bench.measure(cells)
    for cell in cells:
        for name in cell.contenders:
            made = Outcome.of(cell, laps[cell.name][name])
            assert made.failure == ""
            assert all(len(values) == 2 * cell.varies and min(values) > 0 for values in made.values.values())
    # Clients take turns within each round.
    rounds = [line for line in told if line.startswith("echo: round")]
    assert [line.rpartition(" ")[0] for line in rounds] == [
        f"echo: round {number} of 4, {name}".rpartition(" ")[0]
        for number in (1, 2, 3, 4)
        for name in (OURS, "raw Trio stream")
    ]


async def test_a_client_whose_process_ends_has_no_result_but_its_last_words() -> None:
    client = Client("no such client", None)
    lap = await client.do(Job(workload="receive", run="r1", url="ws://127.0.0.1:1/", count=1))
    await client.stop()
    assert "KeyError: 'no such client'" in lap.failure
