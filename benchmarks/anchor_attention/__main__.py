"""Anchor attention: time, memory and achieved rates beside its rivals, inside a train step, and as compiled for others.

    python -m benchmarks.anchor_attention [--only PART ...] [--quick]

Rewrites benchmarks/results/anchor_attention.md and anchor_attention.json. Parts that are not asked for keep their
figures; `kernels` keeps one table for each device that it ran on.
"""

from __future__ import annotations

from benchmarks.parts import Page

QUESTIONS = {
    "kernels": "How fast is it, beside what else would do?",
    "train_step": "A whole train step: HMAT beside the flat baseline of the same width and depth",
    "shipped_steps": "A train step as shipped configs have it: HMAT beside the flat baseline",
    "rope": "Rotary positions: what do they cost outside the kernel?",
    "compiled": "Compiled for hardware that was not at hand: what must it compute and move?",
}
PAGE = Page("anchor_attention", "Anchor attention", QUESTIONS, ("jaxlib", "numpy"))


if __name__ == "__main__":
    PAGE.main(__doc__)
