"""The light text encoder that knows synonyms: word vectors learned from the catalogue's own texts, summed.

Word vectors are left singular vectors of the words' shifted PPMI matrix (Levy et al. 2015, TACL 3, with p = 0); an
item's vector is their sum with weights a / (a + p(word)) (Arora et al. 2017, "A simple but tough-to-beat baseline for
sentence embeddings"). The combination, and columns of equal variance, are ours.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import polars as pl
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.utils.extmath import randomized_svd

from hisam_jax.data.encoders.base import Features, Fitted, absent, describe, scatter
from hisam_jax.data.encoders.behaviour import Interactions, ppmi
from hisam_jax.data.encoders.text import (
    RANK_TOLERANCE,
    fit_words,
    item_texts,
    known_words,
    packed_words,
    training_texts,
)
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """Title, attributes and categories -> at most `dim` numbers of unit variance, fitted on the training items.

    Words that stand beside the same words come out alike, so two synonyms that never meet in one item still do, and
    words without company of their own (fillers) come out near zero. TF-IDF keeps every word apart. An item with no word
    that occurs in the training items is absent.

    Attributes:
        dim: width, or the rank of the words' matrix where that is smaller.
        window: two words of a text are near when at most this many places apart.
        smoothing: exponent of the context distribution, against rare partners.
        weight: a of the sum's weights, as a share of items; the smaller, the less common words count.
        seed: of the randomised SVD.
    """

    dim: int = 128
    window: int = 20
    smoothing: float = 0.75
    weight: float = 0.1
    seed: int = 0
    modality: ClassVar[str] = "text"
    name: ClassVar[str] = "word_vectors"

    def __post_init__(self):
        for name, least in (("dim", 1), ("window", 1), ("smoothing", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"value {getattr(self, name)}", field=f"{self.name}.{name}", expected=f"{least} or more"
                )
        if not self.weight > 0:
            raise UserError(f"value {self.weight}", field=f"{self.name}.weight", expected="more than 0")

    def fingerprint(self) -> str:
        return describe(self, 2, ("numpy", "scipy", "scikit-learn"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(item_texts(items)), fit_rows)

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        texts = item_texts(items)
        training = training_texts(texts, fit_rows)
        vectorizer = fit_words(CountVectorizer, training, binary=True)
        if vectorizer is None:
            return absent(len(items))
        vectors_VD = self._vectors(vectorizer, training)
        if vectors_VD is None:
            return absent(len(items))
        counts_IV = vectorizer.transform(texts).astype(np.float32)
        share_V = np.asarray(counts_IV[np.flatnonzero(fit_rows)].mean(0)).ravel()
        weighted_VD = vectors_VD * (self.weight / (self.weight + share_V))[:, None].astype(np.float32)
        values_ID = counts_IV @ weighted_VD
        fitted = (np.linalg.norm(values_ID, axis=1) > RANK_TOLERANCE) & fit_rows
        mean_D, spread_D = values_ID[fitted].mean(0), values_ID[fitted].std(0)
        kept_D = spread_D > RANK_TOLERANCE * max(spread_D.max(initial=0), RANK_TOLERANCE)
        if not kept_D.any():
            return absent(len(items))
        return FittedWordVectors(vectorizer, weighted_VD, mean_D, np.where(kept_D, spread_D, 0)).standardise(values_ID)

    def _vectors(self, vectorizer: CountVectorizer, texts: list[str]) -> np.ndarray | None:
        """[V, D] of unit variance a column over words; None where no two words stand together more than by chance."""
        ppmi_VV = ppmi(_word_events(vectorizer, texts), len(vectorizer.vocabulary_), self.window, self.smoothing)
        if not ppmi_VV.nnz:
            return None
        size = min(self.dim, len(vectorizer.vocabulary_))
        left_VD, singular_D, _ = randomized_svd(ppmi_VV, size, n_oversamples=32, n_iter=5, random_state=self.seed)
        return left_VD[:, singular_D > RANK_TOLERANCE * singular_D[0]].astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedWordVectors:
    """The words' weighted vectors float32 `[V, D]`; mean and spread `[D]` of their sums, 0 of a column left out."""

    vectorizer: CountVectorizer
    vectors_VD: np.ndarray
    mean_D: np.ndarray
    spread_D: np.ndarray

    @classmethod
    def of(cls, fitted: Fitted) -> FittedWordVectors:
        """What `standardise` told of itself."""
        vectorizer = known_words(CountVectorizer, fitted.arrays["words"], binary=True)
        return cls(vectorizer, *(fitted.arrays[name] for name in ("vectors", "mean", "spread")))

    def inputs(self, items: pl.DataFrame) -> str:
        return sha256_of("\0".join(item_texts(items)))

    def encode(self, items: pl.DataFrame) -> Features:
        return self.standardise(self.vectorizer.transform(item_texts(items)).astype(np.float32) @ self.vectors_VD)

    def standardise(self, sums_ID: np.ndarray) -> Features:
        """Features of the items whose sums are no rounding."""
        known, kept_D = np.linalg.norm(sums_ID, axis=1) > RANK_TOLERANCE, self.spread_D > 0
        values_ND = (sums_ID[known][:, kept_D] - self.mean_D[kept_D]) / self.spread_D[kept_D]
        arrays = {"vectors": self.vectors_VD, "mean": self.mean_D, "spread": self.spread_D}
        fitted = Fitted(WordVectors.name, arrays={"words": packed_words(self.vectorizer)} | arrays)
        return scatter(len(sums_ID), known, values_ND, fitted=fitted)


def _word_events(vectorizer: CountVectorizer, texts: list[str]) -> Interactions:
    """Texts as users of their words, in order: what stands near what is counted as for behaviour."""
    split, place = vectorizer.build_analyzer(), vectorizer.vocabulary_
    rows = [[place[word] for word in split(text) if word in place] for text in texts]
    lengths = np.array([len(row) for row in rows], np.int64)
    words = np.fromiter((word for row in rows for word in row), np.int64, int(lengths.sum()))
    return Interactions(np.repeat(np.arange(len(rows)), lengths), words)
