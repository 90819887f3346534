"""All modalities of an item side by side as one vector: what the tokenizers without networks quantise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import base
from hisam_jax.tokenizer.base import FeatureMap, PresentMap, Standardiser


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
    """Every modality centred and scaled to a mean squared norm of 1, so that none counts for more; an absent one is
    its mean. The scaling is ours."""

    scales: dict[str, Standardiser]

    @property
    def widths(self) -> dict[str, int]:
        """Modality -> columns, in their order."""
        return {m: len(scale.mean_F) for m, scale in self.scales.items()}

    def check(self, features: FeatureMap, present: PresentMap) -> int:
        """Number of items; raises as `base.check_features` and `base.check_widths`."""
        rows = base.check_features(features, present)
        base.check_widths(features, self.widths)
        return rows

    def at(self, features: FeatureMap, present: PresentMap, rows: slice | np.ndarray) -> np.ndarray:
        """Vectors float32 [N, F] of the items `rows`."""
        return np.concatenate([s(features[m][rows], present[m][rows]) for m, s in self.scales.items()], axis=1)

    def read(self, features: FeatureMap, present: PresentMap, rows_N: np.ndarray) -> np.ndarray:
        """As `at`, for rows that lie anywhere in memory maps: pages are let go of, and no second copy is made."""
        widths = self.widths
        x_NF, ends = np.empty((len(rows_N), sum(widths.values())), np.float32), np.cumsum(list(widths.values()))
        for (m, scale), end in zip(self.scales.items(), ends, strict=True):
            scale.read(features[m], present[m], rows_N, x_NF[:, end - widths[m] : end])
        return x_NF

    def blocks(self, features: FeatureMap, present: PresentMap) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(rows, vectors [BLOCK, F] with zero rows at the end, whether each row has any modality)."""
        for start, stop in base.blocks(len(next(iter(features.values())))):
            part = slice(start, stop)
            yield part, base.padded(self.at(features, present, part), base.BLOCK), self.any(present, part)

    def any(self, present: PresentMap, rows: slice | np.ndarray) -> np.ndarray:
        """bool [N]: items with a modality that this knows."""
        return np.any([present[m][rows] for m in self.scales], axis=0)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """Features times the square root of their number, so that the mean over columns has unit variance."""
        ones = np.ones(len(next(iter(features.values()))), bool)
        return {m: scale(features[m], ones) * len(scale.mean_F) ** 0.5 for m, scale in self.scales.items()}

    def split(self, x_NF: np.ndarray) -> dict[str, np.ndarray]:
        """Vectors back to modalities, in the scale of `targets`."""
        parts = np.split(x_NF, np.cumsum(list(self.widths.values()))[:-1], axis=1)
        return {m: part * part.shape[1] ** 0.5 for m, part in zip(self.scales, parts, strict=True)}

    def arrays(self) -> dict[str, np.ndarray]:
        """For a tokenizer's state."""
        return stored(self.scales)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], modalities: Sequence[str]) -> Joined:
        """The same again."""
        return cls(restored(arrays, modalities))


def stored(scales: Mapping[str, Standardiser]) -> dict[str, np.ndarray]:
    """`mean/MODALITY` and `scale/MODALITY`."""
    return {f"{kind}/{m}": v for m, s in scales.items() for kind, v in (("mean", s.mean_F), ("scale", s.scale_F))}


def restored(arrays: Mapping[str, np.ndarray], modalities: Sequence[str]) -> dict[str, Standardiser]:
    """What `stored` stored."""
    return {m: Standardiser(arrays[f"mean/{m}"], arrays[f"scale/{m}"]) for m in modalities}


def usable(features: FeatureMap, present: PresentMap, train_rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """(modalities that a training item has, rows of training items with any of them).

    Raises:
        UserError: features that cannot be used, or no training item with any.
    """
    base.check_features(features, present)
    names = [m for m in features if (present[m] & train_rows).any()]
    if not names:
        raise UserError("no training item has any features", field="features", expected="at least one modality")
    return names, np.flatnonzero(train_rows & np.any([present[m] for m in names], axis=0))


def fit_joined(
    features: FeatureMap, present: PresentMap, train_rows: np.ndarray, seed: int, fit_rows: int
) -> tuple[Joined, np.ndarray]:
    """(scaling by training items, training vectors float32 [N, F]): those with any modality, `fit_rows` at random.

    Raises:
        UserError: see `usable`.
    """
    names, rows = usable(features, present, train_rows)
    joined = Joined({m: base.fit_standardiser(features[m], present[m] & train_rows, per_column=False) for m in names})
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:fit_rows])
    return joined, joined.read(features, present, rows)


def shrunk(sizes: Sequence[int], rows: int, field: str) -> tuple[list[int], list[str]]:
    """(sizes of which none exceeds `rows`, what was changed, in words).

    Raises:
        UserError: no level, or one without codes.
    """
    if not sizes or min(sizes) < 1:
        raise UserError(f"{tuple(sizes)}", field=field, expected="at least one level of at least one code")
    notes = [f"{size} codes for {rows} training items, shrunk to that" for size in sizes if size > rows]
    return [min(size, rows) for size in sizes], list(dict.fromkeys(notes))


def read_config(kind: type, stored: Mapping[str, object]) -> object:
    """A config of `kind` from its JSON-able values, where tuples had become lists."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
