"""Restoring thousands of subscriptions under the service's own limits."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from trio_nova import (
    JsonCodec,
    ListBackoff,
    RateLimitHandler,
    RollingWindow,
    State,
    SubscriptionHandler,
    SubscriptionRejected,
    SubscriptionsRestored,
    open_connection,
)
from trio_nova.testing import GenericVenue, RateLimit
from trio_nova.testing import RollingWindow as CountedWindow

URL = "ws://venue.test/"


@pytest.mark.fault("F112", "F113", where="memory")
async def test_five_thousand_subscriptions_under_a_limit_with_the_link_cut_in_the_middle(
    autojump_clock: trio.abc.Clock,
) -> None:
    names = [f"channel {n:04}" for n in range(5000)]
    venue = GenericVenue(
        limit=RateLimit(CountedWindow(50, 1.0)), rejected={names[7], names[2500], names[4999]}, max_batch=100
    )
    rejections: dict[str, str] = {}
    confirmed = 0
    all_answered = trio.Event()

    async with (
        venue,
        open_connection(
            URL,
            stream_factory=venue.stream_factory,
            codec=JsonCodec(),
            backoff=ListBackoff([1.0]),
            subscription_handler=SubscriptionHandler(max_batch=100),
            rate_limit_handler=RateLimitHandler(limits=[RollingWindow(50, 1.0)]),
        ) as conn,
        conn.listen() as events,
        trio.open_nursery() as nursery,
    ):

        async def hold(name: str) -> None:
            nonlocal confirmed
            try:
                async with conn.subscribe(name):
                    confirmed += 1
                    if confirmed + len(rejections) == 5000:
                        all_answered.set()
                    await trio.sleep_forever()
            except SubscriptionRejected as error:
                rejections[name] = str(error)

        for name in names:
            nursery.start_soon(hold, name)
        await all_answered.wait()

        wanted_in_this_order = list(venue.link.subscriptions)

        # While the link is being restored, cut it again.
        venue.drop()
        await conn.wait_state(State.RESTORING)
        await venue.wait_until(lambda: len(venue.link.subscriptions) >= 2000)
        venue.drop()
        await conn.wait_state(State.DISCONNECTED)
        await conn.wait_ready()

        states = Counter(conn.subscriptions().values())
        assert states == {"confirmed": 4997}
        assert sorted(rejections) == sorted([names[7], names[2500], names[4999]])
        assert all("not allowed" in reason for reason in rejections.values())
        assert len(venue.link.subscriptions) == 4997
        for link in venue.links:
            venue.assert_no_channel_asked_twice(link)
        assert list(venue.link.subscriptions) == wanted_in_this_order
        assert venue.worst_window(1.0) <= 50
        restored = [event for event in await events.receive_batch() if isinstance(event, SubscriptionsRestored)]
        assert restored[-1].confirmed == 4997
        nursery.cancel_scope.cancel()


@pytest.mark.fault("F97", where="memory")
async def test_one_message_for_each_channel_is_paced_by_the_limit(autojump_clock: trio.abc.Clock) -> None:
    venue = GenericVenue(limit=RateLimit(CountedWindow(50, 1.0)))
    async with (
        venue,
        open_connection(
            URL,
            stream_factory=venue.stream_factory,
            codec=JsonCodec(),
            backoff=ListBackoff([0.0]),
            rate_limit_handler=RateLimitHandler(limits=[RollingWindow(50, 1.0)]),
        ) as conn,
    ):
        conn.import_subscriptions(str([{"channel": f"c{n}", "params": {}} for n in range(500)]).replace("'", '"'))
        await venue.wait_until(lambda: len(venue.link.subscriptions) == 500)
        venue.drop()
        await conn.wait_state(State.RESTORING)
        began = trio.current_time()
        await conn.wait_ready()
        assert trio.current_time() - began == pytest.approx(9, abs=1.1)
        assert venue.worst_window(1.0) == 50
        assert set(conn.subscriptions().values()) == {"confirmed"}
