"""Tokenizers by name, and the frozen ones on disk: an .npz of arrays beside a .json of settings."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_collections
import numpy as np

from hisam_jax import plugins
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.alarms import AlarmConfig
from hisam_jax.tokenizer.base import FeatureMap, FittedTokenizer, PresentMap
from hisam_jax.tokenizer.dst_config import DSTConfig
from hisam_jax.tokenizer.dst_model import DSTModel
from hisam_jax.tokenizer.dst_training import fit_dst
from hisam_jax.tokenizer.opq import OPQ, OPQConfig, fit_opq
from hisam_jax.tokenizer.qarm_codes import Qarm, QarmConfig, fit_qarm
from hisam_jax.tokenizer.random_codes import RandomCodes, RandomConfig, fit_random
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeans, ResidualKMeansConfig, fit_residual_kmeans
from hisam_jax.tokenizer.rqvae import RQVAE, RQVAEConfig, fit_rqvae

FORMAT_VERSION = 2  # of tokenizers alone, tables have their own; 1 was a DST whose networks saw no shared codes

# What json, zipfile and numpy raise of files that are cut off, altered or something else.
BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError, NotImplementedError)
BROKEN += (zlib.error, zipfile.BadZipFile)


class Entry(NamedTuple):
    """How a tokenizer is configured, fitted and restored.

    Attributes:
        config: record of its section.
        fit: `(settings, features, present, train_rows, seed, progress)`, and `interactions` where it reads them.
        model: has `from_state`.
        reads_interactions: whether, with these settings, it learns from training positives too.
    """

    config: type
    fit: Callable[..., FittedTokenizer]
    model: Any
    reads_interactions: Callable[[Any], bool] = lambda settings: False


@runtime_checkable
class WithFeatures(Protocol):
    """A tokenizer that tells more of an item than its ID."""

    def item_features(self, features: FeatureMap, present: PresentMap) -> dict[str, np.ndarray]:
        """Name -> an array with one row an item, for a ranker; `tokenize` writes each to NAME.npy beside the IDs."""


TOKENIZERS = {
    "dst": Entry(DSTConfig, fit_dst, DSTModel),
    "residual_kmeans": Entry(ResidualKMeansConfig, fit_residual_kmeans, ResidualKMeans),
    "rqvae": Entry(RQVAEConfig, fit_rqvae, RQVAE),
    "opq": Entry(OPQConfig, fit_opq, OPQ),
    "qarm": Entry(QarmConfig, fit_qarm, Qarm, lambda settings: settings.alignment),
    "random": Entry(RandomConfig, fit_random, RandomCodes),
}


def register_tokenizer(name: str, entry: Entry) -> None:
    """Makes a tokenizer one that configs may name, with its settings in a section of that name.

    The process that reads its tables again must have registered it too: see `hisam_jax.plugins`.

    Raises:
        UserError: another tokenizer has the name.
    """
    plugins.claim(TOKENIZERS, name, entry, "name")


def entry(name: str) -> Entry:
    """The tokenizer called `name`, or a `UserError` that lists those there are."""
    plugins.look_for(name, TOKENIZERS)
    if name not in TOKENIZERS:
        raise UserError(f"unknown tokenizer {name!r}", field="name", expected=", ".join(TOKENIZERS))
    return TOKENIZERS[name]


def tokenizer_config(
    settings: Any, seed: int = 0, collisions: str = "digit", alarms: AlarmConfig | None = None
) -> ml_collections.ConfigDict:
    """What `tokenize` takes, every field in it: the tokenizer is the one whose settings these are.

    Args:
        settings: such as `DSTConfig(steps=500)`.
        seed: of the fit.
        collisions: digit, next_nearest, sinkhorn or none.
        alarms: when training is reported as going wrong; `strict` ends it then.

    Raises:
        UserError: settings of no tokenizer.
    """
    name = next((name for name, entry in TOKENIZERS.items() if entry.config is type(settings)), None)
    if name is None:
        known = ", ".join(entry.config.__name__ for entry in TOKENIZERS.values())
        raise UserError(f"a {type(settings).__name__}", field="settings", expected=f"one of {known}")
    sections = {"alarms": dataclasses.asdict(alarms or AlarmConfig()), name: dataclasses.asdict(settings)}
    return ml_collections.ConfigDict({"name": name, "seed": seed, "collisions": collisions, **sections})


def item_features(model: FittedTokenizer, features: FeatureMap, present: PresentMap) -> dict[str, np.ndarray]:
    """What `model` tells of items beside their IDs; nothing for most."""
    return model.item_features(features, present) if isinstance(model, WithFeatures) else {}


def save_tokenizer(model: FittedTokenizer, folder: str | os.PathLike) -> None:
    """Writes tokenizer.npz and tokenizer.json into a folder that exists."""
    arrays, meta = model.state()
    np.savez(Path(folder) / "tokenizer.npz", **arrays)
    about = {"format_version": FORMAT_VERSION, "name": model.name, **meta}
    (Path(folder) / "tokenizer.json").write_text(json.dumps(about, indent=1) + "\n")


def load_tokenizer(folder: str | os.PathLike) -> FittedTokenizer:
    """The frozen tokenizer of a table's folder, to give new items codes.

    Raises:
        UserError: no tokenizer there, or one of another version.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError("no tokenizer here", path=folder, expected="a folder that `hisam tokenize` left")
    try:
        meta = json.loads(path.read_text())
        if meta["format_version"] != FORMAT_VERSION:
            expected, hint = f"version {FORMAT_VERSION}", "run `hisam tokenize` again"
            raise UserError(f"version {meta['format_version']}", path=path, expected=expected, hint=hint)
        with np.load(path.with_suffix(".npz")) as stored:
            return entry(meta["name"]).model.from_state({name: stored[name] for name in stored.files}, meta)
    except BROKEN as error:
        raise UserError(f"not a tokenizer ({error!r})", path=path, hint="run `hisam tokenize` again") from error
