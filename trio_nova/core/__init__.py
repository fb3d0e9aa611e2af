"""What decides and never waits: no Trio, no clock and no randomness; `now` and `spread` are arguments."""

from trio_nova.core._checks import check_number as check_number
from trio_nova.core._checks import number as number
