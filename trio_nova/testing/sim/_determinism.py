"""What makes a run of Trio repeatable: the same seed, the same steps, in any process.

Trio runs the tasks that are ready in a random order, and frees deadlines of one instant by the
addresses of their scopes. In its deterministic mode it sorts the tasks of a step before it shuffles
them, with a generator that can be seeded; then neither matters. The rest is what libraries below draw
without asking: keys of handshakes and masks, from the system's entropy.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trio._core import _run

__all__ = ["deterministic"]


@contextmanager
def deterministic(seed: int | str) -> Iterator[None]:
    """Let every run of Trio in the block depend on `seed` alone.

    While it lasts, in the whole process: Trio schedules by a seeded generator, `os.urandom`, what is
    built on it (`secrets`, `uuid.uuid4`) and the functions of `random` are drawn from the seed, and
    cyclic garbage is not collected, as finalizers would run at a time of the collector's own. Nothing
    secret may be made in the block. All is put back when it is left.
    """
    entropy = random.Random(f"{seed}:entropy")
    trio_run: Any = _run
    random_module: Any = random
    scheduling, order = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    urandom, system, state = os.urandom, random_module._urandom, random.getstate()
    collects = gc.isenabled()
    gc.disable()
    try:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
        trio_run._r.seed(f"{seed}:scheduler")
        os.urandom = random_module._urandom = entropy.randbytes
        random.seed(f"{seed}:random")
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = scheduling
        trio_run._r.setstate(order)
        os.urandom, random_module._urandom = urandom, system
        random.setstate(state)
        if collects:
            gc.enable()
