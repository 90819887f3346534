from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import training_fixtures
from fixtures import tiny_dataset
from run_fixtures import equal, lines
from training_fixtures import CONFIG, compile_once, init_fn, loss_fn, pipeline_of, same_group  # noqa: F401

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.training import checkpoints
from hisam_jax.training.assembly import Assembly
from hisam_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("compile_once")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "dataset", users=40)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory) -> Path:
    """The folder of a whole run; tests work on copies."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    run(dataset, workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def run(dataset, workdir, config=CONFIG, init=init_fn, pipeline=None, **options):
    options = {"evaluators": [same_group], **options}
    return train(loss_fn, init, pipeline or (lambda: pipeline_of(dataset)), config, workdir, **options)


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, training_fixtures.__file__, *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def flip(folder: Path) -> None:
    """Changes one bit in the middle of the largest file of arrays below a folder."""
    file = max((file for file in folder.rglob("d/*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def save_again(workdir: Path, state, **memory) -> None:
    """Saves a state that was saved before, as the only one that is kept."""
    saved = checkpoints.describe(workdir / "checkpoints", int(state.step))
    memory = {**saved.memory, **memory}
    checkpoints.save(workdir / "checkpoints", state, saved.positions, saved.identity, memory, keep=1).finish()


@contextlib.contextmanager
def files_no_larger_than(size: int):
    """Lets writing fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_never_was(dataset, finished, tmp_path):
    kills = ["save", "0.06", "save", ""]
    interrupted = []
    for when in kills:
        process = start(str(dataset.path), str(tmp_path), *([when] if when else []))
        _, printed = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), printed
        interrupted.append("ignored the incomplete checkpoint" in printed)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert any(interrupted), "no kill hit a save"
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(tmp_path, "last"))
    assert equal(checkpoints.load_params(finished, "best"), checkpoints.load_params(tmp_path, "best"))
    assert lines(finished) == lines(tmp_path)


def test_sigterm_in_this_process_saves_the_very_step(dataset, finished, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(dataset, tmp_path, on_step=lambda step, _: step == 9 and os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 143
    assert checkpoints.saved_steps(tmp_path / "checkpoints")[-1] in (10, 11)
    run(dataset, tmp_path)
    assert lines(finished) == lines(tmp_path)


def test_the_last_and_the_best_are_kept(workdir):
    steps = checkpoints.saved_steps(workdir / "checkpoints")
    best = checkpoints.describe(workdir / "checkpoints", 24).memory["best_step"]
    assert steps == sorted({20, 24, best})


def test_an_incomplete_checkpoint_is_ignored_with_a_word(dataset, finished, workdir, caplog):
    shutil.rmtree(workdir / "checkpoints" / "24")
    torn = workdir / "checkpoints" / "24.orbax-checkpoint-tmp-7"
    shutil.copytree(workdir / "checkpoints" / "20" / "params", torn / "params")
    with caplog.at_level(logging.WARNING):
        run(dataset, workdir)
    assert f"ignored the incomplete checkpoint {torn}" in caplog.text
    assert not torn.exists()
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(workdir, "last"))
    assert lines(finished) == lines(workdir)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(dataset, finished, workdir, caplog):
    for file in (workdir / "checkpoints" / "24" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        run(dataset, workdir)
    assert "24 cannot be read; going on from step 20" in caplog.text
    assert (workdir / "checkpoints" / "damaged-24").is_dir()
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(workdir, "last"))
    assert lines(finished) == lines(workdir)


@pytest.mark.parametrize("part", ["params", "state"])
def test_a_flipped_bit_is_damage(part, dataset, finished, workdir, caplog):
    flip(workdir / "checkpoints" / "24" / part)
    with caplog.at_level(logging.WARNING):
        run(dataset, workdir)
    assert "24 cannot be read; going on from step 20" in caplog.text
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(workdir, "last"))
    assert lines(finished) == lines(workdir)


