"""Config files, overrides and dataclasses built from them: every mistake names its file and field."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.config import build, load_config, need, seed_of
from hisam_jax.errors import UserError

FILE = """
from ml_collections import ConfigDict

def get_config():
    model = ConfigDict(dict(layers=2, rate=0.1, name="hmat", strict=False, widths=(1, 2), cap=None))
    return ConfigDict(dict(seed=0, model=model))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(FILE)
    return path


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    layers: int = 2
    rate: float = 0.5
    kind: Literal["anchor", "flat"] = "anchor"
    cap: int | None = None
    widths: tuple[int, ...] = ()
    inner: Inner = Inner()


@given(
    layers=st.integers(-9, 9), rate=st.floats(allow_nan=False), strict=st.booleans(), name=st.text("ab9.", min_size=1)
)
def test_overrides_take_the_type_of_their_field(file, layers, rate, strict, name):
    overrides = {"model.layers": layers, "model.rate": rate, "model.strict": strict, "model.name": name}
    if math.isinf(rate):
        overrides["model.rate"] = "1e999" if rate > 0 else "-1e999"
    model = load_config(file, {field: str(value) for field, value in overrides.items()}).model
    assert (model.layers, model.rate, model.strict, model.name) == (layers, rate, strict, name)
    assert isinstance(model.rate, float)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("model.rate", "3", 3.0),
        ("model.strict", "true", True),
        ("model.widths", "[3, 4]", (3, 4)),
        ("model.cap", "7", 7),
        ("model.name", "1e5", "1e5"),
    ],
)
def test_overrides_of_every_kind(file, field, text, value):
    got = load_config(file, {field: text})[field.split(".")[0]][field.split(".")[1]]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("model.layer", "3", "tiny.py: field 'model.layer': unknown config field; expected model.layers or another of"),
        ("modle.layers", "3", "tiny.py: field 'modle.layers': unknown config field; expected model or another of"),
        ("seed.deeper", "3", "tiny.py: field 'seed.deeper': unknown config field; expected no field here"),
        ("model.layers", "many", "tiny.py: field 'model.layers': value 'many' of type str; expected int"),
        ("model.layers", "True", "tiny.py: field 'model.layers': value True of type bool; expected int"),
        ("model.strict", "1", "tiny.py: field 'model.strict': value 1 of type int; expected bool"),
        ("model", "3", "tiny.py: field 'model': value 3 of type int; expected ConfigDict"),
        ("model", "None", "tiny.py: field 'model': value None of type NoneType; expected ConfigDict"),
        ("model", "{'a.b': 1}", "tiny.py: field 'model': value {'a.b': 1}; expected names of text without dots"),
        ("model", "{'a': 1, 2: 3}", "tiny.py: field 'model': value {'a': 1, 2: 3}; expected names of text"),
    ],
)
def test_wrong_overrides_name_file_field_and_what_was_expected(file, field, text, message):
    with pytest.raises(UserError) as caught:
        load_config(file, {field: text})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "bad.py: no such config file"),
        ("x = (", "bad.py:1: SyntaxError"),
        ("x = 1", "bad.py: AttributeError: module 'hisam_config_bad' has no attribute 'get_config'"),
        ("import no_such_module_here", "bad.py:1: ModuleNotFoundError"),
        ("def get_config():\n    size = 1\n    return 1 // (size - 1)", "bad.py:3: ZeroDivisionError"),
        (
            "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'a': {'b': 1, 2: 3}})",
            "bad.py: TypeError: '<' not supported between instances of",
        ),
        ("def get_config():\n    return 3", "bad.py: get_config() gave a int"),
    ],
)
def test_broken_config_files_say_where(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mapping_stands_for_a_whole_section(file):
    assert load_config(file, {"model": "{'layers': 4}"}).model.to_dict() == {"layers": 4}


def test_fields_that_a_file_leaves_out_are_added_before_overrides(file):
    def complete(config):
        return ml_collections.ConfigDict({"depth": 1, "rate": 0.5, **config.to_dict()})

    config = load_config(file, {"depth": "3"}, complete)
    assert (config.depth, config.rate, config.seed, config.model.layers) == (3, 0.5, 0, 2)


def test_a_missing_field_is_named(file):
    need(load_config(file), "seed", "model")
    with pytest.raises(UserError, match="field 'name': missing config field; expected a config with seed, name"):
        need(load_config(file), "seed", "name")


def test_build_makes_nested_frozen_dataclasses():
    section = ml_collections.ConfigDict(dict(layers=3, rate=1, widths=[1, 2], cap=5, inner=dict(size=4)))
    assert build(Outer, section, "model") == Outer(3, 1.0, "anchor", 5, (1, 2), Inner(4))
    assert build(Outer, {}, "model") == Outer()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"layer": 3}, "field 'model.layer': unknown config field; expected layers or another of"),
        ({"inner": {"sise": 3}}, "field 'model.inner.sise': unknown config field; expected size or another of"),
        ({"layers": 2.5}, "field 'model.layers': value 2.5 of type float; expected int"),
        ({"layers": True}, "field 'model.layers': value True of type bool; expected int"),
        ({"kind": "anker"}, "field 'model.kind': value 'anker' of type str; expected 'anchor' or 'flat'"),
        ({"cap": "x"}, "field 'model.cap': value 'x' of type str; expected int or None"),
        ({"inner": 3}, "field 'model.inner': value 3; expected a section of size"),
        ({"inner": None}, "field 'model.inner': value None; expected a section of size"),
        (3, "field 'model': value 3; expected a section of layers, rate"),
        ([("layers", 3)], "field 'model': value [('layers', 3)]; expected a section"),
    ],
)
def test_build_refuses_what_does_not_fit(section, message):
    with pytest.raises(UserError) as caught:
        build(Outer, section, "model")
    assert message in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Needy:
    name: str
    inner: Inner
    sizes: tuple = dataclasses.field(default_factory=tuple)


