"""PyTorch's FlexAttention under the anchor mask, where torch is installed; compiled, as it is meant to be run."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import time
from typing import Any

import numpy as np


def why_not() -> str | None:
    """Why it is not measured, None where it is."""
    if importlib.util.find_spec("torch") is None:
        return "not measured, torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "not measured, torch sees no GPU"
    return None


def seconds(x: tuple, name: str, rounds: int) -> dict[str, float]:
    """`{"FlexAttention": median seconds}` of one pass, empty where it cannot be measured.

    Args:
        x: queries, keys and values `[B, N, T, H, D]`.
        name: `forward`, or `forward and backward`.
        rounds: of the median, after one that compiles.
    """
    if why_not():
        return {}
    import torch

    backward = name != "forward"
    tokens = x[0].shape[2]
    q, k, v = (_tensor(part, backward) for part in x)
    attention = _compiled(x[0].shape[1] * tokens, tokens)

    def once() -> None:
        out = attention(q, k, v)
        if backward:
            torch.autograd.grad(out.float().sum(), (q, k, v))
        torch.cuda.synchronize()

    spent = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        once()
        spent.append(time.perf_counter() - started)
    return {"FlexAttention": statistics.median(spent[1:])}


def _tensor(x: Any, gradient: bool):
    import torch

    flat = np.asarray(x.astype("float32")).reshape(x.shape[0], -1, *x.shape[3:]).transpose(0, 2, 1, 3)
    dtype = torch.bfloat16 if str(x.dtype) == "bfloat16" else torch.float32
    return torch.tensor(np.ascontiguousarray(flat), dtype=dtype, device="cuda", requires_grad=gradient)


@functools.cache
def _compiled(length: int, tokens: int):
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def allowed(b, h, i, j):
        earlier = (j % tokens == tokens - 1) & (j // tokens < i // tokens)
        return ((i // tokens == j // tokens) & (j <= i)) | earlier

    mask = create_block_mask(allowed, None, None, length, length, device="cuda")
    return functools.partial(torch.compile(flex_attention), block_mask=mask)
