"""``/docs`` and ``/redoc``: pages of other libraries, in the explorer's theme."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from serving import Running

from .conftest import serious_faults_of

# Faults of the libraries' markup, which no style mends: Swagger UI has a button within a button, for copying the path;
# ReDoc's field of the search and its lists of media types have no labels.
OF_THE_LIBRARIES = {"docs": ["nested-interactive"], "redoc": ["label", "select-name"]}
# All operations look alike: these have all kinds of parts, and each method once.
SOME = {
    "/v1/runs/{run}": {"delete"},
    "/v1/runs/{run}/seal": {"post"},
    "/v1/runs/{run}/batches/{batch}": {"parameters", "get", "head", "put"},
}

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


def shorten(route) -> None:
    """Answer with some operations of the OpenAPI document: axe would take seconds for all."""
    document = route.fetch().json()
    paths = {
        path: {key: operation for key, operation in document["paths"][path].items() if key in SOME[path]}
        for path in SOME
    }
    route.fulfill(json=document | {"paths": paths})


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_api_s_documents_load_nothing_from_elsewhere_and_are_accessible_in_the_theme_that_was_chosen(
    visit, service: Running, path: str
) -> None:
    """Who asks another host, or complains, is found by ``visit``."""

    def drawn() -> list[str]:
        page.get_by_text("/v1/runs").first.wait_for()
        page.evaluate("() => Promise.allSettled(document.getAnimations().map((each) => each.finished))")
        found: list[str] = page.evaluate(COLORS[path])
        return found

    page = visit("/nowhere", theme="light")
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    if path == "redoc":  # it draws each operation, where Swagger UI draws what is opened
        page.route("**/openapi.json", shorten)
    page.evaluate("localStorage.setItem('lossd-theme', 'dark')")
    page.goto(f"{service.url}/{path}")
    assert drawn() == SEEN[path]["dark"], "the theme that was chosen in the explorer"
    page.wait_for_load_state("networkidle")
    page.evaluate("localStorage.removeItem('lossd-theme')")
    page.emulate_media(color_scheme="dark")
    assert drawn() == SEEN[path]["dark"], "the system's theme"
    assert serious_faults_of(page, "dark") == []
    with page.expect_navigation() if path == "redoc" else nullcontext():  # its colours cannot change later
        page.emulate_media(color_scheme="light")
    page.wait_for_function("() => !document.documentElement.classList.contains('dark-mode')")
    assert drawn() == SEEN[path]["light"], "the system's theme"
    assert serious_faults_of(page, "light", left_out=OF_THE_LIBRARIES[path]) == []
    page.wait_for_load_state("networkidle")
