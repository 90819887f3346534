"""What tokenizers that learn by steps share: batches of rows, their features, and the codebooks' step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.tokenizer import base, quantization
from hisam_jax.tokenizer.base import FeatureMap, PresentMap, Standardiser
from hisam_jax.tokenizer.quantization import Book, Quantized

Arrays = dict[str, jax.Array]
STEPS_PER_CALL = 20


def chunks(rows: np.ndarray, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """(first step, item rows [S, B]) of each compiled call; every epoch in a fresh order, its remainder dropped."""
    size = min(batch_size, len(rows))
    whole = len(rows) // size * size
    epochs = (rng.permutation(rows)[:whole].reshape(-1, size) for _ in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    for start in range(0, steps, STEPS_PER_CALL):
        yield start, np.stack(list(itertools.islice(batches, min(STEPS_PER_CALL, steps - start))))


def paired_chunks(
    rows: np.ndarray, batch_size: int, steps: int, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray]]:
    """As `chunks`, each batch one half from one half of the rows and one from the other, drawn once: they never mix."""
    if len(rows) < 2:
        yield from chunks(rows, batch_size, steps, rng)
        return
    parts = np.array_split(rng.permutation(rows), 2)
    size = max(1, min(batch_size // 2, *map(len, parts)))
    for (start, first), (_, second) in zip(*(chunks(part, size, steps, rng) for part in parts), strict=True):
        yield start, np.concatenate([first, second], axis=1)


def load(
    scales: Mapping[str, Standardiser], features: FeatureMap, present: PresentMap, picks: np.ndarray
) -> tuple[Arrays, Arrays]:
    """Standardised features and presence of the items `picks`, of any shape; pages of memory maps are let go of."""
    x = {m: np.empty((picks.size, len(scale.mean_F)), np.float32) for m, scale in scales.items()}
    for m, scale in scales.items():
        scale.read(features[m], present[m], picks.reshape(-1), x[m])
    return {m: v.reshape(*picks.shape, -1) for m, v in x.items()}, {m: np.asarray(present[m][picks]) for m in scales}


def split_rows(tree: Any) -> Any:
    """Arrays `[S, B, ...]` split by rows over this process's devices; themselves where those do not divide B.

    The axis is left to the compiler: networks and books stay whole on every device, and sums over a batch cross them.
    """
    devices = jax.local_devices()
    if len(devices) == 1 or any(leaf.shape[1] % len(devices) for leaf in jax.tree.leaves(tree)):
        return tree
    mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(None, "data")))


def standardiser(kind: str, values_IF: np.ndarray, rows_I: np.ndarray) -> Standardiser:
    """Columns of variance 1 over `rows_I`: each of them (`column`), or on average (`modality`)."""
    if kind == "column":
        return base.fit_standardiser(values_IF, rows_I)
    scale = base.fit_standardiser(values_IF, rows_I, per_column=False)
    return Standardiser(scale.mean_F, scale.scale_F * np.float32(values_IF.shape[1] ** 0.5))


def adamw(learning_rate: float, steps: int, weight_decay: float) -> optax.GradientTransformation:
    """AdamW on a cosine from `learning_rate` to a twentieth of it; of what is trained only `net` decays.

    Decay would pull codes away from what they stand for, and a temperature towards 1.
    """
    return optax.adamw(
        optax.cosine_decay_schedule(learning_rate, max(steps, 1), 0.05),
        weight_decay=weight_decay,
        mask=lambda tree: {name: jax.tree.map(lambda _, net=name == "net": net, part) for name, part in tree.items()},
    )


def norm(tree: Any) -> jax.Array:
    """Euclidean norm of all arrays of a tree together."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def update_books(
    key: jax.Array,
    books: Mapping[str, Sequence[Book]],
    quantized: Mapping[str, Quantized],
    weight: Arrays,
    *,
    decay: float,
    dead_threshold: float,
    learned: Mapping[str, Sequence[jax.Array]] | None = None,
) -> tuple[dict[str, tuple[Book, ...]], Arrays]:
    """Next books by moving average, dead codes re-seeded, and how each level is used.

    Args:
        key: for the draws of new codes.
        books: group -> its books, before.
        quantized: group -> what the batch took.
        weight: group -> [B], 1 for a row that counts.
        decay: of the moving averages.
        dead_threshold: see `quantization.reseed_dead`.
        learned: group -> vectors [K, D] that stand in for the averages where they learn by gradient.

    Returns:
        Books, and per level `used/NAME`, the share of codes that needed no re-seeding, and `perplexity/NAME`, the
        exponential of the entropy of its counts, in codes.
    """
    fresh, usage, number = {}, {}, itertools.count()
    for name, group in books.items():
        passed, levels = quantized[name], []
        for depth, book in enumerate(group):
            x_BD, code_B = passed.residuals_LND[depth], passed.codes_NL[:, depth]
            book = quantization.ema_update(book, x_BD, code_B, weight[name], decay)
            if learned:
                book = book._replace(vectors_KD=learned[name][depth])
            usage[f"perplexity/{name}/{depth}"] = quantization.perplexity(book.count_K)
            error_B = jnp.sum((x_BD - passed.chosen_LND[depth]) ** 2, -1)
            draw = jax.random.fold_in(key, next(number))
            book, dead = quantization.reseed_dead(draw, book, x_BD, error_B, weight[name], dead_threshold)
            levels.append(book)
            usage[f"used/{name}/{depth}"] = 1 - dead / len(book.count_K)
        fresh[name] = tuple(levels)
    return fresh, usage


def spread(x_BD: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Mean squared distance of rows of weight 1 from their mean: near 0 when latents have become one point."""
    centre_D = weight_B @ x_BD / jnp.maximum(jnp.sum(weight_B), 1)
    return quantization.masked_mean(jnp.sum((x_BD - centre_D) ** 2, -1), weight_B)
