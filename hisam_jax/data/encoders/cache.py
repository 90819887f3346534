"""Features kept by content: the same encoder on the same inputs is computed once."""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import polars as pl

from hisam_jax.data.encoders.base import Encoder, Features, Fitted
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write, sha256_of
from hisam_jax.paths import cache_directory

_FORM = "2"  # of an entry: other forms have other names
_log = logging.getLogger(__name__)


def encode_cached(
    encoder: Encoder, items: pl.DataFrame, fit_rows: np.ndarray, cache_dir: str | os.PathLike | None = None
) -> Features:
    """`encoder.encode(items, fit_rows)`, from the cache where the encoder, its inputs and `fit_rows` are unchanged.

    What was fitted is kept with the features. A damaged entry is computed anew. A cache that cannot be written is said
    in the log and costs only time.
    """
    fit_rows = np.asarray(fit_rows)
    if fit_rows.dtype != np.bool_ or fit_rows.shape != (len(items),):
        raise ValueError(f"fit_rows {fit_rows.dtype}{fit_rows.shape}, expected bool({len(items)},)")
    key = sha256_of(_FORM, encoder.modality, encoder.fingerprint(), encoder.inputs(items, fit_rows))
    entry = Path(cache_dir or cache_directory()) / "features" / f"{key}.npz"
    features = _read(entry, len(items))
    if features is None:
        features = encoder.encode(items, fit_rows)
        _write(entry, features)
    return features


def _read(entry: Path, num_items: int) -> Features | None:
    if not entry.is_file():
        return None
    try:
        with np.load(entry, allow_pickle=False) as stored:  # the zip's checksums catch a flipped or missing byte
            about = json.loads(stored["about"].item())
            arrays = {name[7:]: stored[name] for name in stored.files if name.startswith("fitted/")}
            fitted = None if about["fitted"] is None else Fitted(**about["fitted"], arrays=arrays)
            features = Features(stored["values"], stored["present"], about["rejected"], fitted)
        if len(features.values) == num_items:
            return features
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("cache entry %s is damaged (%s); computing it anew", entry, error)
    return None


def _write(entry: Path, features: Features) -> None:
    stream, fitted = io.BytesIO(), features.fitted
    said = None if fitted is None else {"kind": fitted.kind, "options": dict(fitted.options)}
    about = np.array(json.dumps({"rejected": dict(features.rejected), "fitted": said}))
    arrays = {} if fitted is None else {f"fitted/{name}": array for name, array in fitted.arrays.items()}
    np.savez(stream, values=features.values, present=features.present, about=about, **arrays)
    own = entry.with_name(f"{entry.name}.{os.getpid()}")  # two runs may fill the same entry at once
    try:
        atomic_write(own, stream.getvalue())
        own.replace(entry)
    except (OSError, UserError) as error:
        _log.warning("features are not cached: %s", error)
