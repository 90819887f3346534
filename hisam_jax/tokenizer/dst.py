"""DST, the Disentangled Semantic Tokenizer (Hi-SAM, arXiv 2602.11799): its networks, forward pass and losses.

Alignment on one hypersphere, and shared codes first, then specific codes on residuals, are stated in the paper; every
formula and network below is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.models.layers import Einsum
from hisam_jax.tokenizer import alignment, quantization
from hisam_jax.tokenizer.dst_config import SHARED, DSTConfig
from hisam_jax.tokenizer.quantization import Quantized

Arrays = dict[str, jax.Array]


class MLP(nn.Module):
    """`W2 gelu(W1 x + b1) + b2`, dropout on x."""

    hidden: int
    out: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BF: jax.Array, deterministic: bool = True) -> jax.Array:
        x_BF = nn.Dropout(self.dropout)(x_BF, deterministic=deterministic)
        first_b = self.param("first_b", nn.initializers.zeros, (self.hidden,), jnp.float32)
        last_b = self.param("last_b", nn.initializers.zeros, (self.out,), jnp.float32)
        hidden_BH = jax.nn.gelu(Einsum("bf,fh->bh", (x_BF.shape[-1], self.hidden), name="first")(x_BF) + first_b)
        return Einsum("bh,hd->bd", (self.hidden, self.out), name="last")(hidden_BH) + last_b


class Networks(nn.Module):
    """The MLPs of every modality: P (to the sphere), F (residual to latent), D and G (shared and specific decoders)."""

    cfg: DSTConfig
    widths: tuple[tuple[str, int], ...]

    def setup(self):
        cfg = self.cfg
        dropout = cfg.dropout if len(self.widths) > 1 else 0.0  # one view alone has no pairs to learn by heart
        self.P = {m: MLP(cfg.hidden, cfg.width, dropout) for m, _ in self.widths}
        self.D = {m: MLP(cfg.hidden, width) for m, width in self.widths}
        if cfg.residual == "feature":
            self.F = {m: MLP(cfg.hidden, cfg.width, cfg.specific_dropout) for m, _ in self.widths}
            self.G = {m: MLP(cfg.hidden, width) for m, width in self.widths}

    def views(self, x: Arrays, deterministic: bool = True) -> Arrays:
        """z_m: unit rows [B, d]."""
        return {m: alignment.normalise(self.P[m](x[m], deterministic)) for m, _ in self.widths}

    def decode_shared(self, q_BD: jax.Array) -> Arrays:
        """What the shared codes alone tell of the standardised features."""
        return {m: self.D[m](q_BD) for m, _ in self.widths}

    def residuals(
        self, x: Arrays, views: Arrays, q_BD: jax.Array, shared: Arrays, deterministic: bool = True
    ) -> Arrays:
        """r_m [B, d]: unit rows for `feature` (so that commitment has one scale), z_m - q_s for `latent`."""
        stop = jax.lax.stop_gradient if self.cfg.residual_stop_gradient else lambda value: value
        if self.cfg.residual == "latent":
            return {m: views[m] - stop(q_BD) for m, _ in self.widths}
        left = {m: self._beside(x[m] - stop(shared[m]), q_BD * self.cfg.width**0.5) for m, _ in self.widths}
        return {m: alignment.normalise(self.F[m](left[m], deterministic)) for m, _ in self.widths}

    def decode(self, q_BD: jax.Array, shared: Arrays, specific: Arrays) -> Arrays:
        """Reconstruction from shared and specific codes."""
        if self.cfg.residual == "latent":
            return {m: self.D[m](q_BD + specific[m]) for m, _ in self.widths}
        return {m: shared[m] + self.G[m](self._beside(specific[m], q_BD)) for m, _ in self.widths}

    def decode_specific(self, specific: Arrays) -> Arrays:
        """What each modality's specific codes alone tell."""
        if self.cfg.residual == "latent":
            return {m: self.D[m](specific[m]) for m, _ in self.widths}
        nothing_BD = jnp.zeros_like(next(iter(specific.values())))
        return {m: self.G[m](self._beside(specific[m], nothing_BD)) for m, _ in self.widths}

    def _beside(self, own_BX: jax.Array, q_BD: jax.Array) -> jax.Array:
        """`own_BX`, beside what the shared codes say where specific networks may see it; they send it no gradient."""
        return jnp.concatenate([own_BX, jax.lax.stop_gradient(q_BD)], -1) if self.cfg.shared_context else own_BX

    def __call__(self, x: Arrays) -> Arrays:
        views = self.views(x)
        q_BD = next(iter(views.values()))
        shared = self.decode_shared(q_BD)
        return self.decode(q_BD, shared, self.residuals(x, views, q_BD, shared))


