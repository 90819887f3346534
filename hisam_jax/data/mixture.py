"""Several datasets over one catalogue, mixed by weight."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hisam_jax.errors import UserError

if TYPE_CHECKING:
    from hisam_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Share:
    """A dataset that a run reads beside its own.

    Attributes:
        dataset: its training events are read; nothing of it is evaluated.
        weight: windows drawn from it for each window of the run's own dataset.
        item_of_I: int32, the item of the run's dataset with the same id as each of this one's, -1 where there is none.
    """

    dataset: Dataset
    weight: float
    item_of_I: np.ndarray

    def identity(self) -> dict[str, Any]:
        """What a saved position depends on."""
        return {"split_checksum": self.dataset.manifest["split"]["checksum"], "weight": self.weight}


def make_share(dataset: Dataset, weight: float, main: Dataset) -> Share:
    """`dataset` as a share of a mixture for a run over `main`; events of items that `main` lacks are left out.

    Raises:
        UserError: a weight that is no positive number; no item in common.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise UserError(f"weight {weight} of {dataset.path}", field="mixture", expected="a number above 0")
    item_of_I = main.item_index(dataset.items["item_id"].to_list())
    if (item_of_I < 0).all():
        raise UserError(
            f"none of its {len(item_of_I):,} items is known", path=dataset.path, field="mixture",
            expected=f"item ids of {main.path}, such as {main.items['item_id'][0]!r}",
        )  # fmt: skip
    return Share(dataset, float(weight), item_of_I)
