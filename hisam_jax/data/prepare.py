"""Raw logs and a catalogue -> the dataset folder: the one function behind `hisam prepare`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data import splits
from hisam_jax.data.dataset import COLD_ITEM_EVENTS, COLD_USER_EVENTS, write_manifest
from hisam_jax.data.disk import native_disk_errors
from hisam_jax.data.encoders import Interactions
from hisam_jax.data.features import write_features
from hisam_jax.data.preparation import Events, drop_duplicates, k_core, renumber, time_order
from hisam_jax.data.readers import read
from hisam_jax.data.readers.base import RawData
from hisam_jax.data.records import SPLIT_NAMES, TEST, TRAIN, UserSequence
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.data.thumbnails import make_thumbnails
from hisam_jax.data.validation import Staged, check_share, stage
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory
from hisam_jax.progress import progress


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Events with their marks, sorted by user and time, and the ids that their codes stand for."""

    events: Events
    user_ids: pl.Series
    item_ids: pl.Series
    offsets: np.ndarray
    positive: np.ndarray
    split: np.ndarray
    rejected: dict[str, int]
    report: dict[str, Any]  # manifest keys known by now


def prepare(
    source: str,
    raw: str | os.PathLike,
    out: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    protocol: str = "leave_one_out",
    text_encoder: str = "tfidf_svd",
    image_encoder: str = "hog_color",
    behaviour_encoder: str = "none",
    min_user: int = 1,
    min_item: int = 1,
    seed: int = 0,
    max_history: int = 300,
    max_rejected: float = 0.05,
    cache_dir: str | os.PathLike | None = None,
    reader_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads, validates, filters, orders, splits and encodes a source; leaves a whole folder `out`, or none.

    Args:
        source, raw, images, reader_options: what to read, see `hisam_jax.data.readers.read`; the shop gets `seed` too.
        protocol: one of `splits.PROTOCOLS`.
        text_encoder, image_encoder, behaviour_encoder: names for `make_encoder`; `none` leaves the modality out.
        min_user, min_item: events that every user and item has in the end (k-core, to a fixed point).
        seed: of the order of the indices and of the tie-break among equal times.
        max_history: latest events that a model is to see of a user; recorded, the records are whole.
        max_rejected: share of rows that may be unusable.
        cache_dir: where features are kept by content.

    Returns:
        The manifest.

    Raises:
        UserError: input that cannot be used, with its file, line and field; a full disk.
    """
    arguments = {name: _plain(value) for name, value in sorted(locals().items())}
    _check_arguments(arguments)
    started = time.monotonic()
    options = {**({"seed": seed} if source == "shop" else {}), **(reader_options or {})}
    data = read(source, raw, images, **options)
    if protocol == "chronological" and not data.has_timestamps:
        raise UserError(
            "the source has no timestamps to cut at", path=data.interactions_path, field="protocol",
            expected="leave_one_out or per_user_time",
        )  # fmt: skip
    with atomic_directory(out, holds="users.parquet") as folder, native_disk_errors():
        prepared = _prepare_events(data, folder / "scratch", protocol, min_user, min_item, seed, max_rejected)
        items, rejected = _item_table(data, prepared)
        items, thumbnails, broken = _with_pictures(items)
        encoders = {"text": text_encoder, "image": image_encoder}
        encoders |= {"behaviour": behaviour_encoder} if behaviour_encoder != "none" else {}
        modalities, dropped, refused = write_features(
            folder / "features", items, data, encoders, cache_dir, _liked_in_training(prepared)
        )
        _write_tables(folder, prepared, items, thumbnails, data.truth)
        write_sequences(folder / "sequences", _sequences(prepared, data.has_timestamps), len(prepared.user_ids))
        counted = _add(
            prepared.rejected, rejected, {"broken_image": max(broken, refused.pop("broken_image", 0))}, refused
        )
        return write_manifest(
            folder,
            {
                "source": source,
                **prepared.report,
                "modalities": modalities,
                "dropped_modalities": dropped,
                "rejected": counted,
                "cold": _cold(prepared, items),
                "has_timestamps": data.has_timestamps,
                "has_ratings": data.has_ratings,
                "has_actions": data.has_ratings,
                "max_history": max_history,
                "fit": "train items",
                "tie_break": "seeded" if data.has_timestamps else "file order",
                "arguments": arguments,
                "seconds": round(time.monotonic() - started, 2),
            },
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in sorted(value.items())}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if arguments["protocol"] not in splits.PROTOCOLS:
        problem = f"unknown protocol {arguments['protocol']!r}"
        raise UserError(problem, field="protocol", expected=", ".join(splits.PROTOCOLS))
    for name in ("min_user", "min_item", "max_history"):
        if arguments[name] < 1:
            raise UserError(f"{arguments[name]}", field=name, expected="1 or more")
    if not 0 <= arguments["max_rejected"] <= 1:
        raise UserError(f"{arguments['max_rejected']}", field="max_rejected", expected="a share from 0 to 1")


def _prepare_events(
    raw: RawData, scratch: Path, protocol: str, min_user: int, min_item: int, seed: int, max_rejected: float
) -> _Prepared:
    scratch.mkdir()
    staged = stage(raw, scratch, seed, max_rejected)
    events, rejected = _ordered(raw, staged, max_rejected)
    shutil.rmtree(scratch)
    before = len(events)
    events, user_ids, item_ids = _core(events, staged, min_user, min_item)
    if not len(events):
        raise UserError(
            f"no event is left of {before:,}", path=raw.interactions_path, field="min_user, min_item",
            expected=f"a smaller --min-user than {min_user} or --min-item than {min_item}",
        )  # fmt: skip
    positive = np.ones(len(events), np.uint8) if events.rating is None else (events.rating > 3).astype(np.uint8)
    offsets = events.offsets(len(user_ids))
    split, cuts = _split(protocol, events, offsets, positive, raw.interactions_path)
    stay = split != splits.AFTER_TEST
    report = {
        "users": len(user_ids),
        "items": len(item_ids),
        "interactions": len(events),
        "core": {"min_user": min_user, "min_item": min_item, "interactions_dropped": before - len(events)},
        "split": {"protocol": protocol, "seed": seed, **cuts, "after_test": int((~stay).sum())},
    }
    events, positive, split = events.take(stay), positive[stay], split[stay]
    offsets = events.offsets(len(user_ids))
    times = events.time if raw.has_timestamps else None
    report["split"]["checksum"] = splits.split_checksum(user_ids, item_ids, offsets, events.item, times, split)
    report["split"] |= dict(zip(SPLIT_NAMES, np.bincount(split, minlength=4).tolist(), strict=True))
    lengths = np.diff(offsets)
    report["history"] = {"median": float(np.median(lengths)), "max": int(lengths.max())}
    return _Prepared(events, user_ids, item_ids, offsets, positive, split, rejected, report)


def _ordered(raw: RawData, staged: Staged, max_rejected: float) -> tuple[Events, dict[str, int]]:
    """The staged events in time order, without duplicates, and all that was refused so far."""
    user, item, time_ = (staged.column(name) for name in ("user", "item", "time"))
    rows = time_order(user, item, time_, staged.user_digests, staged.item_digests)
    user, item, time_ = user[rows], item[rows], time_[rows]
    events = Events(user, item, time_, staged.column("rating")[rows] if raw.has_ratings else None)
    rejected = dict(staged.rejected)
    if raw.has_timestamps:
        events, duplicates = drop_duplicates(events)
        if duplicates:
            rejected["duplicate_interaction"] = duplicates
            check_share(raw, staged.rows, sum(rejected.values()), max_rejected, "duplicate_interaction", None)
    return events, rejected


def _core(events: Events, staged: Staged, min_user: int, min_item: int) -> tuple[Events, pl.Series, pl.Series]:
    """The k-core, codes without gaps; with min_item = 1 the catalogue stays whole, cold items included."""
    events = events.take(k_core(events.user, events.item, min_user, min_item))
    users = np.bincount(events.user, minlength=len(staged.user_ids)) > 0
    items = np.bincount(events.item, minlength=len(staged.item_ids)) >= (min_item if min_item > 1 else 0)
    events = dataclasses.replace(events, user=renumber(events.user, users), item=renumber(events.item, items))
    return events, staged.user_ids.filter(pl.Series(users)), staged.item_ids.filter(pl.Series(items))


def _split(
    protocol: str, events: Events, offsets: np.ndarray, positive: np.ndarray, path: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    if protocol == "leave_one_out":
        return splits.leave_one_out(offsets, positive), {}
    if protocol == "per_user_time":
        return splits.per_user_time(offsets), {}
    split, cuts = splits.chronological(events.time, path)
    return split, {"cuts": cuts}


def _item_table(raw: RawData, prepared: _Prepared) -> tuple[pl.DataFrame, dict[str, int]]:
    """Columns of items.parquet, one row an item index."""
    train = prepared.events.item[prepared.split == TRAIN]
    count = np.bincount(train, minlength=len(prepared.item_ids)).astype(np.int32)
    index = pl.DataFrame({"item": prepared.item_ids, "train_count": count, "cold": count < COLD_ITEM_EVENTS})
    items = index.join(raw.items, on="item", how="left", maintain_order="left").rename({"item": "item_id"})
    texts = [pl.col(name).fill_null("") for name in ("title", "text")]
    categories = pl.col("categories").fill_null([])
    return items.select("item_id", *texts, categories, "image", "train_count", "cold"), dict(raw.rejected_items)


def _with_pictures(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The items with unreadable pictures taken off, the thumbnails, and how many were unreadable."""
    thumbnails, broken = make_thumbnails(items["image"].to_list())
    image = pl.when(pl.Series(broken)).then(None).otherwise(pl.col("image"))
    return items.with_columns(image=image), thumbnails, int(broken.sum())


def _liked_in_training(prepared: _Prepared) -> Interactions:
    chosen = (prepared.split == TRAIN) & (prepared.positive != 0)
    return Interactions(prepared.events.user[chosen], prepared.events.item[chosen])


def _write_tables(
    folder: Path, prepared: _Prepared, items: pl.DataFrame, thumbnails: pl.DataFrame, truth: pl.DataFrame | None
) -> None:
    items.write_parquet(folder / "items.parquet")
    num_users = len(prepared.user_ids)
    train = np.bincount(prepared.events.user[prepared.split == TRAIN], minlength=num_users).astype(np.int32)
    events = np.diff(prepared.offsets).astype(np.int32)
    users = pl.DataFrame({"user_id": prepared.user_ids, "events": events, "train_events": train})
    users.write_parquet(folder / "users.parquet")
    if len(thumbnails):
        thumbnails.write_parquet(folder / "thumbnails.parquet")
    if truth is not None:
        index = items.select("item_id")
        truth = truth.rename({"item": "item_id"})
        index.join(truth, on="item_id", how="left", maintain_order="left").write_parquet(folder / "truth.parquet")


def _sequences(prepared: _Prepared, has_timestamps: bool):
    events, offsets = prepared.events, prepared.offsets.tolist()
    for user in progress(range(len(prepared.user_ids)), description="sequences", unit="user"):
        rows = slice(offsets[user], offsets[user + 1])
        n = rows.stop - rows.start
        yield UserSequence(
            user=user,
            item=events.item[rows],
            timestamp=events.time[rows] if has_timestamps else np.zeros(n, np.int64),
            rating=np.full(n, np.nan, np.float32) if events.rating is None else events.rating[rows],
            positive=prepared.positive[rows],
            split=prepared.split[rows],
        )


def _cold(prepared: _Prepared, items: pl.DataFrame) -> dict[str, int]:
    """Cold users (few events before their first test event, or at all without one) and items (few in training)."""
    before = np.diff(prepared.offsets)
    tests = np.flatnonzero(prepared.split == TEST)
    users, first = np.unique(prepared.events.user[tests], return_index=True)
    before[users] = tests[first] - prepared.offsets[users]
    count = items["train_count"]
    return {
        "users": int((before < COLD_USER_EVENTS).sum()),
        "items": int((count < COLD_ITEM_EVENTS).sum()),
        "items_without_training": int((count == 0).sum()),
    }


def _add(*counts: Mapping[str, int]) -> dict[str, int]:
    reasons = sorted({reason for part in counts for reason in part})
    total = {reason: sum(part.get(reason, 0) for part in counts) for reason in reasons}
    return {reason: count for reason, count in total.items() if count}
