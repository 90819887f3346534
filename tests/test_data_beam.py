"""`prepare` on Beam's runners: the very bytes of the path on one machine, its messages, and nothing half there."""

from __future__ import annotations

import functools
import gzip
import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_fixtures import movielens_rows, write_movielens

pytest.importorskip("apache_beam")

from hisam_jax.cli import main
from hisam_jax.data import local_events, sequence_files
from hisam_jax.data.beam import core, driver, partition, runners, spans
from hisam_jax.data.beam.mistakes import received_from_workers, sent_to_driver
from hisam_jax.data.beam.state import State
from hisam_jax.data.prepare import prepare
from hisam_jax.data.readers.columns import scan_lines
from hisam_jax.data.readers.line_log import LineLog
from hisam_jax.data.sequence_files import write_sequences
from hisam_jax.errors import UserError

NONE = {"text_encoder": "none", "image_encoder": "none"}
ITEMS = "item,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(60))


@pytest.fixture
def many_parts(monkeypatch):
    """Logs of a few kilobytes in several spans, parts and files of sequences."""
    monkeypatch.setattr(driver, "PART_BYTES", 1500)
    monkeypatch.setattr(spans, "SPAN_BYTES", 1100)
    monkeypatch.setattr(spans, "SPAN_ROWS", 150)
    monkeypatch.setattr(partition, "_ROWS", 40)
    monkeypatch.setattr(sequence_files, "USERS_PER_FILE", 7)
    monkeypatch.setattr(local_events, "write_sequences", functools.partial(write_sequences, users_per_file=7))


@pytest.fixture
def pipelines(monkeypatch) -> list[str]:
    """Names of the pipelines that were run."""
    names, run = [], runners.Runner.run
    monkeypatch.setattr(
        runners.Runner, "run", lambda self, build, *given: (names.append(build.__name__), run(self, build, *given))
    )
    return names


def _both(source: str, raw: Path, out: Path, **arguments) -> dict:
    """The manifest that either path gives: the checksums of all files are in it."""
    local = prepare(source, raw, out / "local", **NONE, **arguments)
    beam = prepare(source, raw, out / "beam", **NONE, **arguments, runner="direct")
    assert beam.pop("arguments").pop("runner") == "direct" and "runner" not in local.pop("arguments")
    assert beam.pop("seconds") > 0 and local.pop("seconds") > 0
    assert beam == local
    assert sorted(path.name for path in out.iterdir()) == ["beam", "local"]
    return beam


@pytest.mark.parametrize("protocol", ["leave_one_out", "per_user_time", "chronological"])
def test_the_shop_by_every_protocol(tmp_path, many_parts, protocol):
    manifest = _both(
        "shop",
        tmp_path / "raw",
        tmp_path / "out",
        protocol=protocol,
        min_user=3,
        min_item=2,
        reader_options={"users": 40, "items": 64, "events_per_user": 12.0, "picture_size": 32},
        behaviour_encoder="ppmi_svd" if protocol == "per_user_time" else "none",
        cache_dir=tmp_path / "cache",
    )
    assert min(manifest["split"][part] for part in ("train", "validation", "test")) > 0
    assert sum(name.startswith("sequences/") for name in manifest["files"]) > 1
    assert ("behaviour" in manifest["modalities"]) == (protocol == "per_user_time")


def _table(folder: Path, rows: list[str], header: str = "user,item,rating,timestamp", end: str = "\n") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_bytes(end.join([header, *rows, ""]).encode("utf-8", "surrogateescape"))
    (folder / "items.csv").write_text(ITEMS)
    return folder


def _odd_rows() -> list[str]:
    """Ties, duplicates with other ratings, every reason to refuse a row, blank lines, quotes and a chain."""
    rows = [f"u{u},i{(7 * u + 3 * n) % 40},{1 + (u + n) % 5},{10**9 + n // 4}" for u in range(30) for n in range(9)]
    rows += [row.rsplit(",", 2)[0] + f",{rating}," + row.rsplit(",", 1)[1] for row in rows[::40] for rating in (1, 5)]
    rows += ['"u""1",i1,4,1000000000', "ümlaut,i2,4,2001-09-09", "", "  ", "u1,i3", "bad\udcff,i1,3,5"]
    rows += [",i1,3,5", "u1,,3,5", "u1,i1,NaN,5", "u1,i1,3,-7", "u1,nowhere,3,5", "u2,elsewhere,3,5"]
    return rows


