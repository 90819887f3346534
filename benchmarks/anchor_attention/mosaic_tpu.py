"""Compiles anchor attention, forward and backward, for TPUs that are not here; run as a process of its own.

Reads a JSON list of cases from stdin and writes one JSON line a case: bytes of vector memory that each kernel takes.
"""

import json
import os
import re
import sys

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.compilation import topology
from hisam_jax.kernels.anchor_attention import tpu
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule, attend
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def compiled(target, batch, items, tokens, heads, kv_heads, width, anchors, dtype, rule, tiles):
    """The program of a value and all gradients on one device of `target`."""
    mesh = jax.sharding.Mesh(np.array(topology.target(TOPOLOGIES[target]).devices[:1]), ("x",))
    here = jax.sharding.NamedSharding(mesh, jax.P())

    def array(kind, *shape):
        return jax.ShapeDtypeStruct(shape, kind, sharding=here)

    keys, cached = (batch, items, tokens, kv_heads, width), (batch, anchors, kv_heads, width)
    floats = (array(dtype, *keys[:3], heads, width), *[array(dtype, *keys)] * 2, *[array(dtype, *cached)] * 2)
    x = Inputs(*floats, *(array(jnp.int32, batch, n) for n in (items, anchors)), array(jnp.int32))
    tiles = Tiles(*tiles) if tiles else tpu.tiles(Sizes.of(x.q_BNTHD, x.anchor_k_BMGD))

    def step(x):
        def function(*floats):
            return attend(Inputs(*floats, *x[5:]), tpu.IMPLEMENTATION, Rule(*rule), tiles)

        results, pull = jax.vjp(function, *x[:5])
        return results, pull(jax.tree.map(jnp.ones_like, results))

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(jax.P(),), out_specs=jax.P(), check_vma=False)
    return jax.jit(mapped).trace(x).lower().compile()


def vector_memory(program) -> dict[str, int]:
    """Bytes that each kernel of the program takes for its blocks, double buffers included, scratch and spills."""
    found = {}
    for line in program.as_text().splitlines():
        if 'custom_call_target="tpu_custom_call"' in line:
            name = re.search(r"anchor_attention_(forward|backward_queries|backward_anchors)", line).group(1)
            found[name] = int(re.search(r'"used_scoped_memory_configs":\[\{[^]]*"size":"(\d+)"', line).group(1))
    return found


if __name__ == "__main__":
    for case in json.load(sys.stdin):
        print(json.dumps(vector_memory(compiled(**case))), flush=True)
