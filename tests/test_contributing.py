"""What CONTRIBUTING.md says is done, to the letter, in a copy of the project."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Bytecode is kept for the next run. Compiled passes are kept by their sources' path: this copy would compile its own.
SEVERAL_RUNS = {"PYTHONDONTWRITEBYTECODE": "", "LOSSD_COMPILED": "false"}
TEXT = (ROOT / "CONTRIBUTING.md").read_text()

MARK = "The printed lines:"
# The table's tests, the tables of `make docs`, and the use of the loss, in one process: each would import torch.
REST = f"""
import runpy, sys
import pytest
if status := pytest.main(["-q", "-p", "no:cacheprovider", "tests/losses/test_table.py"]):
    sys.exit(status)
sys.path.insert(0, "tests")
runpy.run_path("tests/tables.py", run_name="__main__")
print({MARK!r})
exec(sys.argv[1], {{"__name__": "__main__"}})
"""


def block(language: str, beginning: str) -> str:
    (found,) = (b for b in re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE) if beginning in b)
    return str(found)


def place(pattern: str) -> str:
    """A path the page names."""
    (found,) = re.findall(pattern, TEXT)
    return str(found)


class Copy:
    """The project's sources and tests in another directory, and Python there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for part in ("service", "client/lossd_client", "tests", "docs"):
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("*.pyc.*"))  # half written
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, root / name)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        sources = os.pathsep.join((str(self.root / "service"), str(self.root / "client")))
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": sources, **SEVERAL_RUNS},
            capture_output=True,
            text=True,
            check=False,
        )

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)


@pytest.mark.timeout(400)
def test_a_loss_takes_one_function_one_guide_and_one_row(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    family = tmp_path / place(r"into its family's file, here `([\w/.]+)`")
    family.write_text(f"{family.read_text()}\n\n{block('python', '@loss(')}")
    guides = tmp_path / place(r"family's guides, here\s+`([\w/.]+)`")
    guides.write_text(f"{guides.read_text()}\n{block('toml', '[charbonnier]')}")
    forgotten = copy.pytest("tests/losses/test_table.py", "-k", "same_names")
    assert forgotten.returncode == 1, forgotten.stdout + forgotten.stderr
    assert "charbonnier" in forgotten.stdout

    table = tmp_path / place(r"at the end of `CASES` in `([\w/.]+)`")
    rows = table.read_text().removesuffix(")\n")
    assert rows.endswith("    ),\n")
    table.write_text(f"{rows}{block('python', 'Case(')})\n")
    (command,) = (line for line in block("sh", "pytest").splitlines() if "pytest" in line)
    checked = copy.pytest(*shlex.split(command)[1:])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert int(re.findall(r"(\d+) passed", checked.stdout)[0]) > 40

    use = block("python", "lossd.evaluate")
    done = copy.python("-c", REST, use)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.partition(f"{MARK}\n")[2]
    assert printed.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", use, re.MULTILINE), done.stderr
    assert "| `charbonnier` | regression | " in (tmp_path / "docs/losses.md").read_text()
