"""What CONTRIBUTING.md says is done, to the letter, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Bytecode is kept for the next run. Compiled passes are kept by their sources' path: this copy would compile its own.
SEVERAL_RUNS = {"PYTHONDONTWRITEBYTECODE": "", "LOSSD_COMPILED": "false"}
TEXT = (ROOT / "CONTRIBUTING.md").read_text()

# Each step is a fork of one process, because each would import torch, lossd and what tests need.
END = "the step ends with status "
STEPS = f"""
import json, os, runpy, sys
import pytest
sys.path.insert(0, "tests")
import process  # but not the table, which changes

def run_tests(*arguments):
    known = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
    return pytest.main(["-q", "-p", "no:cacheprovider", "-W", known, *arguments])

def write_tables():
    runpy.run_path("tests/tables.py", run_name="__main__")

def use(code):
    exec(code, {{"__name__": "__main__"}})

for line in sys.stdin:
    step, *arguments = json.loads(line)
    if not os.fork():
        os.dup2(1, 2)
        status = globals()[step](*arguments) or 0
        sys.stdout.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(f"{END}{{status}}", flush=True)
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

    @contextmanager
    def steps(self) -> Iterator[Callable[..., tuple[int, str]]]:
        """Lend a function that takes a step in the copy, and returns its status and what it printed."""
        sources = os.pathsep.join((str(self.root / "service"), str(self.root / "client")))
        environment = {**os.environ, "PYTHONPATH": sources, **SEVERAL_RUNS}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", STEPS], cwd=self.root, env=environment, **pipes) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def take(step: str, *arguments: str) -> tuple[int, str]:
                print(json.dumps([step, *arguments]), file=process.stdin, flush=True)
                printed = ""
                for line in process.stdout:
                    if line.startswith(END):
                        return int(line.removeprefix(END)), printed
                    printed += line
                raise AssertionError(printed)

            yield take


@pytest.mark.timeout(400)
def test_a_loss_takes_one_function_one_guide_and_one_row(tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    family = tmp_path / place(r"into its family's file, here `([\w/.]+)`")
    family.write_text(f"{family.read_text()}\n\n{block('python', '@loss(')}")
    guides = tmp_path / place(r"family's guides, here\s+`([\w/.]+)`")
    guides.write_text(f"{guides.read_text()}\n{block('toml', '[charbonnier]')}")
    with copy.steps() as take:
        status, printed = take("run_tests", "tests/losses/test_table.py", "-k", "same_names")
        assert status == 1, printed
        assert "charbonnier" in printed

        table = tmp_path / place(r"at the end of `CASES` in `([\w/.]+)`")
        rows = table.read_text().removesuffix(")\n")
        assert rows.endswith("    ),\n")
        table.write_text(f"{rows}{block('python', 'Case(')})\n")
        (command,) = (line for line in block("sh", "pytest").splitlines() if "-k charbonnier" in line)
        status, printed = take("run_tests", *shlex.split(command)[1:])
        assert status == 0, printed
        assert int(re.findall(r"(\d+) passed", printed)[0]) > 20
        status, printed = take("run_tests", "tests/losses/test_table.py")
        assert status == 0, printed

        status, printed = take("write_tables")
        assert status == 0, printed
        assert "| `charbonnier` | regression | " in (tmp_path / "docs/losses.md").read_text()
        code = block("python", "lossd.evaluate")
        status, printed = take("use", code)
        assert status == 0, printed
        assert printed.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
