"""QARM's item alignment (arXiv 2411.11739): an adapter over frozen features that brings pairs of `pairs` together.

Stated: in-batch contrastive loss, 64 columns. Ours: the network, its learned temperature, and the mask of negatives: of
a pair, items of another pair of the same user, and its own trigger and target, are no negatives.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.config import check_least, check_shares
from hisam_jax.tokenizer import base, fitting, joined, mutual_information
from hisam_jax.tokenizer.alignment import MASKED, normalise, two_way_cross_entropy
from hisam_jax.tokenizer.base import FeatureMap, PresentMap
from hisam_jax.tokenizer.config_checks import check_positive, check_sizes
from hisam_jax.tokenizer.joined import Joined
from hisam_jax.tokenizer.pairs import Pairs

COLDEST, HOTTEST = 0.05, 0.1  # bounds of the learned temperature


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Settings of the adapter and its training.

    Attributes:
        width: columns of an aligned vector [stated: 64].
        hidden: units of each hidden layer.
        dropout: on hidden units.
        steps: of training.
        batch_size: pairs of a step, each the others' negatives.
        item_pairs: share of Item2Item pairs in a batch, the others are User2Item.
        learning_rate, weight_decay: of AdamW.
        temperature: what the learned one starts from, which stays within .05 and .1.

    Raises:
        UserError: a value out of range.
    """

    width: int = 64
    hidden: tuple = (256,)
    dropout: float = 0.1
    steps: int = 1500
    batch_size: int = 512
    item_pairs: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    temperature: float = 0.07

    def __post_init__(self):
        check_sizes(self, "qarm", "hidden", empty=True)
        check_least(self, "qarm", width=1, steps=1, batch_size=2, weight_decay=0)
        check_shares(self, "qarm", "dropout")
        check_shares(self, "qarm", "item_pairs", whole=True)
        check_positive(self, "qarm", "learning_rate", "temperature")


@dataclasses.dataclass(eq=False)
class Adapter:
    """A trained adapter: frozen features in, aligned unit vectors out.

    Attributes:
        joined: what scales the features.
        weights: `w0, b0, w1, ...` of its layers.
        width: D.
    """

    joined: Joined
    weights: dict[str, np.ndarray]
    width: int

    def aligned(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Unit vectors float32 [I, D], zero for an item without any modality."""
        out_ID = np.zeros((self.joined.check(features, present), self.width), np.float32)
        for rows, x_BF, has_B in self.joined.blocks(features, present):
            part = {m: base.padded(present[m][rows], base.BLOCK) for m in self.joined.scales}
            out_BD = np.asarray(_adapt(self.weights, inputs(self.joined, x_BF, part)))[: len(has_B)]
            out_ID[rows] = np.where(has_B[:, None], out_BD, 0)
        return out_ID

    def arrays(self) -> dict[str, np.ndarray]:
        """For a tokenizer's state, all under `adapter/`."""
        return {f"adapter/{name}": value for name, value in (self.weights | self.joined.arrays()).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], modalities: list[str], width: int) -> Adapter:
        """The same again."""
        ours = {k.removeprefix("adapter/"): v for k, v in arrays.items() if k.startswith("adapter/")}
        weights = {name: value for name, value in ours.items() if "/" not in name}
        return cls(Joined.from_arrays(ours, modalities), weights, width)


class Batch(NamedTuple):
    """What a step reads of its pairs: inputs [..., B, F], items [..., B] and the user [..., B], below 0 for none."""

    trigger_BF: jax.Array
    target_BF: jax.Array
    trigger_B: jax.Array
    target_B: jax.Array
    user_B: jax.Array


def inputs(scaling: Joined, x_BF: np.ndarray, present: PresentMap) -> np.ndarray:
    """Features of unit variance, each modality followed by whether the item has it."""
    parts = scaling.split(x_BF)
    flags = [np.asarray(present[m], np.float32)[:, None] for m in scaling.scales]
    return np.concatenate([*parts.values(), *flags], axis=1)


def adapt(weights: Mapping[str, jax.Array], x_BF: jax.Array, key: jax.Array | None = None, dropout: float = 0.0):
    """Aligned unit vectors [B, D]; with `key`, hidden units are dropped."""
    depth = len(weights) // 2
    for layer in range(depth):
        x_BF = x_BF @ weights[f"w{layer}"] + weights[f"b{layer}"]
        if layer + 1 < depth:
            x_BF = jax.nn.gelu(x_BF)
            if key is not None and dropout:
                kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - dropout, x_BF.shape)
                x_BF = jnp.where(kept, x_BF / (1 - dropout), 0.0)
    return normalise(x_BF)


def negatives(trigger_B: jax.Array, target_B: jax.Array, user_B: jax.Array) -> jax.Array:
    """bool [B, B]: whether the target of pair q is a negative of the trigger of pair p."""
    same_user_BB = (user_B[:, None] == user_B) & (user_B >= 0)
    known_BB = (target_B[:, None] == target_B) | (trigger_B[:, None] == target_B) | (trigger_B[:, None] == trigger_B)
    return ~(same_user_BB | known_BB)


def contrastive_loss(trigger_BD: jax.Array, target_BD: jax.Array, negative_BB: jax.Array, temperature: jax.Array):
    """Cross-entropy of each pair against its negatives, mean of both directions."""
    score_BB = trigger_BD @ target_BD.T / temperature
    allowed_BB = negative_BB | jnp.eye(len(score_BB), dtype=bool)
    return two_way_cross_entropy(jnp.where(allowed_BB, score_BB, MASKED), jnp.ones(len(score_BB), bool), 0.0)


