"""Settings of DST and what they become on given features. All defaults are ours except shared-before-specific."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from hisam_jax.config import check_choices, check_least, check_shares
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.config_checks import (
    check_positive,
    check_sizes,
    refuse_no_sizes,
)

SHARED = "shared"


@dataclasses.dataclass(frozen=True)
class DSTConfig:
    """Settings of DST. Sizes are counts, rates per step, weights multiply the loss of their name.

    Attributes:
        shared: size of each shared codebook, coarse to fine.
        specific: modality -> size of each of its codebooks.
        order: modalities in the order of their codes; others follow by name.
        unnamed: codebook sizes of a modality that `specific` does not name.
        standardise: what gets unit variance: a `modality` as a whole (its columns keep their proportions) or each
            `column`, which turns principal components into equals and their noise with them.
        width: width d of the hypersphere and of all codes.
        hidden: hidden units of every MLP.
        alignment: loss between views of the same item.
        temperature: of the alignment loss; learned from there for `infonce`.
        smoothing: label smoothing of the volume losses.
        kernel_width: s of the radial kernel.
        residual: what specific codes quantise: `feature` e_m - D_m(q_s), or `latent` z_m - q_s.
        residual_stop_gradient: whether the residual sends no gradient to the shared branch.
        shared_context: whether F and G of `feature` residuals see the shared quantisation beside their own input.
        codebooks: learned by moving average (`ema`) or by `gradient`.
        decay: of the moving averages.
        dead_threshold: a code taken less than this share of the average use is re-seeded.
        init_rows: items for the k-means++ initialisation.
        settle_iterations: Lloyd iterations over training items at the end, networks frozen; 0 for none.
        alignment_weight: of the alignment loss.
        uniformity_weight: of the views' spread over the hypersphere (arXiv 2005.10242).
        reconstruction_weight: of the mean squared error of what all codes rebuild.
        shared_reconstruction_weight: the same of what the shared codes alone rebuild, so that they cannot be empty.
        commitment_weight: of what is quantised to its codes, squared norm.
        codebook_weight: of codes to what they stand for, with `gradient` codebooks.
        mi_weight: of what shared codes tell of each modality's specific ones, nats.
        mi_specific_weight: of what specific codes tell of one another, nats; 0 leaves it out.
        mi_estimator: q of the specific codes (`categorical`), or of the latents that they stand for (`gaussian`).
        mi_temperature: of the soft codes that carry a categorical q's gradient, in mean squared distances to a code.
        mi_hidden: hidden units of q.
        mi_log_variance: bound of a Gaussian q's log-variance.
        mi_learning_rate: of q's own optimiser.
        mi_steps: likelihood steps of vCLUB's q per batch, on detached samples.
        mi_shared_gradient: whether shared codes, too, move to be told less of; else only specific ones do.
        mi_ramp: share of training over which the weights of mutual information rise from 0.
        dropout: share of the inputs of P that is dropped while training, against learning the training pairs by heart;
            none is with one modality.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        batch_size: items of a step.
        steps: of training; 60 passes over the items are a good number.
        specific_dropout: the same of F, against codes for single items' noise.

    Raises:
        UserError: a value out of range.
    """

    shared: tuple = (256, 256)
    specific: Mapping[str, tuple] = dataclasses.field(default_factory=lambda: {"text": (256,), "image": (256,)})
    order: tuple = ("text", "image")
    unnamed: tuple = (256,)
    standardise: Literal["modality", "column"] = "modality"
    width: int = 64
    hidden: int = 256
    alignment: Literal["none", "infonce", "volume", "rbf_volume"] = "rbf_volume"
    temperature: float = 0.07
    smoothing: float = 0.1
    kernel_width: float = 1.0
    residual: Literal["feature", "latent"] = "feature"
    residual_stop_gradient: bool = True
    shared_context: bool = True
    codebooks: Literal["ema", "gradient"] = "ema"
    decay: float = 0.99
    dead_threshold: float = 0.03
    init_rows: int = 4096
    settle_iterations: int = 5
    alignment_weight: float = 1.0
    uniformity_weight: float = 0.0
    reconstruction_weight: float = 4.0
    shared_reconstruction_weight: float = 1.0
    commitment_weight: float = 0.05
    codebook_weight: float = 1.0
    mi_weight: float = 0.25
    mi_specific_weight: float = 0.0
    mi_estimator: Literal["categorical", "gaussian"] = "categorical"
    mi_temperature: float = 0.25
    mi_shared_gradient: bool = False
    mi_hidden: int = 128
    mi_log_variance: float = 1.0
    mi_learning_rate: float = 1e-3
    mi_steps: int = 5
    mi_ramp: float = 0.3
    dropout: float = 0.3
    specific_dropout: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 256
    steps: int = 1000

    def __post_init__(self):
        tuples = {m: tuple(sizes) if isinstance(sizes, list) else sizes for m, sizes in self.specific.items()}
        object.__setattr__(self, "specific", tuples)
        check_choices(self, "dst")
        check_sizes(self, "dst", "shared")
        check_sizes(self, "dst", "unnamed", empty=True)
        for m, sizes in self.specific.items():
            refuse_no_sizes(sizes, f"dst.specific.{m}", empty=True)
        if len(set(self.order)) < len(self.order):
            raise UserError(f"value {self.order!r}", field="dst.order", expected="each modality once")
        check_least(self, "dst", width=1, hidden=1, batch_size=2, steps=1, init_rows=1, settle_iterations=0)
        check_least(self, "dst", dead_threshold=0, weight_decay=0, alignment_weight=0, uniformity_weight=0)
        check_least(self, "dst", reconstruction_weight=0, shared_reconstruction_weight=0, commitment_weight=0)
        check_least(
            self,
            "dst",
            codebook_weight=0,
            mi_weight=0,
            mi_specific_weight=0,
            mi_hidden=1,
            mi_steps=0,
            mi_log_variance=0,
        )
        check_shares(self, "dst", "smoothing", "decay", "dropout", "specific_dropout")
        check_shares(self, "dst", "mi_ramp", whole=True)
        check_positive(self, "dst", "temperature", "kernel_width", "mi_temperature")
        check_positive(self, "dst", "learning_rate", "mi_learning_rate")

    def __hash__(self) -> int:
        return hash(repr(self))  # a static argument of compiled functions, though `specific` is a mapping


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a config becomes on given features: usable modalities with their widths, codebooks, and what was changed."""

    widths: tuple[tuple[str, int], ...]
    groups: tuple[tuple[str, tuple[int, ...]], ...]
    notes: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.widths)


