"""New items as their owner has them, in words and a picture: the dataset's own encoders make the features of these."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import io
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.thumbnails import MAX_PIXELS, small_jpeg
from hisam_jax.errors import UserError
from hisam_jax.serving.catalogue import Added

FORMS = ("JPEG", "PNG", "WEBP")
SCHEMA = {"item_id": pl.String, "title": pl.String, "text": pl.String} | {
    "categories": pl.List(pl.String),
    "image": pl.String,
}


class Describer:
    """A dataset's fitted encoders, each read when it is first asked for: a release is there without them.

    Args:
        dataset: that a release was trained on.
    """

    def __init__(self, dataset: Dataset):
        self._dataset, self._encoders, self._lock = dataset, {}, threading.Lock()

    def described(self, item: Added, picture: bytes | None) -> Added:
        """A new item with features of what is told of it, beside those that it has, which win.

        Its words are encoded where it has a text, or no features; behaviour tells nothing of a new item.

        Args:
            item: as its owner gives it.
            picture: the bytes of a picture that `checked_picture` let pass.

        Raises:
            UserError: the dataset has no features of what is told, or keeps no encoder of them.
        """
        words = item.text or (not item.features and (item.title or item.categories))
        told = [m for m, is_told in (("text", words), ("image", picture)) if is_told and m not in item.features]
        known = [modality for modality in told if modality in self._dataset.features]
        if told and not known and not item.features:
            raise UserError(
                f"the release has no features of {' or '.join(told)}",
                field="features",
                expected=f"features of {' or '.join(self._dataset.features)}",
            )
        return self._encoded(item, picture, known)

    def again(self, item: Added) -> Added:
        """The item with what other encoders made of its words and its small picture made by these; an item that was
        not encoded stays as it is.

        Raises:
            UserError: as `described`.
        """
        stale = [modality for modality, checksum in item.encoded.items() if checksum != self._checksum(modality)]
        if not stale:
            return item
        kept = {name: values for name, values in item.features.items() if name not in stale}
        picture = base64.b64decode(item.picture) if item.picture else None
        known = [modality for modality in stale if modality in self._dataset.features]
        return self._encoded(dataclasses.replace(item, features=kept), picture, known)

    def _encoded(self, item: Added, picture: bytes | None, modalities: Collection[str]) -> Added:
        features, encoded = dict(item.features), dict(item.encoded)
        with tempfile.TemporaryDirectory() as folder:
            row = _as_row(item, picture, Path(folder))
            for modality in modalities:
                encoder = self._encoder(modality)
                found = encoder.encode(row)
                if found.present[0]:
                    features[modality] = found.values[0].tolist()
                encoded[modality] = encoder.checksum
        return dataclasses.replace(item, features=features, encoded=encoded)

    def _checksum(self, modality: str) -> str | None:
        from hisam_jax.data.encoders.saved import saved_checksum

        return saved_checksum(self._dataset, modality)

    def _encoder(self, modality: str) -> Any:
        from hisam_jax.data.encoders.saved import load_encoder  # it brings scikit-learn, which no other request needs

        with self._lock:
            if modality not in self._encoders:
                self._encoders[modality] = load_encoder(self._dataset, modality)
            return self._encoders[modality]


def checked_picture(text: str) -> tuple[bytes, str]:
    """`(bytes, small JPEG in base64)` of a picture in base64.

    Raises:
        UserError: no base64, or no whole picture in one of FORMS.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"no base64 ({error})", field="picture", expected="a picture's bytes in base64") from error
    small = small_jpeg(data) if _form(data) in FORMS else None
    if small is None:
        raise UserError(
            f"{len(data)} bytes that are no readable picture",
            field="picture",
            expected=f"a whole {', '.join(FORMS)} picture of at most {MAX_PIXELS:,} pixels",
        )
    return data, base64.b64encode(small).decode()


def _form(data: bytes) -> str | None:
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:  # decoders raise what they like
        return picture.format
    return None


def _as_row(item: Added, picture: bytes | None, folder: Path) -> pl.DataFrame:
    """One row of an items table; encoders read pictures from files."""
    image = None
    if picture is not None:
        image = folder / "picture"
        image.write_bytes(picture)
    row = {"item_id": item.item_id, "title": item.title, "text": item.text, "categories": list(item.categories)}
    return pl.DataFrame([row | {"image": image and str(image)}], schema=SCHEMA)
