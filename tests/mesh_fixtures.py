"""Trains a small HMAT on host devices under a mesh; run as a process of its own, which prints what it saw as JSON.

`python mesh_fixtures.py [--losses] STEPS MESH [MESH ...]` with MESH such as `data=2,fsdp=4`; --losses
leaves out the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys

import jax
import numpy as np
import optax

from hisam_jax.compilation.collectives import traffic
from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_frozen, make_objective, with_totals
from hisam_jax.models.hmat import HMAT
from hisam_jax.sharding import AXES, MeshConfig, make_mesh
from hisam_jax.tokenizer.dst_config import DSTConfig
from hisam_jax.tokenizer.dst_training import fit_dst
from hisam_jax.training.optimizer import OptimizerConfig, make_optimizer
from hisam_jax.training.placement import Placement
from hisam_jax.training.state import init_state, make_train_step
from tests.tokenizer_fixtures import planted

ITEMS, LEVELS, SIZE, ROWS, LENGTH = 64, 3, 8, 16, 16
MODEL = HMATConfig(
    width=32, heads=4, kv_heads=4, mlp=48, dropout=0.1, id_dropout=0.1, actions=True, ranking=1.0, remat="all"
)


def problem(seed: int = 0):
    """A catalogue, its codes and an endless stream of batches."""
    rng = np.random.default_rng(seed)
    codes_IL = rng.integers(0, SIZE, (ITEMS, LEVELS)).astype(np.int32)
    features = {"text": rng.normal(size=(ITEMS, 5)).astype(np.float32)}
    counts_I = rng.integers(0, 9, ITEMS)
    catalog = make_catalog(codes_IL, features, {"text": rng.random(ITEMS) < 0.8}, counts_I > 0, counts_I)

    def batches():
        while True:
            item = rng.choice(np.flatnonzero(counts_I), (ROWS, LENGTH)).astype(np.int32)
            segment = np.repeat(rng.integers(1, 3, (ROWS, 2)).cumsum(1), LENGTH // 2, axis=1).astype(np.int32)
            segment[rng.random(ROWS) < 0.3, -3:] = 0
            positive = (rng.random(item.shape) < 0.7).astype(np.float32)
            first = np.diff(segment, prepend=0, axis=1) != 0
            yield {
                "item": item,
                "segment": segment,
                "codes": codes_IL[item],
                "action": rng.integers(0, 11, item.shape).astype(np.int32),
                "gap": rng.random(item.shape).astype(np.float32) * 5,
                "positive": positive,
                "rank_weight": (segment > 0).astype(np.float32),
                "next_weight": positive * ~first * (segment > 0),
            }

    return catalog, np.concatenate([codes_IL, np.arange(ITEMS)[:, None] % 4], axis=1).astype(np.int32), batches()


class Trainer:
    """A model, its optimizer and its data on a mesh, `devices` of it."""

    def __init__(
        self, mesh: MeshConfig, devices: int, steps: int, accumulate: int = 1, split: bool = False, **switches
    ):
        catalog, full_IL, self.batches = problem()
        model = HMAT(dataclasses.replace(MODEL, **switches), (SIZE + 1,) * LEVELS, 4, ITEMS)
        self.loss_fn, init_fn = make_objective(model, catalog, full_IL)
        tx = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), steps)
        built = make_mesh(mesh, jax.devices()[:devices]) if devices > 1 else None
        self.placement = Placement(built, (make_frozen(catalog, full_IL),))
        self.step = jax.jit(make_train_step(self.loss_fn, tx, accumulate, with_totals))
        self.batch = self.placement.batch(next(self.batches))
        begin = functools.partial(init_state, init_fn, tx, 0)
        shapes = self.placement.shapes(begin, self.batch)
        if split or built is None:  # as a run begins; compiling it takes as long as compiling the step
            self.state = self.placement.call(jax.jit(begin), self.batch)
        else:
            self.state = jax.tree.map(lambda shape, leaf: jax.device_put(leaf, shape.sharding), shapes, first_state())

    def losses(self, steps: int) -> list[float]:
        """The loss of each step."""
        found = []
        for _ in range(steps):
            self.state, metrics = self.placement.call(self.step, self.state, self.batch)
            found.append(float(metrics["loss"]))
            self.batch = self.placement.batch(next(self.batches))
        return found

    def compiled(self) -> str:
        """The step's program."""
        return self.placement.call(lambda *args: self.step.lower(*args).compile(), self.state, self.batch).as_text()

    def gradient(self) -> np.ndarray:
        """Of the first batch's loss, flat."""
        gradient = jax.jit(jax.grad(lambda params: self.loss_fn(params, self.batch, jax.random.key(0))[0]))
        grads = gradient(self.state.params)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