def _chain(length: int) -> list[str]:
    """User c<n> has items c<n> and c<n + 1> alone, so that a 2-core falls apart by one link a round."""
    return [f"c{n},i{n + place},5,{10**9 + place}" for n in range(length) for place in range(2)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_with_ties_duplicates_and_rejects(tmp_path, many_parts, end, pipelines):
    raw = _table(tmp_path / "raw", _odd_rows(), end=end)
    manifest = _both("table", raw, tmp_path / "out", max_rejected=0.2)
    expected = ("bad_rating", "bad_timestamp", "broken_row", "missing_item", "missing_user", "not_utf8")
    assert manifest["rejected"] == {**dict.fromkeys(expected, 1), "duplicate_interaction": 14, "unknown_item": 2}
    assert pipelines == ["_count_lines", "partition", "write_sequences"]


def test_the_k_core_takes_as_many_rounds_as_it_needs(tmp_path, many_parts, pipelines, monkeypatch):
    monkeypatch.setattr(core, "ROUNDS", 2)
    dense = [f"u{u},i{40 + n},5,{10**9 + n}" for u in range(5) for n in range(5)]
    raw = _table(tmp_path / "raw", [*_chain(11), *dense])
    manifest = _both("table", raw, tmp_path / "out", min_user=2, min_item=2)
    assert manifest["core"]["interactions_dropped"] == 22 and manifest["items"] == 5
    assert pipelines.count("_rounds") >= 11 / 2 / core.ROUNDS > 2  # a round takes a link off either end


@pytest.mark.parametrize("kind", ["gzip", "parquet", "no timestamps", "no ratings", "sequences", "temp_location"])
def test_every_way_to_read_a_log(tmp_path, many_parts, kind, pipelines):
    rows, header = _odd_rows()[:280], "user,item,rating,timestamp"
    if kind in ("no timestamps", "no ratings"):
        drop = 3 if kind == "no timestamps" else 2
        rows = [",".join(v for place, v in enumerate(row.split(",")) if place != drop) for row in rows]
        header = header.replace(",timestamp" if drop == 3 else ",rating", "")
    raw, options, source = _table(tmp_path / "raw", rows, header), {}, "table"
    text = (raw / "interactions.csv").read_bytes()
    if kind == "gzip":
        (raw / "interactions.csv.gz").write_bytes(gzip.compress(text))
        options = {"interactions": "interactions.csv.gz"}
    elif kind == "parquet":
        pl.read_csv(text).write_parquet(raw / "events.parquet", row_group_size=64)
        options = {"interactions": "events.parquet"}
    elif kind == "sequences":
        source = "sequences"
        lines = (f"u{u} " + " ".join(f"i{(5 * u + n) % 40}" for n in range(u % 9)) for u in range(60))
        (raw / "sequences.txt").write_text("\n".join(lines) + "\n")
        (raw / "items.csv").write_text(ITEMS.replace("item,", "item_id,"))
    if kind == "temp_location":
        place = tmp_path / "elsewhere"
        ours = prepare(
            source, raw, tmp_path / "beam", **NONE, runner="direct", runner_options={"temp_location": str(place)}
        )
        assert ours["files"] == prepare(source, raw, tmp_path / "local", **NONE)["files"]
        assert not list(place.iterdir())
    else:
        assert _both(source, raw, tmp_path / "out", reader_options=options, max_rejected=0.2)["interactions"] > 200
    assert ("_count_lines" in pipelines) == (kind in ("no timestamps", "no ratings"))


LINES = st.lists(st.sampled_from(["", "a,b", "ü", "long " * 9, "x\r", "\udcff", " "]), max_size=30)


@given(lines=LINES, size=st.integers(1, 60), ended=st.booleans())
def test_spans_are_the_lines_of_the_file(tmp_path_factory, lines, size, ended):
    path = tmp_path_factory.mktemp("spans") / "log"
    content = ("\n".join(lines) + "\n" * ended).encode("utf-8", "surrogateescape")
    path.write_bytes(content)
    log = LineLog(path, rows=lambda rows: rows)
    found = [spans.LineSpan(log, start, min(start + size, len(content))) for start in range(0, len(content), size)]
    numbered = spans.numbered(found, [span.count() for span in found])
    read = [span._lines().collect() for span in numbered]
    whole = scan_lines(io.BytesIO(content)).collect()
    assert pl.concat(read).equals(whole) if read else whole.is_empty()


PROBLEMS = {
    "bad rating": ([*movielens_rows(4)[:20], *["3,4,NaN,1000000000"] * 10], {}),
    "unknown item": ([*movielens_rows(4)[:20], *["3,999999,4.0,1000000000"] * 10], {}),
    "repeats": (movielens_rows(4) * 2, {}),
    "nothing usable": (["3,4,NaN,1000000000"] * 3, {"max_rejected": 1.0}),
    "nothing left": (movielens_rows(4), {"min_user": 100, "min_item": 2}),
    "few moments": (["1,1,4.0,1000000000", "1,2,4.0,1000000000"], {"protocol": "chronological"}),
}


@pytest.mark.parametrize(("rows", "arguments"), PROBLEMS.values(), ids=PROBLEMS)
def test_messages_are_those_of_the_path_on_one_machine(tmp_path, rows, arguments):
    raw, said = write_movielens(tmp_path / "raw", rows), []
    for runner in (None, "direct"):
        with pytest.raises(UserError) as caught:
            prepare("movielens", raw, tmp_path / "d", **NONE, **arguments, runner=runner)
        said.append(str(caught.value))
    assert said[0] == said[1] and "\n" not in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_file_that_a_worker_cannot_read_is_named(tmp_path, many_parts):
    raw = _table(tmp_path / "raw", [])
    rows = [{"user": f"u{n % 9}", "item": f"i{n % 40}", "rating": 4.0, "timestamp": n} for n in range(2000)]
    pl.DataFrame(rows).write_parquet(raw / "events.parquet", compression="zstd", row_group_size=100)
    content = bytearray((raw / "events.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    (raw / "events.parquet").write_bytes(content)
    with pytest.raises(UserError, match="events.parquet.*damaged.*expected a whole Parquet file"):
        prepare(
            "table", raw, tmp_path / "d", **NONE, reader_options={"interactions": "events.parquet"}, runner="direct"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_what_a_worker_says_of_a_mistake_reaches_the_driver():
    with pytest.raises(UserError) as caught, received_from_workers():
        try:
            with sent_to_driver():
                raise UserError("ä: 'x'", path=Path("/a b"), line=3, field="f", expected="e", hint="h")
        except RuntimeError as error:
            raise RuntimeError(f"Traceback ...\n{error} [while running 'read']") from None
    assert (caught.value.problem, caught.value.path, caught.value.line) == ("ä: 'x'", "/a b", 3)
    assert (caught.value.field, caught.value.expected, caught.value.hint) == ("f", "e", "h")
    with pytest.raises(KeyError), received_from_workers():
        raise KeyError("a fault of ours")


OPTIONS = {
    "no such option": ("direct", ["temp_locatio=x"], "no option 'temp_locatio'; expected 'temp_location'"),
    "bad value": ("direct", ["direct_num_workers=many"], "--direct_num_workers: invalid int value: 'many'"),
    "no pair": ("direct", ["temp_location"], "'temp_location'; expected KEY=VALUE"),
    "no runner": (None, ["temp_location=x"], "options without a runner: temp_location; expected --runner NAME"),
    "unknown": ("storm", [], "'storm' (choose from 'direct', 'flink', 'spark', 'dataflow')"),
    "project": ("dataflow", [], "needs 'project'; expected --runner-option project=NAME"),
    "region": ("dataflow", ["project=p"], "needs 'region'; expected --runner-option region=NAME"),
    "temp_location": ("dataflow", ["project=p", "region=r"], "temp_location=gs://BUCKET/FOLDER"),
}


@pytest.mark.parametrize(("runner", "options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_wrong_options_are_one_line(tmp_path, capsys, runner, options, message):
    raw = write_movielens(tmp_path / "raw")
    flags = ["--runner", runner] if runner else []
    flags += [text for option in options for text in ("--runner-option", option)]
    assert main(["prepare", "--source", "movielens", "--raw", str(raw), "--out", str(tmp_path / "d"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hisam: error: ") and said.count("\n") == 1 and message in said
    assert not (tmp_path / "d").exists()


def test_a_runner_that_is_none_of_ours():
    with pytest.raises(UserError, match="unknown runner 'storm'; expected direct, flink, spark, dataflow"):
        runners.make_runner("storm", {})


def test_what_a_runner_needs_is_said(monkeypatch, tmp_path):
    google = {"project": "p", "region": "r", "temp_location": "gs://b/t"}
    monkeypatch.setattr(runners, "_has", lambda module: False)
    with pytest.raises(UserError, match=r"expected pip install 'apache-beam\[gcp\]'"):
        runners.make_runner("dataflow", google)
    monkeypatch.setattr(runners.shutil, "which", lambda name: None)
    for name in ("flink", "spark"):
        with pytest.raises(UserError, match="no `java`.*job_endpoint=HOST:PORT"):
            runners.make_runner(name, {})
        assert runners.make_runner(name, {"job_endpoint": "localhost:1"}).options == {"job_endpoint": "localhost:1"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: field 'temp_location': cannot be written"):
        prepare("movielens", write_movielens(tmp_path / "raw"), tmp_path / "d", **NONE,
                runner="direct", runner_options={"temp_location": str(tmp_path / "file")})  # fmt: skip


def test_without_beam_the_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("hisam_jax.data.beam")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    raw = write_movielens(tmp_path / "raw")
    out = ["--out", str(tmp_path / "d"), "--runner", "direct"]
    assert main(["prepare", "--source", "movielens", "--raw", str(raw), *out]) == 2
    said = capsys.readouterr().err
    assert (
        said == "hisam: error: field '--runner': Apache Beam is not installed; expected pip install 'hisam_jax[beam]'\n"
    )


def test_files_between_pipelines_are_whole_or_absent(tmp_path):
    state = State(str(tmp_path / "[st]ate"))
    state.write("a/b.gz", b"one")
    state.write("a/b.gz", b"two")
    assert state.read("a/b.gz") == b"two"
    assert [path.name for path in (tmp_path / "[st]ate" / "a").iterdir()] == ["b.gz"]
    state.clear()
    state.clear()
    assert not list(tmp_path.iterdir())


_RUN = """
import os, resource, sys
from hisam_jax.cli import main
raw, out, kind, place = sys.argv[1:]
def run(*flags):
    flags += ("--text-encoder", "none", "--image-encoder", "none", "--min-user", "2", "--min-item", "2")
    return main(["prepare", "--source", "movielens", "--raw", raw, "--out", out, *flags])
def watch(seen, arguments):  # a real SIGKILL, at the first event of Python's own audit trail that names the place
    if seen == "os.rename" and any(str(argument).endswith(place) for argument in arguments):
        os.kill(os.getpid(), 9)
if kind == "kill":
    sys.addaudithook(watch)
else:
    assert run() == 0 and "apache_beam" not in sys.modules
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(place), resource.RLIM_INFINITY))
sys.exit(run("--runner", "direct"))
"""


def _start(raw: Path, out: Path, kind: str, place: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", _RUN, str(raw), str(out), kind, place]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=Path(__file__).parents[1], **streams)


@pytest.mark.slow
def test_killed_runs_leave_nothing_and_start_again(tmp_path):
    """Beside them one without a runner, which must not import Beam, and then with a limit to files: a full disk."""
    raw = write_movielens(tmp_path / "raw")
    arguments = {**NONE, "min_user": 2, "min_item": 2}
    calm = prepare("movielens", raw, tmp_path / "calm", **arguments)
    places = {name: tmp_path / name.strip(".") / "d" for name in ("00000-events.parquet", ".array_record")}
    limited = _start(raw, tmp_path / "limit" / "d", "limit", "3000")
    runs = {name: _start(raw, out, "kill", name) for name, out in places.items()}
    for name, out in places.items():
        _, errors = runs[name].communicate(timeout=120)
        assert runs[name].returncode == -signal.SIGKILL, f"{name}: {errors}"
        assert [path.name for path in out.parent.iterdir()] == [".d.partial"], name
        again = prepare("movielens", raw, out, **arguments, runner="direct")
        assert again["files"] == calm["files"] and again["split"] == calm["split"]
        assert [path.name for path in out.parent.iterdir()] == ["d"]
    _, errors = limited.communicate(timeout=120)
    assert limited.returncode == 2 and "the disk is full (File too large)" in errors.splitlines()[-1], errors
    assert "Traceback" not in errors and [path.name for path in (tmp_path / "limit").iterdir()] == ["d"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flink", "spark"])
def test_jobs_go_to_a_job_service(tmp_path, name):
    """Flink's and Spark's job servers are Java; the service here is Beam's own, which takes the same calls."""
    port = tmp_path / "port"
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port_file", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    service = subprocess.Popen([*command, "--port", "0"], **quiet)
    try:
        _wait_for(port, service)
        options = {"job_endpoint": f"localhost:{port.read_text().strip()}", "environment_type": "LOOPBACK"}
        raw = write_movielens(tmp_path / "raw")
        beam = prepare("movielens", raw, tmp_path / "beam", **NONE, runner=name, runner_options=options)
    finally:
        service.terminate()
        service.wait()
    assert beam["files"] == prepare("movielens", raw, tmp_path / "local", **NONE)["files"]


def _wait_for(file: Path, process: subprocess.Popen) -> None:
    for _ in range(600):
        if file.exists() and file.read_text().strip():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the job service does not start")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("protocol", "checksum"), [("leave_one_out", "2ab9a8058abb"), ("chronological", "fc9b1da06372")]
)
def test_ml_latest_small(tmp_path, real_data, monkeypatch, protocol, checksum):
    monkeypatch.setattr(driver, "PART_BYTES", 1 << 20)
    monkeypatch.setattr(spans, "SPAN_BYTES", 1 << 19)
    manifest = _both("movielens", real_data / "ml-latest-small", tmp_path, protocol=protocol, min_user=5, min_item=5)
    assert manifest["split"]["checksum"].startswith(checksum)
