"""The notebooks: what is kept of them is fit to be read, and run anew they show what their texts claim."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import notebook_fixtures
import numpy as np
import pytest
from notebook_fixtures import (
    COLAB,
    INSTALL,
    ROOT,
    Executed,
    check_kept,
    claims,
    execute,
    is_blank,
    load,
    noise,
    pictures,
    printed,
)
from raw_fixtures import movielens_rows, write_movielens

KEPT = sorted(path.stem for path in COLAB.glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_notebook_is_valid_run_in_order_and_says_what_it_shows(name):
    check_kept(name)


@pytest.mark.parametrize("name", ["quickstart", "movielens_posters", "tokenizer_anatomy"])
def test_texts_state_numbers_and_no_cell_is_a_wall(name):
    notebook = load(name)
    assert len(list(claims(notebook))) >= 5
    for cell in notebook_fixtures.code_cells(notebook)[1:]:
        assert len(cell.source.splitlines()) <= 20, cell.source
    for before, cell in zip(notebook.cells[1:], notebook.cells[2:], strict=False):
        if cell.cell_type == "code" and before.cell_type == "code":
            assert before.source == INSTALL or pictures(cell) or pictures(before), f"{name}: code without a text"


def test_every_notebook_that_a_page_names_is_there_and_every_one_is_named():
    named = {name for page in PAGES for name in re.findall(r"colab/([a-z]\w+)\.ipynb", page.read_text())}
    assert named == set(KEPT)


def test_a_claim_that_no_cell_prints_is_found():
    notebook = load("quickstart")
    number, shown = next(claims(notebook))
    assert number in shown
    place = next(i for i, cell in enumerate(notebook.cells) if f"**{number}" in cell.source)
    notebook.cells[place].source = notebook.cells[place].source.replace(f"**{number}", "**987654", 1)
    assert any(number == "987654" and not printed(number, shown) for number, shown in claims(notebook))


@pytest.mark.parametrize(
    ("number", "shown", "told"),
    [
        ("0.31", "about 0.31.", True), ("0.31", "0.312", False), ("3", "13 of 30", False), ("3", "(3)", True),
        ("12%", "12% of all", True), ("12%", "12 of all", False), ("1,200", "7,200 and 1,200 KiB", True),
        ("200", "1,200", False),
    ],
)  # fmt: skip
def test_a_number_is_printed_only_as_itself(number, shown, told):
    assert printed(number, shown) is told


def test_a_clone_beside_the_notebook_is_taken_for_what_to_install_and_not_for_the_package(tmp_path):
    """A folder named hisam_jax is a namespace package to Python: nothing to import from."""
    (tmp_path / "hisam_jax" / "hisam_jax").mkdir(parents=True)
    (tmp_path / "hisam_jax" / "hisam_jax" / "__init__.py").touch()
    python = _environment(tmp_path / "bare", "--without-pip")
    done = _install(python, tmp_path, {})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path / 'hisam_jax'} could not be installed" in done.stderr


def test_a_blank_picture_is_told_from_one_with_something_on_it():
    white = np.full((40, 60, 3), 255, np.uint8)
    drawn = white.copy()
    drawn[10:20, 10:30] = (0, 90, 180)
    assert is_blank(white) and not is_blank(drawn)


def test_where_there_is_nothing_to_install_from_the_reader_is_told_what_to_do(tmp_path):
    python = _environment(tmp_path / "bare", "--without-pip")
    done = _install(python, tmp_path, {})
    assert done.returncode == 1 and "HISAM_SOURCE" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("driver", "told", "untold"),
    [
        ("580.65.06", "pip install -U 'jax[cuda13]==", "cuda12"),
        ("575.57.08", "pip install -U 'jax[cuda12]==", "cuda13"),
        ("525.60.13", "pip install -U 'jax[cuda12]==", "cuda13"),
        ("470.82.01", "Install a newer driver", "pip"),
    ],
)
def test_the_extra_that_is_advised_goes_by_the_driver(driver, told, untold, tmp_path, monkeypatch):
    said = _remedy(tmp_path, monkeypatch, f"echo {driver}; echo {driver}")
    assert f"driver is {driver[:3]};" in said and told in said and untold not in said


@pytest.mark.parametrize("body", ["echo NVIDIA-SMI has failed; exit 9", "echo no devices", None])
def test_where_no_driver_answers_the_advice_is_for_a_tpu(body, tmp_path, monkeypatch):
    if Path("/dev/nvidia0").exists():
        pytest.skip("a GPU is here: the advice is for it")
    assert _remedy(tmp_path, monkeypatch, body).startswith(f"pip install -U 'jax[tpu]=={jax.__version__}'")


def test_where_jax_does_not_start_the_reader_is_told_what_to_install(tmp_path):
    """A backend that there is not fails as one does whose library no longer fits: in `jax.devices()`."""
    _nvidia_smi(tmp_path, "echo 550.54.15")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    more = {"JAX_PLATFORMS": "nosuch", "PYTHONPATH": str(ROOT), "PATH": path}
    done = _install(Path(sys.executable), tmp_path, more, "print('went on')")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "went on" not in done.stdout
    assert "nosuch" in done.stderr and f"pip install -U 'jax[cuda12]=={jax.__version__}'" in done.stderr


def test_colab_shows_the_source_as_a_field():
    """A form's field must be a plain value in a line of its own."""
    assert re.search(r'^SOURCE = ""  # @param \{type:"string"\}$', INSTALL, re.M)


