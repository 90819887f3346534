"""Item vectors: one sum of code, feature and id embeddings that feeds the anchor and scores retrieval (tied)."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.models.catalog import Catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.layers import Einsum, Embed
from hisam_jax.sharding import SPECS, look_up, padded_rows, shard


class ItemEncoder(nn.Module):
    """Embeddings of codes and items.

    Attributes:
        config: switches.
        vocab: size of each level's vocabulary, the reserved code included.
        items: number of items in the catalogue.
    """

    config: HMATConfig
    vocab: tuple[int, ...]
    items: int

    def setup(self):
        width = self.config.width
        self.code_tables = [Embed(size, width, name=f"codes_{level}") for level, size in enumerate(self.vocab)]
        if self.config.item_id:
            rows = self.config.item_id_rows or padded_rows(self.items)
            self.ids = Embed(rows, width, spec=SPECS.rows, name="item_id")

    def code_embeddings(self, codes_xL: jax.Array, spec: jax.P = SPECS.batch) -> jax.Array:
        """`[..., L, D]`: one embedding a code token."""
        return jnp.stack([table(codes_xL[..., level], spec) for level, table in enumerate(self.code_tables)], axis=-2)

    def __call__(
        self, item_x: jax.Array | None, catalog: Catalog, *, deterministic: bool = True, spec: jax.P = SPECS.batch
    ) -> jax.Array:
        """Item vectors `[..., D]` in float32, placed as `spec` says; of the whole catalogue where `item_x` is None.

        Items never trained on have no id embedding.
        """
        shape = (catalog.items,) if item_x is None else item_x.shape
        total = jnp.zeros((*shape, self.config.width))
        for part in self.parts(item_x, catalog, deterministic=deterministic, spec=spec).values():
            total += part
        return total

    @nn.compact
    def parts(
        self, item_x: jax.Array | None, catalog: Catalog, *, deterministic: bool = True, spec: jax.P = SPECS.batch
    ) -> dict[str, jax.Array]:
        """What an item vector is the sum of: `codes`, each modality's features by name, `id`."""
        config, spec, parts = self.config, SPECS.rows if item_x is None else spec, {}
        of = row_reader(item_x, spec)
        if config.codes:
            summed = self.code_embeddings(of(catalog.codes_IL), spec).sum(-2)
            parts["codes"] = self._keep(config.code_dropout, summed, deterministic)
        if config.features:
            parts |= projected_features(config.width, catalog, of)
        if config.item_id:
            known = of(catalog.trained_I)[..., None]
            parts["id"] = self._keep(config.id_dropout, self._ids(item_x, catalog.items, spec) * known, deterministic)
        return parts

    def _ids(self, item_x: jax.Array | None, items: int, spec: jax.P) -> jax.Array:
        if item_x is not None:
            return self.ids(id_row(item_x, self.items, self.ids.rows), spec)
        if self.ids.rows >= items:
            return shard(self.ids.table[:items], SPECS.rows)
        return self.ids(id_row(shard(jnp.arange(items), SPECS.rows), self.items, self.ids.rows), SPECS.rows)

    def _keep(self, rate: float, x: jax.Array, deterministic: bool) -> jax.Array:
        """Hides whole vectors; unscaled, as an item without an id looks just so when it is served."""
        if deterministic or not rate:
            return x
        return x * jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (*x.shape[:-1], 1))


def row_reader(item_x: jax.Array | None, spec: jax.P = SPECS.batch) -> Callable[[jax.Array], jax.Array]:
    """Reads the rows `item_x` of tables `[I, ...]`, placed as `spec` says; for None whole tables, split by rows."""
    if item_x is None:
        return lambda table_IX: shard(jnp.asarray(table_IX), SPECS.rows)
    return lambda table_IX: look_up(jnp.asarray(table_IX), item_x, spec)


def projected_features(width: int, catalog: Catalog, of: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
    """Each modality's features, projected to `[..., width]`, as `features NAME`; called inside a compact method.

    `of` picks the rows of a table `[I, F]` that are asked for.
    """
    parts = {}
    for name, values_IF in sorted(catalog.features.items()):
        shape = (values_IF.shape[-1], width)
        project = Einsum("...f,fd->...d", shape, scale=0.1, spec=SPECS.matrix, name=f"features_{name}")
        parts[f"features {name}"] = project(of(values_IF))
    return parts


def id_row(item: jax.Array, items: int, rows: int) -> jax.Array:
    """Row of the id table: one to one where it is large enough, else multiplicative hashing (Knuth).

    Items that came after training have none and are given the last one, which counts for nothing.
    """
    if rows >= items:
        return jnp.minimum(item, rows - 1)
    mixed = item.astype(jnp.uint32) * jnp.uint32(2654435769)
    return ((mixed >> 7) % jnp.uint32(rows)).astype(jnp.int32)
