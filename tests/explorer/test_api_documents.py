"""``/docs`` and ``/redoc``: pages of other libraries, in the explorer's theme."""

from __future__ import annotations

import pytest

from serving import Running

from .conftest import MARK_REPEATED, ONCE

# Faults of the libraries' markup, which no style mends: Swagger UI has a button within a button, for copying the path;
# ReDoc's field of the search and its lists of media types have no labels.
OF_THE_LIBRARIES = {"docs": ["nested-interactive"], "redoc": ["label", "select-name"]}
# All operations look alike: two of them have all kinds of parts.
OTHERS = "[data-section-id^='operation/']:not([data-section-id='operation/evaluate'], [data-section-id$='/create_run'])"


def opened(visit, service: Running, path: str, theme: str):
    page = visit("/nowhere", theme=theme)
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    page.goto(f"{service.url}/{path}")
    page.get_by_text("/v1/evaluate").first.wait_for()
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_api_s_documents_are_accessible(visit, service: Running, path: str, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = opened(visit, service, path, theme)
    page.evaluate(axe.axe_script)
    page.evaluate("rules => axe.configure({ rules })", ONCE)
    page.evaluate(MARK_REPEATED)
    left_out = {rule: {"enabled": False} for rule in OF_THE_LIBRARIES[path]}
    options = {"resultTypes": ["violations"], "selectors": False, "rules": left_out}
    found = page.evaluate("([exclude, options]) => axe.run({ exclude }, options)", [[[OTHERS]], options])["violations"]
    faults = [(v["id"], [n["html"] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
    assert faults == []


def test_redoc_has_the_theme_that_was_chosen_in_the_explorer(visit, service: Running) -> None:
    page = opened(visit, service, "redoc", "dark")
    colors = """() => [
      getComputedStyle(document.documentElement).backgroundColor,
      getComputedStyle(document.querySelector(".menu-content")).backgroundColor,
      getComputedStyle(document.querySelector("redoc h1")).color,
    ]"""
    dark, light = ["rgb(19, 21, 27)", "rgb(26, 29, 37)", "rgb(233, 234, 240)"], "rgb(27, 29, 36)"
    assert page.evaluate(colors) == dark  # the system's
    with page.expect_navigation():
        page.emulate_media(color_scheme="light")
    page.get_by_text("/v1/evaluate").first.wait_for()
    assert page.evaluate(colors)[2] == light
    page.evaluate("localStorage.setItem('lossd-theme', 'dark')")
    page.reload()
    page.get_by_text("/v1/evaluate").first.wait_for()
    assert page.evaluate(colors) == dark
