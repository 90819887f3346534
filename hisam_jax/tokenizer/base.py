"""What every tokenizer has in common: levels, the fitted form, checks of features, work in blocks."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hisam_jax.errors import UserError

FeatureMap = Mapping[str, np.ndarray]  # modality -> float32 [I, F_m]
PresentMap = Mapping[str, np.ndarray]  # modality -> bool [I]
Progress = Callable[[int, int, dict[str, float]], None]  # (steps done, steps in all, metrics)
BRANCHES = ("full", "shared_only", "specific_only")
BLOCK = 4096
SCATTERED = 256  # rows read at a time where each may lie in pages of its own, which come with their neighbours


@dataclasses.dataclass(frozen=True)
class Level:
    """One position of a semantic ID. Codes are 0..size-1; `size` itself is reserved for a missing modality."""

    name: str
    modality: str
    size: int


@runtime_checkable
class FittedTokenizer(Protocol):
    """A frozen tokenizer: items in, codes out. `levels`, `config`, `notes` and `history` describe it."""

    name: str
    levels: tuple[Level, ...]
    config: dict[str, Any]
    notes: list[str]
    history: list[dict[str, float]]

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; reserved where the view that a level needs is missing."""

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Cost float32 [I, size] of each code of `level`; `assign` takes the cheapest."""

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """What `reconstruct` aims at: standardised features, float32 [I, F_m]."""

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Standardised features [I, F_m] told by codes alone; `branch` of BRANCHES. Empty where codes tell nothing."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON-able metadata that `from_state` makes the same tokenizer of."""


@runtime_checkable
class CrossModal(Protocol):
    """A tokenizer that can place one view of an item alone in its shared space."""

    def views(self, features: FeatureMap, present: PresentMap) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Modality -> (latent float32 [I, D], the vector of its shared codes float32 [I, D])."""


def group_levels(groups: Mapping[str, tuple[int, ...]]) -> tuple[Level, ...]:
    """Levels named `group/0`, `group/1`, ... in order, coarse to fine."""
    flat = ((name, depth, size) for name, sizes in groups.items() for depth, size in enumerate(sizes))
    return tuple(Level(f"{name}/{depth}", name, size) for name, depth, size in flat)


def rows_of(features: FeatureMap) -> int:
    """Number of items; a `UserError` where there is no modality to count them by."""
    if not features:
        raise UserError("the dataset has no features at all", field="features", expected="text or image features")
    return len(next(iter(features.values())))


def check_features(features: FeatureMap, present: PresentMap) -> int:
    """Number of items.

    Raises:
        UserError: no modality or one without columns, shapes that do not fit together, a NaN or infinite value of a
            present item.
    """
    rows = rows_of(features)
    for name, values in features.items():
        shape_ok = values.ndim == 2 and len(values) == rows and name in present and present[name].shape == (rows,)
        if not shape_ok:
            raise UserError(
                f"values of shape {values.shape}, presence of shape {np.shape(present.get(name))}",
                field=f"features.{name}",
                expected=f"[{rows}, width] and [{rows}]",
            )
        if not values.shape[1]:
            raise UserError("no columns", field=f"features.{name}", expected="at least one, or no such modality")
        for start, stop in blocks(rows):
            bad = ~np.isfinite(values[start:stop]).all(axis=1) & present[name][start:stop]
            if bad.any():
                raise UserError(
                    f"item row {start + int(bad.argmax())} has a NaN or infinite value",
                    field=f"features.{name}",
                    expected="finite numbers, or the item marked as lacking this modality",
                )
            release({name: values})
    return rows


def check_widths(features: FeatureMap, widths: Mapping[str, int]) -> None:
    """Refuses features whose modalities or widths differ from those that a tokenizer was fitted on."""
    for name, width in widths.items():
        found = features[name].shape[1] if name in features else None
        if found != width:
            problem = "no such features" if found is None else f"{found} columns"
            raise UserError(problem, field=f"features.{name}", expected=f"{width} columns, as when it was fitted")


def blocks(rows: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks that cover `rows`."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def release(features: FeatureMap) -> None:
    """Lets go of the pages of features that are memory-mapped for reading; the next access reads them again."""
    for values in features.values():
        pages = getattr(values, "base", None)
        if isinstance(values, np.memmap) and values.mode == "r" and isinstance(pages, mmap.mmap):
            if hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)


def padded(values: np.ndarray, rows: int) -> np.ndarray:
    """`values` with zero rows appended, so that compiled functions see one block shape only."""
    missing = rows - len(values)
    return values if missing == 0 else np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])


@dataclasses.dataclass(frozen=True)
class Standardiser:
    """Per-column shift and scale, from training items that have the modality; constant columns become zero."""

    mean_F: np.ndarray
    scale_F: np.ndarray

    def __call__(self, values_NF: np.ndarray, present_N: np.ndarray) -> np.ndarray:
        """Standardised float32 [N, F], zero rows where absent."""
        scaled = (np.asarray(values_NF, np.float32) - self.mean_F) * self.scale_F
        return np.where(present_N[:, None], scaled, 0).astype(np.float32)

    def read(self, values_IF: np.ndarray, present_I: np.ndarray, rows_N: np.ndarray, out_NF: np.ndarray) -> None:
        """Puts the standardised rows `rows_N` into `out_NF`; of a memory map few pages are held at a time."""
        for start, stop in blocks(len(rows_N), SCATTERED):
            part = rows_N[start:stop]
            out_NF[start:stop] = self(values_IF[part], present_I[part])
            release({"": values_IF})


def fit_standardiser(values_IF: np.ndarray, rows_I: np.ndarray, *, per_column: bool = True) -> Standardiser:
    """Moments over the rows where `rows_I` is true, read in blocks.

    With `per_column` every column gets unit variance; without, one scale gives rows a mean squared norm of 1.
    """
    width, count = values_IF.shape[1], int(rows_I.sum())
    mean = np.zeros(width)
    for chosen in _chosen(values_IF, rows_I):
        mean += chosen.sum(0)
    mean /= max(count, 1)
    variance = np.zeros(width)
    for chosen in _chosen(values_IF, rows_I):
        variance += np.square(chosen - mean).sum(0)
    variance /= max(count, 1)
    floor = 1e-12 * (np.square(mean) + max(float(variance.max(initial=0.0)), 1e-30))
    if per_column:
        scale = np.where(variance > floor, 1 / np.sqrt(np.maximum(variance, floor)), 0.0)
    else:
        total = float(variance.sum())
        scale = np.full(width, 1 / np.sqrt(total) if total > floor.sum() else 0.0)
    return Standardiser(mean.astype(np.float32), scale.astype(np.float32))


def _chosen(values_IF: np.ndarray, rows_I: np.ndarray) -> Iterator[np.ndarray]:
    for start, stop in blocks(len(values_IF)):
        yield np.asarray(values_IF[start:stop], np.float64)[rows_I[start:stop]]
        release({"": values_IF})
