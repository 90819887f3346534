"""An optional trace of given steps, for TensorBoard's profile plugin or Perfetto."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax


class Profile:
    """Traces from the first of `steps` to the last."""

    def __init__(self, steps: Sequence[int], folder: Path):
        self._steps, self._folder, self._on = steps, folder, False

    def before(self, step: int) -> None:
        """Starts ahead of the first step and ends behind the last."""
        if not self._steps:
            return
        if self._on and step > self._steps[1]:
            self.end()
        if not self._on and self._steps[0] <= step <= self._steps[1]:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def end(self) -> None:
        """Writes the trace, if one was begun."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
