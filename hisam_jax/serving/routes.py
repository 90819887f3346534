"""The routes: each checks its limits, calls the service, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from hisam_jax.serving import schemas
from hisam_jax.serving.answers import Answer, Ask
from hisam_jax.serving.catalogue import Added
from hisam_jax.serving.errors import Refusal
from hisam_jax.serving.release import Release
from hisam_jax.serving.service import Service
from hisam_jax.serving.store import Event

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in {
        401: "No token, or another one",
        404: "Not there",
        409: "Not possible now",
        413: "A body past its limit",
        422: "Not understood, or past a limit",
        503: "Busy or not ready; Retry-After says for how long",
    }.items()
}
PAGE = Path(__file__).with_name("page.html")
router = APIRouter(responses=PROBLEMS)


def _service(request: Request) -> Service:
    return request.app.state.service


In = Annotated[Service, Depends(_service)]
Name = Annotated[str, "an id in a path"]
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
Deadline = Annotated[float | None, Header(gt=0, description="seconds after which an answer is of no use")]


@router.post("/users/{user}/events", status_code=201)
async def add_events(user: Name, body: schemas.EventsIn, service: In) -> schemas.EventsOut:
    """Keeps what a user did. Once it answers, nothing of it is lost."""
    _within("events", len(body.events), service.limits.history)
    count = await service.add_events(user, _events(body.events, int(time.time())))
    return schemas.EventsOut(user=user, events=count)


@router.get("/users/{user}")
async def user(user: Name, service: In) -> schemas.UserOut:
    """What is kept of a user."""
    count, latest = await service.user(user)
    return schemas.UserOut(user=user, events=count, latest=latest)


@router.post("/recommend")
async def recommend(
    body: schemas.RecommendIn, service: In, x_deadline: Deadline = None
) -> schemas.AnswerOut:  # fmt: skip
    """The best items for a user or a history, seen ones left out; the most popular for a user of whom nothing is
    known."""
    _within("k", body.k, service.limits.k)
    _within("hide", len(body.hide), service.limits.history)
    more = {"oldest": body.added_since, "any_of": tuple(body.categories)}
    ask = Ask(**_who(body, service), k=body.k, way=body.way, hide=tuple(body.hide), repeat=body.repeat, **more)
    return await _answered(service, ask, x_deadline)


@router.post("/rank")
async def rank(body: schemas.RankIn, service: In, x_deadline: Deadline = None) -> schemas.AnswerOut:
    """Scores of candidates, which never see each other, in their order."""
    _within("candidates", len(body.candidates), service.limits.candidates)
    ask = Ask(**_who(body, service), candidates=tuple(body.candidates), by=body.by)
    return await _answered(service, ask, x_deadline)


@router.get("/items")
async def items(service: In, text: str = "", limit: Limit = 40, offset: Offset = 0) -> schemas.ItemsOut:
    """Items whose title or id holds a text, the most popular first, those that came later before all others."""
    release = service.serving().release
    rows = _found(release, text.casefold())
    return schemas.ItemsOut(total=len(rows), items=[_item(release, row) for row in rows[offset : offset + limit]])


@router.get("/items/{item}")
async def item(item: Name, service: In) -> schemas.ItemOut:
    """One item."""
    release = service.serving().release
    return _item(release, _row(release, item))


@router.get("/items/{item}/picture", responses={200: {"content": {"image/jpeg": {}}}}, response_class=Response)
async def picture(item: Name, service: In) -> Response:
    """A small JPEG of an item."""
    release = service.serving().release
    jpeg = release.picture(_row(release, item))
    if jpeg is None:
        raise Refusal(404, f"no picture of item {item!r}")
    return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


@router.post("/items", status_code=201)
async def add_item(body: schemas.ItemIn, service: In) -> schemas.ItemOut:
    """Gives a new item an ID by the frozen tokenizer; no other ID moves, and it is recommendable at once."""
    if body.features and body.like:
        raise Refusal(422, "both features and like; expected one of them")
    release = service.serving().release
    if not body.features and not body.like and body.item not in release.names.row:
        raise Refusal(422, "neither features nor like; expected one of them for a new item")
    item = Added(body.item, body.title, tuple(body.categories), body.features)
    await service.add_item(item, body.like)
    return _item(release, release.names.row[body.item])


@router.delete("/items/{item}", status_code=204)
async def remove_item(item: Name, service: In) -> None:
    """No longer recommends an item; users' histories with it stay as they are."""
    await service.remove_item(item)


