"""The website is built without a warning, whole, and out of nothing but its own files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from browser import FLAGS, browser_path
from docs import site
from docs.html import faults
from docs.provoked import REQUESTS, UNPROVOKED
from lossd import cli
from lossd.api.problems.guide import EXAMPLES, FIXES
from lossd.losses import REGISTRY
from lossd.metrics import METRICS
from lossd.request.planning import listed_inputs
from lossd_client.errors import PROBLEMS
from serving import openapi, running


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds into a folder, and fails where anything is wrong with the pages, the links or the navigation."""
    folder = tmp_path_factory.mktemp("website") / "built"
    assert site.build(folder, pictured=("huber", "expression")) == []
    return folder


def test_every_loss_has_a_page_with_its_formula_and_all_its_parameters(built: Path) -> None:
    for loss in REGISTRY.values():
        page = (built / f"site/losses/{loss.name}.html").read_text()
        assert "<math" in page, loss.name
        assert (
            "\\"
            not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
            .partition("<math")[2]
            .partition("</math>")[0]
        )
        for name in (*(p.name for p in loss.parameters), *(i.name for i in listed_inputs(loss))):
            assert f"<code>{name}</code>" in page, f"{loss.name}: {name}"


def test_losses_that_are_a_function_of_one_number_have_their_picture(built: Path) -> None:
    assert '<img alt="How huber' in (built / "site/losses/huber.html").read_text()
    assert (built / "site/losses/huber.svg").read_text().startswith("<")
    assert "<img" not in (built / "site/losses/expression.html").read_text()


def test_every_metric_is_on_its_task_s_page(built: Path) -> None:
    for task, known in METRICS.items():
        page = (built / f"site/metrics/{task}.html").read_text()
        assert {name for name in known if f"<code>{name}</code>" not in page} == set()


def test_every_problem_s_page_shows_one_of_its_type(built: Path) -> None:
    assert REQUESTS.keys() | UNPROVOKED.keys() == FIXES.keys() == PROBLEMS.keys()
    for slug in REQUESTS:
        (example,) = re.findall(r"```json\n(.*?)```", (built / f"pages/errors/{slug}.md").read_text(), re.DOTALL)
        assert json.loads(example)["type"] == f"/problems/{slug}"
        assert json.loads(example)["status"] == PROBLEMS[slug].status
        pattern = ".*".join(map(re.escape, EXAMPLES[slug].detail.split("…")))
        assert re.fullmatch(pattern, json.loads(example)["detail"]), "the service's page shows another answer"


def test_every_route_is_in_the_reference(built: Path) -> None:
    reference = "".join((built / f"pages/reference/{name}.md").read_text() for name in ("http", "inference"))
    for path, methods in openapi()["paths"].items():
        for method in methods:
            assert f"## `{method.upper()} {path}`" in reference


def test_every_counter_is_documented(built: Path) -> None:
    text = (built / "pages/reference/counters.md").read_text()
    with running(engine="inline") as service:
        request = {"loss": {"name": "mse"}, "inputs": {"prediction": [1], "target": [2]}}
        httpx.post(f"{service.url}/v1/evaluate", json=request)
        page = httpx.get(f"{service.url}/metrics").text
    counted = {name for name in re.findall(r"^# TYPE (\w+)", page, re.MULTILINE) if not name.endswith("_created")}
    assert {"lossd_requests_total", "nv_inference_count"} <= counted
    assert {name for name in counted if f"`{name}`" not in text} == set()


def test_every_command_and_option_is_documented(built: Path) -> None:
    text = (built / "pages/reference/commands.md").read_text()
    for name in ("serve", "evaluate", "losses", "runs"):
        assert f"## `lossd {name}`" in text
        help_text = CliRunner().invoke(cli.main, [name, "--help"]).output
        options = set(re.findall(r"^  .*?(--[a-z-]+)", help_text, re.MULTILINE))
        assert options
        assert {option for option in options - {"--help"} if option not in text} == set()


def test_the_website_s_search_works_from_files_without_a_network(built: Path) -> None:
    path = browser_path()
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        nowhere = "--proxy-server=http://127.0.0.1:9"
        with playwright.chromium.launch(executable_path=path, args=[*FLAGS, nowhere]) as browser:
            page = browser.new_page()
            failed: list[str] = []
            page.on("requestfailed", lambda request: failed.append(request.url))
            page.on("pageerror", lambda error: failed.append(str(error)))
            page.goto((built / "site/losses/dice.html").as_uri())
            page.wait_for_load_state()
            page.keyboard.press("Control+k")
            page.keyboard.type("focal gamma")
            page.get_by_text(re.compile(r"^\d+ results?$")).wait_for()
            assert failed == []


def test_a_fault_of_the_website_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text('<h2 id="part">Part</h2>')
    (tmp_path / "page.html").write_text(
        '<a href="there.html#part">fine</a> <a href="there.html#other">no anchor</a> <a href="gone.html">no page</a>'
        '<script src="https://cdn.example/x.js"></script> <a href="https://example.org">elsewhere</a>'
    )
    assert [fault.partition(": ")[2] for fault in faults(tmp_path)] == [
        "there.html#other names an anchor that is not there",
        "gone.html leads nowhere",
        "https://cdn.example/x.js is loaded from elsewhere",
    ]


def test_a_page_that_the_navigation_forgets_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "generated", lambda _: {"losses/forgotten.md": "# Forgotten\n"})
    monkeypatch.setattr(site, "configuration", lambda made: {"nav": [{"lossd": "index.md"}]})
    assert any(fault.startswith("losses/forgotten.md: not in both") for fault in site.build(tmp_path / "built"))
