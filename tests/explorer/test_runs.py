"""The pages of runs in a browser, with real runs: two models of the digits, one better than the other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from lossd_client import LossClient
from serving import Running, running

from .conftest import address, serious_faults, unfold

GOOD, BAD, OTHER, OPEN, EVEN, ODD = (
    "least-squares",
    "centroids",
    "other-labels",
    "half-counted",
    "even-good",
    "even-bad",
)
HELD_OUT = 900
DIGITS, PARITY = "digits-test@1", "parity@1"
VIEWS = {
    "/runs": "Runs",
    f"/runs/{GOOD}": GOOD,
    f"/runs/{EVEN}": EVEN,
    f"/compare?run={BAD}&run={GOOD}": "Compare runs",
    f"/compare?run={ODD}&run={EVEN}": "Compare runs",
}


def models() -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The scores of two models for the digits held out, the digits, and how much ink each has."""
    images, digits = load_digits(return_X_y=True)
    known, rest = slice(HELD_OUT, None), slice(HELD_OUT)
    one_hot = np.eye(10)[digits[known]]
    with_bias = np.column_stack([images, np.ones(len(images))])
    weights = np.linalg.lstsq(with_bias[known], one_hot, rcond=None)[0]
    centroids = np.stack([images[known][digits[known] == digit][:5].mean(0) for digit in range(10)])
    distances = ((images[rest, None] - centroids) ** 2).mean(2)
    return {GOOD: 8 * (with_bias[rest] @ weights), BAD: -distances / 4}, digits[rest], images[rest].sum(1)


