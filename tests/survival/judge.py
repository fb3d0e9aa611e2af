"""Compares what the service did with what the program was told. Nothing here waits."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Sequence

import attrs

from tests.survival.diary import Diary, Heard, Left
from tests.survival.plan import Situation
from tests.survival.service import Service

FRESH = 0.5
"""Seconds at the end of a lap whose messages may still be under way: they count as nothing."""
MOST_LATE = 0.25
"""Seconds by which this process may wake too late; where it is worse, times mean nothing."""


@attrs.frozen(kw_only=True)
class Account:
    """What one client did in one lap. None: it did not, in the time that it had."""

    recovery: float | None = None
    """Seconds from when a dial would be served well to the first message of a new link."""
    missed: int = 0
    """Messages that were made, and never reached the program."""
    missed_untold: int = 0
    """Those of them in holes of which the program had no notice."""
    twice: int = 0
    """Messages that reached the program again."""
    unsent: int = 0
    """Messages for which `send` returned, and that never reached the service."""
    unsent_untold: int = 0
    """Those of them after which the program had no notice."""
    dials: int = 0
    """While the service was down."""
    outage: float = 0.0
    """Seconds that it was."""
    links: int = 0
    memory: int = 0
    """Bytes by which the resident set grew, at its peak."""
    leave: float | None = None
    """Seconds from the cancellation until the loop had ended."""
    goodbye: bool = False
    """Whether the service got a close frame when the client was left."""
    death: str = ""
    """The exception that ended the loop; empty while it lived."""


class NoResult(Exception):
    """The lap says nothing about the client: the benchmark failed."""


def judge(situation: Situation, service: Service, diary: Diary, left: Left | None, ended_at: float) -> Account:
    """Return the account of a lap whose diary was taken at `ended_at`.

    Raises:
        NoResult: both sides do not tell the same story, or the machine was too busy to tell one.
    """
    check(service, diary)
    known_until = bisect.bisect_right(service.produced, ended_at - FRESH)
    # What a slow consumer has not come to yet is not lost.
    missed, untold = holes(diary, None if situation.slow else known_until)
    unsent, unsent_untold = unsent_messages(service, diary, ended_at - FRESH)
    outage = service.reachable_at - service.struck_at
    return Account(
        recovery=recovery(service, diary.heard) if situation.recovers else None,
        missed=missed,
        missed_untold=untold,
        twice=len(diary.heard) - len({heard.number for heard in diary.heard}),
        unsent=unsent,
        unsent_untold=unsent_untold,
        dials=sum(service.struck_at <= at < service.reachable_at for at in service.dials),
        outage=outage,
        links=len(service.links),
        memory=diary.memory,
        leave=None if left is None or diary.death else left.seconds,
        goodbye=any(at > ended_at for at in service.goodbyes),
        death=diary.death,
    )


def check(service: Service, diary: Diary) -> None:
    """Raise NoResult unless the diary can be true, and the client was well before the fault."""
    if service.lateness > MOST_LATE:
        raise NoResult(f"the machine was too busy: the service woke {service.lateness:.2f} s late")
    if not any(heard.at < service.struck_at for heard in diary.heard):
        raise NoResult("no message reached the program before the fault")
    if any(told.at < service.struck_at for told in diary.told):
        raise NoResult(f"the client lost its link before the fault: {diary.told[0].what}")
    for heard in diary.heard:
        if not (0 < heard.number <= len(service.produced) and 0 < heard.link <= len(service.links)):
            raise NoResult(f"the program has message {heard.number} of link {heard.link}, which was never sent")
        if heard.at < service.produced[heard.number - 1]:
            raise NoResult(f"the program had message {heard.number} before it was sent")
    for before, after in itertools.pairwise(diary.heard):
        if after.link < before.link or (after.link == before.link and after.number < before.number):
            raise NoResult(f"message {after.number} came after {before.number}")
    if service.breaches:
        raise NoResult(f"the client breaks the protocol: {service.breaches[0]}")


def recovery(service: Service, heard: Sequence[Heard]) -> float | None:
    """Return the seconds until the first message of a new link; None where there was none."""
    first = next(
        (each.at for each in heard if each.link > service.struck_link and each.at >= service.reachable_at), None
    )
    return None if first is None else first - service.reachable_at


def holes(diary: Diary, known_until: int | None) -> tuple[int, int]:
    """Return how many messages are missing, and how many of them in holes without a notice.

    Each hole needs a notice of its own, given before the program got the message after it. With `known_until`, what is
    missing after the last message the program got, up to that number, is a hole as well.
    """
    numbers = [(heard.number, heard.at) for heard in diary.heard]
    if known_until is not None:
        numbers.append((known_until + 1, math.inf))
    notices = [told.at for told in diary.told]
    missed = untold = announced = 0
    for (before, _), (after, at) in itertools.pairwise(numbers):
        missing = after - before - 1
        if missing <= 0:
            continue
        missed += missing
        if bisect.bisect_right(notices, at) > announced:
            announced += 1
        else:
            untold += missing
    return missed, untold


def unsent_messages(service: Service, diary: Diary, before: float) -> tuple[int, int]:
    """Return how many messages of the program never arrived although `send` returned, and how many without a notice.

    Those count that were sent before `before`. The notice may come at any time after.
    """
    arrived = Counter(service.received)
    last_notice = max((told.at for told in diary.told), default=-math.inf)
    lost = [sent for sent in diary.sent if sent.number not in arrived and sent.at < before]
    return len(lost), sum(sent.at > last_notice for sent in lost)
