"""How results are shown: tables on the terminal, a page of the documentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from tests.bench.results import Spread
from tests.survival import settings
from tests.survival.clients.table import CLIENTS
from tests.survival.judge import FRESH, MOST_LATE, Account
from tests.survival.plan import TO_BE_LEFT_IN, TO_BE_SLOW_IN, TO_FAIL_IN, TO_RECOVER_FROM, Situation
from tests.survival.results import Results, dials_per_minute
from tests.survival.run import LEAVE_PATIENCE, PATIENCE

PAGE = Path("docs/survival.md")
FOLDER = Path("docs/survival")
RESULTS = FOLDER / "results.json"


@attrs.frozen
class Chapter:
    """A table: a row for each situation, a column for each client."""

    title: str
    situations: Mapping[str, Situation]
    cell: Callable[[Results, str, str], str]
    """What stands in the cell of a situation and a client."""
    words: str
    """What the figures mean."""
    plot: str = ""

    def rows(self, results: Results) -> list[list[str]]:
        """Return the title of each situation that was measured, and its cells."""
        return [
            [situation.title, *(self.cell(results, name, client) for client in results.clients)]
            for name, situation in self.situations.items()
            if name in results.laps
        ]


def show(results: Results, console: Console) -> None:
    """Print the tables."""
    for chapter in CHAPTERS:
        if rows := chapter.rows(results):
            table = Table(title=chapter.title, title_justify="left", min_width=90)
            for head in ("", *results.clients):
                table.add_column(head)
            for row in rows:
                table.add_row(*(cell.replace("**", "") for cell in row))
            console.print(table)


def write_page(results: Results) -> None:
    """Write the page of the documentation, and the results that it is made from."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    results.write(RESULTS)
    PAGE.write_text("\n".join(page(results)) + "\n")


# --------------------------------------------------------------------------- cells


def recovery(results: Results, situation: str, client: str) -> str:
    """Return how long it took to come back, and whether it did each time."""
    accounts = results.laps[situation][client]
    late = sum(each.recovery is None and not each.death for each in accounts)
    return _listed(
        _seconds(results.spread(situation, client, lambda each: each.recovery)),
        _deaths(accounts),
        f"**not within {PATIENCE:g} s** {_of(late, accounts)}" if late else "",
    )


def dials(results: Results, situation: str, client: str) -> str:
    """Return how often it dialled in an outage."""
    spread = results.spread(situation, client, dials_per_minute)
    assert spread is not None
    ended = " (then its loop ended)" if any(each.death for each in results.laps[situation][client]) else ""
    return f"{spread.median:,.0f} ({spread.least:,.0f} - {spread.most:,.0f}){ended}"


def messages(results: Results, situation: str, client: str) -> str:
    """Return what became of the messages, both ways, over all rounds."""

    def total(figure: Callable[[Account], int]) -> int:
        return results.total(situation, client, figure)

    untold, twice = total(lambda each: each.missed_untold), total(lambda each: each.twice)
    unsent, unsent_untold = total(lambda each: each.unsent), total(lambda each: each.unsent_untold)
    return _listed(
        f"{total(lambda each: each.missed):,} missed{_untold(untold)}",
        f"{unsent:,} sent and lost{_untold(unsent_untold)}",
        f"**{twice:,} twice**" if twice else "",
        "until its loop ended" if any(each.death for each in results.laps[situation][client]) else "",
    )


def slowness(results: Results, situation: str, client: str) -> str:
    """Return what a slow consumer costs."""
    memory = results.spread(situation, client, lambda each: each.memory / 1024)
    assert memory is not None
    accounts = results.laps[situation][client]
    lost = sum(each.links - 1 for each in accounts)
    sizes = f"{memory.median:,.0f} KiB ({memory.least:,.0f} - {memory.most:,.0f})"
    missed = results.total(situation, client, lambda each: each.missed)
    untold = results.total(situation, client, lambda each: each.missed_untold)
    links = f"links lost in {len(accounts)} rounds: {lost}" if lost else "link kept"
    return _listed(sizes, links, f"{missed:,} missed{_untold(untold)}")


