"""IDs in the forms of others: exact round trips, foreign files, and one clear line for what is wrong in them."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax import cli
from hisam_jax.errors import UserError
from hisam_jax.tokenizer import id_files
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.id_files import ImportOptions, export_ids, import_ids
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

IDS = ["w", "x", "y"]


def table(items: int = 7, digit: bool = True, seed: int = 0, levels: int = 3) -> SemanticIDTable:
    rng = np.random.default_rng(seed)
    kinds = tuple(Level(f"m{depth % 2}/{depth // 2}", f"m{depth % 2}", 4 + depth) for depth in range(levels))
    codes = np.stack([rng.integers(0, level.size + 1, items) for level in kinds], 1).astype(np.int32)
    digits = rng.permutation(items).astype(np.int32) if digit else None
    ids = [f'item "{row}" é' for row in rng.permutation(items)]
    made = {"name": "dst", "seed": 1, "config": {"sizes": [2, 3]}}
    return SemanticIDTable(kinds, codes, digits, 2 * items if digit else 0, ids, made, "digit", parent="p" * digit)


@given(
    st.integers(1, 30), st.booleans(), st.integers(0, 99), st.integers(1, 5), st.sampled_from(["parquet", "index.json"])
)
def test_what_we_write_comes_back_the_same(tmp_path_factory, items, digit, seed, levels, kind):
    ours, file = table(items, digit, seed, levels), tmp_path_factory.mktemp("ids") / f"name.{kind}"
    export_ids(ours, file)
    theirs = import_ids(file, ours.item_ids)
    assert theirs.checksum == ours.checksum and theirs.vocab_sizes == ours.vocab_sizes
    assert np.array_equal(theirs.full_codes(), ours.full_codes()) and theirs.levels == ours.levels
    shuffled = np.random.default_rng(seed).permutation(items)
    other = import_ids(file, ours.item_ids.gather(shuffled))
    assert np.array_equal(other.full_codes(), ours.full_codes()[shuffled]), "rows follow the catalogue"


def test_parquet_can_be_read_without_us(tmp_path):
    ours = table()
    export_ids(ours, tmp_path / "ids.parquet")
    frame = pl.read_parquet(tmp_path / "ids.parquet")
    assert frame.columns == ["item_id", "codes", "digit", "id"]
    assert np.array_equal(np.array(frame["id"].to_list()), ours.full_codes())
    assert np.array_equal(np.array(frame["codes"].to_list()), ours.codes_IL)
    about = json.loads(pl.read_parquet_metadata(tmp_path / "ids.parquet")["hisam_jax"])
    assert about["levels"][0] == {"name": "m0/0", "modality": "m0", "size": 4}


def test_the_index_is_what_lc_rec_letter_and_minionerec_read(tmp_path):
    ours = table(3)
    export_ids(ours, tmp_path / "Beauty.index.json")
    index = json.loads((tmp_path / "Beauty.index.json").read_text())
    assert list(index) == ["0", "1", "2"]
    for row, tokens in enumerate(index.values()):
        assert tokens == [f"<{'abcd'[at]}_{code}>" for at, code in enumerate(ours.full_codes()[row])]
    lines = (tmp_path / "Beauty.item2id").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [[name, str(row)] for row, name in enumerate(ours.item_ids)]


def foreign(tmp_path, index, items="w\t0\nx\t1\ny\t2\n"):
    (tmp_path / "f.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    if items is not None:
        (tmp_path / "f.item2id").write_text(items)
    return tmp_path / "f.index.json"


GOOD = {"0": ["<a_1>", "<b_0>"], "1": ["<a_3>", "<b_2>"], "2": ["<a_0>", "<b_2>"]}


def test_a_foreign_index_becomes_a_table(tmp_path):
    found = import_ids(foreign(tmp_path, GOOD), ["y", "w", "x"])
    assert found.codes_IL.tolist() == [[0, 2], [1, 0], [3, 2]] and found.digit_I is None
    assert found.levels == (Level("shared/0", "shared", 4), Level("shared/1", "shared", 3))
    assert found.tokenizer["name"] == "imported" and found.vocab_sizes == (5, 4)
    options = ImportOptions(levels=["shared/0", "text/0"], sizes=[256, 256])
    named = import_ids(tmp_path / "f.index.json", IDS, options)
    assert named.levels == (Level("shared/0", "shared", 256), Level("text/0", "text", 256))
    digit = import_ids(tmp_path / "f.index.json", IDS, ImportOptions(last_is_digit=True))
    assert digit.digit_I.tolist() == [0, 2, 2] and digit.digit_size == 6 and len(digit.levels) == 1


def test_keys_are_item_ids_where_there_is_no_map(tmp_path):
    found = import_ids(foreign(tmp_path, GOOD, None), ["2", "1", "0"])
    assert found.codes_IL.tolist() == [[0, 2], [3, 2], [1, 0]]
    with pytest.raises(UserError, match=r"lacks 3 \(w, x, y\), it has besides 3.*--item-map"):
        import_ids(tmp_path / "f.index.json", IDS)


def test_equal_ids_get_a_digit_or_stay_by_choice(tmp_path):
    equal = foreign(tmp_path, {**GOOD, "2": GOOD["0"]})
    assert sorted(import_ids(equal, IDS).digit_I[[0, 2]]) == [0, 1]
    assert import_ids(equal, IDS, ImportOptions(collisions="none")).digit_I is None
    with pytest.raises(UserError, match="collisions.*digit or none"):
        import_ids(equal, IDS, ImportOptions(collisions="next_nearest"))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({**GOOD, "1": ["<a_3>"]}, "item '1': 1 codes; expected 2"),
        ({**GOOD, "1": []}, "item '1': 0 codes"),
        ({**GOOD, "1": ["<a_3>", "<b2>"]}, "item '1': token '<b2>'; expected <LETTER_NUMBER>"),
        ({**GOOD, "1": ["<a_3>", "<b_-2>"]}, "item '1': token '<b_-2>'"),
        ({**GOOD, "1": ["<a_3>", "<b_99999999999>"]}, "token '<b_99999999999>'"),
        ({**GOOD, "1": ["<a_3>", 7]}, "item '1'.*list of tokens"),
        ({**GOOD, "1": ["<b_3>", "<a_2>"]}, "item '1': letter 'b' at position 0; expected 'a', as in item '0'"),
        ({"0": ["<a_3>", "<a_2>"], "1": ["<a_3>", "<a_2>"], "2": ["<a_3>", "<a_2>"]}, "one letter a level"),
        ({**GOOD, "7": ["<a_3>", "<b_2>"]}, "f.item2id: no item for number '7'"),
        ({"0": GOOD["0"], "1": GOOD["1"]}, r"lacks 1 \(y\); expected the 3 items"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "key '0' twice"),
        ('{"0": ["<a_1>"]', "f.index.json:1: unreadable JSON"),
        ("[]", "a list; expected an object"),
        ("{}", "expected an object"),
    ],
)
def test_what_is_wrong_in_an_index_is_named(tmp_path, index, words):
    with pytest.raises(UserError, match=words) as error:
        import_ids(foreign(tmp_path, index), IDS)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("items", "words"),
    [("w\t0\nx 1\ny\t2\n", "f.item2id:2: 'x 1'"), ("w\t0\nx\t0\n", "f.item2id:2: a number twice")]
    + [("w\t0\nw\t1\ny\t2\n", "item 'w' twice"), ("w\t0\nx\t1\nz\t2\n", r"lacks 1 \(y\), it has besides 1 \(z\)")],
)
def test_what_is_wrong_in_an_item_map_is_named(tmp_path, items, words):
    with pytest.raises(UserError, match=words):
        import_ids(foreign(tmp_path, GOOD, items), IDS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": ["a/0"]}, "levels.*1 given; expected 2"),
        ({"levels": ["text", "a/0"]}, "levels.*text; expected different names"),
        ({"levels": ["a/0", "a/0"]}, "different names"),
        ({"sizes": [256]}, "sizes.*1 given; expected 2"),
        ({"sizes": [2, 256]}, "item 'x': code 3 of shared/0; expected 0 to 2"),
        ({"item_map": "gone.item2id"}, "gone.item2id: no such file"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        import_ids(foreign(tmp_path, GOOD), IDS, ImportOptions(**options))


def test_foreign_parquet(tmp_path):
    file = tmp_path / "f.parquet"
    columns = {"item_id": IDS, "code_10": [1, 2, 3], "code_2": [0, 1, 0]}
    pl.DataFrame(columns).write_parquet(file)
    assert import_ids(file, IDS).codes_IL.tolist() == [[0, 1], [1, 2], [0, 3]]
    pl.DataFrame({**columns, "digit": [0, 1, 2]}).write_parquet(file)
    assert import_ids(file, IDS).digit_I.tolist() == [0, 1, 2]
    for broken, words in [
        ({"item_id": IDS}, "columns item_id; expected item_id, and codes"),
        ({"item_id": IDS, "codes": ["a", "b", "c"]}, "codes.*whole numbers"),
        ({"item_id": IDS, "codes": [[1, 2], [1], [2, 2]]}, "item 'x': 1 codes; expected 2"),
        ({"item_id": IDS, "codes": [[1, 2], [1, -1], [2, 2]]}, "item 'x': code -1"),
        ({"item_id": IDS, "codes": [[1, 2], [1, None], [2, 2]]}, "item 'x': code None"),
        ({"item_id": ["w", "x", "x"], "codes": [[1], [2], [3]]}, "item 'x' twice"),
        ({"item_id": ["w", "x", None], "codes": [[1], [2], [3]]}, "without an id"),
    ]:
        pl.DataFrame(broken).write_parquet(file)
        with pytest.raises(UserError, match=words):
            import_ids(file, IDS)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="unreadable Parquet"):
        import_ids(file, IDS)


def test_a_description_of_another_version_or_shape_is_told(tmp_path):
    ours, file = table(), tmp_path / "name.index.json"
    export_ids(ours, file)
    about = json.loads((tmp_path / "name.levels.json").read_text())
    for change, words in (({"format_version": 99}, "version 99"), ({"levels": []}, "does not fit its description")):
        (tmp_path / "name.levels.json").write_text(json.dumps(about | change))
        with pytest.raises(UserError, match=words):
            import_ids(file, ours.item_ids)


ENDINGS = (".index.json", ".item2id", ".levels.json")


@pytest.mark.parametrize("theirs", ENDINGS)
def test_a_mixture_of_two_exports_is_refused(tmp_path, theirs):
    """What a killed export, or a copy of some of its files, leaves."""
    ours, other = table(seed=0), table(seed=1)
    assert set(ours.item_ids) == set(other.item_ids)
    for name, one in (("x", ours), ("y", other)):
        export_ids(one, tmp_path / f"{name}.index.json")
    (tmp_path / f"y{theirs}").replace(tmp_path / f"x{theirs}")
    with pytest.raises(UserError, match="altered, or its export did not end.*export it again") as error:
        import_ids(tmp_path / "x.index.json", ours.item_ids)
    assert str(error.value).startswith(str(tmp_path / "x.i"))
    (tmp_path / "x.levels.json").unlink()
    assert import_ids(tmp_path / "x.index.json", ours.item_ids).tokenizer["name"] == "imported"


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_export_killed_at_any_moment_is_not_taken_for_a_whole_one(tmp_path, monkeypatch, before, done):
    ours, file, left = table(seed=0), tmp_path / "x.index.json", [done]
    if before:
        export_ids(table(seed=1), file)

    def write(path, content):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    monkeypatch.setattr(id_files, "atomic_write", write)
    with pytest.raises(KeyboardInterrupt):
        export_ids(ours, file)
    if before and not done:
        assert import_ids(file, table(seed=1).item_ids).checksum == table(seed=1).checksum
        return
    with pytest.raises(UserError, match="no such file|altered, or its export did not end"):
        import_ids(file, ours.item_ids)


def test_a_lost_item_map_of_ours_is_told(tmp_path):
    export_ids(table(), tmp_path / "x.index.json")
    (tmp_path / "x.item2id").unlink()
    with pytest.raises(UserError, match=r"x\.item2id: the file is missing"):
        import_ids(tmp_path / "x.index.json", table().item_ids)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", ["level", "tokenizer", "digit_size", "checksum"])
def test_an_altered_description_is_refused(tmp_path, change, sealed):
    ours, file = table(), tmp_path / "x.levels.json"
    export_ids(ours, tmp_path / "x.index.json")
    about = json.loads(file.read_text())
    if change == "level":
        about["levels"][0]["name"] = "other/0"
    elif change == "checksum":
        about["checksum"] = about["sorted_checksum"] = "0" * 64
    else:
        about[change] = {"tokenizer": {"name": "rqvae"}, "digit_size": about["digit_size"] + 1}[change]
    if not sealed:  # exports of old had the table's checksum alone
        del about["sorted_checksum"], about["files"]
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="its description was altered"):
        import_ids(tmp_path / "x.index.json", ours.item_ids)


def test_an_altered_parquet_is_refused_and_a_sorted_one_is_not(tmp_path):
    ours, file = table(), tmp_path / "x.parquet"
    export_ids(ours, file)
    frame, kept = pl.read_parquet(file), pl.read_parquet_metadata(file)
    kept = {"hisam_jax": kept["hisam_jax"]}
    frame.sort("digit").write_parquet(file, metadata=kept)
    assert import_ids(file, ours.item_ids).checksum == ours.checksum
    turned = frame.with_columns(codes=pl.concat([frame["codes"][1:], frame["codes"][:1]]))
    for altered in (turned, frame.with_columns(digit=frame["digit"].reverse())):
        altered.write_parquet(file, metadata=kept)
        with pytest.raises(UserError, match="the file or its description was altered"):
            import_ids(file, ours.item_ids)


def test_ids_with_what_others_take_for_line_ends_survive(tmp_path):
    odd = ["a\u2028b", "c\x85d", "e\x0bf", "g\x0ch", "i\x1cj", " k ", "", "é", "\x85"]
    kinds = (Level("shared/0", "shared", 9),)
    ours = SemanticIDTable(kinds, np.arange(9, dtype=np.int32)[:, None], None, 0, odd, {}, "none")
    for kind in ("index.json", "parquet"):
        export_ids(ours, tmp_path / f"x.{kind}")
        assert import_ids(tmp_path / f"x.{kind}", odd).checksum == ours.checksum
    for ending in ("\r", "\n"):
        broken = SemanticIDTable(kinds, np.zeros((1, 1), np.int32), None, 0, [f"a{ending}b"], {}, "none")
        with pytest.raises(UserError, match="without tabs and line ends"):
            export_ids(broken, tmp_path / "y.index.json")


@pytest.mark.parametrize("text", ["\ufeffw\t0\nx\t1\ny\t2", "w\t0\r\nx\t1\r\ny\t2\r\n", "w\t0\nx\t1\ny\t2\n\n \n\r\n"])
def test_a_map_with_a_mark_carriage_returns_or_blank_ends_is_read(tmp_path, text):
    file = foreign(tmp_path, GOOD, None)
    (tmp_path / "f.item2id").write_bytes(text.encode())
    assert import_ids(file, IDS).codes_IL.tolist() == [[1, 0], [3, 2], [0, 2]]


def test_what_cannot_be_read_is_one_line(tmp_path):
    file, deep = foreign(tmp_path, GOOD, None), "[" * 100000
    for text in ("w\t0\nx\t1\ny\t2\n".encode("utf-16"), "caf\xe9\t0\n".encode("latin-1")):
        (tmp_path / "f.item2id").write_bytes(text)
        with pytest.raises(UserError, match=r"f\.item2id: not UTF-8"):
            import_ids(file, IDS)
    with pytest.raises(UserError, match=r"f\.index\.json: unreadable JSON"):
        import_ids(foreign(tmp_path, deep), IDS)
    foreign(tmp_path, GOOD)
    for text, words in ((deep, r"f\.levels\.json: unreadable JSON"), ("[]", "does not fit"), ("0", "does not fit")):
        (tmp_path / "f.levels.json").write_text(text)
        with pytest.raises(UserError, match=words):
            import_ids(file, IDS)


@pytest.mark.parametrize("most", [2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1, -1])
@pytest.mark.parametrize("column", ["codes", "code_0", "digit"])
def test_numbers_that_are_no_codes_are_one_line(tmp_path, most, column):
    kind = pl.UInt64 if most > 0 else pl.Int64
    values = pl.Series([0, 1, most], dtype=kind)
    columns = {"code_0": pl.Series([0, 1, 2])} if column == "digit" else {}
    columns[column] = pl.Series([[0], [1], [most]], dtype=pl.List(kind)) if column == "codes" else values
    pl.DataFrame({"item_id": IDS, **columns}).write_parquet(tmp_path / "f.parquet")
    with pytest.raises(UserError, match=r"item 'y': code (-?\d+|None); expected whole numbers from 0 to 2147483646"):
        import_ids(tmp_path / "f.parquet", IDS)


@pytest.mark.parametrize("kind", ["parquet", "index.json"])
def test_places_that_cannot_be_written_are_one_line(tmp_path, kind):
    (tmp_path / f"folder.{kind}").mkdir()
    (tmp_path / "file").write_text("mine")
    for place, words in (
        (tmp_path / f"folder.{kind}", "a folder; expected the name of a file"),
        (tmp_path / "file" / f"x.{kind}", "file.*(cannot be written|in the way)"),
        (f"/proc/x.{kind}", "/proc.*cannot be written"),
        ("", "no name; expected NAME.parquet"),
    ):
        with pytest.raises(UserError, match=words):
            export_ids(table(), place)
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_digits_that_leave_two_items_equal_are_refused(tmp_path):
    index = {"0": ["<a_1>", "<b_0>"], "1": ["<a_3>", "<b_2>"], "2": ["<a_1>", "<b_0>"]}
    file, frame = foreign(tmp_path, index), tmp_path / "f.parquet"
    pl.DataFrame({"item_id": IDS, "code_0": [1, 3, 1], "digit": [0, 2, 0]}).write_parquet(frame)
    for source, options in ((file, {"last_is_digit": True}), (frame, {}), (frame, {"collisions": "digit"})):
        with pytest.raises(UserError, match="items 'w' and 'y' have equal codes and equal digits"):
            import_ids(source, IDS, ImportOptions(**options))
    for source, last in ((file, True), (frame, False)):
        found = import_ids(source, IDS, ImportOptions(last_is_digit=last, collisions="none"))
        assert found.digit_I.tolist() == [0, 2, 0] and found.policy == "none"


def test_flags_that_our_own_file_answers_are_refused(tmp_path):
    for kind in ("parquet", "index.json"):
        export_ids(table(), tmp_path / f"x.{kind}")
        for policy in ("digit", "none"):
            with pytest.raises(UserError, match="'collisions': the file is one of ours"):
                import_ids(tmp_path / f"x.{kind}", table().item_ids, ImportOptions(collisions=policy))
    with pytest.raises(UserError, match="'item_map': Parquet names its items"):
        import_ids(tmp_path / "x.parquet", table().item_ids, ImportOptions(item_map="x.item2id"))


def _hisam(*arguments) -> int:
    return cli.main(["ids", *map(str, arguments)])


def test_the_verb_takes_ids_there_and_back(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data", items=12)
    names = data.items["item_id"]
    ours = SemanticIDTable(
        (Level("shared/0", "shared", 12),), np.arange(12, dtype=np.int32)[:, None], None, 0, names, {}, "none"
    )
    ours.save(tmp_path / "ids")
    for kind in ("parquet", "index.json"):
        assert _hisam("--ids", tmp_path / "ids", "--export", tmp_path / f"x.{kind}") == 0
        out = tmp_path / f"back {kind}"
        assert _hisam("--import", tmp_path / f"x.{kind}", "--dataset", data.path, "--out", out) == 0
        assert SemanticIDTable.load(out, names).checksum == ours.checksum
    said = json.loads(capsys.readouterr().out.rsplit("\n{", 1)[1].join(["{", ""]))
    assert said["items"] == 12 and said["levels"] == {"shared/0": 12}
    assert _hisam("--import", tmp_path / "x.parquet", "--dataset", data.path, "--out", "/proc/x") == 2
    assert "/proc/x: it cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "one of the arguments --export --import --extend is required"),
        ("--export x.parquet", "--ids': --export needs --ids"),
        ("--import x.parquet", "--out': --import needs --out"),
        ("--import x.parquet --out o", "--dataset': --import needs --dataset"),
        ("--extend d --ids i", "--out': --extend needs --out"),
        ("--export x --extend d", "not allowed with argument"),
        ("--import x --sizes 0 --out o", "argument --sizes"),
        ("--ids gone --export x.parquet", "gone: no table of semantic IDs"),
        ("--ids i --export x.parquet --out o", "'--out': --export does not take it; expected --export with --ids only"),
        ("--ids i --export x.parquet --sizes 3,3", "'--sizes': --export does not take it"),
        ("--ids i --import x.parquet --out o --dataset d", "'--ids': --import does not take it"),
        ("--ids i --extend d --out o --dataset d", "'--dataset': --extend does not take it"),
        ("--ids i --extend d --out o --last-is-digit", "'--last-is-digit': --extend does not take it"),
        ("--ids i --extend d --out o --collisions digit", "'--collisions': --extend does not take it"),
        ("--ids i --extend d --out o --item-map m", "'--item-map': --extend does not take it"),
        ("--ids i --export=", "'--export': an empty name"),
        ("--import= --out o --dataset d", "'--import': an empty name"),
        ("--ids i --extend= --out o", "'--extend': an empty name"),
        ("--ids= --export x.parquet", "'--ids': an empty name"),
    ],
)
def test_a_mistake_is_one_line(line, words, capsys):
    assert _hisam(*line.split()) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
