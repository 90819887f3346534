"""What reasons and the tree of IDs look like, as `schemas`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from hisam_jax.serving.schemas import Id, ItemOut, Who


class ExplainIn(Who):
    """Asks why an item is recommended."""

    item: Id
    way: Literal["retrieval", "generation"] | None = Field(None, description="null: the first that the release has")


class PastOut(BaseModel):
    """A past item and what the score loses without it."""

    item: str
    title: str
    drop: float = Field(description="score with the item's cached anchor, less the score without it")
    share: float = Field(description="drop over the sum of all drops' sizes, -1 to 1")


class PartOut(BaseModel):
    """A part of the recommended item and what it adds to the score."""

    name: str = Field(description="code L, features MODALITY, id, or popularity where nothing is known of the user")
    code: int | None = Field(description="of the item's semantic ID")
    value: float


class ExplainOut(BaseModel):
    """Why an item is recommended."""

    release: str
    how: str = Field(description="way of recommending")
    known: bool
    item: ItemOut
    score: float = Field(description="retrieval: dot product; generation: log-probability; else log popularity")
    milliseconds: float
    parts: list[PartOut] = Field(description="sum to the score")
    past: list[PastOut] = Field(description="oldest first, those that the model still holds")


class BranchOut(BaseModel):
    """A child of a prefix."""

    code: int
    items: int = Field(description="how many are below it")
    examples: list[ItemOut] = Field(description="popular ones")


class TreeOut(BaseModel):
    """A prefix of semantic IDs."""

    prefix: list[int]
    levels: int = Field(description="codes of a whole ID")
    items: int = Field(description="how many are below it")
    examples: list[ItemOut] = Field(description="popular ones")
    total: int = Field(description="children")
    children: list[BranchOut] = Field(description="a page of them, by code")
