"""How long and how fast a cell trains: steps that spend its budget, the learning rate of its width."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from hisam_jax.data.pipeline import make_pipeline
from hisam_jax.errors import UserError
from hisam_jax.scaling.flops import Vocabulary, train_flops
from hisam_jax.training.assembly import Assembly
from hisam_jax.training.watching import lengths_of

LOOKED_AT = 16  # first batches, from whose lengths a step's cost is taken


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a cell is to do.

    Attributes:
        steps: of training.
        flops: useful operations of all of them, as the first batches cost.
        flops_per_item: of a training step, over the items in it.
        items: that they will hold.
        epochs: passes over the training events that this makes; 0 for data without end.
    """

    steps: int
    flops: float
    flops_per_item: float
    items: float
    epochs: float


def vocabulary_of(assembly: Assembly) -> Vocabulary:
    """The sizes that a model's cost depends on."""
    features = {name: values.shape[-1] for name, values in assembly.catalog.features.items()}
    sizes = [level.size for level in assembly.table.levels]
    return Vocabulary(assembly.catalog.items, sizes, assembly.table.digit_size, features)


def make_plan(assembly: Assembly, flops: float, items: int, most_epochs: float) -> Plan:
    """Steps that spend `flops`, or where that is 0 hold `items`, to the nearest.

    Raises:
        UserError: a budget below one step; data that is not without end and would be repeated too often.
    """
    flops_per_step, items_per_step = _step(assembly)
    of_step = flops_per_step if flops else items_per_step
    steps = round((flops or items) / of_step)
    if steps < 1:
        what, unit = ("budgets", "FLOPs") if flops else ("items", "items")
        raise UserError(
            f"{flops or items:.4g} {unit}, where one step takes {of_step:.4g}", field=f"parts.{what}",
            expected="one step at least", hint="a larger budget, a smaller size or batch_items",
        )  # fmt: skip
    return Plan(
        steps, steps * flops_per_step, flops_per_step / items_per_step, steps * items_per_step,
        _epochs(assembly, steps * items_per_step, most_epochs),
    )  # fmt: skip


def _step(assembly: Assembly) -> tuple[float, float]:
    """Useful operations and items of a step, means over the first batches."""
    data, cost = assembly.configs.data, vocabulary_of(assembly)
    iterator = iter(make_pipeline(assembly.dataset, assembly.table.codes_IL, data))
    try:
        lengths = [lengths_of(batch["segment"]) for batch in itertools.islice(iterator, LOOKED_AT)]
    finally:
        iterator.close()
    flops = [train_flops(assembly.configs.model, cost, of_batch) for of_batch in lengths]
    return float(np.mean(flops)), float(np.mean([of_batch.sum() for of_batch in lengths]))


def _epochs(assembly: Assembly, items: float, most: float) -> float:
    if assembly.configs.data.endless:
        return 0.0
    held = int(assembly.dataset.users["train_events"].sum())
    if items > most * held:
        raise UserError(
            f"{items:,.0f} items from {held:,} training events, {items / held:.1f} passes", path=assembly.dataset.path,
            field="epochs", expected=f"at most {most:g}",
            hint="smaller budgets, a longer log, data.endless with a shop, or a larger field epochs",
        )  # fmt: skip
    return items / held


def overrides_of(plan: Plan, warmup: float) -> dict[str, Any]:
    """Fields of a config's `training` section that follow from a plan."""
    return {
        "steps": plan.steps,
        "log_every": max(1, plan.steps // 50),
        "save_every": max(1, plan.steps // 8),
        "evaluate_every": 0,
        "keep": 1,
        "monitor": None,
        "patience": 0,
        "warmup_steps": round(warmup * plan.steps),
    }
