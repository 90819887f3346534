"""The light picture encoder: shape by histograms of gradients, colour by histograms on a grid, then a PCA."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import joblib
import numpy as np
import polars as pl
from PIL import Image, ImageOps
from skimage.feature import hog

from hisam_jax.data.encoders.base import Features, Fitted, absent, describe, scatter
from hisam_jax.files import sha256_file, sha256_of

HEIGHT, WIDTH = 96, 64  # the shape of a poster; anything else is stretched to it
GRID = (3, 2)  # colour histograms down and across
PARALLEL_FROM = 256  # pictures; below this starting processes costs more than it saves
VARIANCE_TOLERANCE = 1e-8  # share of the largest variance below which a direction is rounding


@dataclasses.dataclass(frozen=True)
class HogColor:
    """A picture -> at most `dim` principal components of shape and colour descriptors, fitted on the training items.

    Shape and colour get the same total variance before the PCA, so neither swamps the other [ours]. Items without a
    picture are absent; a picture that cannot be read is absent and counted as `broken_image`. `D` is `dim`, or what
    the training pictures span (at least 1); 0 where no training item has a picture.
    """

    dim: int = 128
    modality: ClassVar[str] = "image"
    name: ClassVar[str] = "hog_color"

    def fingerprint(self) -> str:
        return describe(self, 2, ("numpy", "pillow", "scikit-image"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(picture_digests(items["image"].to_list())), fit_rows)

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        found = describe_pictures(items["image"].to_list())
        fit_N = fit_rows[found.rows]
        if not fit_N.any():
            return absent(len(items), found.rejected)
        scale_D = np.concatenate([_spread(x_ND[fit_N]) for x_ND in (found.shape_ND, found.color_ND)])
        mean_D, directions_DK = principal_directions(found.scaled(scale_D)[fit_N], self.dim)
        return FittedHogColor(scale_D, mean_D, directions_DK).project(found, len(items))


@dataclasses.dataclass(frozen=True, eq=False)
class FittedHogColor:
    """What descriptors are divided by and their mean, float32 `[D]`, and the directions float32 `[D, K]`."""

    scale_D: np.ndarray
    mean_D: np.ndarray
    directions_DK: np.ndarray

    @classmethod
    def of(cls, fitted: Fitted) -> FittedHogColor:
        """What `project` told of itself."""
        return cls(*(fitted.arrays[name] for name in ("scale", "mean", "directions")))

    def inputs(self, items: pl.DataFrame) -> str:
        return sha256_of("\0".join(picture_digests(items["image"].to_list())))

    def encode(self, items: pl.DataFrame) -> Features:
        return self.project(describe_pictures(items["image"].to_list()), len(items))

    def project(self, found: Described, items: int) -> Features:
        """Features of the readable pictures among so many items."""
        arrays = {"scale": self.scale_D, "mean": self.mean_D, "directions": self.directions_DK}
        values_NK = _each_alone(found.scaled(self.scale_D) - self.mean_D, self.directions_DK)
        return scatter(items, found.rows, values_NK, found.rejected, Fitted(HogColor.name, arrays=arrays))


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """Descriptors `[N, S]` and `[N, C]` of the readable pictures, their rows `[N]`, and how many were not readable."""

    rows: np.ndarray
    shape_ND: np.ndarray
    color_ND: np.ndarray
    rejected: Mapping[str, int]

    def scaled(self, scale_D: np.ndarray) -> np.ndarray:
        """Both beside each other, divided."""
        return np.concatenate([self.shape_ND, self.color_ND], axis=1) / scale_D


def describe_pictures(paths: Sequence[str | None]) -> Described:
    """What the pictures are to the encoder before anything is fitted."""
    rows = np.flatnonzero([bool(path) for path in paths])
    described = map_pictures(describe_picture, [paths[row] for row in rows])
    readable = np.array([found is not None for found in described], np.bool_)
    kept = [found for found in described if found is not None] or [_descriptors(Image.new("RGB", (WIDTH, HEIGHT)))]
    shape_ND, color_ND = (np.stack([found[part] for found in kept])[: readable.sum()] for part in (0, 1))
    return Described(rows[readable], shape_ND, color_ND, {"broken_image": int(np.sum(~readable))})


def picture_digests(paths: Sequence[str | None]) -> list[str]:
    """A digest of each file's bytes; a word where there is no path or no readable file."""

    def digest(path: str | None) -> str:
        try:
            return sha256_file(path) if path else "none"
        except OSError:
            return "unreadable"

    return [digest(path) for path in paths]


