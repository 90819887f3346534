"""From the log to parts: rows judged, joined with the catalogue and sorted; a part is one range of users' digests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import polars as pl

from hisam_jax.data.beam.frames import by_part, concat, part_of, save
from hisam_jax.data.beam.mistakes import sent_to_driver
from hisam_jax.data.beam.parts import write_part
from hisam_jax.data.beam.spans import LineSpan, SliceSpan, StoredSpan
from hisam_jax.data.beam.state import State
from hisam_jax.data.identity import digests, shuffled
from hisam_jax.data.preparation import Events, drop_duplicates, time_order
from hisam_jax.data.validation import checked, tally

TALLY, PARTS = "tally.parquet", "parts.parquet"
_ROWS = 1 << 18  # joined rows that are cut by user at once: fewer would make crumbs of them
Span = LineSpan | SliceSpan | StoredSpan


@dataclasses.dataclass(frozen=True)
class Log:
    """What every worker has to know of the source.

    Attributes:
        parts: how many parts items, and users, are cut into.
        seed: of the order of the indices and of the tie-break.
    """

    parts: int
    seed: int
    has_timestamps: bool
    has_ratings: bool


def write_catalogue(item_ids: pl.Series, log: Log, state: State) -> None:
    """The join's other side, a file a part: item, item_code and item_digest.

    `CoGroupByKey` would hold all events of a part's items at once, and a bestseller's do not fit; so the events are
    grouped alone, and stream past their part of the catalogue.
    """
    digest = digests(item_ids, log.seed, "item")
    codes = np.arange(len(item_ids), dtype=np.int32)
    frame = pl.DataFrame({"item": item_ids, "item_code": codes, "item_digest": digest})
    parts = part_of(digest, log.parts)
    for part in range(log.parts):
        state.write_frame(f"catalogue/{part:05d}.parquet", frame.filter(pl.Series(parts == part)))


def partition(pipeline: beam.Pipeline, spans: list[Span], log: Log, state: State) -> None:
    """Writes every part that has users, TALLY and PARTS (part, users, events, duplicates)."""
    rows = pipeline | beam.Create(spans) | beam.Reshuffle() | "read" >> beam.FlatMap(_read, log, state)
    joined = rows | "by item" >> beam.GroupByKey() | "join" >> beam.ParDo(_Join(log, state)).with_outputs(main="usable")
    save(joined.tally, state, TALLY, log.parts, merge_tallies)
    sizes = joined.usable | "by user" >> beam.GroupByKey() | "sort" >> beam.Map(_sort, log, state)
    save(sizes, state, PARTS, log.parts)


def merge_tallies(tallies: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """`tally` of tallies."""
    frame = concat(tallies)
    return tally(frame.lazy()) if frame.width else frame


def _read(span: Span, log: Log, state: State) -> Iterator[tuple[int, pl.DataFrame]]:
    with sent_to_driver():
        yield from by_part(span.read(state), "item", log.seed, log.parts)


class _Join(beam.DoFn):
    """Rows of one part of the items -> their tally, and usable events by part of the users."""

    def __init__(self, log: Log, state: State):
        self.log, self.state = log, state

    def process(self, element: tuple[int, Iterable[pl.DataFrame]]) -> Iterator:
        part, frames = element
        catalogue = self.state.read_frame(f"catalogue/{part:05d}.parquet").lazy()
        for rows in _gathered(frames):
            known = catalogue.select("item", "item_code")
            judged = checked(rows.lazy(), known, self.log.has_timestamps, self.log.has_ratings).collect()
            yield beam.pvalue.TaggedOutput("tally", tally(judged.lazy().with_columns(rows=pl.lit(1, pl.Int64))))
            digest = catalogue.select(item="item_code", item_digest="item_digest")
            usable = judged.lazy().filter(pl.col("reason").is_null()).join(digest, on="item", how="left")
            columns = ["user", "item", "item_digest", "time"] + ["rating"] * self.log.has_ratings
            yield from by_part(usable.select(columns).collect(), "user", self.log.seed, self.log.parts)


def _gathered(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    waiting, rows = [], 0
    for frame in frames:
        waiting.append(frame)
        rows += len(frame)
        if rows >= _ROWS:
            yield pl.concat(waiting)
            waiting, rows = [], 0
    if rows:
        yield pl.concat(waiting)


def _sort(group: tuple[int, Iterable[pl.DataFrame]], log: Log, state: State) -> pl.DataFrame:
    part, rows = group[0], concat(group[1])
    users = shuffled(rows["user"].unique(), log.seed, "user")
    places = pl.DataFrame({"user": users, "place": np.arange(len(users), dtype=np.int32)})
    user = rows.select("user").join(places, on="user", how="left", maintain_order="left")["place"].to_numpy()
    item, time = rows["item"].to_numpy(), rows["time"].to_numpy()
    # The items at hand under codes of their own, in the order of the catalogue's.
    _, first, local = np.unique(item, return_index=True, return_inverse=True)
    order = time_order(user, local, time, digests(users, log.seed, "user"), rows["item_digest"].to_numpy()[first])
    rating = rows["rating"].to_numpy()[order] if log.has_ratings else None
    events = Events(user[order], item[order], time[order], rating)
    events, duplicates = drop_duplicates(events) if log.has_timestamps else (events, 0)
    write_part(state, part, users, events)
    row = {"part": part, "users": len(users), "events": len(events), "duplicates": duplicates}
    return pl.DataFrame([row])
