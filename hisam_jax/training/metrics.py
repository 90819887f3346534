"""Where training figures go: means between two lines, `metrics.jsonl` and TensorBoard, exact across restarts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from hisam_jax.files import atomic_write, full_disk_is_a_user_error


class Averages:
    """Running means of scalars; its `state()` is plain JSON, so that a restored run averages the same steps."""

    def __init__(self, state: Mapping[str, list[float]] | None = None):
        self._sums = {name: list(pair) for name, pair in (state or {}).items()}

    def add(self, values: Mapping[str, float]) -> None:
        """Adds one step; what is not finite (a head with no target in the batch) is left out of its mean."""
        for name, value in values.items():
            if math.isfinite(value):
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = [total + value, count + 1]

    def take(self) -> dict[str, float]:
        """The means since the last `take`, names sorted."""
        means = {name: total / count for name, (total, count) in sorted(self._sums.items())}
        self._sums = {}
        return means

    def state(self) -> dict[str, list[float]]:
        """What `__init__` takes."""
        return {name: list(pair) for name, pair in self._sums.items()}


class MetricsLog:
    """One JSON object a line in `workdir/metrics.jsonl`, and the same scalars in `workdir/tensorboard`."""

    def __init__(self, workdir: str | os.PathLike, step: int = 0):
        """Continues after `step`: lines of later steps, and a line cut short, are dropped."""
        self.path = Path(workdir) / "metrics.jsonl"
        self.last_step = truncate(self.path, step)
        self._stream = open(self.path, "a", encoding="utf-8")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line that survives a kill; numbers that are not finite become null."""
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with full_disk_is_a_user_error(self.path):
            self._stream.write(json.dumps({"step": step, **line}) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        self._board.close()
        self._stream.close()


class MetricsReader:
    """What a process that does not write the log knows of it."""

    def __init__(self, workdir: str | os.PathLike, step: int = 0):
        """The log as `MetricsLog` leaves it when it continues after `step`."""
        rows = [row for row in read_metrics(Path(workdir) / "metrics.jsonl") if row["step"] <= step]
        self.last_step = rows[-1]["step"] if rows else 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: one process writes."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: str | os.PathLike) -> list[dict[str, float | None]]:
    """The whole lines of a `metrics.jsonl`, oldest first; none where there is no file."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # a kill cut the last line
    return rows


def truncate(path: str | os.PathLike, step: int) -> int:
    """Keeps the lines up to `step`; the step of the last one, 0 where none is left."""
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept[-1]["step"] if kept else 0
