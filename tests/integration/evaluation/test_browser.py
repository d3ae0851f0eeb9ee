"""The raters' page in a real browser: by keyboard alone, after a reload, and judged by axe."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.evaluation.conftest import Page
from turnmill.producer.studies.results import read_ratings

pytestmark = pytest.mark.needs("browser")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A tab whose errors, those of the content security policy among them, fail the test."""
    context = chromium.new_context(locale="en-GB")
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    context.close()
    assert said == []


def rated(page: Page) -> list[dict[str, int]]:
    """The ratings of each item, in the order of the items."""
    found: dict[str, dict[str, int]] = {}
    for each in read_ratings(page.database, page.study):
        found.setdefault(each.item_id, {})[each.dimension] = each.value
    return list(found.values())


def wait_for(tab: Any, done: int) -> None:
    tab.get_by_role("status").filter(has_text=f"{done} of 10").wait_for()


def test_ten_items_are_rated_by_keyboard_and_a_reload_loses_nothing(tab: Any, page: Page) -> None:
    tab.goto(page.url + page.invite("ada"))
    for done in range(10):
        wait_for(tab, done)
        if done == 5:
            shown = tab.locator("#reply + p").inner_text()
            tab.reload()
            assert tab.locator("#reply + p").inner_text() == shown
        for key in "543":
            tab.keyboard.press(key)
        tab.keyboard.press("Enter")

    tab.get_by_text("There is nothing left for you to rate.").wait_for()
    assert rated(page) == [{"fluency": 5, "coherence": 4, "informativeness": 3}] * 10


def test_pairs_are_rated_with_the_arrows_and_taken_back_with_u(tab: Any, pairs_page: Page) -> None:
    tab.goto(pairs_page.url + pairs_page.invite("ada"))
    for done, key in enumerate(("ArrowLeft", "ArrowRight", "t")):
        wait_for(tab, done)
        tab.keyboard.press(key)
        tab.keyboard.press("Enter")
    wait_for(tab, 3)
    tab.keyboard.press("u")
    wait_for(tab, 2)
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    wait_for(tab, 3)

    rows = pairs_page.database.run(
        "SELECT value FROM study_ratings r JOIN study_items i ON i.id = r.item_id ORDER BY position"
    )
    assert [row.value for row in rows] == [-1, 1, -1]


def test_keys_in_the_comment_are_text(tab: Any, page: Page) -> None:
    tab.goto(page.url + page.invite("ada"))
    for key in "5551":
        tab.keyboard.press(key)
    tab.get_by_label("Comment").press_sequentially("u 1 unusual")
    tab.get_by_role("button", name="Submit").click()
    wait_for(tab, 1)

    (comment,) = {each.comment for each in read_ratings(page.database, page.study)}
    assert comment == "u 1 unusual"
    assert rated(page)[0]["informativeness"] == 5


def test_an_incomplete_rating_is_not_sent(tab: Any, page: Page) -> None:
    tab.goto(page.url + page.invite("ada"))
    tab.keyboard.press("5")
    tab.keyboard.press("Enter")
    tab.keyboard.press("4")
    tab.keyboard.press("3")
    tab.keyboard.press("Enter")
    wait_for(tab, 1)

    assert rated(page) == [{"fluency": 5, "coherence": 4, "informativeness": 3}]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_no_violation(tab: Any, page: Page, language: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab.emulate_media(color_scheme=scheme)
    address = page.url + page.invite("ada") + f"?lang={language}"
    tab.goto(address)
    found = Axe().run(tab).response["violations"]
    for _ in range(10):
        for key in "555":
            tab.keyboard.press(key)
        with tab.expect_navigation():
            tab.keyboard.press("Enter")
    found += Axe().run(tab).response["violations"]

    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def test_axe_finds_no_violation_in_pairs(tab: Any, pairs_page: Page) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab.goto(pairs_page.url + pairs_page.invite("ada"))
    found = Axe().run(tab).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
