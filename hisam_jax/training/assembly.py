"""From a dataset, a table of IDs and a config to a model: the one place where they meet."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from hisam_jax.config import build, check_least, is_section
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of
from hisam_jax.models.catalog import Catalog, make_catalog
from hisam_jax.models.hmat import EFFECT_SCALE
from hisam_jax.models.registry import architecture, name_of
from hisam_jax.remote import local
from hisam_jax.sharding import AXES, MeshConfig, make_mesh
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.tokenizer.trie import Trie, build_trie
from hisam_jax.training.checkpoints import differences
from hisam_jax.training.config import TrainingConfig

FOR_COMPILING = ("catalogue", "targets")  # sections that `hisam compile` reads: data and devices that are not here
ALL_DATA = MeshConfig()
BEFORE = {"block": "transformer", "cross": "mean"}  # model fields that older runs do not record, with what those had
SECTIONS = ("seed", "architecture", "model", "data", "training", "evaluation", "mesh")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a run is judged.

    Attributes:
        beams: prefixes kept at each level of the beam search.
        rows: users scored at a time.
        validation_users: users scored during training, drawn once; 0 is all.
        resamples: of the bootstrap over users.
        samples: users whose histories and recommendations go into the report.
        blend: weight of the log of item-to-item transitions beside retrieval's scores, judged as one more list; 0
            leaves it out. `recommend` blends too, the service does not.
        hybrid: judge, besides each head, what is generated, widened by cold items and ranked by the retrieval head.
    """

    beams: int = 20
    rows: int = 64
    validation_users: int = 2000
    resamples: int = 1000
    samples: int = 8
    blend: float = 0.0
    hybrid: bool = False

    def __post_init__(self):
        check_least(self, "evaluation", blend=0, beams=10, rows=1, validation_users=0, resamples=10, samples=0)


@dataclasses.dataclass(frozen=True)
class Configs:
    """A config file's sections as frozen records."""

    seed: int
    model: Any
    data: PipelineConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig = ALL_DATA
    architecture: str = "hmat"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Configs:
        """Sections of a config; `seed` is that of the parameters, the order of the data and the bootstrap."""
        unknown = [name for name in config if name not in (*SECTIONS, *FOR_COMPILING)]
        if unknown:
            raise UserError("unknown config field", field=unknown[0], expected=" or ".join(SECTIONS))
        seed, name = int(config.get("seed", 0)), config.get("architecture", "hmat")

        def section(name: str, **more) -> Any:
            given = config.get(name, {})
            return {**given, **more} if is_section(given) else given

        return cls(
            seed,
            build(architecture(name).config, section("model"), "model"),
            build(PipelineConfig, section("data", seed=seed), "data"),
            build(TrainingConfig, section("training", seed=seed), "training"),
            build(EvaluationConfig, section("evaluation"), "evaluation"),
            build(MeshConfig, section("mesh"), "mesh"),
            name,
        )


def run_config(
    seed: int,
    model: Any,
    data: PipelineConfig,
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    mesh: MeshConfig = ALL_DATA,
) -> ml_collections.ConfigDict:
    """The sections of a config file with every field in them, so that each can be overridden; one seed serves all."""
    sections = {"model": model, "data": data, "training": training, "evaluation": evaluation, "mesh": mesh}
    config = {name: dataclasses.asdict(section) for name, section in sections.items()}
    for name in ("data", "training"):
        del config[name]["seed"]
    return ml_collections.ConfigDict({"seed": seed, "architecture": name_of(model), **config})


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything of a run but its parameters."""

    configs: Configs
    dataset: Dataset
    table: SemanticIDTable
    catalog: Catalog
    model: nn.Module

    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh over all devices that the config asks for; None where there is one device.

        Raises:
            UserError: axes that do not multiply to the devices, or do not divide the model or the batch.
        """
        check_split(self.configs, dict(zip(AXES, self.configs.mesh.sizes(jax.device_count()), strict=True)))
        return make_mesh(self.configs.mesh) if jax.device_count() > 1 else None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share to be continued or read: model, data and IDs."""
        configs, more = self.configs, {}
        if configs.architecture != "hmat":
            more["architecture"] = configs.architecture
        if configs.data.validation_too:
            more["validation_too"] = True
        if getattr(configs.model, "item_effect", False):
            more["effect_scale"] = EFFECT_SCALE  # a run of another one would be misread
        model = dataclasses.asdict(configs.model)
        for name in ("attention", "remat"):  # how it is computed: other devices may want it otherwise
            model.pop(name, None)
        for name, before in BEFORE.items():
            if model.get(name) == before:
                del model[name]
        if not getattr(configs.model, "crosses", True):
            model.pop("cross", None)
        return more | {
            "model": model,
            "split_checksum": self.dataset.manifest["split"]["checksum"],
            "items_checksum": sha256_of("\n".join(self.dataset.items["item_id"].to_list())),
            "ids_checksum": self.table.checksum,
        }

    def differs_from(self, then: Mapping[str, Any]) -> str | None:
        """The first part of the identity that is another than in `then`, a record's JSON; None where none is."""
        now = self.identity()
        parts = {**now, **then}  # a switch that is off now has no part of its own there
        return next((name for name in parts if differences({name: then.get(name)}, {name: now.get(name)})), None)

    @functools.cached_property
    def trie(self) -> Trie:
        """The existing IDs as a prefix tree, built once."""
        return build_trie(self.table.full_codes(), self.table.vocab_sizes)