def open_picture(path: str | os.PathLike, least: tuple[int, int] | None = None) -> Image.Image | None:
    """An upright RGB picture on white, or None where the file is missing, truncated or no picture.

    Args:
        path: the file.
        least: (width, height) that are enough; large JPEGs are then decoded at a fraction of their size.
    """
    try:
        with Image.open(path) as picture:
            if least is not None:
                picture.draft("RGB", least)
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return upright.convert("RGB")
    except Exception:  # decoders raise whatever they like on hostile bytes: OSError, SyntaxError, struct.error ...
        return None


def map_pictures(function: Callable, paths: Sequence[str]) -> list:
    """`[function(path), ...]`, over processes where it pays; the order is that of `paths`."""
    if len(paths) < PARALLEL_FROM:
        return [function(path) for path in paths]
    return joblib.Parallel(n_jobs=-1, batch_size=64)(joblib.delayed(function)(path) for path in paths)


def describe_picture(path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(shape, colour) float32 descriptors of a picture, or None where it cannot be read."""
    picture = open_picture(path, (WIDTH, HEIGHT))
    if picture is None:
        return None
    small = picture.resize(
        (WIDTH, HEIGHT), Image.Resampling.BOX if min(picture.size) >= WIDTH else Image.Resampling.BILINEAR
    )
    return _descriptors(small)


def _descriptors(small: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    return shape_descriptor(small), color_descriptor(small)


def shape_descriptor(picture: Image.Image) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005) over 16 px cells in 2 x 2 blocks."""
    gray = np.asarray(picture.convert("L"), np.float32) / 255
    return hog(gray, orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2), transform_sqrt=True).astype(
        np.float32
    )


def color_descriptor(picture: Image.Image) -> np.ndarray:
    """Square roots of colour histograms on a 3 x 2 grid: 12 hues x 2 saturations x 2 values, and 4 greys."""
    hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV"), np.int32), -1, 0)
    colored = 4 + (hue * 12 // 256) * 4 + (saturation >= 140) * 2 + (value >= 140)
    code = np.where((saturation < 40) | (value < 30), value // 64, colored)  # the hue of a grey or a black is noise
    cells = (
        code.reshape(GRID[0], HEIGHT // GRID[0], GRID[1], WIDTH // GRID[1])
        .swapaxes(1, 2)
        .reshape(GRID[0] * GRID[1], -1)
    )
    counts = np.stack([np.bincount(cell, minlength=52) for cell in cells])
    return np.sqrt(counts / cells.shape[1]).astype(np.float32).ravel()


def principal_directions(x_ND: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean `[D]`, directions `[D, K]`) of the rows, `1 <= K <= dim`, by largest variance; signs are fixed."""
    mean_D = x_ND.mean(axis=0, dtype=np.float64)
    variances, directions = _spectrum_of_few(x_ND - mean_D) if len(x_ND) < len(mean_D) else _spectrum(x_ND, mean_D)
    variances, directions = variances[:dim], directions[:, :dim]
    rank = max(1, int(np.sum(variances > VARIANCE_TOLERANCE * max(variances[0], 0.0))))
    directions = directions[:, : min(rank, max(1, len(x_ND) - 1))]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    return mean_D.astype(np.float32), directions.astype(np.float32)


def _spectrum(x_ND: np.ndarray, mean_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    covariance_DD = np.zeros((len(mean_D),) * 2)
    for start in range(0, len(x_ND), 4096):  # a whole float64 copy of a large catalogue would not fit
        centred = x_ND[start : start + 4096] - mean_D
        covariance_DD += centred.T @ centred
    variances, directions = np.linalg.eigh(covariance_DD)
    return variances[::-1], directions[:, ::-1]


def _spectrum_of_few(centred_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, singular, directions = np.linalg.svd(centred_ND, full_matrices=False)
    return singular**2, directions.T


def _spread(x_ND: np.ndarray) -> np.ndarray:
    """`[D]` of one number: what divides the descriptors to a total variance of 1."""
    spread = np.sqrt(x_ND.var(axis=0, dtype=np.float64).sum())
    return np.full(x_ND.shape[1], spread if spread > 0 else 1, np.float32)


def _each_alone(x_ND: np.ndarray, directions_DK: np.ndarray) -> np.ndarray:
    """`x @ directions`, each row's bits whatever the other rows are: a product of matrices rounds by a row's place."""
    out_NK = np.empty((len(x_ND), directions_DK.shape[1]), np.float32)
    for x_D, out_K in zip(x_ND, out_NK, strict=True):
        np.matmul(x_D, directions_DK, out=out_K)
    return out_NK
