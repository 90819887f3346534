"""Raw logs and a catalogue -> the dataset folder: the one function behind `hisam prepare`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from hisam_jax.data import local_events, splits
from hisam_jax.data.dataset import COLD_ITEM_EVENTS, Dataset, write_manifest
from hisam_jax.data.disk import native_disk_errors
from hisam_jax.data.features import encoder_names, write_features
from hisam_jax.data.prepared import Prepared, Settings
from hisam_jax.data.readers import read
from hisam_jax.data.readers.base import RawData
from hisam_jax.data.thumbnails import make_thumbnails
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory
from hisam_jax.paths import output_path


def prepare(
    source: str,
    raw: str | os.PathLike,
    out: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    protocol: str = "leave_one_out",
    text_encoder: str | None = None,
    image_encoder: str | None = None,
    behaviour_encoder: str | None = None,
    encoders_from: str | os.PathLike | None = None,
    min_user: int = 1,
    min_item: int = 1,
    seed: int = 0,
    max_history: int = 300,
    max_rejected: float = 0.05,
    cache_dir: str | os.PathLike | None = None,
    reader_options: Mapping[str, Any] | None = None,
    runner: str | None = None,
    runner_options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Reads, validates, filters, orders, splits and encodes a source; leaves a whole folder `out`, or none.

    Args:
        source, raw, images, reader_options: what to read, see `hisam_jax.data.readers.read`; the shop gets `seed` too.
        protocol: one of `splits.PROTOCOLS`.
        text_encoder, image_encoder, behaviour_encoder: names for `make_encoder`; `none` leaves the modality out. None
            takes that of `encoders_from`, else `tfidf_svd`, `hog_color` and `none`.
        encoders_from: a prepared dataset whose fitted encoders are used; nothing is fitted then, an unchanged item's
            features are equal in every bit, and IDs of that dataset can be extended to this one. An item that it lacks
            has no behaviour.
        min_user, min_item: events that every user and item has in the end (k-core, to a fixed point).
        seed: of the order of the indices and of the tie-break among equal times.
        max_history: latest events that a model is to see of a user; recorded, the records are whole.
        max_rejected: share of rows that may be unusable.
        cache_dir: where features are kept by content.
        runner: None, or the engine of Apache Beam that prepares the events, with the same result: direct, flink, spark
            or dataflow.
        runner_options: Beam's own options, by name.

    Returns:
        The manifest.

    Raises:
        UserError: input that cannot be used, with its file, line and field; a dataset without fitted encoders, or with
            others than asked for; a full disk.
    """
    given = {name: value for name, value in locals().items() if runner or not name.startswith("runner")}
    arguments = {name: _plain(value) for name, value in sorted(given.items())}
    _check_arguments(arguments)
    out = output_path(out, "out")
    cache_dir = None if cache_dir is None else output_path(cache_dir, "cache")
    started = time.monotonic()
    old = None if encoders_from is None else Dataset.load(encoders_from)
    asked = {"text": text_encoder, "image": image_encoder, "behaviour": behaviour_encoder}
    encoders = encoder_names(asked, old)
    arguments |= {f"{modality}_encoder": encoders[modality] for modality in asked}
    prepare_events = _on_beam(runner, runner_options or {}) if runner or runner_options else local_events.prepare_events
    options = {**({"seed": seed} if source == "shop" else {}), **(reader_options or {})}
    data = read(source, raw, images, **options)
    if protocol == "chronological" and not data.has_timestamps:
        raise UserError(
            "the source has no timestamps to cut at", path=data.interactions_path, field="protocol",
            expected="leave_one_out or per_user_time",
        )  # fmt: skip
    need_liked = encoders["behaviour"] == "ppmi_svd" and old is None
    settings = Settings(protocol, min_user, min_item, seed, max_rejected, need_liked)
    with atomic_directory(out, holds="users.parquet") as folder, native_disk_errors():
        prepared = prepare_events(data, folder, settings)
        items, thumbnails, broken = _with_pictures(_item_table(data, prepared))
        modalities, dropped, refused = write_features(
            folder / "features", items, data, encoders, cache_dir, prepared.liked, old
        )
        _write_tables(folder, prepared, items, thumbnails, data.truth)
        broken_image = {"broken_image": max(broken, refused.pop("broken_image", 0))}
        return write_manifest(
            folder,
            {
                "source": source,
                **prepared.report,
                "modalities": modalities,
                "dropped_modalities": dropped,
                "rejected": _add(prepared.rejected, data.rejected_items, broken_image, refused),
                "cold": _cold(prepared),
                "has_timestamps": data.has_timestamps,
                "has_ratings": data.has_ratings,
                "has_actions": data.has_ratings,
                "max_history": max_history,
                "fit": "train items" if old is None else "train items of the dataset that encoders_from names",
                "tie_break": "seeded" if data.has_timestamps else "file order",
                "arguments": arguments,
                "seconds": round(time.monotonic() - started, 2),
            },
        )


def _on_beam(runner: str | None, options: Mapping[str, str]) -> Callable[[RawData, Path, Settings], Prepared]:
    if runner is None:
        raise UserError(f"options without a runner: {', '.join(options)}", field="runner", expected="--runner NAME")
    try:
        from hisam_jax.data.beam.driver import prepare_events
        from hisam_jax.data.beam.runners import make_runner
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError(
            "Apache Beam is not installed", field="--runner", expected="pip install 'hisam_jax[beam]'"
        ) from error
    return functools.partial(prepare_events, runner=make_runner(runner, options))


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


def _item_table(raw: RawData, prepared: Prepared) -> pl.DataFrame:
    """Columns of items.parquet, one row an item index."""
    count = prepared.item_train
    index = pl.DataFrame({"item": prepared.item_ids, "train_count": count, "cold": count < COLD_ITEM_EVENTS})
    items = index.join(raw.items, on="item", how="left", maintain_order="left").rename({"item": "item_id"})
    texts = [pl.col(name).fill_null("") for name in ("title", "text")]
    categories = pl.col("categories").fill_null([])
    return items.select("item_id", *texts, categories, "image", "train_count", "cold")


def _with_pictures(items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The items with unreadable pictures taken off, the thumbnails, and how many were unreadable."""
    thumbnails, broken = make_thumbnails(items["image"].to_list())
    image = pl.when(pl.Series(broken)).then(None).otherwise(pl.col("image"))
    return items.with_columns(image=image), thumbnails, int(broken.sum())


def _write_tables(
    folder: Path, prepared: Prepared, items: pl.DataFrame, thumbnails: pl.DataFrame, truth: pl.DataFrame | None
) -> None:
    items.write_parquet(folder / "items.parquet")
    prepared.users.write_parquet(folder / "users.parquet")
    if len(thumbnails):
        thumbnails.write_parquet(folder / "thumbnails.parquet")
    if truth is not None:
        index = items.select("item_id")
        truth = truth.rename({"item": "item_id"})
        index.join(truth, on="item_id", how="left", maintain_order="left").write_parquet(folder / "truth.parquet")


def _cold(prepared: Prepared) -> dict[str, int]:
    count = prepared.item_train
    return {
        "users": prepared.cold_users,
        "items": int((count < COLD_ITEM_EVENTS).sum()),
        "items_without_training": int((count == 0).sum()),
    }


def _add(*counts: Mapping[str, int]) -> dict[str, int]:
    reasons = sorted({reason for part in counts for reason in part})
    total = {reason: sum(part.get(reason, 0) for part in counts) for reason in reasons}
    return {reason: count for reason, count in total.items() if count}
