"""Paths of `gs://` and `s3://`, through gcsfs and s3fs, against a bucket on this machine that can be made to fail."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hisam_jax import cli
from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.download import download
from hisam_jax.data.prepare import prepare
from hisam_jax.data.public_sets import PUBLIC_SETS, PublicSet, RemoteFile
from hisam_jax.errors import UserError
from hisam_jax.evaluation.report import report
from hisam_jax.evaluation.run import evaluate
from hisam_jax.inference.recommend import recommend
from hisam_jax.paths import as_given, output_path
from hisam_jax.remote import local, stores
from hisam_jax.tokenizer.id_files import export_ids, import_ids
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.training.run import train
from tests.bucket_fixtures import Bucket, serving
from tests.raw_fixtures import write_movielens
from tests.test_runs import _config

LOCAL = "import sys; from hisam_jax.remote import local; print(local(sys.argv[1]))"
LIBRARIES = {"s3": "s3fs", "gs": "gcsfs"}
FILES = {"raw/a.csv": b"a" * 70_000, "raw/deep/b.csv": b"b", "raw/deep/er/c.csv": b"", "raw/d": b"d", "raw2/x": b"x"}


@pytest.fixture(params=LIBRARIES)
def bucket(request, monkeypatch, tmp_path) -> Iterator[Bucket]:
    pytest.importorskip(LIBRARIES[request.param], reason="pip install 'hisam_jax[remote]'")
    with serving(Bucket(request.param)) as served:
        for name, value in served.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HISAM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield served


only_s3 = pytest.mark.parametrize("bucket", ["s3"], indirect=True)


@pytest.fixture
def no_waiting(monkeypatch) -> None:
    """Leaves out the pauses between the clients' tries, which are half a minute together."""

    async def at_once(seconds: float) -> None: ...

    if importlib.util.find_spec("gcsfs"):
        monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=at_once))


def fill(bucket: Bucket, files: dict[str, bytes] = FILES) -> str:
    for key, content in files.items():
        bucket.put(key, content)
    return bucket.url("raw")


def held(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def below(files: dict[str, bytes], prefix: str = "raw/") -> dict[str, bytes]:
    return {key.removeprefix(prefix): content for key, content in files.items() if key.startswith(prefix)}


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if "partial" in path.name]


def test_a_folder_has_the_bytes_of_its_objects_and_no_neighbours(bucket):
    url = fill(bucket)
    bucket.put("raw/marker/", b"")
    folder = local(url)
    assert folder.name == "raw" and held(folder) == below(FILES)
    assert held(local(f"{url}/")) == below(FILES) and held(local(bucket.url(""))) == FILES
    assert held(local(f"{url}/deep")) == below(FILES, "raw/deep/")


def test_one_file_keeps_its_name_and_comes_with_what_was_asked_for_beside_it(bucket):
    url = fill(bucket)
    file = local(f"{url}/a.csv", beside=["d", "absent"])
    assert file.name == "a.csv" and file.read_bytes() == FILES["raw/a.csv"]
    assert held(file.parent) == {"a.csv": FILES["raw/a.csv"], "d": b"d"}


def test_only_what_changed_is_fetched_again_and_what_is_gone_goes(bucket):
    url = fill(bucket)
    first = local(url)
    assert bucket.fetched() == sorted(below(FILES, ""))[:4]
    assert local(url) == first and bucket.fetched() == []
    bucket.put("raw/d", b"D")
    del bucket.objects["raw/deep/b.csv"]
    second = local(url)
    assert bucket.fetched() == ["raw/d"]
    expected = below(FILES) | {"d": b"D"}
    del expected["deep/b.csv"]
    assert held(second) == expected
    assert held(first) == below(FILES), "what this process reads stays as it was"
    local(url, without=["deep"])
    assert "deep" not in {path.name for path in local(url, without=["deep"]).iterdir()}


def test_versions_that_nobody_reads_are_removed_with_their_objects(bucket, tmp_path):
    url = fill(bucket)
    first = subprocess.run([sys.executable, "-c", LOCAL, url], capture_output=True, text=True, timeout=60)
    old = Path(first.stdout.strip())
    assert held(old) == below(FILES), first.stderr
    bucket.put("raw/d", b"D")
    new = local(url)
    assert not old.exists() and held(new) == below(FILES) | {"d": b"D"}
    objects = next((tmp_path / "cache").rglob("objects"))
    assert len(list(objects.iterdir())) == len(below(FILES))


