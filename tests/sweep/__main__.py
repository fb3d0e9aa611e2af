"""The whole sweep, of many thousand points: `python -m tests.sweep`, or `nox -s sweep`.

Every public awaitable, on every kind of link, over both transports: cancelled at each of its steps; each
call of its stream fails, in four ways; its link is cut at each event, in two ways; and three of these
faults in 200 orders of the tasks. A point is a run in which the fault did come.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import attrs

from tests.sweep.calls import CALLS
from tests.sweep.points import TWINS, lanes_of, orders, points

ORDERED = ("cancel", "break: OSError", "cut: FIN")
"""The faults that are also played in other orders, on the links that are fast."""
COLUMNS = ("cancel", "break", "cut", "order")


@attrs.frozen
class Job:
    """One call on one lane with one twin."""

    call: str
    lane: str
    twin: str
    in_orders: bool = False

    @property
    def column(self) -> str:
        return "order" if self.in_orders else self.twin.partition(":")[0]


@attrs.frozen
class Done:
    """What became of a job."""

    job: Job
    points: int
    violation: str | None = None


def jobs() -> Iterator[Job]:
    for call in CALLS:
        for twin in TWINS:
            yield from (Job(call, lane, twin) for lane in lanes_of(twin))
        for twin in ORDERED:
            yield from (Job(call, lane, twin, in_orders=True) for lane in lanes_of(twin) if lane.startswith("fast/"))


def do(job: Job) -> Done:
    """Play all points of a job, up to the first violation."""
    count = 0
    unraisable: list[str] = []
    sys.unraisablehook = lambda left: unraisable.append(f"{left.err_msg}: {left.exc_value!r} of {left.object!r}")
    try:
        for _ in (orders if job.in_orders else points)(job.call, job.lane, job.twin):
            count += 1
    except BaseException as exc:
        return Done(job, count, "".join(traceback.format_exception(exc)))
    gc.collect()
    return Done(job, count, "\n".join(unraisable) or None)


def be_strict() -> None:
    """Make warnings errors, and the log quiet."""
    warnings.simplefilter("error")
    logging.getLogger("trio_nova").setLevel(logging.CRITICAL)


def print_row(name: str, counts: Counter[str]) -> None:
    cells = [*(counts[column] for column in COLUMNS), counts.total()]
    print(f"{name} {''.join(f'{cell:8}' for cell in cells)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("--call", default="", help="only calls whose name contains this")
    parser.add_argument("--lane", default="", help="only lanes whose name contains this: fast/wire")
    parser.add_argument("--twin", default="", help="only twins whose name contains this: cancel, break, cut, order")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--least", type=int, default=0, help="fail where there are fewer points in all")
    wanted = parser.parse_args()
    chosen = [
        job
        for job in jobs()
        if wanted.call in job.call and wanted.lane in job.lane and wanted.twin in (job.column + " " + job.twin)
    ]
    began, violations = time.perf_counter(), 0
    columns, lanes = Counter[str](), Counter[str]()
    width = max((len(job.call) for job in chosen), default=0)
    print(f"{'':{width}} {''.join(f'{column:>8}' for column in (*COLUMNS, 'all'))}")
    with ProcessPoolExecutor(wanted.processes, initializer=be_strict) as pool:
        for call, group in itertools.groupby(pool.map(do, chosen, chunksize=4), key=lambda done: done.job.call):
            of_call = Counter[str]()
            for done in group:
                of_call[done.job.column] += done.points
                lanes[done.job.lane] += done.points
                if done.violation is not None:
                    violations += 1
                    print(f"VIOLATION {done.job}\n{done.violation}")
            columns += of_call
            print_row(f"{call:{width}}", of_call)
    print_row(f"{'all':{width}}", columns)
    print(*(f"{lane}: {count}" for lane, count in lanes.items()), sep=", ")
    print(f"{columns.total()} points, {violations} violations, in {time.perf_counter() - began:.0f} s")
    return 1 if violations or columns.total() < wanted.least else 0


if __name__ == "__main__":
    sys.exit(main())
