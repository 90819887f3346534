"""A log of one event a line: read as a whole, or any block of its lines by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import polars as pl

from hisam_jax.data.readers.columns import check_has_rows, scan_lines, to_interactions


@dataclasses.dataclass(frozen=True)
class LineLog:
    """How lines become events; can be pickled.

    Attributes:
        path: the file.
        rows: lines (`row`, `raw`) -> what `to_interactions` takes.
        unit, dates, first_line: as in `to_interactions`.
    """

    path: Path
    rows: Callable[[pl.LazyFrame], pl.LazyFrame]
    unit: str = "s"
    dates: bool = False
    first_line: int = 0

    def scan_rows(self) -> pl.LazyFrame:
        """The whole file's `rows`; a `UserError` if there is not one."""
        return check_has_rows(self.rows(scan_lines(self.path)), self.path)

    def scan(self) -> pl.LazyFrame:
        """INTERACTION_SCHEMA of the whole file, lazily."""
        return self.parse(scan_lines(self.path))

    def parse(self, lines: pl.LazyFrame) -> pl.LazyFrame:
        """INTERACTION_SCHEMA of some of the file's lines, each with the number that it has in the file."""
        rows = self.rows(lines)
        return to_interactions(rows, unit=self.unit, dates=self.dates, first_line=self.first_line)
