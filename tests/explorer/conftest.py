"""The page in a real browser, cut off from every other host."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from serving import Running, running

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def service() -> Iterator[Running]:
    with running() as service:
        yield service


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        # Its own sandbox needs rights that a container, or root, does not have; it visits this service alone.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, service: Running) -> Iterator[Callable]:
    """Opens a view in a window of its own; afterwards nothing may have failed, and nothing left this machine."""
    contexts, complaints = [], []

    def visit(path: str, *, url: str = service.url, size: tuple[int, int] = (1280, 860), theme: str = "light"):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(20_000)

        def guard(route):
            if urlsplit(route.request.url).hostname == "127.0.0.1":
                route.fallback()
            else:
                complaints.append(f"asked for {route.request.url}")
                route.abort()

        context.route("**/*", guard)
        page = context.new_page()
        page.complaints = complaints
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/#{path}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@contextmanager
def redrawn(page) -> Iterator[None]:
    """What happens inside makes the page draw its curves again; waits until it has."""
    before = page.locator(".plots").get_attribute("data-drawn")
    yield
    page.wait_for_function("before => document.querySelector('.plots').dataset.drawn !== before", arg=before)


def drawn(page) -> None:
    """Wait for a loss's curves."""
    page.wait_for_selector(".plots[data-drawn]")
