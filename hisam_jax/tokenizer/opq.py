"""Product quantisation of all modalities side by side, by default after a learned rotation (Ge et al. 2013).

Each level codes one part of the columns, so levels tell different things and none refines another. The rotation
alternates with the codebooks: given codes it solves orthogonal Procrustes, which the singular vectors of X'Y give.
Starting both from the columns as they are and from the paper's allocation of eigenvalues is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.config import check_least
from hisam_jax.tokenizer import base, joined, quantization
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap
from hisam_jax.tokenizer.config_checks import check_sizes
from hisam_jax.tokenizer.joined import Joined


@dataclasses.dataclass(frozen=True)
class OPQConfig:
    """Settings of product quantisation.

    Attributes:
        sizes: centres of each level; each level has an equal part of the columns.
        rotate: whether columns are rotated first (OPQ) or taken as they are (PQ).
        iterations: Lloyd iterations of each codebook before the first rotation.
        rotations: times that rotation and codebooks are improved in turn.
        fit_rows: training items it is fitted on at most, drawn at random.

    Raises:
        UserError: a value out of range.
    """

    sizes: tuple = (256, 256, 256)
    rotate: bool = True
    iterations: int = 20
    rotations: int = 10
    fit_rows: int = 65536

    def __post_init__(self):
        check_sizes(self, "opq", "sizes")
        check_least(self, "opq", iterations=0, rotations=0, fit_rows=1)


@dataclasses.dataclass(eq=False)
class OPQ:
    """Fitted rotation and codebooks over vectors of `Joined`; a `base.FittedTokenizer`."""

    cfg: OPQConfig
    rotation_FP: np.ndarray  # float32, orthonormal rows; P is F rounded up to a multiple of the levels
    books: list[np.ndarray]  # [K_l, P / L] each
    joined: Joined
    notes: list[str]
    history: list[dict[str, float]]
    name: str = "opq"

    @property
    def levels(self) -> tuple[Level, ...]:
        """All codes tell of all modalities: shared."""
        return base.group_levels({"shared": tuple(len(book) for book in self.books)})

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; reserved for items with no modality at all."""
        codes_IL = np.empty((self.joined.check(features, present), len(self.books)), np.int32)
        sizes = [len(book) for book in self.books]
        for rows, x_BF, has_B in self.joined.blocks(features, present):
            code_BL = np.asarray(_codes(_rotate(x_BF, self.rotation_FP), self.books))[: len(has_B)]
            codes_IL[rows] = np.where(has_B[:, None], code_BL, sizes)
        return codes_IL

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K] from the level's part of each item to its centres."""
        costs_IK = np.empty((self.joined.check(features, present), len(self.books[level])), np.float32)
        for rows, x_BF, has_B in self.joined.blocks(features, present):
            part_BS = _split(_rotate(x_BF, self.rotation_FP), len(self.books))[level]
            costs_IK[rows] = quantization.squared_distances(part_BS, self.books[level])[: len(has_B)]
        return costs_IK

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """See `Joined.targets`."""
        return self.joined.targets(features)

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Centres side by side, rotated back; there are no specific codes, so `specific_only` is the mean item."""
        parts = [quantization.look_up(book, code_I) for book, code_I in zip(self.books, codes_IL.T, strict=True)]
        told_IF = np.concatenate(parts, axis=1) @ self.rotation_FP.T
        return self.joined.split(told_IF if branch != "specific_only" else np.zeros_like(told_IF))

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        arrays = {f"books/{depth}": book for depth, book in enumerate(self.books)} | self.joined.arrays()
        meta = {"config": self.config, "modalities": list(self.joined.scales)}
        return arrays | {"rotation": self.rotation_FP}, meta | {"notes": self.notes, "history": self.history}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> OPQ:
        """The same tokenizer again."""
        cfg = joined.read_config(OPQConfig, meta["config"])
        books = [arrays[f"books/{depth}"] for depth in range(len(cfg.sizes))]
        scaling = Joined.from_arrays(arrays, meta["modalities"])
        return cls(cfg, arrays["rotation"], books, scaling, list(meta["notes"]), list(meta["history"]))


def fit_opq(
    cfg: OPQConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> OPQ:
    """Fits rotation and codebooks on the items where `train_rows` (bool [I]) is true.

    Raises:
        UserError: features that cannot be used, or no training item with any.
    """
    scaling, x_NF = joined.fit_joined(features, present, train_rows, seed, cfg.fit_rows)
    sizes, notes = joined.shrunk(cfg.sizes, len(x_NF), "opq.sizes")
    rotations = starts(x_NF, len(sizes)) if cfg.rotate else starts(x_NF, len(sizes))[:1]
    found = [fit_books(jax.random.key(seed), _rotate(x_NF, r), sizes, cfg.iterations) for r in rotations]
    best = int(np.argmin([error for _, error in found]))
    rotation_FP, (books, error) = rotations[best], found[best]
    history = [{"step": 1, "reconstruction": error / len(scaling.scales)}]
    for step in range(cfg.rotations if cfg.rotate else 0):
        rotation_FP = procrustes(x_NF, _decoded(_rotate(x_NF, rotation_FP), books))
        books, error = refine(_rotate(x_NF, rotation_FP), books)
        history.append({"step": step + 2, "reconstruction": error / len(scaling.scales)})
        if progress:
            progress(step + 2, cfg.rotations + 1, history[-1])
    return OPQ(cfg, rotation_FP, [np.asarray(book) for book in books], scaling, notes, history)


def starts(x_NF: np.ndarray, levels: int) -> list[np.ndarray]:
    """Rotations [F, P] to begin with: the columns as they are, and principal axes dealt out to levels in turn, each
    to the level whose product of variances is least (Ge et al. 2013, section 3.2.3)."""
    width = x_NF.shape[1]
    plain_FP = np.eye(width, -(-width // levels) * levels, dtype=np.float32)
    variance_F, axes_FF = np.linalg.eigh(np.asarray(x_NF.T @ x_NF, np.float64) / max(len(x_NF), 1))
    share_F = np.maximum(variance_F / max(float(variance_F.max()), 1e-30), 1e-6)
    gain_F = np.log(share_F / share_F.min())  # never negative: an axis more must not make a level look emptier
    room, load, place = plain_FP.shape[1] // levels, np.zeros(levels), [[] for _ in range(levels)]
    for axis in np.argsort(-variance_F, kind="stable"):
        level = min((index for index in range(levels) if len(place[index]) < room), key=lambda index: load[index])
        place[level].append(axis)
        load[level] += gain_F[axis]
    dealt_FP = np.zeros_like(plain_FP)
    for level, axes in enumerate(place):
        dealt_FP[:, level * room : level * room + len(axes)] = axes_FF[:, axes]
    return [plain_FP, dealt_FP]


def fit_books(key: jax.Array, x_NP: jax.Array, sizes: Sequence[int], iterations: int) -> tuple[list[jax.Array], float]:
    """(codebooks of each part by k-means, mean squared norm of what they leave)."""
    ones = jnp.ones(len(x_NP))
    books = [
        quantization.kmeans(jax.random.fold_in(key, level), part_NS, ones, size, iterations)
        for level, (part_NS, size) in enumerate(zip(_split(x_NP, len(sizes)), sizes, strict=True))
    ]
    return books, _error(x_NP, books)


def refine(x_NP: jax.Array, books: Sequence[jax.Array]) -> tuple[list[jax.Array], float]:
    """(codebooks after one iteration of Lloyd, what they leave)."""
    ones, parts = jnp.ones(len(x_NP)), _split(x_NP, len(books))
    books = [quantization.lloyd(part_NS, ones, book, 1) for part_NS, book in zip(parts, books, strict=True)]
    return books, _error(x_NP, books)


def procrustes(x_NF: np.ndarray, y_NP: np.ndarray) -> np.ndarray:
    """R [F, P] of orthonormal rows that makes |X R - Y| least: U V' of the singular vectors of X'Y."""
    left_FF, _, right_FP = np.linalg.svd(np.asarray(x_NF).T @ np.asarray(y_NP), full_matrices=False)
    return (left_FF @ right_FP).astype(np.float32)


def _split(x_NP: jax.Array, levels: int) -> list[jax.Array]:
    return jnp.split(jnp.asarray(x_NP), levels, axis=1)


def _error(x_NP: jax.Array, books: Sequence[jax.Array]) -> float:
    return float(jnp.mean(jnp.sum((x_NP - _decoded(x_NP, books)) ** 2, -1)))


@jax.jit
def _rotate(x_NF: jax.Array, rotation_FP: jax.Array) -> jax.Array:
    return jnp.matmul(x_NF, rotation_FP, precision=quantization.PRECISION)


@jax.jit
def _codes(x_NP: jax.Array, books: Sequence[jax.Array]) -> jax.Array:
    parts = _split(x_NP, len(books))
    return jnp.stack([quantization.nearest(part, jnp.asarray(b)) for part, b in zip(parts, books, strict=True)], 1)


@jax.jit
def _decoded(x_NP: jax.Array, books: Sequence[jax.Array]) -> jax.Array:
    codes_NL = _codes(x_NP, books)
    return jnp.concatenate([jnp.asarray(book)[codes_NL[:, level]] for level, book in enumerate(books)], 1)
