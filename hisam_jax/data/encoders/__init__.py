"""Frozen encoders of texts, pictures and behaviour, by name, with results kept by content."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

from hisam_jax import plugins
from hisam_jax.data.encoders.base import Encoder, Features, Fitted, FittedEncoder
from hisam_jax.data.encoders.behaviour import Interactions, PpmiSvd
from hisam_jax.data.encoders.cache import encode_cached
from hisam_jax.data.encoders.image import FittedHogColor, HogColor
from hisam_jax.data.encoders.precomputed import NoEncoder, Precomputed
from hisam_jax.data.encoders.pretrained import ClipImage, SentenceTransformerText
from hisam_jax.data.encoders.text import FittedTfidf, TfidfSvd
from hisam_jax.data.encoders.word_vectors import FittedWordVectors, WordVectors
from hisam_jax.errors import UserError
from hisam_jax.paths import is_url
from hisam_jax.remote import local

__all__ = ["Encoder", "Features", "Interactions", "encode_cached", "make_encoder", "register_encoder"]

_NAMED: dict[str, dict[str, Any]] = {
    "text": {
        "tfidf_svd": TfidfSvd,
        "word_vectors": WordVectors,
        "sentence_transformers:<name or folder>": SentenceTransformerText,
    },
    "image": {"hog_color": HogColor, "clip:<name or folder>": ClipImage},
    "behaviour": {"ppmi_svd": PpmiSvd},
}
_ANY = {"precomputed:<file>": Precomputed, "none": NoEncoder}
# What makes an encoder that fits nothing of what one learned, by its name.
RESTORED: dict[str, Callable[[Fitted], FittedEncoder]] = {
    TfidfSvd.name: FittedTfidf.of,
    WordVectors.name: FittedWordVectors.of,
    HogColor.name: FittedHogColor.of,
}


def register_encoder(
    modality: str, encoder: type[Encoder], restore: Callable[[Fitted], FittedEncoder] | None = None
) -> None:
    """Makes the dataclass `encoder` one that `--text-encoder` or `--image-encoder` may name, by its `name`.

    Args:
        modality: text or image.
        encoder: all its fields have defaults; one that has the field `dim` may be named with a width, `NAME:512`.
        restore: makes an encoder that fits nothing of the `fitted` that its features told, for other items.

    Raises:
        UserError: another modality, or a name that is taken.
    """
    if modality not in ("text", "image"):
        raise UserError(f"{modality!r}", field="modality", expected="text or image")
    plugins.claim(_NAMED[modality], encoder.name, encoder, f"{modality}_encoder")
    if restore is not None:
        plugins.claim(RESTORED, encoder.name, restore, f"{modality}_encoder")


def make_encoder(modality: str, name: str, **options: Any) -> Encoder:
    """The encoder called `name` for `modality`: text, image, behaviour, or one that only `precomputed:` serves.

    Args:
        modality: what the features are of.
        name: `tfidf_svd`, `word_vectors`, `sentence_transformers:<name or folder>`, `hog_color`,
            `clip:<name or folder>`, `ppmi_svd` (with the option `interactions`), `precomputed:<file>` or `none`; a
            file or folder may be a URL. One that is fitted here takes its width too, such as `tfidf_svd:512`.
        **options: fields of the encoder's dataclass, such as `dim` or `batch_size`.

    Raises:
        UserError: an unknown name or option, a missing package, file or model folder; a URL that cannot be read.
    """
    kind, _, argument = name.partition(":")
    plugins.look_for(kind, {key.partition(":")[0] for key in (*_NAMED.get(modality, ()), *_ANY)})
    known = _NAMED.get(modality, {}) | _ANY
    cls = {key.partition(":")[0]: value for key, value in known.items()}.get(kind)
    takes_argument = f"{kind}:<file>" in known or f"{kind}:<name or folder>" in known
    if cls and re.fullmatch("[1-9][0-9]*", argument) and "dim" in {field.name for field in dataclasses.fields(cls)}:
        options, argument = {**options, "dim": int(argument)}, ""
    if cls is None or takes_argument != bool(argument):
        raise UserError(f"no {modality} encoder {name!r}", field=f"{modality}_encoder", expected=", ".join(known))
    if argument and is_url(argument):
        sidecar = [f"{argument.rpartition('/')[2]}.ids.txt"] if cls is Precomputed else []
        argument = os.fspath(local(argument, f"{modality}_encoder", beside=sidecar))
    fixed = ({"modality": modality} if cls in _ANY.values() else {}) | ({"source": argument} if takes_argument else {})
    allowed = {field.name for field in dataclasses.fields(cls)} - set(fixed)
    for option in sorted(set(options) - allowed):
        raise UserError(f"unknown option of {kind}", field=option, expected=", ".join(sorted(allowed)) or "no option")
    return cls(**fixed, **options)
