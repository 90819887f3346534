"""Scale-out: meshes beside one device, steps compiled for pods and GPU boxes, input and utilisation on this machine.

    python -m benchmarks.scale_out [--only PART ...] [--quick]

Rewrites benchmarks/results/scale_out.md and scale_out.json. Parts that are not asked for keep their figures.
"""

from __future__ import annotations

from benchmarks.parts import Page

QUESTIONS = {
    "meshes": "Does a mesh change what is computed?",
    "kills": "Does a run that is killed end as one that never was?",
    "sizes": "Do the shipped sizes fit their targets, and what limits them?",
    "weak_scaling": "What does a step cost as chips and rows grow together?",
    "input": "Does a step wait for its input?",
    "utilisation": "How much of the machine's matrix rate does a step use?",
    "balance": "How even are shards of histories whose lengths follow Zipf's law?",
}
PAGE = Page("scale_out", "Scale-out", QUESTIONS, ("jaxlib", "numpy", "grain"))


if __name__ == "__main__":
    PAGE.main(__doc__)
