"""Each view in a browser, as a reader uses it: by mouse, by keyboard, on a phone, in the dark, without the internet."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lossd
from lossd.losses import REGISTRY
from serving import Running, running

from .conftest import address, drawn, redrawn, serious_faults, unfold, window

VIEWS = {
    "/losses": "60 losses",
    "/losses/focal": "focal",
    "/losses/dice": "dice",
    "/losses/giou": "giou",
    "/losses/expression": "expression",
    "/service": "Service",
}


def settled(page, path: str) -> None:
    """Wait until a view shows what it has to show."""
    page.wait_for_selector("main h1")
    if path.startswith("/losses/"):
        drawn(page)
    elif path == "/losses":
        page.wait_for_function("() => document.querySelectorAll('.thumb.drawn svg').length > 3")
    else:
        page.wait_for_selector(".meter strong")


def shown(page) -> list[list[float]]:
    """The table beside the plot: x, then loss and gradient of each curve; once there, it is drawn with the curves."""
    if not page.locator(".numbers").count():
        page.get_by_text("Table of values").click()
        page.wait_for_selector(".numbers tbody tr")  # opened is told to the page later than to the browser
    rows = page.locator(".numbers tbody tr").evaluate_all(
        "rows => rows.map((r) => [...r.children].map((c) => c.textContent))"
    )
    return [[float(cell.replace("−", "-")) for cell in row] for row in rows]


def focal(x: float, **parameters: float) -> float:
    """The service's own evaluation of a sample whose true class has the probability x."""
    scores = np.array([[np.log(x) - np.log1p(-x), 0]], np.float32)
    return float(lossd.evaluate("focal", scores, np.array([0]), outputs=["loss"], **parameters).loss)


@pytest.mark.parametrize("path", VIEWS)
def test_a_view_opens_offline_without_a_complaint_or_a_serious_fault_and_fits_a_phone(visit, path: str) -> None:
    page = visit(path, theme="dark", again=True)
    settled(page, path)
    assert VIEWS[path].replace("60", str(len(REGISTRY))) in page.locator("h1").inner_text()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.title().endswith("· lossd")
    unfold(page)
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")


def test_a_request_to_another_host_would_be_a_complaint(browser) -> None:
    page = window(browser)
    page.evaluate("fetch('http://192.0.2.1/', { mode: 'no-cors' }).catch(() => null)")
    assert "asked for http://192.0.2.1/" in page.complaints
    page.context.close()


def test_a_slider_moves_the_curve_to_what_the_service_says(visit) -> None:
    page = visit("/losses/focal", again=True)
    drawn(page)
    for gamma in (2.0, 4.5, 0.5):
        if gamma != 2.0:
            with redrawn(page):
                page.get_by_role("slider", name="gamma").fill(str(gamma))
        table = shown(page)
        assert len(table) > 30
        for x, loss, *_ in table[5:-5:7]:
            # What is read off has four digits, so has its x.
            assert loss == pytest.approx(focal(x, gamma=gamma), rel=5e-3, abs=1e-6)
        assert f"gamma={gamma:g}" in address(page) or gamma == 2.0


def test_the_curves_beside_it_are_what_they_are_called(visit) -> None:
    page = visit("/losses/focal", again=True)
    drawn(page)
    names = page.locator(".legend li").all_inner_texts()
    assert [name.strip() for name in names] == [
        "focal",
        "focal, γ = 0",
        "focal, γ = 1",
        "focal, γ = 5",
        "cross_entropy",
    ]
    for x, *cells in shown(page)[8:-8:6]:
        values = cells[::2]
        expected = [focal(x, gamma=gamma) for gamma in (2.0, 0.0, 1.0, 5.0)]
        assert values == pytest.approx([*expected, -np.log(x)], rel=5e-3, abs=1e-6)


