"""Fitting DST: one pure step under `scan`, explicit codebook state, vCLUB's q with its own optimiser."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.tokenizer import base, dst, dst_information, fitting, mutual_information, quantization
from hisam_jax.tokenizer.base import FeatureMap, PresentMap, Standardiser
from hisam_jax.tokenizer.dst import Arrays, Networks
from hisam_jax.tokenizer.dst_config import DSTConfig, Layout, make_layout
from hisam_jax.tokenizer.dst_model import DSTModel
from hisam_jax.tokenizer.quantization import Book

WATCHES = 10  # times during training that the independent estimate of mutual information is taken
WATCHED_ROWS = 4096
SETTLE_ROWS = 65536


class State(NamedTuple):
    """Everything that training changes."""

    trainable: dict[str, Any]  # net, log_temperature, and codebooks where they learn by gradient
    books: dict[str, tuple[Book, ...]]
    optimizer: Any
    club: dict[str, Any]
    club_optimizer: Any


def fit_dst(
    cfg: DSTConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> DSTModel:
    """Fits DST on the items where `train_rows` (bool [I]) is true; items without any view are left out.

    Every batch is split over all devices of this process.

    Raises:
        UserError: features that cannot be used (see `base.check_features`), or no training item with any.
        FloatingPointError: a loss that is not finite.
    """
    base.check_features(features, present)
    counts = {m: int((present[m] & train_rows).sum()) for m in features}
    layout = make_layout(cfg, {m: values.shape[1] for m, values in features.items()}, counts)
    scales = {m: fitting.standardiser(cfg.standardise, features[m], present[m] & train_rows) for m, _ in layout.widths}
    has_any = np.any([present[m] for m, _ in layout.widths], axis=0)
    rows = np.flatnonzero(train_rows & has_any)
    rng = np.random.default_rng(seed)
    load = functools.partial(fitting.load, scales, features, present)
    key = jax.random.key(seed)
    state = init_state(cfg, layout, seed, *load(rng.permutation(rows)[: cfg.init_rows]))
    model = _freeze(cfg, layout, scales, state)
    watched = rng.permutation(rows)[:WATCHED_ROWS]
    for start, picks_SB in fitting.paired_chunks(rows, cfg.batch_size, cfg.steps, rng):
        steps_S = jnp.arange(start, start + len(picks_SB))
        batch = fitting.split_rows(load(picks_SB))
        state, metrics = _run_steps(cfg, layout, state, jax.random.fold_in(key, 1), steps_S, *batch)
        row = {name: float(np.mean(values)) for name, values in metrics.items()}
        if not all(np.isfinite(value) for value in row.values()):
            bad = ", ".join(name for name, value in row.items() if not np.isfinite(value))
            raise FloatingPointError(f"DST: {bad} is not finite at step {start + len(picks_SB)}")
        done = start + len(picks_SB)
        if done * WATCHES // cfg.steps > start * WATCHES // cfg.steps:
            model = _refrozen(model, state)
            row |= _watch(model, features, present, watched, np.random.default_rng(seed))
        model.history.append({"step": done, **row})
        if progress:
            progress(done, cfg.steps, row)
    model = _refrozen(model, state)
    if cfg.settle_iterations:
        sample = load(rng.permutation(rows)[:SETTLE_ROWS])
        model.books = jax.tree.map(np.asarray, settle(cfg, layout, model.params, model.books, *sample))
    return model


def settle(
    cfg: DSTConfig, layout: Layout, params: Any, books: Mapping[str, Sequence[jax.Array]], x: Arrays, present: Arrays
) -> dict[str, list[jax.Array]]:
    """Books after Lloyd iterations on what the finished networks give, coarse to fine; unused codes move to use.

    Moving averages trail the networks: without this the last steps leave codes that nothing takes any more.
    """
    networks, weight = Networks(cfg, layout.widths), dst.weights_of(present)
    settled = {name: list(group) for name, group in books.items()}
    for name, group in books.items():
        left_ND = dst.compiled_forward(networks, params, settled, x, present).targets[name]
        for depth, vectors_KD in enumerate(group):
            settled[name][depth] = quantization.lloyd(left_ND, weight[name], vectors_KD, cfg.settle_iterations)
            left_ND = quantization.leftover(left_ND, settled[name][depth])
    return settled


def init_state(cfg: DSTConfig, layout: Layout, seed: int, x: Arrays, present: Arrays) -> State:
    """Random networks, and codebooks by k-means++ on the first items' latents."""
    networks, weight = Networks(cfg, layout.widths), dst.weights_of(present)
    trainable, club = _init_networks(cfg, layout, np.random.default_rng(seed))
    vectors = {name: [jnp.zeros((size, cfg.width)) for size in sizes] for name, sizes in layout.groups}
    for index, (name, sizes) in enumerate(layout.groups):
        target = dst.compiled_forward(networks, trainable["net"], vectors, x, present).targets[name]
        key = jax.random.fold_in(jax.random.key(seed), index)
        vectors[name] = quantization.residual_kmeans(key, target, weight[name], sizes)
    rows = {name: min(cfg.batch_size, len(part)) * part.mean() for name, part in weight.items()}
    if cfg.codebooks == "gradient":
        trainable["codebooks"] = vectors
    return _open_state(cfg, trainable, vectors, rows, club)


