"""The landscape of a linear model: the service's losses over two parameters, and ways down by its gradients."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lossd

from .conftest import address, serious_faults, unfold

GRID = 49
SPANS = {"line": [(-3, 3), (-4, 4)], "direction": [(-5, 5), (-5, 5)]}


def opened(visit: Callable, query: str = "", **options: Any):
    page = visit(f"/landscape{query}", again=True, **options)
    page.wait_for_selector(".land[data-drawn]")
    return page


def after(page, act: Callable[[], object]) -> None:
    """Do something, and wait for what it changes to be drawn."""
    before = int(page.locator(".land[data-drawn]").get_attribute("data-drawn"))
    act()
    page.wait_for_function("n => document.querySelector('.land[data-drawn]').dataset.drawn > n", arg=before)


def points(page) -> np.ndarray:
    if not page.get_by_label("The points, one a line").is_visible():
        page.get_by_text("The points as text").click()
    text = page.get_by_label("The points, one a line").input_value()
    return np.array([[float(cell) for cell in line.split(",")] for line in text.splitlines()])


def inputs(model: str, loss: str, rows: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and target of the model with the parameters ``at``."""
    if model == "line":
        return (at[0] * rows[:, 0] + at[1]).astype(np.float32), rows[:, 1].astype(np.float32)
    scores = (rows[:, :2] @ at).astype(np.float32)
    if loss in ("multi_margin", "cross_entropy", "focal"):
        return np.stack([np.zeros_like(scores), scores], 1), rows[:, 2].astype(np.int64)
    return scores, rows[:, 2].astype(np.float32)


def value(model: str, loss: str, rows: np.ndarray, at: np.ndarray, **parameters: float) -> float:
    prediction, target = inputs(model, loss, rows, at)
    return float(lossd.evaluate(loss, prediction, target, outputs=["loss"], **parameters).loss)


def paths(page) -> list[dict[str, Any]]:
    rows = page.locator("#paths tbody tr").evaluate_all(
        "rows => rows.map(({ dataset }) => [dataset.at, dataset.losses])"
    )
    return [{"at": np.array(json.loads(at)), "loss": json.loads(losses)} for at, losses in rows]


LOSSES = {"line": ["mse", "mae", "huber"], "direction": ["bce_with_logits", "sigmoid_focal", "multi_margin"]}


@pytest.mark.parametrize("shown", [0, 1, 2])
@pytest.mark.parametrize("model", LOSSES)
def test_the_lowest_point_is_where_a_grid_search_finds_it(visit, model: str, shown: int) -> None:
    page = opened(visit, f"?model={model}&shown={shown}&steps=1")
    rows, loss = points(page), LOSSES[model][shown]
    *at, lowest = json.loads(page.locator("#best").get_attribute("data-at"))
    axes = [np.linspace(*span, GRID) for span in SPANS[model]]
    # One evaluation for the whole grid would be the page's own way; this one is point by point.
    every = {(a, b): value(model, loss, rows, np.array([a, b])) for a in axes[0][::6] for b in axes[1][::6]}
    best = min(every, key=every.__getitem__)
    assert lowest == pytest.approx(value(model, loss, rows, np.array(at)), rel=1e-4, abs=1e-6)
    assert lowest <= every[best] * (1 + 1e-5)
    steps = [axis[1] - axis[0] for axis in axes]
    near = [(at[0] + i * steps[0], at[1] + k * steps[1]) for i in range(-2, 3) for k in range(-2, 3)]
    assert all(value(model, loss, rows, np.array(place)) >= lowest * (1 - 1e-5) for place in near)
    page.get_by_text("The surface as numbers").click()
    page.wait_for_selector(".more .numbers tbody tr")
    cells = page.locator(".more .numbers tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((cell) => Number(cell.textContent.replace('−', '-'))))"
    )
    heads = page.locator(".more .numbers thead th").all_inner_texts()[1:]
    assert len(cells) == len(heads) == 9
    for b, *losses in cells[::3]:
        for a, found in list(zip(heads, losses, strict=True))[::4]:
            expected = value(model, loss, rows, np.array([float(a.replace("−", "-")), b]))
            assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("model", LOSSES)