def test_curves_can_be_added_kept_and_removed_and_the_address_says_so(visit) -> None:
    page = visit("/losses/huber?with=", again=True)
    drawn(page)
    assert page.locator(".legend li").count() == 1
    with redrawn(page):
        page.get_by_label("Compare with").select_option("mse")
    with redrawn(page):
        page.get_by_role("slider", name="delta").fill("0.5")
    with redrawn(page):
        page.get_by_role("button", name="Pin this curve").click()
    assert [text.strip() for text in page.locator(".legend li").all_inner_texts()] == [
        "huber, δ = 0.5",
        "mse",
        "huber, δ = 0.5",
    ]
    page.reload()
    drawn(page)
    assert page.locator(".legend li").count() == 3
    with redrawn(page):
        page.get_by_role("button", name="Remove mse").click()
    assert page.locator(".legend li").count() == 2
    with redrawn(page):
        page.get_by_role("button", name="Reset").click()
    assert address(page).endswith("#/losses/huber")


def test_the_service_s_picture_of_the_same_lines_can_be_saved(visit) -> None:
    page = visit("/losses/focal?gamma=3&with=focal;gamma=1&with=cross_entropy", again=True)
    drawn(page)
    with page.expect_download() as saved, page.expect_request("**/curve.svg?*") as request:
        page.get_by_role("button", name="Save as SVG").click()
    assert request.value.url.split("?")[1] == "x=probability&gamma=3&gamma=1&with=cross_entropy"
    assert saved.value.suggested_filename == "focal.svg"
    assert "<svg" in saved.value.path().read_text()


def test_pointing_at_the_curves_reads_them_off_and_shows_what_x_means(visit) -> None:
    page = visit("/losses/giou?with=iou", again=True)
    drawn(page)
    assert page.locator(".tip").is_hidden()
    box = page.locator(".plot").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.locator(".tip").wait_for()
    lines = page.locator(".tip tbody tr").all_inner_texts()
    assert [line.split()[0] for line in lines] == ["giou", "iou"]
    prediction, target = page.locator(".sketch .prediction"), page.locator(".sketch .target")
    x = float(page.locator(".tip th").first.inner_text().removeprefix("x = ").replace("−", "-"))
    moved = float(prediction.get_attribute("x")) - float(target.get_attribute("x"))
    assert moved == pytest.approx(x, abs=1e-3)


def test_another_axis_is_another_question(visit) -> None:
    page = visit("/losses/cross_entropy?with=", again=True)
    drawn(page)
    with redrawn(page):
        page.locator(".choice label", has_text="margin").click()
    table = shown(page)
    for x, loss, gradient in table[::8]:
        scores = np.array([[x, 0]], np.float32)
        result = lossd.evaluate("cross_entropy", scores, np.array([0]), outputs=["loss", "gradient"])
        assert (loss, gradient) == pytest.approx((result.loss, result.gradient[0, 0]), rel=5e-3, abs=1e-4)
    assert "x=margin" in address(page)


def test_a_formula_of_the_reader_s_own_is_drawn(visit) -> None:
    page = visit("/losses/expression?with=", again=True)
    drawn(page)
    with redrawn(page):
        page.get_by_label("formula", exact=True).fill("abs(prediction - target) ** 3 / c")
    assert [loss for x, loss, _ in shown(page)] == pytest.approx(
        [abs(x) ** 3 for x, *_ in shown(page)], rel=5e-3, abs=1e-6
    )
    with redrawn(page):
        page.get_by_label("c, as digits").fill("2")
    assert shown(page)[0][1] == pytest.approx(27 / 2)


def test_what_the_service_refuses_is_shown_in_its_words_and_the_curve_stays(visit) -> None:
    page = visit("/losses/huber", again=True)
    page.expected.append("422")  # the browser notes every refusal
    drawn(page)
    before = shown(page)
    page.get_by_label("δ, as digits").fill("-1")
    page.wait_for_selector(".drawing .notice:visible")
    assert "greater than 0" in page.locator(".drawing .notice").inner_text()
    assert shown(page) == before
    with redrawn(page):
        page.get_by_label("δ, as digits").fill("1")
    assert page.locator(".drawing .notice").is_hidden()


