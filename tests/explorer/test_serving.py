"""What the page is made of: complete, packed, kept for good by browsers, and in the package."""

from __future__ import annotations

import gzip
import re
import shutil
import time
from pathlib import Path

import httpx
import pytest
from hatchling.builders.wheel import WheelBuilder

from lossd.api import explorer
from lossd.api.explorer.packs import EXPORT, IMPORT, SHELL_PACK, pack, packs
from serving import Running, running

ROOT = Path(__file__).parents[2]
STATIC = explorer.STATIC
VENDOR = STATIC / "vendor"
OWN = [path for path in STATIC.rglob("*") if path.is_file() and VENDOR not in path.parents]
DEFINED = re.compile(r'^modules\["([^"]+)"\] \?\?=', re.MULTILINE)
MODULES = [path for path in OWN if path.suffix == ".js"]


@pytest.fixture(scope="module")
def http(service: Running):
    with httpx.Client(base_url=service.url) as http:
        yield http


def assets(http: httpx.Client) -> list[str]:
    return re.findall(r'(?:href|src)="(explorer/[^"]+)"', http.get("/").text)


def test_the_page_names_assets_that_browsers_may_keep_for_good(http: httpx.Client) -> None:
    found = assets(http)
    assert len(found) > 3
    for path in found:
        answer = http.get(path)
        assert answer.status_code == 200, path
        assert "immutable" in answer.headers["cache-control"]
        file = path.split("/", 2)[2]
        assert answer.content == (pack(STATIC, file) if file == SHELL_PACK else (STATIC / file).read_bytes())


def test_the_page_itself_is_asked_for_again_and_answered_in_short(http: httpx.Client) -> None:
    first = http.get("/")
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    again = http.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.head("/").status_code == 200


def test_nothing_from_elsewhere_and_nothing_inline_may_run(http: httpx.Client) -> None:
    policies = dict(part.split(" ", 1) for part in http.get("/").headers["content-security-policy"].split("; "))
    assert policies["default-src"] == "'none'"
    assert {policies[name] for name in ("script-src", "style-src", "font-src", "connect-src")} == {"'self'"}
    assert policies["frame-ancestors"] == "'none'"
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text) == []


