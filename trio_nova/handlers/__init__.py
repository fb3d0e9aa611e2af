"""The strategies: what a session asks, each with a default that works.

A `def` hook decides and cannot block. It answers with an action (see `trio_nova.messages`), or with
None: go on. Handlers own their state; one instance may serve several sessions where that makes sense.
"""

from trio_nova.handlers._overrides import overrides as overrides
from trio_nova.handlers.auth import AuthExchange as AuthExchange
from trio_nova.handlers.auth import AuthHandler as AuthHandler
from trio_nova.handlers.connection import ConnectionHandler as ConnectionHandler
from trio_nova.handlers.connection import ConnectionInfo as ConnectionInfo
from trio_nova.handlers.correlation import Correlation as Correlation
from trio_nova.handlers.correlation import InOrder as InOrder
from trio_nova.handlers.error import AlwaysReconnect as AlwaysReconnect
from trio_nova.handlers.error import ErrorHandler as ErrorHandler
from trio_nova.handlers.error import FailFast as FailFast
from trio_nova.handlers.error import LogAndContinue as LogAndContinue
from trio_nova.handlers.heartbeat import Heartbeat as Heartbeat
from trio_nova.handlers.heartbeat import MessageHeartbeat as MessageHeartbeat
from trio_nova.handlers.heartbeat import NoHeartbeat as NoHeartbeat
from trio_nova.handlers.heartbeat import PingHeartbeat as PingHeartbeat
from trio_nova.handlers.heartbeat import ServerHeartbeat as ServerHeartbeat
from trio_nova.handlers.message import MessageHandler as MessageHandler
from trio_nova.handlers.rate_limit import RATE_COSTS as RATE_COSTS
from trio_nova.handlers.rate_limit import RateLimitHandler as RateLimitHandler
from trio_nova.handlers.rate_limit import RateRequest as RateRequest
from trio_nova.handlers.subscription import Channel as Channel
from trio_nova.handlers.subscription import Hole as Hole
from trio_nova.handlers.subscription import Page as Page
from trio_nova.handlers.subscription import SubscriptionHandler as SubscriptionHandler
