"""The table of IDs: a round trip through disk, and clear words for what is altered, torn or of another catalogue."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.tokenizer.trie import build_trie

LEVELS = (Level("shared/0", "shared", 5), Level("text/0", "text", 3))


def table(digit: bool = True, items: int = 6) -> SemanticIDTable:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, level.size + 1, items) for level in LEVELS], 1).astype(np.int32)
    digits = np.arange(items, dtype=np.int32) if digit else None
    return SemanticIDTable(
        LEVELS, codes, digits, 12 if digit else 0, [f"item {i}" for i in range(items)], {"name": "dst"}, "digit"
    )


@pytest.mark.parametrize("digit", [True, False])
def test_round_trip(tmp_path, digit):
    ours = table(digit)
    ours.save(tmp_path / "ids")
    theirs = SemanticIDTable.load(tmp_path / "ids", ours.item_ids)
    assert np.array_equal(theirs.full_codes(), ours.full_codes()) and theirs.full_codes().dtype == np.int32
    assert theirs.vocab_sizes == ours.vocab_sizes == ((6, 4, 12) if digit else (6, 4))
    assert (theirs.levels, theirs.checksum) == (ours.levels, ours.checksum)
    assert theirs.item_ids.to_list() == [f"item {i}" for i in range(6)]
    assert (theirs.tokenizer, theirs.policy, theirs.digit_size) == (ours.tokenizer, ours.policy, ours.digit_size)
    trie = build_trie(theirs.full_codes(), theirs.vocab_sizes)
    assert len(trie.item_order) == 6


def test_checksum_changes_with_every_part():
    ours = table()
    moved = ours.codes_IL.copy()
    moved[0, 0] = (moved[0, 0] + 1) % 5
    others = [
        replace(ours, checksum="", codes_IL=moved),
        replace(ours, checksum="", item_ids=["other", *ours.item_ids[1:]]),
        replace(ours, checksum="", tokenizer={"name": "random"}),
        replace(ours, checksum="", digit_size=13),
        replace(ours, checksum="", policy="none"),
        table(digit=False),
    ]
    assert len({ours.checksum, *(other.checksum for other in others)}) == 7


def test_another_catalogue_is_told_with_counts_and_names(tmp_path):
    ours = table()
    ours.save(tmp_path / "ids")
    with pytest.raises(UserError) as error:
        SemanticIDTable.load(tmp_path / "ids", [*ours.item_ids[:4], "new a", "new b", "new c", "new d"])
    for words in ("lacks 4 (new a, new b, new c, ...)", "has besides 2 (item 4, item 5)", "8 items"):
        assert words in str(error.value)
    with pytest.raises(UserError, match="another order, from row 1"):
        SemanticIDTable.load(tmp_path / "ids", [ours.item_ids[0], *ours.item_ids[:0:-1]])


@pytest.mark.parametrize("name", ["codes.npy", "digit.npy", "items.parquet"])
def test_an_altered_or_missing_file_is_named(tmp_path, name):
    table().save(tmp_path / "ids")
    file = tmp_path / "ids" / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*altered"):
        SemanticIDTable.load(tmp_path / "ids")
    file.unlink()
    with pytest.raises(UserError, match=f"{name}.*missing"):
        SemanticIDTable.load(tmp_path / "ids")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"format_version": 99}, "version 99"),
        ({"policy": "none"}, "altered"),
        ({"levels": [{"name": "shared/0", "modality": "shared", "size": 5}]}, "not a table"),
        ({"files": {}}, "not a table"),
    ],
)
def test_an_altered_manifest_is_told(tmp_path, change, words):
    table().save(tmp_path / "ids")
    file = tmp_path / "ids" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=words):
        SemanticIDTable.load(tmp_path / "ids")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100000])
def test_half_a_manifest_is_told(tmp_path, content):
    table().save(tmp_path / "ids")
    (tmp_path / "ids" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest"):
        SemanticIDTable.load(tmp_path / "ids")


def test_a_folder_without_a_table_is_told(tmp_path):
    with pytest.raises(UserError, match="no table"):
        SemanticIDTable.load(tmp_path)


@pytest.mark.parametrize("codes", [[[0, 4]], [[-1, 0]]])
def test_codes_outside_their_level_are_our_fault(codes):
    with pytest.raises(ValueError, match="outside"):
        SemanticIDTable(LEVELS, np.array(codes, np.int32), None, 0, ["a"], {}, "none")


def test_tables_made_before_a_field_was_added_keep_their_checksum():
    """A trained run knows its IDs by this."""
    assert table().checksum == "bc0a174509736b30640d71ce343ab5d44968fee8f51b601911dc126b7f956469"


def test_a_table_opens_memory_mapped_and_unverified_reads_no_codes(tmp_path):
    table().save(tmp_path / "ids")
    opened = SemanticIDTable.load(tmp_path / "ids", verify=False)
    assert isinstance(opened.codes_IL.base, np.memmap) and not opened.codes_IL.flags.writeable
    data = bytearray((tmp_path / "ids" / "codes.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ids" / "codes.npy").write_bytes(data)
    SemanticIDTable.load(tmp_path / "ids", verify=False)
    (tmp_path / "ids" / "codes.npy").write_bytes(data[:-4])
    with pytest.raises(UserError, match="not a table of IDs"):
        SemanticIDTable.load(tmp_path / "ids", verify=False)


def _forge(folder, name, values):
    """Another array with a checksum that fits it."""
    np.save(folder / name, values)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = sha256_file(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("codes.npy", np.zeros((6, 2), np.int64), "codes int64"),
        ("codes.npy", np.zeros((5, 2), np.int32), r"codes int32\(5, 2\) for 6 items"),
        ("codes.npy", np.full((6, 2), 9, np.int32), "outside its level"),
        ("digit.npy", np.zeros(6, np.float32), "digits float32"),
        ("digit.npy", np.full(6, 12, np.int32), "outside 0..11"),
        ("codes.npy", np.zeros((6, 2), np.int32), "altered"),
    ],
)
def test_arrays_that_do_not_fit_the_manifest_are_told(tmp_path, name, values, words):
    table().save(tmp_path / "ids")
    _forge(tmp_path / "ids", name, values)
    with pytest.raises(UserError, match=words):
        SemanticIDTable.load(tmp_path / "ids")


def test_a_table_of_one_item_is_a_table_and_one_of_none_is_not(tmp_path):
    one = table(items=1)
    one.save(tmp_path / "one")
    assert SemanticIDTable.load(tmp_path / "one", one.item_ids).checksum == one.checksum
    assert build_trie(one.full_codes(), one.vocab_sizes).leaves == 1
    with pytest.raises(ValueError, match="no items"):
        table(items=0)


@pytest.mark.parametrize(("ids", "words"), [(["a", "a"], "twice: 'a'"), (["a", None], "without an id")])
def test_every_item_has_one_id(ids, words):
    with pytest.raises(ValueError, match=words):
        SemanticIDTable(LEVELS, np.zeros((2, 2), np.int32), None, 0, ids, {}, "none")


def test_the_parent_is_kept_and_part_of_the_checksum(tmp_path):
    child = replace(table(), checksum="", parent=table().checksum)
    child.save(tmp_path / "ids")
    assert SemanticIDTable.load(tmp_path / "ids").parent == table().checksum != child.checksum
    file = tmp_path / "ids" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parent": "another"}))
    with pytest.raises(UserError, match="altered"):
        SemanticIDTable.load(tmp_path / "ids")


@pytest.mark.parametrize("name", ["tokenizer.npz", "tokenizer.json"])
def test_the_tokenizer_beside_a_table_is_part_of_it(tmp_path, name):
    ours = table()
    for file in ("tokenizer.npz", "tokenizer.json", "other.json"):
        (tmp_path / file).write_text(file)
    ours.write_into(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"][name] == sha256_file(tmp_path / name) and "other.json" not in manifest["files"]
    assert SemanticIDTable.load(tmp_path).checksum == ours.checksum
    (tmp_path / name).write_text("altered")
    with pytest.raises(UserError, match=f"{name}: the file was altered"):
        SemanticIDTable.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: the file is missing"):
        SemanticIDTable.load(tmp_path, verify=False)
    del manifest["files"]["tokenizer.npz"], manifest["files"]["tokenizer.json"]  # as tables of old were written
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert SemanticIDTable.load(tmp_path).checksum == ours.checksum
