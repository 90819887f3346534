"""Rows of items as a figure: every item has its picture and title, the marked one a frame."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fixtures import tiny_dataset
from PIL import Image

from hisam_jax.errors import UserError
from hisam_jax.evaluation.item_grid import item_figure, item_grid


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("grid") / "dataset")


def test_a_tile_shows_the_items_own_picture_and_title(dataset):
    tiles = item_figure(dataset, {"above": [3, 7], "below": [5]}).axes
    assert [tile.get_xlabel().replace("\n", " ") for tile in tiles] == [f"Item {i} of group {i % 4}" for i in (3, 7, 5)]
    for tile, item in zip(tiles, (3, 7, 5), strict=True):
        wanted = np.asarray(Image.open(io.BytesIO(dataset.thumbnail(item))))
        np.testing.assert_array_equal(tile.images[0].get_array(), wanted)


def test_an_item_without_a_picture_says_so(dataset):
    (tile,) = item_figure(dataset, {"": [10]}).axes
    assert not tile.images and tile.texts[0].get_text() == "no picture"


def test_rows_lie_below_one_another_and_nothing_overlaps(dataset):
    figure = item_figure(dataset, {"one": [1, 2, 3], "two": [4, 5]})
    boxes = [tile.get_position() for tile in figure.axes]
    assert min(box.y0 for box in boxes[:3]) > max(box.y1 for box in boxes[3:])
    assert all(a.x1 < b.x0 for a, b in zip(boxes[:2], boxes[1:3], strict=True))
    assert [text.get_text() for text in figure.texts] == ["one", "two"]


def test_the_marked_item_alone_has_a_frame(dataset):
    figure = item_figure(dataset, {"": [1, 2, 3]}, marked={2})
    assert [tile.spines["left"].get_visible() for tile in figure.axes] == [False, True, False]


def test_an_image_of_few_colours_has_the_frame_where_it_belongs(dataset):
    image = item_grid(dataset, {"": [1, 2, 3]}, marked={2})
    assert image.mode == "P" and image._repr_png_()
    orange_YX = np.all(np.abs(np.asarray(image.convert("RGB")).astype(int) - (213, 94, 0)) < 12, axis=-1)
    across = np.flatnonzero(orange_YX.any(0)) / image.width
    assert orange_YX.sum() > 100 and 0.3 < across.min() < across.max() < 0.68


def test_long_titles_are_cut(dataset, monkeypatch):
    monkeypatch.setattr(
        dataset, "items", dataset.items.with_columns(title="title" + dataset.items["title"].repeat_by(9).list.join(" "))
    )
    (tile,) = item_figure(dataset, {"": [1]}).axes
    assert tile.get_xlabel().count("\n") == 1 and tile.get_xlabel().endswith("…")


@pytest.mark.parametrize("rows, problem", [({}, "no items"), ({"a": []}, "no items"), ({"a": [1, 40]}, "item 40")])
def test_items_that_are_not_there_are_refused(dataset, rows, problem):
    with pytest.raises(UserError, match=f"{problem}.*0 to 39"):
        item_grid(dataset, rows)
