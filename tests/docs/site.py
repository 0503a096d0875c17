"""From the repository to the website: the pages written by hand, those generated, the navigation, and Zensical."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import httpx
import yaml

from docs import api, losses, provoked
from docs.html import faults
from lossd.api import drawing
from lossd.caches import CACHES
from lossd.losses import REGISTRY
from lossd.losses.families import by_family
from lossd.metrics import TASKS
from lossd_client.errors import PROBLEMS
from serving import running

ROOT = Path(__file__).parents[2]

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "service/README.md": "architecture.md",
    "tests/attacks/README.md": "threat-model.md",
}
"""Pages of the website that do not live in docs."""

NAMING: Mapping[str, Mapping[str, str]] = {
    "which-loss.md": {name: f"losses/{name}.md" for name in REGISTRY},
    "losses.md": {name: f"losses/{name}.md" for name in REGISTRY},
    "metrics.md": {name: f"metrics/{name}.md" for name in TASKS},
    "errors.md": {f"/problems/{slug}": f"errors/{slug}.md" for slug in PROBLEMS},
}
"""Pages on which a name, set as code, becomes a link to the page generated of it."""

_SHIM = re.compile(r"https://[\w.]+/iframe-worker/shim")
"""What the theme loads for the search of pages from files; the copy in docs/assets takes its place."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```$)", re.DOTALL | re.MULTILINE)


def written() -> dict[str, str]:
    """The page of each file written by hand, by the file's path in the repository."""
    pages = {
        str(path.relative_to(ROOT)): str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")
    }
    return {**pages, **{file: page for file, page in ELSEWHERE.items() if (ROOT / file).exists()}}


def generated(pictured: Collection[str]) -> dict[str, str]:
    """The pages and pictures made from the code, by path; a service answers their examples.

    Args:
        pictured: The losses whose curve is wanted, if they have one; each takes the best part of a second.
    """
    with _service() as url, httpx.Client(base_url=url, timeout=280) as service:

        def ask(request: Mapping[str, Any]) -> Any:
            answer = service.post("/v1/evaluate", json=request)
            if answer.status_code != 200:
                raise ValueError(f"an example is refused: {answer.json()['detail']}")
            return answer.json()

        document = service.get("/openapi.json").json()
        pictures = {name: service.get(f"/v1/losses/{name}/curve.svg") for name in pictured}
        drawn = {name: picture.text for name, picture in pictures.items() if picture.status_code == 200}
        counted = service.get("/metrics").text
        pages = losses.pages(ask, drawn) | api.problems(lambda slug: provoked.provoke(service, slug))
    pages["reference/http.md"] = api.routes(document, **api.HTTP)
    pages["reference/inference.md"] = api.routes(document, **api.INFERENCE)
    pages["reference/python.md"] = api.client()
    pages["reference/commands.md"] = api.commands()
    pages["reference/counters.md"] = api.counters(counted)
    return pages | {f"losses/{name}.svg": picture for name, picture in drawn.items()}


@contextmanager
def _service() -> Iterator[str]:
    weights = os.environ.pop("LOSSD_PERCEPTUAL_WEIGHTS", None)  # that it has none is an example
    CACHES["plans"].clear()  # another test of this process may have planned the example with them
    drawing_s, drawing.DRAWING_S = drawing.DRAWING_S, 250.0  # a busy machine is no reason to leave pictures out
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            running(engine="inline", runs=f"{folder}/runs.db", **provoked.SETTINGS) as service,
        ):
            yield service.url
    finally:
        drawing.DRAWING_S = drawing_s
        if weights is not None:
            os.environ["LOSSD_PERCEPTUAL_WEIGHTS"] = weights


def build(folder: Path, pictured: Collection[str] = REGISTRY.keys()) -> list[str]:
    """Build the website into ``folder``/site, with the curves of these losses, and say what is wrong with it."""
    shutil.rmtree(folder, ignore_errors=True)
    made = generated(pictured)
    shutil.copytree(ROOT / "docs/assets", folder / "pages/assets")
    pages = {page: _as_page(file, (ROOT / file).read_text(), folder / "pages") for file, page in written().items()}
    for path, text in (pages | made).items():
        place = folder / "pages" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    config = configuration(made)
    unreachable = {path for path in pages | made if path.endswith(".md")} ^ set(listed(config["nav"]))
    if unreachable:
        return [f"{path}: not in both the navigation of mkdocs.yml and the pages" for path in sorted(unreachable)]
    config |= {"docs_dir": "pages", "site_dir": "site"}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    if run.returncode:
        return [run.stdout + run.stderr]
    _load_shim_from_here(folder / "site")
    return faults(folder / "site")


def _load_shim_from_here(site: Path) -> None:
    """Replace the address of the search's shim for pages from files, which the theme loads from another host."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        above = "../" * (len(page.relative_to(site).parts) - 1)
        page.write_text(_SHIM.sub(f"{above}assets/iframe-worker.js", text))


def configuration(made: Mapping[str, str]) -> dict[str, Any]:
    """mkdocs.yml, with the generated pages in place of the entries that name a folder."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def entry(title: str, at: Any) -> Any:
        if isinstance(at, list):
            return {title: [entry(*item) for part in at for item in part.items()]}
        if at == "losses/":
            families = by_family().items()
            return {
                title: [
                    "losses.md",
                    *({h: [{o.name: f"losses/{o.name}.md"} for o in members]} for h, members in families),
                ]
            }
        if at.endswith("/"):
            inside = (PurePosixPath(path) for path in made if path.startswith(at) and path.endswith(".md"))
            return {title: [f"{at[:-1]}.md", *({path.stem: str(path)} for path in inside)]}
        return {title: at}

    return config | {"nav": [entry(*item) for part in config["nav"] for item in part.items()]}


def listed(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from listed(part)


def _as_page(file: str, text: str, pages: Path) -> str:
    """The text with its links as they are on the website: to pages, and to copies of the repository's other files."""
    places = written()

    def link(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path:
            return match[0]
        meant = normpath(str(PurePosixPath(file).parent / path))
        if meant in places:
            to = places[meant]
        elif (ROOT / meant).is_file():
            to = f"source/{meant}"
            (pages / to).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / meant, pages / to)
        else:
            return label  # a folder, which a website has no page of
        return f"{mark}[{label}]({relpath(to, PurePosixPath(places[file]).parent)}{hash_}{anchor})"

    parts = _FENCE.split(text)
    for at in range(0, len(parts), 2):
        parts[at] = _LINK.sub(link, parts[at])
        if named := NAMING.get(places[file]):
            name = re.compile(rf"(?<![\[`\w])`({'|'.join(named)})`(?![\]`\w])")
            parts[at] = name.sub(lambda m, named=named: f"[`{m[1]}`]({named[m[1]]})", parts[at])
    return "".join(parts)
