"""Routes about items: a page of them, one, its picture; those that come and go."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from hisam_jax.serving import schemas
from hisam_jax.serving.catalogue import Added
from hisam_jax.serving.errors import Refusal
from hisam_jax.serving.release import Release
from hisam_jax.serving.routing import PROBLEMS, In

router = APIRouter(responses=PROBLEMS)
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]


@router.get("/items")
async def items(service: In, text: str = "", limit: Limit = 40, offset: Offset = 0) -> schemas.ItemsOut:
    """Items whose title or id holds a text, the most popular first, those that came later before all others."""
    release = service.serving().release
    rows = _found(release, text.casefold())
    return schemas.ItemsOut(total=len(rows), items=[item_out(release, row) for row in rows[offset : offset + limit]])


@router.get("/items/{item}")
async def item(item: str, service: In) -> schemas.ItemOut:
    """One item."""
    release = service.serving().release
    return item_out(release, _row(release, item))


@router.get("/items/{item}/picture", responses={200: {"content": {"image/jpeg": {}}}}, response_class=Response)
async def picture(item: str, service: In) -> Response:
    """A small JPEG of an item."""
    release = service.serving().release
    jpeg = release.stock.picture(_row(release, item))
    if jpeg is None:
        raise Refusal(404, f"no picture of item {item!r}")
    return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


@router.post("/items", status_code=201)
async def add_item(body: schemas.ItemIn, service: In) -> schemas.ItemOut:
    """Gives a new item an ID by the frozen tokenizer; no other ID moves, and it is recommendable at once.

    Features that are not given are made of its words and its picture by the encoders that the dataset was prepared
    with."""
    release = service.serving().release
    if not body.told and body.item not in release.names.row:
        needs = "title, text, categories, picture, features or like"
        raise Refusal(404, f"no item {body.item!r} to have back; a new one needs {needs}")
    item = Added(body.item, body.title, tuple(body.categories), body.features, text=body.text)
    await service.add_item(item, body.like, body.picture)
    return item_out(release, release.names.row[body.item])


@router.delete("/items/{item}", status_code=204)
async def remove_item(item: str, service: In) -> None:
    """No longer recommends an item; users' histories with it stay as they are."""
    await service.remove_item(item)


def _row(release: Release, item: str) -> int:
    if not release.serves(item):
        raise Refusal(404, f"no item {item!r} in this release")
    return release.names.row[item]


def item_out(release: Release, row: int) -> schemas.ItemOut:
    """What is shown of an item."""
    names = release.names
    return schemas.ItemOut(
        item=names.ids[row], title=names.titles[row], 
        picture=release.stock.picture(row) is not None, codes=release.stock.codes(row),
    )  # fmt: skip


def _found(release: Release, text: str) -> list[int]:
    names, popular, stock = release.names, release.popular, release.stock
    order = (row for row in (*range(len(names.ids) - 1, len(popular) - 1, -1), *popular) if stock.servable(row))
    return [row for row in order if text in names.titles[row].casefold() or text in names.ids[row].casefold()]
