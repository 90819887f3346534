"""Inference: cached anchors beside a flat model's full cache, masks and beams over a million items.

    python -m benchmarks.inference [--only PART ...] [--quick]

Rewrites benchmarks/results/inference.md and inference.json. Parts that are not asked for keep their figures.
"""

from __future__ import annotations

from benchmarks.parts import Page

QUESTIONS = {
    "latency": "What do cached anchors save?",
    "recall": "What do HMAT and the flat model find, cached and not?",
    "masking": "What do the trie and filters cost a decoding step?",
    "beams": "What do beams lose to exact scoring of every item?",
    "ways": "What does each way of recommending find?",
    "invalid": "Is every served item one that exists and was asked for?",
    "load": "How many requests does the service sustain?",
    "parity": "Does the service answer what was evaluated?",
    "states": "How small may a user's state be kept?",
}
PAGE = Page("inference", "Inference", QUESTIONS, ("jaxlib", "numpy"))


if __name__ == "__main__":
    PAGE.main(__doc__)