class Forward(NamedTuple):
    """One pass over a batch."""

    views: Arrays  # z_m
    targets: Arrays  # group -> what it quantises: h for the shared codes, r_m for the others
    quantized: dict[str, Quantized]  # group -> its residual quantisation
    sums: Arrays  # group -> q with the gradient of what it quantises
    shared_only: Arrays  # reconstructions of standardised features
    full: Arrays


def forward(
    networks: Networks,
    params: Any,
    books: Mapping[str, Any],
    x: Arrays,
    present: Arrays,
    dropout_key: jax.Array | None = None,
) -> Forward:
    """Views -> consensus -> shared codes -> residuals -> specific codes -> reconstructions.

    Args:
        networks: the modules.
        params: their parameters.
        books: group -> its codebooks, each [K, D].
        x: modality -> standardised features [B, F_m].
        present: modality -> bool [B]; an absent view adds nothing anywhere.
        dropout_key: given while training.
    """
    extra = {} if dropout_key is None else {"rngs": {"dropout": dropout_key}}
    fixed = dropout_key is None

    def run(method: str, *args: Any, **kwargs: Any) -> Any:
        return networks.apply({"params": params}, *args, method=method, **extra, **kwargs)

    views = run("views", x, deterministic=fixed)
    h_BD = alignment.consensus(views, present)
    targets = {SHARED: h_BD}
    quantized = {SHARED: quantization.residual_quantize(h_BD, books[SHARED])}
    q_BD = quantization.straight_through(h_BD, quantized[SHARED].sum_ND)
    shared = run("decode_shared", q_BD)
    sums = {SHARED: q_BD}
    for m, r_BD in run("residuals", x, views, q_BD, shared, deterministic=fixed).items():
        targets[m] = r_BD
        quantized[m] = quantization.residual_quantize(r_BD, books[m])
        has_codes = len(books[m]) > 0
        q_m_BD = quantization.straight_through(r_BD, quantized[m].sum_ND) if has_codes else jnp.zeros_like(r_BD)
        sums[m] = jnp.where(present[m][:, None], q_m_BD, 0.0)
    full = run("decode", q_BD, shared, {m: sums[m] for m in views})
    return Forward(views, targets, quantized, sums, shared, full)


compiled_forward = jax.jit(forward, static_argnums=0)


def weights_of(present: Arrays) -> Arrays:
    """Group -> float32 [B]: 1 where an item has what the group quantises."""
    anything = jnp.stack(list(present.values())).any(0)
    return {SHARED: anything.astype(jnp.float32), **{m: p.astype(jnp.float32) for m, p in present.items()}}


def losses(cfg: DSTConfig, passed: Forward, x: Arrays, present: Arrays, log_temperature: jax.Array) -> Arrays:
    """Every loss by name, unweighted; reconstructions are means over standardised features, then over modalities."""
    weight = weights_of(present)
    temperature = jnp.exp(log_temperature) if cfg.alignment == "infonce" else cfg.temperature
    commitments = [quantization.commitment_losses(q, weight[name]) for name, q in passed.quantized.items()]
    return {
        "reconstruction": reconstruction(passed.full, x, weight),
        "shared_reconstruction": reconstruction(passed.shared_only, x, weight),
        "alignment": alignment.alignment_loss(
            cfg.alignment,
            passed.views,
            present,
            temperature=temperature,
            smoothing=cfg.smoothing,
            width=cfg.kernel_width,
        ),
        "uniformity": sum(alignment.uniformity(z, present[m]) for m, z in passed.views.items()) / len(passed.views),
        "commitment": sum(commitment for commitment, _ in commitments),
        "codebook": sum(codebook for _, codebook in commitments),
    }


def reconstruction(guess: Arrays, x: Arrays, weight: Arrays) -> jax.Array:
    """Mean over modalities of the mean squared error over columns and present items."""
    errors = [quantization.masked_mean(jnp.mean((guess[m] - x[m]) ** 2, -1), weight[m]) for m in guess]
    return sum(errors) / len(errors)
