"""The OpenAPI description with the bounds that this service has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from hisam_jax.serving.limits import Limits


def described(app: FastAPI, limits: Limits) -> Callable[[], dict[str, Any]]:
    """What `app.openapi` is to be."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        known = plain()["components"]["schemas"]
        for model, field, bound, most in (
            ("EventsIn", "events", "maxItems", limits.history),
            ("RecommendIn", "k", "maximum", limits.k),
            ("RecommendIn", "hide", "maxItems", limits.history),
            ("RankIn", "candidates", "maxItems", limits.candidates),
        ):
            known[model]["properties"][field][bound] = most
        for model in ("RecommendIn", "RankIn", "ExplainIn"):
            known[model]["properties"]["history"]["anyOf"][0]["maxItems"] = limits.history
        return app.openapi_schema

    return openapi


def methods_of(app: FastAPI, path: str) -> set[str]:
    """The methods of all routes of a path."""
    found = set()
    for template, methods in app.openapi()["paths"].items():
        parts, given = template.split("/"), path.split("/")
        if len(parts) == len(given) and all(a == b or a[:1] == "{" for a, b in zip(parts, given, strict=True)):
            found |= {method.upper() for method in methods}
    return found
