"""The report: valid HTML, nothing from outside, pictures inside, nothing of the catalogue's text taken for markup."""

from __future__ import annotations

import base64
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import tiny_dataset
from report_fixtures import made_up_lookalikes, made_up_neighbours, make_run

from hisam_jax.data.dataset import MANIFEST, Dataset, write_manifest
from hisam_jax.errors import UserError
from hisam_jax.evaluation import plots, report_results, report_training
from hisam_jax.evaluation.report import percent, report

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use"}
NASTY = '<script>alert("x")</script> & "Tom\'s" \u2013 \u00e9\u4e16'


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text; fails where tags do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.sources, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.sources += [given[name] for name in ("src", "href") if name in given]
        if tag not in VOID or tag in ("path", "use") and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag and tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def change_items(dataset: Dataset, **columns: pl.Series) -> Dataset:
    """Replaces columns of items.parquet and signs the manifest again."""
    dataset.items.with_columns(**columns).write_parquet(dataset.path / "items.parquet")
    manifest = {name: value for name, value in dataset.manifest.items() if name != "files"}
    write_manifest(dataset.path, manifest)
    return Dataset.load(dataset.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(run) -> str:
    return report(run).read_text(encoding="utf-8")


def test_it_parses_and_has_its_sections(text):
    page = Page(text)
    assert {"data", "tokenizer", "training", "results", "samples", "record"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and page.tags.count("svg") >= 8
    words = " ".join(page.words)
    for expected in ("shared/0", "text/0", "ItemKNN", "Popularity", "retrieval", "Recall@10", "fixture-0"):
        assert expected in words


def test_nothing_comes_from_outside(text):
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", text))
    assert "@import" not in text and "url(http" not in text
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in Page(text).sources)


def test_pictures_are_inside_and_missing_ones_get_a_tile(run, text):
    dataset = Dataset.load(json.loads((run / "run.json").read_text())["dataset"])
    sample = json.loads((run / "samples.json").read_text())[0]
    shown = [*sample["history"][-12:], sample["target"], *(row["item"] for row in sample["recommendations"])]
    assert any(dataset.thumbnail(item) is None for item in range(dataset.num_items))
    for item in shown:
        jpeg = dataset.thumbnail(item)
        if jpeg is not None:
            assert base64.b64encode(jpeg).decode() in text
    assert 'class="blank tint-' in text
    links = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert links <= set(Page(text).ids)


def test_figures_are_those_of_the_evaluation(run, text):
    evaluation = json.loads((run / "evaluation.json").read_text())
    for table in (evaluation["retrieval"], evaluation["baselines"]["item_knn"]["retrieval"]):
        assert f"{table['ndcg@5']['value']:.4f}" in text
        assert "{:.4f} \u2013 {:.4f}".format(*table["recall@10/unmasked"]["ci95"]) in text
    sample = next(s for s in json.loads((run / "samples.json").read_text()) if s["recommendations"][3]["hit"])
    assert "found at rank 4" in text and sample["user"] in text


def blocks(text: str, title: str) -> list[str]:
    """The rows of queries and their neighbours in the card under `title`."""
    card = text[text.index(f"<h3>{title}</h3>") :]
    end = re.search(r"<h3>", card[4:])
    return card[: end.start() if end else None].split('<div class="beside">')[1:]


def shown(html_text: str, dataset: Dataset) -> list[int]:
    """Items in the order of their tiles, told by their titles, with each picture checked to be theirs."""
    titles, found = dataset.items["title"].to_list(), []
    for figure in html_text.split('<figure class="tile')[1:]:
        item = titles.index(re.search(r'title="([^"]*)"', figure)[1])
        jpeg = dataset.thumbnail(item)
        assert ("base64," + base64.b64encode(jpeg).decode() in figure) if jpeg else "blank" in figure
        found.append(item)
    return found


def test_nearest_items_stand_beside_their_query_in_order_with_their_pictures(run, text):
    dataset = Dataset.load(json.loads((run / "run.json").read_text())["dataset"])
    rows = blocks(text, "Nearest by each kind of code")
    expected = made_up_neighbours(dataset.num_items)
    assert len(rows) == len(expected)
    for row, entry in zip(rows, expected, strict=True):
        query, *bands = row.split('<div class="band')
        assert shown(query, dataset) == [entry["item"]]
        for band, (name, near) in zip(bands, entry["groups"].items(), strict=True):
            assert f"by {name} codes" in band and f"{near['same'] or 'none'} with the same" in band
            assert shown(band, dataset) == near["items"]
            assert band.count('<span class="rank">=</span>') == min(near["same"], 8)


def test_what_each_branch_rebuilds_is_shown_and_the_item_itself_ringed(run, text):
    dataset = Dataset.load(json.loads((run / "run.json").read_text())["dataset"])
    told = made_up_lookalikes(dataset.num_items)
    for modality in ("text", "image"):
        (row,) = blocks(text, f"What each branch brings back of the {modality}")
        query, *bands = row.split('<div class="band')
        assert shown(query, dataset) == [5] and len(bands) == 3
        for band, branch in zip(bands, ("full", "shared_only", "specific_only"), strict=True):
            assert shown(band, dataset) == told["items"][0][branch][:4]
            assert band.count("tile hit") == (branch == "full")
        assert "itself first" in bands[0] and "itself at place 17" in bands[2]
    assert "at place 4 by all codes, 14 by shared only, 24 by specific only" in text


def test_the_tokenizers_figures_curves_and_alarms_are_there(text):
    words = " ".join(Page(text).words)
    for expected in ("0.61", "0.25", "43.1\u2009%", "12.3\u2009%", "30 items held out", "text/0", "0.11"):
        assert expected in words, expected
    assert "7.77" not in words  # too fine to mean anything
    for title in ("Rebuilding the features", "Perplexity of the codes", "Codes in use", "Spread of what is quantised"):
        assert title in words
    assert "text, bound" in text and "text, codes" in text
    assert "perplexity 1.2 of 8 codes at step 140" in words and "Likely cause: vCLUB <b>alike</b>." in words
    tree = text[text.index("How the prefix tree widens") :]
    assert [int(count) for count in re.findall(r"<span>(\d+) <small>", tree)[:3]] == [8, 31, 37]


def test_diagnostics_of_an_earlier_version_or_of_another_table_still_make_a_page(tmp_path):
    run = make_run(tmp_path)
    file = tmp_path / "ids" / "diagnostics.json"
    judged = json.loads(file.read_text())
    old = {key: judged[key] for key in ("levels", "collision", "reconstruction", "ami", "seconds", "items_per_second")}
    file.write_text(json.dumps(old))
    words = " ".join(Page(report(run).read_text(encoding="utf-8")).words)
    assert "What the codes share" in words and "Nearest by each kind" not in words and "Alarms" not in words
    judged["neighbours"][0]["item"] = judged["lookalikes"]["items"][0]["item"] = 10**6
    file.write_text(json.dumps(judged))
    page = report(run).read_text(encoding="utf-8")
    assert len(blocks(page, "Nearest by each kind of code")) == 1
    assert "brings back of the text" not in page and "brings back of the image" in page


def test_titles_are_text_not_markup(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset", users=30)
    titles = pl.Series([NASTY if i % 3 else "" for i in range(dataset.num_items)])
    text = report(make_run(tmp_path, change_items(dataset, title=titles))).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    assert any(NASTY in word for word in page.words)
    assert any(word.strip() == "i3" for word in page.words)  # no title: its id


def test_it_follows_the_reader_into_the_dark(text):
    assert "prefers-color-scheme: dark" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        painted = re.findall(r"(?:fill|stroke): ?(#[0-9a-f]{6})", svg)
        assert not painted, painted  # every colour is a variable of the page


def test_the_same_run_gives_the_same_page(run, text):
    assert report(run).read_text(encoding="utf-8") == text


def test_a_blend_has_its_figures_and_a_run_that_trained_on_validation_says_so(tmp_path):
    run = make_run(tmp_path)
    assert "validation events too" not in report(run).read_text()
    config, evaluation = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "evaluation"))
    evaluation["blend"] = {**evaluation["retrieval"], "recall@10": {"value": 0.98765, "ci95": [0.987, 0.988]}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "config.json").write_text(json.dumps({**config, "data": {"validation_too": True}}))
    text = report(run).read_text()
    assert "This model, blend" in text and "validation events too" in text


