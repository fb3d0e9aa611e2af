from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_nova.core.pulse import Dead, Missed, Probe, Pulse, Wait

durations = st.floats(0.5, 100.0)
starts = st.floats(0.0, 1e6)
EXACT = 1e-6
"""Seconds that rounding may cost."""


# --------------------------------------------------------------------------- step by step


def test_a_silent_peer_is_probed_then_given_up() -> None:
    pulse = Pulse(100.0, ping_interval=20.0, pong_timeout=10.0)
    assert pulse.next_step(100.0) == Wait(110.0)
    assert pulse.next_step(110.0) == Wait(120.0)
    assert pulse.next_step(120.0) == Probe()
    pulse.probe_queued(120.0)
    pulse.probe_written(121.0)
    assert pulse.next_step(130.9) == Wait(131.0)
    assert pulse.next_step(131.0) == Dead("pong", 31.0, missed=1)


def test_a_peer_that_may_miss_two_probes_is_asked_again_at_once_each_time() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0, max_missed=3)
    for number, sent in enumerate((20.0, 30.0), 1):
        assert pulse.next_step(sent) == Probe()
        pulse.probe_queued(sent)
        pulse.probe_written(sent)
        assert pulse.next_step(sent + 10.0) == Missed(number, sent + 10.0)
        pulse.probe_missed(sent + 10.0)
    pulse.probe_queued(40.0)
    pulse.probe_written(40.0)
    assert pulse.missed == 2
    assert pulse.next_step(50.0) == Dead("pong", 50.0, missed=3)


def test_a_sign_of_life_makes_all_missed_probes_forgotten() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0, max_missed=2)
    pulse.probe_queued(20.0)
    pulse.probe_written(20.0)
    pulse.probe_missed(30.0)
    pulse.probe_queued(30.0)
    pulse.probe_written(30.0)
    pulse.heard(39.0)
    assert pulse.missed == 0
    assert pulse.next_step(40.0) == Wait(50.0)
    assert pulse.next_step(50.0) == Probe()
    pulse.probe_queued(50.0)
    pulse.probe_written(50.0)
    assert pulse.next_step(60.0) == Missed(1, 21.0)


def test_a_probe_that_is_missed_while_the_next_one_waits_for_the_writer_calls_for_no_third() -> None:
    pulse = Pulse(0.0, ping_interval=2.0, pong_timeout=5.0, max_missed=2)
    pulse.probe_queued(2.0)
    pulse.probe_written(2.0, is_beat=True)
    pulse.probe_queued(6.0)
    assert pulse.next_step(7.0) == Missed(1, 7.0)
    pulse.probe_missed(7.0)
    pulse.probe_written(7.5, is_beat=True)
    assert pulse.next_step(7.5) == Wait(8.0)


def test_a_write_that_stalls_is_forgiven_no_more_often_for_the_probes_that_may_be_missed() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0, max_missed=3)
    assert pulse.next_step(13.0, stalled_since=3.0) == Dead("write", 10.0)


def test_with_less_patience_from_now_on_the_next_probe_that_is_missed_is_the_last() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0, max_missed=3)
    pulse.probe_queued(20.0)
    pulse.probe_written(20.0)
    pulse.reconfigure(25.0, ping_interval=20.0, pong_timeout=10.0, idle_timeout=math.inf, max_missed=1)
    assert pulse.next_step(30.0) == Dead("pong", 30.0, missed=1)


def test_a_pong_puts_the_verdict_off_until_the_next_probe() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.probe_queued(20.0)
    pulse.probe_written(20.0)
    pulse.heard(29.0)
    assert pulse.next_step(30.0) == Wait(40.0)
    assert pulse.next_step(40.0) == Probe()


def test_a_write_that_makes_no_progress_is_a_silent_peer() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    assert pulse.next_step(4.0, stalled_since=3.0) == Wait(13.0)
    assert pulse.next_step(13.0, stalled_since=3.0) == Dead("write", 10.0)


def test_a_probe_that_has_not_left_is_held_against_nobody() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.probe_queued(20.0)
    assert isinstance(pulse.next_step(1000.0, stalled_since=995.0), Wait)


def test_a_sign_of_life_between_queueing_and_writing_a_probe_answers_it() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.probe_queued(20.0)
    pulse.heard(21.0)
    pulse.probe_written(22.0)
    assert pulse.next_step(39.0) == Wait(40.0)
    assert pulse.next_step(40.0) == Probe()


