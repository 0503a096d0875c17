"""What a reader sees at first sight: order, whole texts, tables on a phone."""

from __future__ import annotations

import httpx
import pytest

from serving import Running

from .conftest import drawn

PHONE = (390, 844)


def test_the_most_used_losses_are_the_first_cards_of_each_family(visit) -> None:
    page = visit("/losses", again=True)
    page.wait_for_selector(".tile:visible")
    first = page.locator(".group").evaluate_all(
        """groups => Object.fromEntries(groups.map((group) => [
          group.querySelector("h2").firstChild.textContent,
          [...group.querySelectorAll("h3")].slice(0, 3).map((heading) => heading.textContent),
        ]))"""
    )
    assert first["Regression"] == ["mse", "mae", "huber"]
    assert first["Classification"][:2] == ["cross_entropy", "focal"]
    assert first["Segmentation"][0] == "dice"
    assert first["Boxes"][0] == "iou"


def test_a_long_axis_and_a_long_formula_are_read_whole_on_a_phone(visit) -> None:
    page = visit("/losses/dpo", again=True, size=PHONE)
    drawn(page)
    name = page.locator(".axis-name:visible")
    assert name.inner_text() == "log-ratio of the chosen answer minus the rejected one's"
    assert name.evaluate("name => name.scrollWidth <= name.clientWidth")
    formula = page.get_by_role("region", name="The formula")
    page.wait_for_function("region => region.dataset.more === 'right'", arg=formula.element_handle())
    formula.evaluate("region => region.scrollTo(region.scrollWidth, 0)")
    page.wait_for_function("region => region.dataset.more === 'left'", arg=formula.element_handle())


def test_a_formula_that_fits_has_no_end_that_fades(visit) -> None:
    page = visit("/nowhere", size=PHONE)
    page.get_by_text("There is no view at /nowhere").wait_for()
    fonts = []
    page.route("**/katex/fonts/**", lambda font: fonts.append(font))  # they arrive late
    page.evaluate("location.hash = '/losses/focal'")
    drawn(page)
    formula = page.get_by_role("region", name="The formula")
    page.wait_for_function("region => region.dataset.more === 'right'", arg=formula.element_handle())
    for font in sorted(fonts, key=lambda font: "Main" in font.request.url):  # one after the other
        font.continue_()
        page.wait_for_timeout(200)
    page.evaluate("() => document.fonts.ready")
    assert formula.evaluate("region => region.scrollWidth === region.clientWidth")
    page.wait_for_function("region => region.dataset.more === ''", arg=formula.element_handle())


def test_what_rounding_leaves_of_zero_is_zero_in_the_code(visit) -> None:
    page = visit("/losses/huber?with=", again=True)
    drawn(page)
    code = page.locator("pre.request").first
    code.get_by_text('"prediction":[-2.4,0,2.4]').wait_for()


def test_a_run_that_is_not_there_leads_to_all_runs(visit) -> None:
    page = visit("/runs/nothing-of-this-name", again=True)
    page.expected.append("404")
    page.get_by_role("alert").get_by_role("link", name="All runs").click()
    page.wait_for_function("() => document.querySelector('h1')?.textContent === 'Runs'")


def test_the_foot_of_a_short_page_is_at_the_bottom(visit) -> None:
    page = visit("/nowhere", again=True, size=(1280, 860))
    page.get_by_text("There is no view at /nowhere").wait_for()
    box = page.locator("footer").bounding_box()
    assert box["y"] + box["height"] == pytest.approx(860, abs=1)


def test_tables_of_the_manual_are_read_on_a_phone(visit, service: Running) -> None:
    page = visit("/nowhere", size=PHONE)
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    page.goto(f"{service.url}/manual/quickstart")
    block, button = (
        page.locator(".copied pre").first.bounding_box(),
        page.locator(".copied button").first.bounding_box(),
    )
    assert block["x"] + block["width"] <= button["x"]  # the button hides no code
    page.goto(f"{service.url}/manual/settings")
    cell = page.locator("main td", has_text="Address to listen on").first
    box = cell.bounding_box()
    assert (box["x"], box["x"] + box["width"]) == (pytest.approx(16, abs=8), pytest.approx(374, abs=8))
    page.goto(f"{service.url}/problems")
    box = page.locator("main td", has_text="The body does not match its Content-Type").first.bounding_box()
    assert (box["x"], box["x"] + box["width"]) == (pytest.approx(16, abs=8), pytest.approx(374, abs=8))
    page.goto(f"{service.url}/manual/performance")
    page.wait_for_function("() => document.querySelector('main .scroll')?.dataset.more === 'right'")


def test_the_shape_of_an_input_is_on_one_line_on_a_phone(visit) -> None:
    page = visit("/try?loss=dice", again=True, size=PHONE)
    page.get_by_text("1 × 2 × 12 × 12 · float32").wait_for()
    pieces = page.locator(".slots .field-head :is(.mono, .number)").evaluate_all(
        "pieces => pieces.map((piece) => [piece.textContent, piece.getBoundingClientRect().height])"
    )
    assert len(pieces) > 4
    assert [text for text, height in pieces if height > 30] == []


def test_a_small_number_below_zero_has_a_minus_in_its_exponent(visit) -> None:
    page = visit("/nowhere", again=True)
    short = """async () => {
      const script = document.querySelector('script[type=module]').src;
      return (await import(script.replace('app.pack.js', 'plots.js'))).short(-6.57e-4);
    }"""
    assert page.evaluate(short) == "−6.57e−4"


def test_texts_of_parameters_and_inputs_have_no_markup_of_a_file(service: Running) -> None:
    losses = httpx.get(f"{service.url}/v1/losses").json()["losses"]
    texts = {
        f"{loss['name']}.{name}": text
        for loss in losses
        for name, text in [
            *((name, schema.get("description") or "") for name, schema in loss["parameters"].items()),
            *((entry["name"], entry["summary"]) for entry in loss["inputs"]),
        ]
    }
    assert [name for name, text in texts.items() if "\\" in text] == []
