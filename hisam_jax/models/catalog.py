"""What the model knows of every item: codes and standardised features, as frozen arrays beside the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import numpy as np

from hisam_jax.sharding import padded_rows


@flax.struct.dataclass
class Catalog:
    """Frozen item tables, a pytree.

    Attributes:
        codes_IL: int32 semantic codes; a missing modality holds the level's reserved last code.
        features: modality -> float32 `[I, F]`, standardised over training items, zero where absent.
        trained_I: bool, items with at least one training interaction.
        frequency_I: float32, each item's share of all training interactions.
        extras: what a tokenizer left beside its codes, by name, a row an item; QARM's ranker reads it.
    """

    codes_IL: jax.Array
    features: Mapping[str, jax.Array]
    trained_I: jax.Array
    frequency_I: jax.Array
    extras: Mapping[str, jax.Array] = flax.struct.field(default_factory=dict)

    @property
    def items(self) -> int:
        return self.codes_IL.shape[0]

    @property
    def feature_width(self) -> int:
        """Features of an item, over all modalities."""
        return sum(values_IF.shape[-1] for values_IF in self.features.values())


def make_catalog(
    codes_IL: np.ndarray,
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    trained_I: np.ndarray,
    interactions_I: np.ndarray | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
) -> Catalog:
    """Standardises features by their mean and overall scale over training items that have them.

    `interactions_I` counts training interactions; None takes all trained items to be as frequent. `extras` are kept as
    they are.
    """
    scales = feature_scales(features, present, trained_I)
    ready = {name: standardised(features[name], present[name], scale) for name, scale in scales.items()}
    counts_I = np.asarray(trained_I if interactions_I is None else interactions_I, np.float64)
    frequency_I = (counts_I / max(counts_I.sum(), 1.0)).astype(np.float32)
    return Catalog(np.asarray(codes_IL, np.int32), ready, np.asarray(trained_I, bool), frequency_I, dict(extras or {}))


def feature_scales(
    features: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], trained_I: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`(mean_F, spread_F)` of each modality that a training item has; what new items are standardised by too."""
    scales = {}
    for name, values_IF in sorted(features.items()):
        rows_I = present[name] & trained_I
        if not rows_I.any():
            continue
        seen = np.asarray(values_IF[rows_I], np.float32)
        deviation_F = seen.std(0)
        scales[name] = seen.mean(0), np.maximum(deviation_F, 0.1 * max(float(deviation_F.mean()), 1e-6))
    return scales


def standardised(values_IF: np.ndarray, present_I: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float32 `[I, F]`, zero rows where an item lacks the modality."""
    mean_F, spread_F = scale
    return np.where(present_I[:, None], (values_IF - mean_F) / spread_F, 0.0).astype(np.float32)


def padded(catalog: Catalog) -> Catalog:
    """The catalogue with rows of nothing up to what `padded_rows` says: never trained, hence never a candidate."""
    more = padded_rows(catalog.items) - catalog.items
    return jax.tree.map(lambda x: np.pad(np.asarray(x), ((0, more), *((0, 0),) * (x.ndim - 1))), catalog)
