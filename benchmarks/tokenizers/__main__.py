"""What each tokenizer's codes tell, and what that is worth; collapse, speed and memory.

    python -m benchmarks.tokenizers [--data DIR] [--work DIR] [--only PART ...] [--seeds N] [--quick]

Rewrites benchmarks/results/tokenizers.md and tokenizers.json. Parts that are not asked for again keep their figures; a
part that was killed goes on from the cells that it had finished under --work. Cells are known by their settings: after
a change of the code, give another --work.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.parts import Page

QUESTIONS = {
    "planted": "Planted truth: does each code tell what it should, and nothing else?",
    "real": "Real data: what do the codes tell, and what does one model make of them?",
    "mi": "Mutual information: what does its weight buy, and what does it cost downstream?",
    "collapse": "No collapse: is every level in use, whatever the seed?",
    "kmeans": "k-means: how fast is it beside faiss?",
    "ids": "IDs for a million items: how fast, in how much memory?",
    "mining": "QARM's pairs of items: how long does it take to mine them?",
    "training": "Training DST: how far is it from its matrix products alone?",
}
PAGE = Page("tokenizers", "Tokenizers", QUESTIONS, ("numpy", "scikit-learn"), ("real", "mi", "collapse", "mining"))


def main() -> None:
    """Runs what was asked for and rewrites the results after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given, parts = os.environ.get("HISAM_DATA"), list(QUESTIONS)
    parser.add_argument("--data", type=Path, default=given, help=f"public data sets, for {', '.join(PAGE.need_data)}")
    parser.add_argument("--work", type=Path, default=Path("runs/tokenizers"), help="scratch folder, reused")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="which parts")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each cell of `real`")
    parser.add_argument("--quick", action="store_true", help="tiny settings, results under --work: does it run?")
    arguments = parser.parse_args()
    results = arguments.work / "quick" if arguments.quick else RESULTS
    work = arguments.work / "quick" if arguments.quick else arguments.work
    for name in [part for part in parts if part in arguments.only]:
        if arguments.data is None and name in PAGE.need_data:
            print(f"{name}: left out, as it needs --data or $HISAM_DATA", file=sys.stderr)
            continue
        options = {"work": work / name, "data": arguments.data, "datasets": arguments.work / "datasets"}
        options |= {"quick": arguments.quick, "seeds": arguments.seeds}
        PAGE.write(results, name, PAGE.record(name, options))


if __name__ == "__main__":
    main()
