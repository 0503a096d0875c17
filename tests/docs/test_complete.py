"""Nothing is left out: settings, routes, problems, counters, commands, examples and modules all have their words."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from starlette.routing import Mount, Route

import tables
from docs.snippets import ROOT, documents
from excerpts import excerpt
from excerpts import filled as cut
from lossd.api import create_app
from lossd.configuration.settings import Settings
from lossd.losses import REGISTRY, formula_parser
from lossd.metrics import METRICS, TASKS
from lossd_client.errors import PROBLEMS

MANUAL = "\n".join(path.read_text() for path in documents())
PAGES = [*documents(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", tables.documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_and_excerpts_are_written_from_the_code(page: Path) -> None:
    text = page.read_text()
    assert tables.filled(text) == text, f"{page.name} is behind the code; run: make docs"
    assert cut(text) == text, f"{page.name} is behind the programs; run: make docs"


def test_each_table_stands_somewhere() -> None:
    for name in tables.SECTIONS:
        assert MANUAL.count(f"<!-- {name} -->") == 1


def test_every_setting_has_a_row() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    assert {name for name in Settings.model_fields if f"`LOSSD_{name.upper()}`" not in text} == set()


def test_settings_named_anywhere_are_settings() -> None:
    known = {f"LOSSD_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bLOSSD_[A-Z_]+[A-Z]\b", MANUAL)) - known == set()


def test_the_grammar_of_formulas_is_the_parser_s() -> None:
    text = (ROOT / "docs/expression.md").read_text()
    grammar = re.search(r"^formula    = .*?(?=^```)", text, re.DOTALL | re.MULTILINE)
    assert grammar is not None
    assert grammar[0].strip() in inspect.cleandoc(formula_parser.__doc__ or "").replace("\n    ", "\n")
    assert {name for name in formula_parser.FUNCTIONS if not re.search(rf"`{name}[`(]", text)} == set()


def test_no_setting_stands_below_two_headings() -> None:
    grouped = [name for names in tables.GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= Settings.model_fields.keys()


def test_every_problem_is_listed() -> None:
    assert {slug for slug in PROBLEMS if f"`/problems/{slug}`" not in (ROOT / "docs/errors.md").read_text()} == set()


def test_every_page_that_a_service_serves_to_people_is_mentioned() -> None:
    routes = create_app(Settings(engine="inline")).routes
    served = {route.path for route in routes if isinstance(route, Route) and not isinstance(route, Mount)}
    pages = {path.partition("{")[0].rstrip("/") or "/" for path in served if not path.endswith(".js")}
    assert {"/docs", "/redoc", "/problems", "/openapi.json"} <= pages
    assert {path for path in pages if not re.search(rf"`(?:GET )?{re.escape(path)}(?:/[^`]*)?`", MANUAL)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_make_targets_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_build_arguments_shown_are_the_image_s() -> None:
    named = set(re.findall(r"--build-arg (\w+)=", MANUAL))
    assert named
    assert named <= set(re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))


def test_every_example_program_is_shown_with_the_command_that_its_head_names() -> None:
    page = (ROOT / "docs/from-any-language.md").read_text()
    rows = re.findall(r"^\| \[\w.*\]\(\.\./(\S+)\) \| `(.*?)` \|", page, re.MULTILINE)
    for file, commands in rows:
        for command in commands.split(" && "):
            assert command in (ROOT / file).read_text()
    examples = {path.parent for path in (ROOT / "client/examples").glob("*/*")} - {ROOT / "client/examples/digits"}
    assert {(ROOT / file).parent for file, _ in rows} == examples


def test_a_changed_program_shows() -> None:
    page = (ROOT / "docs/from-any-language.md").read_text()
    (first, *_) = re.findall(r"^<!-- (\S+)#(\S+) -->$", page, re.MULTILINE)
    shown = excerpt(*first)
    assert cut(page.replace(shown, shown.replace(" ", "  ", 1), 1)) == page


def test_the_map_has_a_row_for_every_module() -> None:
    """Each row stands under its folder. A family of losses or metrics needs no row: its name says what is in it."""
    functions = [loss.function for loss in REGISTRY.values()]
    functions += [metric.function for of_task in METRICS.values() for metric in of_task.values()]
    families = {thing.__module__ for thing in (*functions, *TASKS.values())}
    modules = {f"service/{name.replace('.', '/')}.py" for name in families}
    for source in (ROOT / "service/lossd", ROOT / "client/lossd_client"):
        modules ^= {str(path.relative_to(ROOT)) for path in source.rglob("*.py") if path.name != "__init__.py"}
    rows = _rows_of_the_map()
    assert {row for row in rows if not (ROOT / row).exists()} == set()
    assert {module for module in modules if module not in rows and f"{Path(module).parent}/" not in rows} == set()


def test_the_map_of_the_explorer_has_every_module() -> None:
    """Its first table has the modules themselves, its second the parts of each view."""
    explorer = ROOT / "service/lossd/api/explorer"
    static = explorer / "static"
    modules, views = (explorer / "README.md").read_text().split("\n| View |")
    named = [name for row in re.findall(r"^\| (.*?) \|", modules, re.MULTILINE) for name in _modules(row)]
    assert sorted(named) == sorted(path.name for path in static.glob("*.js"))
    parts = {view: sorted(_modules(row)) for view, row in re.findall(r"^\| `(\w+)\.js` \| (.*)", views, re.MULTILINE)}
    folders = {path.stem: static / "views" / path.stem for path in static.glob("views/*.js") if path.stem != "index"}
    assert parts == {view: sorted(path.name for path in folder.glob("*.js")) for view, folder in folders.items()}


def _modules(row: str) -> list[str]:
    return re.findall(r"`([\w-]+\.js)`", row)


def _rows_of_the_map() -> set[str]:
    """Return the paths that the tables of the map name; a name after one in a subfolder is in the same subfolder."""
    found: set[str] = set()
    for section in (ROOT / "service/README.md").read_text().split("\n### ")[1:]:
        heading, *lines = section.partition("\n## ")[0].splitlines()
        name = heading.split("`")[1]
        folder = ROOT / name if name.startswith("client/") else ROOT / "service" / name
        for line in lines:
            place = folder
            for path in re.findall(r"`([^`]+)`", line.split(" | ")[0]) if line.startswith("| `") else ():
                place = (place if "/" not in path else folder) / path.rstrip("/")
                found.add(str(place.relative_to(ROOT)) + "/" * path.endswith("/"))
                place = place.parent
    return found