def test_a_run_not_yet_evaluated_says_so(tmp_path):
    run = make_run(tmp_path, evaluated=False)
    (run / "metrics.jsonl").write_text('{"step": 25, "loss": 3.0}\n{"step": 50, "lo')
    (tmp_path / "ids" / "diagnostics.json").unlink()
    page = Page(report(run).read_text(encoding="utf-8"))
    words = " ".join(page.words)
    assert "Not evaluated yet" in words and "No samples yet" in words and "No diagnostics" in words
    (run / "metrics.jsonl").unlink()
    assert "No step was logged yet" in report(run).read_text(encoding="utf-8")


def test_a_dataset_without_pictures_ratings_or_features(tmp_path):
    dataset = tiny_dataset(tmp_path / "dataset", users=30, ratings=False, thumbnails=False, features={"text": 8})
    page = Page(report(make_run(tmp_path, dataset)).read_text(encoding="utf-8"))
    assert "img" not in page.tags and "Item mean" not in " ".join(page.words)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda run, _: (run / "run.json").unlink(), "no run here"),
        (lambda run, _: (run / "evaluation.json").write_text("{"), "not JSON"),
        (lambda run, _: (run / "run.json").write_text("{}"), "dataset"),
        (lambda run, dataset: (dataset / MANIFEST).unlink(), "no manifest"),
        (lambda run, _: (run.parent / "ids" / "codes.npy").unlink(), "missing"),
    ],
)
def test_what_the_user_can_mend_is_said_and_no_page_is_left(tmp_path, spoil, word):
    run = make_run(tmp_path)
    spoil(run, tmp_path / "dataset")
    with pytest.raises(UserError, match=word):
        report(run)
    assert not (run / "report.html").exists()