def test_a_peer_that_sends_nothing_at_all_is_given_up_by_the_idle_clock() -> None:
    pulse = Pulse(0.0, ping_interval=math.inf, pong_timeout=math.inf, idle_timeout=60.0)
    assert pulse.next_step(0.0) == Wait(60.0)
    pulse.heard(59.0)
    assert pulse.next_step(60.0) == Wait(119.0)
    assert pulse.next_step(119.0) == Dead("idle", 60.0)


def test_with_every_clock_off_nothing_ever_happens() -> None:
    pulse = Pulse(0.0, ping_interval=math.inf, pong_timeout=math.inf)
    assert pulse.next_step(1e9, stalled_since=0.0) == Wait(math.inf)


def test_a_probe_that_is_skipped_comes_again_after_an_interval() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=50.0)
    pulse.probe_queued(20.0)
    pulse.probe_skipped()
    assert pulse.next_step(20.0) == Wait(40.0)
    assert pulse.next_step(40.0) == Probe()


def test_after_reading_stood_still_the_peer_gets_its_full_patience() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0, idle_timeout=60.0)
    pulse.probe_queued(20.0)
    pulse.probe_written(20.0)
    pulse.hold()
    assert pulse.next_step(500.0) == Wait(510.0)
    pulse.release(500.0)
    assert pulse.next_step(509.0) == Wait(510.0)
    assert pulse.next_step(510.0) == Dead("pong", 10.0, missed=1)


def test_while_reading_stands_still_nobody_is_probed() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.hold()
    assert isinstance(pulse.next_step(100.0), Wait)
    pulse.release(100.0)
    assert pulse.next_step(100.0) == Probe()


def test_a_doubt_is_settled_by_a_probe_at_once() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.probe_now(5.0)
    assert pulse.next_step(5.0) == Probe()


def test_a_shorter_interval_counts_from_now_and_a_longer_one_from_the_next_probe() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=50.0)
    pulse.reconfigure(10.0, ping_interval=5.0, pong_timeout=50.0, idle_timeout=math.inf)
    assert pulse.next_step(10.0) == Wait(15.0)
    pulse.reconfigure(10.0, ping_interval=40.0, pong_timeout=50.0, idle_timeout=math.inf)
    assert pulse.next_step(15.0) == Probe()
    pulse.probe_queued(15.0)
    pulse.probe_skipped()
    assert pulse.next_step(15.0) == Wait(55.0)


def test_probing_can_be_turned_off_and_on_again() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.reconfigure(10.0, ping_interval=math.inf, pong_timeout=math.inf, idle_timeout=math.inf)
    assert pulse.next_step(1000.0) == Wait(math.inf)
    pulse.reconfigure(1000.0, ping_interval=20.0, pong_timeout=math.inf, idle_timeout=math.inf)
    assert pulse.next_step(1000.0) == Wait(1020.0)


