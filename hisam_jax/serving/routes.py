"""Routes about users: each checks its limits, calls the service, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header

from hisam_jax.files import sha256_of
from hisam_jax.serving import schemas
from hisam_jax.serving.answers import Answer, Ask
from hisam_jax.serving.errors import Refusal, unknown_item
from hisam_jax.serving.routing import PROBLEMS, In
from hisam_jax.serving.service import Service
from hisam_jax.serving.store import Event

router = APIRouter(responses=PROBLEMS)
Deadline = Annotated[
    float, Header(ge=0.01, description="seconds after which an answer is of no use; the service has a bound of its own")
]
Key = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="of the request, chosen by whoever sends it: the same again of this user is answered the same and "
        "adds nothing; remembered for a day, the latest 100,000 of all users",
    ),
]
HOUR = 3600.0


@router.post("/users/{user}/events", status_code=201)
async def add_events(
    user: str, body: schemas.EventsIn, service: In, idempotency_key: Key = None
) -> schemas.EventsOut:  # fmt: skip
    """Keeps what a user did. Once it answers, nothing of it is lost; without an answer, send it again with its key."""
    _within("events", len(body.events), service.limits.history)
    content = sha256_of(body.model_dump_json()) if idempotency_key else ""
    count = await service.add_events(user, _events(body.events, int(time.time())), idempotency_key, content)
    return schemas.EventsOut(user=user, events=count)


@router.get("/users/{user}")
async def user(user: str, service: In) -> schemas.UserOut:
    """What is kept of a user."""
    count, latest = await service.user(user)
    return schemas.UserOut(user=user, events=count, latest=latest)


@router.post("/recommend")
async def recommend(
    body: schemas.RecommendIn, service: In, x_deadline: Deadline = HOUR
) -> schemas.AnswerOut:  # fmt: skip
    """The best items for a user or a history, seen ones left out; the most popular for a user of whom nothing is
    known."""
    _within("k", body.k, service.limits.k)
    _within("hide", len(body.hide), service.limits.history)
    more = {"oldest": body.added_since, "any_of": tuple(body.categories)}
    ask = Ask(**who(body, service), k=body.k, way=body.way, hide=tuple(body.hide), repeat=body.repeat, **more)
    return await _answered(service, ask, x_deadline)


@router.post("/rank")
async def rank(body: schemas.RankIn, service: In, x_deadline: Deadline = HOUR) -> schemas.AnswerOut:
    """Scores of candidates, which never see each other, in their order."""
    _within("candidates", len(body.candidates), service.limits.candidates)
    ask = Ask(**who(body, service), candidates=tuple(body.candidates), by=body.by)
    return await _answered(service, ask, x_deadline)


async def _answered(service: Service, ask: Ask, deadline: float) -> schemas.AnswerOut:
    start = time.perf_counter()
    found: Answer = await service.ask(ask, deadline)
    items = [schemas.Scored(item=item, title=title, score=score) for item, title, score in found.items]
    return schemas.AnswerOut(
        release=found.release, how=found.how, known=found.known, degraded=found.degraded,
        milliseconds=1000 * (time.perf_counter() - start), items=items,
    )  # fmt: skip


def who(body: schemas.Who, service: Service) -> dict[str, Any]:
    """Whom a request is about, as `Ask` takes it."""
    if body.history is None:
        return {"user": body.user, "time": body.time}
    _within("history", len(body.history), service.limits.history)
    row = service.serving().release.names.row
    unknown = next((event.item for event in body.history if event.item not in row), None)
    if unknown is not None:
        raise unknown_item(unknown)
    return {"history": tuple(_events(body.history, 0)), "time": body.time}


def _events(events: Sequence[schemas.EventIn], now: int) -> list[Event]:
    return [Event(e.item, _action(e.rating), now if e.time is None else e.time) for e in events]


def _action(rating: float | None) -> int:
    return 0 if rating is None else int(np.clip(np.rint(2 * rating), 1, 10))


def _within(name: str, value: int, most: int) -> None:
    if value > most:
        raise Refusal(422, f"{name}: {value}; expected at most {most}")
