"""`hisam compile`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from hisam_jax.cli.common import Verb, add_config, config_of


def _compile_flags(parser: argparse.ArgumentParser) -> None:
    add_config(parser, "configs/hmat_1b.py")
    parser.add_argument(
        "--topology",
        metavar="NAME",
        required=True,
        help="devices to compile for, which need not be here: a TPU slice such as v5e:16x16, v5p:4x4x4 or v6e:16x16, "
        "or H100s such as h100:8 or h100:64",
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="such as data=32,fsdp=4,tensor=2,context=1 (default: the config's for NAME)"
    )
    parser.add_argument(
        "--serving-rows", metavar="N", type=int, default=8, help="histories that a serving device scores at once"
    )


def _compile(arguments: argparse.Namespace) -> Any:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from hisam_jax.compilation.report import compile_report

    config = config_of(arguments)
    return compile_report(config, arguments.topology, arguments.mesh, serving_rows=arguments.serving_rows)


VERBS = {"compile": Verb("Compiles a step for devices that are not here, and counts.", _compile_flags, _compile)}
