"""Bytes that a compiled program sends between devices, by kind, loops counted as often as they run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping

from hisam_jax.compilation.hlo import INSTRUCTION, SHAPE, computations, times

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device sends in one call of a program.

    Attributes:
        bytes: by kind, as a ring would send them.
        calls: by kind.
        largest: bytes of the largest single result, by kind.
    """

    bytes: Mapping[str, int]
    calls: Mapping[str, int]
    largest: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self.bytes.values())


def traffic(hlo: str) -> Traffic:
    """Reads a compiled module's text, as `compiled.as_text()` gives it.

    A ring over n devices sends (n - 1)/n of a gathered result or a scattered operand, twice that of an all-reduce.

    Raises:
        ValueError: a loop around a collective whose trip count the text does not tell.
    """
    bodies, entry = computations(hlo)
    runs = times(bodies, entry, KINDS)
    devices = int((re.search(r"num_partitions=(\d+)", hlo) or [0, 1])[1])
    sent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    largest: dict[str, int] = defaultdict(int)
    for name, lines in bodies.items():
        for line in lines:
            found = INSTRUCTION.match(line)
            kind = found and found[3].removesuffix("-start")
            if kind not in KINDS or not runs[name]:
                continue
            result, group = _result_bytes(found[2], found[3]), _group_size(line, devices)
            sent[kind] += runs[name] * _ring(kind, result, group)
            calls[kind] += runs[name]
            largest[kind] = max(largest[kind], result)
    return Traffic({kind: round(value) for kind, value in sent.items()}, dict(calls), dict(largest))


def _ring(kind: str, result: int, group: int) -> float:
    if kind == "collective-permute":
        return result
    share = (group - 1) / max(group, 1)
    return {"all-reduce": 2 * share * result, "reduce-scatter": share * group * result}.get(kind, share * result)


def _result_bytes(shapes: str, kind: str) -> int:
    """Bytes of a result; an asynchronous start returns its operands, then its results."""
    sizes = []
    for dtype, dims in SHAPE.findall(shapes):
        count = 1
        for size in filter(None, dims.split(",")):
            count *= int(size)
        sizes.append(count * _BYTES.get(dtype, 4))
    if kind.endswith("-start") and len(sizes) > 1 and kind != "all-reduce-start":
        half = sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :])
        return min(half) if kind == "reduce-scatter-start" else max(half)
    return sum(sizes)


def _group_size(line: str, devices: int) -> int:
    """Devices that take part together, in each of the ways that XLA writes them."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", line)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(listed[1].split(",")) if listed and listed[1] else devices
