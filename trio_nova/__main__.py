"""The command line: `python -m trio_nova`, or `trio-nova`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import trio

from trio_nova.check import CannotLoad, check_adapter, load_target
from trio_nova.demo import Options, choose_display, run_demo
from trio_nova.errors import explain

__all__ = ["main"]

SHORTEST_DEMO = 4.0
"""Seconds: five faults need their time."""
LONGEST_DEMO = 600.0
"""Seconds: both sides keep their books in memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 all well, 1 not, 2 wrong usage, 130 interrupted.

    Never ends in a traceback.
    """
    try:
        arguments = _parser().parse_args(argv)
        status: int = arguments.run(arguments)
        return status
    except SystemExit as exc:  # argparse has said why
        return exc.code if isinstance(exc.code, int) else 2
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as exc:
        return _apologize(list(_leaves(exc)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trio_nova", description="WebSocket sessions on Trio.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="trade with an exchange that fails in every way, and account for every message",
        description="A client trades with an exchange on this machine that fails it in five ways. Both keep "
        "books, which are compared at the end. The exit status is 0 if every link was restored in order, no "
        "message was lost without notice, none came or was sent twice, and the rate limit was kept.",
    )
    demo.add_argument("--seconds", type=_demo_seconds, default=20.0, help="how long it takes (default 20)")
    demo.add_argument("--seed", type=int, default=0, help="of the prices and of the redials' jitter (default 0)")
    demo.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    demo.add_argument("--cheat", action="store_true", help="let the exchange hide a tick: the books must show it")
    demo.set_defaults(run=_demo)
    check = commands.add_parser(
        "check",
        help="tell what an adapter is, and which promises of an adapter it breaks",
        description="Shows an adapter's hooks all kinds of hostile messages and, where it is named by an "
        "AdapterContract with samples, has it play through them against a server in memory. Nothing leaves this "
        "machine. The exit status is 0 if it keeps every promise, 1 if it breaks one, 2 if it cannot be loaded.",
    )
    check.add_argument("target", help="module:name or file.py:name, of an AdapterContract, an Adapter or a Client")
    check.add_argument("--credentials", type=_credentials, help="that it takes: JSON, or else a text")
    check.add_argument("--channel", help="that the service has (default trades.BTC)")
    check.add_argument("--params", type=_params, help="with which the channel is asked for: a JSON object")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(run=_check)
    return parser


def _demo_seconds(text: str) -> float:
    with suppress(ValueError):
        if SHORTEST_DEMO <= (seconds := float(text)) <= LONGEST_DEMO:
            return seconds
    raise argparse.ArgumentTypeError(f"must be a number from {SHORTEST_DEMO:g} to {LONGEST_DEMO:g}")


def _demo(arguments: argparse.Namespace) -> int:
    options = Options(seconds=arguments.seconds, seed=arguments.seed, cheat=arguments.cheat)
    display = choose_display(options.seconds, plain=arguments.plain)
    with display:
        report = trio.run(run_demo, options, display)
    display.conclude(report)
    return report.exit_status


def _credentials(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _params(text: str) -> Any:
    with suppress(ValueError):
        if isinstance(params := json.loads(text), dict):
            return params
    raise argparse.ArgumentTypeError("must be a JSON object")


def _check(arguments: argparse.Namespace) -> int:
    try:
        target = load_target(arguments.target)
    except CannotLoad as exc:
        print(exc, file=sys.stderr)
        return 2
    report = check_adapter(
        target, credentials=arguments.credentials, channel=arguments.channel, params=arguments.params
    )
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.as_text())
    return report.exit_status


def _apologize(errors: Sequence[BaseException]) -> int:
    """Say what went wrong, if it was not the user's wish, and return the exit status."""
    if any(isinstance(error, KeyboardInterrupt) for error in errors):
        return 130
    if any(isinstance(error, BrokenPipeError) for error in errors):
        # Whoever read our output has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    for error in errors:
        print(explain(error), file=sys.stderr)
    return 1


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in exc.exceptions:
            yield from _leaves(each)
    else:
        yield exc


if __name__ == "__main__":
    sys.exit(main())
