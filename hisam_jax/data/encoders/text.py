"""The light text encoder: TF-IDF over words and word pairs, then a truncated SVD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import polars as pl
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from hisam_jax.data.encoders.base import Features, Fitted, absent, describe, scatter
from hisam_jax.files import sha256_of

MAX_TERMS = 100_000  # keeps the vocabulary of a million-item catalogue in memory
RANK_TOLERANCE = 1e-5  # singular values below this share of the largest are rounding, which standardising would blow up

WORD = r"(?u)\w+"
PAIRS: Mapping[str, Any] = {"ngram_range": (1, 2), "sublinear_tf": True}

V = TypeVar("V", bound=CountVectorizer)


@dataclasses.dataclass(frozen=True)
class TfidfSvd:
    """Title, attributes and categories -> at most `dim` numbers, fitted on the training items [ours].

    An item with no word, or with none that occurs in the training items, is absent. `D` is `dim`, or the rank of the
    training items' TF-IDF matrix where that is smaller; 0 where the training items have no word at all.
    """

    dim: int = 128
    seed: int = 0
    modality: ClassVar[str] = "text"
    name: ClassVar[str] = "tfidf_svd"

    def fingerprint(self) -> str:
        return describe(self, 2, ("numpy", "scipy", "scikit-learn"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of("\0".join(item_texts(items)), fit_rows)

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        texts = item_texts(items)
        vectorizer = fit_tfidf(training_texts(texts, fit_rows))
        if vectorizer is None:
            return absent(len(items))
        terms = vectorizer.transform(texts)
        known = np.diff(terms.indptr) > 0
        directions_DV = fit_svd(terms[np.flatnonzero(fit_rows & known)], self.dim, self.seed)
        return FittedTfidf(vectorizer, np.ascontiguousarray(directions_DV.T, np.float32)).project(terms)


@dataclasses.dataclass(frozen=True, eq=False)
class FittedTfidf:
    """The vocabulary with its weights, and the directions float32 `[V, D]`."""

    vectorizer: TfidfVectorizer
    directions_VD: np.ndarray

    @classmethod
    def of(cls, fitted: Fitted) -> FittedTfidf:
        """What `project` told of itself."""
        vectorizer = known_words(TfidfVectorizer, fitted.arrays["terms"], **PAIRS)
        vectorizer.idf_ = fitted.arrays["idf"]
        return cls(vectorizer, fitted.arrays["directions"])

    def inputs(self, items: pl.DataFrame) -> str:
        return sha256_of("\0".join(item_texts(items)))

    def encode(self, items: pl.DataFrame) -> Features:
        return self.project(self.vectorizer.transform(item_texts(items)))

    def project(self, terms: scipy.sparse.csr_matrix) -> Features:
        """Features of the items with any known term, of TF-IDF rows `[I, V]`."""
        known = np.diff(terms.indptr) > 0
        values_ND = terms[np.flatnonzero(known)].astype(np.float32) @ self.directions_VD
        arrays = {"terms": packed_words(self.vectorizer), "idf": self.vectorizer.idf_, "directions": self.directions_VD}
        return scatter(terms.shape[0], known, values_ND, fitted=Fitted(TfidfSvd.name, arrays=arrays))


def item_texts(items: pl.DataFrame) -> list[str]:
    """One string an item: title, text and categories; empty where there is none of them."""
    words = pl.col("categories").cast(pl.List(pl.String))  # Polars forgets the inner type of a column of nulls
    categories = words.list.join(" ", ignore_nulls=True)
    parts = [column.fill_null("") for column in (pl.col("title"), pl.col("text"), categories)]
    return items.select(pl.concat_str(parts, separator="\n").str.strip_chars()).to_series().to_list()


def fit_tfidf(texts: list[str]) -> TfidfVectorizer | None:
    """Fits word 1- and 2-grams, sublinear counts, unit rows; None where `texts` hold no word.

    One-letter words stay ("M" and "Z" are titles). Terms of a single item tell nothing about others and go, except in
    catalogues so small, or so diverse, that nothing else would be left.
    """
    return fit_words(TfidfVectorizer, texts, **PAIRS)


def training_texts(texts: list[str], fit_rows: np.ndarray) -> list[str]:
    """The texts with any word in them of the items that statistics are fitted on."""
    return [text for text, fit in zip(texts, fit_rows, strict=True) if fit and text.strip()]


def fit_words(kind: type[V], texts: list[str], **options: Any) -> V | None:
    """A scikit-learn vectorizer over words of enough items, or of any where else none is left; None without words."""
    for least in (_least_items(len(texts)), 1):
        try:
            return kind(min_df=least, max_features=MAX_TERMS, token_pattern=WORD, **options).fit(texts)
        except ValueError:  # scikit-learn's word for an empty vocabulary
            continue
    return None


def packed_words(vectorizer: CountVectorizer) -> np.ndarray:
    """The vocabulary in its order as bytes; no term holds a line's end."""
    return np.frombuffer("\n".join(vectorizer.get_feature_names_out()).encode(), np.uint8)


def known_words(kind: type[V], packed: np.ndarray, **options: Any) -> V:
    """A vectorizer over the very words that `packed_words` was given, in their order."""
    words: Sequence[str] = packed.tobytes().decode().split("\n")
    return kind(vocabulary=words, token_pattern=WORD, **options)


def fit_svd(terms_NV: scipy.sparse.csr_matrix, dim: int, seed: int) -> np.ndarray:
    """The leading right singular directions `[D, V]`, `D <= dim` and at most the numerical rank."""
    size = min(dim, *terms_NV.shape)
    _, singular, directions_DV = randomized_svd(terms_NV, size, n_oversamples=32, n_iter=5, random_state=seed)
    return directions_DV[singular > RANK_TOLERANCE * singular[0]]


def _least_items(count: int) -> int:
    return 1 if count < 100 else 2 if count < 50_000 else 5
