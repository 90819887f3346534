"""Least work against vendors' peaks, and what the real TPU compiler makes of the kernels and of a pod's train step."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.common import table
from hisam_jax.chips import CHIPS
from hisam_jax.kernels.anchor_attention import count
from hisam_jax.kernels.anchor_attention.core import Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes

PEAKS = {CHIPS[name].name: (CHIPS[name].flops, CHIPS[name].bandwidth) for name in ("h100", "v5e", "v5p", "v6e")}
BATCH, HEADS, WIDTH = 4, 8, 128
CELLS = ((256, 5), (256, 8), (1024, 5), (1024, 8), (4096, 5), (4096, 8))
TARGETS = ("v5e", "v5p", "v6e")
INTRODUCTION = f"""\
Batch {BATCH}, {HEADS} heads of {WIDTH}, bf16. Pairs: query-key pairs that full causal attention over the same tokens
allows, over those that the anchor mask allows; no kernel gains more than that on flat attention at equal efficiency.
Floor: the larger of least FLOPs and least bytes over the chip's peaks (dense bf16 and memory, from data sheets), in
microseconds: forward / forward and backward. Nothing here was timed.
"""
COMPILED = """\
Compiled by Mosaic, the TPU's own compiler, without the hardware, forward and backward together: MiB of vector memory
that each kernel takes with its default tiles, of the 16 that it may take unasked.
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Counts, and what the compiler says where libtpu is installed."""
    counts = [_count(items, tokens) for items, tokens in CELLS]
    if importlib.util.find_spec("libtpu") is None:
        return {"counts": counts, "cases": [], "vector_memory": [], "train_step": None}
    cases = [_case(target, *cell) for target in TARGETS[: 1 if quick else None] for cell in CELLS[:: 6 if quick else 1]]
    step = None if quick else _lines("mosaic_train_step", [])[0]
    return {"counts": counts, "cases": cases, "vector_memory": _lines("mosaic_tpu", cases), "train_step": step}


def _count(items: int, tokens: int) -> dict[str, Any]:
    sizes = Sizes(items, tokens, HEADS, HEADS, WIDTH, items, 2)
    forward, backward = count.forward_work(BATCH, sizes, Rule()), count.backward_work(BATCH, sizes, Rule())
    both = forward.flops + backward.flops, forward.bytes + backward.bytes
    length = items * tokens
    return {
        "items": items,
        "tokens": tokens,
        "pairs": count.allowed_pairs(items, tokens, items, Rule()),
        "flat_pairs": length * (length + 1) // 2,
        "flops": (forward.flops, both[0]),
        "bytes": (forward.bytes, both[1]),
    }


def _case(target: str, items: int, tokens: int) -> dict[str, Any]:
    sizes = {"batch": BATCH, "items": items, "tokens": tokens, "heads": HEADS, "kv_heads": HEADS, "width": WIDTH}
    return sizes | {"target": target, "anchors": items, "dtype": "bfloat16", "rule": (False, None), "tiles": None}


def _lines(script: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", f"benchmarks.anchor_attention.{script}"]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def markdown(result: Mapping[str, Any]) -> str:
    """Floors by chip, vector memory by kernel, and the pod's train step."""
    parts = [INTRODUCTION, _floors(result["counts"]), COMPILED]
    if not result["cases"]:
        return "\n".join([*parts, "Not compiled: libtpu is not installed.\n"])
    parts.append(_memory(result["cases"], result["vector_memory"]))
    if result["train_step"]:
        parts.append(_step(result["train_step"]))
    return "\n".join(parts)


def _floors(counts: list[Mapping[str, Any]]) -> str:
    rows = []
    for row in counts:
        floors = []
        for flops, moved in PEAKS.values():
            least = (max(f / flops, b / moved) * 1e6 for f, b in zip(row["flops"], row["bytes"], strict=True))
            floors.append(" / ".join(f"{value:,.0f}" for value in least))
        work = [" / ".join(f"{value / 1e9:,.1f}" for value in row[what]) for what in ("flops", "bytes")]
        ratio = f"{row['flat_pairs'] / row['pairs']:.1f}"
        rows.append([f"{row['items']:,} x {row['tokens']}", ratio, *work, *floors])
    return table(("items x tokens", "pairs", "GFLOP", "GB", *(f"{chip}, µs" for chip in PEAKS)), rows)


def _memory(cases: list[Mapping[str, Any]], memory: list[Mapping[str, int]]) -> str:
    kernels = ("forward", "backward_queries", "backward_anchors")
    rows = [
        [case["target"], f"{case['items']:,} x {case['tokens']}", *(f"{of[kernel] / 2**20:.1f}" for kernel in kernels)]
        for case, of in zip(cases, memory, strict=True)
    ]
    return table(("TPU", "items x tokens", "forward", "backward, queries", "backward, anchors"), rows)


def _step(step: Mapping[str, int]) -> str:
    tokens, items = step["tokens"], step["items"]
    return (
        f"HMAT's train step on v5e:16x16 (64 x 4; a row of {items:,} items x {tokens // items} tokens and a head on "
        f"each chip): {step['temporaries'] / 2**20:,.0f} MiB of temporaries a chip; the largest array has "
        f"{step['largest'] / 1e6:,.0f} M elements, where one head's scores would have {tokens * items / 1e6:,.0f} M of "
        f"anchors and {tokens * tokens / 1e6:,.0f} M dense.\n"
    )
