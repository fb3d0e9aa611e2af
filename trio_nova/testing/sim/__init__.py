"""A world in virtual time for sessions to live in: a network that fails, services that misbehave, and a judge.

::

    from trio_nova.testing import sim

    run = sim.run(17)                       # one seed: everything in it follows from the number
    assert not run.violations, run
    report = sim.campaign(range(1, 301))    # or: python -m trio_nova.testing.sim --seeds 300 --processes 2

A run is a network (`SimNet`) with a service (`SimServer`), a schedule of faults, and programs that use
`trio_nova` through its public API, by default those of the campaign. Everything that happens is written
to a `Journal`; `CHECKS` judge it, `SIGHTS` say whether there was anything to see. The same seed gives the
same journal in every process. Your own session code runs in it as well: `sim.run(17, session=main)`.
"""

from trio_nova.testing.sim import _checks_of_readings as _checks_of_readings  # which puts its rules into the table
from trio_nova.testing.sim._campaign import Outcome as Outcome
from trio_nova.testing.sim._campaign import Report as Report
from trio_nova.testing.sim._campaign import campaign as campaign
from trio_nova.testing.sim._checks import CHECKS as CHECKS
from trio_nova.testing.sim._checks import Check as Check
from trio_nova.testing.sim._checks import History as History
from trio_nova.testing.sim._checks import Violation as Violation
from trio_nova.testing.sim._checks import check as check
from trio_nova.testing.sim._checks import invariant as invariant
from trio_nova.testing.sim._determinism import deterministic as deterministic
from trio_nova.testing.sim._faults import FAULTS as FAULTS
from trio_nova.testing.sim._faults import Fault as Fault
from trio_nova.testing.sim._faults import FaultKind as FaultKind
from trio_nova.testing.sim._faults import draw_schedule as draw_schedule
from trio_nova.testing.sim._faults import fault_kind as fault_kind
from trio_nova.testing.sim._journal import Journal as Journal
from trio_nova.testing.sim._journal import Record as Record
from trio_nova.testing.sim._journal import read_journal as read_journal
from trio_nova.testing.sim._kinds import SERVERS as SERVERS
from trio_nova.testing.sim._net import DirectSimStream as DirectSimStream
from trio_nova.testing.sim._net import Host as Host
from trio_nova.testing.sim._net import SimLink as SimLink
from trio_nova.testing.sim._net import SimNet as SimNet
from trio_nova.testing.sim._net import SimStream as SimStream
from trio_nova.testing.sim._net import Weather as Weather
from trio_nova.testing.sim._run import Run as Run
from trio_nova.testing.sim._run import run as run
from trio_nova.testing.sim._scenario import CANARY as CANARY
from trio_nova.testing.sim._scenario import Scenario as Scenario
from trio_nova.testing.sim._scenario import ServerKind as ServerKind
from trio_nova.testing.sim._scenario import draw_scenario as draw_scenario
from trio_nova.testing.sim._servers import SimServer as SimServer
from trio_nova.testing.sim._shrink import replay_test as replay_test
from trio_nova.testing.sim._shrink import shrink as shrink
from trio_nova.testing.sim._sights import SIGHTS as SIGHTS
from trio_nova.testing.sim._sights import sight as sight
from trio_nova.testing.sim._world import World as World
