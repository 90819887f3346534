"""The log in spans that workers read at the same time, each by itself."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import polars as pl

from hisam_jax.data.beam.state import State
from hisam_jax.data.readers.base import RawData
from hisam_jax.data.readers.columns import scan_lines, whole_parquet
from hisam_jax.data.readers.line_log import LineLog

SPAN_BYTES = 1 << 24  # of a text file
SPAN_ROWS = 1 << 18  # of a table


@dataclasses.dataclass(frozen=True)
class LineSpan:
    """The lines of a text file that begin at bytes `start` to `stop` - 1; the first of them is row `first_row`."""

    log: LineLog
    start: int
    stop: int
    first_row: int = 0

    def read(self, state: State) -> pl.DataFrame:
        """INTERACTION_SCHEMA."""
        return self.log.parse(self._lines()).collect()

    def count(self) -> int:
        """How many lines."""
        return self._lines().select(pl.len()).collect().item()

    def _lines(self) -> pl.LazyFrame:
        with open(self.log.path, "rb") as stream:
            start, stop = (_line_start(stream, place) for place in (self.start, self.stop))
            stream.seek(start)
            return scan_lines(io.BytesIO(stream.read(stop - start)), self.first_row)


@dataclasses.dataclass(frozen=True)
class SliceSpan:
    """Rows of a table that is read without what lies before them."""

    frame: pl.LazyFrame
    path: Path
    first_row: int
    rows: int

    def read(self, state: State) -> pl.DataFrame:
        """INTERACTION_SCHEMA."""
        with whole_parquet(self.path):
            return self.frame.slice(self.first_row, self.rows).collect()


@dataclasses.dataclass(frozen=True)
class StoredSpan:
    """Rows that the driver has put among the pipelines' files."""

    name: str

    def read(self, state: State) -> pl.DataFrame:
        """INTERACTION_SCHEMA."""
        return state.read_frame(self.name)


def line_spans(log: LineLog) -> list[LineSpan]:
    """Spans whose `first_row` is not known yet."""
    size = os.path.getsize(log.path)
    return [LineSpan(log, start, min(start + SPAN_BYTES, size)) for start in range(0, size, SPAN_BYTES)]


def numbered(spans: list[LineSpan], counts: list[int]) -> list[LineSpan]:
    """The spans, in their order, with `first_row` from how many lines each has."""
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    return [dataclasses.replace(span, first_row=row) for span, row in zip(spans, firsts, strict=True)]


def slice_spans(raw: RawData) -> list[SliceSpan]:
    """Of a log that is `sliceable`."""
    with whole_parquet(raw.interactions_path):
        rows = raw.interactions.select(pl.len()).collect().item()
    starts = range(0, rows, SPAN_ROWS)
    return [SliceSpan(raw.interactions, raw.interactions_path, start, SPAN_ROWS) for start in starts]


def stored_spans(raw: RawData, state: State) -> list[StoredSpan]:
    """Of a log that has to be read from its beginning: the driver streams it to `state`."""
    spans = []
    with whole_parquet(raw.interactions_path):
        for batch in raw.interactions.collect_batches(chunk_size=SPAN_ROWS, maintain_order=True):
            spans.append(StoredSpan(f"log/{len(spans):06d}.parquet"))
            state.write_frame(spans[-1].name, batch)
    return spans


def is_gzipped(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _line_start(stream, place: int) -> int:
    """The first byte at or after `place` that begins a line, or the file's end."""
    if place == 0:
        return 0
    stream.seek(place - 1)
    stream.readline()
    return stream.tell()
