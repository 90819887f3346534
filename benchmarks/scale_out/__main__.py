"""Scale-out: meshes beside one device, steps compiled for pods and GPU boxes, input and utilisation on this machine.

    python -m benchmarks.scale_out [--only PART ...] [--quick]

Rewrites benchmarks/results/scale_out.md and scale_out.json. Parts that are not asked for keep their figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.parts import Page

QUESTIONS = {
    "meshes": "Does a mesh change what is computed?",
    "sizes": "Do the shipped sizes fit their targets, and what limits them?",
    "weak_scaling": "What does a step cost as chips and rows grow together?",
    "input": "Does a step wait for its input?",
    "utilisation": "How much of the machine's matrix rate does a step use?",
    "balance": "How even are shards of histories whose lengths follow Zipf's law?",
}
PAGE = Page("scale_out", "Scale-out", QUESTIONS, ("jaxlib", "numpy", "grain"))


def main() -> None:
    """Runs what was asked for and rewrites the results after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(QUESTIONS)
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="which parts")
    parser.add_argument("--work", type=Path, default=Path("runs/scale_out"), help="scratch folder")
    parser.add_argument("--quick", action="store_true", help="tiny settings, results under --work: does it run?")
    arguments = parser.parse_args()
    results = arguments.work / "quick" if arguments.quick else RESULTS
    for name in [part for part in parts if part in arguments.only]:
        options = {"work": arguments.work / name, "quick": arguments.quick, "results": results}
        PAGE.write(results, name, PAGE.record(name, options))


if __name__ == "__main__":
    main()
