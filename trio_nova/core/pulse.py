"""Is the peer alive? Decided from three clocks.

* *pong*: a ping that was handed to the operating system must be followed by a sign of life within
  `pong_timeout`. Any byte counts: a peer that sends data but never pongs is alive.
  A beat of the application's that nobody answers owes none; and it leaves each `ping_interval`, whatever is
  heard and whatever answer is still due, as the peer may judge us by it. A ping waits for the last one's answer.
  Where `max_missed` is more than 1, a probe that nobody answers is only counted at first, and the next leaves at
  once; what is heard makes the count 0 again.
* *write*: a write under way must make progress within `pong_timeout`. Without this clock a blocked
  writer would keep the ping from leaving, and a dead peer from being noticed.
* *idle*: nothing at all for `idle_timeout`, for services that ping by themselves.

What the peer's machine still acknowledges of earlier writes counts for both, where the operating system tells.

So a dead peer is noticed within `ping_interval + max_missed * pong_timeout`, whether or not somebody is sending.
While the user's own code holds up reading, no pong can be seen: silence is then held against nobody.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

__all__ = ["Dead", "Missed", "Probe", "Pulse", "Wait"]


@attrs.frozen
class Wait:
    """Nothing to do before `until`."""

    until: float


@attrs.frozen
class Probe:
    """Queue a ping, then call `probe_queued`; and `probe_written` once it has left."""


@attrs.frozen
class Missed:
    """Nothing answered a probe, and that is still allowed: call `probe_missed`, and ask again."""

    count: int
    """Probes in a row, this one included."""
    silence: float


@attrs.frozen
class Dead:
    """Abort the link: `clock` ran out after `silence` seconds."""

    clock: Literal["pong", "write", "idle"]
    silence: float
    missed: int = 0
    """By the pong clock: probes in a row that nothing answered."""


@attrs.define
class Pulse:
    """The liveness of one link. All times are readings of one monotonic clock, in seconds."""

    started: float
    ping_interval: float = 20.0
    pong_timeout: float = 20.0
    idle_timeout: float = math.inf
    max_missed: int = 1
    """Probes in a row without an answer at which the peer is dead."""
    missed: int = attrs.field(default=0, init=False)
    """Probes in a row that nothing has answered."""
    last_heard: float = attrs.field(init=False)
    _next_probe: float = attrs.field(init=False)
    _probe_is_queued: bool = attrs.field(default=False, init=False)
    _is_beat: bool = attrs.field(default=False, init=False)
    """Whether the last probe was the application's: the next one does not wait for its answer."""
    _heard_since_probe: bool = attrs.field(default=False, init=False)
    _pong_due: float = attrs.field(default=math.inf, init=False)
    _held: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.last_heard = self.started
        self._next_probe = self.started + self.ping_interval

    def heard(self, now: float) -> None:
        """Bytes arrived: the peer lives."""
        self.last_heard = now
        self._pong_due = math.inf
        self._heard_since_probe = True
        self.missed = 0

    def last_heard_below(self, at: float) -> None:
        """Bytes arrived at `at`, if they were not heard of by then: they lie where messages are made of them."""
        if at > self.last_heard:
            self.heard(at)

    def delivered(self, at: float) -> None:
        """At `at` the peer's machine took some of what stands before the probe: the answer cannot be due yet."""
        if self._pong_due < math.inf:
            self._pong_due = max(self._pong_due, at + self.pong_timeout)

    def probe_queued(self, now: float) -> None:
        """A ping waits for the writer: until it has left, only the write clock can run out."""
        self._probe_is_queued = True
        self._heard_since_probe = False
        self._next_probe = now + self.ping_interval

    def probe_skipped(self) -> None:
        """Nothing is sent after all: the heartbeat is off, or failed, or the rate limit refused it."""
        self._probe_is_queued = False

    def probe_written(self, now: float, *, is_beat: bool = False, answered: bool = True) -> None:
        """The probe has left: a sign of life is due, unless one came while the rest of its batch was written.

        Args:
            now: the time.
            is_beat: whether it is a message of the application's.
            answered: whether a sign of life can be expected for it.
        """
        self._probe_is_queued = False
        self._is_beat = is_beat
        if answered and not self._heard_since_probe:
            self._pong_due = min(self._pong_due, now + self.pong_timeout)

    def probe_missed(self, now: float) -> None:
        """Count a probe that nothing has answered, and ask again at once, unless the next one is on its way already."""
        self.missed += 1
        self._pong_due = math.inf
        if not self._probe_is_queued:
            self._next_probe = now

    def hold(self) -> None:
        """Reading stands still by our own doing: judge no silence until `release`."""
        self._held = True

    def release(self, now: float) -> None:
        """Reading goes on: the peer gets its full patience anew."""
        self._held = False
        self.last_heard = now
        if self._pong_due < math.inf:
            self._pong_due = now + self.pong_timeout

    def reconfigure(
        self, now: float, *, ping_interval: float, pong_timeout: float, idle_timeout: float, max_missed: int = 1
    ) -> None:
        """Use other durations, and another patience, from now on."""
        self.ping_interval, self.pong_timeout, self.idle_timeout = ping_interval, pong_timeout, idle_timeout
        self.max_missed = max_missed
        self._next_probe = min(self._next_probe, now + ping_interval) if ping_interval < math.inf else math.inf

    def probe_now(self, now: float) -> None:
        """Probe at the next step, whatever the interval: there is reason to doubt."""
        self._next_probe = min(self._next_probe, now)

    def next_step(self, now: float, stalled_since: float | None = None) -> Wait | Probe | Missed | Dead:
        """Say what to do at `now`; `stalled_since` is when the write under way last made progress, if there is one."""
        write_due = math.inf if stalled_since is None else stalled_since + self.pong_timeout
        if now >= write_due:
            return Dead("write", now - write_due + self.pong_timeout)
        if self._held:
            return Wait(min(write_due, now + self.pong_timeout))
        idle_due = self.last_heard + self.idle_timeout
        if now >= idle_due:
            return Dead("idle", now - self.last_heard)
        if now >= self._pong_due:
            missed, silence = self.missed + 1, now - self.last_heard
            return Missed(missed, silence) if missed < self.max_missed else Dead("pong", silence, missed)
        waits_for_probe = self._probe_is_queued or (self._pong_due < math.inf and not self._is_beat)
        if now >= self._next_probe and not waits_for_probe:
            return Probe()
        # While we wait a write may begin to stall, or the answer come and the next probe be due: look again in time.
        probe_due = now + self.ping_interval if waits_for_probe else self._next_probe
        return Wait(min(write_due, idle_due, self._pong_due, probe_due, now + self.pong_timeout))
