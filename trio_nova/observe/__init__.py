"""Observers of what happens in a session: the log, and the metrics; see `trio_nova.events.Observer` for your own."""

from trio_nova.observe.logging import LoggingHandler as LoggingHandler
from trio_nova.observe.metrics import MetricsCollector as MetricsCollector
