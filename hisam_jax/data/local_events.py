"""Events on one machine: streamed to compact columns by Polars, then ordered, filtered and split in memory."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from hisam_jax.data import splits
from hisam_jax.data.encoders import Interactions
from hisam_jax.data.marks import mark
from hisam_jax.data.preparation import Events, drop_duplicates, k_core, renumber, time_order
from hisam_jax.data.prepared import Prepared, Settings, check_events_left, report, users_table
from hisam_jax.data.readers.base import RawData
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.data.validation import Staged, check_duplicates, stage
from hisam_jax.progress import progress


def prepare_events(raw: RawData, folder: Path, settings: Settings) -> Prepared:
    """Writes `folder/sequences`.

    Raises:
        UserError: too many unusable rows, nothing left, or too few distinct times to cut.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    staged = stage(raw, scratch, settings.seed, settings.max_rejected)
    events, rejected = _ordered(raw, staged, settings.max_rejected)
    shutil.rmtree(scratch)
    before = len(events)
    events, user_ids, item_ids = _core(events, staged, settings.min_user, settings.min_item)
    interactions = len(events)
    check_events_left(interactions, before, settings, raw.interactions_path)
    cuts = {}
    if settings.protocol == "chronological":
        cuts = splits.chronological_cuts(*np.unique(events.time, return_counts=True), raw.interactions_path)
    marked = mark(events, len(user_ids), settings.protocol, cuts)
    del events
    sequences = progress(marked.sequences(raw.has_timestamps), len(user_ids), "sequences", "user")
    write_sequences(folder / "sequences", sequences, len(user_ids))
    users = users_table(user_ids, marked.lengths(), marked.train_by_user())
    checksum = splits.split_checksum(
        user_ids,
        item_ids,
        marked.offsets,
        marked.events.item,
        marked.events.time if raw.has_timestamps else None,
        marked.split,
    )
    return Prepared(
        users=users,
        item_ids=item_ids,
        item_train=marked.train_by_item(len(item_ids)),
        cold_users=marked.cold_users(),
        rejected=rejected,
        liked=marked.liked_in_training() if settings.need_liked else Interactions.none(),
        report=report(
            settings,
            users,
            len(item_ids),
            before,
            interactions,
            cuts,
            marked.after_test,
            marked.split_counts(),
            checksum,
        ),
    )


def _ordered(raw: RawData, staged: Staged, max_rejected: float) -> tuple[Events, dict[str, int]]:
    """The staged events in time order, without duplicates, and all that was refused so far."""
    user, item, time = (staged.column(name) for name in ("user", "item", "time"))
    rows = time_order(user, item, time, staged.user_digests, staged.item_digests)
    user, item, time = user[rows], item[rows], time[rows]
    events = Events(user, item, time, staged.column("rating")[rows] if raw.has_ratings else None)
    if not raw.has_timestamps:
        return events, dict(staged.rejected)
    events, duplicates = drop_duplicates(events)
    return events, check_duplicates(raw, staged.rows, staged.rejected, duplicates, max_rejected)


def _core(events: Events, staged: Staged, min_user: int, min_item: int) -> tuple[Events, pl.Series, pl.Series]:
    """The k-core, codes without gaps; with min_item = 1 the catalogue stays whole, cold items included."""
    events = events.take(k_core(events.user, events.item, min_user, min_item))
    users = np.bincount(events.user, minlength=len(staged.user_ids)) > 0
    items = np.bincount(events.item, minlength=len(staged.item_ids)) >= (min_item if min_item > 1 else 0)
    events = dataclasses.replace(events, user=renumber(events.user, users), item=renumber(events.item, items))
    return events, staged.user_ids.filter(pl.Series(users)), staged.item_ids.filter(pl.Series(items))