def test_beats_of_the_application_leave_at_their_interval_whatever_is_heard_and_whatever_answer_is_due() -> None:
    pulse = Pulse(0.0, ping_interval=1.75, pong_timeout=20.0)
    left: list[float] = []
    now = 0.0
    while now < 20.0:
        match pulse.next_step(now):
            case Probe():
                pulse.probe_queued(now)
                pulse.probe_written(now, is_beat=True)
                left.append(now)
            case Wait(until):
                now = min(until, now // 2.0 * 2.0 + 2.0)  # the service's own beat, each 2 s
                if now % 2.0 == 0.0:
                    pulse.heard(now)
    assert left == [1.75 * number for number in range(1, 12)]


def test_a_beat_does_not_put_off_the_answer_that_is_due_to_the_one_before() -> None:
    pulse = Pulse(0.0, ping_interval=2.0, pong_timeout=5.0)
    for now in (2.0, 4.0, 6.0):
        assert pulse.next_step(now) == Probe()
        pulse.probe_queued(now)
        pulse.probe_written(now, is_beat=True)
    assert pulse.next_step(7.0) == Dead("pong", 7.0, missed=1)


def test_a_beat_that_nobody_answers_is_held_against_nobody() -> None:
    pulse = Pulse(0.0, ping_interval=2.0, pong_timeout=5.0, idle_timeout=100.0)
    for now in range(2, 100, 2):
        assert pulse.next_step(now) == Probe()
        pulse.probe_queued(now)
        pulse.probe_written(now, is_beat=True, answered=False)
        assert pulse.next_step(now) == Wait(now + 2.0)
    assert pulse.next_step(100.0) == Dead("idle", 100.0)


def test_bytes_that_arrived_below_and_were_not_heard_of_yet_are_life() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    pulse.probe_queued(20.0)
    pulse.probe_written(20.0)
    pulse.last_heard_below(-math.inf)
    assert pulse.next_step(30.0) == Dead("pong", 30.0, missed=1)
    pulse.last_heard_below(29.0)
    assert pulse.next_step(30.0) == Wait(40.0)


# --------------------------------------------------------------------------- against a simulated writer


@attrs.define
class Simulation:
    """A link's heartbeat, played in virtual time against a writer and a peer that follow a schedule.

    The peer is heard at the times of `signs`. A write that begins during a stall ends when the stall does;
    the heartbeat is the only one to look at the pulse, and looks only when it was told to.
    """

    pulse: Pulse
    signs: list[float]
    """When bytes arrive."""
    stalls: list[tuple[float, float]] = attrs.field(factory=list)
    """When the peer's side takes no byte: (from, until), in order, apart from each other."""
    busy: bool = False
    """Whether somebody else sends all the time, so that a stall always holds up a write."""
    probes: list[float] = attrs.field(factory=list)
    """When they left."""
    steps: int = 0

    def run(self, until: float) -> tuple[float, Dead] | None:
        """Play; return the verdict and when it fell."""
        now, signs = self.pulse.started, list(self.signs)
        queued: float | None = None
        while now < until:
            self.steps += 1
            match self.pulse.next_step(now, self._stalled_since(now, queued)):
                case Dead() as verdict:
                    return now, verdict
                case Missed():
                    self.pulse.probe_missed(now)
                    wake = now
                case Probe():
                    assert queued is None, "a second probe while one is outstanding"
                    self.pulse.probe_queued(now)
                    queued = now
                    wake = now
                case Wait(wake):
                    assert wake > now, "a hot loop"
            # Until the heartbeat looks again, the reader and the writer do as they are scheduled to.
            while True:
                leaves = math.inf if queued is None else self._leaves(queued)
                heard = signs[0] if signs else math.inf
                if min(leaves, heard) > wake or leaves == heard == math.inf:
                    break
                if leaves <= heard:
                    queued = None
                    self.probes.append(leaves)
                    self.pulse.probe_written(leaves)
                else:
                    self.pulse.heard(signs.pop(0))
            now = wake
        return None

    def _stall_at(self, now: float) -> tuple[float, float] | None:
        before = bisect_right(self.stalls, (now, math.inf)) - 1
        if before >= 0 and self.stalls[before][0] <= now < self.stalls[before][1]:
            return self.stalls[before]
        return None

    def _leaves(self, queued: float) -> float:
        stall = self._stall_at(queued)
        return queued if stall is None else stall[1]

    def _stalled_since(self, now: float, queued: float | None) -> float | None:
        stall = self._stall_at(now)
        if stall is None:
            return None
        if self.busy:
            return stall[0]
        return None if queued is None else max(queued, stall[0])


def times(gaps: list[float], start: float) -> list[float]:
    """Return moments that lie these gaps apart."""
    found = []
    for gap in gaps:
        start += gap
        found.append(start)
    return found


gaps = st.lists(st.floats(0.001, 60.0), max_size=30)


@st.composite
def stall_schedules(draw: st.DrawFn, start: float, longest: float) -> list[tuple[float, float]]:
    """Draw stalls, each shorter than `longest`."""
    moments = [*times(draw(gaps), start), math.inf]
    share = st.floats(0.01, 0.9)
    return [(begin, begin + draw(share) * min(longest, following - begin)) for begin, following in pairwise(moments)]


@given(starts, durations, durations, gaps, st.booleans(), st.data())
def test_a_dead_peer_is_noticed_within_an_interval_and_a_patience_whatever_the_writer_does(
    start: float, interval: float, patience: float, life: list[float], busy: bool, data: st.DataObject
) -> None:
    signs = times(life, start)
    died = signs[-1] if signs else start
    # A dead peer's side takes bytes for as long as its buffers have room, then none for ever.
    stalls = [stall for stall in data.draw(stall_schedules(start, patience)) if stall[1] <= died]
    if data.draw(st.booleans()):
        stalls.append((died + data.draw(st.floats(0.0, interval + patience)), math.inf))
    pulse = Pulse(start, interval, patience)
    verdict = Simulation(pulse, signs, stalls, busy).run(until=died + 10 * (interval + patience))
    assert verdict is not None
    at, dead = verdict
    assert at <= died + interval + patience + EXACT
    assert dead.clock in ("pong", "write")
    assert dead.silence >= patience - EXACT


@given(starts, durations, durations, st.lists(st.floats(0.01, 0.99), max_size=30), st.integers(1, 5))
def test_a_peer_that_may_miss_probes_is_dead_after_so_many_patiences(
    start: float, interval: float, patience: float, life: list[float], most: int
) -> None:
    signs = times([share * patience for share in life], start)
    died = signs[-1] if signs else start
    pulse = Pulse(start, interval, patience, max_missed=most)
    simulation = Simulation(pulse, signs)
    verdict = simulation.run(until=died + 10 * (interval + most * patience))
    assert verdict is not None
    at, dead = verdict
    assert (dead.clock, dead.missed) == ("pong", most)
    assert most * patience - EXACT <= at - died <= interval + most * patience + EXACT
    assert simulation.steps <= 4 * ((at - start) / min(interval, patience) + len(signs) + most + 4)


@given(starts, durations, durations, st.floats(0.01, 0.99), st.floats(0.0, 0.99), st.data())
def test_a_peer_that_sends_data_but_never_pongs_is_never_dead(
    start: float, interval: float, patience: float, pace: float, lag: float, data: st.DataObject
) -> None:
    signs = times([pace * patience] * 100, start + lag * interval)
    stalls = data.draw(stall_schedules(start, patience))
    simulation = Simulation(Pulse(start, interval, patience), signs, stalls, busy=True)
    assert simulation.run(until=signs[-1]) is None


@pytest.mark.fault("F71", where="memory")
@given(starts, durations, durations, gaps, st.booleans(), st.data())
def test_there_is_no_hot_loop_and_never_more_than_one_probe_outstanding(
    start: float, interval: float, patience: float, life: list[float], busy: bool, data: st.DataObject
) -> None:
    signs = times(life, start)
    stalls = data.draw(stall_schedules(start, 3 * patience))
    simulation = Simulation(Pulse(start, interval, patience, data.draw(durations)), signs, stalls, busy)
    span = (signs[-1] if signs else start) + 100.0 - start
    simulation.run(until=start + span)
    assert len(simulation.probes) <= span / interval + 1
    assert simulation.steps <= 4 * (span / min(interval, patience) + len(signs) + len(stalls) + 4)


@given(starts, durations, durations, durations, st.floats(0.0, 1e5), st.booleans())
def test_while_reading_stands_still_nobody_is_judged_silent_but_a_stalled_write_is(
    start: float, interval: float, patience: float, idle: float, held: float, outstanding: bool
) -> None:
    pulse = Pulse(start, interval, patience, idle)
    if outstanding:
        pulse.probe_queued(start)
        pulse.probe_written(start)
    pulse.hold()
    now = start + held
    step = pulse.next_step(now)
    assert isinstance(step, Wait)
    assert step.until > now
    assert isinstance(pulse.next_step(now, stalled_since=now), Wait)
    dead = pulse.next_step(now + patience, stalled_since=now)
    assert isinstance(dead, Dead)
    assert dead.clock == "write"
    pulse.release(now)
    assert not isinstance(pulse.next_step(now), Dead)


@pytest.mark.fault("F73", where="memory")
@pytest.mark.parametrize("hours", [1, 12, 1000])
def test_a_clock_that_jumps_by_hours_asks_one_probe_and_gives_one_verdict(hours: int) -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    woken = 3600.0 * hours
    assert pulse.next_step(woken) == Probe()
    pulse.probe_queued(woken)
    pulse.probe_written(woken)
    assert pulse.next_step(woken) == Wait(woken + 10.0)
    assert pulse.next_step(woken + 10.0) == Dead("pong", woken + 10.0, missed=1)


def test_a_peer_that_answers_after_a_jump_is_probed_no_more_than_before() -> None:
    pulse = Pulse(0.0, ping_interval=20.0, pong_timeout=10.0)
    woken = 3600.0
    assert pulse.next_step(woken) == Probe()
    pulse.probe_queued(woken)
    pulse.probe_written(woken)
    pulse.heard(woken + 1.0)
    assert pulse.next_step(woken + 1.0) == Wait(woken + 11.0)
    assert pulse.next_step(woken + 19.0) == Wait(woken + 20.0)


def test_an_interval_shorter_than_the_patience_is_kept_after_a_quick_answer() -> None:
    pulse = Pulse(0.0, ping_interval=5.0, pong_timeout=60.0)
    verdict = Simulation(pulse, signs=[5.1]).run(until=1000.0)
    assert verdict is not None
    assert verdict[0] == pytest.approx(70.0, abs=0.2)
    assert verdict[0] <= 5.1 + 5.0 + 60.0
