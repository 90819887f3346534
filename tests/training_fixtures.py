"""A small real run for the tests of training: a prepared dataset and a next-item model in plain JAX.

`python training_fixtures.py DATASET WORKDIR [SECONDS | save]` trains it in a process of its own, which kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import Pipeline, PipelineConfig, make_pipeline
from hisam_jax.training.config import TrainingConfig
from hisam_jax.training.loop import train
from hisam_jax.training.optimizer import OptimizerConfig

ITEMS, GROUPS, WIDTH = 40, 4, 16  # of `fixtures.tiny_dataset`
CONFIG = TrainingConfig(
    steps=24,
    log_every=3,
    save_every=4,
    evaluate_every=8,
    seed=5,
    monitor="validation/same_group",
    optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=4),
)


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory) -> Iterator[None]:
    """Keeps compiled steps on disk: a module trains the same model many times, each with a jit of its own."""
    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def pipeline_of(dataset: Dataset, **options: int | None) -> Pipeline:
    """Batches [4, 16] with one code an item."""
    config = PipelineConfig(**{"items_per_row": 16, "rows": 4, "window": 8, "seed": 2, **options})
    return make_pipeline(dataset, np.zeros((ITEMS, 1), np.int32), config)


def init_fn(key: jax.Array, batch: Mapping[str, jax.Array]) -> dict:
    """Embedding and output matrices of a bigram model."""
    first, second = jax.random.split(key)
    return {
        "item": {"embedding": 0.1 * jax.random.normal(first, (ITEMS, WIDTH))},
        "output": {"kernel": 0.1 * jax.random.normal(second, (WIDTH, ITEMS)), "bias": jnp.zeros(ITEMS)},
    }


def loss_fn(params: dict, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the next item of a segment, with dropout, so that each step's key matters."""
    x = params["item"]["embedding"][batch["item"][:, :-1]]
    x = x * jax.random.bernoulli(key, 0.9, x.shape) / 0.9
    logits = x @ params["output"]["kernel"] + params["output"]["bias"]
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["item"][:, 1:, None], -1)[..., 0]
    weight = batch["next_weight"][:, 1:]
    loss = (cross_entropy * weight).sum() / jnp.maximum(weight.sum(), 1)
    return loss, {"loss/retrieval": loss, "targets": weight.sum()}


def same_group(params: dict) -> dict[str, float]:
    """The probability that the next item is of the same planted group; a quarter without learning."""
    logits = params["item"]["embedding"] @ params["output"]["kernel"] + params["output"]["bias"]
    alike = np.arange(ITEMS)[:, None] % GROUPS == np.arange(ITEMS) % GROUPS
    return {"validation/same_group": float((np.asarray(jax.nn.softmax(logits)) * alike).sum(-1).mean())}


def kill_later(when: str, workdir: Path) -> Callable[[int, Mapping[str, float]], None]:
    """An `on_step` whose first call arms `kill -9` of this process: after `when` seconds, or inside the next save."""

    def watch() -> None:
        while not list((workdir / "checkpoints").glob("*tmp*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    def on_step(step: int, values: Mapping[str, float]) -> None:
        if not armed:
            armed.append(threading.Thread(target=watch, daemon=True) if when == "save" else _timer(float(when)))
            armed[0].start()

    armed: list[threading.Thread] = []
    return on_step


def _timer(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    return timer


def main(folder: str, workdir: str, kill: str = "") -> None:
    """Trains in this process and, where asked, dies in the middle."""
    dataset = Dataset.load(folder)
    on_step = kill_later(kill, Path(workdir)) if kill else None
    train(loss_fn, init_fn, lambda: pipeline_of(dataset), CONFIG, workdir, evaluators=[same_group], on_step=on_step)


if __name__ == "__main__":
    main(*sys.argv[1:])
