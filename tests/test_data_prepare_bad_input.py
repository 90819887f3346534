"""`prepare` on damaged input, a full disk and under SIGKILL: counted, or one line; whole, or absent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from raw_fixtures import HEADER, movielens_rows, write_movielens

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.prepare import prepare
from hisam_jax.errors import UserError

NONE = {"text_encoder": "none", "image_encoder": "none"}
BAD = {  # reason -> a row of ratings.csv
    "broken_row": "1,2",
    "missing_user": ",3,4.0,1000000000",
    "missing_item": "3,,4.0,1000000000",
    "bad_rating": "3,4,NaN,1000000000",
    "bad_timestamp": "3,5,4.0,-5",
    "unknown_item": "3,999999,4.0,1000000000",
}


def test_unusable_rows_are_counted_by_reason_and_harm_nothing(tmp_path):
    rows = movielens_rows()
    clean = prepare("movielens", write_movielens(tmp_path / "clean", rows), tmp_path / "a", **NONE)
    dirty_rows = rows.copy()
    for place, row in enumerate(BAD.values()):
        dirty_rows.insert(11 * place, row)
    dirty_rows += [rows[0], rows[0], rows[5]]
    dirty = prepare("movielens", write_movielens(tmp_path / "dirty", dirty_rows), tmp_path / "b", **NONE)
    assert dirty["rejected"] == {**dict.fromkeys(BAD, 1), "duplicate_interaction": 3}
    assert dirty["files"] == clean["files"] and dirty["split"] == clean["split"]


@pytest.mark.parametrize(("reason", "row"), BAD.items())
def test_too_many_unusable_rows_stop_with_the_first_line(tmp_path, reason, row):
    raw = write_movielens(tmp_path / "raw", [*movielens_rows(4)[:20], *[row] * 10])
    with pytest.raises(UserError) as caught:
        prepare("movielens", raw, tmp_path / "d", **NONE)
    message = str(caught.value)
    assert message.startswith(f"{raw / 'ratings.csv'}:22: field '") and reason in message
    assert "10 of 30 rows (33.3%) cannot be used" in message and "expected " in message and "\n" not in message
    assert not list(tmp_path.glob("*d*"))
    manifest = prepare("movielens", raw, tmp_path / "d", max_rejected=0.34, **NONE)
    assert manifest["rejected"] == {reason: 10}


def test_too_many_duplicates_stop(tmp_path):
    rows = movielens_rows(4)
    raw = write_movielens(tmp_path / "raw", rows * 2)
    with pytest.raises(UserError, match=f"ratings.csv.*duplicate_interaction; {len(rows)} of {2 * len(rows)} rows"):
        prepare("movielens", raw, tmp_path / "d", **NONE)


def test_not_one_usable_row_stops_whatever_is_allowed(tmp_path):
    raw = write_movielens(tmp_path / "raw", [BAD["bad_rating"]] * 3)
    with pytest.raises(UserError, match="ratings.csv:2: field 'rating'.*3 of 3 rows"):
        prepare("movielens", raw, tmp_path / "d", max_rejected=1.0, **NONE)


def test_a_catalogue_of_repeats_stops(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    lines = (raw / "movies.csv").read_text().splitlines()
    (raw / "movies.csv").write_text("\n".join([*lines, *lines[1:]]) + "\n")
    with pytest.raises(UserError, match="movies.csv.*40 of 80 catalogue rows.*duplicate_item"):
        prepare("movielens", raw, tmp_path / "d", **NONE)
    assert prepare("movielens", raw, tmp_path / "d", max_rejected=0.5, **NONE)["rejected"] == {"duplicate_item": 40}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "random"}, "protocol.*'random'.*expected leave_one_out"),
        ({"min_user": 0}, "min_user.*1 or more"),
        ({"max_rejected": 2.0}, "max_rejected.*from 0 to 1"),
        ({"text_encoder": "bert"}, "text_encoder.*bert"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    raw = write_movielens(tmp_path / "raw")
    with pytest.raises(UserError, match=message):
        prepare("movielens", raw, tmp_path / "d", **{**NONE, **arguments})
    assert not list(tmp_path.glob("*d*"))


@pytest.mark.parametrize("stranger", ["manifest.json", "items.parquet", "notes.txt"])
def test_a_folder_that_holds_no_dataset_is_never_replaced(tmp_path, stranger):
    """A table of semantic IDs has a manifest and items, too."""
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / stranger).write_text("mine")
    with pytest.raises(UserError, match="ids: holds something else.*nothing was touched"):
        prepare("movielens", write_movielens(tmp_path / "raw"), tmp_path / "ids", **NONE)
    assert [file.read_text() for file in (tmp_path / "ids").iterdir()] == ["mine"]


def test_too_few_moments_name_the_file(tmp_path):
    raw = write_movielens(tmp_path / "raw", ["1,1,4.0,1000000000", "1,2,4.0,1000000000"])
    with pytest.raises(UserError, match="ratings.csv: field 'timestamp': 1 distinct times.*at least 3"):
        prepare("movielens", raw, tmp_path / "d", protocol="chronological", **NONE)


def test_a_header_alone_is_said(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    (raw / "ratings.csv").write_text(HEADER + "\n")
    with pytest.raises(UserError, match="ratings.csv"):
        prepare("movielens", raw, tmp_path / "d", **NONE)


def test_broken_pictures_are_counted_and_the_items_lack_them(tmp_path):
    raw = write_movielens(tmp_path / "raw", pictures=True)
    whole = (raw / "pictures" / "5.jpg").read_bytes()
    (raw / "pictures" / "5.jpg").write_bytes(whole[: len(whole) // 2])
    (raw / "pictures" / "6.jpg").write_bytes(b"<html>404</html>")
    (raw / "pictures" / "7.jpg").write_bytes(b"")
    for encoder in ("hog_color", "none"):
        manifest = prepare(
            "movielens",
            raw,
            tmp_path / encoder,
            images=raw / "pictures",
            text_encoder="none",
            image_encoder=encoder,
            cache_dir=tmp_path / "cache",
        )
        assert manifest["rejected"] == {"broken_image": 3}
    dataset = Dataset.load(tmp_path / "hog_color")
    lacking = {item for item, has in zip(dataset.items["item_id"], dataset.present["image"], strict=True) if not has}
    assert lacking == {str(movie) for movie in range(4, 41, 4)} | {"5", "6", "7"}
    assert not dataset.features["image"][~dataset.present["image"]].any()
    assert [dataset.thumbnail(i) is None for i in range(40)] == (~dataset.present["image"]).tolist()


def test_no_text_and_no_pictures_at_all(tmp_path):
    raw = write_movielens(tmp_path / "raw", titles=False)
    manifest = prepare("movielens", raw, tmp_path / "d", cache_dir=tmp_path / "cache")
    assert manifest["modalities"] == {} and set(manifest["dropped_modalities"]) == {"text", "image"}
    dataset = Dataset.load(tmp_path / "d")
    assert dataset.features == {} and dataset.num_items == 40 and dataset.thumbnail(0) is None


_RUN = """
import os, resource, signal, sys
from hisam_jax.data.prepare import prepare
from hisam_jax.errors import UserError
raw, out, cache, kind, place = sys.argv[1:]
if kind == "kill":  # a real SIGKILL, at the first event of Python's own audit trail that names the place
    event, _, name = place.partition(":")
    def watch(seen, arguments):
        if seen == event and any(isinstance(a, (str, os.PathLike)) and str(a).endswith(name) for a in arguments):
            os.kill(os.getpid(), 9)
    sys.addaudithook(watch)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(place), resource.RLIM_INFINITY))
