"""Flat product icons: the silhouette tells the kind, the badge the emblem, the body its colour and pattern."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from hisam_jax.data.shop.catalogue import Catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.silhouettes import EMBLEMS, SILHOUETTES
from hisam_jax.data.shop.vocabulary import COLOURS, PATTERNS

GRID = 100  # the drawings' side
_FINE = 4  # masks are drawn this much larger, then reduced: smooth edges
_BADGE, _EMBLEM = 34, 22  # sides on the grid
_INK, _PAPER = (52, 56, 66), (255, 255, 255)
_STREAM = 4  # of the seed


def picture(config: ShopConfig, catalogue: Catalogue, item: int) -> bytes:
    """The JPEG of an item, `picture_size` square; a function of the item and the seed alone.

    Place, size, tilt, light and background vary a little and tell nothing.
    """
    rng = np.random.default_rng([config.seed, _STREAM, item])
    size = config.picture_size
    background = tuple(int(level) for level in 246 - rng.uniform(0, 14) + rng.uniform(-3, 3, 3))
    base = np.array(COLOURS[catalogue.colour_I[item]][1]) * rng.uniform(0.94, 1.05)
    canvas = Image.new("RGB", (size, size), background)
    place = _placement(rng, size)
    body, trim, shadow = (_move(mask, place) for mask in _product(int(catalogue.kind_I[item]), 2 * size))
    canvas.paste(_shade(np.array(background), 0.9), mask=shadow)
    canvas.paste(_shade(base, 1.0), mask=body)
    light = tuple(int(level) for level in 0.42 * np.clip(base, 0, 255) + 0.58 * 255)
    canvas.paste(light, mask=ImageChops.multiply(body, _pattern(int(catalogue.pattern_I[item]), size)))
    canvas.paste(_shade(base, 0.62), mask=trim)
    _stamp(canvas, int(catalogue.emblem_I[item]), rng)
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=92, subsampling=0)
    return stream.getvalue()


def _placement(rng: np.random.Generator, size: int) -> tuple[float, ...]:
    """Inverse affine coefficients, to masks of twice the size: a small zoom, tilt and shift around the centre."""
    zoom, tilt = 2 * rng.uniform(1.0, 1.1), np.deg2rad(rng.uniform(-3, 3))
    a, b = zoom * np.cos(tilt), zoom * np.sin(tilt)
    x, y = size / 2 + rng.uniform(-0.02, 0.02, 2) * size
    return (a, b, size - a * x - b * y, -b, a, size + b * x - a * y)


def _move(mask: Image.Image, place: tuple[float, ...]) -> Image.Image:
    half = (mask.width // 2, mask.height // 2)  # each bilinear sample is then the mean of four pixels: smooth edges
    return mask.transform(half, Image.Transform.AFFINE, place, Image.Resampling.BILINEAR)


def _shade(colour: np.ndarray, factor: float) -> tuple[int, ...]:
    return tuple(int(level) for level in np.clip(colour * factor, 0, 255))


def _stamp(canvas: Image.Image, emblem: int, rng: np.random.Generator) -> None:
    size = canvas.size[0]
    disc, sign = _badge(emblem, size)
    corner = tuple(int(size * (1 - (_BADGE + 3) / GRID + shift)) for shift in rng.uniform(-0.012, 0.012, 2))
    canvas.paste(_INK, (*corner,), ImageChops.lighter(disc[0], disc[1]))
    canvas.paste(_PAPER, (*corner,), disc[1])
    canvas.paste(_INK, (*corner,), sign)


@functools.lru_cache(maxsize=len(SILHOUETTES))
def _product(kind: int, size: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Masks of body, trim and the shadow on the floor."""
    body, trim = _draw(SILHOUETTES[kind], size)
    floor = Image.new("L", (size * _FINE,) * 2)
    ImageDraw.Draw(floor).ellipse([at * size * _FINE / GRID for at in (14, 83, 80, 93)], fill=255)
    shadow = floor.reduce(_FINE)
    return body, trim, shadow


@functools.lru_cache(maxsize=len(EMBLEMS))
def _badge(emblem: int, size: int) -> tuple[tuple[Image.Image, Image.Image], Image.Image]:
    """Masks of the disc with its rim, the disc without it, and the sign on it."""
    side, inner = round(size * _BADGE / GRID), round(size * _EMBLEM / GRID)
    disc = [_draw((("body", "oval", (edge, edge, GRID - edge, GRID - edge)),), side)[0] for edge in (1, 6)]
    sign = Image.new("L", (side, side))
    sign.paste(_draw(EMBLEMS[emblem], inner)[0], ((side - inner) // 2,) * 2)
    return tuple(disc), sign


@functools.lru_cache(maxsize=len(PATTERNS))
def _pattern(pattern: int, size: int) -> Image.Image:
    """Mask of the pattern's light parts, twelve units of the grid to a repeat."""
    at = (np.arange(size * _FINE) + 0.5) * GRID / (size * _FINE)
    x, y = at[None, :], at[:, None]
    u, v = x % 12, y % 12
    light = {
        "plain": np.zeros(np.broadcast_shapes(x.shape, y.shape), bool),
        "bars": (v < 5) & (x > -1),
        "columns": (u < 5) & (y > -1),
        "diagonal": (x + y) % 14 < 6,
        "dots": (u - 6) ** 2 + (v - 6) ** 2 < 12,
        "checks": (u < 6) ^ (v < 6),
        "zigzag": (y + np.abs(u - 6)) % 12 < 4.5,
        "lattice": (u < 2) | (v < 2),
    }[PATTERNS[pattern]]
    return Image.fromarray(np.where(light, 255, 0).astype(np.uint8)).reduce(_FINE)


def _draw(drawing, size: int) -> tuple[Image.Image, Image.Image]:
    """Masks of the body and of the trim, smooth; what is drawn later lies above."""
    fine, scale = size * _FINE, size * _FINE / GRID
    masks = {"body": Image.new("L", (fine, fine)), "trim": Image.new("L", (fine, fine))}
    for layer, shape, numbers in drawing:
        for name, mask in masks.items():
            _fill(ImageDraw.Draw(mask), shape, numbers, scale, 255 if name == layer else 0)
    return masks["body"].reduce(_FINE), masks["trim"].reduce(_FINE)


def _fill(draw: ImageDraw.ImageDraw, shape: str, numbers: tuple[float, ...], scale: float, fill: int) -> None:
    if shape == "arc":
        *box, begin, end, width = numbers
        draw.arc([at * scale for at in box], begin, end, fill=fill, width=round(width * scale))
        return
    at = [number * scale for number in numbers]
    match shape:
        case "box":
            draw.rounded_rectangle(at[:4], at[4], fill=fill)
        case "oval":
            draw.ellipse(at, fill=fill)
        case "poly":
            draw.polygon(at, fill=fill)
        case "line":
            draw.line(at[1:], fill=fill, width=round(at[0]), joint="curve")
