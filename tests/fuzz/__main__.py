"""Fuzz with libFuzzer: `python -m tests.fuzz --seconds 60`, or `nox -s fuzz`, for a minute in all.

Each target runs in a process of its own, guided by which branches its inputs reach, from its folder of
`corpus`. What it finds is written below `--found`: put such a file into the corpus with the fix, where
the quick tests run it ever after. `--grow` merges into the corpus what reached branches that nothing in
it reaches.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

CORPUS = Path(__file__).with_name("corpus")
LONGEST = 4096
"""Bytes of an input."""
TOO_SLOW = 10
"""Seconds that one input may take, instrumented as it all is."""


@attrs.frozen
class Report:
    """What came of fuzzing one target."""

    target: str
    executions: int
    found: Sequence[Path]
    failed: bool
    said: str


def fuzz_here(target: str, options: Sequence[str]) -> None:
    """Fuzz in this process, which ends with it."""
    atheris: Any = import_module("atheris")  # only here: the package is needed for nothing else
    with atheris.instrument_imports(include=["trio_nova", "websockets", "tests.links.wire_oracle"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def fuzz(target: str, seconds: int, found: Path, grow: bool) -> Report:
    """Fuzz in a process of its own, and wait for it."""
    known = CORPUS / target
    before = set(found.glob(f"{target}-*"))
    with tempfile.TemporaryDirectory() as fresh:
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={TOO_SLOW}", "-rss_limit_mb=2048"]
        options += [f"-artifact_prefix={found}/{target}-", "-print_final_stats=1", fresh, str(known)]
        run = _run(target, options)
        if grow:
            known.mkdir(exist_ok=True)
            _run(target, ["-merge=1", "-max_len=300", str(known), fresh])
    executions = re.search(r"number_of_executed_units: (\d+)", run.stderr)
    new = sorted(set(found.glob(f"{target}-*")) - before)
    return Report(target, int(executions[1]) if executions else 0, new, run.returncode != 0, run.stdout + run.stderr)


def _run(target: str, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", "--inside", target, *options]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)


def main() -> int:
    """Fuzz the targets asked for, one after another; return 1 if anything was found."""
    if sys.argv[1:2] == ["--inside"]:
        fuzz_here(sys.argv[2], sys.argv[3:])
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together; default: 60")
    parser.add_argument("--found", type=Path, default=Path(".fuzz"), help="folder for what is found; default: .fuzz")
    parser.add_argument("--grow", action="store_true", help="add to the corpus")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    chosen = asked.targets or list(TARGETS)
    asked.found.mkdir(parents=True, exist_ok=True)
    failed = False
    for target in chosen:
        report = fuzz(target, max(asked.seconds // len(chosen), 1), asked.found, asked.grow)
        print(f"{target:>10}: {report.executions:>10,} executions, {len(report.found)} findings", flush=True)
        if report.failed:
            failed = True
            print(*(line for line in report.said.splitlines() if not line.startswith(("#", "INFO: Instr"))), sep="\n")
            print(*report.found, sep="\n")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