SCORES, LABELS, INK = models()
LIGHT = np.median(INK) > INK


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[LossClient]:
    with LossClient(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def runs(client: LossClient) -> LossClient:
    """The service with runs of the digits and of their parity."""
    definition = {"task": "multiclass", "dataset": DIGITS, "rows": HELD_OUT, "slices": {"ink": ["light", "dark"]}}
    ink = np.where(LIGHT, 0, 1)
    for name, scores, labels in (
        (GOOD, SCORES[GOOD], LABELS),
        (BAD, SCORES[BAD], LABELS),
        (OTHER, SCORES[GOOD], (LABELS + (np.arange(HELD_OUT) % 90 == 0)) % 10),
        (OPEN, SCORES[GOOD], LABELS),
    ):
        run = client.run(name, **definition, tags={"commit": "4f1c2aa"})
        for first in range(0, HELD_OUT if name != OPEN else 300, 300):
            rows = slice(first, first + 300)
            run.add(scores[rows], labels[rows], first=first, slices={"ink": ink[rows]})
        if name != OPEN:
            run.seal()
    for name, model in ((EVEN, GOOD), (ODD, BAD)):
        scores = SCORES[model][:, ::2].max(1) - SCORES[model][:, 1::2].max(1)
        run = client.run(
            name, task="binary", dataset=PARITY, rows=HELD_OUT, metrics=["default", "auroc", "ece", "reliability"]
        )
        run.add(scores, (LABELS + 1) % 2, first=0)
        run.seal()
    return client


@pytest.fixture
def http(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as http:
        yield http


def cells(page, table: str) -> dict[str, list[str]]:
    """The rows of a table by their heading, with the text of each further cell."""
    page.locator(f"{table} tbody tr").first.wait_for()
    rows = page.locator(f"{table} tbody tr").evaluate_all(
        """rows => rows.map((row) => [...row.children].filter((cell) => cell.textContent && !cell.querySelector("svg"))
          .map((cell) => (cell.tagName === "TH" ? cell.firstChild : cell).textContent))"""
    )
    return {row[0]: row[1:] for row in rows}


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def ends(text: str) -> list[float]:
    return [number(end) for end in text.split(" to ")]


# Where the decimal points of each column of each table are.
POINTS = """
() => {
  const columns = {};
  for (const [i, table] of document.querySelectorAll(".fold").entries())
    for (const end of table.querySelectorAll("td.number:not(:has(.end)), .end")) {
      const at = /^[+−]?\\d+(?=\\.)/.exec(end.textContent)?.[0].length;
      if (!at || !end.getClientRects().length) continue;
      const point = document.createRange();
      point.setStart(end.firstChild, at);
      point.setEnd(end.firstChild, at + 1);
      const name = `${i}, ${end.closest("td").cellIndex}, ${end.nextSibling ? "first" : "last"}`;
      (columns[name] ??= []).push(Math.round(point.getBoundingClientRect().left));
    }
  return columns;
}
"""


@pytest.mark.parametrize("path", [f"/runs/{GOOD}", f"/compare?run={BAD}&run={GOOD}"])
def test_numbers_of_a_column_line_up_at_the_decimal_point(visit, runs, path: str) -> None:
    page = visit(path, again=True)
    page.locator(".fold tbody tr").first.wait_for()
    unfold(page)
    columns = page.evaluate(POINTS)
    assert sum(len(places) > 3 for places in columns.values()) > 3
    assert {name: places for name, places in columns.items() if max(places) - min(places) > 1} == {}


@pytest.mark.parametrize("path", VIEWS)
def test_a_page_of_runs_has_no_serious_fault_in_light_or_dark_and_fits_a_phone(visit, runs, path: str) -> None:
    page = visit(path, again=True)
    page.expected.append("409")  # the browser notes that the service refuses to compare the run of other labels
    page.locator(".fold tbody tr").first.wait_for()
    assert page.locator("h1").inner_text() == VIEWS[path]
    if "even" in path:
        page.locator(".diagram .plots[data-drawn]").nth(2).wait_for()
    unfold(page)
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")


def test_runs_are_ranked_on_their_data_set_and_those_of_other_labels_stand_apart(visit, runs) -> None:
    page = visit("/runs", again=True)
    page.expected.append("409")
    group = page.locator(".group", has=page.get_by_role("heading", name=DIGITS))
    group.get_by_text("best", exact=True).wait_for()
    first = group.locator(".ranking").first
    assert first.locator("tbody th").all_inner_texts() == [GOOD, BAD]
    assert first.locator(".verdict-cell").all_inner_texts() == ["best", "worse"]
    values = [number(text) for text in first.locator(".value-cell").all_inner_texts()]
    predictions = [SCORES[name].argmax(1) for name in (GOOD, BAD)]
    assert values == pytest.approx([f1_score(LABELS, each, average="macro") for each in predictions], abs=1e-6)
    apart = group.locator(".ranking", has_text=OTHER)
    assert "targets" in apart.locator(".apart").inner_text()
    assert "This run is open" in group.locator(".ranking", has_text=OPEN).locator(".apart").inner_text()
    assert "300 of 900" in group.locator(".ranking", has_text=OPEN).locator(".rows-cell").inner_text()


def test_another_metric_ranks_by_it_and_stays_in_the_address(visit, runs) -> None:
    page = visit("/runs", again=True)
    page.expected.append("409")
    choice = page.get_by_label(f"Metric of {PARITY}")
    choice.select_option("ece")
    names = page.locator(".group", has=page.get_by_role("heading", name=PARITY)).locator("tbody th")
    values = page.locator(".group", has=page.get_by_role("heading", name=PARITY)).locator(".value-cell")
    numbers = [number(text) for text in values.all_inner_texts()]
    assert names.count() == 2
    assert numbers == sorted(numbers), "a lower calibration error is better"
    assert "metric=ece" in address(page)


def test_two_chosen_runs_are_compared_with_the_first_as_the_baseline(visit, runs) -> None:
    page = visit("/runs", again=True)
    page.expected.append("409")
    button = page.get_by_role("button", name="Compare")
    page.get_by_label(f"Choose {BAD}", exact=True).check()
    assert button.is_disabled()
    page.get_by_label(f"Choose {GOOD}", exact=True).check()
    page.get_by_text(f"{GOOD} against {BAD}").wait_for()
    button.click()
    page.locator(".sentence").wait_for()
    assert address(page).endswith(f"#/compare?run={BAD}&run={GOOD}")


def test_a_run_shows_what_the_service_answers(visit, runs, http: httpx.Client) -> None:
    document = http.get(f"/v1/runs/{GOOD}").json()
    result = document["result"]
    page = visit(f"/runs/{GOOD}", again=True)
    scores = cells(page, ".scores")
    predicted = SCORES[GOOD].argmax(1)
    assert number(scores["accuracy"][0]) == pytest.approx(accuracy_score(LABELS, predicted), abs=1e-6)
    assert number(scores["f1.macro"][0]) == pytest.approx(f1_score(LABELS, predicted, average="macro"), abs=1e-6)
    for name in ("accuracy", "f1.macro"):
        interval = result["intervals"][name]
        width = interval["high"] - interval["low"]
        assert ends(scores[name][1]) == pytest.approx([interval["low"], interval["high"]], abs=width / 20)
    counts = page.locator(".heat td.number").all_inner_texts()
    assert list(map(number, counts)) == confusion_matrix(LABELS, predicted).ravel().tolist()
    shown = cells(page, ".per-class")
    expected = f1_score(LABELS, predicted, average=None)
    order = [int(name.removeprefix("class ")) for name in shown]
    assert order == sorted(range(10), key=lambda digit: expected[digit]), "the worst class is first"
    assert page.locator("pre.request").inner_text() == document["signature"]


def test_slices_are_whiskers_with_the_worst_first(visit, runs) -> None:
    page = visit(f"/runs/{GOOD}", again=True)
    shown = cells(page, ".slices")
    right = SCORES[GOOD].argmax(1)
    expected = {
        f"ink = {name}": f1_score(LABELS[rows], right[rows], average="macro")
        for name, rows in (("light", LIGHT), ("dark", ~LIGHT))
    }
    assert list(shown) == sorted(expected, key=expected.__getitem__)
    for name, (rows, value, interval) in shown.items():
        assert number(rows) == (LIGHT if name.endswith("light") else ~LIGHT).sum()
        assert number(value) == pytest.approx(expected[name], abs=1e-6)
        low, high = ends(interval)
        assert low < expected[name] < high
    assert page.locator(".slices svg.whisker .reach").count() == 2


def test_curves_are_read_off_by_keyboard_with_their_thresholds(visit, runs) -> None:
    page = visit(f"/runs/{EVEN}", again=True)
    curve = page.get_by_role("slider", name="ROC curve")
    curve.wait_for()
    page.locator(".diagram .plots[data-drawn]").first.wait_for()
    curve.focus()
    page.keyboard.press("Home")
    text = curve.get_attribute("aria-valuetext")
    page.keyboard.press("PageDown")
    first, rate = (
        curve.get_attribute("aria-valuetext"),
        r"false positive rate ([\d.e−]+), true positive rate ([\d.e−]+)",
    )
    assert re.search(rate, text)
    page.keyboard.press("End")
    assert re.search(rate, curve.get_attribute("aria-valuetext")).groups() == ("1", "1")
    assert first is not None
    scores = SCORES[GOOD][:, ::2].max(1) - SCORES[GOOD][:, 1::2].max(1)
    card = page.locator(".diagram", has=curve)
    card.locator("summary").click()
    rows = [[number(cell) for cell in row] for row in cells_of(card) if row[0] != "∞"]
    positive = (LABELS + 1) % 2 == 1
    probability = 1 / (1 + np.exp(-scores))
    assert len(rows) > 20
    for threshold, wrong, right in rows[1:-1]:
        decided = probability >= threshold - 5e-7 * threshold
        assert (wrong, right) == pytest.approx((decided[~positive].mean(), decided[positive].mean()), abs=0.005)


def cells_of(card) -> list[list[str]]:
    card.locator(".numbers tbody tr").first.wait_for()
    return card.locator(".numbers tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.children].map((cell) => cell.textContent))"
    )


def test_a_comparison_shows_the_verdicts_and_the_sentence_of_the_service(visit, runs, http: httpx.Client) -> None:
    document = http.get("/v1/compare", params=[("run", BAD), ("run", GOOD)]).json()
    [comparison] = document["comparisons"]
    page = visit(f"/compare?run={BAD}&run={GOOD}", again=True)
    page.locator(".sentence").wait_for()
    assert page.locator(".sentence").inner_text() == f"{comparison['sentence']}."
    shown = cells(page, ".metrics-card > .scroll .differences")
    expected = {name: each for name, each in comparison["metrics"].items() if name in shown}
    assert {"accuracy", "f1.macro"} <= set(expected)
    words = {"b": "better", "a": "worse", "undecided": "undecided", None: None}
    for name, (baseline, value, difference, interval, _, *verdict) in shown.items():
        entry = expected[name]
        width = entry["high"] - entry["low"]
        assert (number(baseline), number(value)) == pytest.approx((entry["baseline"], entry["value"]), rel=1e-5)
        assert number(difference) == pytest.approx(entry["difference"], abs=width / 20)
        assert ends(interval) == pytest.approx([entry["low"], entry["high"]], abs=width / 20)
        assert verdict == [words[entry["verdict"]]]
    accuracies = [accuracy_score(LABELS, SCORES[name].argmax(1)) for name in (BAD, GOOD)]
    assert number(shown["accuracy"][2]) == pytest.approx(accuracies[1] - accuracies[0], abs=5e-3)
    assert shown["accuracy"][-1] == "better"
    assert len(cells(page, ".classes-card .differences")) == 10
    assert set(cells(page, ".slices-card .differences")) == {"ink = light", "ink = dark"}
    page.get_by_role("link", name="Swap").click()
    page.locator(".compared tr").first.get_by_text(GOOD).wait_for()
    assert cells(page, ".metrics-card > .scroll .differences")["accuracy"][-1] == "worse"


def test_curves_of_compared_runs_are_overlaid(visit, runs) -> None:
    page = visit(f"/compare?run={ODD}&run={EVEN}", again=True)
    card = page.locator(".diagram", has=page.get_by_role("heading", name="ROC curve"))
    card.locator(".plots[data-drawn]").wait_for()
    assert [text.strip() for text in card.locator(".legend li").all_inner_texts()] == [ODD, EVEN]


def test_runs_that_cannot_be_compared_are_told_why(visit, runs) -> None:
    page = visit(f"/compare?run={GOOD}&run={OTHER}", again=True)
    page.expected.append("409")
    notice = page.get_by_role("alert").filter(has_text="These runs cannot be compared")
    notice.wait_for()
    assert "targets" in notice.inner_text()


def test_what_a_run_s_page_draws_can_be_saved_as_the_service_draws_it(visit, runs: LossClient) -> None:
    page = visit(f"/runs/{GOOD}", again=True)
    page.get_by_role("heading", name="Confusion matrix").wait_for()
    for heading, name in (("Slices", "slices"), ("Confusion matrix", "confusion")):
        card = page.locator("section.card", has=page.get_by_role("heading", name=heading, exact=True))
        with page.expect_download() as saved:
            card.get_by_role("button", name="Save as SVG").click()
        assert saved.value.suggested_filename == f"{GOOD}-{name}.svg"
        assert "<svg" in saved.value.path().read_text()
    page = visit(f"/runs/{EVEN}", again=True)
    for heading, name in (("ROC curve", "roc"), ("Precision and recall", "pr"), ("Reliability", "reliability")):
        card = page.locator("section.diagram", has=page.get_by_role("heading", name=heading))
        with page.expect_download() as saved:
            card.get_by_role("button", name="Save as SVG").click()
        assert saved.value.suggested_filename == f"{EVEN}-{name}.svg"
        assert "<svg" in saved.value.path().read_text()


def test_a_picture_that_cannot_be_saved_says_why(visit, runs: LossClient) -> None:
    page = visit(f"/runs/{GOOD}", again=True)
    page.expected.append("503")
    refusal = {"title": "Unavailable", "detail": "No picture can be drawn now.", "status": 503}
    page.route("**/plot.svg?*", lambda route: route.fulfill(status=503, json=refusal))
    page.locator("section.card", has=page.get_by_role("heading", name="Slices", exact=True)).get_by_role(
        "button", name="Save as SVG"
    ).click()
    page.get_by_role("alert").filter(has_text="No picture can be drawn now.").wait_for()


def test_an_open_run_is_followed_and_what_the_reader_does_stays(visit, runs: LossClient) -> None:
    ink = np.where(LIGHT, 0, 1)
    slices = {"ink": ["light", "dark"]}
    run = runs.run("followed", task="multiclass", dataset="digits-live@1", rows=HELD_OUT, slices=slices)
    run.add(SCORES[GOOD][:300], LABELS[:300], first=0, slices={"ink": ink[:300]})
    page = visit("/runs/followed", again=True)
    statuses: list[int] = []
    page.on("response", lambda answer: statuses.append(answer.status) if "/v1/runs/followed" in answer.url else None)
    page.get_by_text("300 of 900 rows are counted.").wait_for()
    assert "300–899" in page.locator("main").inner_text()
    page.get_by_text("Micro and weighted averages").click()
    choice = page.get_by_label("Metric of the classes")
    choice.select_option("recall")
    choice.focus()
    page.evaluate("() => { scrollTo(0, 500); document.querySelector('.scores tbody tr').mark = 'the same row'; }")
    run.add(SCORES[GOOD][300:600], LABELS[300:600], first=300, slices={"ink": ink[300:600]})
    page.get_by_text("600 of 900 rows are counted.").wait_for()
    accuracy = accuracy_score(LABELS[:600], SCORES[GOOD][:600].argmax(1))
    page.wait_for_function(
        "shown => document.querySelector('.scores .value-cell').textContent === shown",
        arg=f"{accuracy:.6g}",
    )
    assert page.evaluate("scrollY") == 500
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Metric of the classes"
    assert choice.input_value() == "recall"
    assert page.evaluate("document.querySelector('.scores tbody tr').mark") == "the same row"
    assert page.locator("details", has_text="Micro and weighted averages").get_attribute("open") is not None
    page.wait_for_function("() => performance.now() > 0")
    with page.expect_response(lambda answer: answer.status == 304 and answer.url.endswith("/v1/runs/followed")):
        pass
    assert statuses.count(200) <= 3, "what has not changed is not sent again"


def test_without_a_run_the_page_has_commands_that_make_one(visit, service: Running, http: httpx.Client) -> None:
    page = visit("/nowhere", again=True)
    page.expected.append("409")
    page.route("**/v1/runs?*", lambda route: route.fulfill(json={"runs": [], "next": None}))
    page.goto(f"{service.url}/#/runs")
    commands = page.get_by_role("region", name="Commands that make a run")
    commands.wait_for()
    done = subprocess.run(["bash", "-ec", commands.inner_text()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    page.unroute("**/v1/runs?*")
    page.get_by_role("link", name="first", exact=True).wait_for()  # by itself
    assert json.loads(http.get("/v1/runs/first").text)["status"] == "sealed"
    http.delete("/v1/runs/first")


def test_a_service_without_runs_says_so(visit) -> None:
    with running(engine="inline", runs="off") as without:
        page = visit("/runs", url=without.url)
        page.expected.append("404")
        page.get_by_text("This service keeps no runs", exact=True).wait_for()
        assert "its setting runs is off" in page.locator("main").inner_text()
