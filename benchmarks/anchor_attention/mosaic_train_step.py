"""Compiles HMAT's train step with the TPU kernel for 256 chips that are not here; run as a process of its own.

Writes one JSON line: bytes of temporaries on a device, elements of the largest array in the program, kernels in it, and
the tokens and items of a row.
"""

import json
import math
import os
import re

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from hisam_jax.models.catalog import make_catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.heads import make_objective
from hisam_jax.models.hmat import HMAT
from hisam_jax.sharding import SPECS, MeshConfig, make_mesh
from hisam_jax.training.optimizer import OptimizerConfig, make_optimizer
from hisam_jax.training.state import init_state, make_train_step

ROWS, ITEMS, CODES, CATALOG = 64, 4096, 4, 500
MODEL = HMATConfig(
    width=512, layers=3, heads=4, kv_heads=4, mlp=1024, features=False, dtype="bfloat16", remat="all",
    attention="tpu",
)  # fmt: skip


def on(mesh, part):
    """A shape that says its devices too."""
    spec = getattr(part.sharding, "spec", jax.P())
    return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=jax.NamedSharding(mesh, spec))


def compiled():
    """One optimizer step on a 64 x 4 mesh of v5e chips: rows over `data`, heads over `tensor`."""
    codes_IL = np.random.default_rng(0).integers(0, 256, (CATALOG, CODES)).astype(np.int32)
    catalog = make_catalog(codes_IL, {}, {}, np.ones(CATALOG, bool))
    loss_fn, init_fn = make_objective(HMAT(MODEL, (257,) * CODES, 0, CATALOG), catalog, codes_IL)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices
    mesh = make_mesh(MeshConfig(tensor=4), devices)
    rows = jax.NamedSharding(mesh, SPECS.batch)
    kinds = {"item": jnp.int32, "segment": jnp.int32, "action": jnp.int32, "gap": jnp.float32, "positive": jnp.float32}
    kinds |= {"rank_weight": jnp.float32, "next_weight": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct((ROWS, ITEMS), kind, sharding=rows) for name, kind in kinds.items()}
    batch["codes"] = jax.ShapeDtypeStruct((ROWS, ITEMS, CODES), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda b: init_state(init_fn, optimizer, 0, b), batch)
        state = jax.tree.map(lambda part: on(mesh, part), state)
        step = jax.jit(make_train_step(loss_fn, optimizer), donate_argnums=0)
        return step.trace(state, batch).lower().compile()


if __name__ == "__main__":
    program, tokens = compiled(), ITEMS * (CODES + 1)
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32|s8)\[([\d,]+)\]", program.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    kernels = program.as_text().count('custom_call_target="tpu_custom_call"')
    print(json.dumps({
        "temporaries": program.memory_analysis().temp_size_in_bytes, "largest": largest, "kernels": kernels,
        "tokens": tokens, "items": ITEMS,
    }))  # fmt: skip
