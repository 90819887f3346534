"""What a step costs on devices that are not here, by their real compilers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hisam_jax.chips import CHIPS
from hisam_jax.compilation import report, steps
from hisam_jax.compilation.collectives import traffic
from hisam_jax.compilation.topology import Target, target
from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.models.config import HMATConfig
from hisam_jax.scaling.flops import Vocabulary, forward_flops
from hisam_jax.sharding import MeshConfig, make_mesh
from tests.model_fixtures import ITEMS, LEVELS, SIZE, small_batch, small_catalog, small_model, small_params

ROOT = Path(__file__).resolve().parents[1]
HLO = """HloModule step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[], f32[16]{0}) parameter(0)
  %limit = s32[] constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (q: (s32[], f32[16])) -> (s32[], f32[16]) {
  %q = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%q), index=1
  %reduced = f32[16]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %next = (s32[], f32[16]{0}) tuple(%j, %reduced)
}

ENTRY %main (w: f32[16]) -> f32[64] {
  %w = f32[16]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[16]{0}) tuple(%zero, %w)
  %loop = (s32[], f32[16]{0}) while(%start), condition=%condition, body=%body%KNOWN
  %y = f32[16]{0} get-tuple-element(%loop), index=1
  %shifted = f32[16]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %whole = f32[64]{0} all-gather(%shifted), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}
"""

REFUSED = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (183.00G) exceeds "
    "available HBM (15.75G)."
)

SMALL = {
    "data.rows": "16", "data.streams": "4", "data.items_per_row": "16", "data.window": "16", "model.layers": "1",
    "model.remat": "none", "catalogue.items": "5000",
}  # fmt: skip


def compiled(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from hisam_jax.cli import main; sys.exit(main())", "compile", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr.strip(), done.stderr  # libtpu's account of what this machine is not would drown an error
    return json.loads(done.stdout)


def needs(module: str):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"no {module}: make compilers")


@needs("libtpu")
@pytest.mark.slow
def test_a_small_model_on_a_pod_holds_no_scores_and_says_what_it_costs():
    """Temporaries are fewer than the scores of one head of one layer, between all of a row's tokens, would take."""
    longer = ("--config.data.items_per_row=4096", "--config.data.window=4096", "--config.model.layers=2")
    longer += ("--serving-rows=1", "--config.model.dropout=0.1")  # whose masks are drawn in parts
    found = compiled("--config", "configs/hmat_10m.py", "--topology", "v5e:16x16", *longer)
    tokens = 4096 * 5
    assert found["devices"] == 256 and found["fits"] and found["mesh"]["data"] == 256
    assert found["kernels"] >= 3, "forward, and backward by queries and by anchors"
    assert found["bytes_per_device"]["temporaries"] < 2 * tokens**2
    assert found["bytes_per_device"]["optimizer"] == 2 * found["bytes_per_device"]["parameters"] + 8
    gradients = 4 * found["parameters"]["network"] // 2  # in bf16, sent and received
    assert found["collective_bytes_per_step"]["all-reduce"] > gradients
    assert found["serving"]["fits"]


@needs("jax_cuda13_plugin")
@pytest.mark.skipif(not shutil.which("ptxas"), reason="no ptxas on the PATH")
@pytest.mark.slow
def test_a_model_of_a_billion_fits_eight_gpus():
    found = compiled("--config", "configs/hmat_1b.py", "--topology", "h100:8")
    assert 0.95e9 < found["parameters"]["network"] < 1.1e9 and found["fits"]
    whole = 4 * sum(found["parameters"].values())
    assert found["bytes_per_device"]["parameters"] < 1.05 * whole / 8
    assert found["collective_bytes_per_step"]["all-gather"] > 0  # parameters are gathered where they are used


@pytest.mark.parametrize("known", ["", ', backend_config={"known_trip_count":{"n":"12"}}'])
def test_loops_send_as_often_as_they_run(known):
    found = traffic(HLO.replace("%KNOWN", known))
    assert found.bytes == {
        "all-reduce": 12 * 2 * 3 * 64 // 4,
        "collective-permute": 64,
        "all-gather": 3 * 256 // 4,
    }
    assert found.calls["all-reduce"] == 12 and found.largest["all-gather"] == 256


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%s = (bf16[64,8]{1,0}, bf16[8,8]{1,0}) reduce-scatter-start(%x), replica_groups=[1,8]<=[8]", 7 * 8 * 8 * 2),
        ("%s = (bf16[8,8]{1,0}, bf16[64,8]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8]", 7 * 8 * 8 * 2),
        ("%s = f32[16]{0} all-reduce-start(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}", 2 * 3 * 64 // 4),
        ("%s = f32[16]{0} all-reduce(%x), replica_groups={}", 2 * 7 * 64 // 8),
    ],
)
def test_a_ring_sends_its_share(line, sent):
    text = f"HloModule m, num_partitions=8\n\nENTRY %main (x: f32[16]) -> f32[16] {{\n  {line}\n}}\n"
    assert traffic(text).total == sent