@pytest.mark.parametrize(
    ("file", "packed"),
    [("app.js", True), ("app.css", True), ("vendor/fonts/inter-latin-wght-normal.woff2", False)],
)
def test_what_shrinks_is_sent_packed(http: httpx.Client, file: str, packed: bool) -> None:
    with http.stream("GET", f"/explorer/any/{file}", headers={"accept-encoding": "gzip"}) as answer:
        body = b"".join(answer.iter_raw())
    assert (answer.headers.get("content-encoding") == "gzip") == packed
    content = (STATIC / file).read_bytes()
    assert (gzip.decompress(body) if packed else body) == content
    assert len(body) <= (len(content) / 2 if packed else len(content))
    plain = http.get(f"/explorer/any/{file}", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == content


def test_another_version_s_address_is_not_kept(http: httpx.Client) -> None:
    assert http.get("/explorer/0123456789ab/app.js").headers["cache-control"] == "no-cache"


def test_a_changed_file_has_a_new_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    static = shutil.copytree(STATIC, tmp_path / "static")
    monkeypatch.setattr(explorer, "STATIC", static)
    with running(engine="inline") as service, httpx.Client(base_url=service.url) as http:
        first = assets(http)
        assert assets(http) == first
        (static / "app.css").write_text("body { margin: 0 }")
        end = time.monotonic() + 10
        while (second := assets(http)) == first and time.monotonic() < end:  # files are looked at once a second
            time.sleep(0.1)
        assert set(first).isdisjoint(second)
        (style,) = (path for path in second if path.endswith("app.css"))
        assert http.get(style).text == "body { margin: 0 }"


@pytest.mark.parametrize("path", ["nothing.js", "%2e%2e/%2e%2e/__init__.py", "..%2f..%2f__init__.py", "views"])
def test_nothing_else_is_served(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/explorer/any/{path}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "/problems/not-found"


def test_every_import_is_there() -> None:
    named = re.compile(r"""(?:from|import\(|new URL\()\s*["'](\.[^"']+)["']""")
    imports = [(module, name) for module in MODULES for name in named.findall(module.read_text())]
    assert len(imports) > len(MODULES)
    assert [(module, name) for module, name in imports if not (module.parent / name).is_file()] == []


def test_no_file_asks_another_host() -> None:
    known = ("http://www.w3.org/", "https://doi.org/", "https://arxiv.org/")  # a namespace, and links to papers
    url = re.compile(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+/?")
    assert len(OWN) > len(MODULES) > 50
    assert [(file, found) for file in OWN for found in url.findall(file.read_text()) if found not in known] == []


def test_what_others_wrote_is_listed_with_its_licence() -> None:
    listed = (VENDOR / "README.md").read_text()
    for folder in (path for path in VENDOR.iterdir() if path.is_dir()):
        assert f"| `{folder.name}` |" in listed
        assert list(folder.glob("LICENSE*"))
    for licence in re.findall(r"`(\w+/LICENSE\S*)`", listed):
        assert (VENDOR / licence).is_file()


def test_the_whole_page_stays_small() -> None:
    files = [path for path in STATIC.rglob("*") if path.suffix in explorer.MEDIA_TYPES]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    page_files = [path for path in OWN if path.suffix in explorer.MEDIA_TYPES and path.parent.name != "manual"]
    assert sum(len(gzip.compress(path.read_bytes())) for path in page_files) < 150_000


def test_the_first_view_loads_only_what_it_needs() -> None:
    files = [(STATIC / name).read_bytes() for name in ("index.html", "early.js", "app.css")]
    files += [pack(STATIC, name) for name in (SHELL_PACK, "losses.pack.js")]
    assert sum(len(gzip.compress(file)) for file in files) < 40_000


def imported(module: Path) -> list[Path]:
    return [
        (module.parent / name).resolve()
        for name in re.findall(r"""from\s+["'](\.[^"']+\.js)["']""", module.read_text())
    ]


@pytest.mark.parametrize("name", [SHELL_PACK, *packs(STATIC)])
def test_a_pack_has_every_module_of_its_view_once_and_after_its_imports(name: str) -> None:
    text = pack(STATIC, name).decode()
    assert not re.search(r"^(import|export) .*(from \"\./(?!app\.pack)|function|class)", text, re.MULTILINE)
    order = [STATIC / path for path in DEFINED.findall(text)]
    ready = (
        set() if name == SHELL_PACK else {STATIC / path for path in DEFINED.findall(pack(STATIC, SHELL_PACK).decode())}
    )
    for module in order:
        assert module not in ready
        assert set(imported(module)) <= ready
        ready.add(module)
    entry = STATIC / ("app.js" if name == SHELL_PACK else f"views/{name.removesuffix('.pack.js')}.js")
    assert order[-1] == entry


def test_a_module_is_written_so_that_it_can_be_packed() -> None:
    """A pack is beside the modules at the top, which alone may ask where they are."""
    wrong = []
    for module in MODULES:
        text = module.read_text()
        right = {
            "imports": len(re.findall(r'\bfrom\s+"\.', text)) == len(IMPORT.findall(text)),
            "exports": len(re.findall(r"^export\b", text, re.MULTILINE)) == len(EXPORT.findall(text)),
            "no await at the top": not re.search(r"^(await|for await)\b", text, re.MULTILINE),
            "import.meta": "import.meta" not in text or module.parent == STATIC,
        }
        wrong += [(module, what) for what, holds in right.items() if not holds]
    assert wrong == []


def test_the_wheel_brings_the_page() -> None:
    brought = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    for path in STATIC.rglob("*"):
        if path.is_file():
            assert f"lossd/api/explorer/static/{path.relative_to(STATIC)}" in brought
