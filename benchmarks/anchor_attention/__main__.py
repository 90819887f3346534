"""Anchor attention: time, memory and achieved rates beside its rivals, inside a train step, and as compiled for others.

    python -m benchmarks.anchor_attention [--only PART ...] [--quick]

Rewrites benchmarks/results/anchor_attention.md and anchor_attention.json. Parts that are not asked for keep their
figures; `kernels` keeps one table for each device that it ran on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.parts import Page

QUESTIONS = {
    "kernels": "How fast is it, beside what else would do?",
    "train_step": "A whole train step: HMAT beside the flat baseline of the same width and depth",
    "rope": "Rotary positions: what do they cost outside the kernel?",
    "compiled": "Compiled for hardware that was not at hand: what must it compute and move?",
}
PAGE = Page("anchor_attention", "Anchor attention", QUESTIONS, ("jaxlib", "numpy"))


def main() -> None:
    """Runs what was asked for and rewrites the results after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(QUESTIONS)
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="which parts")
    parser.add_argument("--work", type=Path, default=Path("runs/anchor_attention"), help="scratch folder")
    parser.add_argument("--quick", action="store_true", help="tiny settings, results under --work: does it run?")
    arguments = parser.parse_args()
    results = arguments.work / "quick" if arguments.quick else RESULTS
    for name in [part for part in parts if part in arguments.only]:
        options = {"work": arguments.work / name, "quick": arguments.quick, "results": results}
        PAGE.write(results, name, PAGE.record(name, options))


if __name__ == "__main__":
    main()
