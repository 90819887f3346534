"""Training users without end: those that a shop goes on generating behind the ones of a prepared dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hisam_jax.config import build
from hisam_jax.data import records
from hisam_jax.data.blocks import BLOCK
from hisam_jax.data.marks import LIKED_ABOVE
from hisam_jax.data.shop.catalogue import make_catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.tables import item_table
from hisam_jax.data.shop.users import UserEvents, block_size, simulate_block
from hisam_jax.data.windows import renamed, window_events
from hisam_jax.errors import UserError

if TYPE_CHECKING:
    from hisam_jax.data.dataset import Dataset

NO_END = 2**48  # users; the length that random access needs


class EndlessShop:
    """Random access to windows of users that the dataset does not hold, each user once, one window of each.

    Each reader of each stream is a lane, and lanes take turns at the batches in which users are simulated, so that
    each user is simulated once, by the one who reads it.

    Args:
        dataset: prepared from the embedded shop; gives the catalogue.
        window: most events of a user, cut at random where there are more.
        seed: of the cuts.
        streams: place i is stream `i % streams`, and the `i // streams`-th of it.
        workers: readers of a stream, which take turns at its blocks.

    Raises:
        UserError: the dataset is not the shop's, or an older shop's.
    """

    def __init__(self, dataset: Dataset, window: int, seed: int, streams: int = 1, workers: int = 1):
        self.config, self.window, self.seed = shop_of(dataset), window, seed
        self.streams, self.workers = streams, workers
        self.item_of_I = _index_in(dataset, self.config)
        self.size = block_size(make_catalogue(self.config))
        self.first_block = -(-self.config.users // self.size)
        self._blocks: dict[int, tuple[int, list[UserEvents]]] = {}  # lane -> its latest block

    def __len__(self) -> int:
        return NO_END

    def read(self, place_P: np.ndarray) -> list[np.ndarray]:
        """EVENT records of the window at each place."""
        return [self._window(self._user(place)) for place in np.asarray(place_P).tolist()]

    def _user(self, place: int) -> UserEvents:
        mine, stream = divmod(place, self.streams)
        block, within = divmod(mine, BLOCK)
        turn, worker = divmod(block, self.workers)
        lane, lanes = worker * self.streams + stream, self.streams * self.workers
        nth, user = divmod(turn * BLOCK + within, self.size)
        return self._block(lane, self.first_block + nth * lanes + lane)[user]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": {}}

    def _block(self, lane: int, number: int) -> list[UserEvents]:
        held = self._blocks.get(lane)
        if held is None or held[0] != number:
            held = self._blocks[lane] = number, simulate_block(self.config, number)
        return held[1]

    def _window(self, user: UserEvents) -> np.ndarray:
        n, length = len(user.item), min(len(user.item), self.window)
        start = int(np.random.default_rng((self.seed, user.user)).integers(n - length + 1))
        positive = (user.rating > LIKED_ABOVE).astype(np.uint8)
        split = np.full(n, records.TRAIN, np.uint8)
        sequence = records.UserSequence(user.user, user.item, user.timestamp, user.rating, positive, split)
        return renamed(window_events(sequence, np.arange(start, start + length)), self.item_of_I)


def shop_of(dataset: Dataset) -> ShopConfig:
    """The shop that a dataset was prepared from.

    Raises:
        UserError: it was prepared from something else.
    """
    manifest = dataset.manifest
    if manifest.get("source") != "shop":
        raise UserError(
            f"a dataset of source {manifest.get('source')!r}", path=dataset.path, field="data.endless",
            expected="False, or a dataset prepared with --source shop: no other goes on without end",
        )  # fmt: skip
    arguments: Mapping[str, Any] = manifest["arguments"]
    options = {name: value for name, value in (arguments["reader_options"] or {}).items() if value is not None}
    return build(ShopConfig, {"seed": arguments["seed"], **options}, "shop")


def user_numbers(dataset: Dataset, user_U: np.ndarray) -> np.ndarray:
    """The shop's numbers of users of a dataset that was prepared from it."""
    return dataset.users["user_id"].gather(user_U).str.strip_prefix("u").cast(int).to_numpy()


def _index_in(dataset: Dataset, config: ShopConfig) -> np.ndarray:
    """The dataset's item of each one of the shop's, -1 where it was dropped."""
    made = item_table(config)
    item_of_I = dataset.item_index(made["item"].to_list())
    known_I = item_of_I >= 0
    if made["title"].fill_null("").filter(known_I).to_list() != dataset.items["title"][item_of_I[known_I]].to_list():
        raise UserError(
            "the shop makes other items than when this was prepared", path=dataset.path, field="data.endless",
            expected="a dataset of this version", hint="run `hisam prepare` again",
        )  # fmt: skip
    return item_of_I
