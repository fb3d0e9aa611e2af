"""Let the Autobahn test suite judge a transport: each case an echo through `trio_nova.open_connection`.

The suite's fuzzing server plays each case and says how the client did. What it says is compared with
what is agreed on in `expected/`, one file per transport: there, each case that is not plainly right has
a reason. `install.sh` installs the suite; `nox -s autobahn` does both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import trio

import trio_nova
from trio_nova.links import Transport

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
CASE_BOUND = 180.0
"""Seconds that one case may take; the slowest, of compressed messages, take about ten."""
START_BOUND = 15.0
"""Seconds that the server may take to listen."""
ERROR_SECTIONS = ("3", "4", "5", "7")
"""Where the server breaks the protocol: whether a client still closes cleanly there can be a race."""
SLOW = re.compile(r"1[23]\.\d+\.([7-9]|1\d)")
"""1,000 compressed messages each, of up to 128 KiB; each section's first six have the same rules in them."""
SEVERITY = ("OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "WRONG CODE", "UNCLEAN", "FAILED", "FAILED BY CLIENT")
"""The server's verdicts, the best first."""


@attrs.frozen
class Verdict:
    """What the server says of one case: how the client behaved, and how it closed."""

    behavior: str
    close: str

    @property
    def severity(self) -> tuple[int, int]:
        return SEVERITY.index(self.behavior), SEVERITY.index(self.close)

    @property
    def unremarkable(self) -> bool:
        return self.behavior == self.close == "OK"

    def no_worse_than(self, other: Verdict) -> bool:
        """Whether this passes where `other` is expected: what is not plainly right may be a race, and be won."""
        return self.severity[0] <= other.severity[0] and self.severity[1] <= other.severity[1]

    def __str__(self) -> str:
        return self.behavior if self.behavior == self.close else f"{self.behavior}, close {self.close}"


@attrs.frozen
class Expectation:
    """What is agreed on for one transport."""

    cases: Mapping[str, Verdict]
    reasons: Mapping[str, str]
    """For each case that is not plainly right; a key may be a pattern, such as "12.*"."""

    @classmethod
    def read(cls, path: Path) -> Expectation:
        told = json.loads(path.read_text("utf-8"))
        return cls({case: Verdict(*verdict) for case, verdict in told["cases"].items()}, told["reasons"])

    def write(self, path: Path) -> None:
        """Write it with one line for each case, so that a change of one is a change of one line."""
        cases = {case: [verdict.behavior, verdict.close] for case, verdict in sorted(self.cases.items(), key=_by_case)}
        lines = ",\n".join(f"    {json.dumps(case)}: {json.dumps(verdict)}" for case, verdict in cases.items())
        reasons = json.dumps(dict(self.reasons), indent=4, ensure_ascii=False).replace("\n}", "\n  }")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'{{\n  "reasons": {reasons},\n  "cases": {{\n{lines}\n  }}\n}}\n', "utf-8")

    def reason(self, case: str) -> str | None:
        """Return why `case` is not plainly right."""
        return next((reason for pattern, reason in self.reasons.items() if fnmatchcase(case, pattern)), None)


def _by_case(item: tuple[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, item[0].split(".")))


# ------------------------------------------------------------------- the suite's server


@contextmanager
def serving(suite: Path, folder: Path) -> Iterator[str]:
    """Run the fuzzing server, in a process group of its own; yield its URL."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"ws://127.0.0.1:{port}"
    spec = folder / "fuzzingserver.json"
    spec.write_text(json.dumps({"url": url, "outdir": str(folder), "cases": ["*"], "exclude-agent-cases": {}}))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [suite / "wstest", "-m", "fuzzingserver", "-s", spec, "-u", "0"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_BOUND
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (folder / "server.log").read_text("utf-8", "replace")[-2000:]
                raise RuntimeError(f"the fuzzing server does not listen; it said: {said}")
            time.sleep(0.05)  # nothing of Trio's is running yet
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------- the client


@attrs.frozen
class Client:
    """Plays cases against the fuzzing server, one after the other."""

    url: str
    transport: Transport
    compression: trio_nova.Deflate | None

    @asynccontextmanager
    async def _talk(self, resource: str) -> AsyncIterator[trio_nova.Connection]:
        """Open a connection that ends with its link, amid an echo too; how it ends is for the server to judge."""
        with contextlib.suppress(
            trio_nova.LinkLost, trio_nova.SessionOver, trio_nova.NotSent, trio_nova.OutcomeUnknown
        ):
            async with trio_nova.open_connection(
                f"{self.url}/{resource}",
                transport=self.transport,
                compression=self.compression,
                max_attempts=0,
                max_message_size=32 * 2**20,  # the largest of the suite have 16 MiB, in fragments too
                inbox_bytes=32 * 2**20,
            ) as conn:
                yield conn

    async def ask(self, resource: str) -> Any:
        """Return the server's answer to a question that is no case."""
        answer: Any = None
        with trio.fail_after(CASE_BOUND):
            async with self._talk(resource) as conn:
                async for message in conn:
                    answer = json.loads(message)
        return answer

    async def play(self, case: str, agent: str) -> str | None:
        """Echo all that comes in one case; return what went wrong on this side, if anything did."""
        try:
            with trio.fail_after(CASE_BOUND):
                async with self._talk(f"runCase?casetuple={case}&agent={quote(agent)}") as conn:
                    async for message in conn:
                        await (conn.send_text(message) if isinstance(message, str) else conn.send_bytes(message))
        except (trio.TooSlowError, trio_nova.NovaError) as exc:
            return f"{type(exc).__name__}: {exc}"
        return None