def test_each_path_is_gradient_descent_and_descends(visit, model: str) -> None:
    page = opened(visit, f"?model={model}&rate=0.05&steps=40")
    rows = points(page)
    features = np.stack([rows[:, 0], np.ones(len(rows))], 1) if model == "line" else rows[:, :2]
    found = paths(page)
    assert len(found) == 3
    for loss, path in zip(LOSSES[model], found, strict=True):
        at = path["at"][0]
        assert len(path["loss"]) == len(path["at"]) == 41
        assert np.all(np.diff(path["loss"]) <= 1e-6), loss
        assert path["loss"][-1] < 0.9 * path["loss"][0]
        for step in range(40):
            prediction, target = inputs(model, loss, rows, at)
            result = lossd.evaluate(loss, prediction, target, outputs=["loss", "gradient"])
            assert path["loss"][step] == pytest.approx(float(result.loss), rel=1e-5), (loss, step)
            slope = result.gradient if result.gradient.ndim == 1 else result.gradient[:, 1]
            at = at - 0.05 * features.T.astype(np.float64) @ slope.astype(np.float64)
            np.testing.assert_allclose(path["at"][step + 1], at, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", LOSSES)
def test_a_frame_takes_one_round_trip(visit, model: str) -> None:
    """The surface and each loss's path are asked for together, so that a slow network delays a frame only once."""
    page = opened(visit, f"?model={model}&steps=60")
    held = []
    page.route(re.compile("/v1/evaluate|descent.json"), lambda route: held.append(route))
    before = page.locator(".land[data-drawn]").get_attribute("data-drawn")
    page.locator(".choice label", has_text="clean" if model == "line" else "imbalance").click()
    for _ in range(100):
        page.wait_for_timeout(50)
        if len(held) == 4:
            break
    requested_paths = sorted(route.request.url.partition("?")[0].rpartition("/v1/")[2] for route in held)
    assert requested_paths == sorted(["evaluate", *(f"losses/{name}/descent.json" for name in LOSSES[model])])
    assert page.locator(".scroll[data-stale]").count() == 1  # the old table is dimmed
    for route in held:
        route.continue_()
    page.wait_for_function("n => document.querySelector('.land[data-drawn]').dataset.drawn !== n", arg=before)
    assert len(held) == 4
    assert page.locator(".scroll[data-stale]").count() == 0


def test_too_long_a_step_diverges_and_is_called_so(visit) -> None:
    page = opened(visit, "?rate=2&steps=20")
    assert "diverges" in page.locator("#paths tbody tr").first.inner_text()
    assert "diverges" not in page.locator("#paths tbody tr").nth(1).inner_text()


def test_sliders_choose_rate_and_steps_and_the_address_keeps_them(visit) -> None:
    page = opened(visit, "?steps=5")
    after(page, lambda: page.get_by_role("slider", name="steps").fill("8"))
    after(page, lambda: page.get_by_role("slider", name="step size").fill("0.2"))
    before = paths(page)
    assert [len(path["at"]) for path in before] == [9, 9, 9]
    assert "rate=0.2" in address(page)
    assert "steps=8" in address(page)
    page.reload()
    page.wait_for_selector(".land[data-drawn]")
    for old, new in zip(before, paths(page), strict=True):
        np.testing.assert_allclose(old["at"], new["at"], rtol=1e-5)  # compiled passes may have come meanwhile


def double_click(page, x: float, y: float, at: float) -> None:
    """Two clicks in a tenth of a second by their own account, however long the page takes over the first."""
    mouse = page.context.new_cdp_session(page)
    for i, kind in enumerate(["mousePressed", "mouseReleased"] * 2):
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 + i // 2, "timestamp": at + i / 30}
        mouse.send("Input.dispatchMouseEvent", event)
    mouse.detach()


def test_points_are_added_dragged_and_removed_by_mouse(visit) -> None:
    page = opened(visit, "?model=direction&steps=5")
    count = len(points(page))
    page.evaluate("() => document.fonts.ready.then(() => scrollTo(0, 0))")
    box = page.locator(".data").bounding_box()
    spot = (box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.05)
    after(page, lambda: page.mouse.click(*spot))
    added = points(page)
    assert len(added) == count + 1
    np.testing.assert_allclose(added[-1], [2.7, 2.7, 1], atol=0.05)

    held_at = []

    def drag() -> None:
        page.mouse.move(*spot)
        held_at.append(time.time())
        page.mouse.down()
        page.mouse.move(spot[0] - 40, spot[1] + 10, steps=3)
        page.mouse.move(box["x"] + box["width"] * 0.05, spot[1], steps=3)
        page.mouse.up()

    after(page, drag)
    np.testing.assert_allclose(points(page)[-1], [-2.7, 2.7, 1], atol=0.05)
    # Even this soon after it was held elsewhere, the first of two clicks takes nothing away yet.
    after(page, lambda: double_click(page, box["x"] + box["width"] * 0.05, spot[1], held_at[0] + 0.2))
    assert len(points(page)) == count
    at = json.loads(page.locator("#best").get_attribute("data-at"))
    page.reload()
    page.wait_for_selector(".land[data-drawn]")
    assert json.loads(page.locator("#best").get_attribute("data-at")) == at


def test_it_all_works_by_keyboard(visit) -> None:
    page = opened(visit, "?steps=5")
    before = points(page)
    after(page, lambda: page.get_by_role("button", name="Add one in the middle").press("Enter"))
    for key in ("ArrowRight", "ArrowUp", "Shift+ArrowUp"):
        after(page, lambda key=key: page.keyboard.press(key))
    np.testing.assert_allclose(points(page), [*before, [0.1, 1.1]])
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == f"Point {len(before) + 1} of {len(before) + 1}: x 0.1, y 1.1"
    page.keyboard.press("PageDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Point 1 of")
    after(page, lambda: page.keyboard.press("Delete"))
    np.testing.assert_allclose(points(page), [*before[1:], [0.1, 1.1]])
    after(page, lambda: page.get_by_label("The points, one a line").fill("0, 0\n1, 1\n2, 2"))
    *at, lowest = json.loads(page.locator("#best").get_attribute("data-at"))
    assert (at, lowest) == (pytest.approx([1, 0], abs=1e-9), pytest.approx(0, abs=1e-9))
    start = page.get_by_role("application", name=re.compile("Start of the descent"))
    start.focus()
    after(page, lambda: page.keyboard.press("Shift+ArrowRight"))
    np.testing.assert_allclose(paths(page)[0]["at"][0], [-1, -2.5])


def test_other_losses_and_their_parameters(visit) -> None:
    page = opened(visit, "?steps=5")
    after(page, lambda: page.get_by_label("Add a loss").select_option("quantile"))
    after(page, lambda: page.get_by_role("slider", name="q", exact=True).fill("0.9"))
    rows = points(page)
    *at, lowest = json.loads(page.locator("#best").get_attribute("data-at"))
    assert lowest == pytest.approx(value("line", "quantile", rows, np.array(at), q=0.9), rel=1e-4)
    assert page.get_by_label("Add a loss").is_disabled()
    after(page, lambda: page.get_by_role("button", name="Remove mse").click())
    assert [row.split()[0] for row in page.locator("#paths tbody tr").all_inner_texts()] == [
        "mae",
        "huber",
        "quantile,",
    ]


def test_the_last_of_many_moves_is_what_is_drawn_however_slow_the_first_answer(visit) -> None:
    page = opened(visit, "?steps=5")
    held = []

    def delay(route):
        if not held:
            held.append(route)
        else:
            route.fallback()

    page.route("**/v1/evaluate", delay)
    text = page.get_by_text("The points as text")
    text.click()
    area = page.get_by_label("The points, one a line")
    area.fill("0, 0\n1, -1")
    area.fill("0, 0\n1, 1\n2, 2")
    # A browser may tell of each line that is filled in, so further frames may be drawn before the last.
    page.wait_for_function(
        """() => {
          const [slope, intercept] = JSON.parse(document.querySelector("#best").dataset.at);
          return Math.abs(slope - 1) < 1e-9 && Math.abs(intercept) < 1e-9;
        }"""
    )
    assert held
    held.pop().fallback()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    *at, _ = json.loads(page.locator("#best").get_attribute("data-at"))
    assert at == pytest.approx([1, 0], abs=1e-9)


@pytest.mark.parametrize("model", LOSSES)
def test_it_has_no_serious_fault_and_fits_a_phone(visit, model: str) -> None:
    page = opened(visit, f"?model={model}&steps=5", theme="dark")
    unfold(page)
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")
