"""``/docs`` and ``/redoc``: pages of other libraries, in the explorer's theme."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from serving import Running

from .conftest import serious_faults_of

# Faults of the libraries' markup, which no style mends: Swagger UI has a button within a button, for copying the path;
# ReDoc's field of the search and its lists of media types have no labels.
OF_THE_LIBRARIES = {"docs": ["nested-interactive"], "redoc": ["label", "select-name"]}
# All operations look alike: these have all kinds of parts, and each method.
SOME = ("/v1/evaluate", "/v1/runs/{run}", "/v1/runs/{run}/batches/{batch}")

COLORS = {
    "docs": "() => [getComputedStyle(document.documentElement).backgroundColor]",
    "redoc": """() => [
      getComputedStyle(document.documentElement).backgroundColor,
      getComputedStyle(document.querySelector(".menu-content")).backgroundColor,
      getComputedStyle(document.querySelector("redoc h1")).color,
    ]""",
}
SEEN = {
    "docs": {"dark": ["rgb(28, 32, 34)"], "light": ["rgba(0, 0, 0, 0)"]},
    "redoc": {
        "dark": ["rgb(19, 21, 27)", "rgb(26, 29, 37)", "rgb(233, 234, 240)"],
        "light": ["rgba(0, 0, 0, 0)", "rgb(250, 249, 246)", "rgb(27, 29, 36)"],
    },
}


def open_document(page, service: Running, path: str) -> None:
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    page.goto(f"{service.url}/{path}")
    page.get_by_text("/v1/evaluate").first.wait_for()


def shorten(route) -> None:
    """Answer with some operations of the OpenAPI document: drawing all takes much of a test's processor time."""
    document = route.fetch().json()
    route.fulfill(json=document | {"paths": {path: document["paths"][path] for path in SOME}})


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_api_s_documents_load_nothing_from_elsewhere_and_complain_of_nothing(
    visit, service: Running, path: str
) -> None:
    page = visit("/nowhere")
    open_document(page, service, path)
    page.wait_for_load_state("networkidle")  # what it complains of is found by ``visit``


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_api_s_documents_have_the_theme_that_was_chosen_and_are_accessible_in_each(
    visit, service: Running, path: str
) -> None:
    def drawn() -> list[str]:
        page.get_by_text("/v1/evaluate").first.wait_for()
        page.evaluate("() => Promise.allSettled(document.getAnimations().map((each) => each.finished))")
        found: list[str] = page.evaluate(COLORS[path])
        return found

    page = visit("/nowhere", theme="light")
    page.route("**/openapi.json", shorten)
    page.evaluate("localStorage.setItem('lossd-theme', 'dark')")
    open_document(page, service, path)
    assert drawn() == SEEN[path]["dark"], "the theme that was chosen in the explorer"
    assert serious_faults_of(page, "dark") == []
    page.evaluate("localStorage.removeItem('lossd-theme')")
    page.emulate_media(color_scheme="dark")
    assert drawn() == SEEN[path]["dark"], "the system's theme"
    with page.expect_navigation() if path == "redoc" else nullcontext():  # its colours cannot change later
        page.emulate_media(color_scheme="light")
    page.wait_for_function("() => !document.documentElement.classList.contains('dark-mode')")
    assert drawn() == SEEN[path]["light"], "the system's theme"
    assert serious_faults_of(page, "light", left_out=OF_THE_LIBRARIES[path]) == []
    page.wait_for_load_state("networkidle")