def fit_adapter(
    cfg: AdapterConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    pairs: tuple[Pairs, ...],
    seed: int,
    progress: base.Progress | None = None,
) -> tuple[Adapter, list[dict[str, float]]]:
    """(adapter, losses along the way), trained on pairs whose items have features.

    Args:
        pairs: User2Item, Item2Item; drawn from as `cfg.item_pairs` says, one that is empty is left out.

    Raises:
        UserError: features that cannot be used, no training item with any.
        FloatingPointError: a loss that is not finite.
    """
    names, _ = joined.usable(features, present, train_rows)
    scaling = Joined({m: base.fit_standardiser(features[m], present[m] & train_rows, per_column=False) for m in names})
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    sizes = (sum(scaling.widths.values()) + len(names), *cfg.hidden, cfg.width)
    trainable = {"net": _initial(rng, sizes), "log_temperature": jnp.log(jnp.float32(cfg.temperature))}
    optimizer, history = _optimizer(cfg).init(trainable), []
    for start, batch in _batches(cfg, scaling, features, present, pairs, rng):
        steps_S = start + jnp.arange(len(batch.user_B))
        trainable, optimizer, metrics = _run_steps(cfg, trainable, optimizer, key, steps_S, batch)
        row = {name: float(np.mean(values)) for name, values in metrics.items()}
        if not np.isfinite(row["alignment"]):
            raise FloatingPointError(f"QARM: the alignment loss is not finite at step {start + len(steps_S)}")
        history.append({"step": start + len(steps_S), **row})
        if progress:
            progress(start + len(steps_S), cfg.steps, row)
    return Adapter(scaling, jax.tree.map(np.asarray, trainable["net"]), cfg.width), history


def with_features(pairs: Pairs, has_I: np.ndarray) -> Pairs:
    """Those pairs both of whose items have a feature."""
    kept = has_I[pairs.trigger_P] & has_I[pairs.target_P]
    return Pairs(pairs.trigger_P[kept], pairs.target_P[kept], pairs.user_P[kept])


def _batches(
    cfg: AdapterConfig, scaling: Joined, features: FeatureMap, present: PresentMap, pairs: tuple[Pairs, ...], rng
) -> Iterator[tuple[int, Batch]]:
    """(first step, batches [S, B, ...]) of each compiled call."""
    shares = np.array([1 - cfg.item_pairs, cfg.item_pairs]) * [len(part) > 0 for part in pairs]
    if not shares.sum():
        shares = np.array([len(part) > 0 for part in pairs], float)
    columns = [np.concatenate([getattr(part, name) for part in pairs]) for name in ("trigger_P", "target_P", "user_P")]
    for start in range(0, cfg.steps, fitting.STEPS_PER_CALL):
        shape = (min(fitting.STEPS_PER_CALL, cfg.steps - start), cfg.batch_size)
        second = rng.random(shape) < shares[1] / shares.sum()
        draws = [rng.integers(0, max(len(part), 1), shape) for part in pairs]
        pick = np.where(second, len(pairs[0]) + draws[1], draws[0])
        trigger, target, user = (column[pick] for column in columns)
        x = [_read(scaling, features, present, item) for item in (trigger, target)]
        yield start, Batch(*x, trigger, target, user)


def _read(scaling: Joined, features: FeatureMap, present: PresentMap, item_SB: np.ndarray) -> np.ndarray:
    rows, place = np.unique(item_SB, return_inverse=True)
    x_NF = inputs(scaling, scaling.read(features, present, rows), {m: present[m][rows] for m in scaling.scales})
    return x_NF[place.reshape(item_SB.shape)]


def _initial(rng: np.random.Generator, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    weights = {}
    for layer, shape in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        weights[f"w{layer}"] = mutual_information.initial(rng, shape)
        weights[f"b{layer}"] = np.zeros(shape[1], np.float32)
    return weights


def _optimizer(cfg: AdapterConfig) -> optax.GradientTransformation:
    return fitting.adamw(cfg.learning_rate, cfg.steps, cfg.weight_decay)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _run_steps(cfg: AdapterConfig, trainable: Any, optimizer: Any, key: jax.Array, steps_S: jax.Array, batches: Batch):
    def step(carry, given):
        trainable, optimizer = carry
        number, batch = given
        keys = jax.random.split(jax.random.fold_in(key, number))
        negative_BB = negatives(batch.trigger_B, batch.target_B, batch.user_B)

        def loss_of(trainable):
            sides = ((batch.trigger_BF, keys[0]), (batch.target_BF, keys[1]))
            trigger_BD, target_BD = (adapt(trainable["net"], x_BF, drop, cfg.dropout) for x_BF, drop in sides)
            temperature = jnp.clip(jnp.exp(trainable["log_temperature"]), COLDEST, HOTTEST)
            return contrastive_loss(trigger_BD, target_BD, negative_BB, temperature), temperature

        (loss, temperature), gradient = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        updates, optimizer = _optimizer(cfg).update(gradient, optimizer, trainable)
        return (optax.apply_updates(trainable, updates), optimizer), {"alignment": loss, "temperature": temperature}

    (trainable, optimizer), metrics = jax.lax.scan(step, (trainable, optimizer), (steps_S, batches))
    return trainable, optimizer, metrics


_adapt = jax.jit(adapt)
