"""Routes that say why: the reasons for a recommendation, the tree of IDs."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query

from hisam_jax.serving import explain_schemas as schemas
from hisam_jax.serving.errors import Refusal
from hisam_jax.serving.explaining import Because, Why
from hisam_jax.serving.id_tree import below, branch
from hisam_jax.serving.item_routes import Offset, item_out
from hisam_jax.serving.routes import HOUR, Deadline, who
from hisam_jax.serving.routing import PROBLEMS, In

router = APIRouter(responses=PROBLEMS)
EXAMPLES = 4
Prefix = Annotated[str, Query(pattern=r"^([0-9]{1,9}(,[0-9]{1,9})*)?$", max_length=200, description="such as 3,17")]
Children = Annotated[int, Query(ge=1, le=100)]


@router.post("/explain")
async def explain(body: schemas.ExplainIn, service: In, x_deadline: Deadline = HOUR) -> schemas.ExplainOut:
    """Which past items and which codes an item is recommended for: what its score loses without each cached anchor,
    and what its codes, features and id add."""
    start, asked = time.perf_counter(), who(body, service)
    del asked["time"]
    found = await service.explain(Why(body.item, way=body.way, **asked), x_deadline)
    return _reasons(found, 1000 * (time.perf_counter() - start))


@router.get("/ids")
async def ids(service: In, prefix: Prefix = "", limit: Children = 24, offset: Offset = 0) -> schemas.TreeOut:
    """What is below a prefix of semantic IDs: the next codes, how many items each has, and a few of them."""
    release = service.serving().release
    items, codes = release.items, [int(code) for code in prefix.split(",") if code]
    found = below(items, codes, 3 * EXAMPLES)
    if found is None:
        raise Refusal(404, f"no item has an ID that begins with {prefix or 'anything'}")
    whole, children = found
    page = [branch(items, *child, EXAMPLES) for child in children[offset : offset + limit]]

    def shown(rows: list[int]) -> list[schemas.ItemOut]:
        return [item_out(release, row) for row in rows]

    return schemas.TreeOut(
        prefix=codes, levels=len(items.tree.sizes), items=whole.items, examples=shown(whole.examples),
        total=len(children),
        children=[schemas.BranchOut(code=b.code, items=b.items, examples=shown(b.examples)) for b in page],
    )  # fmt: skip


def _reasons(why: Because, milliseconds: float) -> schemas.ExplainOut:
    names, total = why.release.names, sum(abs(drop) for _, drop in why.past) or 1.0
    return schemas.ExplainOut(
        release=why.release.id, how=why.way, known=why.known, item=item_out(why.release, why.row),
        score=why.found.score, milliseconds=milliseconds,
        parts=[schemas.PartOut(name=name, code=_code(name, why.codes), value=x) for name, x in why.found.parts.items()],
        past=[
            schemas.PastOut(item=names.ids[row], title=names.titles[row], drop=drop, share=drop / total)
            for row, drop in why.past
        ],
    )  # fmt: skip


def _code(name: str, codes: list[int]) -> int | None:
    kind, _, level = name.partition(" ")
    return codes[int(level)] if kind == "code" else None
