"""Under another event loop than Trio's: one clear line, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import pytest

from trio_nova import Client, ConfigError, Registry, open_connection, run_connection
from trio_nova.adapters.echo import Echo

URL = "ws://localhost/"


async def enter() -> object:
    return await open_connection(URL).__aenter__()


async def run() -> None:
    await run_connection(URL)


async def enter_by_a_registry() -> object:
    return await Registry().open_connection("a", URL).__aenter__()


class OfEcho(Client):
    adapter = Echo()


async def enter_by_a_client() -> object:
    return await OfEcho.open().__aenter__()


@pytest.mark.parametrize("call", [enter, run, enter_by_a_registry, enter_by_a_client])
@pytest.mark.parametrize("loop", [asyncio.run, lambda main: anyio.run(lambda: main)], ids=["asyncio", "anyio"])
def test_under_another_event_loop_it_is_trio_that_is_asked_for(
    call: Callable[[], Awaitable[object]], loop: Callable[[object], object]
) -> None:
    with pytest.raises(ConfigError, match=r"needs Trio's event loop.*trio\.run\(main\)") as caught:
        loop(call())
    assert caught.value.__cause__ is None
