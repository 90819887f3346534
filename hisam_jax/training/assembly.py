"""From a dataset, a table of IDs and a config to a model: the one place where they meet."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from hisam_jax.config import build, check_least
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of
from hisam_jax.models.catalog import Catalog, make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.hmat import HMAT
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.tokenizer.trie import Trie, build_trie
from hisam_jax.training.checkpoints import differences
from hisam_jax.training.loop import TrainingConfig

SECTIONS = ("seed", "model", "data", "training", "evaluation")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a run is judged.

    Attributes:
        beams: prefixes kept at each level of the beam search.
        rows: users scored at a time.
        validation_users: users scored during training, drawn once; 0 is all.
        resamples: of the bootstrap over users.
        samples: users whose histories and recommendations go into the report.
    """

    beams: int = 20
    rows: int = 64
    validation_users: int = 2000
    resamples: int = 1000
    samples: int = 8

    def __post_init__(self):
        check_least(self, "evaluation", beams=10, rows=1, validation_users=0, resamples=10, samples=0)


@dataclasses.dataclass(frozen=True)
class Configs:
    """A config file's sections as frozen records."""

    seed: int
    model: HMATConfig
    data: PipelineConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Configs:
        """Sections of a config; `seed` is that of the parameters, the order of the data and the bootstrap."""
        unknown = [name for name in config if name not in SECTIONS]
        if unknown:
            raise UserError("unknown config field", field=unknown[0], expected=" or ".join(SECTIONS))
        seed = int(config.get("seed", 0))

        def section(name: str, **more) -> dict[str, Any]:
            return {**dict(config.get(name, {})), **more}

        return cls(
            seed,
            build(HMATConfig, section("model"), "model"),
            build(PipelineConfig, section("data", seed=seed), "data"),
            build(TrainingConfig, section("training", seed=seed), "training"),
            build(EvaluationConfig, section("evaluation"), "evaluation"),
        )


def run_config(
    seed: int, model: HMATConfig, data: PipelineConfig, training: TrainingConfig, evaluation: EvaluationConfig
) -> ml_collections.ConfigDict:
    """The sections of a config file with every field in them, so that each can be overridden; one seed serves all."""
    sections = {"model": model, "data": data, "training": training, "evaluation": evaluation}
    config = {name: dataclasses.asdict(section) for name, section in sections.items()}
    for name in ("data", "training"):
        del config[name]["seed"]
    return ml_collections.ConfigDict({"seed": seed, **config})


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything of a run but its parameters."""

    configs: Configs
    dataset: Dataset
    table: SemanticIDTable
    catalog: Catalog
    model: HMAT

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share to be continued or read: model, data and IDs."""
        return {
            "model": dataclasses.asdict(self.configs.model),
            "split_checksum": self.dataset.manifest["split"]["checksum"],
            "items_checksum": sha256_of("\n".join(self.dataset.items["item_id"].to_list())),
            "ids_checksum": self.table.checksum,
        }

    def differs_from(self, then: Mapping[str, Any]) -> str | None:
        """The first part of the identity that is another than in `then`, a record's JSON; None where none is."""
        now = self.identity()
        return next((name for name in now if differences({name: then.get(name)}, {name: now[name]})), None)

    @functools.cached_property
    def trie(self) -> Trie:
        """The existing IDs as a prefix tree, built once."""
        return build_trie(self.table.full_codes(), self.table.vocab_sizes)


def assemble(dataset: str | os.PathLike, ids: str | os.PathLike, config: Mapping[str, Any]) -> Assembly:
    """Loads dataset and IDs and builds the model that `config` describes.

    Raises:
        UserError: a dataset or table that is missing, torn or of another catalogue; an unknown field; a head that the
            data cannot train.
    """
    configs = Configs.of(config)
    data = Dataset.load(dataset)
    table = SemanticIDTable.load(ids, item_ids=data.items["item_id"].to_list())
    if configs.model.ranking and not data.manifest["has_ratings"]:
        raise UserError(
            f"weight {configs.model.ranking}",
            path=data.path,
            field="model.ranking",
            expected="0 for a dataset without ratings, which has no negatives to rank below positives",
        )
    catalog = make_catalog(table.codes_IL, data.features, data.present, data.train_items)
    vocab = tuple(level.size + 1 for level in table.levels)
    model = HMAT(configs.model, vocab, table.digit_size, data.num_items)
    return Assembly(configs, data, table, catalog, model)
