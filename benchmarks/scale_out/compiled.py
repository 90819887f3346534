"""`hisam compile` in a process of its own, as its parts need it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

MAIN = "import sys; from hisam_jax.cli import main; sys.exit(main())"


def compiled(config: str, topology: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The verb's report; a refusal is `{"error": its line}`."""
    arguments = ["compile", "--config", f"configs/{config}.py", "--topology", topology, *overrides]
    done = subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    return json.loads(done.stdout)


def row(report: dict[str, Any]) -> list[str]:
    """Mesh, GiB of state, of temporaries and in all, operations, bytes sent, floor and what sets it."""
    if "error" in report:
        return [report["error"], *["–"] * 7]
    memory, floor, sent = (report[name] for name in ("bytes_per_device", "floor_seconds", "collective_bytes_per_step"))
    state = memory["parameters"] + memory["optimizer"] + memory["catalogue"]
    return [
        ", ".join(f"{name} {size}" for name, size in report["mesh"].items() if size > 1) or "one device",
        f"{state / 2**30:.2f}",
        f"{memory['temporaries'] / 2**30:.2f}",
        f"{memory['total'] / 2**30:.2f} of {memory['capacity'] / 2**30:.0f}",
        f"{report['flops_per_step']['useful'] / report['devices'] / 1e12:.2f}",
        f"{sent['total'] / 2**20:.0f}" if sent else "–",
        f"{1e3 * floor[floor['limit']]:.1f} ({floor['limit']})",
        "yes" if report["fits"] else f"no; {report.get('would_fit') or 'nothing tried would'}",
    ]


HEADINGS = ["mesh", "state GiB", "temporaries GiB", "in all GiB", "useful TFLOP", "sent MiB", "floor ms", "fits"]
NOTE = """\
All figures are of one device and one step, from the compiled program; nothing was run. State: parameters, optimizer and
the catalogue's tables. Useful: three times the forward products, nothing computed twice; the floor counts what `remat`
computes again. Sent: what a ring would send, loops counted as often as they run. Floor: the largest of arithmetic at
the chip's bf16 peak, state read and written once, and bytes sent over its links; they may overlap.
"""
