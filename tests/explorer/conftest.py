"""The page in a real browser, cut off from every other host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from browser import FLAGS, browser_path
from serving import Running, running

TIMEOUT_MS = 60_000
# Nothing listens there: who asks for another host is told that there is no way.
NOWHERE = ["--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=127.0.0.1"]


@pytest.fixture(scope="package")
def service() -> Iterator[Running]:
    with running() as service:
        yield service


@pytest.fixture(scope="package")
def browser():
    path = browser_path()
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *NOWHERE])
        yield browser
        browser.close()


def window(browser):
    """A window that remembers nothing; ``complaints`` is what failed in it, ``expected`` the words of what may."""
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT_MS)
    context.add_init_script("performance.setResourceTimingBufferSize(10000)")  # for HELD; a browser keeps 250
    page = context.new_page()
    page.complaints, page.expected = [], []

    def failed(request) -> None:  # to hear of each request that is sent takes a tenth of a test's processor time
        if urlsplit(request.url).hostname not in (None, "127.0.0.1"):
            page.complaints.append(f"asked for {request.url}")

    page.on("requestfailed", failed)
    page.on("console", lambda message: page.complaints.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    return page


@pytest.fixture(scope="package")
def open_window(browser) -> Iterator[Any]:
    page = window(browser)
    yield page
    page.context.close()


@pytest.fixture
def visit(browser, service: Running, open_window) -> Iterator[Callable]:
    """Opens a view in a window of its own; afterwards nothing may have failed, and nothing left this machine.

    With ``again`` it is the window of the tests before, where the page is loaded and only the view is another: for
    tests of what a view does, not of how it is loaded, which takes ten times as long.
    """
    pages: list[Any] = []

    def visit(
        path: str,
        *,
        url: str = service.url,
        size: tuple[int, int] = (1280, 860),
        theme: str = "light",
        again: bool = False,
    ):
        page = open_window if again else window(browser)
        if again:
            page.unroute_all(behavior="ignoreErrors")
            page.goto(f"{url}/#/nowhere")  # the view of the test before ends, even where the next one is at its address
            page.get_by_text("There is no view at /nowhere").wait_for()
        if page not in pages:
            pages.append(page)
            page.complaints.clear()
            page.expected.clear()
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(media="screen", color_scheme=theme)
        page.mouse.move(0, 0)
        page.goto(f"{url}/#{path}")
        return page

    visit.pages = pages  # type: ignore[attr-defined]  # for the report of a failure
    yield visit
    failed = [text for page in pages for text in page.complaints if not any(words in text for words in page.expected)]
    for page in pages:
        if page is not open_window:
            page.context.close()
    assert failed == []


# What a page holds when a test fails in it: the last resources that arrived tell what did not.
HELD = """
() => [
  location.href,
  document.getElementById("state")?.innerText,
  document.querySelector("main")?.innerText.slice(0, 1000),
  ...performance.getEntriesByType("resource").slice(-30).map(({ name, responseEnd }) => `${responseEnd} ms ${name}`),
].join("\\n")
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Add what its pages hold to the report of a test that failed."""
    report = yield
    visit = getattr(item, "funcargs", {}).get("visit")
    if report.when == "call" and report.failed and visit is not None:
        from playwright.sync_api import Error

        for page in visit.pages:
            with suppress(Error):  # the page, or the browser, may have ended
                report.sections.append((f"page with complaints {page.complaints}", page.evaluate(HELD)))
    return report


def address(page) -> str:
    """Where the page says that it is, which the browser's own account of it may lag behind."""
    return page.evaluate("location.href")


def unfold(page) -> None:
    """Open all there is to open, and wait until it is filled."""
    page.wait_for_function(
        """() => [...document.querySelectorAll("details")].every((details) => {
          details.open = true;
          return details.children.length > 1;
        })"""
    )


@contextmanager
def redrawn(page) -> Iterator[None]:
    """What happens inside makes the page draw its curves again; waits until it has."""
    before = page.locator(".plots").get_attribute("data-drawn")
    yield
    page.wait_for_function("before => document.querySelector('.plots').dataset.drawn !== before", arg=before)


# Marks each element that looks like two before it: of the same kind, in the same colours and size, on the same ground.
MARK_REPEATED = """
() => {
  const seen = {};
  const mark = (element, parent) => {
    const style = getComputedStyle(element);
    const { color, fontSize, fontWeight, textDecorationLine } = style;
    const own = [style.backgroundColor, style.backgroundImage, style.opacity, style.position];
    const isPlain = `${own}` === "rgba(0, 0, 0, 0),none,1,static";
    const ground = isPlain ? parent.ground : `${parent.ground}/${own}`;
    const kind = [element.tagName, element.getAttribute("class"), element.parentElement?.tagName];
    const look = [...kind, color, parent.color, fontSize, fontWeight, textDecorationLine, ground].join();
    seen[look] ??= 0;
    if (element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) seen[look] += 1;
    element.toggleAttribute("data-repeated", seen[look] > 2);
    for (const child of element.children) mark(child, { ground, color });
  };
  mark(document.documentElement, { ground: "", color: "" });
}
"""
# Most of axe's time is that of colours, text by text: it takes two texts of all that look the same.
ONCE = [
    {"id": "color-contrast", "selector": "*:not([data-repeated])"},
    {"id": "link-in-text-block", "selector": "a[href]:not([data-repeated])"},
]
# The rules whose faults are never serious.
NOT_SERIOUS = """
  axe._audit.rules
    .filter(({ impact }) => ["minor", "moderate"].includes(impact))
    .map(({ id }) => ({ id, enabled: false }))
"""

Fault = tuple[str, str, list[str]]


def serious_faults(page) -> list[Fault]:
    """What axe finds on a page in each theme. The page keeps what it shows and only changes its theme."""
    faults = []
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
        faults += serious_faults_of(page, theme)
    return faults


def serious_faults_of(page, theme: str, *, left_out: Sequence[str] = ()) -> list[Fault]:
    """What axe finds on a page in the theme that it has: every fault in the light, in the dark only those of colours.

    All else is the same in both.

    Args:
        page: The page.
        theme: The page's theme.
        left_out: The rules that are left out.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe.axe_script)
        page.evaluate("rules => axe.configure({ rules: [...rules, ...(LOW)] })".replace("LOW", NOT_SERIOUS), ONCE)
    page.evaluate(MARK_REPEATED)
    rules = {rule: {"enabled": False} for rule in left_out}
    chosen = {"dark": {"runOnly": [rule["id"] for rule in ONCE]}, "light": {"rules": rules}}[theme]
    quick = {"resultTypes": ["violations"], "selectors": False}  # no list of all that is right: half of axe's time
    found = page.evaluate("options => axe.run(options)", quick | chosen)["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return [(theme, violation["id"], [node["html"] for node in violation["nodes"]]) for violation in serious]


def drawn(page) -> None:
    """Wait for a loss's curves."""
    page.wait_for_selector(".plots[data-drawn]")
