"""The loss that laws are fitted to: nats per item on held-out events, the same for every model with a retrieval head.

A held-out event is predicted from the events before it by a softmax over all training items, exactly. Each is scored
once, in a window that is as long as in training and holds at least half of it before the event where there is so much.
With data without end every liked event of the dataset's users is held out, as training has other users; else those of
the validation split. Events without a past, and items that no training event has, are left out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.data.endless import shop_of, user_numbers
from hisam_jax.data.marks import LIKED_ABOVE
from hisam_jax.data.records import VALIDATION
from hisam_jax.data.shop import oracle_nats
from hisam_jax.errors import UserError
from hisam_jax.evaluation.intervals import Bootstrap, Interval, means
from hisam_jax.evaluation.targets import Events
from hisam_jax.inference.histories import History, batches
from hisam_jax.inference.run import Run
from hisam_jax.inference.scoring import HistoryReader, windows_of
from hisam_jax.models.layers import einsum
from hisam_jax.training.assembly import Assembly

MOST_LOGITS = 1 << 24  # held at once
NOTHING = -1e30


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Events that are predicted, users in order.

    Attributes:
        user_E, position_E, item_E: whose, the place in the user's sequence, what.
    """

    user_E: np.ndarray
    position_E: np.ndarray
    item_E: np.ndarray


def held_out(assembly: Assembly, events: Events) -> HeldOut:
    """The events of a dataset that a run did not train on and that its softmax can name.

    Raises:
        UserError: there are none.
    """
    of = events.positive_E & (events.position_E > 0) & (events.train_count_I > 0)[events.item_E]
    if not assembly.configs.data.endless:
        of &= events.split_E == VALIDATION
    if not of.any():
        raise UserError(
            "no held-out event has a past", path=assembly.dataset.path, field="data",
            expected="liked events in the validation split, of items that training has",
        )  # fmt: skip
    return HeldOut(events.user_E[of], events.position_E[of], events.item_E[of])


def heldout_nats(run: Run, events: HeldOut) -> np.ndarray:
    """-log of the probability of each held-out event [E], in nats."""
    assembly, window = run.assembly, run.assembly.configs.data.window
    jobs = _jobs(events, window)
    histories = [_history(run.reader, events.user_E[of[0]], start, end) for of, start, end in jobs]
    rows = max(1, min(assembly.configs.evaluation.rows, MOST_LOGITS // (window * assembly.catalog.items)))
    vectors_ID = run.scorer.item_vectors
    out_E = np.full(len(events.user_E), np.nan)
    for members, batch in batches(histories, run.scorer.codes_IL, window=window, rows=rows, shortest=window):
        nats_BN = np.asarray(_nats(run.scorer.model, run.scorer.params, run.scorer.catalog, vectors_ID, batch))
        for row, job in enumerate(members):
            of, start, _ = jobs[job]
            out_E[of] = nats_BN[row, events.position_E[of] - start]
    return out_E


def _jobs(events: HeldOut, window: int) -> list[tuple[np.ndarray, int, int]]:
    starts = np.flatnonzero(np.diff(events.user_E, prepend=-1))
    of_users = np.split(np.arange(len(events.user_E)), starts[1:])
    return [job for of in of_users for job in windows_of(of, events.position_E[of], window)]


def _history(reader: HistoryReader, user: int, start: int, end: int) -> History:
    return History.of(reader.features(user), end, end - start)


@functools.partial(jax.jit, static_argnums=0)
def _nats(model: Any, params: Any, catalog: Any, vectors_ID: jax.Array, batch: Any) -> jax.Array:
    """float32 `[B, N]`: nats of every event from the one before it; that of the first is not to be read."""

    def users(m):
        return m.user_vectors(m(batch, catalog)[0])

    user_BND = model.apply({"params": params}, method=users)
    logits_BNI = einsum("bnd,id->bni", user_BND, vectors_ID, preferred_element_type=jnp.float32)
    logits_BNI = jnp.where(catalog.trained_I, logits_BNI, NOTHING)
    own_BN = jnp.take_along_axis(logits_BNI[:, :-1], batch["item"][:, 1:, None], -1)[..., 0]
    nats_BN = jax.nn.logsumexp(logits_BNI[:, :-1], axis=-1) - own_BN
    return jnp.pad(nats_BN, ((0, 0), (1, 0)))


def loss_of(nats_E: np.ndarray, events: HeldOut, bootstrap: Bootstrap) -> Interval:
    """The mean over events, with an interval over users."""
    return means({"loss": nats_E}, events.user_E, bootstrap)["loss"]


def oracle_loss(assembly: Assembly, events: HeldOut) -> float | None:
    """Nats per item that the shop's own probabilities would lose on these events; None for other data.

    It knows the users' tastes, which a model has to infer from what they did, so no model reaches it.
    """
    if assembly.dataset.manifest.get("source") != "shop":
        return None
    dataset, user_U = assembly.dataset, np.unique(events.user_E)
    found = oracle_nats(shop_of(dataset), user_numbers(dataset, user_U), LIKED_ABOVE)
    nats = dict(zip(user_U.tolist(), found, strict=True))
    lengths = dataset.users["events"].to_numpy()
    if any(len(nats[user]) < lengths[user] for user in nats):
        return None
    values_E = np.array([nats[u][p] for u, p in zip(events.user_E.tolist(), events.position_E.tolist(), strict=True)])
    # what was not liked has none: so it would be if preparation had left out events, and places did not match
    return float(values_E.mean()) if np.isfinite(values_E).all() else None