async def judge(
    client: Client, *, chosen: Callable[[str], bool], repeats: int, name: str, show: Callable[[str], object]
) -> dict[str, str]:
    """Play the chosen cases, those of the protocol's breaches `repeats` times; return what failed on our side."""
    count = await client.ask("getCaseCount")
    cases = [(await client.ask(f"getCaseInfo?case={number}"))["id"] for number in range(1, count + 1)]
    failed: dict[str, str] = {}
    section = ""
    for case in filter(chosen, cases):
        if (now := case.partition(".")[0]) != section:
            section = now
            show(f"section {section} of 13")
        for turn in range(repeats if section in ERROR_SECTIONS else 1):
            if (why := await client.play(case, f"{name}#{turn}")) is not None:
                failed[case] = why
    await client.ask(f"updateReports?agent={quote(name)}")
    return failed


def verdicts(folder: Path) -> dict[str, Verdict]:
    """Read the server's verdicts: the worst of each case, where it was played more than once."""
    worst: dict[str, Verdict] = {}
    for judged in json.loads((folder / "index.json").read_text("utf-8")).values():
        for case, said in judged.items():
            verdict = Verdict(said["behavior"], said["behaviorClose"])
            worst[case] = max(worst.get(case, verdict), verdict, key=lambda v: v.severity)
    return worst


# ------------------------------------------------------------------- the comparison


def differences(
    found: Mapping[str, Verdict],
    expected: Expectation,
    failed: Mapping[str, str],
    *,
    chosen: Callable[[str], bool] = lambda case: True,
) -> Iterator[str]:
    """Yield a line for each chosen case that is missing, was not expected, or is not as expected."""
    known = sorted(found.keys() | expected.cases.keys(), key=lambda case: _by_case((case, None)))
    for case in filter(chosen, known):
        verdict, agreed = found.get(case), expected.cases.get(case)
        if verdict is None:
            yield f"{case}: missing from the report; expected {agreed}"
        elif agreed is None:
            yield f"{case}: {verdict}, and nothing is agreed on"
        elif not verdict.no_worse_than(agreed):
            yield f"{case}: {verdict}; expected {agreed}"
        if case in failed:
            yield f"{case}: {failed[case]}"


def remarks(found: Mapping[str, Verdict], expected: Expectation) -> Iterator[str]:
    """Yield a line for each reason, with the cases that it is for; and one for each case without a reason."""
    of: dict[tuple[str, str], list[str]] = {}
    for case, verdict in sorted(found.items(), key=_by_case):
        if not verdict.unremarkable:
            of.setdefault((str(verdict), expected.reason(case) or "no reason is given"), []).append(case)
    for (verdict_text, reason), cases in of.items():
        yield f"{verdict_text}: {_shortly(cases)}: {reason}"


def _shortly(cases: Sequence[str]) -> str:
    return ", ".join(cases) if len(cases) <= 8 else f"{cases[0]} to {cases[-1]} ({len(cases)} cases)"


def unreasoned(expected: Expectation) -> Iterator[str]:
    """Yield the cases that are not plainly right, and for which no reason is given."""
    return (case for case, verdict in expected.cases.items() if not (verdict.unremarkable or expected.reason(case)))


def unused_reasons(expected: Expectation) -> Iterator[str]:
    """Yield the reasons that no case needs any more, by their patterns."""
    remarkable = [case for case, verdict in expected.cases.items() if not verdict.unremarkable]
    return (pattern for pattern in expected.reasons if not any(fnmatchcase(case, pattern) for case in remarkable))


# ------------------------------------------------------------------- the command


TRANSPORTS: dict[str, Transport] = {
    "wire": trio_nova.WireTransport(),
    "trio-websocket": trio_nova.TrioWebsocketTransport(),
}


def main(arguments: Iterable[str] | None = None) -> int:
    """Play, compare, say; return 1 where anything differs from what is agreed on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--suite", type=Path, required=True, help="where install.sh put the suite")
    parser.add_argument("--transport", choices=TRANSPORTS, default="wire")
    parser.add_argument("--compression", action="store_true", help="offer permessage-deflate")
    parser.add_argument("--quick", action="store_true", help="leave out the long cases of sections 12 and 13")
    parser.add_argument("--cases", default="*", help="a pattern of the cases to play, such as '13.4.*'")
    parser.add_argument("--repeats", type=int, default=5, help="how often to play each breach of the protocol")
    parser.add_argument("--record", action="store_true", help="write down what is found as what is expected")
    options = parser.parse_args(arguments if arguments is None else list(arguments))

    if options.compression and options.transport != "wire":
        parser.error("only --transport wire can compress")

    def chosen(case: str) -> bool:
        return fnmatchcase(case, options.cases) and not (options.quick and SLOW.fullmatch(case))

    name = options.transport + ("-compression" if options.compression else "")
    path = EXPECTED / f"{name}.json"
    expected = Expectation.read(path) if path.is_file() else Expectation({}, {})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autobahn-") as folder, serving(options.suite, Path(folder)) as url:
        client = Client(url, TRANSPORTS[options.transport], trio_nova.Deflate() if options.compression else None)

        async def play() -> dict[str, str]:
            return await judge(client, chosen=chosen, repeats=options.repeats, name=name, show=print)

        failed = trio.run(play)
        found = verdicts(Path(folder))
    print(f"{len(found)} cases in {time.monotonic() - began:.0f} s")
    if options.record:
        expected = attrs.evolve(expected, cases={**expected.cases, **found})
        expected.write(path)
    for line in remarks(found, expected):
        print(line)
    wrong = [*differences(found, expected, failed, chosen=chosen)]
    wrong += [f"{case}: no reason is given for {expected.cases[case]}" for case in unreasoned(expected)]
    wrong += [f"{pattern}: the reason is not needed" for pattern in unused_reasons(expected)]
    for line in wrong:
        print(f"WRONG {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