def leaving(results: Results, situation: str, client: str) -> str:
    """Return how long it took to leave, and whether the service heard a goodbye."""
    accounts = results.laps[situation][client]
    stuck = sum(each.leave is None and not each.death for each in accounts)
    said = sum(each.goodbye for each in accounts)
    return _listed(
        _seconds(results.spread(situation, client, lambda each: each.leave)),
        _deaths(accounts),
        f"**not within {LEAVE_PATIENCE:g} s** {_of(stuck, accounts)}" if stuck else "",
        "goodbye" if said == len(accounts) else f"goodbye {_of(said, accounts)}" if said else "",
    )


def _deaths(accounts: Sequence[Account]) -> str:
    deaths = [each.death for each in accounts if each.death]
    return f"**loop ended** {_of(len(deaths), accounts)}: `{deaths[0].partition(':')[0]}`" if deaths else ""


def _listed(*words: str) -> str:
    return ", ".join(filter(None, words))


def _seconds(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} s ({spread.least:.2f} - {spread.most:.2f})"


def _untold(count: int) -> str:
    return f" (**{count:,} untold**)" if count else ""


def _of(some: int, accounts: Sequence[Account]) -> str:
    return f"in {some} of {len(accounts)}"


# --------------------------------------------------------------------------- the page

CHAPTERS = (
    Chapter(
        "Recovery",
        TO_RECOVER_FROM,
        recovery,
        "Seconds from the moment when a dial would be served well until the program has the first message of a new "
        "link: median of the rounds, least and most. Where a link falls silent, they begin with the silence.",
        "recovery",
    ),
    Chapter(
        "Dials in an outage",
        {name: each for name, each in TO_RECOVER_FROM.items() if each.counts_dials},
        dials,
        "Connections that the service saw in the 3 s of the outage, made into a number for each minute: 20 is one "
        "dial. With back-off, a longer outage has fewer a minute.",
        "dials",
    ),
    Chapter(
        "Messages",
        TO_RECOVER_FROM,
        messages,
        "Over all rounds. *Missed*: the service made them, also while nobody was connected, and the program never got "
        "them. *Sent and lost*: the call to send returned, and the service never got them, as a socket allows. "
        "*Untold*: without a notice. Where nothing is said of it, no message came twice.",
    ),
    Chapter(
        "A slow consumer",
        TO_BE_SLOW_IN,
        slowness,
        "Growth of the resident set, at its peak; whether the link was kept; and what was missed between two messages.",
        "memory",
    ),
    Chapter(
        "Leaving by cancellation",
        TO_BE_LEFT_IN,
        leaving,
        "Seconds from the cancellation of the scope around the loop until it has ended. *Goodbye*: the service got a "
        "close frame; without one it must guess.",
    ),
    Chapter(
        "Leaving by an error of the program",
        TO_FAIL_IN,
        leaving,
        "The same where a task of the program raises, instead of being cancelled from outside.",
    ),
)


def page(results: Results) -> list[str]:
    """Return the lines of the page."""
    return list(_page(results))


