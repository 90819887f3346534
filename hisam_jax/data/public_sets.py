"""The public data sets that `hisam download` fetches: where they lie, how they are checked, on what terms."""

from __future__ import annotations

import dataclasses

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"
MOVIELENS_TERMS = "research use; see its README; cite Harper and Konstan 2015"
AMAZON_2014_TERMS = "research use; cite He and McAuley 2016"
AMAZON_2023_TERMS = "research use; cite Hou et al. 2024"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file of a set.

    Attributes:
        url: where it lies.
        checksum: `md5:HEX` or `sha256:HEX`, where it is known for good.
        checksum_url: a published `.md5`, for a file that changes; without either the size is checked.
    """

    url: str
    checksum: str | None = None
    checksum_url: str | None = None

    @property
    def name(self) -> str:
        """Its local name: the last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A set by its name: its files, the `--source` that reads them, and its terms."""

    name: str
    files: tuple[RemoteFile, ...]
    source: str
    terms: str


def _movielens(name: str, checksum: str | None) -> PublicSet:
    url = f"{GROUPLENS}/{name}.zip"
    remote = RemoteFile(url, checksum, None if checksum else f"{url}.md5")
    return PublicSet(name, (remote,), "movielens", MOVIELENS_TERMS)


def _amazon_2014(name: str, category: str) -> PublicSet:
    names = (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz")
    files = tuple(RemoteFile(f"{SNAP}/{file}") for file in names)
    return PublicSet(f"amazon-{name}-2014", files, "amazon2014", AMAZON_2014_TERMS)


def _amazon_2023(category: str) -> PublicSet:
    names = (f"review_categories/{category}.jsonl.gz", f"meta_categories/meta_{category}.jsonl.gz")
    files = tuple(RemoteFile(f"{UCSD}/{file}") for file in names)
    name = f"amazon-{category.lower().replace('_', '-')}-2023"
    return PublicSet(name, files, "amazon2023", AMAZON_2023_TERMS)


AMAZON_2014_CATEGORIES = {
    "beauty": "Beauty",
    "sports": "Sports_and_Outdoors",
    "toys": "Toys_and_Games",
    "baby": "Baby",
}
AMAZON_2023_CATEGORIES = (
    "All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products Beauty_and_Personal_Care "
    "Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards "
    "Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen "
    "Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products "
    "Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement "
    "Toys_and_Games Video_Games"
).split()

PUBLIC_SETS: dict[str, PublicSet] = {
    entry.name: entry
    for entry in (
        # frozen since September 2018, although its name promises nothing
        _movielens("ml-latest-small", "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
        _movielens("ml-1m", "md5:c4d9eecfca2ab87c1945afe126590906"),
        _movielens("ml-25m", "md5:6b51fb2759a8657d3bfcbfc42b592ada"),
        _movielens("ml-32m", "md5:d472be332d4daa821edc399621853b57"),
        _movielens("ml-latest", None),
        *(_amazon_2014(name, category) for name, category in AMAZON_2014_CATEGORIES.items()),
        *(_amazon_2023(category) for category in AMAZON_2023_CATEGORIES),
    )
}
