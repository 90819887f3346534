"""`hisam tokenize`: a prepared dataset in, a table of semantic IDs with its diagnostics out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from hisam_jax import config as configs
from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory
from hisam_jax.paths import output_path
from hisam_jax.progress import progress_bar
from hisam_jax.tokenizer import collisions, diagnostics, registry
from hisam_jax.tokenizer.alarms import AlarmConfig, Watch
from hisam_jax.tokenizer.assignment import assign, costs_of
from hisam_jax.tokenizer.attributes import attributes_of
from hisam_jax.tokenizer.base import FittedTokenizer, Progress
from hisam_jax.tokenizer.pairs import training_positives
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable


def tokenize(
    dataset: str | os.PathLike,
    config: ml_collections.ConfigDict | str | os.PathLike,
    out: str | os.PathLike,
    overrides: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fits the tokenizer that `config` names on training items, codes all items, resolves collisions, writes `out`.

    Args:
        dataset: folder that `prepare` left, or its URL.
        config: fields `name`, `seed`, `collisions`, a section called as the tokenizer, and optionally `alarms` (see
            `AlarmConfig`); a file or the config itself.
        out: folder for codes.npy, digit.npy, items.parquet, manifest.json, tokenizer.npz, tokenizer.json and
            diagnostics.json; whole or untouched.
        overrides: `{"dst.width": "32"}`, for a config file.
        progress: called as `progress(done, total, metrics)`; by default a bar on stderr.

    Returns:
        What diagnostics.json holds.

    Raises:
        UserError: no such dataset, no features at all, an unknown tokenizer, field or policy; training that broke off,
            or with `alarms.strict` raised an alarm.
    """
    output_path(out, "out")
    if not isinstance(config, ml_collections.ConfigDict):
        config = configs.load_config(config, overrides)
    settings, limits = settings_of(config)
    entry, seed = registry.entry(config.name), configs.seed_of(config)
    data = Dataset.load(dataset)
    if not any(present.any() for present in data.present.values()):
        expected = "text or image features: run `hisam prepare` with an encoder"
        raise UserError("the dataset has no features at all", path=data.path, field="modalities", expected=expected)
    started = time.perf_counter()
    watch = Watch(limits, int(data.train_items.sum()), dataclasses.asdict(settings))
    with contextlib.nullcontext(progress) if progress else _bar(config.name) as show, watch.last_words():
        more = {"interactions": training_positives(data)} if entry.reads_interactions(settings) else {}
        model = entry.fit(settings, data.features, data.present, data.train_items, seed, watch.beside(show), **more)
    fitted = time.perf_counter()
    codes_IL = assign(model, data.features, data.present)
    assigned = time.perf_counter()
    watch.check_levels(diagnostics.level_use(codes_IL, model.levels))
    table = make_table(model, data, codes_IL, config)
    report = diagnostics.diagnose(
        model,
        data.features,
        data.present,
        codes_IL,
        table.full_codes(),
        attributes_of(data.items, data.truth()),
        config.seed,
        data.train_items,
        data.items["train_count"].to_numpy(),
    )
    report |= {
        "seconds": time.perf_counter() - started,
        "fit_seconds": fitted - started,
        "items_per_second": len(codes_IL) / max(assigned - fitted, 1e-9),
        "items": len(codes_IL),
        "train_items": int(data.train_items.sum()),
        "checksum": table.checksum,
        "collisions": config.collisions,
        "alarms": [dataclasses.asdict(alarm) for alarm in watch.raised],
    }
    with atomic_directory(out, holds="codes.npy") as scratch:
        registry.save_tokenizer(model, scratch)
        table.write_into(scratch, registry.item_features(model, data.features, data.present))
        (scratch / "diagnostics.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def settings_of(config: ml_collections.ConfigDict) -> tuple[Any, AlarmConfig]:
    """The tokenizer's own record that a config file holds, and when its training is reported as going wrong.

    Raises:
        UserError: an unknown tokenizer, field or policy, or no seed.
    """
    configs.need(config, "name", "seed", "collisions")
    entry = registry.entry(config.name)
    configs.need(config, config.name)
    collisions.check_policy(config.collisions)
    configs.seed_of(config)
    limits = configs.build(AlarmConfig, config.get("alarms", {}), "alarms")
    return configs.build(entry.config, config[config.name], config.name), limits


def make_table(
    model: FittedTokenizer, data: Dataset, codes_IL: np.ndarray, config: ml_collections.ConfigDict
) -> SemanticIDTable:
    """The table of one dataset, collisions resolved by `config.collisions`."""
    costs = costs_of(model, data.features, data.present)
    sizes = [level.size for level in model.levels]
    resolved = collisions.resolve(config.collisions, codes_IL, sizes, costs, config.seed)
    return SemanticIDTable(
        levels=model.levels,
        codes_IL=resolved.codes_IL,
        digit_I=resolved.digit_I,
        digit_size=resolved.digit_size,
        item_ids=data.items["item_id"],
        tokenizer=json.loads(json.dumps({"name": model.name, "seed": config.seed, "config": model.config})),
        policy=config.collisions,
    )


def load_ids(path: str | os.PathLike, data: Dataset) -> SemanticIDTable:
    """The table at `path`, checked to be this dataset's."""
    return SemanticIDTable.load(path, data.items["item_id"])


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Progress]:
    with progress_bar(None, name, "step") as bar:

        def show(done: int, total: int, metrics: Mapping[str, float]) -> None:
            bar.total = total
            shown = {"loss", "reconstruction", "shared_reconstruction", "alignment"} & metrics.keys()
            bar.set_postfix({key: f"{metrics[key]:.3f}" for key in sorted(shown)}, refresh=False)
            bar.update(done - bar.n)

        yield show
