"""Outputs are whole or absent, under SIGKILL at every file operation and on a full disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, atomic_write, sha256_file, sha256_of

KILLED_AT_EVERY_OPERATION = """
import os, shutil, signal, sys
from pathlib import Path
from hisam_jax.files import atomic_directory

out, operations = Path(sys.argv[1]), {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}

def write(word):
    with atomic_directory(out) as scratch:
        for name in ("a", "b"):
            (scratch / name).write_text(word)

def read():
    return {file.name: file.read_text() for file in out.iterdir()}

def kill_at(turn):
    seen = 0
    def hook(event, _):
        nonlocal seen
        if event in operations:
            seen += 1
            if seen == turn:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

OLD, NEW = {"a": "old", "b": "old"}, {"a": "new", "b": "new"}
turn, states = 0, set()
while True:
    turn += 1
    shutil.rmtree(out.parent, ignore_errors=True)
    write("old")
    child = os.fork()
    if child == 0:
        kill_at(turn)
        write("new")
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if out.exists():
        assert read() in (OLD, NEW), (turn, read())
    states.add("absent" if not out.exists() else read()["a"])
    try:
        with atomic_directory(out):
            before = out.exists() and read()
            assert before in (OLD, NEW), (turn, before)  # nothing was lost, even killed between the renames
            raise KeyError
    except KeyError:
        assert read() == before
    write("new")
    assert read() == NEW and os.listdir(out.parent) == [out.name], (turn, os.listdir(out.parent))
    if not killed:
        break
print(turn, *sorted(states))
"""

FULL_DISK = """
import resource, sys
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_directory, atomic_write

resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    if sys.argv[1] == "file":
        atomic_write(sys.argv[2], b"x" * 10**6)
    else:
        with atomic_directory(sys.argv[2]) as scratch:
            (scratch / "a").write_bytes(b"x" * 10**6)
except UserError as error:
    print(error)
"""


def _run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_directory_survives_a_kill_at_every_file_operation(tmp_path):
    turns, *states = _run(KILLED_AT_EVERY_OPERATION, tmp_path / "parent" / "out").split()
    assert int(turns) > 8  # so many operations, each killed once
    assert states == ["absent", "new", "old"]  # 'absent' is the moment between the two renames


def test_a_full_disk_is_a_user_error_and_keeps_what_was_there(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    with atomic_directory(folder) as scratch:
        (scratch / "a").write_text("old")
    atomic_write(file, "old")
    assert f"{folder} the disk is full" in _run(FULL_DISK, "folder", folder).replace(":", "")
    assert f"{file} the disk is full" in _run(FULL_DISK, "file", file).replace(":", "")
    assert (folder / "a").read_text() == file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_failed_block_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "deep" / "out") as scratch:
        (scratch / "a").write_text("half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path / "deep") == []


def test_what_is_not_ours_is_never_replaced(tmp_path):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "wedding.jpg").write_bytes(b"dear")
    with pytest.raises(UserError, match="photos.*holds something else and no manifest.json.*nothing was touched"):
        with atomic_directory(mine, holds="manifest.json"):
            raise AssertionError("the block must not run")
    assert os.listdir(mine) == ["wedding.jpg"] and os.listdir(tmp_path) == ["photos"]
    with pytest.raises(UserError, match="a file is in the way"), atomic_directory(mine / "wedding.jpg"):
        raise AssertionError("the block must not run")
    (mine / "wedding.jpg").unlink()
    for _ in range(2):  # empty, then our own
        with atomic_directory(mine, holds="manifest.json") as scratch:
            (scratch / "manifest.json").write_text("{}")
    assert os.listdir(mine) == ["manifest.json"]


def test_the_working_directory_itself_can_be_an_output(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_directory(".") as scratch:
        (scratch / "a").write_text("whole")
    assert (tmp_path / "here" / "a").read_text() == "whole"


@pytest.mark.parametrize("deeper", ["out", "deep/out"])
def test_a_file_where_a_folder_should_be_is_a_user_error(tmp_path, deeper):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file.*a file is in the way"), atomic_directory(tmp_path / "file" / deeper):
        raise AssertionError("the block must not run")
    with pytest.raises(UserError, match="file.*a file is in the way"):
        atomic_write(tmp_path / "file" / deeper, "content")


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    for content in ("first", b"second"):
        atomic_write(tmp_path / "deep" / "file", content)
    assert (tmp_path / "deep" / "file").read_bytes() == b"second"
    assert os.listdir(tmp_path / "deep") == ["file"]


@given(st.binary(max_size=300))
def test_sha256_file_is_the_plain_digest(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("sum") / "file"
    file.write_bytes(data)
    assert sha256_file(file) == hashlib.sha256(data).hexdigest()


PARTS = st.one_of(st.text(max_size=6), st.binary(max_size=6))


@given(st.lists(PARTS, max_size=4), st.lists(PARTS, max_size=4))
def test_sha256_of_tells_any_two_lists_of_parts_apart(left, right):
    same = [(type(part), part) for part in left] == [(type(part), part) for part in right]
    assert (sha256_of(*left) == sha256_of(*right)) == same


def test_sha256_of_sees_values_dtype_and_shape_but_not_memory_order():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    others = [array.reshape(3, 2), array.astype(np.int64), array + 1, array.tobytes()]
    assert len({sha256_of(array), *map(sha256_of, others)}) == 5
    assert sha256_of(array) == sha256_of(np.asfortranarray(array))
