"""What the hooks of an adapter, or of its dialect, raise: where it goes, whichever hook it is.

`FOLLOWING` are dealt with as `on_handler_error` says, as the strategies' are; `TOLD` ask elsewhere, where things fail
every day, so that is told, and the session goes on; `OF_THE_CALLER` are asked for somebody, who gets what they raise.
The last test finds the hooks that are missing here.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

import trio_nova
from trio_nova import (
    Adapter,
    BadMessage,
    Channel,
    ErrorEvent,
    JsonCodec,
    ListBackoff,
    MetricsCollector,
    NovaError,
    SubscriptionRejected,
)
from trio_nova.adapter import HOOKS
from trio_nova.core.sequence import Tracker
from trio_nova.testing import GenericVenue

FOLLOWING = (
    "open_link",
    "read",
    "read_all",
    "handle_subscription_response",
    "matches",
    "setup_requests",
    "split_batch",
    "encode_subscription_batch",
    "encode_unsubscription_batch",
    "encode_unsubscription",
    "encode_farewell",
    "resume",
    "link_step",
)
TOLD = ("prepare", "snapshot", "backfill")
OF_THE_CALLER = ("tag", "request_id", "encode_message")
ELSEWHERE = {
    "handle_auth_response": "as the next",
    "authenticate": "a login that fails, as tests/test_auth.py shows",
    "encode_auth_request": "as `authenticate`",
    "encode_subscription_request": "as `encode_subscription_batch`",
    "encode_unsubscription_request": "as `encode_unsubscription`, which asks it",
    "connection_info": "in tests/test_hooks.py, with the strategy of that name",
    "handle_platform_message": "in tests/test_hooks.py, as `handle_message`",
    "should_reconnect": "in tests/test_hooks.py, with the strategy of that name",
    "key": "it leaves the call of `subscribe`",
    "tracker": "as `key`",
}
"""Why the others are not here."""


class Trouble(Exception):
    """The user's own."""


TROUBLE = Trouble()


class Speaking(Adapter):
    """Two channels in one message."""

    max_batch = 2

    def defaults(self) -> Mapping[str, Any]:
        return {"codec": JsonCodec()}


class Keeping(Speaking):
    """Keeps books."""

    def tracker(self, channel: Channel) -> Tracker:
        return Tracker(resync=True)


def failing_once(name: str) -> Adapter:
    """Return an adapter of which a hook fails when it is first asked, and then does as the hook of its class does."""
    base = Keeping if name == "snapshot" else Speaking
    asked: list[str] = []

    def fails() -> bool:
        asked.append(name)
        return len(asked) == 1

    def method(self: Any, *args: Any) -> Any:
        if fails():
            raise TROUBLE
        return getattr(base, name)(self, *args)

    async def async_method(self: Any, *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if fails():
            raise TROUBLE
        return await getattr(base, name)(self, *args)

    made = async_method if inspect.iscoroutinefunction(getattr(base, name)) else method
    made.__name__ = name
    hooks: dict[str, Any] = {name: made}
    if name == "read_all":
        hooks["read"] = lambda self, message: None  # the two go together
    kind: Any = type("Failing", (base,), hooks)
    made_of_it: Adapter = kind(url="ws://server.test/")
    return made_of_it


@attrs.define
class Story:
    """What came of a session whose adapter had a hook that failed."""

    raised: Exception | None = None
    """What left the block, or kept it from being entered."""
    lasted: bool = False
    """Whether the session was ready when all was done."""
    told: list[BaseException] = attrs.field(factory=list)


async def use(adapter: Adapter, **options: Any) -> Story:
    """Hold a session in which each hook is asked, and return what came of it."""
    story = Story()

    class Hearing(MetricsCollector):
        def handle_error_event(self, observation: trio_nova.Observation) -> None:
            if isinstance(observation.event, ErrorEvent):
                story.told.append(observation.event.error)

    async with GenericVenue(strict=False, confirmation="together") as venue:
        try:
            async with trio_nova.open_connection(
                adapter,
                stream_factory=venue.stream_factory,
                backoff=ListBackoff([0.5]),
                subscription_timeout=2.0,
                metrics_collector=Hearing,
                **options,
            ) as conn:
                with suppress(SubscriptionRejected):
                    async with conn.subscribe(["a", "b"]):
                        for _ in range(2):
                            for channel in ("a", "b", "a"):
                                venue.publish(channel)
                            await trio.sleep(1.0)
                            await conn.reconnect()
                            await conn.wait_ready()
                            await trio.sleep(10.0)
                await trio.sleep(1.0)
                story.lasted = conn.state is trio_nova.State.READY
        except Exception as exc:
            story.raised = exc
    return story


@pytest.mark.parametrize("policy", ["raise", "log", "close"])
@pytest.mark.parametrize("name", FOLLOWING)
async def test_what_the_hook_of_an_adapter_raises_follows_on_handler_error(
    name: str, policy: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    story = await use(failing_once(name), on_handler_error=policy)
    assert "Trouble" in caplog.text
    match policy:
        case "log":
            assert (story.raised, story.lasted) == (None, True)
        case "raise":
            assert story.raised is TROUBLE
        case _:
            assert not story.lasted
            assert story.raised is None or isinstance(story.raised, NovaError)


@pytest.mark.parametrize("policy", ["raise", "log", "close"])
@pytest.mark.parametrize("name", TOLD)
async def test_what_a_hook_raises_that_asks_elsewhere_is_told_and_the_session_goes_on(
    name: str, policy: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "trio_nova")
    story = await use(failing_once(name), on_handler_error=policy)
    assert (story.raised, story.lasted) == (None, True)
    assert TROUBLE in story.told


@pytest.mark.parametrize("name", OF_THE_CALLER)
async def test_what_a_hook_raises_that_makes_a_message_is_raised_where_it_is_sent(
    name: str, autojump_clock: MockClock
) -> None:
    async with GenericVenue() as venue:
        async with trio_nova.open_connection(failing_once(name), stream_factory=venue.stream_factory) as conn:
            with pytest.raises(BadMessage):
                await conn.request({"type": "request", "q": 1})
            assert (await conn.request({"type": "request", "q": 2}))["result"] == {"q": 2}


def test_no_hook_of_an_adapter_is_missing_here() -> None:
    listed = [*FOLLOWING, *TOLD, *OF_THE_CALLER, *ELSEWHERE]
    assert sorted(listed) == sorted([*HOOKS, "open_link"])