def test_parameters_with_a_flipped_bit_are_refused_in_one_line(workdir):
    flip(workdir / "checkpoints" / "24" / "state")
    checkpoints.load_params(workdir, "last")
    flip(workdir / "checkpoints" / "24" / "params")
    with pytest.raises(UserError, match="24: unreadable checkpoint .*params/.* has changed since it was saved"):
        checkpoints.load_params(workdir, "last")


def test_every_file_has_a_checksum_and_without_them_nothing_is_checked(dataset, finished, workdir, caplog):
    for step in checkpoints.saved_steps(workdir / "checkpoints"):
        path = workdir / "checkpoints" / str(step)
        names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        assert json.loads((path / "checksums.json").read_text()).keys() == names - {"checksums.json"}
    (path / "checksums.json").unlink()  # as a kill behind the commit leaves it
    with caplog.at_level(logging.WARNING):
        assert int(run(dataset, workdir).step) == 24
    assert "cannot be read" not in caplog.text
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(workdir, "last"))


def test_a_step_may_be_damaged_more_than_once(dataset, finished, workdir):
    for _ in range(3):
        (workdir / "checkpoints" / "24" / "_CHECKPOINT_METADATA").write_text("{}")
        run(dataset, workdir)
    aside = {path.name for path in (workdir / "checkpoints").glob("damaged-*")}
    assert aside == {"damaged-24", "damaged-24-2", "damaged-24-3"}
    assert lines(finished) == lines(workdir)


def test_what_another_process_cannot_read_is_passed_over_here_too(dataset, workdir, caplog, monkeypatch):
    answers = iter([True])
    monkeypatch.setattr(checkpoints, "agree", lambda flag, timeout: next(answers, flag))
    with caplog.at_level(logging.WARNING):
        run(dataset, workdir)
    assert "24 cannot be read; going on from step 20" in caplog.text
    monkeypatch.setattr(checkpoints, "agree", lambda flag, timeout: True)
    with pytest.raises(UserError, match="no checkpoint can be read .another process cannot read it"):
        run(dataset, workdir)
    with pytest.raises(UserError, match="unreadable checkpoint .another process cannot read it"):
        checkpoints.load_params(workdir)


def test_a_lost_process_is_no_damage(dataset, workdir, monkeypatch):
    def lose(*_):
        raise RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:41347")

    monkeypatch.setattr(checkpoints.ocp, "load_checkpointables", lose)
    with pytest.raises(RuntimeError, match="closed by peer"):
        run(dataset, workdir)
    assert checkpoints.saved_steps(workdir / "checkpoints")[-1] == 24


def test_saved_again_the_old_one_stays_until_the_new_one_is_whole(dataset, workdir):
    state, folder = run(dataset, workdir), workdir / "checkpoints"
    save_again(workdir, state, stale=7)
    assert [path.name for path in folder.iterdir()] == ["24"]
    assert checkpoints.describe(folder, 24).memory["stale"] == 7
    params = checkpoints.load_params(workdir)
    with files_no_larger_than(1000), pytest.raises(UserError, match="disk is full.*last good checkpoint: step 24"):
        save_again(workdir, state, stale=8)
    assert [path.name for path in folder.iterdir()] == ["24"]
    assert checkpoints.describe(folder, 24).memory["stale"] == 7
    assert equal(params, checkpoints.load_params(workdir)) and int(run(dataset, workdir).step) == 24


@pytest.mark.parametrize("both", [False, True])
def test_killed_while_the_new_one_takes_the_place_of_the_old(both, dataset, finished, workdir, caplog):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "24", folder / "24.again")
    if not both:
        (folder / "24").rename(folder / ".retired-24")
    with caplog.at_level(logging.WARNING):
        run(dataset, workdir)
    assert not caplog.text
    assert {path.name for path in folder.iterdir()} == {path.name for path in (finished / "checkpoints").iterdir()}
    assert equal(checkpoints.load_params(finished, "last"), checkpoints.load_params(workdir, "last"))


