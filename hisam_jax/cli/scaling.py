"""`hisam scale`."""

from __future__ import annotations

import argparse
from typing import Any

from hisam_jax.cli.common import Verb, config_of, count
from hisam_jax.errors import UserError


def _flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a sweep, such as configs/scaling/tiny.py")
    add("--out", metavar="DIR", help="where dataset, IDs, cells and the page go; all but --list need it")
    add("--data", metavar="DIR", help="folder of raw data, {data} in the sweep")
    add("--dataset", metavar="DIR", help="a prepared dataset in place of the one that the sweep would prepare")
    add("--ids", metavar="IDS", help="its semantic IDs, in place of those that the sweep's tokenizer would make")
    add("--jobs", metavar="N", type=count, default=1, help="cells at a time, each on its share of cores")
    add("--only", metavar="CELL", nargs="+", default=[], help="cells to run, by name or number (default: all)")
    add("--list", action="store_true", help="only print the names of the cells, numbered from 1 by their lines")
    add("--fits-only", action="store_true", help="run nothing, write the page of what is done")
    add("--flops", metavar="F", type=float, nargs="+", default=[], help="budgets to predict for, operations")
    add(
        "--chip-hours", metavar="H", type=float, nargs="+", default=[], help="budgets to predict for, hours of --device"
    )
    add("--device", metavar="NAME", help="whose hours those are: v4, v5e, v5p, v6e, h100 or h200")
    add(
        "--compiled",
        metavar="FILE",
        help="what `hisam compile` printed; its chip is the device, its floor bounds --mfu",
    )
    add("--mfu", metavar="SHARE", type=float, default=0.3, help="share of its peak that training makes use of, 0 to 1")


def _scale(arguments: argparse.Namespace) -> Any:
    if not arguments.list and arguments.out is None:
        raise UserError("no folder", field="--out", expected="--out DIR, or --list")
    if bool(arguments.chip_hours) != (arguments.device is not None or arguments.compiled is not None):
        expected = "--device NAME or --compiled FILE" if arguments.chip_hours else "--chip-hours H"
        raise UserError("hours and their device come together", field="--chip-hours", expected=f"{expected} beside it")
    from hisam_jax.scaling import frontier, run, sweep
    from hisam_jax.scaling.ceiling import ceiling_of

    config = config_of(arguments, sweep.completed)
    if arguments.list:
        return "\n".join(run.list_cells(config))
    targets = [frontier.target_of_flops(flops) for flops in arguments.flops]
    ceiling = ceiling_of(arguments.compiled) if arguments.compiled is not None else None
    device = ceiling.device if ceiling is not None and arguments.device is None else arguments.device
    targets += [frontier.target_of_chips(hours, device, arguments.mfu, ceiling) for hours in arguments.chip_hours]
    run.scale(
        config,
        arguments.config,
        arguments.out,
        data=arguments.data,
        dataset=arguments.dataset,
        ids=arguments.ids,
        only=arguments.only,
        jobs=arguments.jobs,
        fits_only=arguments.fits_only,
        targets=targets,
    )
    return f"{arguments.out}/scale.md"


VERBS = {"scale": Verb("Trains a sweep over sizes and budgets, and fits scaling laws to it.", _flags, _scale)}
