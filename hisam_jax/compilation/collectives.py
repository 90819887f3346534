"""Bytes that a compiled program sends between devices, by kind, loops counted as often as they run."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\([^=]*\))?.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*?)\s([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
                     r"(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip


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
    bodies, entry = _computations(hlo)
    times = _times(bodies, entry)
    devices = int((re.search(r"num_partitions=(\d+)", hlo) or [0, 1])[1])
    sent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    largest: dict[str, int] = defaultdict(int)
    for name, lines in bodies.items():
        for line in lines:
            found = _INSTRUCTION.match(line)
            kind = found and found[3].removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            result, group = _result_bytes(found[2], found[3]), _group_size(line, devices)
            sent[kind] += times[name] * _ring(kind, result, group)
            calls[kind] += times[name]
            largest[kind] = max(largest[kind], result)
    return Traffic({kind: round(value) for kind, value in sent.items()}, dict(calls), dict(largest))


def _ring(kind: str, result: int, group: int) -> float:
    if kind == "collective-permute":
        return result
    share = (group - 1) / max(group, 1)
    return {"all-reduce": 2 * share * result, "reduce-scatter": share * group * result}.get(kind, share * result)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in hlo.splitlines():
        if not line.startswith((" ", "\t", "}")) and line.rstrip().endswith("{") and not line.startswith("HloModule"):
            head = _COMPUTATION.match(line)
            name = head[2] if head else ""
            bodies[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _times(bodies: Mapping[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one call of the entry."""
    calls = {name: [call for line in lines for call in _calls(line, bodies)] for name, lines in bodies.items()}
    has = {}

    def communicates(name: str) -> bool:
        if name not in has:
            has[name] = False
            own = any((found := _INSTRUCTION.match(line)) and found[3].removesuffix("-start") in KINDS
                      for line in bodies.get(name, ()))  # fmt: skip
            has[name] = own or any([communicates(called) for called, _, _ in calls.get(name, ())])
        return has[name]

    times: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for called, trips, line in calls.get(name, ()):
            if not communicates(called):
                continue
            if trips is None:
                raise ValueError(f"a loop with collectives whose trip count is unknown: {line.strip()[:200]}")
            visit(called, count * trips)

    visit(entry, 1)
    return times


def _calls(line: str, bodies: Mapping[str, list[str]]) -> list[tuple[str, int | None, str]]:
    found = _INSTRUCTION.match(line)
    if not found:
        return []
    trips: int | None = 1
    if found[3] == "while":
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
        trips = int(known[1]) if known else _bound(bodies, line)
    names = [each for group in _CALLED.findall(line) for each in re.findall(r"[\w.\-]+", group)]
    return [(name, trips, line) for name in names]


def _bound(bodies: Mapping[str, list[str]], line: str) -> int | None:
    """Trips of a loop that counts from 0 up to a constant, as scans do: its condition's only constant."""
    named = re.search(r"condition=%?([\w.\-]+)", line)
    lines = bodies.get(named[1], []) if named else []
    constants = [found[1] for each in lines if (found := re.search(r"= s32\[\][^=]*constant\((\d+)\)", each))]
    below = any("compare(" in each and "direction=LT" in each for each in lines)
    return int(constants[0]) if below and len(constants) == 1 else None


def _result_bytes(shapes: str, kind: str) -> int:
    """Bytes of a result; an asynchronous start returns its operands, then its results."""
    sizes = []
    for dtype, dims in _SHAPE.findall(shapes):
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
