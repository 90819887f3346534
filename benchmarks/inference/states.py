"""A user's state in float32, bf16 and int8: bytes, and what the form changes in the lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.inference.models import history, made
from hisam_jax.inference.engine import EngineConfig, Wanted
from hisam_jax.inference.user_state import UserState

CATALOG, ITEMS, USERS, TOP = 20_000, 300, 32, 10


def run(quick: bool = False) -> dict[str, Any]:
    """Bytes and overlap of the ranked and generated lists with those of float32 states."""
    users = 2 if quick else USERS
    config = EngineConfig(rows=(users,), lengths=(ITEMS,), candidates=(1000,), k=TOP, beams=50, sharing=1)
    engine, items = made("HMAT", CATALOG, config)
    states = engine.read(items, [history(CATALOG, ITEMS, seed) for seed in range(users)])
    candidates = [np.random.default_rng(seed).integers(0, CATALOG, 1000) for seed in range(users)]
    rows = []
    for form in ("float32", "bfloat16", "int8"):
        data = [state.packed("r", form) for state in states]
        back = [_as_float(UserState.unpacked(part, "r")) for part in data]
        scores = engine.rank(items, back, candidates, "ranking")
        lists = engine.recommend(items, back, [Wanted(np.zeros(0, np.int32))] * users, TOP, "generation")
        rows.append({"form": form, "bytes": len(data[0]), "scores": scores, "lists": [item for item, _ in lists]})
    exact = rows[0]
    return {"seeds": [0], "rows": [_compared(row, exact) for row in rows]}


def _as_float(state: UserState) -> UserState:
    return UserState(state.k.astype(np.float32), state.v.astype(np.float32), state.read, state.items, state.kept)


def _compared(row: Mapping[str, Any], exact: Mapping[str, Any]) -> dict[str, Any]:
    pairs = list(zip(row["scores"], exact["scores"], strict=True))
    spread = float(np.mean([wanted.std() for _, wanted in pairs]))
    same = [len(set(a) & set(b)) / TOP for a, b in zip(row["lists"], exact["lists"], strict=True)]
    return {
        "form": row["form"],
        "bytes": row["bytes"],
        "off": float(np.sqrt(np.mean([np.square(a - b).mean() for a, b in pairs]))) / spread,
        "overlap": float(np.mean(same)),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """One row a form."""
    rows = [
        [row["form"], f"{row['bytes'] / 1024:,.0f}", f"{row['off']:.2%}", f"{row['overlap']:.1%}"]
        for row in result["rows"]
    ]
    said = f"HMAT as in the latency table, {ITEMS} items; random parameters.\n\n"
    heads = ("keys and values", "KiB a user", "click logits off, of their spread", f"generated top {TOP} in common")
    return said + table(heads, rows)
