"""RQ-VAE (TIGER, arXiv 2305.05065): an autoencoder of all modalities side by side whose latent is residual codes.

Stated: encoder 512, 256, 128 -> 32 with ReLU, its mirror as decoder, three books of 256, commitment weight 0.25,
k-means for the first codebooks. Ours: unit latents, so that commitment cannot shrink them to nothing; a warm-up without
codes, as latents that do not yet tell items apart are soon committed to a single point; reconstruction as the mean over
standardised features that are there; moving-average codebooks; dead codes re-seeded; settling.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hisam_jax.config import check_choices, check_least, check_shares
from hisam_jax.models.layers import Einsum
from hisam_jax.tokenizer import alignment, base, fitting, joined, mutual_information, quantization
from hisam_jax.tokenizer.base import FeatureMap, Level, PresentMap, Standardiser
from hisam_jax.tokenizer.config_checks import check_positive, check_sizes
from hisam_jax.tokenizer.fitting import Arrays
from hisam_jax.tokenizer.quantization import Book, Quantized

SHARED = "shared"
SETTLE_ROWS = 65536


@dataclasses.dataclass(frozen=True)
class RQVAEConfig:
    """Settings of RQ-VAE. Weights multiply the loss of their name.

    Attributes:
        sizes: size of each codebook.
        width: of the latent and the codes.
        standardise: what gets unit variance: a `modality` as a whole, or each `column`; see `DSTConfig`.
        hidden: hidden units of each layer of the encoder; the decoder has them in reverse.
        warm_up: share of training before there are codes: a plain autoencoder, whose latents the first codes are of.
        unit_latents: whether latents are scaled to length 1.
        codebooks: learned by moving average (`ema`) or by `gradient`.
        decay: of the moving averages.
        dead_threshold: a code taken less than this share of the average use is re-seeded.
        init_rows: items for the k-means++ initialisation.
        settle_iterations: Lloyd iterations over training items at the end, networks frozen; 0 for none.
        reconstruction_weight: of the mean squared error of what codes rebuild.
        commitment_weight: of what is quantised to its codes, squared norm; TIGER's beta.
        codebook_weight: of codes to what they stand for, with `gradient` codebooks.
        dropout: share of the encoder's inputs that is dropped while training.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        batch_size: items of a step.
        steps: of training, the warm-up included.

    Raises:
        UserError: a value out of range.
    """

    sizes: tuple = (256, 256, 256)
    standardise: Literal["modality", "column"] = "modality"
    width: int = 32
    hidden: tuple = (512, 256, 128)
    warm_up: float = 0.2
    unit_latents: bool = True
    codebooks: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    dead_threshold: float = 0.03
    init_rows: int = 4096
    settle_iterations: int = 5
    reconstruction_weight: float = 4.0
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    dropout: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 256
    steps: int = 2000

    def __post_init__(self):
        check_choices(self, "rqvae")
        check_sizes(self, "rqvae", "sizes")
        check_sizes(self, "rqvae", "hidden", empty=True)
        check_least(self, "rqvae", width=1, batch_size=1, steps=1, init_rows=1, settle_iterations=0, dead_threshold=0)
        check_least(self, "rqvae", reconstruction_weight=0, commitment_weight=0, codebook_weight=0, weight_decay=0)
        check_shares(self, "rqvae", "warm_up", "decay", "dropout")
        check_positive(self, "rqvae", "learning_rate")

    @property
    def warm_steps(self) -> int:
        """Steps without codes, a whole number of compiled calls."""
        return int(self.warm_up * self.steps) // fitting.STEPS_PER_CALL * fitting.STEPS_PER_CALL


class MLP(nn.Module):
    """Layers of `hidden` units with ReLU between, then `out`; dropout on the input."""

    hidden: tuple[int, ...]
    out: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BF: jax.Array, deterministic: bool = True) -> jax.Array:
        x_BF = nn.Dropout(self.dropout)(x_BF, deterministic=deterministic)
        for depth, units in enumerate((*self.hidden, self.out)):
            b = self.param(f"b{depth}", nn.initializers.zeros, (units,), jnp.float32)
            x_BF = Einsum("bf,fh->bh", (x_BF.shape[-1], units), name=f"layer{depth}")(x_BF) + b
            x_BF = jax.nn.relu(x_BF) if depth < len(self.hidden) else x_BF
        return x_BF


class Autoencoder(nn.Module):
    """Encoder and decoder over the modalities `widths` side by side."""

    cfg: RQVAEConfig
    widths: tuple[tuple[str, int], ...]

    def setup(self):
        self.encoder = MLP(self.cfg.hidden, self.cfg.width, self.cfg.dropout)
        self.decoder = MLP(self.cfg.hidden[::-1], sum(width for _, width in self.widths))

    def encode(self, x: Arrays, deterministic: bool = True) -> jax.Array:
        """Latents [B, D]."""
        z_BD = self.encoder(jnp.concatenate([x[m] for m, _ in self.widths], -1), deterministic)
        return alignment.normalise(z_BD) if self.cfg.unit_latents else z_BD

    def decode(self, q_BD: jax.Array) -> Arrays:
        """Standardised features of each modality."""
        parts = jnp.split(self.decoder(q_BD), np.cumsum([width for _, width in self.widths])[:-1], axis=-1)
        return {m: part for (m, _), part in zip(self.widths, parts, strict=True)}

    def __call__(self, x: Arrays) -> Arrays:
        return self.decode(self.encode(x))


class State(NamedTuple):
    """Everything that training changes."""

    trainable: dict[str, Any]  # net, and codebooks where they learn by gradient
    books: dict[str, tuple[Book, ...]]
    optimizer: Any


@dataclasses.dataclass(eq=False)
class RQVAE:
    """A fitted RQ-VAE; a `base.FittedTokenizer`."""

    cfg: RQVAEConfig
    params: dict[str, Any]
    books: list[np.ndarray]  # [K_l, D] each
    scales: dict[str, Standardiser]
    notes: list[str]
    history: list[dict[str, float]]
    name: str = "rqvae"

    @property
    def levels(self) -> tuple[Level, ...]:
        """All codes tell of all modalities: shared."""
        return base.group_levels({SHARED: tuple(len(book) for book in self.books)})

    @property
    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        return dataclasses.asdict(self.cfg)

    @property
    def networks(self) -> Autoencoder:
        """The modules of these settings and widths."""
        return Autoencoder(self.cfg, tuple((m, len(scale.mean_F)) for m, scale in self.scales.items()))

    def assign(self, features: FeatureMap, present: PresentMap) -> np.ndarray:
        """Codes int32 [I, L]; reserved for items with no modality at all."""
        found_IL = self._over_blocks(features, present, lambda q: q.codes_NL)
        has_I = np.any([present[m] for m in self.scales], axis=0)
        return np.where(has_I[:, None], found_IL, [len(book) for book in self.books]).astype(np.int32)

    def costs(self, features: FeatureMap, present: PresentMap, level: int) -> np.ndarray:
        """Squared distances float32 [I, K] from what `level` quantises to its codes."""
        book_KD = self.books[level]
        return self._over_blocks(
            features, present, lambda q: quantization.squared_distances(q.residuals_LND[level], book_KD)
        )

    def targets(self, features: FeatureMap) -> dict[str, np.ndarray]:
        """Standardised features."""
        return {m: scale(features[m], np.ones(len(features[m]), bool)) for m, scale in self.scales.items()}

    def reconstruct(self, codes_IL: np.ndarray, branch: str) -> dict[str, np.ndarray]:
        """The decoder's features; there are no specific codes, so `specific_only` is the mean item."""
        if branch == "specific_only":
            return {m: np.zeros((len(codes_IL), width), np.float32) for m, width in self.networks.widths}
        parts = [{m: np.zeros((0, width), np.float32) for m, width in self.networks.widths}]
        for start, stop in base.blocks(len(codes_IL)):
            codes_BL = base.padded(codes_IL[start:stop], base.BLOCK)
            q_BD = sum(quantization.look_up(book, code_B) for book, code_B in zip(self.books, codes_BL.T, strict=True))
            told = _decode(self.networks, self.params, q_BD)
            parts.append({m: np.asarray(v)[: stop - start] for m, v in told.items()})
        return {m: np.concatenate([part[m] for part in parts]) for m in self.scales}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and metadata for `from_state`."""
        flat = flax.traverse_util.flatten_dict(self.params, sep="/")
        arrays = {f"params/{name}": value for name, value in flat.items()} | joined.stored(self.scales)
        arrays |= {f"books/{depth}": book for depth, book in enumerate(self.books)}
        meta = {"config": self.config, "modalities": list(self.scales)}
        return arrays, meta | {"notes": self.notes, "history": self.history}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> RQVAE:
        """The same tokenizer again."""
        cfg, prefix = joined.read_config(RQVAEConfig, meta["config"]), "params/"
        flat = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        books = [arrays[f"books/{depth}"] for depth in range(len(cfg.sizes))]
        scales = joined.restored(arrays, meta["modalities"])
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        return cls(cfg, params, books, scales, list(meta["notes"]), list(meta["history"]))

    def _over_blocks(self, features: FeatureMap, present: PresentMap, read: Any) -> np.ndarray:
        """`read` of the quantisation of every block, joined."""
        base.check_features(features, present)
        base.check_widths(features, dict(self.networks.widths))
        parts = []
        for start, stop in base.blocks(len(next(iter(features.values())))):
            x, _ = fitting.load(self.scales, features, present, np.arange(start, stop))
            x = {m: base.padded(values, base.BLOCK) for m, values in x.items()}
            parts.append(np.asarray(read(_quantize(self.networks, self.params, self.books, x)))[: stop - start])
        return np.concatenate(parts)


def fit_rqvae(
    cfg: RQVAEConfig,
    features: FeatureMap,
    present: PresentMap,
    train_rows: np.ndarray,
    seed: int,
    progress: base.Progress | None = None,
) -> RQVAE:
    """Fits RQ-VAE on the items where `train_rows` (bool [I]) is true; items without any view are left out.

    Raises:
        UserError: features that cannot be used, or no training item with any.
        FloatingPointError: a loss that is not finite.
    """
    names, rows = joined.usable(features, present, train_rows)
    sizes, notes = joined.shrunk(cfg.sizes, len(rows), "rqvae.sizes")
    scales = {m: fitting.standardiser(cfg.standardise, features[m], present[m] & train_rows) for m in names}
    networks = Autoencoder(cfg, tuple((m, features[m].shape[1]) for m in names))
    load = functools.partial(fitting.load, scales, features, present)
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    first, _ = load(rng.permutation(rows)[: cfg.init_rows])
    state = with_books(networks, init_networks(networks, seed), sizes, seed, first, len(rows))
    history: list[dict[str, float]] = []
    for start, picks_SB in fitting.chunks(rows, cfg.batch_size, cfg.steps, rng):
        done = start + len(picks_SB)
        if 0 < start == cfg.warm_steps:
            state = with_books(networks, state.trainable["net"], sizes, seed, first, len(rows), state.optimizer)
        state, metrics = _run_steps(networks, state, key, jnp.arange(start, done), *load(picks_SB))
        row = {name: float(np.mean(values)) for name, values in metrics.items()}
        bad = [name for name, value in row.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(f"RQ-VAE: {', '.join(bad)} is not finite at step {done}")
        history.append({"step": done, **row})
        if progress:
            progress(done, cfg.steps, row)
    params, books = jax.tree.map(np.asarray, (state.trainable["net"], vectors_of(state.trainable, state.books)))
    if cfg.settle_iterations:
        sample, _ = load(rng.permutation(rows)[:SETTLE_ROWS])
        books = settle(networks, params, books, sample)
    return RQVAE(cfg, params, books, scales, notes, history)


def init_networks(networks: Autoencoder, seed: int) -> dict[str, Any]:
    """Scaled normal weights, zero biases."""
    nothing, rng = {m: jnp.zeros((1, width)) for m, width in networks.widths}, np.random.default_rng(seed)
    shapes = jax.eval_shape(networks.init, jax.random.key(0), nothing)["params"]
    return jax.tree.map(lambda leaf: mutual_information.initial(rng, leaf.shape), shapes)


def with_books(
    networks: Autoencoder, net: Any, sizes: Sequence[int], seed: int, x: Arrays, rows: int, optimizer: Any = None
) -> State:
    """Codebooks by residual k-means on the latents of `x`; `rows` training items; a fresh optimiser without one."""
    cfg, z_ND = networks.cfg, _encode(networks, net, x)
    vectors = quantization.residual_kmeans(jax.random.key(seed), z_ND, jnp.ones(len(z_ND)), sizes)
    trainable = {"net": net, "codebooks": vectors} if cfg.codebooks == "gradient" else {"net": net}
    books = {SHARED: tuple(quantization.make_book(v, float(min(cfg.batch_size, rows))) for v in vectors)}
    return State(trainable, books, optimizer or jax.jit(_optimizer(cfg).init)(trainable))


def settle(networks: Autoencoder, params: Any, books: Sequence[np.ndarray], x: Arrays) -> list[np.ndarray]:
    """Books after Lloyd iterations on the finished latents, coarse to fine; unused codes move to use."""
    left_ND, settled = _encode(networks, params, x), []
    for vectors_KD in books:
        ones = jnp.ones(len(left_ND))
        settled.append(np.asarray(quantization.lloyd(left_ND, ones, vectors_KD, networks.cfg.settle_iterations)))
        left_ND = quantization.leftover(left_ND, settled[-1])
    return settled


def train_step(
    networks: Autoencoder, state: State, key: jax.Array, step: jax.Array, x: Arrays, present: Arrays
) -> tuple[State, Arrays]:
    """One step: networks by AdamW, codebooks by moving average or gradient, dead codes re-seeded."""
    cfg = networks.cfg
    drop_key, seed_key = jax.random.split(jax.random.fold_in(key, step))
    weight_B = jnp.stack(list(present.values())).any(0).astype(jnp.float32)
    coded = step >= cfg.warm_steps

    def total_loss(trainable: dict[str, Any]) -> tuple[jax.Array, tuple[jax.Array, Quantized, Arrays]]:
        apply = functools.partial(networks.apply, {"params": trainable["net"]}, rngs={"dropout": drop_key})
        z_BD = apply(x, deterministic=False, method="encode")
        quantized = quantization.residual_quantize(z_BD, vectors_of(trainable, state.books))
        code_BD = quantization.straight_through(z_BD, quantized.sum_ND)
        guess = apply(jnp.where(coded, code_BD, z_BD), method="decode")
        parts = losses(guess, x, present, quantized, weight_B)
        pull = cfg.commitment_weight * parts["commitment"]
        if cfg.codebooks == "gradient":
            pull = pull + cfg.codebook_weight * parts["codebook"]
        return cfg.reconstruction_weight * parts["reconstruction"] + coded * pull, (z_BD, quantized, parts)

    (loss, (z_BD, quantized, parts)), gradients = jax.value_and_grad(total_loss, has_aux=True)(state.trainable)
    updates, optimizer = _optimizer(cfg).update(gradients, state.optimizer, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    books, usage = fitting.update_books(
        seed_key,
        state.books,
        {SHARED: quantized},
        {SHARED: weight_B},
        decay=cfg.decay,
        dead_threshold=cfg.dead_threshold,
        learned={SHARED: trainable["codebooks"]} if "codebooks" in trainable else None,
    )
    if "codebooks" in trainable:
        trainable["codebooks"] = [book.vectors_KD for book in books[SHARED]]
    about = {"gradient_norm": fitting.norm(gradients["net"]), f"spread/{SHARED}": fitting.spread(z_BD, weight_B)}
    return State(trainable, books, optimizer), {"loss": loss, **about, **parts, **usage}


def losses(guess: Arrays, x: Arrays, present: Arrays, quantized: Quantized, weight_B: jax.Array) -> Arrays:
    """Every loss by name, unweighted: reconstruction a mean over features that are there, commitment a squared norm."""
    errors = [quantization.masked_mean(jnp.mean((guess[m] - x[m]) ** 2, -1), present[m]) for m in guess]
    commitment, codebook = quantization.commitment_losses(quantized, weight_B)
    return {"reconstruction": sum(errors) / len(errors), "commitment": commitment, "codebook": codebook}


def vectors_of(trainable: Mapping[str, Any], books: Mapping[str, Sequence[Book]]) -> list[jax.Array]:
    """The codebooks [K, D], wherever they are kept."""
    return list(trainable.get("codebooks") or [book.vectors_KD for book in books[SHARED]])


def _optimizer(cfg: RQVAEConfig) -> optax.GradientTransformation:
    return fitting.adamw(cfg.learning_rate, cfg.steps, cfg.weight_decay)


@functools.partial(jax.jit, static_argnums=0)
def _run_steps(
    networks: Autoencoder, state: State, key: jax.Array, steps_S: jax.Array, x_SBF: Arrays, present_SB: Arrays
) -> tuple[State, Arrays]:
    def body(carry: State, part: Any) -> tuple[State, Arrays]:
        return train_step(networks, carry, key, *part)

    return jax.lax.scan(body, state, (steps_S, x_SBF, present_SB))


@functools.partial(jax.jit, static_argnums=0)
def _encode(networks: Autoencoder, params: Any, x: Arrays) -> jax.Array:
    return networks.apply({"params": params}, x, method="encode")


@functools.partial(jax.jit, static_argnums=0)
def _quantize(networks: Autoencoder, params: Any, books: Sequence[jax.Array], x: Arrays) -> Quantized:
    return quantization.residual_quantize(networks.apply({"params": params}, x, method="encode"), books)


@functools.partial(jax.jit, static_argnums=0)
def _decode(networks: Autoencoder, params: Any, q_BD: jax.Array) -> Arrays:
    return networks.apply({"params": params}, q_BD, method="decode")
