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
        said: what sets the least time, for which devices the step was compiled, and what the compiler did not tell.
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
        report = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", path=path, field="--compiled") from error
    except (ValueError, RecursionError) as error:
        raise UserError("no JSON", path=path, field="--compiled", expected="what hisam compile printed") from error
    try:
        found, fits = _ceiling(report), report["fits"]
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            "no report of a compiled step", path=path, field="--compiled",
            expected="what hisam compile printed, with chip, devices, flops_per_step and floor_seconds",
        ) from error  # fmt: skip
    if not fits:
        expected = "one of a step that fits its devices"
        raise UserError(
            f"a step that does not fit {report['topology']}", path=path, field="--compiled", expected=expected
        )
    return found


def _ceiling(report: Mapping[str, Any]) -> Ceiling:
    device = next((name for name, chip in CHIPS.items() if chip.name == report["chip"]), None)
    floor, limit = report["floor_seconds"], report["floor_seconds"]["limit"]
    share = report["flops_per_step"]["useful"] / (report["devices"] * CHIPS[device].flops * floor[limit])
    if not 0 < share < 1 + 1e-6:  # where arithmetic limits it is 1, to rounding
        raise ValueError(f"share {share}")
    unknown = "" if "links" in floor else ", links unknown"
    return Ceiling(device, min(1.0, share), f"{limit} of the step compiled for {report['topology']}{unknown}")
