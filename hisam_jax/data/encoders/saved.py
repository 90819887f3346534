"""Fitted encoders in a dataset: `encoders/<modality>.json` and, where one learned numbers, `.npz` beside it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax import plugins
from hisam_jax.data.dataset import Dataset, check_files
from hisam_jax.data.encoders import RESTORED, make_encoder
from hisam_jax.data.encoders.base import Features, Fitted, FittedEncoder
from hisam_jax.data.encoders.behaviour import PpmiSvd, Remembered
from hisam_jax.data.encoders.pretrained import ClipImage, SameModel, SentenceTransformerText
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of
from hisam_jax.paths import as_given, is_url

FOLDER, FORMAT_VERSION = "encoders", 1
LIBRARIES = ("numpy", "scipy", "scikit-learn", "scikit-image", "pillow")
_PRETRAINED = (SentenceTransformerText.name, ClipImage.name)


@dataclasses.dataclass(frozen=True, eq=False)
class SavedEncoder:
    """An encoder that was fitted before; an `Encoder` too, which fits nothing.

    Attributes:
        modality: what its features are of.
        name: as `make_encoder` takes it, from any working directory.
        checksum: of what it was read from.
        fitted: what was read.
    """

    modality: str
    name: str
    checksum: str
    fitted: Fitted
    encoder: FittedEncoder

    def fingerprint(self) -> str:
        return json.dumps({"saved": self.checksum} | _versions())

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray | None = None) -> str:
        return self.encoder.inputs(items)

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray | None = None) -> Features:
        return dataclasses.replace(self.encoder.encode(items), fitted=self.fitted)


def save_encoder(root: Path, modality: str, name: str, fitted: Fitted) -> None:
    """Writes what an encoder learned into a dataset's folder, before its manifest."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    said = {"format_version": FORMAT_VERSION, "modality": modality, "encoder": _found_again(name), "kind": fitted.kind}
    said |= {"options": dict(fitted.options), "arrays": sorted(fitted.arrays), "libraries": _versions()}
    (folder / f"{modality}.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    if fitted.arrays:
        np.savez(folder / f"{modality}.npz", **dict(sorted(fitted.arrays.items())))


def saved_checksum(dataset: Dataset, modality: str) -> str | None:
    """What tells a dataset's encoder of a modality from any other; None where the dataset keeps none."""
    files = dataset.manifest["files"]
    names = [f"{FOLDER}/{modality}.json", f"{FOLDER}/{modality}.npz"]
    if names[0] not in files:
        return None
    return sha256_of(*(files.get(name, "") for name in names))


def load_encoder(dataset: Dataset, modality: str) -> SavedEncoder:
    """The encoder that made a modality of a dataset.

    Raises:
        UserError: no such modality, features computed elsewhere, a dataset from before encoders were kept, a file that
            is damaged or of another format, a pretrained model that cannot be had.
    """
    _refuse_without(dataset, modality)
    checksum = saved_checksum(dataset, modality)
    file = dataset.path / FOLDER / f"{modality}.json"
    if checksum is None:
        raise UserError(
            f"no fitted encoder of {modality}: the dataset was prepared before they were kept",
            path=file,
            hint="run `hisam prepare` again",
        )
    own = (f"{FOLDER}/{modality}.json", f"{FOLDER}/{modality}.npz")
    check_files(dataset.path, {part: digest for part, digest in dataset.manifest["files"].items() if part in own})
    try:
        said = json.loads(file.read_text("utf-8"))
        if said["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"format {said['format_version']!r}", path=file, field="format_version", expected=str(FORMAT_VERSION)
            )
        fitted = Fitted(said["kind"], said["options"], _arrays(file.with_suffix(".npz"), said["arrays"]))
        encoder = _restored(fitted, modality, said["encoder"], dataset)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"unreadable encoder ({type(error).__name__}: {error})", path=file, hint="run `hisam prepare` again"
        ) from error
    return SavedEncoder(modality, said["encoder"], checksum, fitted, encoder)


def _refuse_without(dataset: Dataset, modality: str) -> None:
    known = dataset.manifest["modalities"]
    if modality not in known:
        raise UserError(
            f"no {modality} features", path=dataset.path, field="modalities", expected=" or ".join(known) or "some"
        )
    name = known[modality].get("encoder", "unknown")
    if name.startswith("precomputed:"):
        raise UserError(
            f"its {modality} features were computed elsewhere ({name}): there is no encoder for other items",
            path=dataset.path,
            field=f"{modality}_encoder",
            expected="features of the new items from where those came from",
        )


def _restored(fitted: Fitted, modality: str, name: str, dataset: Dataset) -> FittedEncoder:
    if fitted.kind in _PRETRAINED:
        return SameModel.of(make_encoder(modality, name), fitted)
    if fitted.kind == PpmiSvd.name:
        own = ("items.parquet", f"features/{modality}.npy", f"features/{modality}.present.npy")
        digest = sha256_of(*(dataset.manifest["files"][name] for name in own))
        return Remembered(dataset.items["item_id"], dataset.features[modality], dataset.present[modality], digest)
    plugins.look_for(fitted.kind, RESTORED)
    return RESTORED[fitted.kind](fitted)


def _arrays(file: Path, names: list[str]) -> dict[str, np.ndarray]:
    if not names:
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in names}


def _found_again(name: str) -> str:
    """The name from any working directory: a model's folder by its absolute path."""
    kind, _, argument = name.partition(":")
    here = argument and not is_url(argument) and Path(argument).expanduser().is_dir()
    return f"{kind}:{as_given(Path(argument).expanduser())}" if here else name


@functools.cache
def _versions() -> dict[str, Any]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
