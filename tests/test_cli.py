"""The command line: every flag documented, every mistake one line and exit code 2, results on stdout."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hisam_jax
from hisam_jax import cli
from hisam_jax.cli import reader_flags
from hisam_jax.cli.common import split_overrides
from hisam_jax.data.prepare import prepare
from hisam_jax.data.readers import READERS, reader_options
from hisam_jax.data.shop import ShopConfig

VERBS = cli.build_parser()._subparsers._group_actions[0].choices
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    {body}
    return ConfigDict(dict(seed=0))
"""


def _hisam(*arguments: object, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hisam_jax", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def _refusal(capsys, *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("hisam: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_help_lists_the_verbs_and_starts_no_heavy_library():
    done = _hisam("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"    {verb}" in done.stdout for verb in VERBS)
    code = (
        "import sys, hisam_jax.cli; print([m for m in ('jax', 'polars', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_says_what_each_flag_is_when_left_out(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for action in VERBS[verb]._actions:
        if not isinstance(action, argparse._HelpAction) and action.option_strings:
            described = text.split(f" {action.option_strings[0]} ", 2)[-1]
            assert action.help and ("(required)" in described or "(default: " in described), action


def test_defaults_are_those_of_the_functions_behind():
    flags = {action.dest: action.default for action in VERBS["prepare"]._actions}
    behind = {name: entry.default for name, entry in inspect.signature(prepare).parameters.items()}
    assert flags["cache"] is behind["cache_dir"] is None
    shared = flags.keys() & behind.keys() - {"source", "raw", "out"}
    assert len(shared) == 12 and {name: flags[name] for name in shared} == {name: behind[name] for name in shared}


@pytest.mark.parametrize("source", READERS)
def test_every_option_of_a_reader_is_a_flag_with_its_default(source):
    behind = dataclasses.asdict(ShopConfig()) if source == "shop" else reader_options(source)
    flags = [flag for flags in reader_flags.GROUPS.values() for flag in flags if source in flag.defaults]
    assert {flag.option: flag.defaults[source] for flag in flags} == behind


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", "required: VERB"),
        ("trian", "unknown verb 'trian'; expected 'train', or another of"),
        ("report", "required: --workdir (see `hisam report --help`)"),
        ("report --wordkir x --workdir y", "unknown argument '--wordkir'; expected '--workdir'"),
        ("report --work x", "required: --workdir"),
        ("recommend --workdir x", "one of the arguments --user --history is required"),
        ("recommend --workdir x --user a --history b", "not allowed with argument"),
        ("recommend --workdir x --user a -k 0", "argument -k: '0'; expected a whole number of at least 1"),
        ("recommend --workdir x --history a,,b", "'a,,b'; expected names joined by commas"),
        ("evaluate --workdir x --split train", "invalid choice: 'train'"),
        ("prepare --source shop --out x --max-rejected 2", "--max-rejected: '2'; expected a number from 0 to 1"),
        ("prepare --source shop --out x --seed -1", "--seed: '-1'; expected a whole number from 0 to 4294967295"),
        ("prepare --source movielens --out x", "field '--raw': no folder of raw data; expected --raw DIR"),
        (
            "prepare --source movielens --raw r --out x --shop-users 5",
            "field '--shop-users': no flag of --source movielens; expected --source shop",
        ),
        ("report --workdir x --config.a=1", "field '--config.a': hisam report takes no config"),
        ("report --workdir x --config.a", "expected --config.a=VALUE"),
        ("train --dataset d --ids i --config c --workdir w --mix a=1 --mix a/=2", "'--mix': a/ twice; expected each"),
        ("tokenize --dataset d --out o --config none.py", "none.py: no such config file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(line, expected, capsys):
    assert expected in _refusal(capsys, *line.split())


def test_overrides_are_taken_out_of_the_line():
    line = ["train", "--config", "a.py", "--config.model.layers=4", "--config.name", "x=y", "--config.rate=-1e-3"]
    rest, overrides = split_overrides(line)
    assert rest == ["train", "--config", "a.py"]
    assert overrides == {"model.layers": "4", "name": "x=y", "rate": "-1e-3"}


@pytest.mark.parametrize(
    "line",
    [
        "tokenize --dataset gone --config {configs}/tokenizer/dst.py --out out",
        "train --dataset gone --ids ids --config {configs}/shop.py --workdir out",
        "evaluate --workdir gone",
        "recommend --workdir gone --user 1",
        "report --workdir gone",
        "prepare --source table --raw gone --out out",
    ],
)
def test_an_input_that_is_not_there_is_the_users_to_mend(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = line.format(configs=Path(__file__).parents[1] / "configs")
    assert "gone" in _refusal(capsys, *line.split())
    assert os.listdir(tmp_path) == []


def test_a_config_of_another_kind_is_the_users_to_mend(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text(CONFIG.format(body="pass"))
    line = ["tokenize", "--dataset", "d", "--out", "o", "--config", config]
    assert "field 'name': missing config field; expected a config with name" in _refusal(capsys, *line)


def test_an_unknown_config_field_names_the_nearest(tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text(CONFIG.format(body="pass"))
    line = ["tokenize", "--dataset", "d", "--out", "o", "--config", config, "--config.sede=1"]
    assert "c.py: field 'sede': unknown config field; expected seed" in _refusal(capsys, *line)


def _shop(tmp_path: Path) -> list[object]:
    sizes = ["--shop-users", 30, "--shop-items", 64, "--shop-picture-size", 32]
    return ["prepare", "--source", "shop", *sizes, "--image-encoder", "none", "--out", tmp_path / "shop"]


def test_prepare_prints_its_summary_on_stdout_and_progress_on_stderr(tmp_path):
    done = _hisam(*_shop(tmp_path))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["dataset"] == str(tmp_path / "shop") and summary["users"] == 30
    assert summary["split"]["protocol"] == "leave_one_out"
    assert summary == summary | {
        key: json.loads((tmp_path / "shop" / "manifest.json").read_text())[key]
        for key in ("users", "items", "interactions", "modalities", "split", "rejected", "history", "cold")
    }


@pytest.mark.parametrize("unbuffered", ["", "1"])  # buffered, what could not be written is there still at exit
def test_a_full_disk_behind_stdout_is_one_line(tmp_path, unbuffered):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hisam_jax", *map(str, _shop(tmp_path))]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and "stdout: the disk is full" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and (tmp_path / "shop" / "manifest.json").is_file()


def test_a_reader_that_goes_away_is_no_error():
    code = "from hisam_jax.cli.common import *; write_result(Lines({'rank': n} for n in range(10**5)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline()) == {"rank": 0}
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 0)
    process.stderr.close()


def test_control_c_is_one_line_and_130(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG.format(body="open('started', 'w'); __import__('time').sleep(60)"))
    command = [sys.executable, "-m", "hisam_jax", *"tokenize --dataset d --out o --config c.py".split()]
    environment = os.environ | {"PYTHONPATH": str(Path(hisam_jax.__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "hisam: interrupted\n" and process.returncode == 130


def test_results_may_hold_numpy_values_and_paths(capsys):
    cli.write_result({"auc": np.float32(0.5), "ranks": np.arange(3), "where": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"auc": 0.5, "ranks": [0, 1, 2], "where": "x"}
    cli.write_result(Path("run/report.html"))
    assert capsys.readouterr().out == "run/report.html\n"


@pytest.mark.parametrize("name", hisam_jax.__all__)
def test_the_public_surface_is_there(name):
    assert getattr(hisam_jax, name) is not None and name in dir(hisam_jax)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hisam_jax' has no attribute 'HMTA'"):
        _ = hisam_jax.HMTA


def test_help_gives_defaults_as_they_are(capsys):
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "between a token_seq's words (default: a space)" in text
    assert "item titles (default: the usual name where there is one)" in text


def test_a_device_without_memory_is_one_line(monkeypatch, capsys):
    """JAX's own error, for real: more than any machine has."""
    monkeypatch.setattr("hisam_jax.training.run.train", lambda *_: jax.block_until_ready(jnp.zeros(2**50, jnp.float32)))
    config = Path(__file__).parents[1] / "configs" / "shop.py"
    arguments = ["train", "--dataset", "d", "--ids", "i", "--config", config, "--workdir", "w"]
    said = _refusal(capsys, *arguments)
    assert "memory is full" in said and "hisam compile" in said