def test_a_loop_of_unknown_length_is_not_guessed():
    with pytest.raises(ValueError, match="trip count"):
        traffic(HLO.replace("%KNOWN", "").replace("constant(12)", "parameter(1)"))


@pytest.mark.parametrize("switches", [{"anchors": False, "attention": "dense"}, {"attention": "reference"}])
def test_counted_operations_are_those_of_the_program(switches):
    """Beside XLA's own count of an unrolled dense program, whose attention computes every pair."""
    config = HMATConfig(
        width=64, heads=2, kv_heads=2, mlp=96, layers=1, dropout=0.0, qk_norm=False, rope="none", **switches
    )
    catalog, vocabulary = small_catalog(), Vocabulary(ITEMS, (SIZE,) * LEVELS, 4, {"text": 5})
    batch = small_batch(catalog, items=16)
    model = small_model(**{name: getattr(config, name) for name in config.__dataclass_fields__})
    params, loss_fn = small_params(model, catalog, batch)
    analysis = jax.jit(lambda p: loss_fn(p, batch, jax.random.key(0))[0]).lower(params).compile().cost_analysis()
    tokens = config.tokens(LEVELS)
    parts = forward_flops(config, vocabulary, [16, 16])
    dense = 4 * 2 * (16 * tokens) ** 2 * config.heads * config.head_width
    count = sum(parts.values()) - parts["attention"] + dense
    assert count == pytest.approx(analysis["flops"], rel=0.15)
    assert jnp.isfinite(loss_fn(params, batch, jax.random.key(0))[0])


@pytest.mark.parametrize(
    ("topology", "mesh", "match"),
    [
        ("v9:2x2", None, "v5e:16x16"),
        ("h100:12", None, "multiple"),
        ("v5e", None, "v5e:16x16"),
        ("v5e:16x16", "rows=2", "data=32"),
        ("v5e:16x16", "data=3", "256"),
    ],
)
def test_what_cannot_be_compiled_for_is_refused(topology, mesh, match):
    if topology == "v5e:16x16":
        pytest.importorskip("libtpu")
    with pytest.raises(UserError, match=match):
        report.compile_report(load_config(ROOT / "configs" / "hmat_10m.py"), topology, mesh)


@pytest.mark.parametrize(
    ("topology", "mesh", "match"),
    [
        ("v9:2x2", None, "v5e:16x16"),
        ("v5e:16x16", "data=3", "256"),
        ("v5e:4x4", "fsdp=2,tensor=8", "heads"),
        ("v5e:0x4", None, "at least one device"),
        ("h100:2x4", None, "a number of GPUs"),
        ("h100:12", None, "a multiple"),
    ],
)
def test_what_cannot_be_is_not_counted_either(topology, mesh, match):
    with pytest.raises(UserError, match=match):
        report.count_report(load_config(ROOT / "configs" / "hmat_10m.py"), topology, mesh)


@pytest.mark.parametrize("count", [report.count_report, report.compile_report])
def test_a_mesh_that_is_set_is_refused_before_jax_does(count):
    config = load_config(ROOT / "configs" / "hmat_10m.py", SMALL)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), pytest.raises(UserError, match="outside of it"):
        count(config, "v5e:1x1")


def test_without_a_compiler_all_but_temporaries_and_traffic_is_known(monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered, options: answer(None))
    compiled = small_report(monkeypatch)
    counted = report.count_report(load_config(ROOT / "configs" / "hmat_10m.py", SMALL), "v5e:1x1")
    for name in ("topology", "chip", "devices", "mesh", "parameters", "flops_per_step", "tokens_per_step"):
        assert counted[name] == compiled[name], name
    kinds = ("parameters", "optimizer", "catalogue", "batch")
    assert [counted["bytes_per_device"][k] for k in kinds] == [compiled["bytes_per_device"][k] for k in kinds]
    assert counted["bytes_per_device"]["total"] == sum(counted["bytes_per_device"][k] for k in kinds)


