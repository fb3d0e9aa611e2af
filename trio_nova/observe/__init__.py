"""Observers of what happens in a session: the log, the metrics, a trace of states.

See `trio_nova.events.Observer` for your own.
"""

from trio_nova.observe.logging import LoggingHandler as LoggingHandler
from trio_nova.observe.metrics import MetricsCollector as MetricsCollector
from trio_nova.observe.trace import StateTrace as StateTrace
from trio_nova.observe.trace import TracedChange as TracedChange