def _page(results: Results) -> Iterator[str]:
    yield "# Survival"
    yield ""
    yield (
        "The same faults befall trio_nova and the reconnecting loops that are written with two other clients on Trio. "
        "This page is written by the benchmark itself, from [results.json](survival/results.json)."
    )
    yield ""
    yield "```console"
    yield "$ nox -s survival                             # about 5 minutes; writes this page"
    yield "$ nox -s survival -- --quick                  # one round, a minute and a half"
    yield "$ nox -s survival -- --only 429,black-hole    # some of it"
    yield "```"
    yield ""
    yield "## What it ran on"
    yield ""
    yield from _table(
        ["", ""],
        [
            ["date", results.date],
            *map(list, results.machine.items()),
            ["rounds", f"{results.rounds}, fewer where figures hardly vary; seed {results.seed}"],
            ["duration", f"{results.seconds:.0f} s; {results.repeated} laps had to be run again"],
        ],
    )
    yield ""
    yield from _table(
        ["client", "versions", "loop"],
        [
            [
                client,
                ", ".join(f"{name} {version}" for name, version in versions.items()),
                f"[{CLIENTS[client]}.py](../tests/survival/clients/{CLIENTS[client]}.py)",
            ]
            for client, versions in results.versions.items()
        ],
    )
    yield ""
    yield from _FAIR.strip().splitlines()
    for chapter in CHAPTERS:
        if not (rows := chapter.rows(results)):
            continue
        yield ""
        yield f"## {chapter.title}"
        yield ""
        yield chapter.words
        yield ""
        if chapter.plot:
            yield f"![{chapter.title}](survival/{chapter.plot}.svg)"
            yield ""
        yield from _table(["", *results.clients], rows)
    yield ""
    yield "## The situations"
    yield ""
    yield "Before each of them messages flow for about a second."
    yield ""
    for group in (TO_RECOVER_FROM, TO_BE_SLOW_IN, TO_BE_LEFT_IN):
        for situation in group.values():
            if situation.name in results.laps:
                yield f"- **{situation.title}**: {situation.story}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


_FAIR = f"""
## What is fair about it

- **Each client as its documentation says.** trio_nova is one session. websockets is `async for ws in connect(...)`,
  closed with `contextlib.aclosing`, which an asynchronous generator needs that may be cancelled. trio-websocket has no
  reconnect of its own: it is `open_websocket_url` in a loop with exponential back-off and full jitter, whose count
  starts over with the first message, and the heartbeat of its documentation. The loops are short: read them.
- **The same times for all**: {settings.CONNECT_TIMEOUT:g} s to connect, a ping every {settings.PING_INTERVAL:g} s,
  {settings.PONG_TIMEOUT:g} s for the pong, {settings.CLOSE_TIMEOUT:g} s to close. The defaults are longer, and differ.
  The back-off of websockets is its default divided by {settings.HASTE:g}. trio_nova and the hand-written loop wait for
  a random time of up to {settings.FIRST_DELAY:g} s, twice that after each failure, and {settings.LONGEST_DELAY:g} s at
  most. Nothing else is set.
- **The service is nobody's.** It is plain sockets and frames by hand, in one process, over loopback; each client has a
  process of its own, a fresh one for each lap. Messages come at 100 a second, and the program sends 10.
- **The same script.** What is random about a fault comes from the seed and is the same for all clients in a round. The
  clients draw their own jitter.
- **What counts as a notice.** The program was told if its loop saw the end of a connection, by an exception or by the
  end of the iteration, or an exception of `send`; of trio_nova, an event `LinkClosed` or `Dropped`, or an exception of
  `send`. A hole in the numbers needs a notice of its own before the message after it; a message that was sent and lost
  needs one at any time after. What is under way in the last {FRESH:g} s does not count.
- **No result without proof.** A lap counts only if messages flowed before the fault without a loss, if each message
  that the program has was made by the service, in order, and if the service never woke more than {MOST_LATE:g} s late.
  Otherwise it is run once more; if that fails as well, there is no page and no table.

What to know when comparing:

- After the loss of a link that had been up, websockets dials at once; the other two wait for a random time first, as
  RFC 6455 section 7.2.3 asks, so that a crowd of clients does not come back in the same moment. That costs them half a
  second here in the mean. By default the first delay of trio_nova is of up to 2 s: 1 s in the mean.
- Which errors end the loop of websockets can be changed with its argument `process_exception`, and the statuses after
  which the hand-written loop dials again are its author's choice. trio_nova waits out `Retry-After`, and then its
  back-off.
- Full jitter, which trio_nova and the hand-written loop have, spreads more than the growing fixed delays of websockets:
  after a short outage it may be later.
- Leaving by cancellation, the other two drop the connection without a goodbye, which takes no time. trio_nova says
  goodbye and waits for the answer, for {settings.CLOSE_TIMEOUT:g} s here at most and 2 s by default.
- trio_nova holds up to 1,024 messages and 16 MiB for a slow consumer, websockets 16 frames, trio-websocket one message.
"""
