"""Residual k-means on all modalities side by side: the plain, robust baseline (GRID, arXiv 2507.22224)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import base, quantization
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap, Standardiser


@dataclasses.dataclass(frozen=True)
class ResidualKMeansConfig:
    """Settings of residual k-means.

    Attributes:
        sizes: centres of each level.
        iterations: Lloyd iterations of each level.
        fit_rows: training items it is fitted on at most, drawn at random.
    """

    sizes: tuple = (256, 256, 256)
    iterations: int = 20
    fit_rows: int = 262144


@dataclasses.dataclass(eq=False)
class ResidualKMeans:
    """Fitted centres. Every modality is centred and scaled to a mean squared norm of 1; an absent one is its mean."""

    cfg: ResidualKMeansConfig
    centres: list[np.ndarray]  # [K_l, F] each, F the width of all modalities together
    scales: dict[str, Standardiser]
    notes: list[str]
    history: list[dict[str, float]]
    name: str = "residual_kmeans"

    @property
    def levels(self) -> tuple[Level, ...]:
        """All codes tell of all modalities: shared."""
        return base.group_levels({"shared": tuple(len(c) for c in self.centres)})

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; reserved for items with no modality at all."""
        self._check(features, present)
        rows = len(next(iter(features.values())))
        codes_IL = np.empty((rows, len(self.centres)), np.int32)
        for start, stop in base.blocks(rows):
            x_BF, has_B = self._joined(features, present, start, stop)
            code_BL = _quantize(base.padded(x_BF, base.BLOCK), self.centres).codes_NL
            sizes = [len(c) for c in self.centres]
            codes_IL[start:stop] = np.where(has_B[:, None], np.asarray(code_BL)[: stop - start], sizes)
        return codes_IL

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K] from what `level` quantises to its centres."""
        self._check(features, present)
        parts = []
        for start, stop in base.blocks(len(next(iter(features.values())))):
            x_BF, _ = self._joined(features, present, start, stop)
            residual_BF = _quantize(base.padded(x_BF, base.BLOCK), self.centres).residuals_LND[level]
            parts.append(np.asarray(quantization.squared_distances(residual_BF, self.centres[level]))[: stop - start])
        return np.concatenate(parts)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """Features times the square root of their number, so that the mean over columns has unit variance."""
        ones = np.ones(len(next(iter(features.values()))), bool)
        return {m: scale(features[m], ones) * len(scale.mean_F) ** 0.5 for m, scale in self.scales.items()}

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Sum of centres; there are no specific codes, so `specific_only` is the mean item."""
        width = self.centres[0].shape[1]
        total_IF = np.zeros((len(codes_IL), width), np.float32)
        if branch != "specific_only":
            for code_I, centres_KF in zip(codes_IL.T, self.centres, strict=True):
                known_I1 = (code_I < len(centres_KF))[:, None]
                total_IF += np.where(known_I1, centres_KF[np.minimum(code_I, len(centres_KF) - 1)], 0)
        widths = [len(scale.mean_F) for scale in self.scales.values()]
        parts = np.split(total_IF, np.cumsum(widths)[:-1], axis=1)
        return {m: part * part.shape[1] ** 0.5 for m, part in zip(self.scales, parts, strict=True)}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        arrays = {f"centres/{depth}": centres for depth, centres in enumerate(self.centres)}
        for m, scale in self.scales.items():
            arrays |= {f"mean/{m}": scale.mean_F, f"scale/{m}": scale.scale_F}
        meta = {"config": self.config, "modalities": list(self.scales), "notes": self.notes, "history": self.history}
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> ResidualKMeans:
        """The same tokenizer again."""
        cfg = ResidualKMeansConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in meta["config"].items()})
        centres = [arrays[f"centres/{depth}"] for depth in range(len(cfg.sizes))]
        scales = {m: Standardiser(arrays[f"mean/{m}"], arrays[f"scale/{m}"]) for m in meta["modalities"]}
        return cls(cfg, centres, scales, list(meta["notes"]), list(meta["history"]))

    def _check(self, features: FeatureMap, present: PresentMap) -> None:
        base.check_features(features, present)
        base.check_widths(features, {m: len(scale.mean_F) for m, scale in self.scales.items()})

    def _joined(
        self, features: FeatureMap, present: PresentMap, start: int, stop: int
    ) -> tuple[np.ndarray, np.ndarray]:
        part = {m: present[m][start:stop] for m in self.scales}
        x_BF = np.concatenate([s(features[m][start:stop], part[m]) for m, s in self.scales.items()], axis=1)
        return x_BF, np.any(list(part.values()), axis=0)


def fit_residual_kmeans(
    cfg: ResidualKMeansConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> ResidualKMeans:
    """Fits centres on the items where `train_rows` (bool [I]) is true.

    Raises:
        UserError: features that cannot be used, or no training item with any.
    """
    base.check_features(features, present)
    usable = [m for m in features if (present[m] & train_rows).any()]
    if not usable or not cfg.sizes:
        raise UserError("nothing to fit", field="features", expected="a training item with features, and a level")
    scales = {m: base.fit_standardiser(features[m], present[m] & train_rows, per_column=False) for m in usable}
    rows = np.flatnonzero(train_rows & np.any([present[m] for m in usable], axis=0))
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[: cfg.fit_rows])
    x_NF = np.concatenate([scales[m](features[m][rows], present[m][rows]) for m in usable], axis=1)
    sizes = [min(size, len(rows)) for size in cfg.sizes]
    notes = [f"{size} centres for {len(rows)} training items, shrunk to that" for size in cfg.sizes if size > len(rows)]
    centres, history = [], []
    for depth, size in enumerate(sizes):
        key = jax.random.fold_in(jax.random.key(seed), depth)
        centres.append(np.asarray(quantization.kmeans(key, x_NF, np.ones(len(rows), np.float32), size, cfg.iterations)))
        x_NF = np.concatenate(
            [np.asarray(quantization.leftover(x_NF[a:b], centres[-1])) for a, b in base.blocks(len(x_NF))]
        )
        history.append({"step": depth + 1, "reconstruction": float(np.square(x_NF).sum(1).mean()) / len(usable)})
        if progress:
            progress(depth + 1, len(sizes), history[-1])
    return ResidualKMeans(cfg, centres, scales, notes[:1], history)


_quantize = jax.jit(quantization.residual_quantize)