def test_the_last_of_many_moves_is_what_is_drawn_however_slow_the_first_answer(visit) -> None:
    page = visit("/losses/focal?with=", again=True)
    drawn(page)
    held = []

    def delay(route):
        if "gamma=1&" in route.request.url and not held:
            held.append(route)
        else:
            route.fallback()

    page.route("**/curve.json*", delay)
    slider = page.get_by_role("slider", name="gamma")
    for gamma in ("1", "4", "3", "5"):
        slider.fill(gamma)
    page.locator(".legend").get_by_text("focal, γ = 5", exact=True).wait_for()
    assert held
    held.pop().fallback()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    for x, loss, _ in shown(page)[5:-5:10]:
        assert loss == pytest.approx(focal(x, gamma=5.0), rel=5e-3, abs=1e-6)


def test_search_finds_by_name_by_words_and_by_author_and_stays_in_the_address(visit) -> None:
    page = visit("/losses", again=True)
    page.wait_for_selector(".tile:visible")
    tiles = page.locator(".tile:visible h3")
    assert tiles.count() == len(REGISTRY)
    page.get_by_role("searchbox").fill("focal")
    assert {"focal", "sigmoid_focal", "focal_tversky"} <= set(tiles.all_inner_texts())
    assert tiles.count() < 12
    page.get_by_role("searchbox").fill("rezatofighi")
    assert tiles.all_inner_texts() == ["giou"]
    page.reload()
    page.wait_for_selector(".tile:visible")
    assert tiles.all_inner_texts() == ["giou"]
    page.get_by_role("searchbox").fill("xyzzy")
    assert page.get_by_text("No loss matches.").is_visible()
    page.get_by_role("searchbox").fill("")
    page.get_by_label("Task").select_option("boxes")
    assert tiles.all_inner_texts() == [name for name, loss in REGISTRY.items() if loss.task == "boxes"]


def test_search_finds_by_the_names_of_other_libraries(visit) -> None:
    page = visit("/losses", again=True)
    page.wait_for_selector(".tile:visible")
    tiles, box = page.locator(".tile:visible h3"), page.get_by_role("searchbox")
    first = tiles.first.inner_text()
    meaning = page.locator("#meaning")
    box.fill("RMSEWithUncertainty")
    meaning.get_by_text("RMSEWithUncertainty: gaussian_nll takes the variance").wait_for()
    assert tiles.all_inner_texts() == ["gaussian_nll"]
    box.fill("threat score")
    meaning.get_by_text("Metrics: iou.").wait_for()
    box.fill("lpips")
    meaning.get_by_text("lpips: its learned weights are not here").wait_for()
    assert tiles.count() == 0
    box.fill("dice")
    page.wait_for_function("() => document.querySelector('.group h3').innerText === 'dice'")
    box.fill("")
    page.wait_for_function("(first) => document.querySelector('.group h3').innerText === first", arg=first)
    assert tiles.count() == len(REGISTRY)


def test_it_all_works_by_keyboard(visit) -> None:
    page = visit("/losses")
    page.wait_for_selector(".tile:visible")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("/")
    page.keyboard.type("quantile")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/#/losses/quantile")
    drawn(page)
    page.wait_for_function("() => document.activeElement.tagName === 'H1'")
    plots = page.get_by_role("slider", name=re.compile("Values of the curves"))
    plots.focus()
    page.keyboard.press("Home")
    page.wait_for_selector(".plots[aria-valuenow='0'][aria-valuetext]")
    first = plots.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".plots[aria-valuenow='1']")
    assert first.startswith("x −3;")
    assert "quantile 1.5" in first
    assert plots.get_attribute("aria-valuetext") != first
    page.get_by_role("slider", name="q", exact=True).focus()
    with redrawn(page):
        page.keyboard.press("ArrowRight")
    assert "q=0.51" in address(page)


