"""The text of a compiled program: its computations, and how often each runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*?)\s([a-z][a-z\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\([^=]*\))?.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
                     r"(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip


def kind_of(line: str) -> str | None:
    """What an instruction is, an asynchronous start as the whole; None for a line that is no instruction."""
    found = INSTRUCTION.match(line)
    return found and found[3].removesuffix("-start")


def computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the entry."""
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


def times(bodies: Mapping[str, list[str]], entry: str, kinds: Collection[str]) -> dict[str, int]:
    """How often each computation that holds instructions of `kinds` runs in one call of the entry.

    Raises:
        ValueError: a loop around such an instruction whose trip count the text does not tell.
    """
    calls = {name: [call for line in lines for call in _calls(line, bodies)] for name, lines in bodies.items()}
    has: dict[str, bool] = {}

    def holds(name: str) -> bool:
        if name not in has:
            has[name] = False
            own = any(kind_of(line) in kinds for line in bodies.get(name, ()))
            has[name] = own or any([holds(called) for called, _, _ in calls.get(name, ())])
        return has[name]

    found: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        found[name] += count
        for called, trips, line in calls.get(name, ()):
            if not holds(called):
                continue
            if trips is None:
                raise ValueError(f"a loop with {'/'.join(kinds)} whose trip count is unknown: {line.strip()[:200]}")
            visit(called, count * trips)

    visit(entry, 1)
    return found


def _calls(line: str, bodies: Mapping[str, list[str]]) -> list[tuple[str, int | None, str]]:
    found = INSTRUCTION.match(line)
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
