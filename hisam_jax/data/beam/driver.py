"""What the driver does: one pipeline after the other, and the few numbers that decide the next."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import apache_beam as beam
import numpy as np
import polars as pl
from array_record.python.array_record_data_source import ArrayRecordDataSource

from hisam_jax.data import sequence_files, splits
from hisam_jax.data.beam import partition, spans, writing
from hisam_jax.data.beam.core import k_core_items
from hisam_jax.data.beam.frames import save
from hisam_jax.data.beam.parts import Core, read_items
from hisam_jax.data.beam.runners import Runner
from hisam_jax.data.beam.state import State
from hisam_jax.data.encoders import Interactions
from hisam_jax.data.identity import shuffled
from hisam_jax.data.prepared import Prepared, Settings, check_events_left, report
from hisam_jax.data.readers.base import RawData
from hisam_jax.data.records import SPLIT_NAMES, TRAIN, decode
from hisam_jax.data.validation import check_catalogue, check_duplicates, judge
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of

PART_BYTES = 1 << 26  # of the log as it lies on disk; a worker holds some times as much
_READ_AT_ONCE = 4096  # records


def prepare_events(raw: RawData, folder: Path, settings: Settings, runner: Runner) -> Prepared:
    """`local_events.prepare_events` on a runner: `folder/sequences` gets the same bytes.

    What pipelines leave for one another lies in `folder/scratch`, which workers must then see, or below the option
    `temp_location`; either is removed at the end, and what a killed run left of it by the next run for the same folder.

    Raises:
        UserError: too many unusable rows, nothing left, or too few distinct times to cut.
    """
    state = State(_root(folder, runner.options))
    _check_writable(state, runner.options)
    state.clear()
    try:
        return _prepare(raw, folder, settings, runner, state)
    finally:
        state.clear()


def _root(folder: Path, options: Mapping[str, str]) -> str:
    if "temp_location" not in options:
        return str(folder / "scratch")
    return f"{options['temp_location'].rstrip('/')}/hisam-prepare-{sha256_of(platform.node(), str(folder))[:16]}"


def _check_writable(state: State, options: Mapping[str, str]) -> None:
    try:
        state.write("begun", b"")
    except OSError as error:
        if "temp_location" not in options:
            raise
        problem = f"cannot be written ({error.strerror or error})"
        raise UserError(
            problem, path=options["temp_location"], field="temp_location", expected="a folder or a bucket's prefix"
        ) from error


def _prepare(raw: RawData, folder: Path, settings: Settings, runner: Runner, state: State) -> Prepared:
    check_catalogue(raw, settings.max_rejected)
    item_ids = shuffled(raw.items["item"], settings.seed, "item")
    sizes, rejected = _partition(raw, item_ids, settings, runner, state)
    parts, before = sizes["part"].sort().to_list(), int(sizes["events"].sum())
    core = Core(settings.min_user, settings.min_item, len(item_ids))
    items = k_core_items(runner, parts, core, state)
    left, chronological = sizes.sort("part"), settings.protocol == "chronological"
    if chronological or settings.min_user > 1 or settings.min_item > 1:
        runner.run(writing.survey, parts, core, items, chronological, state)
        left = state.read_frame(writing.SIZES).sort("part")
    interactions, num_users = int(left["events"].sum()), int(left["users"].sum())
    check_events_left(interactions, before, settings, raw.interactions_path)
    plan = writing.Plan(
        core=core,
        items=items,
        protocol=settings.protocol,
        cuts=_cuts(raw, state) if chronological else {},
        has_timestamps=raw.has_timestamps,
        users_per_file=sequence_files.USERS_PER_FILE,
        first_user=dict(zip(left["part"], (left["users"].cum_sum() - left["users"]), strict=True)),
        num_users=num_users,
    )
    runner.run(writing.write_sequences, parts, plan, state)
    files = _fetch(state, folder / "sequences", plan)
    item_ids = item_ids.filter(pl.Series(core.alive(read_items(state, items))))
    users = writing.read_users_tables(state, parts)
    counts = state.read_frame(writing.ITEMS)
    item_train = np.zeros(len(item_ids), np.int32)
    item_train[counts["item"].to_numpy()] = counts["count"].to_numpy()
    marks = state.read_frame(writing.MARKS).sum().row(0, named=True)
    return Prepared(
        users=users,
        item_ids=item_ids,
        item_train=item_train,
        cold_users=marks["cold_users"],
        rejected=rejected,
        liked=_liked(files) if settings.need_liked else Interactions.none(),
        report=report(
            settings,
            users,
            len(item_ids),
            before,
            interactions,
            plan.cuts,
            marks["after_test"],
            {name: marks[name] for name in SPLIT_NAMES},
            _checksum(files, users, item_ids, raw.has_timestamps),
        ),
    )


def _partition(
    raw: RawData, item_ids: pl.Series, settings: Settings, runner: Runner, state: State
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Parts, and all rows that were refused by reason."""
    parts = max(1, -(-os.path.getsize(raw.interactions_path) // PART_BYTES))
    log = partition.Log(parts, settings.seed, raw.has_timestamps, raw.has_ratings)
    partition.write_catalogue(item_ids, log, state)
    runner.run(partition.partition, _spans(raw, runner, state), log, state)
    rows, rejected = judge(raw, state.read_frame(partition.TALLY), settings.max_rejected)
    sizes = state.read_frame(partition.PARTS)
    return sizes, check_duplicates(raw, rows, rejected, int(sizes["duplicates"].sum()), settings.max_rejected)


def _spans(raw: RawData, runner: Runner, state: State) -> list[partition.Span]:
    """Workers read the log themselves where they see it and need not begin at its beginning."""
    if "temp_location" in runner.options:
        return spans.stored_spans(raw, state)
    if raw.sliceable:
        return spans.slice_spans(raw)
    if raw.lines is None or spans.is_gzipped(raw.lines.path):
        return spans.stored_spans(raw, state)
    found = spans.line_spans(raw.lines)
    if len(found) == 1:
        return found
    runner.run(_count_lines, found, state)
    return spans.numbered(found, state.read_frame("lines.parquet").sort("span")["lines"].to_list())


def _count_lines(pipeline: beam.Pipeline, found: list[spans.LineSpan], state: State) -> None:
    numbered = pipeline | beam.Create(list(enumerate(found))) | beam.Reshuffle()
    save(numbered | beam.MapTuple(_lines_of), state, "lines.parquet", len(found))


def _lines_of(number: int, span: spans.LineSpan) -> pl.DataFrame:
    return pl.DataFrame({"span": [number], "lines": [span.count()]})


def _cuts(raw: RawData, state: State) -> dict[str, int]:
    moments = state.read_frame(writing.MOMENTS)
    return splits.chronological_cuts(moments["time"].to_numpy(), moments["count"].to_numpy(), raw.interactions_path)


def _fetch(state: State, folder: Path, plan: writing.Plan) -> list[str]:
    """The files of sequences, brought to their place."""
    folder.mkdir()
    count = sequence_files.num_files(plan.num_users, plan.users_per_file)
    files = [folder / sequence_files.file_name(index, count) for index in range(count)]
    for file in files:
        file.write_bytes(state.read(f"sequences/{file.name}"))
    return [str(file) for file in files]


def _checksum(files: list[str], users: pl.DataFrame, item_ids: pl.Series, has_timestamps: bool) -> str:
    """Read back from what was written, block by block."""
    source = ArrayRecordDataSource(files)

    def rows_of(chosen: np.ndarray) -> splits.Rows:
        found = [decode(record) for record in source.__getitems__(chosen.tolist())]
        item, time, split = (
            np.concatenate([getattr(one, name) for one in found]) for name in ("item", "timestamp", "split")
        )
        return item, time if has_timestamps else None, split

    return splits.checksum_of_rows(users["user_id"], item_ids, users["events"].to_numpy(), rows_of)


def _liked(files: list[str]) -> Interactions:
    source, users, items = ArrayRecordDataSource(files), [], []
    for start in range(0, len(source), _READ_AT_ONCE):
        for record in source.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(source))))):
            sequence = decode(record)
            chosen = sequence.item[(sequence.split == TRAIN) & (sequence.positive != 0)]
            items.append(chosen)
            users.append(np.full(len(chosen), sequence.user, np.int32))
    return Interactions(np.concatenate(users), np.concatenate(items))
