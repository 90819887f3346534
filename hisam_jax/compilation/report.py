"""`hisam compile`: bytes, operations and traffic of a step on a named slice or box, and whether it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from hisam_jax.compilation import collectives, steps
from hisam_jax.compilation.topology import Target, chips_of, target
from hisam_jax.config import build
from hisam_jax.errors import UserError
from hisam_jax.scaling.flops import Vocabulary, forward_flops, train_flops
from hisam_jax.sharding import AXES, MeshConfig, make_mesh
from hisam_jax.training.assembly import Configs, check_split

USABLE = 0.92  # of a device's memory; the rest is the runtime's
PALLAS = ("tpu_custom_call", "mosaic_gpu")  # what Pallas kernels are called in a compiled program
ALIASES = {"model": "tensor"}


def compile_report(
    config: Mapping[str, Any], topology: str, mesh: str | None = None, *, serving_rows: int = 8
) -> dict[str, Any]:
    """Compiles training and serving for devices that need not be here.

    What does not fit has no counts of what is sent where its compiler gives up, as the TPU's does.

    Args:
        config: sections of a config file, with `catalogue` (see `Vocabulary`) and, optionally, `targets`: by topology,
            the fields that differ there.
        topology: such as `v5e:16x16` or `h100:8`.
        mesh: such as `data=32,tensor=8`, in place of the config's.
        serving_rows: histories that a serving device scores at once.

    Raises:
        UserError: unknown topologies, meshes that do not divide devices or model, a config without `catalogue`; a mesh
            of this process is set.
    """
    _check_outside()
    where = target(topology)
    configs, vocabulary = configs_for(config, topology, mesh)
    report = _training(configs, vocabulary, where)
    if not report["fits"]:
        report["would_fit"] = _what_would(configs, vocabulary, where)
    serving = steps.serve_step(configs, vocabulary, where.devices[0], serving_rows)
    return {**report, "serving": _serving(serving, configs, vocabulary, where, serving_rows)}


def count_report(config: Mapping[str, Any], topology: str, mesh: str | None = None) -> dict[str, Any]:
    """What of `compile_report` needs no compiler: bytes of all but temporaries, and operations; in a second.

    Args:
        config, topology, mesh: as `compile_report` has them.

    Raises:
        UserError: an unknown topology, a mesh that does not divide devices or model, a config without `catalogue`; a
            mesh of this process is set.
    """
    _check_outside()
    chip, devices = chips_of(topology)
    configs, vocabulary = configs_for(config, topology, mesh)
    sizes = dict(zip(AXES, configs.mesh.sizes(devices), strict=True))
    check_split(configs, sizes)
    kinds = (jax.sharding.AxisType.Explicit,) * len(AXES)
    arguments = steps.train_arguments(
        configs, vocabulary, jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=kinds)
    )
    memory = {name: steps.held(tree) for name, tree in steps.kinds_of(*arguments).items()}
    return {
        "topology": topology,
        "chip": chip.name,
        "devices": devices,
        "mesh": sizes,
        "parameters": steps.count(arguments[0].params),
        "bytes_per_device": {**memory, "total": sum(memory.values()), "capacity": chip.memory},
        "flops_per_step": _operations(configs, vocabulary, devices),
        "tokens_per_step": _tokens(configs, vocabulary),
    }


def _check_outside() -> None:
    """Refuses within `jax.set_mesh`: JAX lets no mesh of other devices be set there."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        held = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
        raise UserError(f"a mesh is set here: {held}", field="jax.set_mesh", expected="a call outside of it")


def configs_for(config: Mapping[str, Any], topology: str, mesh: str | None) -> tuple[Configs, Vocabulary]:
    """The sections as they hold for `topology`, and the catalogue's sizes."""
    config = {name: _plain(section) for name, section in config.items()}
    targets, catalogue = config.pop("targets", {}), config.pop("catalogue", None)
    if catalogue is None:
        raise UserError("no section catalogue", field="catalogue", expected="items, levels, digit and features")
    for section, fields in targets.get(topology, {}).items():
        config[section] = {**config.get(section, {}), **fields}
    if mesh:
        config["mesh"] = _parsed(mesh)
    return Configs.of(config), build(Vocabulary, catalogue, "catalogue")


def _parsed(mesh: str) -> dict[str, int]:
    sizes = dict.fromkeys(AXES, 1)
    for part in mesh.split(","):
        name, _, size = part.partition("=")
        name = ALIASES.get(name.strip(), name.strip())
        if name not in AXES or not size.strip().isdigit():
            raise UserError(f"value {part!r}", field="--mesh", expected="such as data=32,fsdp=4,tensor=2,context=1")
        sizes[name] = int(size)
    return sizes