def test_a_dataset_prepared_anew_is_noticed(tmp_path):
    run = make_run(tmp_path)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"split_checksum": "another"}))
    with pytest.raises(UserError, match="changed since training"):
        report(run)


def test_curves_skip_what_was_not_finite():
    rows = [{"step": s, "loss": 1.0, "loss/ranking": None if s == 2 else 0.5} for s in (1, 2, 3)]
    assert report_training._curve(rows, "loss/ranking") == ([1, 3], [0.5, 0.5])
    assert report_training._curve(rows, "loss/absent") is None


@pytest.mark.parametrize("values", [[1], [1, 2, 3], [5, 400, 12_000], []])
def test_charts_of_little_and_of_much(values):
    for svg in (
        plots.histogram("h", np.array(values, int), "x", "y"),
        plots.rank_size("r", np.array(values, int), "x", "y"),
        plots.usage("u", np.array(values, int), 0),
    ):
        assert svg.startswith("<svg") and "http" not in svg


def test_percent_never_rounds_to_none_or_all():
    assert [percent(share) for share in (0, 1, 0.1234, 1e-6, 1 - 1e-6)] == [
        "0\u2009%",
        "100\u2009%",
        "12.3\u2009%",
        "< 0.1\u2009%",
        "> 99.9\u2009%",
    ]


def test_one_request_has_figures_of_its_own_beside_the_baselines():
    def table(gauc):
        return {"gauc": {"value": gauc, "ci95": [gauc - 0.1, gauc + 0.1]}}

    rival = {"ranking": table(0.7), "request": table(0.55)}
    evaluation = {"ranking": table(0.6), "request": table(0.65), "baselines": {"item_mean": rival}}
    found = report_results.section(evaluation)
    for name, ours, theirs in (("ranking", 0.6, 0.7), ("request", 0.65, 0.55)):
        values = [row["cells"][0]["value"] for row in found[name]["rows"]]
        assert values == [ours, theirs]
    leads = {figure["head"]: figure["lead"] for figure in report_results._figures(evaluation)}
    assert leads == {"Ranking": pytest.approx(-0.1), "Ranking, one request": pytest.approx(0.1)}
    assert report_results.section({"ranking": table(0.6)})["request"] is None
