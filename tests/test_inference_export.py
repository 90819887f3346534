"""A release is whole, says what it is, and serves with jax and numpy alone what the run itself recommends."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.inference import loader
from hisam_jax.inference.export import export
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import load_run
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train
from tests.fixtures import tiny_dataset
from tests.test_runs import _config

ALONE = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flax", "hisam_jax", "optax", "orbax", "grain", "polars", "einops", "chex"):
            raise ImportError(f"{name} is not for a release")
sys.meta_path.insert(0, Only())
sys.path.insert(0, sys.argv[1])
import json, load
release = load.load(sys.argv[1])
histories = json.loads(sys.argv[2])
state = release.read(histories)
found = {way: release.recommend(state, 5, way) for way in release.manifest["ways"]}
found["rank"] = release.rank(state, [release.item_ids[:7]] * len(histories)).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    tiny_dataset(root / "dataset", users=40, items=50, seed=1)
    tokenize(root / "dataset", load_config("configs/tokenizer/random.py", {"random.sizes": "(8, 8)"}), root / "ids")
    config = _config()
    config.training.steps, config.training.evaluate_every, config.training.monitor = 2, 0, None
    train(root / "dataset", root / "ids", config, root / "run")
    return root, export(root / "run", root / "release", k=10, beams=20)


def test_a_release_serves_alone_what_the_run_recommends(folder):
    root, manifest = folder
    run = load_run(root / "run")
    ids = run.assembly.dataset.items["item_id"].to_list()
    histories = [[3, 8, 1], [7], [4, 4, 9, 11, 30]]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(root / "release"), json.dumps([[ids[i] for i in row] for row in histories])],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    pasts = [
        History(np.array(row, np.int32), np.zeros(len(row), np.int32), np.zeros(len(row), np.float32))
        for row in histories
    ]
    scores = {"retrieval": run.scorer.retrieval(pasts)}
    scores["generation"] = run.scorer.generation(pasts, [np.array(row) for row in histories], beams=20)[1]
    assert manifest["ways"] == ["retrieval", "generation"]
    for way, table in scores.items():
        for row, history in enumerate(histories):
            table[row][history] = -np.inf
            got = dict(found[way][row])
            score = list(got.values())
            np.testing.assert_allclose(score, np.sort(table[row])[::-1][:5], atol=2e-4)
            np.testing.assert_allclose(score, table[row][[ids.index(item) for item in got]], atol=2e-4)
    want = [run.scorer.clicks_for(past, np.arange(7)) for past in pasts]
    np.testing.assert_allclose(found["rank"], want, atol=1e-4)


def test_a_release_is_for_all_platforms_and_knows_its_origin(folder):
    root, manifest = folder
    release = loader.load(root / "release")
    assert all(function.platforms == ("cpu", "cuda", "tpu") for function in release._functions.values())
    assert manifest["identity"]["ids_checksum"] and manifest == release.manifest


@pytest.mark.parametrize("name", ["arrays.npz", "generation.stablehlo", "load.py"])
def test_a_torn_release_is_refused_by_name(folder, tmp_path, name):
    broken = tmp_path / "release"
    shutil.copytree(folder[0] / "release", broken)
    data = bytearray((broken / name).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / name).write_bytes(bytes(data))
    with pytest.raises(loader.BrokenRelease, match=name):
        loader.load(broken)
    (broken / name).unlink()
    with pytest.raises(loader.BrokenRelease, match=name):
        loader.load(broken)


def test_what_cannot_be_exported_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="beams"):
        export(folder[0] / "run", tmp_path / "out", beams=0)
    with pytest.raises(UserError):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
