"""Small things that several tests need, made on the spot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from hisam_jax.data.dataset import COLD_ITEM_EVENTS, Dataset, write_manifest
from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION, UserSequence
from hisam_jax.data.sequence_files import write_sequences

GROUPS = 4  # planted tastes: item i belongs to group i % GROUPS, and so does user u


def tiny_dataset(
    path: str | Path,
    users: int = 24,
    items: int = 40,
    events: tuple[int, int] = (5, 16),
    features: Mapping[str, int] | None = None,
    missing: float = 0.1,
    ratings: bool = True,
    timestamps: bool = True,
    focus: float = 0.8,
    thumbnails: bool = True,
    seed: int = 0,
) -> Dataset:
    """A valid leave-one-out dataset folder, written without readers or `prepare`.

    Args:
        events: least and greatest number of events of a user.
        features: modality -> width (default text 16, image 12); vectors cluster by group, so they tell something.
        missing: share of items lacking each modality.
        ratings, timestamps: without them every event is positive, or has timestamp 0.
        focus: share of a user's events within its group.
    """
    root, rng = Path(path), np.random.default_rng(seed)
    root.mkdir(parents=True)
    sequences = [_sequence(user, items, rng, events, ratings, timestamps, focus) for user in range(users)]
    write_sequences(root / "sequences", sequences, users, users_per_file=max(1, users // 2))
    modalities = _write_features(root, items, rng, {"text": 16, "image": 12} if features is None else features, missing)
    train_count = np.zeros(items, np.int32)
    for sequence in sequences:
        np.add.at(train_count, sequence.item[sequence.split == TRAIN], 1)
    _write_tables(root, sequences, train_count)
    if thumbnails:
        rows = [{"item": i, "jpeg": jpeg(i)} for i in range(items) if i % 10]
        pl.DataFrame(rows, schema={"item": pl.Int32, "jpeg": pl.Binary}).write_parquet(root / "thumbnails.parquet")
    lengths = [len(sequence) for sequence in sequences]
    manifest = {
        "source": "fixture",
        "users": users,
        "items": items,
        "interactions": sum(lengths),
        "modalities": modalities,
        "split": {"protocol": "leave_one_out", "checksum": f"fixture-{seed}", "seed": seed},
        "rejected": {},
        "history": {"median": float(np.median(lengths)), "max": max(lengths)},
        "cold": {"users": 0, "items": int((train_count < COLD_ITEM_EVENTS).sum())},
        "has_timestamps": timestamps,
        "has_ratings": ratings,
        "has_actions": ratings,
        "max_history": 300,
        "arguments": {},
        "fit": "train items",
        "tie_break": "seeded",
        "seconds": 0.0,
    }
    write_manifest(root, manifest)
    return Dataset.load(root)


def _sequence(
    user: int,
    items: int,
    rng: np.random.Generator,
    events: tuple[int, int],
    ratings: bool,
    timestamps: bool,
    focus: float,
) -> UserSequence:
    n = int(rng.integers(events[0], events[1] + 1))
    group = np.arange(user % GROUPS, items, GROUPS)
    item = np.where(rng.random(n) < focus, rng.choice(group, n), rng.integers(0, items, n)).astype(np.int32)
    rating = rng.choice(np.arange(1, 11) / 2, n).astype(np.float32) if ratings else np.full(n, np.nan, np.float32)
    positive = (rating > 3).astype(np.uint8) if ratings else np.ones(n, np.uint8)
    time = np.sort(rng.integers(10**9, 10**9 + 10**7, n)) if timestamps else np.zeros(n, np.int64)
    split, liked = np.full(n, TRAIN, np.uint8), np.flatnonzero(positive)
    if len(liked) >= 2:
        split[liked[-1]] = TEST
    if len(liked) >= 3:
        split[liked[-2]] = VALIDATION
        split[liked[-2] + 1 : liked[-1]] = HISTORY
    keep = slice(0, int(liked[-1]) + 1) if len(liked) >= 2 else slice(None)
    return UserSequence(user, item[keep], time.astype(np.int64)[keep], rating[keep], positive[keep], split[keep])


def _write_features(
    root: Path, items: int, rng: np.random.Generator, widths: Mapping[str, int], missing: float
) -> dict[str, dict[str, float]]:
    (root / "features").mkdir()
    modalities = {}
    for name, width in widths.items():
        centres = rng.normal(size=(GROUPS, width))
        present = rng.random(items) >= missing
        values = centres[np.arange(items) % GROUPS] + 0.3 * rng.normal(size=(items, width))
        np.save(root / "features" / f"{name}.npy", (values * present[:, None]).astype(np.float32))
        np.save(root / "features" / f"{name}.present.npy", present)
        modalities[name] = {"dim": width, "coverage": float(present.mean())}
    return modalities


def _write_tables(root: Path, sequences: list[UserSequence], train_count: np.ndarray) -> None:
    index = range(len(train_count))
    pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in index],
            "title": [f"Item {i} of group {i % GROUPS}" for i in index],
            "text": [f"group {i % GROUPS}" for i in index],
            "categories": [[f"group {i % GROUPS}"] for i in index],
            "image": pl.Series([None] * len(train_count), dtype=pl.String),
            "train_count": train_count,
            "cold": train_count < COLD_ITEM_EVENTS,
        }
    ).write_parquet(root / "items.parquet")
    pl.DataFrame(
        {
            "user_id": [f"u{s.user}" for s in sequences],
            "events": pl.Series([len(s) for s in sequences], dtype=pl.Int32),
            "train_events": pl.Series([int((s.split == TRAIN).sum()) for s in sequences], dtype=pl.Int32),
        }
    ).write_parquet(root / "users.parquet")


def jpeg(item: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 24), (item * 37 % 256, item * 91 % 256, 128)).save(stream, "JPEG")
    return stream.getvalue()
