"""Cells that are handed out: each done once, failures tried again or kept, what stops us stops them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from hisam_jax.cells import pool, processes
from hisam_jax.cells.pool import Pool, Work, share
from hisam_jax.cells.processes import CellFiles, Failed, begin_cell, check_same, failure_of, note_failure, tries_of
from hisam_jax.claims import claim
from hisam_jax.errors import UserError


def work_over(folder: Path, fails: dict[str, int], again=lambda cell, error: False, did=None) -> Work:
    """Cells that fail so often and then leave a file."""
    did = [] if did is None else did

    def run(cell: str, lock: int, stop: threading.Event) -> None:
        did.append(cell)
        if fails.get(cell, 0) > 0:
            fails[cell] -= 1
            raise Failed(f"{cell} broke", 1)
        (folder / cell).touch()

    return Work("test", folder / "locks", Path, lambda cell: (folder / cell).exists(), run, lambda: None, again)


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_cell_is_done_once_and_a_failure_keeps_no_other_back(jobs, tmp_path):
    did: list[str] = []
    failed = Pool(work_over(tmp_path, {"b": 9}, did=did), ["a", "b", "c", "d"], jobs).work()
    assert failed == {"b": "b broke"} and sorted(did) == ["a", "b", "c", "d"]


def test_a_cell_that_may_go_better_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "WAIT_SECONDS", 0.0)
    did: list[str] = []
    failed = Pool(work_over(tmp_path, {"a": 2}, lambda cell, error: len(did) < 5, did), ["a"], 1).work()
    assert failed == {} and did == ["a"] * 3


def test_a_cell_that_another_holds_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "WAIT_SECONDS", 0.05)
    did: list[str] = []
    with claim(tmp_path / "locks" / "a.lock"):
        threading.Timer(0.3, (tmp_path / "a").touch).start()
        assert Pool(work_over(tmp_path, {}, did=did), ["a", "b"], 1).work() == {} and did == ["b"]


def test_what_is_a_users_to_mend_ends_all(tmp_path):
    def run(cell, lock, stop):
        raise UserError("no such thing", field="here")

    work = Work("test", tmp_path / "locks", Path, lambda cell: False, run, lambda: None)
    with pytest.raises(UserError, match="no such thing"):
        Pool(work, ["a", "b"], 2).work()


def test_failures_are_counted_and_settings_kept(tmp_path):
    assert failure_of(tmp_path) is None and tries_of(tmp_path) == 0
    for _ in range(2):
        note_failure(tmp_path, Failed("broke"))
    assert failure_of(tmp_path) == "broke" and tries_of(tmp_path) == 2
    check_same(tmp_path / "task.json", {"run": {"steps": 3}}, tmp_path, "remove it")
    check_same(tmp_path / "task.json", {"run": {"steps": 3}}, tmp_path, "remove it")
    with pytest.raises(UserError, match=r"run.*|steps.*remove it"):
        check_same(tmp_path / "task.json", {"run": {"steps": 4}}, tmp_path, "remove it")


FILES = CellFiles("task.json", "cell.json", ("run", "plan.json"))
OLD, MENDED = {"run": {"steps": 3}}, {"run": {"steps": 4}}


def begun(folder: Path) -> Path:
    """A cell that began with the old settings and left something, but no checkpoint."""
    begin_cell(folder, FILES, OLD, "remove it")
    (folder / "run").mkdir()
    for name in ("run/run.json", "plan.json", "log", "notes.txt"):
        (folder / name).write_text("old")
    return folder


def test_a_cell_that_failed_with_nothing_to_show_begins_anew_when_mended(tmp_path):
    folder = begun(tmp_path)
    note_failure(folder, Failed("broke"))
    begin_cell(folder, FILES, OLD, "remove it")  # the same again: a further try, of which nothing is thrown away
    assert tries_of(folder) == 1 and (folder / "plan.json").is_file()
    begin_cell(folder, FILES, MENDED, "remove it")
    assert json.loads((folder / "task.json").read_text()) == MENDED and tries_of(folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["log", "notes.txt", "task.json"]
    with pytest.raises(UserError, match="steps was 4, is 3.*remove it"):
        begin_cell(folder, FILES, OLD, "remove it")  # it has not failed with these


@pytest.mark.parametrize("has", ["no failure", "a checkpoint", "its result"])
def test_a_cell_with_something_to_lose_is_not_begun_anew(has, tmp_path, monkeypatch):
    folder = begun(tmp_path)
    if has != "no failure":
        note_failure(folder, Failed("broke"))
    if has == "its result":
        (folder / "cell.json").touch()
    monkeypatch.setattr(processes, "saved_steps", lambda of: [2] if has == "a checkpoint" else [])
    with pytest.raises(UserError, match="was made with other settings"):
        begin_cell(folder, FILES, MENDED, "remove it")
    assert (folder / "run" / "run.json").is_file() and json.loads((folder / "task.json").read_text()) == OLD


@pytest.mark.parametrize(("jobs", "given", "expected"), [(3, None, "0.300"), (1, None, None), (2, "0.2", "0.2")])
def test_jobs_share_a_gpus_memory(jobs, given, expected, tmp_path, monkeypatch):
    monkeypatch.delenv(pool.FRACTION, raising=False)
    if given:
        monkeypatch.setenv(pool.FRACTION, given)
    seen = []

    def run(cell, lock, stop):
        seen.append(os.environ.get(pool.FRACTION))
        (tmp_path / cell).touch()

    work = Work("test", tmp_path / "locks", Path, lambda cell: (tmp_path / cell).exists(), run, lambda: None)
    assert Pool(work, ["a"], jobs).work() == {}
    assert seen == [expected] and os.environ.get(pool.FRACTION) == given


def test_jobs_share_the_cores():
    assert [share(range(5), number, 2) for number in (0, 1)] == [{0, 2, 4}, {1, 3}]
    assert share([7], 3, 4) == {7}
