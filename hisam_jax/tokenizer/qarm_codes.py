"""QARM's codes (arXiv 2411.11739): residual codes of an item vector, and the items nearest to it as a feature.

Stated: L = 6 levels of residual codes, 25 nearest items. Ours: 256 codes a level, squared distance between the vectors
of `Joined`, and that neighbours are training items only. The neighbours are no part of the ID.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.config import check_least
from hisam_jax.tokenizer import base, joined
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap
from hisam_jax.tokenizer.config_checks import check_sizes
from hisam_jax.tokenizer.nearest_neighbours import NONE, nearest_neighbours
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeans, ResidualKMeansConfig, fit_residual_kmeans

VQ = "neighbours"


@dataclasses.dataclass(frozen=True)
class QarmConfig:
    """Settings of QARM's codes.

    Attributes:
        sizes: centres of each level of the residual code.
        neighbours: nearest training items of each item.
        iterations: Lloyd iterations of each level.
        fit_rows: training items that the centres are fitted on at most, drawn at random.

    Raises:
        UserError: a value out of range.
    """

    sizes: tuple = (256,) * 6
    neighbours: int = 25
    iterations: int = 20
    fit_rows: int = 262144

    def __post_init__(self):
        check_sizes(self, "qarm", "sizes")
        check_least(self, "qarm", neighbours=1, iterations=0, fit_rows=1)


@dataclasses.dataclass(eq=False)
class Qarm:
    """Residual k-means beside the vectors of the training items; a `base.FittedTokenizer` and `base.WithFeatures`."""

    cfg: QarmConfig
    residual: ResidualKMeans
    keys_TF: np.ndarray  # float32, training items that have any modality
    rows_T: np.ndarray  # int32, their rows in the catalogue; NONE for an item that has vanished from it
    item_ids: pl.Series | None = None  # String [T], their ids, once the catalogue has grown
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
        return self.residual.notes

    @property
    def history(self) -> list[dict[str, float]]:
        """Error after each level."""
        return self.residual.history

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]."""
        return self.residual.assign(features, present)

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K]."""
        return self.residual.costs(features, present, level)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """See `Joined.targets`."""
        return self.residual.targets(features)

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Sum of centres."""
        return self.residual.reconstruct(codes_IL, branch)

    def item_features(self, features: FeatureMap, present: PresentMap, first_row: int = 0) -> dict[str, np.ndarray]:
        """`neighbours`: rows int32 [I, n] of the nearest training items, never the item itself; -1 where there is none,
        or where that item has vanished from the catalogue.

        Args:
            features: modality -> [I, F_m].
            present: modality -> bool [I].
            first_row: the catalogue's row of the first item given, so that an item can be told from its neighbours.
        """
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
        return {VQ: found_IN}

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
        return arrays | {"keys": self.keys_TF, "rows": self.rows_T}, meta | {"config": self.config}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Qarm:
        """The same codes again."""
        cfg = joined.read_config(QarmConfig, meta["config"])
        residual = ResidualKMeans.from_state(arrays, {**meta, "config": dataclasses.asdict(_residual(cfg))})
        names = json.loads(arrays["item_ids"].tobytes()) if "item_ids" in arrays else None
        item_ids = None if names is None else pl.Series("item_id", names, dtype=pl.String)
        return cls(cfg, residual, arrays["keys"], arrays["rows"], item_ids)


def fit_qarm(
    cfg: QarmConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> Qarm:
    """Fits centres on the items where `train_rows` (bool [I]) is true and keeps their vectors.

    Raises:
        UserError: features that cannot be used, or no training item with any.
    """
    residual = fit_residual_kmeans(_residual(cfg), features, present, train_rows, seed, progress)
    _, rows_T = joined.usable(features, present, train_rows)
    return Qarm(cfg, residual, residual.joined.read(features, present, rows_T), rows_T.astype(np.int32))


def _residual(cfg: QarmConfig) -> ResidualKMeansConfig:
    return ResidualKMeansConfig(cfg.sizes, cfg.iterations, cfg.fit_rows)
