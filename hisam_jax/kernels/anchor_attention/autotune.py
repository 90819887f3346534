"""Times anchor attention under many tile sizes on this device and keeps the fastest for its kind.

    python -m hisam_jax.kernels.anchor_attention.autotune --items 1024 --tokens 8 --heads 8 --width 128

The forward pass and the backward pass are tuned one after the other. Prints each try on stderr, what was kept on
stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import api, core, devices, tuning
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles

ITEMS, ANCHORS = (8, 16, 32, 64, 128), (32, 64, 128, 256, 512)
ROUNDS = 5
DEFAULTS = {"batch": 8, "items": 256, "tokens": 8, "heads": 4, "kv_heads": 0, "width": 64, "cached": 0}


def main(argv: list[str] | None = None) -> int:
    """The command; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in DEFAULTS.items():
        about = "0: as many as heads" if name == "kv_heads" else "a count"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"{about} (default {value})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--implementation", choices=api.IMPLEMENTATIONS[1:], help="default: this platform's first")
    given = parser.parse_args(argv)
    try:
        platform, kind = devices.device()
        dtype = given.dtype or ("float32" if platform == "cpu" else "bfloat16")
        x = problem(**{name: getattr(given, name) for name in DEFAULTS}, dtype=dtype)
        name = given.implementation or api.order(platform)[0]
        if name not in api.available(platform):
            raise UserError(f"no {name!r} on platform {platform!r}", field="implementation")
        implementation, file = api.load(name), tuning.file_of(kind)
        key = tuning.key_of(name, Sizes.of(x.q_BNTHD, x.anchor_k_BMGD))
        tiles, times = best(implementation, x)
        tuning.save(file, key, tiles)
    except UserError as error:
        print(f"hisam: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"file": str(file), "key": key, "tiles": dataclasses.asdict(tiles), "milliseconds": times}))
    return 0


def problem(batch, items, tokens, heads, kv_heads, width, cached, dtype) -> Inputs:
    """Random inputs of one segment.

    Raises:
        UserError: a size below 1, or kv_heads that do not divide heads.
    """
    kv_heads = kv_heads or heads
    if min(batch, items, tokens, heads, kv_heads, width) < 1 or cached < 0 or heads % kv_heads:
        raise UserError(
            f"batch {batch}, items {items}, tokens {tokens}, heads {heads}, kv_heads {kv_heads}, width {width}",
            expected="sizes of 1 or more, and kv_heads that divide heads",
        )
    keys, total = jax.random.split(jax.random.key(0), 5), cached + items
    shapes = [(batch, items, tokens, h, width) for h in (heads, kv_heads, kv_heads)]
    shapes += [(batch, total, kv_heads, width)] * 2
    floats = (jax.random.normal(key, shape, jnp.dtype(dtype)) for key, shape in zip(keys, shapes, strict=True))
    segments = jnp.ones((batch, total), jnp.int32)
    return Inputs(*floats, segments[:, cached:], segments, jnp.int32(cached))


def best(implementation: Implementation, x: Inputs, time_of: Callable | None = None) -> tuple[Tiles, dict[str, float]]:
    """(the fastest tiles, milliseconds of the passes under them).

    Args:
        implementation: that is tuned.
        x: the problem.
        time_of: seconds of a compiled function of `x`; the median of some runs by default.
    """
    time_of, times, tiles = time_of or seconds, {}, implementation.tiles(Sizes.of(x.q_BNTHD, x.anchor_k_BMGD))
    for what, function in (("forward", _forward), ("backward", _backward)):
        tries = {}
        for candidate in candidates(implementation, tiles, what == "backward", x):
            try:
                tries[candidate] = time_of(function(implementation, candidate), x)
            except Exception as error:  # a tile that this device's compiler refuses is no candidate
                print(f"{what} {candidate}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
                continue
            print(f"{what} {candidate}: {tries[candidate] * 1e3:.2f} ms", file=sys.stderr)
        if not tries:
            raise UserError(f"no tile size works for the {what} pass of {implementation.name}")
        tiles = min(tries, key=tries.get)
        times[what] = round(tries[tiles] * 1e3, 3)
    return tiles, times


def candidates(implementation: Implementation, tiles: Tiles, backward: bool, x: Inputs) -> Iterator[Tiles]:
    """`tiles`, then every other size of one pass that is not past the problem's own and makes another program."""
    prefix, sizes = "backward_" if backward else "", Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)
    seen = {implementation.rounded(tiles, sizes)}
    yield tiles
    for items, anchors in itertools.product(ITEMS, ANCHORS):
        other = dataclasses.replace(tiles, **{f"{prefix}items": items, f"{prefix}anchors": anchors})
        program = implementation.rounded(other, sizes)
        if program not in seen and items < 2 * sizes.items and anchors < 2 * sizes.anchors:
            seen.add(program)
            yield other


def _forward(implementation: Implementation, tiles: Tiles) -> Callable:
    return jax.jit(lambda x: core.attend(x, implementation, Rule(), tiles)[0])


def _backward(implementation: Implementation, tiles: Tiles) -> Callable:
    def loss(floats, rest):
        return core.attend(Inputs(*floats, *rest), implementation, Rule(), tiles)[0].astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss))
    return lambda x: gradient(tuple(x[:5]), tuple(x[5:]))


def seconds(function: Callable, x: Inputs) -> float:
    """Median of some runs after one that compiles."""
    jax.block_until_ready(function(x))
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        jax.block_until_ready(function(x))
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


if __name__ == "__main__":
    sys.exit(main())
