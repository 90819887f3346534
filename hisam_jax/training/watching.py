"""What a run is doing with its time: step times, waiting for input, memory, model FLOP utilisation."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from hisam_jax.chips import chip_of


def lengths_of(segment_BN: np.ndarray) -> np.ndarray:
    """Items of each packed history of a batch; padding (0 and less) is none."""
    padded = np.pad(segment_BN, ((0, 0), (1, 1)))
    row, starts = np.nonzero(np.diff(padded, axis=1))
    run = np.diff(np.append(starts, 0))
    inside = (np.diff(row, append=-1) == 0) & (segment_BN[row, np.minimum(starts, segment_BN.shape[1] - 1)] > 0)
    return run[inside]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a batch costs a model.

    Attributes:
        tokens_per_item: of a group.
        flops: useful operations of a training step over histories of these lengths.
    """

    tokens_per_item: int
    flops: Callable[[Sequence[int]], int]


TIMES = ("step_seconds_p50", "step_seconds_p95", "input_wait", "tokens_per_second", "mfu", "memory_bytes")


class Watch:
    """Collects between two lines of the log.

    Args:
        cost: of a batch.
        share: rows of all processes, over those of this one; processes that split a row hold the same.

    Attributes:
        step_flops: useful operations of the latest step on all devices, 0 where they are not known.
    """

    def __init__(self, cost: Cost | None, share: int = 1):
        self.cost, self._share = cost, share
        chip = chip_of(jax.devices()[0].device_kind)
        self._peak = chip.flops if chip else None
        self._last: float | None = None
        self.step_flops = 0
        self._clear()

    def _clear(self) -> None:
        self._steps: list[float] = []
        self._waited, self._flops, self._items = 0.0, 0, 0

    def waited(self, seconds: float) -> None:
        """The next batch was not ready for so long."""
        self._waited += seconds

    def dispatched(self, batch: Mapping[str, np.ndarray]) -> int:
        """A step over this process's rows is on its way; returns the items that they hold."""
        segment_BN = np.asarray(batch["segment"])
        held = int(np.count_nonzero(segment_BN > 0))
        self._items += held
        self.step_flops = 0 if self.cost is None else self._share * self.cost.flops(lengths_of(segment_BN))
        self._flops += self.step_flops
        return held

    def finished(self) -> None:
        """A step's metrics have come home."""
        now = time.monotonic()
        if self._last is not None:
            self._steps.append(now - self._last)
        else:
            self._clear()  # what came before was for a step whose time is not counted
        self._last = now

    def paused(self) -> None:
        """Something else took the time until now: the next step's is not counted."""
        self._last = None

    def take(self) -> dict[str, float]:
        """Figures since the last `take`: tokens and utilisation of all devices, the rest of this process."""
        if not self._steps:
            self._clear()
            return {}
        seconds = float(np.sum(self._steps))
        p50, p95 = np.percentile(self._steps, [50, 95])
        found = {"step_seconds_p50": float(p50), "step_seconds_p95": float(p95), "input_wait": self._waited / seconds}
        if self.cost is not None:
            found["tokens_per_second"] = self._share * self._items * self.cost.tokens_per_item / seconds
            if self._peak:
                found["mfu"] = self._flops / seconds / self._peak / jax.device_count()
        found["memory_bytes"] = _memory()
        self._clear()
        return found


class Clock:
    """Seconds of wall clock over all restarts, and the time of a lap without its pauses."""

    def __init__(self, before: float):
        self._before, self._start = before, time.monotonic()
        self._lap, self._paused = self._start, 0.0

    def seconds(self) -> float:
        """Of all restarts, pauses included."""
        return self._before + time.monotonic() - self._start

    def lap(self) -> float:
        """Since the last lap, without what was paused."""
        now = time.monotonic()
        seconds, self._lap, self._paused = now - self._lap - self._paused, now, 0.0
        return seconds

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time that no lap counts."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - start


def _memory() -> float:
    """The most bytes of device memory in use so far, of the process's own memory where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return float(stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
