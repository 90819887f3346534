"""Compiles HMAT's train step with the TPU kernel for 256 chips that are not here; run as a process of its own.

Writes one JSON line: bytes of temporaries on a device, elements of the largest array in the program, kernels in it, and
the tokens and items of a row.
"""

import json
import math
import os
import re

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

from hisam_jax.compilation import steps, target
from hisam_jax.data.pipeline import PipelineConfig
from hisam_jax.models.config import HMATConfig
from hisam_jax.scaling.flops import Vocabulary
from hisam_jax.sharding import MeshConfig, make_mesh
from hisam_jax.training.assembly import Configs, EvaluationConfig
from hisam_jax.training.config import TrainingConfig

ROWS, ITEMS, CODES, CATALOG = 64, 4096, 4, 500
MODEL = HMATConfig(
    width=512, layers=3, heads=4, kv_heads=4, mlp=1024, features=False, dtype="bfloat16", remat="all",
    attention="tpu",
)  # fmt: skip


def compiled():
    """One optimizer step on a 64 x 4 mesh of v5e chips: rows over `data`, heads over `tensor`."""
    data = PipelineConfig(rows=ROWS, items_per_row=ITEMS, window=ITEMS)
    configs = Configs(0, MODEL, data, TrainingConfig(), EvaluationConfig(), MeshConfig(tensor=4))
    mesh = make_mesh(configs.mesh, target("v5e:16x16").devices)
    return steps.train_step(configs, Vocabulary(CATALOG, (256,) * CODES), mesh).compiled


if __name__ == "__main__":
    program, tokens = compiled(), ITEMS * (CODES + 1)
    shapes = re.findall(r"\b(?:f32|bf16|pred|s32|s8)\[([\d,]+)\]", program.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    kernels = program.as_text().count('custom_call_target="tpu_custom_call"')
    print(json.dumps({
        "temporaries": program.memory_analysis().temp_size_in_bytes, "largest": largest, "kernels": kernels,
        "tokens": tokens, "items": ITEMS,
    }))  # fmt: skip
