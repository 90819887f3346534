"""Sizes and switches of the rankers over ids and codes: QARM's and, without codes, DIN's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from hisam_jax.config import check_choices, check_least, check_shares
from hisam_jax.errors import UserError
from hisam_jax.models.catalog import Catalog

Codes = Literal["none", "frozen", "vq", "rq", "both"]
NEIGHBOURS, ALIGNED = "neighbours", "aligned"  # what `hisam tokenize` leaves beside the IDs
FILES = {"none": (), "frozen": (ALIGNED,), "vq": (NEIGHBOURS,), "rq": (), "both": (NEIGHBOURS,)}


@dataclasses.dataclass(frozen=True)
class QarmRankerConfig:
    """A ranker over item ids, histories under target attention, and QARM's codes (arXiv 2411.11739).

    Attributes:
        width: columns of an embedding D.
        mlp: units of the last network's first hidden layer; the second has half.
        attention_units: hidden units of the network that weighs a past item for a target.
        dropout: on the last network's inputs and hidden units.
        id_dropout: share of items whose id embedding is hidden in a training step, so that codes must do [ours].
        codes: `none` is DIN; `frozen` adds the aligned vector, projected; `vq` the ids of the nearest items, `rq` the
            residual codes, `both` both.
        depths: how many of its first residual codes a past item must share with the target, one cross feature each.
        cross: how a cross feature reads those items: `attention`, by the weights that the target gives them among the
            whole history; `mean` [ours], each as much. Counts and shares of positives among them are read beside it.
        liked: least action (twice a rating) that counts as positive in what is told of a user's past.
        smoothing: events of the mean user that every share of positives starts from.
        block: targets of a row whose history is read at a time; bounds memory, changes nothing else.
        ranking: weight of the ranking loss.
        generation, retrieval: 0; it has no such heads.
    """

    width: int = 32
    mlp: int = 128
    attention_units: int = 16
    dropout: float = 0.2
    id_dropout: float = 0.1
    codes: Codes = "both"
    depths: tuple = (1, 2)
    cross: Literal["attention", "mean"] = "attention"
    liked: int = 7
    smoothing: float = 5.0
    block: int = 64
    ranking: float = 1.0
    generation: float = 0.0
    retrieval: float = 0.0

    def __post_init__(self):
        check_least(self, "model", width=1, mlp=2, attention_units=1, smoothing=0, liked=1, block=1)
        check_shares(self, "model", "dropout", "id_dropout")
        check_choices(self, "model")
        if not all(type(depth) is int and depth >= 1 for depth in self.depths):
            raise UserError(f"value {self.depths}", field="model.depths", expected="whole numbers from 1 on")
        if not self.ranking > 0:
            raise UserError(f"value {self.ranking}", field="model.ranking", expected="more than 0: it only ranks")
        for name in ("generation", "retrieval"):
            if getattr(self, name):
                raise UserError(f"value {getattr(self, name)}", field=f"model.{name}", expected="0: it only ranks")

    @property
    def item_effect(self) -> bool:
        """Each item has a number of its own in its logit, as HMAT's may."""
        return True

    @property
    def uses_rq(self) -> bool:
        return self.codes in ("rq", "both")

    @property
    def uses_vq(self) -> bool:
        return self.codes in ("vq", "both")

    @property
    def attentions(self) -> tuple[str, ...]:
        """Sequences of a history that a target attends to."""
        return ("id",) if self.codes == "none" else ("id", "code")

    @property
    def crosses(self) -> tuple[str, ...]:
        """Sets of past items that share something with the target."""
        shared = tuple(f"first_{depth}" for depth in self.depths) if self.uses_rq else ()
        return shared + (("near",) if self.uses_vq else ())


@dataclasses.dataclass(frozen=True)
class DINConfig(QarmRankerConfig):
    """Deep Interest Network (arXiv 1706.06978), with what QARM's ranker knows of users: it, without codes."""

    codes: Literal["none"] = "none"

    def __post_init__(self):
        if self.codes != "none":
            raise UserError(
                f"value {self.codes!r}", field="model.codes", expected="'none', or architecture 'qarm' for codes"
            )
        super().__post_init__()


def files(config: QarmRankerConfig) -> tuple[str, ...]:
    """Arrays beside the IDs that a ranker of these settings reads."""
    return FILES[config.codes]


def inputs_of(config: QarmRankerConfig) -> int:
    """Columns that the last network reads of a target."""
    vectors = 3 + 3 * (config.codes != "none")
    return vectors * config.width + DENSE + len(config.crosses) * (config.width + STATS)


DENSE, STATS = 6, 4  # of a user's past and the time since; of each cross feature


def train_flops(config: QarmRankerConfig, catalog: Catalog, lengths: Sequence[int]) -> int:
    """Operations of a training step on histories of these lengths: products only, each pair of events once."""
    width, units = config.width, config.attention_units
    pairs = sum(length * (length - 1) // 2 for length in lengths)
    attention = len(config.attentions) * 2 * (width * units + units + width) + len(config.crosses) * 2 * width
    once = len(config.attentions) * 2 * 3 * width * units
    last = 2 * (inputs_of(config) * config.mlp + config.mlp * (config.mlp // 2) + config.mlp // 2)
    return 3 * (pairs * attention + sum(lengths) * (once + last))
