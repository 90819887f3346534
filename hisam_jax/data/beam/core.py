"""The k-core over all parts: which items stay, by rounds to the fixed point.

A round drops, in every part, the events on items that are out and then the users with too few events left, counts what
is left of every item, and puts out the items with too few. Events are never written again: the items that are in are
all that a round hands on. Their number falls until it stays, and where it stays is the largest set, as on one machine.

A pipeline has a fixed number of stages and the rounds have none, so pipelines of `ROUNDS` rounds follow one another,
the items lying on disk in between: one pipeline a round would wait for a cluster every time, and many rounds in one
would read all parts in vain once nothing changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import apache_beam as beam
import polars as pl

from hisam_jax.data.beam.frames import count_values, merged, sum_counts, write
from hisam_jax.data.beam.parts import Core, read_events, read_items
from hisam_jax.data.beam.runners import Runner
from hisam_jax.data.beam.state import State

ROUNDS = 3  # in one pipeline, 2 at least: the last two are compared
ROUNDS = 3


def k_core_items(runner: Runner, parts: Sequence[int], core: Core, state: State) -> str | None:
    """Name of the table with the items (column `item`) of the k-core; None where every item may stay."""
    if core.min_item <= 1:
        return None
    items = None
    for number in itertools.count():
        names = [f"core/{number:04d}-{which}.parquet" for which in ("before", "after")]
        runner.run(_rounds, parts, core, items, state, names)
        items = names[1]
        if len(state.read_frame(names[0])) == len(state.read_frame(items)):
            return items


def _rounds(
    pipeline: beam.Pipeline,
    parts: Sequence[int],
    core: Core,
    items: str | None,
    state: State,
    names: Sequence[str],
) -> None:
    stages = [pipeline | "items" >> beam.Create([items]) | beam.Map(lambda name: read_items(state, name))]
    for number in range(ROUNDS):
        given = beam.pvalue.AsSingleton(stages[-1])
        numbers = pipeline | f"parts {number}" >> beam.Create(list(parts)) | f"spread {number}" >> beam.Reshuffle()
        counts = numbers | f"count {number}" >> beam.Map(_count, given, core, state)
        stages.append(merged(counts, sum_counts, str(number), len(parts)) | f"drop {number}" >> beam.Map(_enough, core))
    for stage, name in zip(stages[-2:], names, strict=True):
        write(stage, state, name)


def _count(part: int, items: pl.DataFrame | None, core: Core, state: State) -> pl.DataFrame:
    return count_values(read_events(state, part, core, items).item, "item")


def _enough(counts: pl.DataFrame, core: Core) -> pl.DataFrame:
    return counts.filter(pl.col("count") >= core.min_item).select("item")
