"""Random codes: what IDs are worth that tell nothing of the item."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hisam_jax.tokenizer import base
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap
from hisam_jax.tokenizer.config_checks import check_sizes


@dataclasses.dataclass(frozen=True)
class RandomConfig:
    """Settings of random codes.

    Attributes:
        sizes: codes of each level.

    Raises:
        UserError: no level, or one without codes.
    """

    sizes: tuple = (256, 256, 256)

    def __post_init__(self):
        check_sizes(self, "random", "sizes")


@dataclasses.dataclass(eq=False)
class RandomCodes:
    """Codes drawn from the seed alone, row by row; features are looked at only for their number."""

    cfg: RandomConfig
    seed: int
    notes: list[str] = dataclasses.field(default_factory=list)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    name: str = "random"

    @property
    def levels(self) -> tuple[Level, ...]:
        """All of them shared."""
        return base.group_levels({"shared": tuple(self.cfg.sizes)})

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; an item that is appended moves none before it."""
        rows, sizes = base.rows_of(features), np.asarray(self.cfg.sizes)
        uniform_IL = np.random.default_rng(self.seed).random((rows, len(sizes)))
        return np.minimum(uniform_IL * sizes, sizes - 1).astype(np.int32)

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Any code is as good as another: random float32 [I, K]."""
        shape = base.rows_of(features), self.cfg.sizes[level]
        return np.random.default_rng([self.seed, level]).random(shape, np.float32)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """None: nothing is reconstructed."""
        return {}

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """None: the codes tell nothing."""
        return {}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        return {}, {"config": self.config, "seed": self.seed}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> RandomCodes:
        """The same codes again."""
        return cls(RandomConfig(tuple(meta["config"]["sizes"])), meta["seed"])


def fit_random(
    cfg: RandomConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> RandomCodes:
    """Nothing to fit: the seed is the tokenizer."""
    return RandomCodes(cfg, seed)
