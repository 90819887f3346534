"""Forward, and forward with backward, of anchor attention and its rivals over 50 to 4,096 items."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.anchor_attention import flex, rivals
from benchmarks.anchor_attention.ceilings import measured
from benchmarks.anchor_attention.timing import interleaved
from benchmarks.common import table
from benchmarks.parts import device
from hisam_jax.kernels.anchor_attention import count
from hisam_jax.kernels.anchor_attention.core import Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes
from hisam_jax.progress import progress

ITEMS, TOKENS = (50, 256, 512, 1024, 2048, 4096), (5, 8)
SHAPES = {"cpu": (1, 4, 64, "float32"), "gpu": (4, 8, 128, "bfloat16"), "tpu": (4, 8, 128, "bfloat16")}
SCORE_BYTES = {"cpu": 2**31, "gpu": 2**34, "tpu": 2**33}  # a rival that holds larger scores is left out
HOLDS_SCORES = ("flat", "dense")
ROUNDS = 7
PASSES = {"forward": rivals.forward, "forward and backward": rivals.forward_and_backward}
NOT_MEASURED = "NVIDIA H100"
INTRODUCTION = """\
`flat`: full causal attention over the same tokens (`jax.nn.dot_product_attention`, cuDNN on a GPU), which is what a
model without anchors pays. The others compute what ours computes: `dense`, all tokens under the anchor mask; `merged`,
local scores beside a library's causal grouped-query attention over the anchors, merged by log-sum-exp, with our
backward pass; `FlexAttention` of PyTorch under the same mask, where torch is installed. Median of rounds in which all
but PyTorch take turns; in brackets the rival's time over ours. GFLOP/s and GB/s: least work that the mask leaves (each
operand once), over time, and its share of what this device reaches in a large product and a large copy. Memory:
temporaries of the compiled program, of ours and of `dense`. Empty: scores of more than {limit} GiB, left out.
"""


def run(results: Path, quick: bool = False) -> dict[str, Any]:
    """One table for this device; tables of other devices stay."""
    platform = jax.default_backend() if jax.default_backend() in SHAPES else "gpu"
    batch, heads, width, dtype = SHAPES[platform]
    sizes = ((16, 40), (5,)) if quick else (ITEMS, TOKENS)
    ceilings = measured(dtype, quick)
    cells = list(itertools.product(*sizes))
    rows = [
        _measure(platform, batch, items, tokens, heads, width, dtype, 2 if quick else ROUNDS)
        for items, tokens in progress(cells, description="kernels", unit="size")
    ]
    settings = {"batch": batch, "heads": heads, "width": width, "dtype": dtype, "limit": SCORE_BYTES[platform] >> 30}
    made = {"ceilings": ceilings, "settings": settings, "rows": rows, "flex": flex.why_not() or "measured"}
    return {"devices": _others(results) | {device(): made}}


def _others(results: Path) -> dict[str, Any]:
    file = results / "anchor_attention.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    return kept.get("kernels", {}).get("result", {}).get("devices", {})


def _measure(platform, batch, items, tokens, heads, width, dtype, rounds) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = tuple(jax.random.normal(key, (batch, items, tokens, heads, width), jnp.dtype(dtype)) for key in keys)
    of = rivals.rivals(platform)
    scores = batch * heads * (items * tokens) ** 2 * 4
    if scores > SCORE_BYTES[platform]:
        of = {name: f for name, f in of.items() if name not in HOLDS_SCORES or (platform == "gpu" and name == "flat")}
    found: dict[str, Any] = {"items": items, "tokens": tokens, "passes": {}}
    sizes = Sizes(items, tokens, heads, heads, width, items, x[0].dtype.itemsize)
    work = count.forward_work(batch, sizes, Rule()), count.backward_work(batch, sizes, Rule())
    for name, wrap in PASSES.items():
        compiled = {rival: wrap(f).lower(*x).compile() for rival, f in of.items()}
        both = work if name != "forward" else work[:1]
        found["passes"][name] = {
            "seconds": interleaved(compiled, x, rounds) | flex.seconds(x, name, rounds),
            "memory": {rival: program.memory_analysis().temp_size_in_bytes for rival, program in compiled.items()},
            "flops": sum(part.flops for part in both),
            "bytes": sum(part.bytes for part in both),
        }
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """One section a device, the one that leads named; a Hopper GPU that nobody measured is said to be so."""
    tables = [_device_table(name, made) for name, made in result["devices"].items()]
    if not any(NOT_MEASURED in name for name in result["devices"]):
        tables.append(f"### {NOT_MEASURED}\n\nNot measured: none was at hand. What was compiled for it is below.\n")
    limit = max(made["settings"]["limit"] for made in result["devices"].values())
    return "\n".join([INTRODUCTION.format(limit=limit), *tables])


def _device_table(name: str, made: Mapping[str, Any]) -> str:
    settings, ceilings = made["settings"], made["ceilings"]
    about = (
        f"### {name}\n\nBatch {settings['batch']}, {settings['heads']} heads of {settings['width']}, "
        f"{settings['dtype']}. Ceilings: {ceilings['flops'] / 1e9:,.0f} GFLOP/s, {ceilings['bytes'] / 1e9:,.1f} GB/s. "
        f"FlexAttention: {made['flex']}.\n"
    )
    others = ("flat", "dense", "merged", "FlexAttention")
    header = ("items x tokens", "pass", "ours, ms", *others, "GFLOP/s", "GB/s", "MiB ours", "MiB dense")
    rows = [_row(row, name, passed, ceilings, others) for row in made["rows"] for name, passed in row["passes"].items()]
    return about + "\n" + table(header, rows)


def _row(row, name, passed, ceilings, others) -> list[str]:
    ours = next(iter(passed["seconds"]))
    seconds, memory = passed["seconds"], passed["memory"]
    spent = seconds[ours]
    versus = [f"{seconds[o] * 1e3:,.1f} ({seconds[o] / spent:.1f})" if o in seconds else "" for o in others]
    rates = [
        f"{passed[what] / spent / 1e9:,.1f} ({passed[what] / spent / ceilings[what]:.0%})"
        for what in ("flops", "bytes")
    ]
    held = [f"{memory[who] / 2**20:,.1f}" if who in memory else "" for who in (ours, "dense")]
    return [f"{row['items']:,} x {row['tokens']}", name, f"{spent * 1e3:,.2f} ({ours})", *versus, *rates, *held]
