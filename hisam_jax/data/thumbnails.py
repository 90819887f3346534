"""Small pictures of the items, kept in the dataset for reports; finds the pictures that cannot be read."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from hisam_jax.progress import progress

WIDTH, HEIGHT = 112, 168  # pixels, at most
MAX_PIXELS = 80_000_000  # more is taken for an attack on the memory
_QUALITY = 85


def make_thumbnails(images: Sequence[str | None]) -> tuple[pl.DataFrame, np.ndarray]:
    """A table (item, jpeg) of the readable pictures, and bool [I]: where a picture is there and cannot be read."""
    rows = [row for row, path in enumerate(images) if path is not None]
    broken = np.zeros(len(images), bool)
    kept: list[tuple[int, bytes]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are refused below
        made = pool.map(thumbnail, [images[row] for row in rows])
        for row, jpeg in zip(rows, progress(made, len(rows), "pictures", "picture"), strict=True):
            if jpeg is None:
                broken[row] = True
            else:
                kept.append((row, jpeg))
    return pl.DataFrame(kept, schema={"item": pl.Int32, "jpeg": pl.Binary}, orient="row"), broken


def thumbnail(path: str | Path) -> bytes | None:
    """`small_jpeg` of a file; None too where it is not there."""
    try:
        return small_jpeg(Path(path).read_bytes())
    except (OSError, ValueError):  # the latter of a path with a null byte
        return None


def small_jpeg(data: bytes) -> bytes | None:
    """A JPEG of at most WIDTH x HEIGHT, `data` itself where it is one; None for an unreadable picture."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            small = picture.width <= WIDTH and picture.height <= HEIGHT
            picture.draft("RGB", (2 * WIDTH, 2 * HEIGHT))  # a large JPEG is decoded at a fraction of its size
            picture.load()  # a truncated file fails here, not at open
            if small and picture.format == "JPEG" and picture.mode == "RGB":
                return data
            shrunk = _on_white(picture)
        shrunk.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        shrunk.save(stream, "JPEG", quality=_QUALITY)
        return stream.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # Pillow raises any of these on damaged input


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    clear = picture.convert("RGBA")
    canvas = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(canvas, clear).convert("RGB")
