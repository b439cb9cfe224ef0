"""The page in a real browser: it sorts, filters, opens a prediction, and asks nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Browser, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
CELLS = "[...document.querySelector('#table-runs').tBodies[0].rows].filter(r => !r.hidden).map(r => r.cells[{}])"


@pytest.fixture(scope="module")
def page(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as driven:
        driven.look(width=1200, height=900)
        driven.open(written / "report.html")
        yield driven


def _column(page: Browser, name: str) -> list[str]:
    heads = page.do("[...document.querySelectorAll('#table-runs th')].map(th => th.textContent)")
    return list(page.do(CELLS.format(heads.index(name)) + ".map(cell => cell.textContent)"))


def test_the_page_asks_for_nothing_and_complains_of_nothing(page: Browser, written: Path) -> None:
    assert page.requests == [(written / "report.html").as_uri()]
    assert page.complaints == []
    assert page.do("document.querySelectorAll('svg.figure').length") >= 6


def test_columns_sort_by_mouse_and_by_keyboard(page: Browser) -> None:
    head = "[...document.querySelectorAll('#table-runs th')].find(th => th.textContent === 'accuracy')"
    page.do(f"{head}.querySelector('button').click()")
    values = [float(text.split()[0]) for text in _column(page, "accuracy")]
    assert values == sorted(values, reverse=True)
    assert len(values) == 12
    assert page.do(f"{head}.getAttribute('aria-sort')") == "descending"
    page.do(f"{head}.querySelector('button').focus()")
    page.press("Enter")
    assert [float(text.split()[0]) for text in _column(page, "accuracy")] == values[::-1]
    assert page.do("document.querySelectorAll('#table-runs [aria-sort]').length") == 1


def test_words_and_axes_filter(page: Browser) -> None:
    choose = "(f => {{ {}; f.dispatchEvent(new Event('input')); }})(document.querySelector('form[data-table]'))"
    page.do(choose.format("f.querySelector('select').value = 'lora'; f.elements.text.value = 'MLP'"))
    assert set(_column(page, "method")) == {"lora"}
    assert set(_column(page, "placement")) == {"mlp"}
    assert page.do("document.querySelector('form[data-table] output').textContent") == "2 of 12 runs"
    page.do(choose.format("f.reset()"))
    assert len(_column(page, "method")) == 12


def test_a_run_opens_its_predictions_and_closes_by_escape(page: Browser) -> None:
    button = "[...document.querySelectorAll('button.open')].find(b => b.textContent === 'lora-mlp-4-0')"
    page.do(f"{button}.click()")
    assert page.do("document.querySelector('#predictions').open")
    assert page.do("document.querySelectorAll('#rows article').length") == 25
    assert "<img src=x" in page.do(
        "document.querySelector('#rows article pre:last-of-type').closest('article').textContent"
    )
    assert page.do("document.querySelectorAll('#rows img, #rows script').length") == 0
    show = "(f => {{ f.elements.kind.value = '{}'; f.dispatchEvent(new Event('input')); }})"
    page.do(show.format("lost") + "(document.querySelector('#predictions form'))")
    titles = page.do("[...document.querySelectorAll('#rows h4')].map(h => h.textContent.split(',')[0])")
    assert titles
    assert all(text.startswith("Base: correct") for text in titles[::2])
    assert not any(text.startswith("Tuned: correct") for text in titles[1::2])
    page.press("Escape")
    assert not page.do("document.querySelector('#predictions').open")
    assert page.do("document.activeElement.textContent") == "lora-mlp-4-0"
    assert page.complaints == []


def test_the_theme_follows_the_system_until_the_button_is_pressed(page: Browser) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.do(paper)
    page.look(width=1200, height=900, dark=True)
    dark = page.do(paper)
    page.do("document.querySelector('#theme').click()")
    assert (light, dark, page.do(paper)) == ("rgb(253, 253, 252)", "rgb(22, 23, 25)", "rgb(253, 253, 252)")


def test_nothing_is_wider_than_a_phone(page: Browser) -> None:
    page.look(width=375, height=800)
    assert page.do("document.documentElement.scrollWidth") == 375
