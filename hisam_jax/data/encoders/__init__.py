"""Frozen encoders of texts, pictures and behaviour, by name, with results kept by content."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from hisam_jax.data.encoders.base import Encoder, Features
from hisam_jax.data.encoders.behaviour import Interactions, PpmiSvd
from hisam_jax.data.encoders.cache import encode_cached
from hisam_jax.data.encoders.image import HogColor
from hisam_jax.data.encoders.precomputed import NoEncoder, Precomputed
from hisam_jax.data.encoders.pretrained import ClipImage, SentenceTransformerText
from hisam_jax.data.encoders.text import TfidfSvd
from hisam_jax.data.encoders.word_vectors import WordVectors
from hisam_jax.errors import UserError
from hisam_jax.paths import is_url
from hisam_jax.remote import local

__all__ = ["Encoder", "Features", "Interactions", "encode_cached", "make_encoder"]

_NAMED = {
    "text": {
        "tfidf_svd": TfidfSvd,
        "word_vectors": WordVectors,
        "sentence_transformers:<name or folder>": SentenceTransformerText,
    },
    "image": {"hog_color": HogColor, "clip:<name or folder>": ClipImage},
    "behaviour": {"ppmi_svd": PpmiSvd},
}
_ANY = {"precomputed:<file>": Precomputed, "none": NoEncoder}


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
    known = _NAMED.get(modality, {}) | _ANY
    kind, _, argument = name.partition(":")
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
