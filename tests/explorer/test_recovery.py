"""The page while the service starts, goes and comes back: it says so at once, and recovers by itself."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from gate import Gate
from serving import running

from .conftest import drawn, redrawn

# What a browser itself says of a request that failed.
BROWSERS_OWN = ("net::ERR_", "503")


def out_of_reach(page) -> None:
    """From now on the service answers nothing."""
    page.expected.extend(BROWSERS_OWN)
    page.route(re.compile("/(v1/evaluate|v1/losses/\\w+/curve|health/ready|metrics)"), lambda route: route.abort())


def within_reach(page) -> None:
    page.unroute_all(behavior="wait")


def state(page, text: str) -> None:
    """Wait until the bar says that of the service."""
    page.wait_for_function("text => document.getElementById('state-text').textContent === text", arg=text)


def words_on_a_card(page) -> None:
    """Wait for words in place of a curve that can be seen, which cards without a curve are not."""
    page.get_by_text("Waiting for the service").first.wait_for()
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('.thumb:has(.none)')).opacity === '1'",
    )


def set_gamma(page, value: float) -> None:
    page.get_by_role("spinbutton", name="γ, as digits").fill(str(value))


def test_a_page_that_is_opened_before_the_worker_is_there_is_drawn_when_it_is(
    visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path, monkeypatch)
    with running(ready=False, compiled=False) as service:
        cards = visit("/losses", url=service.url)
        loss = visit("/losses/focal", url=service.url)
        for page in (cards, loss):
            page.expected.extend(BROWSERS_OWN)
            state(page, "Starting")
            assert "no worker is ready yet" in page.locator("#state").get_attribute("title")
        assert cards.locator(".thumb.drawn").count() == 0
        words_on_a_card(cards)
        gate.open()
        cards.wait_for_function("() => document.querySelectorAll('.thumb.drawn svg').length > 3")
        drawn(loss)
        for page in (cards, loss):
            state(page, "Ready")
            assert "undefined" not in page.locator("body").inner_text()
            assert "Unavailable" not in page.locator("body").inner_text()


@pytest.mark.timed
def test_a_service_that_goes_is_told_of_at_once_and_the_curves_follow_when_it_is_back(visit) -> None:
    page = visit("/losses/focal")
    drawn(page)
    state(page, "Ready")
    out_of_reach(page)
    begin = time.monotonic()
    set_gamma(page, 4)
    state(page, "Unreachable")
    assert time.monotonic() - begin < 3
    notice = page.locator(".drawing .notice")
    assert "The service does not answer." in notice.inner_text()
    assert "undefined" not in page.locator("body").inner_text()
    assert page.locator(".plots[data-stale]").count() == 1
    assert notice.bounding_box()["y"] < page.locator(".plots").bounding_box()["y"]
    with redrawn(page):
        within_reach(page)
    assert notice.is_hidden()
    assert page.locator(".plots[data-stale]").count() == 0
    assert page.locator(".legend strong").inner_text() == "focal, γ = 4"
    state(page, "Ready")


def test_cards_that_had_no_answer_are_drawn_when_there_is_one(visit) -> None:
    page = visit("/nowhere")
    page.get_by_text("There is no view").wait_for()
    out_of_reach(page)
    page.evaluate("location.hash = '#/losses'")
    words_on_a_card(page)
    within_reach(page)
    page.wait_for_function("() => document.querySelectorAll('.thumb.drawn svg').length > 3")
    page.get_by_text("Waiting for the service").first.wait_for(state="detached")


@pytest.mark.parametrize("path", ["/try", "/landscape", "/service"])
def test_other_views_recover_too(visit, path: str) -> None:
    page = visit("/nowhere", again=True)
    page.get_by_text("There is no view").wait_for()
    out_of_reach(page)
    page.evaluate("path => { location.hash = `#${path}`; }", path)
    page.get_by_text("The service does not answer.").first.wait_for()
    assert "undefined" not in page.locator("body").inner_text()
    within_reach(page)
    page.wait_for_selector(
        {"/try": "[data-answers]", "/landscape": ".land[data-drawn]", "/service": ".meter strong"}[path]
    )
    page.get_by_text("The service does not answer.").wait_for(state="hidden")


@pytest.mark.parametrize("body", ["", json.dumps({}), "<html>Bad gateway</html>"])
def test_a_proxy_that_answers_in_place_of_the_service_is_no_undefined(visit, body: str) -> None:
    page = visit("/losses/focal", again=True)
    drawn(page)
    page.expected.append("502")
    kind = "text/html" if body.startswith("<") else "application/json"
    page.route("**/curve.json*", lambda route: route.fulfill(status=502, content_type=kind, body=body))
    set_gamma(page, 4)
    page.locator(".drawing .notice").wait_for()
    text = page.locator("body").inner_text()
    assert "undefined" not in text
    assert "Bad Gateway" in text or "502" in text
