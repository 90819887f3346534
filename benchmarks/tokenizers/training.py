"""DST's training step beside its matrix products alone: what everything else costs."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import table
from hisam_jax.tokenizer import base, dst_training, fitting
from hisam_jax.tokenizer.dst_config import DSTConfig, make_layout

ITEMS, WIDTH = 20_000, 384
BATCHES = (256, 1024)
STEPS = fitting.STEPS_PER_CALL
ROUNDS = 7
INTRODUCTION = """\
Default DST on 20,000 generated items of two modalities, 384 columns each. The matrix products (networks forward and
backward, distances to codes, vCLUB's bound and its 5 likelihood steps) are read off the very step's trace and run by
themselves, same shapes, same number, compiled into one scan. Fit: the whole fitting loop, reading and
standardising batches included, without compilation. Share: products' time in the step's. Median of interleaved rounds.
"""


class Product(NamedTuple):
    """One `dot_general`: shapes, dimension numbers, types."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    numbers: Any
    types: tuple[str, str]


def run(quick: bool = False) -> dict[str, Any]:
    """Seconds a step and items a second, for each batch size; `quick` takes small batches and few rounds."""
    batches, rounds = ((64,), 2) if quick else (BATCHES, ROUNDS)
    return {"seeds": [0], "rows": [measure(size, rounds) for size in batches]}


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """One batch size."""
    cfg = dataclasses.replace(DSTConfig(), batch_size=batch, steps=STEPS * (rounds + 1))
    features, present = _items()
    counted, step = _traced(cfg, features, present)
    alone = _products_alone(counted)
    seconds = collections.defaultdict(list)
    for round_ in range(rounds + 1):
        for name, function in (("step", step), ("products", alone)):
            spent = _seconds(function) / STEPS
            if round_:  # the first one compiles
                seconds[name].append(spent)
    row = {name: float(np.median(values)) for name, values in seconds.items()}
    fit = _fit_seconds(cfg, features, present)
    return {
        "batch": batch,
        "products": sum(counted.values()),
        "gigaflops": sum(_flops(product) * count for product, count in counted.items()) / 1e9,
        "step_seconds": row["step"],
        "product_seconds": row["products"],
        "fit_seconds": fit,
        "items_per_second": {"fit": batch / fit, "step": batch / row["step"], "products": batch / row["products"]},
    }


def _items() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    both = rng.normal(size=(ITEMS, 32)).astype(np.float32)
    features = {
        m: both @ rng.normal(size=(32, WIDTH)).astype(np.float32) + rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
        for m in ("text", "image")
    }
    return features, {m: np.ones(ITEMS, bool) for m in features}


def _traced(
    cfg: DSTConfig, features: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]
) -> tuple[collections.Counter[Product], Callable[[], Any]]:
    """How often each product is in one training step, and the compiled chunk of steps that training runs."""
    layout = make_layout(cfg, {m: WIDTH for m in features}, {m: ITEMS for m in features})
    scales = {m: base.fit_standardiser(values, present[m]) for m, values in features.items()}
    ones = {m: np.ones((STEPS, cfg.batch_size), bool) for m in features}
    x = {m: scales[m](v[: cfg.batch_size], present[m][: cfg.batch_size]) for m, v in features.items()}
    x = {m: np.broadcast_to(v, (STEPS, *v.shape)) for m, v in x.items()}
    first = {m: v[0] for m, v in x.items()}, {m: v[0] for m, v in ones.items()}
    state = dst_training.init_state(cfg, layout, 0, *first)
    key = jax.random.key(0)
    trace = jax.make_jaxpr(lambda state: dst_training.train_step(cfg, layout, state, key, jnp.int32(0), *first))(state)
    counted = collections.Counter()
    for product, times in products(trace.jaxpr):
        counted[product] += times

    def body(carry: Any, part: Any) -> tuple[Any, Any]:
        return dst_training.train_step(cfg, layout, carry, key, *part)

    chunk = jax.jit(lambda carry: jax.lax.scan(body, carry, (jnp.arange(STEPS), x, ones)))
    return counted, lambda: chunk(state)


def products(jaxpr: Any) -> Iterator[tuple[Product, int]]:
    """Every matrix product of a trace with the number of times that it runs, loops counted out."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (v.aval for v in equation.invars)
            types = str(left.dtype), str(right.dtype)
            yield Product(left.shape, right.shape, equation.params["dimension_numbers"], types), 1
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_trace):
            if _is_trace(inner):
                yield from ((product, times * count) for product, count in products(getattr(inner, "jaxpr", inner)))


def _is_trace(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _flops(product: Product) -> float:
    (_, contracted), (_, batched) = product.numbers
    free = [size for axis, size in enumerate(product.right) if axis not in (*contracted, *batched)]
    return 2.0 * float(np.prod(product.left)) * float(np.prod(free))


def _products_alone(counted: Mapping[Product, int]) -> Callable[[], Any]:
    """The same products and no more, STEPS times; barriers keep the compiler from hoisting or cutting any."""
    rng = np.random.default_rng(0)
    kinds = list(counted)
    sides = [tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in kind[:2]) for kind in kinds]

    def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        for kind, (left, right) in zip(kinds, sides, strict=True):
            for _ in range(counted[kind]):
                left_, right_, carry = jax.lax.optimization_barrier((left, right, carry))
                out, carry = jax.lax.optimization_barrier((jax.lax.dot_general(left_, right_, kind.numbers), carry))
                carry = carry + out.ravel()[0]
        return carry, None

    compiled = jax.jit(lambda carry: jax.lax.scan(body, carry, None, length=STEPS)[0])
    return lambda: compiled(jnp.float32(0))


def _seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def _fit_seconds(cfg: DSTConfig, features: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> float:
    """Seconds a step of `fit_dst` between its first and its last chunk."""
    moments: list[tuple[int, float]] = []
    every = np.ones(ITEMS, bool)
    dst_training.fit_dst(
        dataclasses.replace(cfg, settle_iterations=0), features, present, every, 0,
        lambda done, total, row: moments.append((done, time.perf_counter())),
    )  # fmt: skip
    (first, start), (last, stop) = moments[0], moments[-1]
    return (stop - start) / (last - first)


def markdown(result: Mapping[str, Any]) -> str:
    """One row a batch size."""
    header = (
        "batch",
        "products a step",
        "GFLOP",
        "step, ms",
        "products, ms",
        "share",
        "items/s: fit",
        "step",
        "products",
    )
    rows = [
        [
            row["batch"], row["products"], f"{row['gigaflops']:.2f}", f"{row['step_seconds'] * 1e3:.1f}",
            f"{row['product_seconds'] * 1e3:.1f}", f"{row['product_seconds'] / row['step_seconds']:.0%}",
            *(f"{row['items_per_second'][name]:,.0f}" for name in ("fit", "step", "products")),
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return INTRODUCTION + "\n" + table(header, rows)
