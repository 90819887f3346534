"""QARM's codes (arXiv 2411.11739): residual codes of an item vector, and the items nearest to it as a feature.

Stated: the vector is aligned with what users do (`item_alignment`), L = 6 levels of residual codes, 25 nearest items.
Ours: 256 codes a level, and that neighbours are training items only. Without `alignment`, or without interactions, the
vector is that of `Joined`. Neighbours and aligned vectors are no part of the ID.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.config import check_least
from hisam_jax.data.encoders.behaviour import Interactions
from hisam_jax.tokenizer import base, joined, pairs
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap
from hisam_jax.tokenizer.config_checks import check_sizes
from hisam_jax.tokenizer.item_alignment import Adapter, AdapterConfig, fit_adapter, with_features
from hisam_jax.tokenizer.nearest_neighbours import NONE, nearest_neighbours
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeans, ResidualKMeansConfig, fit_residual_kmeans

VQ, ALIGNED = "neighbours", "aligned"


@dataclasses.dataclass(frozen=True)
class QarmConfig(AdapterConfig):
    """Settings of QARM's codes, beside those of the adapter.

    Attributes:
        sizes: centres of each level of the residual code.
        neighbours: nearest training items of each item.
        iterations: Lloyd iterations of each level.
        fit_rows: training items that the centres are fitted on at most, drawn at random.
        balanced: fit every centre of a level to as many items [ours: not stated for QARM], see `ResidualKMeansConfig`.
        alignment: quantise aligned vectors; False, or no interactions to learn them from: the features themselves.
        latest: earlier positives that a User2Item trigger is taken from [stated: 50].
        swing_neighbours: Item2Item targets of an item.
        swing_users: users of an item that Swing reads at most.

    Raises:
        UserError: a value out of range.
    """

    sizes: tuple = (256,) * 6
    neighbours: int = 25
    iterations: int = 20
    fit_rows: int = 262144
    alignment: bool = True
    latest: int = 50
    swing_neighbours: int = 10
    swing_users: int = 200
    balanced: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_sizes(self, "qarm", "sizes")
        check_least(self, "qarm", neighbours=1, iterations=0, fit_rows=1, latest=1, swing_neighbours=1, swing_users=2)


@dataclasses.dataclass(eq=False)
class Qarm:
    """Residual k-means beside the vectors of the training items; a `base.FittedTokenizer` and `base.WithFeatures`."""

    cfg: QarmConfig
    residual: ResidualKMeans
    keys_TF: np.ndarray  # float32, training items that have any modality
    rows_T: np.ndarray  # int32, their rows in the catalogue; NONE for an item that has vanished from it
    item_ids: pl.Series | None = None  # String [T], their ids, once the catalogue has grown
    adapter: Adapter | None = None  # None: features are quantised as they are
    told: dict[str, list] = dataclasses.field(default_factory=dict)  # the adapter's notes and history
    name: str = "qarm"

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those of the residual code."""
        return self.residual.levels

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    @property
    def notes(self) -> list[str]:
        """What had to be changed to fit the data."""
        return [*self.told.get("notes", []), *self.residual.notes]

    @property
    def history(self) -> list[dict[str, float]]:
        """Losses of the adapter, then the error after each level."""
        return [*self.told.get("history", []), *self.residual.history]

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]."""
        return self.residual.assign(*self._space(features, present))

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K]."""
        return self.residual.costs(*self._space(features, present), level)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """See `Joined.targets`; nothing with an adapter, whose vectors tell no features."""
        return {} if self.adapter else self.residual.targets(features)

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Sum of centres; nothing with an adapter."""
        return {} if self.adapter else self.residual.reconstruct(codes_IL, branch)

    def _space(self, features: FeatureMap, present: PresentMap) -> tuple[FeatureMap, PresentMap]:
        """What is quantised, as features of its own."""
        return _aligned(self.adapter, features, present) if self.adapter else (features, present)

    def item_features(self, features: FeatureMap, present: PresentMap, first_row: int = 0) -> dict[str, np.ndarray]:
        """`neighbours`: rows int32 [I, n] of the nearest training items, never the item itself; -1 where there is none,
        or where that item has vanished from the catalogue. With an adapter also `aligned`: unit vectors float32 [I, D],
        zero for an item without features.

        Args:
            features: modality -> [I, F_m].
            present: modality -> bool [I].
            first_row: the catalogue's row of the first item given, so that an item can be told from its neighbours.
        """
        beside = {}
        if self.adapter:
            features, present = self._space(features, present)
            beside = dict(features)
        items = self.residual.joined.check(features, present)
        order_T = np.argsort(self.rows_T, kind="stable")
        sorted_T = self.rows_T[order_T]
        found_IN = np.full((items, self.cfg.neighbours), NONE, np.int32)
        for rows, x_BF, has_B in self.residual.joined.blocks(features, present):
            row_B = np.arange(rows.start, rows.stop) + first_row
            at_B = np.minimum(np.searchsorted(sorted_T, row_B), len(sorted_T) - 1)
            own_B = np.where(sorted_T[at_B] == row_B, order_T[at_B], NONE)
            key_BN, _ = nearest_neighbours(x_BF[: len(has_B)], self.keys_TF, self.cfg.neighbours, own_B)
            found_IN[rows] = np.where((key_BN >= 0) & has_B[:, None], self.rows_T[key_BN], NONE)
        return {VQ: found_IN, **beside}

    def named(self, item_ids: pl.Series) -> Qarm:
        """The same with the ids of its training items, from those of the catalogue [I] that `rows_T` counts in."""
        return dataclasses.replace(self, item_ids=item_ids.gather(self.rows_T))

    def renumbered(self, item_ids: pl.Series) -> Qarm:
        """The same for another catalogue [I]: training items are found by id, one that has vanished has row -1."""
        rows = pl.DataFrame({"item_id": item_ids, "row": np.arange(len(item_ids), dtype=np.int32)})
        ours = pl.DataFrame({"item_id": self.item_ids}).join(rows, on="item_id", how="left", maintain_order="left")
        return dataclasses.replace(self, rows_T=ours["row"].fill_null(NONE).to_numpy())

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        arrays, meta = self.residual.state()
        if self.item_ids is not None:  # as bytes: an array of strings takes the longest one's room for each
            arrays = arrays | {"item_ids": np.frombuffer(json.dumps(self.item_ids.to_list()).encode(), np.uint8)}
        meta = meta | {"config": self.config}
        if self.adapter:
            arrays = arrays | self.adapter.arrays()
            meta = meta | {"adapter": {"modalities": list(self.adapter.joined.scales), "width": self.adapter.width}}
        return arrays | {"keys": self.keys_TF, "rows": self.rows_T}, meta | {"told": self.told}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Qarm:
        """The same codes again."""
        cfg = joined.read_config(QarmConfig, meta["config"])
        residual = ResidualKMeans.from_state(arrays, {**meta, "config": dataclasses.asdict(_residual(cfg))})
        names = json.loads(arrays["item_ids"].tobytes()) if "item_ids" in arrays else None
        item_ids = None if names is None else pl.Series("item_id", names, dtype=pl.String)
        adapter = Adapter.from_arrays(arrays, **meta["adapter"]) if "adapter" in meta else None
        return cls(cfg, residual, arrays["keys"], arrays["rows"], item_ids, adapter, dict(meta.get("told", {})))


def fit_qarm(
    cfg: QarmConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
    interactions: Interactions | None = None,
) -> Qarm:
    """Fits the adapter, then centres on the items where `train_rows` (bool [I]) is true, whose vectors it keeps.

    Args:
        interactions: positives of the training split; None: nothing is aligned.

    Raises:
        UserError: features that cannot be used, or no training item with any.
    """
    adapter, told = _fit_adapter(cfg, features, present, train_rows, seed, progress, interactions)
    if adapter:
        features, present = _aligned(adapter, features, present)
    residual = fit_residual_kmeans(_residual(cfg), features, present, train_rows, seed, progress)
    _, rows_T = joined.usable(features, present, train_rows)
    keys_TF = residual.joined.read(features, present, rows_T)
    return Qarm(cfg, residual, keys_TF, rows_T.astype(np.int32), adapter=adapter, told=told)


def _fit_adapter(
    cfg: QarmConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None,
    interactions: Interactions | None,
) -> tuple[Adapter | None, dict[str, list]]:
    """(adapter or None, what `Qarm.told` says of it)."""
    if not cfg.alignment or interactions is None:
        return None, {}
    has_I = np.any([np.asarray(values) for values in present.values()], axis=0) & train_rows
    space_ID = pairs.id_vectors(interactions, len(has_I), seed=seed)
    found = (
        with_features(pairs.user_pairs(interactions, space_ID, cfg.latest), has_I),
        with_features(pairs.item_pairs(interactions, len(has_I), cfg.swing_neighbours, cfg.swing_users, seed), has_I),
    )
    if not sum(map(len, found)):
        return None, {"notes": ["no pairs of items in the training interactions: features are quantised unaligned"]}
    adapter, history = fit_adapter(cfg, features, present, train_rows, found, seed, progress)
    return adapter, {"notes": [], "history": history}


def _aligned(adapter: Adapter, features: FeatureMap, present: PresentMap) -> tuple[FeatureMap, PresentMap]:
    known = adapter.joined.scales
    has_I = np.any([np.asarray(present[m]) for m in known], axis=0)
    return {ALIGNED: adapter.aligned(features, present)}, {ALIGNED: has_I}


def _residual(cfg: QarmConfig) -> ResidualKMeansConfig:
    return ResidualKMeansConfig(cfg.sizes, cfg.iterations, cfg.fit_rows, cfg.balanced)
