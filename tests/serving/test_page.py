"""The page as a person uses it, in a real browser: what it shows is what the models say, and titles are text."""

import importlib.util
from pathlib import Path

import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.hub import save_control
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.serving.served_model import ServedModel


HERE = Path(__file__).parent


def module(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


browser = module("browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
SCRIPT = "<script>window.hacked = 1</script>"
IMAGE = '<img src="nowhere" onerror="window.hacked = 1">'
QUIET = "document.querySelectorAll('.list.stale').length === 0 && document.querySelectorAll('.item').length > 0"


@pytest.fixture
def running():
    return module("test_server").running


def titles_of(page, place):
    return page.evaluate(
        f"[...document.querySelectorAll('.list')[{place}].querySelectorAll('.title')].map(e => e.textContent)"
    )


def find_and_add(page, query, count):
    page.evaluate(f"(at('query').value = {query!r}, at('query').dispatchEvent(new Event('input')))")
    page.until(f"state.found.length && state.found[0].title.includes({query!r})")
    page.evaluate("at('query').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
    page.until(f"state.history.length === {count} && {QUIET}")


def test_a_person_finds_items_excludes_one_and_sees_a_path(running, models, tmp_path):
    recommender = models[0].loaded.recommender
    catalog = recommender.catalog

    def titles(**rules):
        found = recommender.recommend([[107, 111]], k=5, **rules).item_ids[0]
        return [catalog.titles[catalog.row(item_id)] for item_id in found]

    with running(models, page=True) as (port, _), browser.Browser(tmp_path) as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.until(QUIET)
        page.evaluate("(at('k').value = 5, at('k').dispatchEvent(new Event('change')))")
        find_and_add(page, "Great", 1)
        find_and_add(page, "Heat", 2)
        shown = titles_of(page, 0)
        without_ids = [title.split(" 10")[0] for title in shown]  # of items that share a title
        assert without_ids == titles(exclude=[107, 111])
        page.evaluate("document.querySelector('.item [aria-label^=Exclude]').click()")
        page.until(f"state.excluded.length === 1 && {QUIET}")
        excluded = page.evaluate("state.excluded[0].item_id")
        assert [title.split(" 10")[0] for title in titles_of(page, 0)] == titles(exclude=[107, 111, excluded])
        assert page.evaluate("document.querySelectorAll('.list').length") == 2

        page.evaluate("document.querySelector('button.title').click()")
        page.until("!at('path').hidden")
        spelled = page.evaluate(
            "[...document.querySelectorAll('.choice.taken code')].map(e => e.textContent).join('')"
        )
        shown = page.evaluate("document.querySelector('button.title').firstChild.textContent")
        assert spelled.replace("␣", " ").rstrip("⏎").strip() == shown

        page.open(f"http://127.0.0.1:{port}/", width=360, height=700)
        page.until(QUIET)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert not page.errors()
        assert all(address.startswith(f"http://127.0.0.1:{port}/") for address in page.requested())


def test_a_script_in_a_title_is_shown_as_text_and_a_token_is_asked_for(running, tmp_path):
    catalog = Catalog([1, 2], [SCRIPT, IMAGE], [{}, {}], titles=[SCRIPT, IMAGE])
    save_control(tmp_path / "model", PopularityRecommender(catalog, [{"history": [0], "target": 0}]))
    models = [ServedModel("<b>model</b>", tmp_path / "model")]
    with running(models, page=True, token="secret") as (port, _), browser.Browser(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.until("!at('token-form').hidden")
        page.evaluate("(at('token').value = 'secret', at('token-form').requestSubmit())")
        page.until(QUIET)
        assert sorted(titles_of(page, 0)) == sorted([SCRIPT, IMAGE])
        find_and_add(page, "<script>", 1)
        assert page.evaluate("document.querySelector('#history span').textContent") == SCRIPT
        assert page.evaluate("document.querySelector('.list h2').textContent") == "<b>model</b>"
        assert page.evaluate("[window.hacked, document.images.length]") == [None, 0]