def test_a_path_of_this_machine_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local("some/where") == Path("some/where") and local(tmp_path) == tmp_path
    assert local(f"file://{tmp_path}/x") == tmp_path / "x"
    assert as_given("x") == str(tmp_path / "x") and as_given("gs://b/x") == "gs://b/x"
    with pytest.raises(UserError, match="lost a slash; expected gs://"):
        local(Path("gs://bucket/x"))


def test_any_protocol_of_fsspec_that_lists_folders_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HISAM_CACHE", str(tmp_path))
    fsspec.filesystem("memory").pipe({f"/hisam/{key}": content for key, content in FILES.items()})
    assert held(local("memory://hisam/raw")) == below(FILES)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("nothing://bucket/x", "unknown protocol nothing://"),
        ("https://example.org/raw", "no folder can be listed over https"),
        ("gs://", "names no bucket"),
        ("s3:///", "names no bucket"),
    ],
)
def test_urls_that_cannot_be_meant(url, word):
    with pytest.raises(UserError, match=f"field 'raw': .*{word}"):
        local(url, "raw")


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://bucket/x"])
def test_a_library_that_is_not_installed_is_named_with_its_extra(url):
    code = "import sys; sys.modules.update(dict.fromkeys(['s3fs', 'gcsfs', 'aiohttp'])); " + LOCAL
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60)
    assert "needs a library" in done.stderr and "expected pip install 'hisam_jax[remote]'" in done.stderr


def test_the_base_package_and_the_command_line_import_no_client():
    code = "import sys, hisam_jax.data.prepare, hisam_jax.cli; print({'fsspec', 's3fs', 'gcsfs'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() in ("set()", "{'fsspec'}"), done.stderr


def test_nothing_there(bucket):
    fill(bucket)
    for url in (bucket.url("missing"), bucket.url("ra"), f"{bucket.scheme}://elsewhere/x"):
        with pytest.raises(UserError, match=f"{url}: field 'raw': nothing is there"):
            local(url, "raw")


def test_no_permission_names_where_credentials_come_from(bucket, no_waiting):
    url, bucket.closed = fill(bucket), True
    with pytest.raises(UserError, match="no permission .*(AWS_PROFILE|GOOGLE_APPLICATION_CREDENTIALS)"):
        local(url)


def test_a_port_where_nobody_listens_ends_soon(bucket, no_waiting, monkeypatch):
    bucket.port = 9
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"{bucket.url('raw')}: .*no whole answer .*a server that answers"):
        local(bucket.url("raw"))


def test_a_server_that_says_nothing_is_given_up(bucket, monkeypatch):
    url = fill(bucket)
    silent = threading.Event()
    monkeypatch.setattr(stores, "ANSWER_S", 2.0)
    monkeypatch.setattr(Bucket, "closed", property(lambda self: silent.wait(20)), raising=False)
    with pytest.raises(UserError, match="no whole answer .*Timeout"):
        local(url)
    silent.set()


def test_a_server_that_falls_silent_in_the_middle_is_given_up(bucket, no_waiting, monkeypatch, tmp_path):
    url, go_on = fill(bucket), threading.Event()
    monkeypatch.setattr(stores, "SILENCE_S", 0.2)
    bucket.before_body = lambda key: go_on.wait(30)
    with pytest.raises(UserError, match="no whole answer .*Timeout"):
        local(url)
    go_on.set()
    assert leftovers(tmp_path) == []


def test_a_body_that_is_cut_short_leaves_nothing_and_the_next_call_goes_on(bucket, no_waiting, tmp_path):
    url = fill(bucket)
    bucket.cut = {"raw/a.csv"}
    with pytest.raises(UserError, match=rf"{url}.*(no whole answer|came)"):
        local(url)
    assert leftovers(tmp_path) == [] and not list((tmp_path / "cache").rglob("a.csv"))
    kept = {path.read_bytes() for path in (tmp_path / "cache").rglob("objects/*")}
    assert FILES["raw/a.csv"] not in kept
    bucket.cut = set()
    bucket.fetched()
    assert held(local(url)) == below(FILES) and "raw/a.csv" in bucket.fetched()


@pytest.mark.parametrize("content", [b"z" * 70_000, b"z"], ids=["as long", "shorter"])
def test_an_object_that_changes_while_it_is_read_is_refused(bucket, tmp_path, content):
    url = fill(bucket)
    bucket.before_body = lambda key: bucket.put("raw/a.csv", content) if key == "raw/d" else None
    with pytest.raises(UserError, match=f"{url}: .*(changed while it was read|bytes of)"):
        local(url)
    assert not list((tmp_path / "cache").rglob("a.csv")) and leftovers(tmp_path) == []
    bucket.before_body = lambda key: None
    assert held(local(url)) == below(FILES) | {"a.csv": content}