@pytest.mark.parametrize(
    ("section", "where", "message"),
    [
        ({}, "row", "field 'row.name': missing config field; expected str"),
        ({"name": "a"}, "row", "field 'row.inner': missing config field"),
        ({"name": "a"}, "", "field 'inner': missing config field"),
        ({"name": "a", "inner": {"sise": 1}}, "", "field 'inner.sise': unknown config field"),
    ],
)
def test_build_names_what_is_missing(section, where, message):
    with pytest.raises(UserError) as caught:
        build(Needy, section, where)
    assert message in str(caught.value)
    assert build(Needy, {"name": "a", "inner": Inner(2)}, where) == Needy("a", Inner(2))


@given(
    st.text(),
    st.one_of(st.none(), st.text(min_size=1)),
    st.one_of(st.none(), st.integers(1)),
    st.one_of(st.none(), st.text(min_size=1)),
)
def test_a_user_error_is_always_one_line(problem, path, line, field):
    message = str(UserError(problem, path=path, line=line, field=field, expected="x\ny", hint="z"))
    assert len(message.splitlines()) == 1 and message.endswith("; expected x y (z)")


def test_a_file_that_is_no_python_is_named(tmp_path):
    (tmp_path / "c.txt").write_text(FILE)
    for path, problem in ((tmp_path / "c.txt", "not a Python file"), (tmp_path, "no such config file")):
        with pytest.raises(UserError, match=f"{path.name}: {problem}; expected a .py file"):
            load_config(path)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "a"])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(UserError, match="field 'seed': value .*expected a whole number from 0 to 4294967295"):
        seed_of(ml_collections.ConfigDict({"seed": seed}))
    assert seed_of(ml_collections.ConfigDict({"seed": 7})) == 7


def test_an_optional_field_can_be_switched_off_by_name(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'limit': 20.0, 'name': 'x'})\n"
    )
    config = load_config(path, {"limit": "None", "name": "None"})
    assert config.limit is None and config.name is None
