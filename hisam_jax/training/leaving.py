"""When all processes of a run stop because one of them was told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import jax

from hisam_jax.distributed import agree

STEPS, SECONDS = 10, 20.0  # at most, between two askings: launchers kill 120 s after SIGTERM, saving included


class Leaving:
    """Whether any process was told to end; every process asks behind the same steps.

    Args:
        told: set where this process was.
        step: that the run begins at, the same in all processes.
        clock: seconds.
    """

    def __init__(self, told: threading.Event, step: int, clock: Callable[[], float] = time.monotonic):
        self._told, self._clock = told, clock
        self._leaving, self._next = False, step
        self._asked: tuple[int, float] | None = None

    def behind(self, step: int) -> bool:
        """Whether all leave behind this step; once True, it stays so.

        Raises:
            PeerLost: another process does not answer.
        """
        if jax.process_count() == 1:
            return self._told.is_set()
        if not self._leaving and step >= self._next:
            self._leaving = agree(self._told.is_set())
            self._next = step + (1 if agree(self._slow(step)) else STEPS)  # clocks differ: all go by the slowest
        return self._leaving

    def _slow(self, step: int) -> bool:
        """Whether STEPS at the pace since the last asking would take too long, or are not known not to."""
        before, now = self._asked, self._clock()
        self._asked = step, now
        return before is None or (now - before[1]) / (step - before[0]) * STEPS > SECONDS
