"""What befalls a client. Each fault is a script that plays on the service once messages flow.

A script that clients are to recover from returns when the service serves well again; the others, when the client is
to be left. Random numbers come from the seed of the round: they are the same for all clients.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from tests.bench.frames import CLOSE
from tests.survival.service import Service, Visit

Script: TypeAlias = Callable[[Service, random.Random], Awaitable[None]]

OUTAGE = 3.0
"""Seconds, about, for which the service is down, where it is."""
_ANSWER = 1.0
"""Seconds for a client to answer a goodbye."""
_BEFORE_LEAVING = 1.5
"""Seconds from the fault until the client is left: enough for a sender to block, too few to find a silent peer out."""
_SLOW = 6.0
"""Seconds of a consumer that is too slow."""


# --------------------------------------------------------------------------- to recover from


async def reset(service: Service, rng: random.Random) -> None:
    """Cut the link with RST; a dial is served at once."""
    service.strike()
    service.link.visit.cut("RST")


async def finish(service: Service, rng: random.Random) -> None:
    """Cut the link with FIN, without a goodbye; a dial is served at once."""
    service.strike()
    service.link.visit.cut("FIN")


async def restart(service: Service, rng: random.Random) -> None:
    """Say goodbye with 1012, and refuse dials for a while."""
    service.strike()
    await service.link.visit.say_goodbye(1012)
    await trio.sleep(0.05)
    await service.go_down()
    await trio.sleep(_outage(rng))
    await service.listen()
    service.restore()


async def accept_then_close(service: Service, rng: random.Random) -> None:
    """Cut the link; for a while, upgrade each dial and say goodbye at once with 1013, try again later."""

    async def turn_away(visit: Visit) -> None:
        await visit.upgrade()
        await visit.say_goodbye(1013)
        with trio.move_on_after(_ANSWER):
            while (await visit.read_frame())[0] != CLOSE:
                pass

    service.strike(turn_away)
    service.link.visit.cut("FIN")
    await trio.sleep(_outage(rng))
    service.restore()


async def too_many_requests(service: Service, rng: random.Random) -> None:
    """Cut the link; for a while, answer each dial with 429 and when to come again."""
    back_at = time.monotonic() + _outage(rng)

    async def refuse(visit: Visit) -> None:
        wait = max(1, math.ceil(back_at - time.monotonic()))
        await visit.reject("429 Too Many Requests", f"Retry-After: {wait}\r\n")

    service.strike(refuse)
    service.link.visit.cut("FIN")
    await trio.sleep(back_at - time.monotonic())
    service.restore()


async def unavailable(service: Service, rng: random.Random) -> None:
    """Cut the link; for a while, answer each dial with 503."""
    service.strike(lambda visit: visit.reject("503 Service Unavailable"))
    service.link.visit.cut("FIN")
    await trio.sleep(_outage(rng))
    service.restore()


async def fall_silent(service: Service, rng: random.Random) -> None:
    """Read and write nothing any more on the link, which stays open; a dial is served at once."""
    service.strike()
    service.link.freeze()


async def close_and_fall_silent(service: Service, rng: random.Random) -> None:
    """Say goodbye with 1001, then neither read nor hang up; a dial is served at once."""
    service.strike()
    await service.link.visit.say_goodbye(1001)
    service.link.freeze()


async def hang_up_in_tls(service: Service, rng: random.Random) -> None:
    """Go down; for a while, answer the client's part of the TLS handshake with FIN."""

    async def finish_early(visit: Visit) -> None:
        await visit.read()

    service.strike(finish_early)
    await service.go_down()
    await service.listen(plain=True)
    await trio.sleep(_outage(rng))
    await service.go_down()
    await service.listen()
    service.restore()


# --------------------------------------------------------------------------- to be left in


async def stay_well(service: Service, rng: random.Random) -> None:
    """Do nothing."""
    service.strike()


async def go_on_slowly(service: Service, rng: random.Random) -> None:
    """Do nothing, for as long as a slow consumer is to be watched."""
    service.strike()
    await trio.sleep(_SLOW)


async def ignore_goodbyes(service: Service, rng: random.Random) -> None:
    """Answer no goodbye, and do not hang up."""
    service.strike()
    service.answers_goodbyes = False


async def be_silent(service: Service, rng: random.Random) -> None:
    """Read and write nothing any more on the link."""
    await fall_silent(service, rng)
    await trio.sleep(_BEFORE_LEAVING)


async def be_down(service: Service, rng: random.Random) -> None:
    """Be down: dials are refused."""
    service.strike()
    await service.go_down()
    await trio.sleep(_BEFORE_LEAVING)


async def leave_dials_hanging(service: Service, rng: random.Random) -> None:
    """Cut the link; take dials, and answer none."""

    async def hang(visit: Visit) -> None:
        await trio.sleep_forever()

    service.strike(hang)
    service.link.visit.cut("FIN")
    await trio.sleep(_BEFORE_LEAVING)


def _outage(rng: random.Random) -> float:
    return OUTAGE * rng.uniform(0.9, 1.1)
