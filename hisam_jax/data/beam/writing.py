"""From parts to records: the events that stay under their last indices, marked, encoded and counted."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import polars as pl

from hisam_jax.data.beam.frames import concat, count_values, save, sum_counts
from hisam_jax.data.beam.parts import Core, read_events, read_items, read_users
from hisam_jax.data.beam.state import State
from hisam_jax.data.marks import mark
from hisam_jax.data.preparation import Events, renumber
from hisam_jax.data.prepared import users_table
from hisam_jax.data.records import TRAIN, UserSequence, decode, encode
from hisam_jax.data.sequence_files import file_name, num_files, write_file

SIZES, MOMENTS, MARKS, ITEMS = "sizes.parquet", "moments.parquet", "marks.parquet", "items.parquet"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a worker has to know to write a part.

    Attributes:
        core, items: which events stay; `items` as `k_core_items` gives it.
        protocol, cuts: how they are split.
        users_per_file: users in an ArrayRecord file.
        first_user: part -> the index of its first user in the whole dataset.
        num_users: of the whole dataset.
    """

    core: Core
    items: str | None
    protocol: str
    cuts: Mapping[str, int]
    has_timestamps: bool
    users_per_file: int
    first_user: Mapping[int, int]
    num_users: int


def survey(
    pipeline: beam.Pipeline, parts: Sequence[int], core: Core, items: str | None, moments: bool, state: State
) -> None:
    """Writes SIZES (part, users, events) and, if asked for, MOMENTS (time, count)."""
    numbers = pipeline | beam.Create(list(parts)) | beam.Reshuffle()
    surveyed = numbers | "survey" >> beam.ParDo(_Survey(core, items, moments, state)).with_outputs(main="sizes")
    save(surveyed.sizes, state, SIZES, len(parts))
    if moments:
        save(surveyed.moments, state, MOMENTS, len(parts), sum_counts)


def write_sequences(pipeline: beam.Pipeline, parts: Sequence[int], plan: Plan, state: State) -> None:
    """Writes the ArrayRecord files, the table of each part's users, MARKS (a row a part) and ITEMS (item, count)."""
    numbers = pipeline | beam.Create(list(parts)) | beam.Reshuffle()
    written = numbers | "mark" >> beam.ParDo(_Mark(plan, state)).with_outputs(main="records")
    save(written.marks, state, MARKS, len(parts))
    save(written.items, state, ITEMS, len(parts), sum_counts)
    written.records | "by file" >> beam.GroupByKey() | "write" >> beam.Map(_write_file, plan, state)


class _Survey(beam.DoFn):
    def __init__(self, core: Core, items: str | None, moments: bool, state: State):
        self.core, self.items, self.moments, self.state = core, items, moments, state

    def process(self, part: int) -> Iterator:
        events = read_events(self.state, part, self.core, read_items(self.state, self.items))
        users = len(np.unique(events.user))
        yield pl.DataFrame({"part": [part], "users": [users], "events": [len(events)]})
        if self.moments:
            yield beam.pvalue.TaggedOutput("moments", count_values(events.time, "time"))


class _Mark(beam.DoFn):
    """A part -> (file, (first user, records)), beside what is counted of it."""

    def __init__(self, plan: Plan, state: State):
        self.plan, self.state = plan, state

    def process(self, part: int) -> Iterator:
        plan = self.plan
        events, user_ids = self._renumbered(part)
        marked = mark(events, len(user_ids), plan.protocol, plan.cuts)
        users = users_table(user_ids, marked.lengths(), marked.train_by_user())
        self.state.write_frame(f"users/{part:05d}.parquet", users)
        row = {"cold_users": marked.cold_users(), "after_test": marked.after_test, **marked.split_counts()}
        yield beam.pvalue.TaggedOutput("marks", pl.DataFrame([row]))
        trained = marked.events.item[marked.split == TRAIN]
        yield beam.pvalue.TaggedOutput("items", count_values(trained, "item"))
        yield from self._records(marked.sequences(plan.has_timestamps, plan.first_user[part]))

    def _renumbered(self, part: int) -> tuple[Events, pl.Series]:
        kept = read_items(self.state, self.plan.items)
        events = read_events(self.state, part, self.plan.core, kept)
        ids = read_users(self.state, part)
        users = np.bincount(events.user, minlength=len(ids)) > 0
        items = self.plan.core.alive(kept)
        events = dataclasses.replace(events, user=renumber(events.user, users), item=renumber(events.item, items))
        return events, ids.filter(pl.Series(users))

    def _records(self, sequences: Iterator[UserSequence]) -> Iterator[tuple[int, tuple[int, list[bytes]]]]:
        file, first, records = -1, 0, []
        for sequence in sequences:
            if sequence.user // self.plan.users_per_file != file:
                if records:
                    yield file, (first, records)
                file, first, records = sequence.user // self.plan.users_per_file, sequence.user, []
            records.append(encode(sequence))
        if records:
            yield file, (first, records)


def _write_file(group: tuple[int, Iterable[tuple[int, list[bytes]]]], plan: Plan, state: State) -> None:
    """Runs of consecutive users, in no order, as one file: the bytes are those of the path on one machine."""
    file, runs = group
    sequences = (decode(record) for _, records in sorted(runs, key=lambda run: run[0]) for record in records)
    name = file_name(file, num_files(plan.num_users, plan.users_per_file))
    first = file * plan.users_per_file
    with tempfile.TemporaryDirectory() as folder:
        due = write_file(Path(folder) / name, sequences, first)
        if due != min(first + plan.users_per_file, plan.num_users):
            raise ValueError(f"{due - first} users in {name}")
        state.write(f"sequences/{name}", (Path(folder) / name).read_bytes())


def read_users_tables(state: State, parts: Sequence[int]) -> pl.DataFrame:
    """Rows of users.parquet, in the order of the user index."""
    return concat(state.read_frame(f"users/{part:05d}.parquet") for part in parts)