@router.get("/releases")
async def releases(service: In) -> schemas.ReleasesOut:
    """What serves now, and what a rollback goes to."""
    now, before = service.serving(), service.before
    return schemas.ReleasesOut(now=now.release.about(), before=before and before.release.about())


@router.post("/releases")
async def change_release(body: schemas.ReleaseIn, service: In) -> schemas.ReleaseOut:
    """Loads another run and serves it once it is compiled, or goes back; the present one serves until then."""
    release = await (service.roll_back() if body.roll_back else service.load(body.workdir, body.expect))
    return schemas.ReleaseOut(**release.about())


@router.get("/health")
async def health(service: In) -> schemas.HealthOut:
    """Answers as long as the process lives."""
    there, now = await service.store_alive(), service.now
    status = "starting" if now is None else "ok" if there else "degraded"
    return schemas.HealthOut(status=status, store=there, release=now and now.release.id)


@router.get("/ready")
async def ready(service: In) -> schemas.HealthOut:
    """503 until everything is compiled."""
    service.serving()
    return await health(service)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: In) -> PlainTextResponse:
    """For Prometheus."""
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """A page to try it."""
    return HTMLResponse(PAGE.read_text())


async def _answered(service: Service, ask: Ask, deadline: float | None) -> schemas.AnswerOut:
    start = time.perf_counter()
    found: Answer = await service.ask(ask, deadline)
    items = [schemas.Scored(item=item, title=title, score=score) for item, title, score in found.items]
    return schemas.AnswerOut(
        release=found.release, how=found.how, known=found.known, degraded=found.degraded,
        milliseconds=1000 * (time.perf_counter() - start), items=items,
    )  # fmt: skip


def _who(body: schemas.Who, service: Service) -> dict[str, Any]:
    if body.history is None:
        return {"user": body.user, "time": body.time}
    _within("history", len(body.history), service.limits.history)
    row = service.serving().release.names.row
    unknown = next((event.item for event in body.history if event.item not in row), None)
    if unknown is not None:
        raise Refusal(422, f"history: no item {unknown!r} in this release")
    return {"history": tuple(_events(body.history, 0)), "time": body.time}


def _events(events: Sequence[schemas.EventIn], now: int) -> list[Event]:
    return [Event(e.item, _action(e.rating), now if e.time is None else e.time) for e in events]


def _action(rating: float | None) -> int:
    return 0 if rating is None else int(np.clip(np.rint(2 * rating), 1, 10))


def _within(name: str, value: int, most: int) -> None:
    if value > most:
        raise Refusal(422, f"{name}: {value}; expected at most {most}")


def _row(release: Release, item: str) -> int:
    if item not in release.names.row:
        raise Refusal(404, f"no item {item!r} in this release")
    return release.names.row[item]


def _item(release: Release, row: int) -> schemas.ItemOut:
    names = release.names
    return schemas.ItemOut(
        item=names.ids[row], title=names.titles[row], served=release.servable(row),
        picture=release.picture(row) is not None, codes=release.codes(row),
    )  # fmt: skip


def _found(release: Release, text: str) -> list[int]:
    names, popular = release.names, release.popular
    order = [*range(len(names.ids) - 1, len(popular) - 1, -1), *popular]
    if not text:
        return order
    return [row for row in order if text in names.titles[row].casefold() or text in names.ids[row].casefold()]
