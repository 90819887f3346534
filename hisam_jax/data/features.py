"""Runs the encoders over the catalogue and writes one array a modality."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data.encoders import Encoder, Interactions, encode_cached, make_encoder
from hisam_jax.data.readers.base import RawData

DEFAULTS = {"text": "tfidf_svd", "image": "hog_color"}


def write_features(
    folder: Path,
    items: pl.DataFrame,
    raw: RawData,
    encoders: Mapping[str, str],
    cache_dir: str | os.PathLike | None,
    interactions: Interactions,
) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, int]]:
    """Writes `<modality>.npy` and `<modality>.present.npy`, statistics fitted on training items only.

    Args:
        folder: to be made.
        items: one row an item index.
        raw: the source, which may bring features of its own.
        encoders: modality -> name for `make_encoder`.
        cache_dir: where features are kept by content.
        interactions: training positives, all that an encoder of behaviour reads.

    Returns:
        modality -> dim, coverage and encoder; modality left out -> why; reason -> items refused.
    """
    folder.mkdir()
    kept, dropped, rejected = {}, {}, {}
    fit_rows = items["train_count"].to_numpy() > 0
    columns = items.select("item_id", "title", "text", "categories", "image")
    for modality, name in _names(raw, encoders).items():
        encoder = _make(modality, name, raw, interactions)
        features = encode_cached(encoder, columns, fit_rows, cache_dir)
        for reason, count in features.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
        if name == "none" or not features.present.any():
            dropped[modality] = "not asked for" if name == "none" else "no item has it"
            continue
        np.save(folder / f"{modality}.npy", features.values)
        np.save(folder / f"{modality}.present.npy", features.present)
        coverage = float(features.present.mean())
        kept[modality] = {"dim": features.values.shape[1], "coverage": coverage, "encoder": name}
    return kept, dropped, rejected


def _names(raw: RawData, encoders: Mapping[str, str]) -> dict[str, str]:
    """Features that the source brings stand in for a default encoder, never for one that was chosen."""
    names = dict(encoders)
    for modality, file in raw.features.items():
        if names.get(modality) == DEFAULTS.get(modality):
            names[modality] = f"precomputed:{file}"
    return names


def _make(modality: str, name: str, raw: RawData, interactions: Interactions) -> Encoder:
    if name == "ppmi_svd":
        return make_encoder(modality, name, interactions=interactions)
    if name.startswith("precomputed:") and name.endswith(".npy"):
        return make_encoder(modality, name, order="catalogue", catalogue_ids=raw.items["item"].to_list())
    return make_encoder(modality, name)