def test_names_that_would_leave_the_folder_are_refused(bucket):
    fill(bucket, {"raw/ok": b"", "raw/../../evil": b"1"})
    with pytest.raises(UserError, match="evil.*expected names that a folder can hold"):
        local(bucket.url("raw"))


LIMITED = """
import resource, sys
from hisam_jax.errors import UserError
from hisam_jax.remote import local
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    print(local(sys.argv[1]))
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing_half_there(bucket, tmp_path):
    url = fill(bucket)
    done = subprocess.run([sys.executable, "-c", LIMITED, url, "50000"], capture_output=True, text=True, timeout=60)
    assert "the disk is full (File too large)" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr and leftovers(tmp_path) == []
    assert held(local(url)) == below(FILES)


def test_a_cache_that_cannot_be_written_is_one_line(bucket, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HISAM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="the cache of remote files cannot be written .*HISAM_CACHE"):
        local(fill(bucket))
    monkeypatch.setenv("HISAM_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="HISAM_CACHE.*is a URL, which is read but not written"):
        local(bucket.url("raw"))


def _start(url: str) -> subprocess.Popen:
    command = [sys.executable, "-c", LOCAL, url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_in_the_middle_the_next_call_fetches_the_rest(bucket, tmp_path):
    files = {f"raw/{place}": b"%d" % place * 1000 for place in range(40)}
    url, reached, go_on = fill(bucket, files), threading.Event(), threading.Event()

    def hold(key: str) -> None:
        if sum(kind == "get" for kind, _ in bucket.asked) > 20:
            reached.set()
            go_on.wait(30)

    bucket.before_body = hold
    process = _start(url)
    assert reached.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    go_on.set()
    bucket.before_body = lambda key: None
    assert not [path for path in (tmp_path / "cache").rglob("raw")], "no folder before it is whole"
    bucket.fetched()
    assert held(local(url)) == below(files)
    assert 0 < len(bucket.fetched()) < 40 and leftovers(tmp_path) == []


def test_processes_that_come_at_once_fetch_each_object_once(bucket):
    files = {f"raw/{place}": b"%d" % place * 1000 for place in range(30)}
    url = fill(bucket, files)
    processes = [_start(url) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in processes]
    folders = {answer.strip() for answer, _ in answers}
    assert len(folders) == 1 and held(Path(folders.pop())) == below(files), answers
    assert bucket.fetched() == sorted(files)


@pytest.mark.parametrize("field", ["prepare", "tokenize", "train", "download", "ids", "export"])
def test_outputs_to_a_url_are_refused_before_any_work(field, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url, config = "gs://bucket/out", str(Path(__file__).parents[1] / "configs" / "tokenizer" / "random.py")
    verbs = {
        "prepare": ["prepare", "--source", "shop", "--out", url],
        "tokenize": ["tokenize", "--dataset", "nowhere", "--config", config, "--out", url],
        "train": ["train", "--dataset", "nowhere", "--ids", "nowhere", "--config", config, "--workdir", url],
        "download": ["download", "ml-1m", "--out", url],
        "ids": ["ids", "--import", "x.parquet", "--dataset", "nowhere", "--out", url],
        "export": ["ids", "--ids", "nowhere", "--export", f"{url}.parquet"],
    }
    assert cli.main(verbs[field]) == 2
    error = capsys.readouterr().err
    assert "is a URL, which is read but not written; expected a local folder" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="read but not written"):
        output_path("s3://b/x")


def test_a_public_set_comes_from_a_bucket_too_and_is_checked(bucket, monkeypatch, tmp_path):
    bucket.put("sets/a.gz", b"whole")
    bucket.put("sets/a.gz.md5", b"MD5 (a.gz) = 8388349ba7faf76f5d01fa2fa1c5fb76\n")
    url = "https://example.org/a.gz"
    for checksum in ("sha256:" + "0" * 64, None):
        remote = RemoteFile(url, checksum, None if checksum else f"{url}.md5")
        monkeypatch.setitem(PUBLIC_SETS, "toy", PublicSet("toy", (remote,), "movielens", "free"))
        with pytest.raises(UserError, match="wrong checksum"):
            download("toy", tmp_path / "toy", mirror=bucket.url("sets"))
        assert not (tmp_path / "toy").exists()
    remote = RemoteFile(url)
    monkeypatch.setitem(PUBLIC_SETS, "toy", PublicSet("toy", (remote,), "movielens", "free"))
    assert (download("toy", tmp_path / "toy", mirror=bucket.url("sets")) / "a.gz").read_bytes() == b"whole"


def _prepare(raw: object, out: Path, images: object, features: object) -> Dataset:
    prepare("movielens", raw, out, images=images, text_encoder=f"precomputed:{features}", cache_dir=out.parent / "c")
    return Dataset.load(out)


def test_a_dataset_is_the_same_from_a_bucket(bucket, tmp_path):
    raw = write_movielens(tmp_path / "raw", pictures=True)
    np.save(tmp_path / "text.npy", np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
    (tmp_path / "text.npy.ids.txt").write_text("".join(f"{movie}\n" for movie in range(1, 41)))
    here = _prepare(raw, tmp_path / "here", raw / "pictures", tmp_path / "text.npy")
    url = bucket.put_folder(raw, "raw")
    for name in ("text.npy", "text.npy.ids.txt"):
        bucket.put(f"features/{name}", (tmp_path / name).read_bytes())
    there = _prepare(url, tmp_path / "there", f"{url}/pictures", bucket.url("features/text.npy"))
    same = {name: sha for name, sha in here.manifest["files"].items() if name != "items.parquet"}  # has pictures' paths
    assert same == {name: sha for name, sha in there.manifest["files"].items() if name != "items.parquet"}
    assert here.items.drop("image").equals(there.items.drop("image"))
    assert there.manifest["arguments"]["raw"] == url and "thumbnails.parquet" in same


def test_ids_are_the_same_from_a_bucket(bucket, tmp_path):
    raw = write_movielens(tmp_path / "raw")
    prepare("movielens", raw, tmp_path / "data", image_encoder="none", cache_dir=tmp_path / "c")
    config = Path(__file__).parents[1] / "configs" / "tokenizer" / "random.py"
    bucket.put("random.py", config.read_bytes())
    url, overrides = bucket.put_folder(tmp_path / "data", "data"), {"random.sizes": "(8, 8)"}
    here = tokenize(tmp_path / "data", config, tmp_path / "here", overrides)
    there = tokenize(url, bucket.url("random.py"), tmp_path / "there", overrides)
    assert here["checksum"] == there["checksum"]
    export_ids(SemanticIDTable.load(bucket.put_folder(tmp_path / "there", "ids")), tmp_path / "x.index.json")
    for name in ("x.index.json", "x.item2id", "x.levels.json"):
        bucket.put(f"index/{name}", (tmp_path / name).read_bytes())
    table = import_ids(bucket.url("index/x.index.json"), Dataset.load(url).items["item_id"])
    assert table.checksum == here["checksum"]


def _untimed(result: dict) -> dict:
    return {name: value for name, value in result.items() if name != "seconds"}


@pytest.mark.slow
@only_s3
def test_a_run_in_a_bucket_is_evaluated_and_reported_there(bucket, tmp_path, capsys):
    raw = write_movielens(tmp_path / "raw")
    prepare("movielens", raw, tmp_path / "data", image_encoder="none", cache_dir=tmp_path / "c")
    tokenize(
        tmp_path / "data", load_config("configs/tokenizer/random.py", {"random.sizes": "(8, 8)"}), tmp_path / "ids"
    )
    dataset, ids = (bucket.put_folder(tmp_path / name, name) for name in ("data", "ids"))
    config = _config(ranking=0.0, generation=0.0)
    config.training.update({"steps": 2, "log_every": 1, "save_every": 2, "evaluate_every": 2})
    record = train(dataset, ids, config, tmp_path / "run")
    assert (record["dataset"], record["ids"]) == (dataset, ids)
    run = bucket.put_folder(tmp_path / "run", "run")
    (suggested, here), (same, there) = ((recommend(at, user="1", k=3), evaluate(at)) for at in (tmp_path / "run", run))
    written = json.loads(bucket.objects["run/evaluation.json"].content)
    assert suggested == same and _untimed(here) == _untimed(there) == _untimed(written)
    assert report(run) == f"{run}/report.html" and bucket.objects["run/report.html"].content.startswith(b"<!")
    assert cli.main(["report", "--workdir", run]) == 0 and capsys.readouterr().out == f"{run}/report.html\n"
    bucket.read_only = True
    with pytest.raises(UserError, match=r"no permission .*report\.html kept in ") as refused:
        report(run)
    kept = Path(refused.value.hint.rpartition("kept in ")[2])
    assert (kept / "report.html").read_bytes() == bucket.objects["run/report.html"].content
