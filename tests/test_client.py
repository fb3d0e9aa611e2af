"""Clients of one's own: opened, run as a task, and no different in how they fail."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from trio_nova import Adapter, Client, ConfigError, LinkLost, NotSent
from trio_nova.testing import ScriptedServer, echo


class Parrot(Client):
    adapter = Adapter(host="localhost", secure=False)
    defaults = {"when_down": "fail"}  # noqa: RUF012

    async def say(self, text: str) -> Any:
        return await self.connection.request(text)


async def test_a_client_speaks_its_own_words(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        async with Parrot.open(stream_factory=server.stream_factory) as parrot:
            assert await parrot.say("hi") == "hi"
            assert repr(parrot).startswith("<Parrot on <Connection ")
            await parrot.aclose(1000, "enough")
            await parrot.connection.wait_closed()


async def test_another_address_of_the_service_can_be_given(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        elsewhere = Adapter(url="ws://localhost:81/x")
        async with Parrot.open(adapter=elsewhere, stream_factory=server.stream_factory) as parrot:
            assert parrot.connection.url == "ws://localhost:81/x"


async def test_a_client_runs_as_a_task(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server, trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            await Parrot.run(stream_factory=server.stream_factory, task_status=task_status)

        parrot = await nursery.start(run)
        assert await parrot.say("hi") == "hi"
        await parrot.aclose()


def test_what_is_wrong_is_said_by_the_call_itself() -> None:
    class Homeless(Client):
        pass

    with pytest.raises(ConfigError, match="Homeless has none"):
        Homeless.open()
    with pytest.raises(ConfigError, match="did you mean when_down"):
        Parrot.open(when_dwn="wait")  # type: ignore[call-arg]


async def test_what_the_block_raises_leaves_it_bare(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        with pytest.raises(ZeroDivisionError):
            async with Parrot.open(stream_factory=server.stream_factory):
                raise ZeroDivisionError


async def test_a_client_whose_making_fails_leaves_no_connection(autojump_clock: trio.abc.Clock) -> None:
    class Broken(Parrot):
        def __init__(self, connection: Any) -> None:
            raise ZeroDivisionError

    async with ScriptedServer(echo) as server:
        with pytest.raises(ZeroDivisionError):
            async with Broken.open(stream_factory=server.stream_factory):
                raise AssertionError("never entered")
        await server.dials[0].wait_ended()
    assert server.dials[0].ended == "closed"


async def test_the_defaults_of_the_class_are_in_force(autojump_clock: trio.abc.Clock) -> None:
    async with ScriptedServer(echo) as server:
        with pytest.raises(LinkLost):
            async with Parrot.open(stream_factory=server.stream_factory, max_attempts=0) as parrot:
                server.dials[0].end("dropped") if False else await parrot.connection.reconnect() if False else None
                raise LinkLost
    with pytest.raises(NotSent):
        raise NotSent
