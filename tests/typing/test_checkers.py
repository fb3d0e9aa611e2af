"""What type checkers make of programs that use the library: mypy and pyright, each as strict as it can be."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = sorted([*HERE.glob("ok_*.py"), *HERE.glob("refused_*.py")])

Place: TypeAlias = tuple[str, int]
"""The name of a file, and the number of a line."""

MARK = re.compile(r"# error: (.+)$")
MYPY_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)


def run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments, *map(str, PROGRAMS)]
    quietly = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # of newer versions, between what it finds
    ran = subprocess.run(command, cwd=ROOT, env=quietly, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}"  # 1: there are errors; 2: it failed
    return ran.stdout


def errors_of_mypy() -> dict[Place, str]:
    found: dict[Place, str] = {}
    for error in MYPY_ERROR.finditer(run("mypy", "--hide-error-context", "--no-pretty")):
        place = (Path(error["file"]).name, int(error["line"]))
        found[place] = f"{found.get(place, '')}{error['text']}\n"
    return found


def errors_of_pyright() -> dict[Place, str]:
    found: dict[Place, str] = {}
    output = run("pyright", "--outputjson", "--pythonpath", sys.executable)
    for each in json.loads(output)["generalDiagnostics"]:
        if each["severity"] == "error":
            place = (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
            found[place] = f"{found.get(place, '')}{each['message']}\n"
    return found


def marks() -> dict[Place, str]:
    return {
        (path.name, number): mark[1]
        for path in PROGRAMS
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (mark := MARK.search(line))
    }


@pytest.mark.parametrize(("checker", "errors_of"), [("mypy", errors_of_mypy), ("pyright", errors_of_pyright)])
def test_a_checker_refuses_what_is_wrong_and_nothing_else(
    checker: str, errors_of: Callable[[], dict[Place, str]]
) -> None:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed: it comes with the extra dev")
    expected, found = marks(), errors_of()
    assert {place: text for place, text in found.items() if place not in expected} == {}
    assert sorted(expected.keys() - found.keys()) == []
    assert {place: found[place] for place, word in expected.items() if word not in found[place]} == {}
