"""What a compiled step lets a chip use of its peak: the most that a budget in chip-hours can be worth [ours]."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hisam_jax.chips import CHIPS
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """A bound on the use of a chip.

    Attributes:
        device: name of the chip, one of `CHIPS`.
        share: useful operations of a step over those that the bfloat16 peak gives in the step's least time, 0 to 1;
            operations that `remat` repeats are of no use.
        said: what sets the least time, and for which devices the step was compiled.
    """

    device: str
    share: float
    said: str


def ceiling_of(path: str | os.PathLike) -> Ceiling:
    """From a file with what `hisam compile` printed.

    Raises:
        UserError: no such file, or none of a compiled step.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", path=path, field="--compiled") from error
    except ValueError as error:
        raise UserError("no JSON", path=path, field="--compiled", expected="what hisam compile printed") from error
    try:
        return _ceiling(report)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            "no report of a compiled step", path=path, field="--compiled",
            expected="what hisam compile printed, with chip, devices, flops_per_step and floor_seconds",
        ) from error  # fmt: skip


def _ceiling(report: Mapping[str, Any]) -> Ceiling:
    device = next((name for name, chip in CHIPS.items() if chip.name == report["chip"]), None)
    floor, limit = report["floor_seconds"], report["floor_seconds"]["limit"]
    share = report["flops_per_step"]["useful"] / (report["devices"] * CHIPS[device].flops * floor[limit])
    if not 0 < share <= 1:
        raise ValueError(f"share {share}")
    return Ceiling(device, share, f"{limit} of the step compiled for {report['topology']}")