def test_only_the_main_process_tidies_up_behind_a_full_disk(dataset, workdir, monkeypatch):
    state, torn = run(dataset, workdir), workdir / "checkpoints" / "28.orbax-checkpoint-tmp-7"
    monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", no_room)
    monkeypatch.setattr(checkpoints, "is_main", lambda: False)
    torn.mkdir()
    with pytest.raises(UserError, match="disk is full"):
        save_again(workdir, state)
    assert torn.is_dir()
    remove = shutil.rmtree

    def lose_a_race(path):
        remove(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(checkpoints, "is_main", lambda: True)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lose_a_race)
    with pytest.raises(UserError, match="disk is full"):
        save_again(workdir, state)
    assert not torn.exists()


def test_when_none_can_be_read_nothing_is_trained_over_them(dataset, workdir):
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="no checkpoint can be read.*move the folder away"):
        run(dataset, workdir)
    with pytest.raises(UserError, match="unreadable checkpoint"):
        checkpoints.load_params(workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"config": dataclasses.replace(CONFIG, seed=6)}, "training.seed was 5, is 6"),
        ({"identity": {"model": {"layers": 2}}}, "model.layers was 'absent', is 2"),
        ({"workers": 1}, "data.workers was 0, is 1"),
        ({"rows": 5}, "data.rows was 4, is 5"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_field(dataset, workdir, change, word):
    options = {name: change.pop(name) for name in ("workers", "rows") if name in change}
    with pytest.raises(UserError, match=word):
        run(dataset, workdir, pipeline=lambda: pipeline_of(dataset, **options), **change)
    assert checkpoints.saved_steps(workdir / "checkpoints")[-1] == 24


def test_a_switch_that_came_later_and_is_off_changes_nothing(dataset, workdir):
    run(dataset, workdir, identity={"model": {"window": 0, "split": []}})
    with pytest.raises(UserError, match="model.window was 'absent', is 5"):
        run(dataset, workdir, identity={"model": {"window": 5}})
    now = types.SimpleNamespace(identity=lambda: {"model": {"layers": 2, "window": 0}, "ids_checksum": "a"})
    assert Assembly.differs_from(now, {"model": {"layers": 2}, "ids_checksum": "a"}) is None
    assert Assembly.differs_from(now, {"model": {"layers": 3}, "ids_checksum": "a"}) == "model"
    assert Assembly.differs_from(now, {"model": {"layers": 2, "window": 4}, "ids_checksum": "a"}) == "model"
    assert Assembly.differs_from(now, {"model": {"window": 0}, "ids_checksum": "a"}) == "model"


def test_the_time_limit_and_the_number_kept_may_change(dataset, workdir):
    run(dataset, workdir, dataclasses.replace(CONFIG, max_minutes=60.0, keep=5))


def test_a_full_disk_keeps_the_last_good_checkpoint(dataset, tmp_path):
    def with_ballast(key, batch):
        return {**init_fn(key, batch), "ballast": jax.random.normal(key, (512, 512))}

    def fill_up(step, values):
        if step == 5:
            while not checkpoints.saved_steps(tmp_path / "checkpoints"):  # it is written while training goes on
                time.sleep(0.01)
            full.enter_context(files_no_larger_than(200_000))

    with contextlib.ExitStack() as full:
        with pytest.raises(UserError, match="disk is full.*step 8.*last good checkpoint: step 4"):
            run(dataset, tmp_path, init=with_ballast, on_step=fill_up)
    assert checkpoints.saved_steps(tmp_path / "checkpoints") == [4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert int(run(dataset, tmp_path, init=with_ballast).step) == 24


def test_parameters_alone_are_a_plain_dict(workdir):
    params = checkpoints.load_params(workdir, "last")
    assert type(params) is dict and type(params["item"]) is dict
    assert params["item"]["embedding"].dtype == np.float32


def test_no_checkpoint_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.load_params(tmp_path)


def test_typed_keys_and_steps_come_back_as_they_were(dataset, workdir):
    state = run(dataset, workdir)
    assert jax.dtypes.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert state.step.dtype == np.int32 and int(state.step) == 24