def check_split(configs: Configs, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh of these sizes that does not divide what each of its axes splits.

    Raises:
        UserError: names the axis and the field.
    """
    model, data = configs.model, configs.data
    heads, mlp, anchors = (getattr(model, name, 1) for name in ("kv_heads", "mlp", "anchors"))
    rows = sizes["data"] * sizes["fsdp"] * configs.training.accumulate
    for axes, devices, field, size in (
        ("data, fsdp (times accumulate)", rows, "data.rows", data.rows),
        ("tensor", sizes["tensor"], "model.kv_heads", heads),
        ("tensor", sizes["tensor"], "model.mlp", mlp),
        ("context", sizes["context"], "data.items_per_row", data.items_per_row),
        ("context", sizes["context"], "model.anchors", sizes["context"] if anchors else 1),
    ):
        if size % devices:
            raise UserError(
                f"{size} over {devices} of mesh axis {axes}", field=field, expected=f"a multiple of {devices}"
            )


def assemble(dataset: str | os.PathLike, ids: str | os.PathLike, config: Mapping[str, Any]) -> Assembly:
    """Loads dataset and IDs and builds the model that `config` describes.

    Raises:
        UserError: a dataset or table that is missing, torn or of another catalogue; an unknown field; a head that the
            data cannot train.
    """
    configs = Configs.of(config)
    data = Dataset.load(dataset)
    table = SemanticIDTable.load(ids, item_ids=data.items["item_id"].to_list())
    check_together(configs)
    if configs.model.ranking and not data.manifest["has_ratings"]:
        raise UserError(
            f"weight {configs.model.ranking}",
            path=data.path,
            field="model.ranking",
            expected="0 for a dataset without ratings, which has no negatives to rank below positives",
        )
    interactions_I = data.train_counts(configs.data.validation_too)
    extras = _extras(ids, architecture(configs.architecture).extras(configs.model), len(table.item_ids))
    catalog = make_catalog(table.codes_IL, data.features, data.present, interactions_I > 0, interactions_I, extras)
    vocab = tuple(level.size + 1 for level in table.levels)
    model = architecture(configs.architecture).module(configs.model, vocab, table.digit_size, data.num_items)
    return Assembly(configs, data, table, catalog, model)


def check_together(configs: Configs) -> None:
    """What fields of one section ask of another's.

    Raises:
        UserError: names the field that does not go with the others.
    """
    monitor, blend = configs.training.monitor, configs.evaluation.blend
    if configs.data.validation_too and monitor is not None:
        raise UserError(f"value {monitor!r}", field="training.monitor", expected="None with data.validation_too")
    if blend and not configs.model.retrieval:
        what = f"{blend} without a retrieval head"
        raise UserError(what, field="evaluation.blend", expected="0, or model.retrieval above 0")
    positions, window = getattr(configs.model, "positions", None), configs.data.window
    if positions is not None and positions < window:
        raise UserError(f"{positions}", field="model.positions", expected=f"at least data.window, {window}")


def _extras(ids: str | os.PathLike, names: Sequence[str], items: int) -> dict[str, np.ndarray]:
    """Arrays with a row an item that a tokenizer left beside its codes."""
    found = {}
    for name in names:
        file = local(ids, "ids") / f"{name}.npy"
        if not file.is_file():
            raise UserError("no such file", path=file, field="--ids", expected="IDs of configs/tokenizer/qarm.py")
        found[name] = np.load(file)
        if len(found[name]) != items:
            raise UserError(f"{len(found[name])} rows", path=file, expected=f"{items}, one an item")
    return found