@functools.cache
def first_state():
    """Step 0 on one device."""
    return Trainer(MeshConfig(), 1, 2).state


def placements(state) -> dict:
    """Every parameter's spec, and whether its moments have it too."""
    split = {
        "params/" + jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    moments = [jax.tree.leaves(part) for name in ("mu", "nu") for part in [optax.tree.get(state.opt_state, name)]]
    same = all(
        a.sharding.is_equivalent_to(b.sharding, a.ndim)
        for leaves in moments
        for a, b in zip(leaves, jax.tree.leaves(state.params), strict=True)
    )
    shown = {
        name: [str(entry) for entry in (*leaf.sharding.spec, *[None] * (leaf.ndim - len(leaf.sharding.spec)))]
        for name, leaf in split.items()
    }
    return {"split": shown, "moments placed as parameters": same}


def gathered() -> dict:
    """Bytes of the largest gather of a step that splits items alone, and of one layer's keys on all devices."""
    one = Trainer(MeshConfig(data=1, context=4), 4, 2, remat="none")
    keys = ROWS * LENGTH * (LEVELS + 3) * MODEL.kv_heads * MODEL.head_width * 4
    return {"largest": traffic(one.compiled()).largest.get("all-gather", 0), "keys": keys}


def sampled() -> dict:
    """Cosine of the gradients of the sampled and of the full softmax."""
    only = {"ranking": 0.0, "generation": 0.0, "dropout": 0.0, "id_dropout": 0.0}
    full = Trainer(MeshConfig(), 1, 2, **only).gradient()
    part = Trainer(MeshConfig(), 1, 2, softmax_items=0, negatives=20_000, **only).gradient()
    return {"cosine": float(full @ part / np.linalg.norm(full) / np.linalg.norm(part))}


def parsed(text: str) -> MeshConfig:
    """`data=2,fsdp=4` as a config."""
    sizes = dict(part.split("=") for part in text.split(",") if part)
    return MeshConfig(**{**dict.fromkeys(AXES, 1), **{name: int(size) for name, size in sizes.items()}})


def dst_losses() -> dict:
    """DST's losses on all devices, and on one."""
    features, present, _ = planted(items=512)
    codes = {"shared": (16,), "specific": {"text": (8,), "image": (8,)}}
    config = DSTConfig(steps=40, batch_size=64, settle_iterations=0, **codes)  # one device settles the codebooks

    def losses() -> list[float]:
        return [row["loss"] for row in fit_dst(config, features, present, np.ones(512, bool), seed=0).history]

    split = losses()
    every, jax.local_devices = jax.local_devices, lambda: every()[:1]
    return {"dst": {"split": split, "alone": losses()}}


if __name__ == "__main__":
    only_losses = "--losses" in sys.argv
    steps, *texts = [argument for argument in sys.argv[1:] if argument != "--losses"]
    found = {}
    for text in texts:
        config = parsed(text)
        devices = config.data * config.fsdp * config.tensor * config.context
        found[text] = Trainer(config, devices, int(steps)).losses(int(steps))
    report = {"losses": found}
    if not only_losses:
        calm = {"dropout": 0.0, "id_dropout": 0.0}
        parts = Trainer(MeshConfig(data=1, fsdp=2, tensor=2, context=2), 8, 4, accumulate=4, split=True, **calm)
        report |= {"in parts": parts.losses(4), "whole": Trainer(MeshConfig(), 1, 4, **calm).losses(4)}
        report |= placements(parts.state) | {"gathered": gathered(), "sampled": sampled()} | dst_losses()
    print(json.dumps(report))
