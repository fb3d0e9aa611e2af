"""Streams in memory behave as Trio's do, and push back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, check_half_closeable_stream, wait_all_tasks_blocked

from trio_nova.testing import MemoryStream, memory_streams


async def _connected() -> tuple[MemoryStream, MemoryStream]:
    return memory_streams()


async def _sliced() -> tuple[MemoryStream, MemoryStream]:
    return memory_streams(max_buffer=5_000, slice_size=999)


async def _clogged() -> tuple[MemoryStream, MemoryStream]:
    left, right = memory_streams(max_buffer=1)
    await left.send_all(b"x")
    await right.send_all(b"x")
    return left, right


async def test_they_keep_the_contract_of_half_closeable_streams() -> None:
    await check_half_closeable_stream(_connected, _clogged)


async def test_sliced_they_keep_it_too() -> None:
    await check_half_closeable_stream(_sliced, None)


async def test_a_sender_waits_for_room(autojump_clock: MockClock) -> None:
    left, right = memory_streams(max_buffer=10)
    with trio.move_on_after(1) as scope:
        await left.send_all(bytes(range(15)))
    assert scope.cancelled_caught
    assert await right.receive_some() == bytes(range(10))
    await left.send_all(b"there is room again"[:10])


async def test_a_slice_is_all_that_one_read_returns() -> None:
    left, right = memory_streams(slice_size=3)
    await left.send_all(b"12345")
    assert await right.receive_some() == b"123"
    assert await right.receive_some(1) == b"4"
    assert await right.receive_some() == b"5"


async def test_a_reset_breaks_the_other_end_and_loses_what_was_under_way() -> None:
    left, right = memory_streams()
    await left.send_all(b"lost")
    left.reset()
    with pytest.raises(trio.BrokenResourceError):
        await right.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await right.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await left.send_all(b"x")


async def test_a_reset_wakes_who_waits_at_the_other_end() -> None:
    left, right = memory_streams(max_buffer=1)
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await right.receive_some()

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await right.send_all(b"too much")

        nursery.start_soon(receive)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        left.reset()


async def test_a_cancelled_read_loses_nothing(autojump_clock: MockClock) -> None:
    left, right = memory_streams()
    with trio.move_on_after(1):
        await right.receive_some()
    await left.send_all(b"kept")
    assert await right.receive_some() == b"kept"


@pytest.mark.parametrize(("max_buffer", "slice_size"), [(0, None), (1, 0)])
async def test_sizes_are_at_least_one(max_buffer: int, slice_size: int | None) -> None:
    with pytest.raises(ValueError, match="must be >= 1"):
        memory_streams(max_buffer, slice_size)
