"""The manual and the pages of errors: whole, in order, in the package, searched and read in a browser."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import httpx
import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

from lossd.api import create_app
from lossd.api.manual import contents
from lossd.api.manual.rendering import render
from lossd.configuration.settings import Settings
from lossd.losses import REGISTRY
from lossd_client.errors import PROBLEMS
from serving import Running

from .conftest import serious_faults, window

ROOT = Path(__file__).parents[2]
PAGES = ["manual", *(f"manual/{entry.name}" for entry in contents.entries())]
ERRORS = ["problems", *(f"problems/{slug}" for slug in PROBLEMS)]


@pytest.fixture(scope="module")
def texts(service: Running) -> dict[str, str]:
    """The HTML of each page by its path."""
    with httpx.Client(base_url=service.url) as http:
        return {path: http.get(f"/{path}").raise_for_status().text for path in [*PAGES, *ERRORS]}


@pytest.fixture(scope="module")
def opened(browser):
    page = window(browser)
    yield page
    page.context.close()


@pytest.fixture
def page(opened):
    """A window in which nothing may fail; it remembers no theme."""
    opened.set_viewport_size({"width": 1280, "height": 860})
    yield opened
    opened.evaluate("localStorage.clear()")
    complaints = list(opened.complaints)
    opened.complaints.clear()
    assert complaints == []


def anchors(text: str) -> set[str]:
    return set(re.findall(r'\sid="([^"]+)"', text))


def test_every_page_of_the_folder_is_in_the_contents_and_in_the_website_in_one_order() -> None:
    order = [f"{entry.name}.md" for entry in contents.entries()]
    assert {*order, "contents.md"} == {path.name for path in (ROOT / "docs").glob("*.md")}
    text = re.sub(r": (losses|metrics|errors)/$", r": \1.md", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    website = {title: at for part in yaml.safe_load(text)["nav"] for title, at in part.items()}
    listed = {
        heading: [(title, at) for entry in website[heading] for title, at in entry.items() if at in order]
        for heading in contents.sections()
    }
    assert listed == {h: [(e.title, f"{e.name}.md") for e in es] for h, es in contents.sections().items()}


def test_every_link_of_every_page_leads_somewhere(texts: dict[str, str], service: Running) -> None:
    base = f"{service.url}/"
    known = {f"{base}{path}": anchors(text) for path, text in texts.items()}
    wrong = []
    with httpx.Client() as http:
        for path, text in texts.items():
            for link in map(unescape, re.findall(r'(?:href|src)="([^"]+)"', text)):
                target, anchor = urldefrag(urljoin(f"{base}{path}", link))
                if link.startswith("https://"):
                    continue
                if target not in known:
                    known[target] = anchors(http.get(target).raise_for_status().text) if "woff" not in target else set()
                if anchor and not anchor.startswith("/") and anchor not in known[target]:
                    wrong.append((path, link))
    assert wrong == []


def test_a_name_leads_to_its_page(texts: dict[str, str]) -> None:
    assert '<a href="../#/losses/focal"><code>focal</code></a>' in texts["manual/which-loss"]
    assert '<a href="../problems/queue-full"><code>/problems/queue-full</code></a>' in texts["manual/errors"]
    assert set(re.findall(r"#/losses/(\w+)", texts["manual/losses"])) <= REGISTRY.keys()


def test_nothing_inline_may_run_and_nothing_else_is_needed(texts: dict[str, str], service: Running) -> None:
    for path, text in texts.items():
        assert re.findall(r"<script(?![^>]*src=)|<style|<[^>]+\s(?:on\w+|style)=|<!--", text) == [], path
    for path in ("manual", "manual/quickstart", "problems", "problems/too-large"):
        policy = httpx.get(f"{service.url}/{path}").headers["content-security-policy"]
        assert "script-src 'self'; style-src 'self'" in policy


@pytest.mark.parametrize("path", ["manual", "manual/quickstart", "manual/search.json", "problems/too-large"])
def test_a_page_is_sent_once(service: Running, path: str) -> None:
    first = httpx.get(f"{service.url}/{path}")
    again = httpx.get(f"{service.url}/{path}", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_page_that_is_not_there_says_where_all_are(service: Running) -> None:
    answer = httpx.get(f"{service.url}/manual/nowhere")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert "/manual lists all pages" in answer.json()["detail"]


def test_the_wheel_brings_every_page() -> None:
    builder = WheelBuilder(str(ROOT))
    brought = {file.distribution_path for file in builder.recurse_forced_files(builder.config.get_force_include())}
    for path in (*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/images").iterdir()):
        assert f"lossd/manual_pages/{path.relative_to(ROOT / 'docs')}" in brought


def test_an_installation_without_its_pages_serves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossd.api.manual.FOLDER", None)
    paths = {getattr(route, "path", "") for route in create_app(Settings(engine="inline")).routes}
    assert "/problems" in paths
    assert "/manual" not in paths


def test_headings_tables_and_links_are_those_of_the_files() -> None:
    text = "# A\n\n<!-- mark -->\n## B `c`\n\n| x |\n| ---: |\n| 1 |\n\n"
    text += "[in](b.md#d) [out](../client/x.py) `/problems/too-large`\n"
    page = render("a", text, "../", frozenset({"a", "b"}))
    assert [heading.anchor for heading in page.headings] == ["b-c"]
    assert '<td class="number">1</td>' in page.html
    assert '<a href="../manual/b#d">in</a> out <a href="../problems/too-large">' in page.html
    assert "mark" not in page.html
    assert page.sections[1].text == "x 1 in out /problems/too-large"


@pytest.mark.parametrize(
    "path", ["manual", "manual/which-loss", "manual/from-any-language", "problems", "problems/shape-mismatch"]
)
def test_a_page_is_read_without_a_serious_fault_and_fits_a_phone(page, service: Running, path: str) -> None:
    page.goto(f"{service.url}/{path}")
    page.wait_for_selector("#nav a")
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("() => document.documentElement.scrollWidth === 390")


def test_the_search_finds_sections_losses_and_errors_by_keyboard(page, service: Running) -> None:
    page.goto(f"{service.url}/manual/quickstart")
    page.wait_for_selector("#nav a")
    page.keyboard.press("/")
    for query, heading, address in (
        ("queue full", "Queue full", "/problems/queue-full"),
        ("focal", "focal", "/#/losses/focal"),
        ("cotangent", "", ""),
    ):
        page.locator("#find").fill(query)
        first = page.locator("#found a").first
        if heading:
            page.locator("#found strong").first.get_by_text(heading, exact=True).wait_for()
            assert first.get_attribute("href").removeprefix("../") == address.removeprefix("/")
    page.locator("#found span", has_text="cotangent").first.wait_for()
    page.keyboard.press("ArrowDown")
    target = page.evaluate("document.activeElement.href")
    assert "/manual/" in target
    page.keyboard.press("Enter")
    page.wait_for_url(target)
    page.locator("#find").fill("no such words anywhere")
    page.get_by_text("No results.").wait_for()


def test_the_explorer_links_the_manual_and_the_theme_is_kept(page, service: Running) -> None:
    page.goto(service.url)
    page.get_by_role("navigation", name="Documentation").get_by_role("link", name="Manual").click()
    page.wait_for_url("**/manual")
    page.get_by_role("link", name="Quickstart").first.click()
    page.wait_for_url("**/manual/quickstart")
    button = page.get_by_role("button", name="Theme")
    button.click()
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Losses").click()
    page.wait_for_selector("main h1")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
