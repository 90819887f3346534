"""What a shop is made from."""

from __future__ import annotations

import dataclasses

from hisam_jax.errors import UserError

DAY = 86_400  # seconds
FEWEST_ITEMS = 64


@dataclasses.dataclass(frozen=True)
class ShopConfig:
    """Sizes, seed, shares and strengths of a shop. The first `n` users are the same whatever `users` is.

    Attributes:
        users: users that `generate` writes; streams go on for ever.
        items: catalogue size, at least 64.
        events_per_user: mean events of a user, cold users included.
        seed: seed of everything.
        missing_picture: share of items without a picture.
        missing_title: share of items without any text (title, attributes and categories).
        cold_users: share of users with 3 to 9 events; the others have at least 10.
        cold_items: share of items that are released in the last tenth of the time (two thirds) or never sold (a third).
        popularity: exponent of the Zipf law of leaves, and of items within a leaf.
        sequence: share of choices that follow the last purchases, right after them.
        sequence_days: time constant with which that share fades as days pass, days.
        explore: share of choices made by popularity alone.
        drift_days: time constant of the tastes' random walk, days.
        horizon_days: length of the log, days.
        picture_size: side of the square pictures, pixels.

    Raises:
        UserError: a value out of range.
    """

    users: int = 2_500
    items: int = 2_000
    events_per_user: float = 32.0
    seed: int = 0
    missing_picture: float = 0.04
    missing_title: float = 0.04
    cold_users: float = 0.1
    cold_items: float = 0.1
    popularity: float = 0.8
    sequence: float = 0.7
    sequence_days: float = 20.0
    explore: float = 0.1
    drift_days: float = 90.0
    horizon_days: float = 1_000.0
    picture_size: int = 96

    def __post_init__(self):
        for name in ("missing_picture", "missing_title", "cold_users"):
            self._check(name, 0.0 <= getattr(self, name) <= 1.0, "a share between 0 and 1")
        for name in ("sequence_days", "drift_days", "horizon_days"):
            self._check(name, getattr(self, name) > 0, "days, more than 0")
        self._check("cold_items", 0.0 <= self.cold_items <= 0.5, "a share between 0 and 0.5")
        self._check("users", self.users >= 1, "at least 1")
        self._check("items", self.items >= FEWEST_ITEMS, f"at least {FEWEST_ITEMS}")
        self._check("events_per_user", self.events_per_user >= 10, "at least 10")
        self._check("seed", 0 <= self.seed < 2**63, "between 0 and 2^63")
        self._check("popularity", self.popularity >= 0, "0 or more")
        self._check("explore", self.explore >= 0 and self.sequence >= 0, "0 or more, `sequence` too")
        self._check("sequence", self.sequence + self.explore < 1, "less than 1 together with `explore`")
        self._check("picture_size", 32 <= self.picture_size <= 1024, "32 to 1024 pixels")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"value {getattr(self, name)!r}", field=f"shop.{name}", expected=expected)