def _remedy(folder: Path, monkeypatch: pytest.MonkeyPatch, smi: str | None) -> str:
    """What the install cell's function says where `nvidia-smi` does so; None: where there is none."""
    tree = ast.parse(INSTALL)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    names = {"subprocess": subprocess, "Path": Path, "jax": jax}
    exec(compile(tree, "install cell", "exec"), names)
    if smi is not None:
        _nvidia_smi(folder, smi)
    monkeypatch.setenv("PATH", str(folder))
    return names["remedy"]()


def _nvidia_smi(folder: Path, body: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.mark.slow
def test_the_install_cell_installs_the_checkout_that_holds_the_notebook(tmp_path):
    """What hisam_jax needs is borrowed from this environment; the package itself is built and installed by pip."""
    if not _index_answers(tmp_path):
        pytest.skip("no package index: pip cannot get what builds the package")
    checkout = tmp_path / "clone"
    for part in ("hisam_jax", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / part, checkout / part)
    (checkout / "colab").mkdir()
    python = _environment(tmp_path / "bare")
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(purelib.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = _install(python, checkout / "colab", {"JAX_PLATFORMS": "cpu"}, "print(hisam.__file__, hisam.DSTConfig)")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "devices:" in done.stdout and str(tmp_path / "bare") in done.stdout
    again = _install(python, tmp_path, {"JAX_PLATFORMS": "cpu"})
    assert again.returncode == 0, "installed once, it is found anywhere"


def _environment(folder: Path, *flags: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", *flags, folder], check=True, capture_output=True)
    return folder / "bin" / "python"


def _install(python: Path, folder: Path, more: dict[str, str], then: str = "") -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HISAM_SOURCE")}
    code = f"{INSTALL}\n{then}\n"
    return subprocess.run([python, "-c", code], cwd=folder, env=kept | more, capture_output=True, text=True)


def _index_answers(folder: Path) -> bool:
    """Whether pip gets a small package from whatever index it is set up with."""
    command = [sys.executable, "-m", "pip", "--timeout", "5", "--retries", "0", "download", "--no-deps", "setuptools"]
    return subprocess.run([*command, "--dest", folder], capture_output=True).returncode == 0


RUNS = {
    "quickstart": {
        "told": "told",
        "losses": "[row['loss'] for row in log]",
        "recall": "{name: row['recall@10'] for name, row in lists.items()}",
        "shown": "[shown['history'], recommended, shown['target'], dataset.num_items]",
        "known": "dataset.items['item_id'].to_list()",
        "history": "[dataset.items['item_id'][item] for item in history]",
        "found": "found",
        "kinds": "[int(kinds[item]) for item in (history[0], *dataset.item_index([row['item_id'] for row in found]))]",
    },
    "movielens_posters": {
        "facts": "facts",
        "recall": "{name: row['retrieval']['recall@10']['value'] for name, row in rivals.items()}",
        "samples": "samples",
        "rows": "list(query['groups'])",
        "items": "dataset.num_items",
        "page": "page.read_text()[:4000]",
    },
    "tokenizer_anatomy": {
        "told": "judged['ami_attributes']",
        "without": "without['ami_attributes']",
        "levels": "judged['levels']",
        "alike": "alike",
        "groups": "groups",
        "errors": "errors",
        "found": "row",
        "values": "{level: {fact: found[fact].n_unique() for fact in facts} for level, found in rows.items()}",
        "held": "{level: len(found) for level, found in rows.items()}",
    },
}


def _run(name: str, folder: Path, environment: dict[str, str] | None = None) -> Executed:
    """A notebook run in `folder`; programs compiled for one of them are there for the next."""
    programs = {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "programs"))
    }
    executed = execute(load(name), folder, RUNS[name], programs | (environment or {}))
    assert environment or not noise(executed.notebook), "only a tiny catalogue of one's own may raise alarms"
    return executed


def _shows(executed: Executed, *parts: str) -> None:
    """A cell that holds each part shows at least one picture, and none of them is blank."""
    for part in parts:
        shown = pictures(executed.cell(part))
        assert shown and not any(is_blank(picture) for picture in shown), part


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Executed:
    return _run("quickstart", tmp_path_factory.mktemp("quickstart"))


@pytest.mark.slow
def test_quickstart_learns_and_is_ahead_of_the_simple_rivals(quickstart):
    told, losses, recall = (quickstart.values[name] for name in ("told", "losses", "recall"))
    assert told["shared/0|kind"] > 0.4 > 0.3 > told["shared/0|colour"]
    assert told["image/0|colour"] > 0.5 > 0.3 > told["image/0|kind"]
    assert losses[-1] < 0.9 * losses[0]
    model, transitions, knn, popular = (recall[name] for name in ("HMAT", "transitions", "ItemKNN", "popularity"))
    assert model["value"] > transitions["value"] > knn["value"] > popular["value"]
    assert model["ci95"][0] > popular["ci95"][1]


@pytest.mark.slow
def test_quickstart_recommends_items_that_are_there_and_were_not_had(quickstart):
    found, known, history = (quickstart.values[name] for name in ("found", "known", "history"))
    ids = [row["item_id"] for row in found]
    assert len(set(ids)) == 5 and set(ids) <= set(known) - set(history)
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    assert sorted((row["score"] for row in found), reverse=True) == [row["score"] for row in found]
    past, recommended, target, items = quickstart.values["shown"]
    assert not set(past) & set(recommended) and {*past, *recommended, target} <= set(range(items))
    assert target in recommended, "the text promises an orange frame"


@pytest.mark.slow
def test_quickstart_shows_the_pictures_that_it_speaks_of(quickstart):
    parts = ("Taken most", "The same first shared code", "while training", "among the first ten of the list")
    _shows(quickstart, *parts, "and is recommended", '"Recommended"')


@pytest.fixture(scope="module", params=["shop", "folder"])
def posters(request, tmp_path_factory) -> Executed:
    """Without a folder, and with a made-up MovieLens that has pictures of three movies in four."""
    root = tmp_path_factory.mktemp("posters")
    if request.param == "shop":
        return _run("movielens_posters", root)
    rows = movielens_rows(users=60, movies=40, ties=False)
    write_movielens(root / "data" / "ml-latest-small", rows, pictures=True)
    return _run("movielens_posters", root, {"HISAM_DATA": str(root / "data")})


@pytest.mark.slow
def test_posters_takes_the_folder_or_the_shop_to_the_end(posters, request):
    values, own = posters.values, "[folder]" in request.node.name
    assert values["facts"]["source"] == ("movielens" if own else "shop")
    if own:
        assert values["facts"]["modalities"]["image"]["coverage"] == pytest.approx(0.75)
    else:
        assert values["recall"]["HMAT"] > values["recall"]["popularity"]
    assert set(values["rows"]) == {"shared", "text", "image"}
    assert "<html" in values["page"]


@pytest.mark.slow
def test_posters_recommends_what_a_user_has_not_had(posters):
    for sample in posters.values["samples"]:
        items = [row["item"] for row in sample["recommendations"]]
        assert items and len(set(items)) == len(items) and not set(items) & set(sample["history"])
        assert max(items) < posters.values["items"]
    _shows(posters, "Most popular", "nearest by", "is recommended")


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory) -> Executed:
    return _run("tokenizer_anatomy", tmp_path_factory.mktemp("anatomy"))