try:
    prepare("movielens", raw, out, image_encoder="none", cache_dir=cache)
except UserError as error:
    causes = [error]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    names = {type(cause).__name__ for cause in causes}
    sys.exit(f"{' '.join(sorted(names - {'UserError', 'OSError'}))}\\n{error}")
"""


def _start(raw: Path, out: Path, kind: str, place: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", _RUN, str(raw), str(out), str(out.parent / "cache"), kind, place]
    return subprocess.Popen(arguments, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)


KILLS = ["os.mkdir:scratch", "shutil.rmtree:scratch", "open:text.npy", "os.mkdir:sequences", "open:manifest.json"]


@pytest.mark.slow
def test_killed_runs_leave_nothing_and_start_again(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    calm = prepare("movielens", raw, tmp_path / "calm", image_encoder="none", cache_dir=tmp_path / "cache")
    places = {place: tmp_path / str(number) / "d" for number, place in enumerate([*KILLS, "os.rename:.d.partial"])}
    runs = {place: _start(raw, out, "kill", place) for place, out in places.items()}
    for place, out in places.items():
        _, errors = runs[place].communicate(timeout=120)
        assert runs[place].returncode == -signal.SIGKILL, f"{place}: {errors}"
        assert not out.exists(), place
        with pytest.raises(UserError, match="no such dataset folder"):
            Dataset.load(out)
        again = prepare("movielens", raw, out, image_encoder="none", cache_dir=tmp_path / "cache")
        assert again["files"] == calm["files"] and again["split"] == calm["split"]
        assert sorted(p.name for p in out.parent.iterdir()) in (["d"], ["cache", "d"])


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_one_line_and_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE stands for a quota; the small limit stops Polars in staging, the large one ArrayRecord."""
    raw = write_movielens(tmp_path / "raw", movielens_rows(users=50))
    writers = {100: "ComputeError", 60_000: "RuntimeError"}
    places = {limit: tmp_path / str(limit) / "d" for limit in writers}
    runs = {limit: _start(raw, out, "limit", str(limit)) for limit, out in places.items()}
    for limit, out in places.items():
        _, errors = runs[limit].communicate(timeout=120)
        assert runs[limit].returncode == 1, f"{limit}: {errors}"
        assert errors.splitlines()[-2] == writers[limit]
        assert f"{out}: the disk is full (File too large)" in errors.splitlines()[-1]
        assert "Traceback" not in errors and [p.name for p in out.parent.iterdir() if p.name != "cache"] == []


@contextlib.contextmanager
def _small_disk(folder: Path, size: str):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_keeps_the_old_folder_and_leaves_nothing_new(tmp_path):
    raw = write_movielens(tmp_path / "raw")
    larger = write_movielens(tmp_path / "larger", movielens_rows(users=3000, movies=40))
    with _small_disk(tmp_path / "disk", "180k") as disk:
        old = prepare("movielens", raw, disk / "d", **NONE)
        with pytest.raises(UserError, match="the disk is full"):
            prepare("movielens", larger, disk / "d", **NONE)
        assert [p.name for p in disk.iterdir()] == ["d"]
        assert Dataset.load(disk / "d").manifest == old
        np.testing.assert_array_equal(
            Dataset.load(disk / "d").users["events"].sum(),
            sum(old["split"][k] for k in ("train", "validation", "test", "history")),
        )
