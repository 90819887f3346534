"""What requests and answers look like; the OpenAPI description is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Id = Annotated[str, Field(min_length=1, max_length=200)]
Time = Annotated[int, Field(ge=0, lt=2**40, description="seconds since 1970; 0: unknown")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid")


class EventIn(Strict):
    """An item that a user met."""

    item: Id
    rating: Annotated[float, Field(ge=0.5, le=5)] | None = Field(None, description="in half stars; null: unknown")
    time: Time | None = Field(None, description="seconds since 1970, 0 unknown; null: now")


class EventsIn(Strict):
    """Events of one user, oldest first."""

    events: Annotated[list[EventIn], Field(min_length=1)]


class EventsOut(BaseModel):
    """Says that events are kept."""

    user: str
    events: int = Field(description="of this user that are kept")


class Who(Strict):
    """Whom a request is about: a user, or a history that is kept nowhere."""

    user: Id | None = None
    history: list[EventIn] | None = Field(None, description="oldest first; without times, gaps count as unknown")
    time: Time = Field(0, description="of the request, seconds since 1970; 0: the gap to the last event is unknown")

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["user"], "properties": {"user": {"type": "string"}, "history": {"type": "null"}}},
                {"required": ["history"], "properties": {"user": {"type": "null"}, "history": {"type": "array"}}},
            ]
        }
    )

    @model_validator(mode="after")
    def _one(self):
        if (self.user is None) == (self.history is None):
            raise ValueError("expected one of user and history")
        return self


class RecommendIn(Who):
    """Asks for the best items."""

    k: Annotated[int, Field(ge=1)] = 10
    way: Literal["retrieval", "generation", "hybrid", "ranking"] | None = Field(
        None, description="null: the release's first; ranking: of a release that has no other head"
    )
    hide: list[Id] = Field([], description="items to leave out")
    repeat: bool = Field(False, description="whether items of the history may come again")
    added_since: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="day counted from 1970; items that are known to have come earlier are left out"
    )
    categories: list[Id] = Field([], description="an item must have one of them; none: no matter")


class RankIn(Who):
    """Asks for scores of candidates."""

    candidates: Annotated[list[Id], Field(min_length=1)]
    by: Literal["ranking", "retrieval"] | None = Field(None, description="head; null: ranking where it was trained")


class Scored(BaseModel):
    """An item and its score."""

    item: str
    title: str
    score: float


class AnswerOut(BaseModel):
    """Items with scores: best first of recommend, in the candidates' order of rank."""

    release: str
    how: str = Field(description="way or head")
    known: bool = Field(description="whether anything is known of the user; the most popular items are served else")
    degraded: bool = Field(description="the store was away: the latest events may be missing")
    milliseconds: float
    items: list[Scored]


class ItemIn(Strict):
    """A new item, told by words and a picture, by features, or by an item that it is like; or one that was removed, to
    have back as it was."""

    item: Id
    title: Annotated[str, Field(max_length=1000)] = ""
    text: str = Field("", description="what else is said of it")
    categories: list[Id] = []
    picture: str | None = Field(
        None,
        description="a JPEG, PNG or WebP, within the bound of the request's body",
        json_schema_extra={"contentEncoding": "base64"},
    )
    features: dict[str, list[Finite]] = Field(
        {},
        description="modality -> as many numbers as the release says; they win over words and picture, and title and "
        "categories are encoded only without them",
    )
    like: Id | None = Field(None, description="an item whose features it gets; a picture is then only shown")

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "required": ["like"],
                "properties": {"like": {"type": "string"}},
                "anyOf": [
                    {"required": ["features"], "properties": {"features": {"minProperties": 1}}},
                    {"required": ["text"], "properties": {"text": {"minLength": 1}}},
                ],
            }
        }
    )

    @model_validator(mode="after")
    def _one(self):
        for name in ("features", "text"):
            if getattr(self, name) and self.like is not None:
                raise ValueError(f"both {name} and like; expected one of them")
        return self

    @property
    def told(self) -> bool:
        """Whether anything is told of it."""
        return any((self.title, self.text, self.categories, self.picture, self.features, self.like))


class ItemOut(BaseModel):
    """An item as the service knows it."""

    item: str
    title: str
    picture: bool
    codes: list[int] = Field(description="its semantic ID")


class ItemsOut(BaseModel):
    """A page of items."""

    total: int
    items: list[ItemOut]


class UserOut(BaseModel):
    """What is kept of a user."""

    user: str
    events: int
    latest: list[str] = Field(description="items, oldest first")


class ReleaseIn(Strict):
    """A release to load, or the one before to go back to."""

    workdir: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(None, description="a run's folder")
    expect: str | None = Field(None, description="the id that it must have")
    roll_back: bool = False

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["workdir"], "properties": {"workdir": {"type": "string"}, "roll_back": {"const": False}}},
                {"required": ["roll_back"], "properties": {"workdir": {"type": "null"}, "roll_back": {"const": True}}},
            ]
        }
    )

    @model_validator(mode="after")
    def _one(self):
        if (self.workdir is None) != self.roll_back:
            raise ValueError("expected one of workdir and roll_back")
        return self


class ReleaseOut(BaseModel):
    """A release."""

    release: str
    workdir: str
    checksums: dict[str, str]
    items: int
    ways: list[str]
    heads: list[str]
    modalities: dict[str, int]
    k: int = Field(description="the most recommendations of a request")


class ReleasesOut(BaseModel):
    """What serves, and what a rollback goes to."""

    now: ReleaseOut
    before: ReleaseOut | None


class HealthOut(BaseModel):
    """How the service is."""

    status: Literal["ok", "degraded", "starting"]
    store: bool
    release: str | None


class Problem(BaseModel):
    """What was wrong, in one line."""

    error: str
