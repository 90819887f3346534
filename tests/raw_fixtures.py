"""A small MovieLens-form source, written on the spot, for the tests of `prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

HEADER = "userId,movieId,rating,timestamp"


def movielens_rows(users: int = 30, movies: int = 40, seed: int = 0, ties: bool = True) -> list[str]:
    """Lines of ratings.csv; with `ties`, a user's events share a few timestamps."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(1, users + 1):
        chosen = rng.choice(movies, int(rng.integers(5, 20)), replace=False) + 1
        times = 10**9 + (rng.integers(0, 4, len(chosen)) if ties else rng.permutation(10**6)[: len(chosen)])
        ratings = rng.integers(1, 11, len(chosen)) / 2
        rows += [f"{user},{m},{r},{t}" for m, r, t in zip(chosen, ratings, times, strict=True)]
    return rows


def write_movielens(
    folder: Path, rows: list[str] | None = None, movies: int = 40, titles: bool = True, pictures: bool = False
) -> Path:
    """`ratings.csv`, `movies.csv` and maybe `pictures/<movieId>.jpg` for three movies in four; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.csv").write_text("\n".join([HEADER, *(movielens_rows() if rows is None else rows)]) + "\n")
    kinds = ["Drama|Comedy", "Horror", "Children|Fantasy", "War|History"]
    pl.DataFrame(
        {
            "movieId": range(1, movies + 1),
            "title": [
                f"{'Long Short Old New'.split()[m % 4]} film {m} (1999)" if titles else "" for m in range(movies)
            ],
            "genres": [kinds[m % 4] if titles else "" for m in range(movies)],
        }
    ).write_csv(folder / "movies.csv")
    if pictures:
        (folder / "pictures").mkdir()
        for movie in range(1, movies + 1):
            if movie % 4:
                colour = (movie * 6, 255 - movie * 6, 128)
                Image.new("RGB", (160, 200), colour).save(folder / "pictures" / f"{movie}.jpg")
    return folder
