"""Residual k-means on all modalities side by side: the plain, robust baseline (GRID, arXiv 2507.22224)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hisam_jax.config import check_least
from hisam_jax.tokenizer import balanced_clustering, base, clustering, joined, quantization
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap
from hisam_jax.tokenizer.config_checks import check_sizes
from hisam_jax.tokenizer.joined import Joined


@dataclasses.dataclass(frozen=True)
class ResidualKMeansConfig:
    """Settings of residual k-means.

    Attributes:
        sizes: centres of each level.
        iterations: Lloyd iterations of each level.
        fit_rows: training items it is fitted on at most, drawn at random.
        balanced: fit every centre of a level to as many items, as OneRec does (arXiv 2502.18965), so that odd items
            keep no centres to themselves; False is plain k-means, as in GRID.

    Raises:
        UserError: a value out of range.
    """

    sizes: tuple = (256, 256, 256)
    iterations: int = 20
    fit_rows: int = 262144
    balanced: bool = False

    def __post_init__(self):
        check_sizes(self, "residual_kmeans", "sizes")
        check_least(self, "residual_kmeans", iterations=0, fit_rows=1)


@dataclasses.dataclass(eq=False)
class ResidualKMeans:
    """Fitted centres over vectors of `Joined`; a `base.FittedTokenizer`."""

    cfg: ResidualKMeansConfig
    centres: list[np.ndarray]  # [K_l, F] each, F the width of all modalities together
    joined: Joined
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
        codes_IL = np.empty((self.joined.check(features, present), len(self.centres)), np.int32)
        sizes = [len(c) for c in self.centres]
        for rows, x_BF, has_B in self.joined.blocks(features, present):
            code_BL = np.asarray(_quantize(x_BF, self.centres).codes_NL)[: len(has_B)]
            codes_IL[rows] = np.where(has_B[:, None], code_BL, sizes)
        return codes_IL

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K] from what `level` quantises to its centres."""
        costs_IK = np.empty((self.joined.check(features, present), len(self.centres[level])), np.float32)
        for rows, x_BF, has_B in self.joined.blocks(features, present):
            residual_BF = _quantize(x_BF, self.centres).residuals_LND[level]
            costs_IK[rows] = _distances(residual_BF, self.centres[level])[: len(has_B)]
        return costs_IK

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """See `Joined.targets`."""
        return self.joined.targets(features)

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Sum of centres; there are no specific codes, so `specific_only` is the mean item."""
        total_IF = np.zeros((len(codes_IL), self.centres[0].shape[1]), np.float32)
        if branch != "specific_only":
            for code_I, centres_KF in zip(codes_IL.T, self.centres, strict=True):
                total_IF += quantization.look_up(centres_KF, code_I)
        return self.joined.split(total_IF)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        arrays = {f"centres/{depth}": centres for depth, centres in enumerate(self.centres)} | self.joined.arrays()
        meta = {"config": self.config, "modalities": list(self.joined.scales)}
        return arrays, meta | {"notes": self.notes, "history": self.history}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> ResidualKMeans:
        """The same tokenizer again."""
        cfg = joined.read_config(ResidualKMeansConfig, meta["config"])
        centres = [arrays[f"centres/{depth}"] for depth in range(len(cfg.sizes))]
        scaling = Joined.from_arrays(arrays, meta["modalities"])
        return cls(cfg, centres, scaling, list(meta["notes"]), list(meta["history"]))


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
    scaling, x_NF = joined.fit_joined(features, present, train_rows, seed, cfg.fit_rows)
    sizes, notes = joined.shrunk(cfg.sizes, len(x_NF), "residual_kmeans.sizes")
    centres, history = [], []
    for fitted in fit_levels(jax.random.key(seed), x_NF, sizes, cfg.iterations, balanced=cfg.balanced):
        centres.append(fitted.centres_KD)
        history.append({"step": len(centres), "reconstruction": fitted.error / len(scaling.scales)})
        if progress:
            progress(len(centres), len(sizes), history[-1])
    return ResidualKMeans(cfg, centres, scaling, notes, history)


def fit_levels(
    key: jax.Array,
    x_ND: np.ndarray,
    sizes: Sequence[int],
    iterations: int,
    starts: Sequence[np.ndarray] | None = None,
    balanced: bool = False,
) -> Iterator[clustering.Clustering]:
    """k-means of each level on what the levels before it leave over; the device sees a part of the rows at a time.

    Args:
        key: for the seeds.
        x_ND: float32 rows, an array or a memory map; not changed.
        sizes: centres of each level.
        iterations: of Lloyd, each level.
        starts: first centres of each level; by default k-means++ of it.
        balanced: whether every centre is fitted to as many rows.
    """
    parts = clustering.split(x_ND)
    for depth, size in enumerate(sizes):
        level_key = jax.random.fold_in(key, depth)
        start_KD = starts[depth] if starts else clustering.seeds(level_key, parts, len(x_ND), size)
        if balanced:
            fitted = balanced_clustering.balanced(level_key, parts, len(x_ND), start_KD, iterations)
        else:
            fitted = clustering.lloyd(parts, len(x_ND), start_KD, iterations)
        yield fitted
        if depth + 1 < len(sizes):
            clustering.subtract(parts, len(x_ND), fitted)


_quantize = jax.jit(quantization.residual_quantize)
_distances = jax.jit(quantization.squared_distances)