def test_a_mesh_of_devices_that_are_not_here_splits_the_state():
    whole, split, tensor = (
        report.count_report(load_config(ROOT / "configs" / "hmat_10m.py", SMALL), "v5e:2x4", mesh)["bytes_per_device"]
        for mesh in ("data=8", "fsdp=8", "fsdp=2,tensor=4")
    )
    assert whole["parameters"] == 4 * sum(counted_parameters())
    for parts in (split, tensor):
        assert whole["parameters"] / 8 <= parts["parameters"] < 1.25 * whole["parameters"] / 8
        assert parts["optimizer"] == 2 * parts["parameters"] + 8 and parts["catalogue"] < whole["catalogue"] / 7


def counted_parameters() -> list[int]:
    found = report.count_report(load_config(ROOT / "configs" / "hmat_10m.py", SMALL), "v5e:1x1")
    return list(found["parameters"].values())


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1", "v5p:1x1x1"])
def test_one_chip_is_a_topology(topology):
    pytest.importorskip("libtpu")
    assert len(target(topology).devices) == 1


def test_a_step_that_the_compiler_gives_up_on_does_not_fit(monkeypatch):
    """The real steps, traced, and a compiler that refuses the first as libtpu does."""
    answers = iter([REFUSED, None, None])
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered, options: answer(next(answers)))
    found = small_report(monkeypatch)
    assert not found["fits"] and found["bytes_per_device"]["total"] == 183 * 2**30
    assert found["bytes_per_device"]["parameters"] == 4 * sum(found["parameters"].values())
    assert found["flops_per_step"]["useful"] > 0 and found["collective_bytes_per_step"] is None
    assert found["floor_seconds"]["limit"] in ("arithmetic", "memory")
    assert found["would_fit"]["change"] == {"model.remat": "all"}
    assert found["would_fit"]["bytes_per_device"] < 2**30 and found["serving"]["fits"]


@pytest.mark.parametrize("parts", [2, 16, 99])
def test_what_would_fit_is_looked_for_past_what_does_not(monkeypatch, parts):
    def program(said):
        lowered = types.SimpleNamespace(compile=lambda options: answer(said))
        compiled, needed = steps.compile_for(lowered, make_mesh(MeshConfig(), jax.devices()[:1]))
        return steps.Program(compiled, {"parameters": 8}, {"network": 2, "tables": 0}, needed)

    def train_step(configs, vocabulary, mesh):
        return program(REFUSED if configs.training.accumulate < parts else None)

    monkeypatch.setattr(steps, "train_step", train_step)
    monkeypatch.setattr(steps, "serve_step", lambda *_: program(REFUSED))
    found = small_report(monkeypatch)
    assert (found["would_fit"] or {}).get("change", {}).get("training.accumulate") == (parts if parts < 99 else None)
    assert not found["serving"]["fits"] and found["serving"]["bytes_per_device"]["total"] == 183 * 2**30


def test_another_fault_of_the_compiler_is_no_lack_of_memory():
    lowered = types.SimpleNamespace(compile=lambda options: answer(REFUSED.replace("HBM", "vmem")))
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        steps.compile_for(lowered, make_mesh(MeshConfig(), jax.devices()[:1]))


def answer(said: str | None):
    """A program without collectives that needs little, or the compiler's error."""
    if said:
        raise jax.errors.JaxRuntimeError(said)
    memory = types.SimpleNamespace(output_size_in_bytes=0, alias_size_in_bytes=0, temp_size_in_bytes=1000)
    return types.SimpleNamespace(as_text=lambda: HLO.replace("%KNOWN", ""), memory_analysis=lambda: memory)


def small_report(monkeypatch) -> dict:
    """The report of a small step on one device."""
    chip = Target("v5e:1x1", CHIPS["v5e"], tuple(jax.devices()[:1]), "tpu")
    monkeypatch.setattr(report, "target", lambda name: chip)
    return report.compile_report(load_config(ROOT / "configs" / "hmat_10m.py", SMALL), "v5e:1x1")


def test_a_config_without_a_catalogue_is_refused():
    with pytest.raises(UserError, match="catalogue"):
        report.configs_for(load_config(ROOT / "configs" / "shop.py"), "v5e:16x16", None)


@pytest.mark.parametrize("name", ["10m", "100m", "1b", "8b"])
@pytest.mark.parametrize("topology", ["v5e:16x16", "v5p:4x4x4", "h100:8", "h100:64"])
def test_every_size_has_a_mesh_for_every_box(name, topology):
    from hisam_jax.sharding import AXES
    from hisam_jax.training.assembly import check_split

    configs, _ = report.configs_for(load_config(ROOT / "configs" / f"hmat_{name}.py"), topology, None)
    kind, shape = topology.split(":")
    devices = int(np.prod([int(size) for size in shape.split("x")]))
    check_split(configs, dict(zip(AXES, configs.mesh.sizes(devices), strict=True)))
