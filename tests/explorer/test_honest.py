"""What the page shows is what it says: no curve under a wrong name, no column that is no score, no stale table."""

from __future__ import annotations

import numpy as np
import pytest

import lossd

from .conftest import drawn, redrawn
from .test_try import after, drop, npy, opened

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("head", ["", "Unnamed: 0"], ids=["to_csv", "to_csv, read and written again"])
def test_the_numbers_of_the_rows_of_a_data_frame_are_no_scores(visit, head: str) -> None:
    """As pandas writes them: an index in front of the columns, under no name or under one that reading makes up."""
    scores, labels = RNG.normal(size=(9, 2)).round(3), [0, 1, 1] * 3
    rows = [f"{i},{a},{b},{label}" for i, ((a, b), label) in enumerate(zip(scores, labels, strict=True))]
    page = opened(visit)
    loss = after(page, lambda: drop(page, data__csv="\n".join([f"{head},a,b,label", *rows]).encode()))
    expected = lossd.evaluate("cross_entropy", scores.astype(np.float32), labels)
    assert loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_volume_is_shown_by_classes_and_slices(visit) -> None:
    scores = RNG.normal(size=(1, 4, 5, 6, 7)).astype(np.float32)
    labels = RNG.integers(0, 4, (1, 5, 6, 7))
    page = opened(visit, "?loss=dice&as=safetensors&p.mode=%22multiclass%22")
    after(page, lambda: drop(page, prediction__npy=npy(scores), target__npy=npy(labels)))
    captions = page.locator(".panels figcaption").all_inner_texts()
    assert captions == [f"class {i}, slice 2" for i in range(4)]
    page.get_by_role("spinbutton", name="slice, of 5, as digits").fill("4")
    assert page.locator(".panels figcaption").all_inner_texts() == [f"class {i}, slice 4" for i in range(4)]
    gradient = lossd.evaluate("dice", scores, labels, mode="multiclass").gradient
    page.locator(".panels figure").nth(3).get_by_text("Its numbers").click()
    first = page.locator(".panels figure").nth(3).locator(".numbers td").first
    first.wait_for()
    assert float(first.inner_text().replace("−", "-")) == pytest.approx(
        gradient[0, 3, 4, 0, 0], rel=5e-3
    )  # three digits are shown


def test_large_files_are_sent_in_binary_unless_somebody_says_otherwise(visit) -> None:
    page = opened(visit)
    types = []
    page.on("request", lambda request: request.method == "POST" and types.append(request.headers["content-type"]))
    values = RNG.normal(size=(2, 60_000)).astype(np.float32)
    after(page, lambda: drop(page, prediction__npy=npy(values[0]), target__npy=npy(values[1])))
    assert "safetensors" in types[-1]
    assert page.locator("[name='field-sent-as']:checked").input_value() == "safetensors"
    after(page, lambda: page.get_by_text("JSON", exact=True).click())
    assert types[-1] == "application/json"


def test_a_gradient_with_respect_to_something_else_is_not_drawn_beside_it(visit) -> None:
    page = visit("/losses/focal?with=bce", again=True)
    drawn(page)
    page.get_by_text("The gradient of bce is with respect to the probability and is not drawn.").wait_for()
    page.get_by_text("Table of values").click()
    page.wait_for_selector(".numbers tbody tr")
    heads = page.locator(".numbers thead th").all_inner_texts()
    assert heads == ["x", "focal", "gradient", "bce"]


def test_the_box_of_losses_to_compare_has_none_that_are_drawn_and_says_when_it_is_full(visit) -> None:
    pinned = "".join(f"&with=focal;gamma={3 + i}" for i in range(5))
    page = visit(f"/losses/focal?with=cross_entropy{pinned}", again=True)
    drawn(page)
    box = page.get_by_label("Compare with")
    offered = box.locator("option").all_inner_texts()
    assert "focal" not in offered
    assert "cross_entropy" not in offered
    assert box.is_enabled()
    with redrawn(page):
        page.get_by_role("spinbutton", name="γ, as digits").fill("8")
    with redrawn(page):
        page.get_by_text("Pin this curve").click()
    assert box.is_disabled()
    assert "8 curves" in box.locator("option").first.inner_text()


def test_a_parameter_that_is_refused_is_marked_where_it_was_set(visit) -> None:
    page = visit("/losses/focal", again=True)
    page.expected.append("422")
    drawn(page)
    digits = page.get_by_role("spinbutton", name="γ, as digits")
    digits.fill("-3")
    page.locator(".plots[data-stale]").wait_for()
    assert digits.get_attribute("aria-invalid") == "true"
    field = page.locator(".field", has=digits)
    assert field.locator(".bad").inner_text() == "Should be greater than or equal to 0, found -3."
    assert "previous curves" in page.locator(".drawing .notice").inner_text()
    with redrawn(page):
        digits.fill("3")
    assert digits.get_attribute("aria-invalid") is None
    assert page.locator(".plots[data-stale]").count() == 0


def test_an_address_with_a_parameter_of_another_kind_is_drawn_without_it(visit) -> None:
    page = visit("/losses/focal?gamma=abc", again=True)
    drawn(page)
    assert page.get_by_role("spinbutton", name="γ, as digits").input_value() == "2"


def test_nothing_of_another_model_is_left_when_the_model_is_changed(visit) -> None:
    page = visit("/landscape", again=True)
    page.wait_for_selector(".land[data-drawn]")
    page.wait_for_selector("#paths")
    page.route("**/v1/evaluate", lambda route: None)  # not answered while this looks
    page.get_by_text("Two classes").click()
    page.wait_for_function("() => !document.getElementById('paths')")
    assert page.locator("#best").inner_text() == ""
    page.unroute_all(behavior="ignoreErrors")


def test_who_comes_back_to_the_list_finds_it_where_it_was(visit) -> None:
    page = visit("/losses", again=True)
    page.wait_for_function("() => document.querySelectorAll('.thumb.drawn svg').length > 3")
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_function("() => scrollY === 1500")
    page.wait_for_timeout(100)
    page.evaluate("[...document.querySelectorAll('.tile a')].find((a) => a.textContent === 'dice').click()")
    drawn(page)
    assert page.evaluate("scrollY") == 0
    page.go_back()
    page.wait_for_selector(".tiles")
    page.wait_for_function("() => scrollY === 1500")