@pytest.mark.slow
def test_anatomy_each_fact_stands_in_its_own_code(anatomy):
    told = {pair: row["value"] for pair, row in anatomy.values["told"].items()}
    for code, own in (("shared/0", "kind"), ("text/0", "style"), ("image/0", "colour")):
        assert told[f"{code}|{own}"] > 0.5
        others = [value for pair, value in told.items() if pair.endswith(f"/0|{own}") and not pair.startswith(code)]
        assert max(others) < 0.3
    values, held = anatomy.values["values"], anatomy.values["held"]
    assert min(held.values()) >= 10
    assert (
        values["shared/0"]["kind"] < values["text/0"]["kind"] and values["shared/0"]["kind"] < values["image/0"]["kind"]
    )
    assert (
        values["text/0"]["style"] < values["image/0"]["style"]
        and values["image/0"]["colour"] < values["text/0"]["colour"]
    )


@pytest.mark.slow
def test_anatomy_the_term_keeps_leaks_small(anatomy):
    leaks = [
        sum(result[f"{code}/0|kind"]["value"] for code in ("text", "image"))
        for result in (anatomy.values["told"], anatomy.values["without"])
    ]
    assert leaks[0] < 0.8 * leaks[1]
    style = [anatomy.values[name]["text/0|style"]["value"] for name in ("told", "without")]
    assert style[0] > style[1], "freed of the kind, the text code tells more of the style"


@pytest.mark.slow
def test_anatomy_codes_split_rebuild_and_find(anatomy):
    values = anatomy.values
    assert all(level["utilisation"] > 0.9 for level in values["levels"])
    assert values["groups"] == sorted(values["groups"]) and values["alike"][0] > values["alike"][1] == 0
    for place in (0, 1):
        whole, shared = (values["errors"][name][place] for name in ("all codes", "shared codes alone"))
        assert whole < shared < 1
    assert values["found"]["codes_recall@10"] > 10 * 10 / values["found"]["pool"]
    _shows(anatomy, "Ten items", "holders(level)", "imshow", "mi_weight=0.0", "specific_only", "every item alone")
