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
    """

    codes_IL: jax.Array
    features: Mapping[str, jax.Array]
    trained_I: jax.Array
    frequency_I: jax.Array

    @property
    def items(self) -> int:
        return self.codes_IL.shape[0]


def make_catalog(
    codes_IL: np.ndarray,
    features: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    trained_I: np.ndarray,
    interactions_I: np.ndarray | None = None,
) -> Catalog:
    """Standardises features by their mean and overall scale over training items that have them.

    `interactions_I` counts training interactions; None takes all trained items to be as frequent.
    """
    ready = {}
    for name, values_IF in sorted(features.items()):
        rows_I = present[name] & trained_I
        if not rows_I.any():
            continue
        seen = np.asarray(values_IF[rows_I], np.float32)
        mean_F, scale = seen.mean(0), max(float(seen.std(0).mean()), 1e-6)
        spread_F = np.maximum(seen.std(0), 0.1 * scale)
        ready[name] = np.where(present[name][:, None], (values_IF - mean_F) / spread_F, 0.0).astype(np.float32)
    counts_I = np.asarray(trained_I if interactions_I is None else interactions_I, np.float64)
    frequency_I = (counts_I / max(counts_I.sum(), 1.0)).astype(np.float32)
    return Catalog(np.asarray(codes_IL, np.int32), ready, np.asarray(trained_I, bool), frequency_I)


def padded(catalog: Catalog) -> Catalog:
    """The catalogue with rows of nothing up to what `padded_rows` says: never trained, hence never a candidate."""
    more = padded_rows(catalog.items) - catalog.items
    return jax.tree.map(lambda x: np.pad(np.asarray(x), ((0, more), *((0, 0),) * (x.ndim - 1))), catalog)
