"""Tile sizes: what is tuned is kept and picked up; what cannot be read is said."""

from __future__ import annotations

import json

import pytest
from attention_fixtures import Case, make

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import Tiles, anchor_attention, api, autotune, core, tuning

CASE = Case(items=12, tokens=3, cached=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HISAM_TILES", str(tmp_path / "tiles"))
    return tmp_path / "tiles"


def used(monkeypatch, x, **options):
    """The tiles that a call runs with."""
    seen, attend = [], core.attend
    monkeypatch.setattr(core, "attend", lambda *a: seen.append(a[3]) or attend(*a))
    anchor_attention(*x[:3], **options)
    return seen[0]


def test_the_fastest_is_kept_and_picked_up(monkeypatch, folder, capsys):
    wanted = {"items": 16, "anchors": 4, "backward_items": 8, "backward_anchors": 4}
    monkeypatch.setattr(autotune, "ANCHORS", (4, 8))
    calls = {}

    def seconds(function, x):  # candidates come in one order: the one that is wanted is the fastest
        calls["n"] = calls.get("n", 0) + 1
        return 1.0 / (1 + autotune_order[calls["n"] - 1])

    x = autotune.problem(2, 12, 3, 2, 2, 16, 0, "float32")
    start = api.load("xla").tiles(CASE.sizes)
    forward = list(autotune.candidates(api.load("xla"), start, False, x))
    best_forward = next(c for c in forward if (c.items, c.anchors) == (16, 4))
    backward = list(autotune.candidates(api.load("xla"), best_forward, True, x))
    autotune_order = [c == best_forward for c in forward]
    autotune_order += [(c.backward_items, c.backward_anchors) == (8, 4) for c in backward]
    monkeypatch.setattr(autotune, "seconds", seconds)
    words = "--batch 2 --items 12 --tokens 3 --heads 2 --kv-heads 2 --width 16".split()
    assert autotune.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tiles"] == wanted
    assert json.loads((folder / "cpu.json").read_text()) == {said["key"]: wanted}
    x = make(Case(items=12, tokens=3, segments="one"))
    assert used(monkeypatch, x) == Tiles(**wanted)
    assert used(monkeypatch, make(Case(items=20, tokens=3))) == api.load("xla").tiles(Case(20, 3).sizes)
    mine = Tiles(3, 3, 3, 3)
    assert used(monkeypatch, x, tiles=mine) == mine


def test_a_real_tuning_runs(monkeypatch, folder, capsys):
    monkeypatch.setattr(autotune, "ITEMS", (8,))
    monkeypatch.setattr(autotune, "ANCHORS", (8,))
    assert autotune.main("--batch 1 --items 9 --tokens 2 --heads 2 --width 8 --cached 3".split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["milliseconds"]) == {"forward", "backward"} and said["key"].startswith("xla items=16 anchors=16")


def test_tiles_that_a_compiler_refuses_are_no_candidates(monkeypatch):
    x = make(CASE)
    xla = api.load("xla")

    def seconds(function, x):
        raise RuntimeError("out of vector memory")

    with pytest.raises(UserError, match="no tile size works for the forward pass of xla"):
        autotune.best(xla, x, seconds)


def test_two_entries_live_in_one_file(folder):
    file = tuning.file_of("TPU v5 lite")
    assert file == folder / "TPU_v5_lite.json"
    tuning.save(file, "one", Tiles(1, 2, 3, 4))
    tuning.save(file, "two", Tiles(5, 6, 7, 8))
    tuning.save(file, "one", Tiles(9, 9, 9, 9))
    assert tuning.tuned(file) == {"one": Tiles(9, 9, 9, 9), "two": Tiles(5, 6, 7, 8)}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 3}', '{"a": {"items": 0}}', '{"a": {"rows": 1}}'])
def test_a_file_that_is_not_one_is_named(folder, text):
    folder.mkdir()
    (folder / "cpu.json").write_text(text)
    with pytest.raises(UserError, match="cpu.json: not tuned tiles"):
        anchor_attention(*make(CASE)[:3])


def test_what_cannot_be_tuned_is_one_line(capsys):
    assert autotune.main(["--heads", "3", "--kv-heads", "2"]) == 2
    assert "kv_heads that divide heads" in capsys.readouterr().err
    assert autotune.main(["--implementation", "tpu"]) == 2
    assert "no 'tpu' on platform 'cpu'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["xla", "tpu", "gpu"])
@pytest.mark.parametrize("items", [1, 50, 4096])
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_heuristics_suit_every_shape(name, items, tokens):
    case = Case(items, tokens, heads=8, kv_heads=2, width=64, dtype="bfloat16", cached=7)
    tiles = api.load(name).tiles(case.sizes)
    assert min(tiles.items, tiles.anchors, tiles.backward_items, tiles.backward_anchors) >= 1


@pytest.mark.parametrize("size", [0, 4.5, "4", True])
def test_tiles_of_a_size_that_is_no_number_of_items_are_refused(size):
    with pytest.raises(UserError, match="tiles.anchors"):
        Tiles(4, size, 4, 4)
