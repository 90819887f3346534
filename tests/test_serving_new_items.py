"""Items that are added by words and a picture: the codes that `prepare` and the tokenizer would give them."""

import base64
import dataclasses
import io

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hisam_jax.config import load_config
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.prepare import prepare
from hisam_jax.errors import UserError
from hisam_jax.models.catalog import make_catalog
from hisam_jax.serving.catalogue import Added, Names, Shelf
from hisam_jax.serving.describing import Describer, checked_picture
from hisam_jax.tokenizer.registry import load_tokenizer
from hisam_jax.tokenizer.run import tokenize
from tests.fixtures import tiny_dataset
from tests.raw_fixtures import movielens_rows
from tests.serving_fixtures import LIMITS, Warm, serving_each, train_tiny
from tests.test_data_encoders_saved import write_shop


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run on 30 films, `dataset`; `grown` has 12 more, encoded alike; `other` has them too, encoded by its own."""
    root, rows = tmp_path_factory.mktemp("serving"), movielens_rows(movies=30, ties=False)
    more = [f"{100 + user},{film},5,{2 * 10**9 + 100 * film}" for user in range(8) for film in range(20, 43)]
    small, grown = write_shop(root / "small", 30, rows), write_shop(root / "large", 42, rows + more)
    cache = {"cache_dir": root / "cache"}
    prepare("movielens", small, root / "dataset", images=small / "pictures", behaviour_encoder="ppmi_svd", **cache)
    prepare("movielens", grown, root / "grown", images=grown / "pictures", encoders_from=root / "dataset", **cache)
    prepare("movielens", grown, root / "other", images=grown / "pictures", text_encoder="word_vectors", **cache)
    sizes = {"residual_kmeans.sizes": "(6, 4)"}
    tokenize(root / "dataset", load_config("configs/tokenizer/residual_kmeans.py", sizes), root / "ids")
    train_tiny(root, root / "run", 3)
    return root


class Cold(Warm):
    """Compiles nothing ahead: items are added here, none is recommended."""

    def __call__(self, path):
        release = super().__call__(path)
        release.engine.warm_up = lambda items: 0
        return release


@pytest.fixture(scope="module")
def cold():
    return Cold()


@pytest.fixture
def served(root, cold, tmp_path):
    return serving_each(root / "run", cold, tmp_path / "store")


def in_base64(path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def raw(dataset: Dataset, film: str, folder) -> dict:
    """What the service is told of a film of a dataset, under a new id."""
    row = dataset.items.row(int(dataset.item_index([film])[0]), named=True)
    body = {"item": f"new {film}", "title": row["title"], "text": row["text"], "categories": row["categories"]}
    file = folder / "pictures" / f"{film}.png"
    return body | ({"picture": in_base64(file)} if file.is_file() else {})


def picture_of(color: str, form: str = "PNG", size=(40, 50)) -> str:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, form)
    return base64.b64encode(stream.getvalue()).decode()


async def added(client, **body) -> dict:
    answer = await client.post("/items", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_codes_are_those_of_prepare_and_the_tokenizer(served, root):
    """Of films of the catalogue under another id, and of films that came later; 6, 12 and 36 have no picture."""
    known, grown, model = Dataset.load(root / "dataset"), Dataset.load(root / "grown"), load_tokenizer(root / "ids")
    none = {"behaviour": np.zeros(grown.num_items, bool)}  # what tells nothing of a new item
    codes_IL = model.assign(grown.features, grown.present | none)

    async def check(client, service):
        assert not service.now.release.stock.describer._encoders
        for dataset, film in ((known, "1"), (known, "6"), (known, "12"), (grown, "31"), (grown, "36"), (grown, "42")):
            found = await added(client, **raw(dataset, film, root / "large"))
            row = int(grown.item_index([film])[0])
            assert found["codes"][:-1] == codes_IL[row].tolist(), film
            features = service.now.release.stock.features_of(f"new {film}")
            assert features.keys() == {"text", "image"} if int(film) % 6 else {"text"}
            for modality, values in features.items():
                np.testing.assert_array_equal(np.float32(values), grown.features[modality][row])
            assert found["picture"] == bool(int(film) % 6)
        assert len({tuple(codes) for codes in codes_IL.tolist()}) > 6

    served(check)


def test_what_was_added_survives_a_restart(served, root):
    body = raw(Dataset.load(root / "grown"), "31", root / "large")
    shown = {}

    async def first(client, service):
        shown.update(await added(client, **body))
        answer = await client.get("/items/new 31/picture")
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.format == "JPEG" and picture.size == (60, 80)
        shown["jpeg"] = answer.content
        await added(client, item="plain", title="a camera")
        assert (await client.get("/items/plain/picture")).status_code == 404

    async def second(client, service):
        found = (await client.get("/items/new 31")).json()
        assert found == {key: value for key, value in shown.items() if key != "jpeg"}
        assert (await client.get("/items/new 31/picture")).content == shown["jpeg"]
        assert not service.now.release.stock.describer._encoders, "codes are kept, nothing is encoded again"
        assert (await client.delete("/items/new 31")).status_code == 204
        assert (await client.get("/items/new 31/picture")).status_code == 404
        assert await added(client, item="new 31") == found
        assert (await client.get("/items/new 31/picture")).content == shown["jpeg"]

    served(first)
    served(second)


def test_features_that_are_given_win_and_the_rest_is_encoded(served, root):
    known = Dataset.load(root / "dataset")
    row = int(known.item_index(["1"])[0])
    mine = {"text": np.asarray(known.features["text"][row] + 1).tolist()}

    async def check(client, service):
        stock = service.now.release.stock
        body = raw(known, "1", root / "large")
        await added(client, **body | {"features": mine})
        features = stock.features_of("new 1")
        assert features["text"] == mine["text"] and not np.allclose(mine["text"], known.features["text"][row])
        np.testing.assert_array_equal(np.float32(features["image"]), known.features["image"][row])
        both = mine | {"image": [0.5] * known.features["image"].shape[1]}
        await added(client, **body | {"item": "both", "features": both})
        assert stock.features_of("both") == both and (await client.get("/items/both/picture")).status_code == 200
        title = {"item": "title", "title": body["title"], "features": {"image": both["image"]}}
        await added(client, **title)
        assert stock.features_of("title").keys() == {"image"}, "a title beside features is only shown"
        await added(client, **title | {"item": "text", "text": "garden"})
        assert stock.features_of("text").keys() == {"image", "text"}
        await added(client, item="like", like="2", picture=picture_of("red"))
        assert stock.features_of("like") == stock.features_of("2")
        assert (await client.get("/items/like/picture")).status_code == 200
        await added(client, item="odd", title="of no word that it knows")
        assert stock.features_of("odd") == {}

    served(check)


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("no base64!", "field 'picture': no base64"),
        (
            base64.b64encode(b"<html>not found</html>").decode(),
            "22 bytes that are no readable picture",
        ),
        (picture_of("red", "BMP"), "no readable picture; expected a whole JPEG, PNG, WEBP"),
        (picture_of("red")[:80], "no readable picture"),
        ("", "no readable picture"),
        (picture_of("red", "PNG", (9000, 9000)), "at most 80,000,000 pixels"),
    ],
)
def test_a_broken_picture_is_refused_and_nothing_is_added(served, picture, words):
    async def check(client, service):
        body = {"item": "new", "title": "a camera", "picture": picture}
        answer = await client.post("/items", json=body)
        assert answer.status_code == 422 and words in answer.json()["error"] and "\n" not in answer.json()["error"]
        assert (await client.get("/items/new")).status_code == 404 and not service.store.items()

    served(check, limits=dataclasses.replace(LIMITS, body=1 << 20))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_forms_that_are_read(form):
    data, small = checked_picture(picture_of("red", form))
    with Image.open(io.BytesIO(base64.b64decode(small))) as picture:
        assert picture.format == "JPEG" and picture.size == (40, 50)
        red = np.asarray(picture.convert("RGB"))[20, 20]
    assert red[0] > 240 and red[1:].max() < 20 and base64.b64decode(picture_of("red", form)) == data


def test_a_body_past_its_limit_is_refused_before_it_is_decoded(served):
    async def check(client, service):
        answer = await client.post("/items", json={"item": "new", "picture": "A" * 20_000})
        assert answer.status_code == 413

    served(check)


def test_another_releases_encoders_encode_what_it_is_told_by_again(root):
    """What one encoder made means nothing to another: a release of another dataset must not read it."""
    ours, theirs = Dataset.load(root / "grown"), Dataset.load(root / "other")
    body = raw(ours, "31", root / "large")
    data, small = checked_picture(body["picture"])
    item = Added(body["item"], body["title"], tuple(body["categories"]), {"sound": [1.0]}, text="", picture=small)
    with pytest.raises(UserError, match="no features of image"):
        Describer(tiny_dataset(root / "deaf", features={"text": 4})).described(
            dataclasses.replace(item, title="", categories=(), features={}), data
        )
    item = dataclasses.replace(item, features={})
    here = Describer(ours).described(item, data)
    assert Describer(Dataset.load(root / "dataset")).again(here) is here, "the same encoders"
    there = Describer(theirs).again(here)
    row = int(theirs.item_index(["31"])[0])
    np.testing.assert_array_equal(np.float32(there.features["text"]), theirs.features["text"][row])
    near = ((np.float32(there.features["image"]) - theirs.features["image"]) ** 2).sum(1)
    assert near.argmin() == row, "from its small picture"
    assert there.encoded != here.encoded and Describer(theirs).again(there) is there


def test_a_record_of_other_encoders_is_encoded_again_on_restart(served, root):
    body = raw(Dataset.load(root / "grown"), "31", root / "large")

    async def check(client, service):
        stock = service.now.release.stock
        await added(client, **body)
        item = stock._added["new 31"]
        wrong = {name: [9.0] * len(values) for name, values in item.features.items()}
        stale = dataclasses.replace(
            item, item_id="stale", features=wrong, encoded=dict.fromkeys(wrong, "another"), ids="another"
        )
        stock.add(stale)
        assert stock.features_of("stale")["text"] == item.features["text"]
        levels = [stock.codes(row)[:-1] for row in (-2, -1)]
        assert levels[0] == levels[1]

    served(check)


def test_the_fixture_has_films_that_differ(root):
    """Else equal codes would prove nothing."""
    grown = Dataset.load(root / "grown")
    titles = grown.items["title"].unique()
    assert len(titles) > 30 and grown.items.schema["categories"] == pl.List(pl.String)


def test_a_new_item_is_scaled_as_the_models_own_are(tmp_path):
    data = tiny_dataset(tmp_path / "dataset", missing=0.0)
    trained_I = np.arange(data.num_items) % 3 == 0  # others than the dataset's training items: validation counts too
    catalog, names = make_catalog(np.zeros((data.num_items, 1)), data.features, data.present, trained_I), Names.of(data)
    shelf = Shelf(data, catalog, np.ones(data.num_items), names, room=1)
    features = {name: values[0].tolist() for name, values in data.features.items()}
    shelf.put(data.num_items, Added("new", "new", (), features), np.zeros(1), names)
    for values_IF in shelf.catalog().features.values():
        np.testing.assert_allclose(values_IF[-1], values_IF[0], rtol=1e-6)
