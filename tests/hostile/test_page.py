"""docs/hostile-peers.md: what peers do wrong, what is promised then, and the tests that prove it.

A test that proves a row of `rows.toml` is marked with it, wherever the test is::

    @pytest.mark.fault("F12", where="socket")
    async def test_a_reset_amid_the_status_line_fails_at_once() -> None: ...

Several rows may stand in one mark: `fault("F49", "F50", where="memory")`. `where` is one of

* "memory": streams in memory, mostly in virtual time;
* "socket": real sockets of this machine;
* "simulator": a whole network in virtual time, with faults drawn from a seed.

To add a row, write it into `rows.toml`; while no test proves it, with `missing = "why"`. Then draw the
page anew, which one of the tests below asks for::

    python tests/hostile/test_page.py

Marks are read from the sources, so neither the page nor its tests run, or import, anything else. What
became of the tests is kept in `results.json` by the runs that prove everything::

    nox -s tests -- --record-faults tests
    nox -s sockets -- --record-faults sockets
    nox -s soak -- --record-faults soak
"""

from __future__ import annotations

import ast
import functools
import json
import tomllib
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

TESTS = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("rows.toml")
RESULTS = Path(__file__).with_name("results.json")
PAGE = TESTS.parent / "docs" / "hostile-peers.md"
PLACES = ("memory", "socket", "simulator")

HEAD = """\
# Hostile peers

What a server, a proxy, a name server or the network can do to a session, what is promised then, and the tests that
prove it. Tests run in *memory* (streams in memory, mostly in virtual time), over a *socket* of this machine, or in a
*simulator* of a whole network. Those that connect in memory are run once more over pairs of sockets, still in virtual
time: then the system's calls and buffers are what the session stands on, and their rows say *socket* too. Rows that say
*memory* only are about what has no connection, or not yet a WebSocket, or about streams that do what no socket does.

This page is drawn from `tests/hostile/rows.toml`, the marks of the tests, and what became of these when all of them
were last run for it: `python tests/hostile/test_page.py`. A result is the number of cases, as most tests have several.
"""


@attrs.frozen
class Row:
    """One thing that a peer does wrong."""

    name: str
    peer: str
    promise: str
    missing: str | None = None
    """Why no test proves it."""


@attrs.frozen
class Mark:
    """A test that says it proves a row."""

    row: str
    where: str
    file: str
    """Relative to the project's folder, with slashes."""
    test: str


def read_table() -> Mapping[str, Sequence[Row]]:
    """Return the rows of `rows.toml` by the titles of their groups."""
    groups = tomllib.loads(TABLE.read_text("utf-8"))["groups"]
    return {group["title"]: [Row(name, **fields) for name, fields in group["rows"].items()] for group in groups}


@functools.cache
def read_marks() -> list[Mark]:
    """Return the marks of all tests, in the order of their files and lines."""
    return [
        mark
        for path in sorted(TESTS.rglob("test_*.py"))
        for mark in marks_of(path.read_text("utf-8"), path.relative_to(TESTS.parent).as_posix())
    ]


def marks_of(source: str, file: str) -> Iterator[Mark]:
    """Yield the marks of one module's tests; those of single parameters count as the test's."""
    if "mark.fault(" not in source:
        return
    for function in ast.walk(ast.parse(source, file)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in (node for each in function.decorator_list for node in ast.walk(each)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault":
                    (where,) = (ast.literal_eval(keyword.value) for keyword in call.keywords)
                    yield from (Mark(ast.literal_eval(row), where, file, function.name) for row in call.args)


def read_results() -> Mapping[str, Counter[str]]:
    """Return, for each row, how many of the cases that prove it had which outcome."""
    found: dict[str, Counter[str]] = {}
    for run in json.loads(RESULTS.read_text("utf-8")).values():
        for row, outcomes in run["rows"].items():
            found.setdefault(row, Counter()).update(outcomes)
    return found


def read_rows_over_sockets() -> Container[str]:
    """Return the rows for which a test that runs in memory has passed over sockets."""
    return {
        row
        for row, outcomes in json.loads(RESULTS.read_text("utf-8"))["sockets"]["rows"].items()
        if "passed" in outcomes
    }


def when_run() -> str:
    """Return when, and on what, the results were had."""
    runs = json.loads(RESULTS.read_text("utf-8"))
    return "Results: " + "; ".join(f"`nox -s {name}` on {run['date']}, {run['on']}" for name, run in runs.items()) + "."


def draw() -> str:
    """Return the text of the page."""
    groups, marks, results, over_sockets = read_table(), read_marks(), read_results(), read_rows_over_sockets()
    lines = [HEAD, when_run(), ""]
    heads = ["", "The peer", "What is promised", "Runs in", "Result", "Proved by"]
    for title, rows in groups.items():
        lines += [f"## {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in rows:
            proofs = list(dict.fromkeys(mark for mark in marks if mark.row == row.name))
            where = {mark.where for mark in proofs} | ({"socket"} if row.name in over_sockets else set())
            places = ", ".join(place for place in PLACES if place in where)
            names = dict.fromkeys((mark.file, mark.test) for mark in proofs)
            tests = "<br>".join(f"[`{file}::{test}`](../{file})" for file, test in names)
            proved = tests if row.missing is None else f"*nothing yet: {row.missing}*"
            outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(results[row.name].items()))
            lines.append(f"| {row.name} | {row.peer} | {row.promise} | {places} | {outcomes} | {proved} |")
        lines.append("")
    return "\n".join(lines)


# ------------------------------------------------------------------- the tests


def test_the_page_is_up_to_date() -> None:
    assert draw() == PAGE.read_text("utf-8"), "run: python tests/hostile/test_page.py"


def test_every_row_was_proved_when_its_tests_were_last_run_for_the_page() -> None:
    results = read_results()
    rows = [row.name for group in read_table().values() for row in group]
    assert [row for row in rows if results[row]["passed"] == 0 or results[row]["failed"] > 0] == []


def test_every_row_is_proved_or_says_why_it_is_not() -> None:
    proved = {mark.row for mark in read_marks()}
    rows = [row for group in read_table().values() for row in group]
    assert [row.name for row in rows if row.name not in proved and row.missing is None] == []
    assert [row.name for row in rows if row.name in proved and row.missing is not None] == []


def test_every_mark_names_a_row_and_a_place_that_exist() -> None:
    names = {row.name for group in read_table().values() for row in group}
    assert [mark for mark in read_marks() if mark.row not in names or mark.where not in PLACES] == []


def test_rows_are_numbered_without_a_hole() -> None:
    names = [row.name for group in read_table().values() for row in group]
    assert names == [f"F{number}" for number in range(1, 126)]


def test_marks_are_found_on_functions_and_on_single_parameters() -> None:
    source = """
@pytest.mark.fault("F1", "F2", where="socket")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.fault("F3", where="memory"))])
async def test_something(n): ...
"""
    assert [*marks_of(source, "tests/test_x.py")] == [
        Mark("F1", "socket", "tests/test_x.py", "test_something"),
        Mark("F2", "socket", "tests/test_x.py", "test_something"),
        Mark("F3", "memory", "tests/test_x.py", "test_something"),
    ]


if __name__ == "__main__":
    PAGE.write_text(draw(), "utf-8")
