"""The frozen DST: codes, costs, reconstructions and single-view latents, in blocks of one compiled shape."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from hisam_jax.tokenizer import alignment, base, dst, quantization
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap, Standardiser
from hisam_jax.tokenizer.dst import Arrays, Networks
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig, Layout


@dataclasses.dataclass(eq=False)
class DSTModel:
    """A fitted DST; a `base.FittedTokenizer` and `base.CrossModal`."""

    cfg: DSTConfig
    layout: Layout
    params: dict[str, Any]
    books: dict[str, list[np.ndarray]]  # group -> [K, d] of each level
    scales: dict[str, Standardiser]
    history: list[dict[str, float]]
    name: str = "dst"

    @property
    def levels(self) -> tuple[Level, ...]:
        """Shared levels first, then each modality's."""
        return base.group_levels(dict(self.layout.groups))

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    @property
    def notes(self) -> list[str]:
        """What had to be changed to fit the data."""
        return list(self.layout.notes)

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; `size` of a level where its view is missing."""
        return self._over_blocks(self._codes, features, present)

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K] from what `level` quantises to each of its codes."""
        return self._over_blocks(lambda x, p: self._costs(level, x, p), features, present)

    def views(self, features: FeatureMap, present: PresentMap) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Modality -> (z_m, its own shared quantisation), each float32 [I, d], from that view alone."""
        return self._over_blocks(self._views, features, present)

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """Standardised features."""
        return {m: scale(features[m], np.ones(len(features[m]), bool)) for m, scale in self.scales.items()}

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """Standardised features from codes alone; a reserved code adds nothing."""
        parts = []
        for start, stop in base.blocks(len(codes_IL)):
            block = base.padded(codes_IL[start:stop], base.BLOCK)
            parts.append({m: np.asarray(v)[: stop - start] for m, v in self._decode(branch, block).items()})
        return {m: np.concatenate([part[m] for part in parts]) for m in self.scales}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        flat = flax.traverse_util.flatten_dict(self.params, sep="/")
        arrays = {f"params/{name}": value for name, value in flat.items()}
        for group, books in self.books.items():
            arrays |= {f"books/{group}/{depth}": vectors for depth, vectors in enumerate(books)}
        for m, scale in self.scales.items():
            arrays |= {f"mean/{m}": scale.mean_F, f"scale/{m}": scale.scale_F}
        meta = {"config": self.config, "layout": dataclasses.asdict(self.layout), "history": self.history}
        return arrays, meta

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> DSTModel:
        """The same tokenizer again."""
        stored = dict(meta["config"])
        stored["specific"] = {m: tuple(sizes) for m, sizes in stored["specific"].items()}
        cfg = DSTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        groups = tuple((name, tuple(sizes)) for name, sizes in meta["layout"]["groups"])
        widths = tuple((m, width) for m, width in meta["layout"]["widths"])
        prefix = "params/"
        flat = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        books = {name: [arrays[f"books/{name}/{depth}"] for depth in range(len(sizes))] for name, sizes in groups}
        scales = {m: Standardiser(arrays[f"mean/{m}"], arrays[f"scale/{m}"]) for m, _ in widths}
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        return cls(cfg, Layout(widths, groups, tuple(meta["layout"]["notes"])), params, books, scales, meta["history"])

    @functools.cached_property
    def _networks(self) -> Networks:
        return Networks(self.cfg, self.layout.widths)

    def _forward(self, x: Arrays, present: Arrays) -> dst.Forward:
        return dst.compiled_forward(self._networks, self.params, self.books, x, present)

    def _over_blocks(self, function: Callable[[Arrays, Arrays], Any], features: FeatureMap, present: PresentMap) -> Any:
        """`function` on standardised blocks, its padding cut off, joined along the first axis."""
        base.check_features(features, present)
        base.check_widths(features, dict(self.layout.widths))
        rows, parts = len(next(iter(features.values()))), []
        for start, stop in base.blocks(rows):
            p = {m: np.asarray(present[m][start:stop]) for m in self.scales}
            x = {m: base.padded(scale(features[m][start:stop], p[m]), base.BLOCK) for m, scale in self.scales.items()}
            p = {m: base.padded(v, base.BLOCK) for m, v in p.items()}
            parts.append(jax.tree.map(lambda v, n=stop - start: np.asarray(v)[:n], function(x, p)))
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)

    def _codes(self, x: Arrays, present: Arrays) -> np.ndarray:
        quantized = self._forward(x, present).quantized
        codes_BL = np.concatenate([np.asarray(quantized[name].codes_NL) for name, _ in self.layout.groups], 1)
        weight = dst.weights_of(present)
        has_BL = np.stack([np.asarray(weight[level.modality]) > 0 for level in self.levels], 1)
        return np.where(has_BL, codes_BL, [level.size for level in self.levels]).astype(np.int32)

    def _costs(self, level: int, x: Arrays, present: Arrays) -> jax.Array:
        group = self.levels[level].modality
        depth = int(self.levels[level].name.rpartition("/")[2])
        residual_BD = self._forward(x, present).quantized[group].residuals_LND[depth]
        return quantization.squared_distances(residual_BD, self.books[group][depth])

    def _views(self, x: Arrays, present: Arrays) -> dict[str, tuple[jax.Array, jax.Array]]:
        found = {}
        for m, z_BD in self._forward(x, present).views.items():
            alone_BD = alignment.consensus({m: z_BD}, {m: present[m]})
            found[m] = (alone_BD, quantization.residual_quantize(alone_BD, self.books[SHARED]).sum_ND)
        return found

    def _decode(self, branch: str, codes_BL: np.ndarray) -> Arrays:
        sums = {name: np.zeros((len(codes_BL), self.cfg.width), np.float32) for name, _ in self.layout.groups}
        for index, level in enumerate(self.levels):
            vectors_KD = self.books[level.modality][int(level.name.rpartition("/")[2])]
            code_B = codes_BL[:, index]
            known_B1 = (code_B < level.size)[:, None]
            sums[level.modality] += np.where(known_B1, vectors_KD[np.minimum(code_B, level.size - 1)], 0)
        return _decode(self._networks, branch, self.params, sums)


def _decode_branch(networks: Networks, branch: str, params: Any, sums: Arrays) -> Arrays:
    run = functools.partial(networks.apply, {"params": params})
    if branch == "specific_only":
        return run(sums, method="decode_specific")
    shared = run(sums[SHARED], method="decode_shared")
    return shared if branch == "shared_only" else run(sums[SHARED], shared, sums, method="decode")


_decode = jax.jit(_decode_branch, static_argnums=(0, 1))