def _init_networks(cfg: DSTConfig, layout: Layout, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scaled normal weights, zero biases. Drawn by numpy: XLA takes a minute to compile dozens of random arrays."""
    nothing = {m: jnp.zeros((1, width)) for m, width in layout.widths}
    shapes = jax.eval_shape(Networks(cfg, layout.widths).init, jax.random.key(0), nothing)["params"]
    net = jax.tree.map(lambda leaf: mutual_information.initial(rng, leaf.shape), shapes)
    club = dst_information.init_clubs(cfg, layout, rng)
    return {"net": net, "log_temperature": np.log(np.float32(cfg.temperature))}, club


@functools.partial(jax.jit, static_argnums=0)
def _open_state(cfg: DSTConfig, trainable: Any, vectors: Any, rows: Any, club: Any) -> State:
    books = {name: tuple(quantization.make_book(v, rows[name]) for v in group) for name, group in vectors.items()}
    adamw, adam = _optimizers(cfg)
    return State(trainable, books, adamw.init(trainable), club, adam.init(club))


def train_step(
    cfg: DSTConfig, layout: Layout, state: State, key: jax.Array, step: jax.Array, x: Arrays, present: Arrays
) -> tuple[State, Arrays]:
    """One step: networks by AdamW, codebooks by moving average, dead codes re-seeded, then vCLUB's q."""
    drop_key, seed_key = jax.random.split(jax.random.fold_in(key, step))
    ramp = jnp.minimum(1.0, (step + 1) / max(cfg.mi_ramp * cfg.steps, 1.0))

    def total_loss(trainable: dict[str, Any]) -> tuple[jax.Array, tuple[dst.Forward, Arrays]]:
        vectors = vectors_of(trainable, state.books)
        passed = dst.forward(Networks(cfg, layout.widths), trainable["net"], vectors, x, present, drop_key)
        parts = dst.losses(cfg, passed, x, present, trainable["log_temperature"])
        parts |= dst_information.bounds(cfg, layout, state.club, passed, vectors, dst.weights_of(present))
        return _weighted(cfg, parts, ramp), (passed, parts)

    (loss, (passed, parts)), gradients = jax.value_and_grad(total_loss, has_aux=True)(state.trainable)
    adamw, _ = _optimizers(cfg)
    updates, optimizer = adamw.update(gradients, state.optimizer, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    books, usage = fitting.update_books(
        seed_key,
        state.books,
        passed.quantized,
        dst.weights_of(present),
        decay=cfg.decay,
        dead_threshold=cfg.dead_threshold,
        learned=trainable.get("codebooks"),
    )
    if "codebooks" in trainable:
        trainable["codebooks"] = {name: [b.vectors_KD for b in group] for name, group in books.items()}
    club, club_optimizer, likelihood = _fit_club(cfg, layout, state, passed, dst.weights_of(present))
    spread = {
        f"spread/{name}": fitting.spread(x_BD, dst.weights_of(present)[name]) for name, x_BD in passed.targets.items()
    }
    metrics = {"loss": loss, "gradient_norm": fitting.norm(gradients["net"]), **parts, **usage, **spread, **likelihood}
    return State(trainable, books, optimizer, club, club_optimizer), metrics


def vectors_of(trainable: Mapping[str, Any], books: Mapping[str, Sequence[Book]]) -> dict[str, list[jax.Array]]:
    """Group -> its codebooks [K, D], wherever they are kept."""
    return trainable.get("codebooks") or {name: [b.vectors_KD for b in group] for name, group in books.items()}


def _weighted(cfg: DSTConfig, parts: Arrays, ramp: jax.Array) -> jax.Array:
    weights = {
        "reconstruction": cfg.reconstruction_weight,
        "shared_reconstruction": cfg.shared_reconstruction_weight,
        "alignment": cfg.alignment_weight,
        "uniformity": cfg.uniformity_weight,
        "commitment": cfg.commitment_weight,
        "codebook": cfg.codebook_weight if cfg.codebooks == "gradient" else 0.0,
    }
    total = sum(weight * parts[name] for name, weight in weights.items())
    for name in parts:
        if name.startswith("mi/"):
            weight = cfg.mi_weight if name.startswith(f"mi/{dst.SHARED}|") else cfg.mi_specific_weight
            total = total + ramp * weight * parts[name]
    return total


def _fit_club(
    cfg: DSTConfig, layout: Layout, state: State, passed: dst.Forward, weight: Arrays
) -> tuple[dict[str, Any], Any, Arrays]:
    """`q` after some likelihood steps on detached samples, before the next batch is judged by it."""
    pairs, (_, adam) = dst_information.pairs_of(cfg, layout), _optimizers(cfg)
    if not pairs or cfg.mi_steps == 0:
        return state.club, state.club_optimizer, {}
    vectors = vectors_of(state.trainable, state.books)
    samples = dst_information.samples_of(cfg, layout, passed, vectors, weight)

    def negative(club: dict[str, Any]) -> jax.Array:
        return -dst_information.log_likelihood(cfg, club, samples)

    def climb(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        club, optimizer = carry
        value, gradients = jax.value_and_grad(negative)(club)
        updates, optimizer = adam.update(gradients, optimizer)
        return (optax.apply_updates(club, updates), optimizer), value

    (club, optimizer), values = jax.lax.scan(climb, (state.club, state.club_optimizer), length=cfg.mi_steps)
    return club, optimizer, {"mi_log_likelihood": -values[-1] / len(pairs)}


def _optimizers(cfg: DSTConfig) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    return fitting.adamw(cfg.learning_rate, cfg.steps, cfg.weight_decay), optax.adam(cfg.mi_learning_rate)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_steps(
    cfg: DSTConfig, layout: Layout, state: State, key: jax.Array, steps_S: jax.Array, x_SBF: Arrays, present_SB: Arrays
) -> tuple[State, Arrays]:
    def body(carry: State, part: Any) -> tuple[State, Arrays]:
        return train_step(cfg, layout, carry, key, *part)

    return jax.lax.scan(body, state, (steps_S, x_SBF, present_SB))


def _freeze(cfg: DSTConfig, layout: Layout, scales: Mapping[str, Standardiser], state: State) -> DSTModel:
    return _refrozen(DSTModel(cfg, layout, {}, {}, dict(scales), []), state)


def _refrozen(model: DSTModel, state: State) -> DSTModel:
    vectors = vectors_of(state.trainable, state.books)
    model.books = {name: [np.asarray(v) for v in group] for name, group in vectors.items()}
    model.params = jax.tree.map(np.asarray, state.trainable["net"])
    return model


def _watch(
    model: DSTModel, features: FeatureMap, present: PresentMap, rows: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Independent estimates, in nats, of what the first shared code tells of each specific code."""
    codes = model.assign({m: v[rows] for m, v in features.items()}, {m: v[rows] for m, v in present.items()})
    found, first = {}, codes[:, 0]
    for index, level in enumerate(model.levels):
        if level.modality == dst.SHARED:
            continue
        both = (first < model.levels[0].size) & (codes[:, index] < level.size)
        name = f"mi_codes/{model.levels[0].name}|{level.name}"
        found[name] = mutual_information.excess_information(first[both], codes[both, index], rng)
    return found
