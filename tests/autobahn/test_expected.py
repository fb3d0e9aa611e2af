"""What is agreed on about the Autobahn suite's cases is complete, and the comparison with it can fail."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.autobahn.run import EXPECTED, Expectation, Verdict, differences, unreasoned, unused_reasons
else:  # it is a program, in a folder that is no package
    spec = spec_from_file_location("autobahn_run", Path(__file__).with_name("run.py"))
    sys.modules[spec.name] = run = module_from_spec(spec)
    spec.loader.exec_module(run)
    EXPECTED, Expectation, Verdict = run.EXPECTED, run.Expectation, run.Verdict
    differences, unreasoned, unused_reasons = run.differences, run.unreasoned, run.unused_reasons

FILES = sorted(EXPECTED.glob("*.json"))
OK, STRICT_NOT, UNCLEAN = Verdict("OK", "OK"), Verdict("NON-STRICT", "OK"), Verdict("OK", "UNCLEAN")
AGREED = Expectation({"1.1.1": OK, "3.2": STRICT_NOT, "12.1.18": OK}, {"3.*": "a race"})


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_case_is_agreed_on_and_what_is_not_plainly_right_has_a_reason(path: Path) -> None:
    expected = Expectation.read(path)
    assert len(expected.cases) == 517
    assert [*unreasoned(expected)] == []
    assert [*unused_reasons(expected)] == []
    bad = {"FAILED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT"}
    assert not [case for case, verdict in expected.cases.items() if {verdict.behavior, verdict.close} & bad]


def test_there_is_something_to_check() -> None:
    assert {path.stem for path in FILES} == {"trio-websocket", "wire", "wire-compression"}


def test_what_is_written_down_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "agreed.json"
    AGREED.write(path)
    assert Expectation.read(path) == AGREED


@pytest.mark.parametrize(
    ("found", "only", "lines"),
    [
        ({"1.1.1": OK, "3.2": STRICT_NOT, "12.1.18": OK}, "", []),
        ({"1.1.1": OK, "3.2": OK, "12.1.18": OK}, "", []),  # a race that was won
        ({"1.1.1": UNCLEAN, "3.2": OK, "12.1.18": OK}, "", ["1.1.1: OK, close UNCLEAN; expected OK"]),
        ({"1.1.1": OK, "3.2": OK}, "1.1.1 3.2 3.3", []),
        ({"1.1.1": OK, "3.2": OK}, "", ["12.1.18: missing from the report; expected OK"]),
        ({"1.1.1": OK, "3.2": OK, "3.3": OK}, "1.1.1 3.2 3.3", ["3.3: OK, and nothing is agreed on"]),
    ],
)
def test_a_case_that_is_worse_missing_or_unknown_is_named(
    found: dict[str, Verdict], only: str, lines: list[str]
) -> None:
    assert [*differences(found, AGREED, {}, chosen=lambda case: not only or case in only)] == lines


def test_a_failure_on_our_own_side_is_named_whatever_the_server_says() -> None:
    found = dict.fromkeys(AGREED.cases, OK)
    assert [*differences(found, AGREED, {"3.2": "TooSlowError"})] == ["3.2: TooSlowError"]
