"""Tables as elements of pipelines: cut by a hash of their ids, merged, and handed to the driver.

An element is a table of thousands of rows, never a row: what Python costs is paid a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import apache_beam as beam
import numpy as np
import polars as pl

from hisam_jax.data.beam.state import State
from hisam_jax.data.identity import digests

_FANOUT = 16  # merges of more are done in two steps: one worker would have to take every part's counts

Merge = Callable[[Iterable[pl.DataFrame]], pl.DataFrame]


def part_of(digest: np.ndarray, parts: int) -> np.ndarray:
    """int64 [n]: which of `parts` equal ranges of uint64 a digest lies in, so that parts are ordered as digests are."""
    return ((digest >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def by_part(frame: pl.DataFrame, name: str, seed: int, parts: int) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of each part of the ids in column `name`; rows without an id go to part 0."""
    if parts == 1:
        yield 0, frame
        return
    ids = frame[name].unique().drop_nulls()
    table = pl.DataFrame({name: ids, "part": part_of(digests(ids, seed, name), parts)})
    rows = frame.join(table, on=name, how="left", maintain_order="left").with_columns(pl.col("part").fill_null(0))
    for (part,), chosen in rows.partition_by("part", as_dict=True, include_key=False).items():
        yield part, chosen


def concat(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """One below the other; no columns at all where there is none."""
    frames = [frame for frame in frames if frame.width]
    return pl.concat(frames) if frames else pl.DataFrame()


def sum_counts(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Tables of a key and its `count`: the counts of each key added up, the keys in order."""
    frame = concat(frames)
    if not frame.width:
        return frame
    key = frame.columns[0]
    return frame.group_by(key).agg(pl.col("count").sum()).sort(key)


def count_values(values: np.ndarray, key: str) -> pl.DataFrame:
    """Columns `key` and `count`: the distinct values and how often each occurs."""
    found, count = np.unique(values, return_counts=True)
    return pl.DataFrame({key: found, "count": count.astype(np.int64)})


def merged(frames: beam.PCollection, merge: Merge, label: str, parts: int) -> beam.PCollection:
    """One table of the tables of `parts` parts; `merge` must not mind in which groups it is called."""
    combine = beam.CombineGlobally(merge)
    return frames | f"merge {label}" >> (combine.with_fanout(_FANOUT) if parts > _FANOUT else combine)


def save(frames: beam.PCollection, state: State, name: str, parts: int, merge: Merge = concat) -> None:
    """The merged table as a file for the driver."""
    write(merged(frames, merge, name, parts), state, name)


def write(frame: beam.PCollection, state: State, name: str) -> None:
    """The one table of a collection as a file for the driver."""
    frame | f"write {name}" >> beam.Map(lambda table: state.write_frame(name, table))
