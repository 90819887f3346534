"""The page at `/` in a real Chromium: pick items, see recommendations with pictures and the time they took."""

import importlib.util
import shutil

import pytest

from tests.serving_fixtures import process, tiny_run, until_ready

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not shutil.which("chromedriver") or importlib.util.find_spec("selenium") is None,
        reason="no chromium, chromedriver or selenium here",
    ),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    tiny_run(root)
    with process(root / "run", root / "store.sqlite") as (_, address):
        until_ready(address)
        yield address


@pytest.fixture
def browser(address):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,1400",
    ):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def _until(browser, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(condition)


def _click(browser, selector):
    """Clicks what is there, found anew where the page redrew it between the finding and the click."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    def clicked(b):
        b.find_element("css selector", selector).click()
        return True

    redrawn = (NoSuchElementException, StaleElementReferenceException)
    WebDriverWait(browser, 60, ignored_exceptions=redrawn).until(clicked)


def _texts(browser, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    return browser.execute_script(script, selector)


def _items(browser, place):
    """Item ids of the tiles there, read at once, as the page may be redrawing."""
    script = "return [...document.querySelectorAll(`#${arguments[0]} .tile`)].map(tile => tile.dataset.item)"
    return browser.execute_script(script, place)


def test_items_are_picked_and_recommendations_seen(address, browser):
    browser.get(address)
    _until(browser, lambda b: len(_items(b, "items")) > 5 and _items(b, "found"))
    popular, chosen = _items(browser, "found"), _items(browser, "items")[:2]
    for item in chosen:
        _click(browser, f"#items [data-item='{item}']")
        _until(browser, lambda b, item=item: item in _items(b, "history"))

    def settled(b):
        found = _items(b, "found")
        return found if found and not set(found) & set(chosen) and found != popular else None

    found = _until(browser, settled)
    assert len(found) == len(set(found)) and " ms" in browser.find_element("id", "took").text
    assert not browser.find_element("id", "problem").text
    assert _items(browser, "history") == chosen
    severe = [
        line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "picture" not in line["message"]
    ]
    assert not [line for line in severe if "favicon" not in line["message"]], severe


def test_it_says_why_and_the_tree_of_ids_is_browsed(address, browser):
    browser.get(address)
    _until(browser, lambda b: len(_items(b, "items")) > 5 and _items(b, "found"))
    for item in _items(browser, "items")[:2]:
        _click(browser, f"#items [data-item='{item}']")
        _until(browser, lambda b, item=item: item in _items(b, "history") and item not in _items(b, "found"))
    _click(browser, "#found .why")
    _until(browser, lambda b: len(_texts(b, "#reasons .bars")) == 2)
    told = [text.split(":")[0] for text in _texts(browser, "#reasons .bars span")]
    assert told[2] == "code 0" and told[-1] == "id"  # after the two items of the history
    (codes,) = _texts(browser, "#reasons button")
    _click(browser, "#reasons button")
    prefix = codes.split(", ")[:-1]
    _until(browser, lambda b: _texts(b, "#path button") == ["all", *prefix] and _items(b, "branches"))
    _click(browser, "#path button")
    _until(browser, lambda b: _texts(b, "#path button") == ["all"] and len(_texts(b, ".branch")) > 1)
    assert not browser.find_element("id", "problem").text
