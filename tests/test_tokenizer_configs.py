"""Settings of every tokenizer: what is out of range is refused by name before anything is fitted."""

from __future__ import annotations

import dataclasses

import ml_collections
import pytest

from hisam_jax.config import build, load_config
from hisam_jax.errors import UserError
from hisam_jax.tokenizer import joined
from hisam_jax.tokenizer.alarm_causes import Evidence
from hisam_jax.tokenizer.alarms import AlarmConfig
from hisam_jax.tokenizer.dst_config import DSTConfig, make_layout
from hisam_jax.tokenizer.registry import TOKENIZERS, tokenizer_config

BAD_SIZES = [(), (0,), (8, -1), (8.0,), (True,), 8, None, "88"]
NAN = float("nan")
LEAST = {  # section -> field -> the least value
    "dst": {"width": 1, "hidden": 1, "batch_size": 2, "steps": 1, "init_rows": 1, "settle_iterations": 0}
    | {"mi_hidden": 1, "mi_steps": 0, "dead_threshold": 0, "mi_log_variance": 0, "weight_decay": 0}
    | {"alignment_weight": 0, "uniformity_weight": 0, "reconstruction_weight": 0, "shared_reconstruction_weight": 0}
    | {"commitment_weight": 0, "codebook_weight": 0, "mi_weight": 0, "mi_specific_weight": 0},
    "rqvae": {"width": 1, "batch_size": 1, "steps": 1, "init_rows": 1, "settle_iterations": 0, "dead_threshold": 0}
    | {"reconstruction_weight": 0, "commitment_weight": 0, "codebook_weight": 0, "weight_decay": 0},
    "residual_kmeans": {"iterations": 0, "fit_rows": 1},
    "opq": {"iterations": 0, "rotations": 0, "fit_rows": 1},
    "qarm": {"neighbours": 1, "iterations": 0, "fit_rows": 1, "width": 1, "steps": 1, "batch_size": 2}
    | {"weight_decay": 0, "latest": 1, "swing_neighbours": 1, "swing_users": 2},
}
SHARES = {
    "dst": ["smoothing", "decay", "dropout", "specific_dropout", "mi_ramp"],
    "rqvae": ["warm_up", "decay", "dropout"],
    "qarm": ["dropout", "item_pairs"],
}
WHOLE = ("mi_ramp", "item_pairs")  # shares that may be 1
POSITIVE = {
    "dst": ["temperature", "kernel_width", "mi_temperature", "learning_rate", "mi_learning_rate"],
    "rqvae": ["learning_rate"],
    "qarm": ["learning_rate", "temperature"],
}
CHOICES = {
    "dst": ["standardise", "alignment", "residual", "codebooks", "mi_estimator"],
    "rqvae": ["standardise", "codebooks"],
}
SIZES = {name: "shared" if name == "dst" else "sizes" for name in TOKENIZERS}
BAD = [
    *((section, SIZES[section], bad) for section in SIZES for bad in BAD_SIZES),
    *((section, name, bad) for section, name in (("dst", "unnamed"), ("rqvae", "hidden")) for bad in BAD_SIZES[1:]),
    *((section, name, least - 1) for section, fields in LEAST.items() for name, least in fields.items()),
    *((section, name, bad) for section, fields in SHARES.items() for name in fields for bad in (-0.1, 1.1, NAN)),
    *((section, name, 1.0) for section, fields in SHARES.items() for name in fields if name not in WHOLE),
    *((s, name, bad) for s, fields in POSITIVE.items() for name in fields for bad in (0.0, -1.0, NAN, float("inf"))),
    *((section, name, "none at all") for section, fields in CHOICES.items() for name in fields),
    ("dst", "order", ("text", "image", "text")),
]


@pytest.mark.parametrize("section, name, bad", BAD)
def test_a_value_out_of_range_is_refused_by_name(section, name, bad):
    with pytest.raises(UserError, match=rf"'{section}\.{name}'.*; expected") as refused:
        dataclasses.replace(TOKENIZERS[section].config(), **{name: bad})
    assert str(bad) in str(refused.value)


@pytest.mark.parametrize("bad", BAD_SIZES[1:])
def test_sizes_of_a_modality_are_refused_by_its_name(bad):
    with pytest.raises(UserError, match=r"'dst\.specific\.image'"):
        DSTConfig(specific={"text": (8,), "image": bad})


EDGES = [(section, name, least) for section, fields in LEAST.items() for name, least in fields.items()]
EDGES += [(section, name, 0.0) for section, fields in SHARES.items() for name in fields]
EDGES += [
    ("dst", "mi_ramp", 1.0),
    ("qarm", "item_pairs", 1.0),
    ("qarm", "hidden", ()),
    ("dst", "unnamed", ()),
    ("rqvae", "hidden", ()),
    ("dst", "order", ()),
]


@pytest.mark.parametrize("section, name, edge", EDGES)
def test_the_least_value_is_accepted(section, name, edge):
    assert getattr(dataclasses.replace(TOKENIZERS[section].config(), **{name: edge}), name) == edge


@pytest.mark.parametrize("section", TOKENIZERS)
def test_settings_come_back_from_a_config_section_and_from_json(section):
    cfg = TOKENIZERS[section].config()
    as_read = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cfg).items()}
    assert joined.read_config(type(cfg), as_read) == cfg
    for values in (dataclasses.asdict(cfg), as_read):
        assert build(type(cfg), ml_collections.ConfigDict(values), section) == cfg


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_config_is_made_of_settings_and_gives_them_back(name):
    settings = TOKENIZERS[name].config()
    config = tokenizer_config(settings, seed=3, collisions="none", alarms=AlarmConfig(strict=True))
    assert (config.name, config.seed, config.collisions, config.alarms.strict) == (name, 3, "none", True)
    assert build(type(settings), config[name], name) == settings
    assert load_config(f"configs/tokenizer/{name}.py") == tokenizer_config(settings)


def test_settings_of_no_tokenizer_are_refused():
    with pytest.raises(UserError, match="a AlarmConfig.*DSTConfig"):
        tokenizer_config(AlarmConfig())


def test_sizes_of_a_modality_may_come_as_lists():
    cfg = build(DSTConfig, ml_collections.ConfigDict({"specific": {"text": [8, 4], "sound": []}}), "dst")
    assert cfg == DSTConfig(specific={"text": (8, 4), "sound": ()}) and hash(cfg) == hash(dataclasses.replace(cfg))


@pytest.mark.parametrize("where", ["widths", "specific", "order"])
def test_no_modality_is_called_as_the_shared_levels(where):
    given = {"specific": DSTConfig(specific={"shared": (8,)}), "order": DSTConfig(order=("shared",))}
    widths = {"text": 4} | ({"shared": 4} if where == "widths" else {})
    with pytest.raises(UserError, match="modality called 'shared'"):
        make_layout(given.get(where, DSTConfig()), widths, dict.fromkeys(widths, 10))


def test_causes_name_no_settings_that_a_tokenizer_lacks():
    evidence = Evidence({"sizes": (8, 8), "iterations": 5})
    evidence.add({"step": 1, "loss": 0.9, "reconstruction": 0.9, "gradient_norm": 1e6})
    causes = [evidence.why_not_finite(), evidence.why_not_rebuilt(), evidence.why_stale()]
    causes += [evidence.why_a_point("shared"), evidence.why_unused("shared/0", 8, 10_000)]
    for cause in causes:
        assert cause.startswith("likely cause: ") and "None" not in cause and "_rate" not in cause, cause
