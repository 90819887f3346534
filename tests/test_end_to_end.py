"""The whole path on the embedded shop learns what was planted there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hisam_jax.config import load_config
from hisam_jax.data.prepare import prepare
from hisam_jax.evaluation.report import report
from hisam_jax.evaluation.run import evaluate
from hisam_jax.inference.recommend import recommend
from hisam_jax.tokenizer.run import tokenize
from hisam_jax.training.run import train

FOR_SHORT_TESTS = ("XLA_FLAGS", "PJRT_NPROC", "JAX_CPU_ENABLE_ASYNC_DISPATCH")
MARGIN = 2.5  # the shop's own Markov chain over leaves stands at about eight times popularity


@pytest.mark.slow
def test_the_shop_is_learnt_from_raw_logs_to_recommendations(tmp_path):
    """In a process of its own, without the suite's quick compilation: here it is the programs that take the time."""
    here = Path(__file__).resolve()
    env = {name: value for name, value in os.environ.items() if name not in FOR_SHORT_TESTS}
    env["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here.parents[1]), env.get("PYTHONPATH", "")])
    script = "import pathlib, sys, test_end_to_end as t; t.learn(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=here.parents[1], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]


def learn(tmp_path: Path) -> None:
    """The whole path under `tmp_path`, and what must come of it."""
    sizes = {"users": 500, "items": 300, "events_per_user": 20.0}
    prepare(
        "shop",
        tmp_path / "raw",
        tmp_path / "dataset",
        protocol="per_user_time",
        reader_options=sizes,
        cache_dir=tmp_path / "cache",
    )
    fast = {"dst.steps": "120", "dst.shared": "(64, 64)", "dst.specific.text": "(64,)", "dst.specific.image": "(64,)"}
    tokenize(tmp_path / "dataset", load_config("configs/tokenizer/dst.py", fast), tmp_path / "ids")
    short = {"training.steps": "120", "training.evaluate_every": "120"}
    short |= {"evaluation.validation_users": "100", "evaluation.resamples": "200", "evaluation.beams": "10"}
    train(tmp_path / "dataset", tmp_path / "ids", load_config("configs/shop.py", short), tmp_path / "run")
    result = evaluate(tmp_path / "run")

    popular = result["baselines"]["popularity"]["retrieval"]["recall@10"]["value"]
    assert result["retrieval"]["recall@10"]["ci95"][0] > MARGIN * popular
    assert result["generation"]["recall@10"]["value"] > popular
    assert result["ranking"]["gauc"]["value"] > 0.6
    assert result["request"]["gauc"]["value"] > 0.55
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    assert len(recommend(tmp_path / "run", user="u0000001", k=5)) == 5
    assert report(tmp_path / "run").stat().st_size > 50_000
