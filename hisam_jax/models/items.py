"""Item vectors: one sum of code, feature and id embeddings that feeds the anchor and scores retrieval (tied)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.models.catalog import Catalog
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.layers import Einsum, Embed


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
            self.ids = Embed(self.config.item_id_rows or self.items, width, name="item_id")

    def code_embeddings(self, codes_xL: jax.Array) -> jax.Array:
        """`[..., L, D]`: one embedding a code token."""
        return jnp.stack([table(codes_xL[..., level]) for level, table in enumerate(self.code_tables)], axis=-2)

    @nn.compact
    def __call__(self, item_x: jax.Array, catalog: Catalog, *, deterministic: bool = True) -> jax.Array:
        """Item vectors `[..., D]` in float32; items never trained on have no id embedding."""
        config = self.config
        total = jnp.zeros((*item_x.shape, config.width))
        if config.codes:
            summed = self.code_embeddings(jnp.take(catalog.codes_IL, item_x, axis=0)).sum(-2)
            total += self._keep(config.code_dropout, summed, deterministic)
        if config.features:
            for name, values_IF in sorted(catalog.features.items()):
                shape = (values_IF.shape[-1], config.width)
                project = Einsum("...f,fd->...d", shape, scale=0.1, name=f"features_{name}")
                total += project(jnp.take(values_IF, item_x, axis=0))
        if config.item_id:
            known = jnp.take(catalog.trained_I, item_x, axis=0)[..., None]
            total += self._keep(
                config.id_dropout, self.ids(_row(item_x, self.items, self.ids.rows)) * known, deterministic
            )
        return total

    def _keep(self, rate: float, x: jax.Array, deterministic: bool) -> jax.Array:
        """Hides whole vectors; unscaled, as an item without an id looks just so when it is served."""
        if deterministic or not rate:
            return x
        return x * jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (*x.shape[:-1], 1))


def _row(item: jax.Array, items: int, rows: int) -> jax.Array:
    """Row of the id table: one to one where it is large enough, else multiplicative hashing (Knuth)."""
    if rows >= items:
        return item
    mixed = item.astype(jnp.uint32) * jnp.uint32(2654435769)
    return ((mixed >> 7) % jnp.uint32(rows)).astype(jnp.int32)
