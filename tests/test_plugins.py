"""Readers, encoders and tokenizers of others: found by name where a module registers them, refused where not."""

from __future__ import annotations

import sys

import pytest

from hisam_jax import plugins
from hisam_jax.data.encoders import _NAMED, RESTORED, make_encoder, register_encoder
from hisam_jax.data.encoders.text import TfidfSvd
from hisam_jax.data.readers import READERS, read, register_reader
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.registry import TOKENIZERS, entry, register_tokenizer

MODULE = """
from hisam_jax.data.readers import register_reader
def read(raw, images=None):
    return raw, images
register_reader("theirs", read)
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Registries and modules are left as they were."""
    registries = (READERS, TOKENIZERS, RESTORED, *_NAMED.values())
    kept = [dict(registry) for registry in registries]
    monkeypatch.setattr(plugins, "_load", plugins._load.__wrapped__)  # not once in a process
    yield
    for registry, before in zip(registries, kept, strict=True):
        registry.clear()
        registry.update(before)
    sys.modules.pop("their_reader", None)


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "their_reader.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "their_reader"


def test_an_unknown_name_is_looked_for_in_the_modules_that_the_environment_names(module, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="unknown source 'theirs'"):
        read("theirs", tmp_path)
    monkeypatch.setenv("HISAM_PLUGINS", f" {module} ,")
    assert read("theirs", tmp_path) == (tmp_path, None)


def test_a_known_name_imports_nothing(module, monkeypatch):
    monkeypatch.setenv("HISAM_PLUGINS", module)
    entry("random")
    assert module not in sys.modules


def test_a_module_that_is_not_there_is_the_users_mistake(monkeypatch, tmp_path):
    monkeypatch.setenv("HISAM_PLUGINS", "no_such_module")
    with pytest.raises(UserError, match=r"\$HISAM_PLUGINS.*no module 'no_such_module'.*PYTHONPATH"):
        read("theirs", tmp_path)


def test_installed_packages_register_by_their_entry_points(monkeypatch, tmp_path):
    class Point:
        def load(self):
            register_reader("installed", lambda raw, images=None: "theirs")

    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: [Point()] * (group == plugins.GROUP))
    assert read("installed", tmp_path) == "theirs"


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a,b"])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    with pytest.raises(UserError, match="expected a name without"):
        register_reader(name, lambda raw, images=None: None)


def test_nobody_takes_a_name_from_another():
    with pytest.raises(UserError, match="'shop' is taken"):
        register_reader("shop", lambda raw, images=None: None)
    with pytest.raises(UserError, match="'dst' is taken"):
        register_tokenizer("dst", TOKENIZERS["random"])
    register_tokenizer("dst", TOKENIZERS["dst"])  # the same again, as when a module is imported twice


def test_encoders_are_of_text_or_image_and_take_a_width(monkeypatch):
    class Theirs(TfidfSvd):
        name = "theirs"

    with pytest.raises(UserError, match="'sound'; expected text or image"):
        register_encoder("sound", Theirs)
    register_encoder("text", Theirs)
    assert make_encoder("text", "theirs:7").dim == 7
    with pytest.raises(UserError, match="no image encoder 'theirs'"):
        make_encoder("image", "theirs")
