"""What benchmarks share: where they ran, processes pinned to a core, tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.stats

from hisam_jax.markdown import interval
from hisam_jax.markdown import markdown_table as table

__all__ = ["interval", "table"]

RESULTS = Path(__file__).parent / "results"
Started = tuple[subprocess.Popen, Path]


def processor() -> str:
    """The CPU's name and its number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of `packages`."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def keep_pictures(plots: Path, folder: Path) -> list[str]:
    """Copies a run's pictures to where a page links them; returns their names."""
    pictures = sorted(plots.glob("*.svg"))
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
    return [picture.stem for picture in pictures]


def start(arguments: Sequence[str], log: Path, core: int | None = None) -> Started:
    """Starts `python ARGUMENTS` with stderr appended to `log`, on one core where one is given."""
    pinned = {core % os.cpu_count()} if core is not None else None
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            preexec_fn=(lambda: os.sched_setaffinity(0, pinned)) if pinned else None,
        )
    return process, log


def wait(started: Iterable[Started]) -> None:
    """Waits for all of them; the first failure ends the benchmark and names its log."""
    for process, log in started:
        if process.wait():
            raise SystemExit(f"exit code {process.returncode}; see {log}")


def t_half_width(values: Sequence[float]) -> float:
    """Half the 95 % t-interval of a mean of at least two values."""
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
