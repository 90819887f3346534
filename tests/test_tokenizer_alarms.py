"""Alarms: each symptom is reported once, with the cause that the evidence shows; real collapses raise them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures import tiny_dataset

from hisam_jax import cli
from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset, write_manifest
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.alarms import Alarm, AlarmConfig, Watch
from hisam_jax.tokenizer.run import tokenize

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tokenizer"
SOUND = {
    "loss": 3.0,
    "reconstruction": 0.6,
    "commitment": 1.0,
    "gradient_norm": 1.0,
    "used/shared/0": 1.0,
    "perplexity/shared/0": 90.0,
    "spread/shared": 0.8,
}
SETTINGS = {"learning_rate": 1e-3, "commitment_weight": 0.25, "alignment_weight": 1.0, "reconstruction_weight": 4.0}
SETTINGS |= {"dead_threshold": 0.03, "codebooks": "ema", "mi_steps": 5, "mi_learning_rate": 1e-3}
BEGIN = SOUND | {"reconstruction": 1.0, "perplexity/shared/0": 100.0}


def watch(
    rows: list[dict], settings: dict | None = None, items: int = 10_000, total: int = 100, **config
) -> list[Alarm]:
    """What rows, ten steps apart, raise."""
    heard: list[Alarm] = []
    judge = Watch(AlarmConfig(**config), items, SETTINGS | (settings or {}), heard.append)
    for number, row in enumerate(rows, 1):
        judge(10 * number, total, row)
    assert heard == judge.raised
    return heard


def test_a_sound_run_is_silent():
    assert watch([BEGIN, *[SOUND] * 9]) == []


@pytest.mark.parametrize(
    ("ill", "kind", "subject"),
    [
        ({"used/shared/0": 0.4}, "utilisation", "shared/0"),
        ({"perplexity/shared/0": 4.0}, "perplexity", "shared/0"),
        ({"spread/shared": 1e-6}, "spread", "shared"),
        ({"reconstruction": 1.1}, "reconstruction", "reconstruction"),
        ({"mi_codes/shared/0|text/0": 0.9, "mi/shared|text": 0.0}, "bound", "mi/shared|text"),
        ({"loss": float("nan")}, "not_finite", "loss"),
    ],
)
def test_each_symptom_is_reported_once_and_names_its_level(ill, kind, subject):
    (alarm,) = watch([BEGIN, BEGIN, *[SOUND | ill] * 8])
    assert (alarm.kind, alarm.subject, alarm.step) == (kind, subject, 30)
    assert subject in alarm.line() and alarm.expected in alarm.line() and alarm.cause in alarm.line()
    assert alarm.line().count("\n") == 0


@pytest.mark.parametrize(
    ("first", "ill", "settings", "items", "cause"),
    [
        ({}, {"used/shared/0": 0.1}, {"dead_threshold": 0}, 10_000, "not re-seeded"),
        ({}, {"used/shared/0": 0.1}, {}, 250, "too few items, 250 for 100 codes"),
        ({}, {"used/shared/0": 0.1}, {"codebooks": "gradient"}, 10_000, "gradient lag"),
        ({}, {"perplexity/shared/0": 2.0}, {}, 10_000, "alike in this level"),
        ({"spread/shared": 0.0}, {"spread/shared": 0.0}, {}, 10_000, "the features of all items are the same"),
        ({}, {"spread/shared": 0.0, "gradient_norm": 1e4}, {}, 10_000, "learning_rate (0.001) too high"),
        ({}, {"spread/shared": 0.0}, {"learning_rate": 1.0}, 10_000, "learning_rate (1.0) too high"),
        ({}, {"spread/shared": 0.0}, {"commitment_weight": 100.0}, 10_000, "commitment_weight (100.0) swamps"),
        (
            {"alignment": 5.5},
            {"spread/shared": 0.0},
            {"alignment_weight": 50.0},
            10_000,
            "alignment_weight (50.0) swamps",
        ),
        (
            {},
            {"commitment": 0.01, "perplexity/shared/0": 2.0},
            {},
            10_000,
            "is too much for reconstruction_weight (4.0)",
        ),
        ({}, {"spread/shared": 0.0}, {"weight_decay": 20.0}, 10_000, "weight_decay (20.0) takes the weights to 0"),
        ({}, {"reconstruction": 1.2}, {"reconstruction_weight": 0}, 10_000, "reconstruction_weight is 0"),
        ({"reconstruction": 50.0}, {"reconstruction": 1.2}, {}, 10_000, "reconstruction_weight (4.0) too low"),
        ({"gradient_norm": 1e6}, {"loss": float("inf")}, {}, 10_000, "gradients had grown to 1e+06"),
    ],
)
def test_the_cause_is_what_the_evidence_shows(first, ill, settings, items, cause):
    raised = watch([BEGIN | first, BEGIN | first, SOUND | first | ill], settings, items)
    assert raised and all(cause in alarm.cause for alarm in raised), [alarm.line() for alarm in raised]


def test_only_what_cannot_mend_itself_counts_at_first():
    early = [BEGIN, SOUND | {"used/shared/0": 0.1, "perplexity/shared/0": 1.0}]
    assert watch(early, total=1000) == []
    assert {alarm.kind for alarm in watch(early, total=1000, after=0.0)} == {"utilisation", "perplexity"}
    assert [alarm.kind for alarm in watch([BEGIN, SOUND | {"spread/shared": 0.0}], total=1000)] == ["spread"]


def test_thresholds_are_those_of_the_config():
    ill = [BEGIN, BEGIN, SOUND | {"used/shared/0": 0.4, "perplexity/shared/0": 30.0}]
    assert watch(ill, min_utilisation=0.3) == []
    assert [alarm.kind for alarm in watch(ill, min_utilisation=0.0, min_perplexity=0.5)] == ["perplexity"]
    with pytest.raises(UserError, match=r"alarms\.after.*1\.5.*share"):
        AlarmConfig(after=1.5)


def test_strict_ends_the_run_at_the_first_alarm():
    with pytest.raises(UserError, match=r"shared/0.*40%.*at step 30.*at least 50%.*likely cause"):
        watch([BEGIN, BEGIN, SOUND | {"used/shared/0": 0.4}, SOUND], strict=True)


def test_finished_codes_are_judged_by_their_true_sizes():
    judge = Watch(AlarmConfig(), 40, SETTINGS, lambda alarm: None)
    level = {"name": "text/0", "utilisation": 0.15, "perplexity": 20.0, "size": 256, "items": 40}
    judge.check_levels([level | {"name": "image/0", "utilisation": 0.9, "perplexity": 150.0}, level])
    assert [(alarm.kind, alarm.subject) for alarm in judge.raised] == [
        ("utilisation", "text/0"),
        ("perplexity", "text/0"),
    ]
    assert "too few items, 40 for 256 codes" in judge.raised[0].cause and "finished codes" in judge.raised[0].line()


def test_a_fit_that_breaks_off_ends_as_a_user_error():
    judge = Watch(AlarmConfig(), 100, SETTINGS)
    with pytest.raises(UserError, match=r"loss is not finite at step 40.*learning_rate \(0.001\)"), judge.last_words():
        raise FloatingPointError("DST: loss is not finite at step 40")


def text_dataset(path: Path, change) -> Dataset:
    """A dataset of texts alone, its features changed and signed again."""
    data = tiny_dataset(path, features={"text": 16}, items=300, missing=0.0)
    values = np.load(path / "features" / "text.npy")
    np.save(path / "features" / "text.npy", change(values).astype(np.float32))
    write_manifest(path, {name: value for name, value in data.manifest.items() if name != "files"})
    return Dataset.load(path)


SMALL = {"dst.shared": "(16,)", "dst.specific.text": "(16,)", "dst.width": "8", "dst.hidden": "16"}
SMALL |= {"dst.specific.image": "()", "dst.batch_size": "64", "dst.steps": "80"}


@pytest.mark.slow
def test_items_that_are_all_the_same_end_a_strict_run_and_leave_nothing(tmp_path, capsys):
    data = text_dataset(tmp_path / "data", np.ones_like)
    line = ["tokenize", "--dataset", data.path, "--config", CONFIGS / "dst.py", "--out", tmp_path / "ids"]
    line += [f"--config.{name}={value}" for name, value in (SMALL | {"alarms.strict": "True"}).items()]
    assert cli.main([str(word) for word in line]) == 2
    shown = capsys.readouterr()
    refusal = shown.err.splitlines()[-1]
    assert refusal.startswith("hisam: error: ") and "the features of all items are the same" in refusal
    assert "hisam: alarm: step 20" in shown.err and shown.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.slow
def test_a_training_that_collapses_is_reported_while_it_runs_and_written_down(tmp_path, capsys):
    """No re-seeding, books by gradient and a learning rate of 3: latents end on a few points."""
    data = text_dataset(tmp_path / "data", lambda values: values)
    ill = {"dst.learning_rate": "3.0", "dst.dead_threshold": "0.0", "dst.codebooks": "gradient", "dst.decay": "0.8"}
    seen = []

    def progress(done, total, row):
        seen.append((done, "hisam: alarm" in capsys.readouterr().err))

    config = load_config(CONFIGS / "dst.py", SMALL | ill | {"alarms.min_perplexity": "0.3"})
    report = tokenize(data.path, config, tmp_path / "ids", progress=progress)
    raised = report["alarms"]
    assert {"perplexity", "spread", "utilisation"} & {alarm["kind"] for alarm in raised}
    first = min(alarm["step"] for alarm in raised if alarm["step"])
    assert first < 80 and any(heard for done, heard in seen if done > first)
    assert any("learning_rate (3.0) too high" in alarm["cause"] for alarm in raised)
    assert json.loads((tmp_path / "ids" / "diagnostics.json").read_text())["alarms"] == raised


@pytest.mark.slow
def test_an_rqvae_whose_weights_decay_to_nothing_is_stopped_with_that_cause(tmp_path):
    data = text_dataset(tmp_path / "data", lambda values: values)
    ill = {"rqvae.unit_latents": "False", "rqvae.weight_decay": "20.0", "rqvae.learning_rate": "0.01"}
    ill |= {"rqvae.sizes": "(16, 16)", "rqvae.hidden": "(16,)", "rqvae.width": "8", "rqvae.steps": "1000"}
    steps = []
    config = load_config(CONFIGS / "rqvae.py", ill | {"rqvae.batch_size": "64", "alarms.strict": "True"})
    with pytest.raises(UserError, match=r"shared.*latents are a point.*weight_decay \(20\.0\)"):
        tokenize(data.path, config, tmp_path / "ids", progress=lambda done, *_: steps.append(done))
    assert steps[-1] < 200  # at once, long before `after`
    assert not (tmp_path / "ids").exists()