def make_layout(cfg: DSTConfig, widths: Mapping[str, int], counts: Mapping[str, int]) -> Layout:
    """Drops modalities that no training item has and gives their levels to the others; no book outgrows its items.

    Args:
        cfg: the settings.
        widths: modality -> number of feature columns.
        counts: modality -> training items that have it.

    Raises:
        UserError: a modality called as the shared levels, or none that a training item has.
    """
    if SHARED in {*widths, *cfg.specific, *cfg.order}:
        raise UserError(f"a modality called {SHARED!r}", field="modalities", expected="a name that no level group has")
    every = sorted({*widths, *cfg.specific} - {*cfg.order})
    every = [m for m in cfg.order if m in widths or m in cfg.specific] + every
    usable = [m for m in every if counts.get(m, 0) > 0]
    if not usable:
        raise UserError("no training item has any features", field="features", expected="at least one modality")
    sizes = {m: list(cfg.specific.get(m, cfg.unnamed)) for m in usable}
    notes, receiver = [], 0
    for absent in [m for m in every if m not in usable and cfg.specific.get(m)]:
        for size in cfg.specific[absent]:
            sizes[usable[receiver % len(usable)]].append(size)
            receiver += 1
        notes.append(f"no training item has {absent}: its levels went to {', '.join(usable)}")
    if len(usable) == 1:
        notes.append(f"one modality ({usable[0]}): alignment and mutual information are off")
    groups = {SHARED: list(cfg.shared), **sizes}
    limits = {SHARED: max(counts[m] for m in usable), **{m: counts[m] for m in usable}}
    for name, books in groups.items():
        for depth, size in enumerate(books):
            if size > limits[name]:
                notes.append(f"{name}/{depth}: {size} codes for {limits[name]} training items, shrunk to that")
                books[depth] = limits[name]
    books = tuple((name, tuple(sizes)) for name, sizes in groups.items())
    return Layout(tuple((m, widths[m]) for m in usable), books, tuple(notes))