def test_back_leads_back(visit) -> None:
    page = visit("/losses?q=huber", again=True)
    page.wait_for_selector(".tile:visible")
    page.get_by_role("link", name="huber", exact=True).click()
    drawn(page)
    page.go_back()
    page.wait_for_selector(".tile:visible")
    assert page.get_by_role("searchbox").input_value() == "huber"


def test_a_view_that_is_left_while_it_loads_changes_neither_the_address_nor_the_title(visit) -> None:
    page = visit("/nowhere")
    page.get_by_text("There is no view at /nowhere").wait_for()
    held = []
    page.route("**/v1/losses/focal", lambda route: held.append(route))
    page.evaluate("location.hash = '/losses/focal'")
    while not held:
        page.wait_for_timeout(10)
    page.evaluate("location.hash = '/service'")
    page.wait_for_selector(".meter strong")
    with page.expect_response("**/v1/losses/focal") as answer, page.expect_response("**/katex.min.js") as formula:
        held[0].continue_()
    answer.value.finished()
    formula.value.finished()
    page.wait_for_timeout(300)  # the old view has all that it waited for, and may go on
    assert address(page).endswith("#/service")
    assert page.title() == "Service · lossd"


def test_the_theme_can_be_chosen_and_is_remembered(visit) -> None:
    page = visit("/losses")
    page.wait_for_selector(".tile:visible")
    button = page.locator("#theme")
    button.click()
    assert button.get_attribute("aria-label") == "Theme: light"
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    page.wait_for_selector(".tile:visible")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == background
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"  # the system's


def test_an_unknown_loss_is_told_with_the_nearest_names(visit) -> None:
    page = visit("/losses/focl", again=True)
    page.expected.append("404")
    page.get_by_role("alert").filter(has_text="did you mean focal").wait_for()


def test_a_service_that_does_not_answer_is_told_and_tried_again(visit) -> None:
    page = visit("/service")
    page.wait_for_selector(".meter strong")
    page.expected.append("ERR_FAILED")
    page.route("**/v1/losses", lambda route: route.abort())
    page.get_by_role("link", name="Losses", exact=True).click()
    page.get_by_role("alert").get_by_role("button", name="Try again").wait_for()
    page.unroute("**/v1/losses")
    page.wait_for_selector(".tile:visible")  # by itself, as soon as the service answers


def test_the_service_is_seen_working(visit, service: Running) -> None:
    page = visit("/service", again=True)
    page.wait_for_selector(".meter strong")
    page.get_by_text(re.compile(r"[\d,]+ requests answered")).wait_for()
    before = int(page.locator(".lead").inner_text().split()[0].replace(",", ""))
    page.get_by_role("button", name="Run a load test").click()
    page.get_by_text("600 focal losses").wait_for()
    page.wait_for_function(
        "least => document.querySelector('.lead').textContent.replace(',', '').match(/\\d+/)[0] >= least",
        arg=before + 600,
    )
    assert page.get_by_role("link", name="focal", exact=True).is_visible()
    assert page.locator(".bars").first.locator("tr").count() >= 1
    assert " ms" in page.locator(".stages").inner_text() or "µs" in page.locator(".stages").inner_text()


def test_a_service_with_keys_asks_for_one_and_keeps_it_in_the_tab(visit) -> None:
    with running(engine="inline", api_key="open-sesame-0123456789") as locked:
        page = visit("/losses/mse", url=locked.url)
        page.expected.append("401")
        for attempt in ("wrong", "open-sesame-0123456789"):
            page.wait_for_selector("#key-dialog[open]")
            page.get_by_label("API key").fill(attempt)
            page.get_by_role("button", name="Use this key").click()
        drawn(page)
        page.reload()
        drawn(page)
        assert page.locator("#key-dialog[open]").count() == 0
        assert page.evaluate("localStorage.length") == 0
