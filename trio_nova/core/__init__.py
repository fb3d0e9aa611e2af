"""What decides and never waits: no Trio, no clock and no randomness; `now` and `spread` are arguments."""

from trio_nova.core._checks import check_bool as check_bool
from trio_nova.core._checks import check_callable as check_callable
from trio_nova.core._checks import check_count as check_count
from trio_nova.core._checks import check_number as check_number
from trio_nova.core._checks import check_text as check_text
from trio_nova.core._checks import check_whole as check_whole
from trio_nova.core._checks import number as number
from trio_nova.core._checks import one_of as one_of
from trio_nova.core._strategy import Strategy as Strategy
from trio_nova.core._strategy import derive as derive
