"""Runs the encoders over the catalogue and writes one array a modality."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.encoders import Encoder, Interactions, encode_cached, make_encoder
from hisam_jax.data.encoders.saved import load_encoder, save_encoder
from hisam_jax.data.readers.base import RawData
from hisam_jax.errors import UserError

DEFAULTS = {"text": "tfidf_svd", "image": "hog_color", "behaviour": "none"}


def encoder_names(asked: Mapping[str, str | None], old: Dataset | None) -> dict[str, str]:
    """Modality -> encoder: what was asked for, else that of `old`, else the default.

    Args:
        asked: modality -> a name, or None for whichever.
        old: the dataset whose fitted encoders are to be used; all its modalities are in the result.

    Raises:
        UserError: `old` has another encoder than was asked for; features computed elsewhere may come from another file.
    """
    if old is None:
        return {modality: name or DEFAULTS[modality] for modality, name in asked.items()}
    theirs = dict.fromkeys(asked, "none") | {
        m: of.get("encoder", "unknown") for m, of in old.manifest["modalities"].items()
    }
    for modality, name in asked.items():
        if name not in (None, theirs[modality]) and not (_computed(name) and _computed(theirs[modality])):
            raise UserError(
                f"{name!r}, while the dataset {old.path} has {theirs[modality]!r}",
                field=f"{modality}_encoder",
                expected=theirs[modality],
                hint="leave it out to take that one, or leave out --encoders-from to fit anew",
            )
    return theirs | {modality: name for modality, name in asked.items() if name is not None}


def write_features(
    folder: Path,
    items: pl.DataFrame,
    raw: RawData,
    encoders: Mapping[str, str],
    cache_dir: str | os.PathLike | None,
    interactions: Interactions,
    old: Dataset | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str], dict[str, int]]:
    """Writes `<modality>.npy` and `<modality>.present.npy`, statistics fitted on training items only; and `encoders/`.

    Args:
        folder: to be made.
        items: one row an item index.
        raw: the source, which may bring features of its own.
        encoders: modality -> name for `make_encoder`.
        cache_dir: where features are kept by content.
        interactions: training positives, all that an encoder of behaviour reads.
        old: a dataset whose fitted encoders take the place of fitting.

    Returns:
        modality -> dim, coverage and encoder; modality left out -> why; reason -> items refused.
    """
    folder.mkdir()
    kept, dropped, rejected = {}, {}, {}
    fit_rows = items["train_count"].to_numpy() > 0
    columns = items.select("item_id", "title", "text", "categories", "image")
    for modality, name in _names(raw, encoders, old).items():
        fits = old is None or name == "none" or _computed(name)
        encoder = _make(modality, name, raw, interactions) if fits else load_encoder(old, modality)
        features = encode_cached(encoder, columns, fit_rows, cache_dir)
        for reason, count in features.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + count
        if name == "none" or not features.present.any():
            unwanted = "not asked for" if old is None else "not in the dataset of the encoders"
            dropped[modality] = unwanted if name == "none" else "no item has it"
            continue
        np.save(folder / f"{modality}.npy", features.values)
        np.save(folder / f"{modality}.present.npy", features.present)
        coverage = float(features.present.mean())
        if features.fitted is not None:
            save_encoder(folder.parent, modality, name if fits else encoder.name, features.fitted)
        kept[modality] = {"dim": features.values.shape[1], "coverage": coverage, "encoder": name}
    return kept, dropped, rejected


def _names(raw: RawData, encoders: Mapping[str, str], old: Dataset | None) -> dict[str, str]:
    """Features that the source brings stand in for a default encoder, never for one that was chosen, nor for one of
    another dataset unless that one's features were brought too."""
    names = {modality: name for modality, name in encoders.items() if (modality, name) != ("behaviour", "none")}
    for modality, file in raw.features.items():
        now = names.get(modality)
        if old is None:
            brought = now in (None, DEFAULTS.get(modality))
        else:
            brought = now == old.manifest["modalities"].get(modality, {}).get("encoder") and _computed(now or "")
        if brought:
            names[modality] = f"precomputed:{file}"
    return names


def _computed(name: str) -> bool:
    return name.startswith("precomputed:")


def _make(modality: str, name: str, raw: RawData, interactions: Interactions) -> Encoder:
    if name == "ppmi_svd":
        return make_encoder(modality, name, interactions=interactions)
    if name.startswith("precomputed:") and name.endswith(".npy"):
        return make_encoder(modality, name, order="catalogue", catalogue_ids=raw.items["item"].to_list())
    return make_encoder(modality, name)
