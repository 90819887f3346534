"""Every factorisation of eight devices over the four axes, beside one device: 20 steps of a small HMAT."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.common import table
from hisam_jax.sharding import AXES
from tests.device_fixtures import run_on_devices

STEPS = 20
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def run(quick: bool = False) -> dict[str, Any]:
    """Largest relative difference of the losses of each mesh."""
    sizes = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if s[0] * s[1] * s[2] * s[3] == 8 and s[2] < 8]
    names = [",".join(f"{axis}={n}" for axis, n in zip(AXES, size, strict=True) if n > 1) for size in sizes]
    names = names[:2] if quick else names
    arguments = ("--losses", str(2 if quick else STEPS), "", *names)
    losses = run_on_devices("mesh_fixtures.py", *arguments, flags=QUICKLY)["losses"]
    alone = losses.pop("")
    gaps = {name: max(abs(a - b) / abs(b) for a, b in zip(found, alone, strict=True)) for name, found in losses.items()}
    return {"steps": len(alone), "first": alone[0], "last": alone[-1], "gaps": gaps}


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    rows = [[name, f"{gap:.1e}"] for name, gap in result["gaps"].items()]
    said = (
        f"Loss of {result['steps']} steps with dropout, {result['first']:.3f} to {result['last']:.3f} on one device; "
        "the largest relative difference of any step's. `tensor=8` is left out: the model has four heads.\n\n"
    )
    return said + table(["mesh of 8 devices", "largest relative difference"], rows)
