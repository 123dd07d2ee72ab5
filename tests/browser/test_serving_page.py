"""The page of `sidr serve` in a real browser: lists beside each other, a filter, another history, hostile titles."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from builders import serving

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("page") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIDR_HOME", str(home))
        with serving.on_a_port(serving.server_over(serving.build(home))) as address:
            yield address


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    """A page that collects what goes wrong in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = window.new_page(viewport={"width": 1600, "height": 1000})
        page.troubles = []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
        yield page
        window.close()


def listed(page: Any, mode: str) -> list[str]:
    return page.locator(f"[data-mode={mode}] .title").all_inner_texts()


def test_a_person_sees_the_lists_filters_them_and_makes_a_history(address: str, page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/#user=user1")
    for mode in serving.MODES:
        page.wait_for_selector(f"[data-mode={mode}] ol.list li")
        assert len(listed(page, mode)) == 10
    assert page.locator("#history li").count() == 6
    assert "HISTORY OF USER1" in page.locator("#whose").inner_text().upper()
    assert page.locator("#thought").inner_text() and "cut at the limit" in page.locator("#ended").inner_text()

    page.check("#seen")
    page.wait_for_selector("[data-mode=direct] .gone")
    seen = {f"Toy A0{n}" for n in range(2, 8)}
    assert not seen & set(listed(page, "direct")) and len(listed(page, "direct")) == 10
    assert page.locator("[data-mode=direct] .tag.moved").count() > 0
    page.uncheck("#seen")

    page.click("#clear")
    page.wait_for_selector("#hint:not([hidden])")
    page.fill("#item", "toy a1")
    page.click("#items button >> nth=0")
    page.wait_for_selector("[data-mode=direct] ol.list li")
    assert "Toy A10" in page.locator("#history li").inner_text()
    assert page.url.endswith("#history=A10")
    page.fill("#k", "99")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "a list of 99 cannot be filled" in page.locator("#trouble").inner_text()
    assert all(url.startswith(address) for url in asked)  # no network
    assert [text for text in page.troubles if "422" not in text] == []  # the refusal is told in the console too


def test_a_test_row_shows_what_came_next_until_the_history_is_another(address: str, page: Any) -> None:
    page.goto(f"{address}/")
    page.wait_for_selector("#cases button")
    kinds = {text.partition(":")[0] for text in page.locator("#cases button").all_inner_texts()}
    assert kinds <= {"hit", "miss", "changed by thought"} and "hit" in kinds
    page.locator("#cases button", has_text="hit").first.click()
    page.wait_for_selector("#truth:not([hidden])")
    page.wait_for_selector("ol.list .tag:text-is('came next')")
    target = page.locator("#truth .title").inner_text().split(" <")[0]
    told = page.locator("#truth .verdict .tag").all_inner_texts()
    assert [text.partition(":")[0] for text in told] == list(serving.MODES)
    mode, _, place = next(text for text in told if "place" in text).partition(": place ")
    assert listed(page, mode)[int(place) - 1] == target
    assert "#row=" in page.url
    page.reload()
    page.wait_for_selector("#truth:not([hidden])")
    page.click("#history .remove >> nth=0")
    page.wait_for_selector("#truth", state="hidden")
    assert page.troubles == []


def test_nothing_that_a_title_or_thought_holds_becomes_markup(address: str, page: Any) -> None:
    def harm(route: Any) -> None:
        answer = route.fetch().json()
        for item in [*answer["items"], *answer["history"]]:
            item["title"] = HOSTILE
        if answer["reading"]:
            answer["reading"]["parts"] = [{"text": HOSTILE, "item_ids": None, "titles": None}]
        route.fulfill(status=200, content_type="application/json", body=json.dumps(answer))

    page.route("**/recommend", harm)
    page.goto(f"{address}/#history=A01")
    page.wait_for_selector("[data-mode=thinking] ol.list li")
    assert listed(page, "thinking")[0] == HOSTILE and page.locator("#thought").inner_text() == HOSTILE
    assert page.locator("img").count() == 0 and page.evaluate("window.harmed") is None
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.harmed = 2'}))")
    assert page.evaluate("window.harmed") is None  # the policy lets no other script run
