"""The programs of the page about R, Octave and MATLAB, run where the language is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.snippets import ADDRESS, blocks
from excerpts import ROOT
from serving import Running, running

PAGE = (ROOT / "docs" / "r-matlab.md").read_text()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


def program(language: str, url: str) -> str:
    """The first program of the page in a language, to be sent to a service."""
    return next(block.text for block in blocks(PAGE) if block.language == language).replace(ADDRESS, url)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder, check=False)


def test_r_prints_what_the_page_says(service: Running, tmp_path: Path) -> None:
    packages = "q(status = !all(sapply(c('curl', 'jsonlite'), requireNamespace, quietly = TRUE)))"
    if shutil.which("Rscript") is None or run(tmp_path, "Rscript", "-e", packages).returncode:
        pytest.skip("needs R with curl and jsonlite: r-base-core, r-cran-curl, r-cran-jsonlite")
    text = program("r", service.url)
    (tmp_path / "page.r").write_text(text)
    done = run(tmp_path, "Rscript", "page.r")
    assert done.returncode == 0, done.stderr
    printed = [re.sub(r"^\[1\] +", "", line).split() for line in done.stdout.splitlines()]
    assert printed == [comment.split() for comment in re.findall("  # (.*)", text)]
    (tmp_path / "refused.r").write_text(text + 'evaluate("huber", c(2.5, 0.0), I(3.0))\n')
    done = run(tmp_path, "Rscript", "refused.r")
    assert done.returncode == 1
    assert "target has shape (1,), expected (2,)" in done.stderr


def test_octave_prints_what_the_page_says(service: Running, tmp_path: Path) -> None:
    if shutil.which("octave-cli") is None or shutil.which("curl") is None:
        pytest.skip("needs octave and curl")
    text = program("matlab", service.url)
    (tmp_path / "page.m").write_text(f"1;\n{text}")  # a file that begins with a function would be no script
    done = run(tmp_path, "octave-cli", "--quiet", "--no-init-file", "page.m")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        comment.split() for comment in re.findall("  # (.*)", text)
    ]
    one_row = 'evaluate("focal", {[2.0 1.0 0.1]}, {0}); evaluate("huber", [2.5 0.0], 3.0);\n'
    (tmp_path / "refused.m").write_text(f"1;\n{text}{one_row}")
    done = run(tmp_path, "octave-cli", "--quiet", "--no-init-file", "refused.m")
    assert done.returncode == 1
    assert "target has shape" in done.stderr