def _training(configs: Configs, vocabulary: Vocabulary, where: Target) -> dict[str, Any]:
    """Compiles the training step and counts.

    Raises:
        UserError: a mesh that does not divide devices or model.
    """
    sizes = dict(zip(AXES, configs.mesh.sizes(len(where.devices)), strict=True))
    check_split(configs, sizes)
    program = steps.train_step(configs, vocabulary, make_mesh(configs.mesh, where.devices))
    devices = len(where.devices)
    operations = _operations(configs, vocabulary, devices)
    text = program.compiled.as_text() if program.compiled else ""
    traffic = collectives.traffic(text) if program.compiled else None
    memory = program.bytes()
    total = sum(memory.values())
    return {
        "topology": where.name,
        "chip": where.chip.name,
        "devices": devices,
        "mesh": sizes,
        "parameters": dict(program.parameters),
        "bytes_per_device": {**memory, "total": total, "capacity": where.chip.memory},
        "flops_per_step": operations,
        "kernels": sum(text.count(f'custom_call_target="{name}') for name in PALLAS),
        "collective_bytes_per_step": traffic and {**traffic.bytes, "total": traffic.total},
        "collective_calls_per_step": traffic and dict(traffic.calls),
        "floor_seconds": _floor(
            operations["useful"] + operations["recomputed"], memory, traffic and traffic.total, where
        ),
        "tokens_per_step": _tokens(configs, vocabulary),
        "fits": program.compiled is not None and total <= USABLE * where.chip.memory,
    }


def _operations(configs: Configs, vocabulary: Vocabulary, devices: int) -> dict[str, int]:
    """Of a training step over full rows."""
    data = configs.data
    lengths = [data.window] * (data.rows * data.items_per_row // data.window)
    useful = train_flops(configs.model, vocabulary, lengths)
    forward = forward_flops(configs.model, vocabulary, lengths)
    again = forward["blocks"] + forward["attention"] if configs.model.remat == "all" else 0
    return {"useful": useful, "recomputed": again, "per_device": (useful + again) // devices}


def _tokens(configs: Configs, vocabulary: Vocabulary) -> int:
    return configs.data.rows * configs.data.items_per_row * configs.model.tokens(len(vocabulary.levels))


def _floor(flops: int, memory: Mapping[str, int], sent: int | None, where: Target) -> dict[str, float | str]:
    """Least seconds by what limits: arithmetic, state read and written once, links if known; they may overlap."""
    state = 2 * (memory["parameters"] + memory.get("optimizer", 0))
    parts = {
        "arithmetic": flops / len(where.devices) / where.chip.flops,
        "memory": state / where.chip.bandwidth,
        **({} if sent is None else {"links": sent / where.link}),
    }
    return {**parts, "limit": max(parts, key=parts.get)}


def _serving(program, configs: Configs, vocabulary: Vocabulary, where: Target, rows: int) -> dict[str, Any]:
    memory = program.bytes()
    flops = forward_flops(configs.model, vocabulary, [configs.data.items_per_row] * rows, positions=rows)
    return {
        "what": f"retrieval over {vocabulary.items} items for {rows} histories of {configs.data.items_per_row} items "
        "on one device",
        "bytes_per_device": {**memory, "total": sum(memory.values())},
        "flops_per_call": sum(flops.values()),
        "fits": program.compiled is not None and sum(memory.values()) <= USABLE * where.chip.memory,
    }


def _what_would(configs: Configs, vocabulary: Vocabulary, where: Target) -> dict[str, Any] | None:
    """The first change, of remat, parts of a batch and mesh, with which the step was compiled and did fit."""
    for change, changed in _changes(configs, where):
        try:
            report = _training(changed, vocabulary, where)
        except UserError:
            continue
        if report["fits"]:
            return {"change": change, "bytes_per_device": report["bytes_per_device"]["total"]}
    return None


def _changes(configs: Configs, where: Target):
    model, training, mesh = configs.model, configs.training, configs.mesh
    changed = configs
    if model.remat != "all":
        changed = dataclasses.replace(changed, model=dataclasses.replace(model, remat="all"))
        yield {"model.remat": "all"}, changed
    devices = len(where.devices) // (mesh.tensor * mesh.context)
    if mesh.fsdp < devices:
        whole = MeshConfig(data=1, fsdp=devices, tensor=mesh.tensor, context=mesh.context)
        changed = dataclasses.replace(changed, mesh=whole)
        yield {"model.remat": "all", "mesh": dataclasses.asdict(whole)}, changed
    for parts in (2, 4, 8, 16):
        more = dataclasses.replace(training, accumulate=training.accumulate * parts)
        yield (
            {"model.remat": "all", "mesh": dataclasses.asdict(changed.mesh), "training.accumulate": more.accumulate},
            dataclasses.replace(changed, training=more),
        )


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else value
