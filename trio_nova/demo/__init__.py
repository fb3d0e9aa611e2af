"""The demonstration: a client trades, without a break, with an exchange that fails it in every way there is.

`python -m trio_nova demo` runs it, on loopback, with nothing but what the library itself needs. Both
sides keep books, and at the end they are compared.
"""

from trio_nova.demo.journal import schedule as schedule
from trio_nova.demo.session import Options as Options
from trio_nova.demo.session import run_demo as run_demo
from trio_nova.demo.show import choose_display as choose_display
