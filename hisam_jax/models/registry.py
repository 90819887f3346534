"""The models that a config file may name under `architecture`: HMAT with its flat twin, and baselines beside it.

A baseline is a Linen module `(config, vocab, digit, items)` with these methods, `batch` and `catalog` as HMAT has them:

    losses(batch, catalog, *, deterministic) -> {head: loss}        what trains it, each weighed by `config.HEAD`
    everything(batch, catalog)                                      touches every parameter, for initialisation
    item_vectors(catalog) -> [I, D], users_of(batch, catalog) -> [B, D]                   where it retrieves
    clicks(batch, catalog) -> [B, N], candidate_clicks(batch, catalog, item_BC, gap_B) -> [B, C]   where it ranks

`users_of` reads the last event of each row, whose events are its first; `clicks` is the logit of every event before its
own action is known, `candidate_clicks` that of items that would come next, `gap_B` after the last event.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from hisam_jax.errors import UserError
from hisam_jax.models.catalog import Catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.hmat import HMAT
from hisam_jax.models.qarm_config import DINConfig, QarmRankerConfig, files
from hisam_jax.models.qarm_config import train_flops as qarm_flops
from hisam_jax.models.qarm_ranker import QarmRanker
from hisam_jax.models.sasrec import SASRec, SASRecConfig
from hisam_jax.models.sasrec import train_flops as sasrec_flops

HEADS = ("ranking", "generation", "retrieval")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What the trainer must know of a model.

    Attributes:
        config: frozen record of the section `model`; has a weight for each of `HEADS`, 0 for one that it lacks.
        module: called with `(config, vocab, digit, items)`, see `HMAT`.
        train_flops: `(config, catalog, lengths) -> operations` of a training step on histories of these lengths; None
            for HMAT, which `scaling.flops` counts.
        extras: `config -> names` of the arrays beside the IDs that it reads as `catalog.extras`.
    """

    config: type
    module: Callable[[Any, tuple[int, ...], int, int], nn.Module]
    train_flops: Callable[[Any, Catalog, Sequence[int]], int] | None = None
    extras: Callable[[Any], tuple[str, ...]] = lambda config: ()


ARCHITECTURES = {
    "hmat": Architecture(HMATConfig, HMAT),
    "sasrec": Architecture(SASRecConfig, SASRec, sasrec_flops),
    "qarm": Architecture(QarmRankerConfig, QarmRanker, qarm_flops, files),
    "din": Architecture(DINConfig, QarmRanker, qarm_flops),
}


def name_of(config: Any) -> str:
    """The architecture that a record of the section `model` is for."""
    return next(name for name, entry in ARCHITECTURES.items() if type(config) is entry.config)


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UserError: there is none.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"value {name!r}", field="architecture", expected=" or ".join(ARCHITECTURES))
    return ARCHITECTURES[name]
