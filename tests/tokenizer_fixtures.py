"""Planted features: a category in both views, a style that only the text tells, a colour that only the image does."""

from __future__ import annotations

import numpy as np


def planted(
    items: int = 1500,
    categories: int = 32,
    styles: int = 8,
    colours: int = 8,
    width: int = 48,
    missing: float = 0.05,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(features, present, truth) of `items` items, `missing` of them without a picture."""
    rng = np.random.default_rng(seed)
    truth = {
        name: rng.integers(0, count, items)
        for name, count in (("category", categories), ("style", styles), ("colour", colours))
    }

    def view(own: str, count: int) -> np.ndarray:
        values = rng.normal(size=(categories, width))[truth["category"]] + rng.normal(size=(count, width))[truth[own]]
        return (values + 0.3 * rng.normal(size=values.shape)).astype(np.float32)

    features = {"text": view("style", styles), "image": view("colour", colours)}
    present = {"text": np.ones(items, bool), "image": rng.random(items) >= missing}
    features["image"][~present["image"]] = 0
    return features, present, truth
