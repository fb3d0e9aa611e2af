"""One link, as long as it is up: its tasks, and all that is true of it alone. It is thrown away when it is lost."""

from trio_nova._link.life import LinkLife as LinkLife
from trio_nova._link.live import LiveLink as LiveLink
