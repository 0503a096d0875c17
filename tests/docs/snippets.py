"""What the documentation shows, done: every code block is run, compared, or says why not.

- ``python`` blocks of a page run one after the other, in one namespace. What a comment behind ``print(…)`` says is what
  it prints; a ``text`` block below is all that the block printed, or the error it ended in.
- ``sh`` blocks run in bash, in a folder with a few tensors in files, against a service. A ``json`` or ``text`` block
  below is what it printed. Lines that say ``lossd serve`` or ``make`` do not return: they are only understood.
- Blocks below ``<!-- file#region -->`` are cut from that file, which is tested where it belongs (``excerpts.py``).
- ``<!-- not run: reason -->`` above a block is the one way out.

Numbers are compared to six digits, and ``…`` stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from click.testing import CliRunner

from excerpts import excerpt
from lossd import cli
from lossd_client.errors import LossdError
from lossd_client.wire import Tensor, safetensors

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8000"
"""Where the pages say the service is."""

RUN = ("python", "sh")
SHOWN = ("text", "json")
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)
_ASSIGNMENT = re.compile(r"(\w+)=([^\s$`\"']+)")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A code block; ``mark`` is the comment above it."""

    language: str
    text: str
    mark: str
    line: int

    @property
    def excused(self) -> bool:
        """Whether it says why it is not run."""
        return bool(re.fullmatch(r"not run: \S.{8,}", self.mark))

    @property
    def cut(self) -> bool:
        """Whether it shows a piece of a file."""
        return "#" in self.mark and not self.mark.startswith("not run")


class Wrong(AssertionError):  # noqa: N818  (the page is)
    """A page says what is not so."""


def documents() -> list[Path]:
    """Every page written by hand."""
    pages = [ROOT / "README.md", ROOT / "service/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [*pages, *sorted((ROOT / "tests").glob("*/README.md"))]


def blocks(page: str) -> list[Block]:
    """A page's code blocks, in order."""
    return [
        Block(m["language"], m["text"], m["mark"] or "", page.count("\n", 0, m.start()) + 1)
        for m in _BLOCK.finditer(page)
    ]


def check(page: str, url: str, folder: Path) -> None:
    """Do what a page says, and compare.

    Args:
        page: Its Markdown.
        url: A service that answers.
        folder: Where its commands run; :func:`furnish` puts there what they read.

    Raises:
        Wrong: Where something else happened than the page says, or a block is neither run nor excused.
    """
    found = blocks(page)
    namespace: dict[str, Any] = {}
    for block, below in zip_longest(found, found[1:]):
        try:
            if block.cut:
                if block.text != excerpt(*block.mark.split("#")):
                    raise Wrong("it is behind the file; run: make docs")
            elif block.excused:
                _understood(block)
            elif block.language in RUN:
                shown = below if below and below.language in SHOWN and not below.excused and not below.cut else None
                run = _python(block, url, namespace) if block.language == "python" else _shell(block, url, folder)
                if shown:
                    _same(shown.text.replace(ADDRESS, url), run, shown.language)
            elif not (block.language in SHOWN and _follows(block, found)):
                raise Wrong("it is neither run nor cut from a file, and does not say why: <!-- not run: … -->")
        except Wrong as wrong:
            raise Wrong(f"the block in line {block.line}: {wrong}") from None


def _follows(block: Block, found: list[Block]) -> bool:
    position = found.index(block)
    return position > 0 and found[position - 1].language in RUN


def _python(block: Block, url: str, namespace: dict[str, Any]) -> str:
    printed = io.StringIO()
    code = compile("\n" * block.line + block.text.replace(ADDRESS, url), "the page", "exec")
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except LossdError as error:
        printed.write(f"{type(error).__name__}: {error}\n")
    comments = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    if comments:
        if len(comments) != block.text.count("print("):
            raise Wrong("some prints say what they print and some do not")
        _same("\n".join(comments), printed.getvalue(), "text")
    return printed.getvalue()


def _shell(block: Block, url: str, folder: Path) -> str:
    lines = [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]
    variables = dict(match.groups() for line in lines if (match := _ASSIGNMENT.fullmatch(line)))
    ours = [Template(line).safe_substitute(variables) for line in lines if not _ASSIGNMENT.fullmatch(line)]
    if all(line.startswith("lossd ") for line in ours):
        return "".join(_lossd(line.replace(ADDRESS, url), folder) for line in ours)
    lasting = [line for line in lines if _lasting(line)]
    for line in lasting:
        _understand(line)
    script = "\n".join(line for line in block.text.replace(ADDRESS, url).splitlines() if not _lasting(line))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if run.returncode:
        raise Wrong(f"it ended with {run.returncode}\n{run.stdout}{run.stderr}")
    return run.stdout


def _lossd(line: str, folder: Path) -> str:
    """A command of ours, in this process: torch is loaded already."""
    if _lasting(line):
        _understand(line)
        return ""
    with contextlib.chdir(folder):
        run = CliRunner().invoke(
            cli.main, shlex.split(line, comments=True)[1:], env={"COLUMNS": "100", "NO_COLOR": "1"}
        )
    if run.exit_code:
        raise Wrong(f"{line!r} ended with {run.exit_code}: {run.output}")
    return run.stdout


def _lasting(line: str) -> bool:
    return line.startswith(("lossd serve", "make "))


def _understood(block: Block) -> None:
    if block.language == "sh":
        for line in block.text.splitlines():
            if line.startswith(("lossd ", "make ")):
                _understand(line)


def _understand(line: str) -> None:
    """Refuse a target that make does not know, and an option that the command does not have."""
    alone = re.split(r"\s(?:\d?>|\||&)", line)[0]  # what the shell does with its output is not the command's
    program, *arguments = shlex.split(alone, comments=True)
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        if unknown := [word for word in arguments if "=" not in word and word not in targets]:
            raise Wrong(f"make knows no {unknown[0]}")
        return
    context = cli.main.make_context("lossd", list(arguments), resilient_parsing=True)
    name, command, rest = cli.main.resolve_command(context, arguments)
    if command is None:
        raise Wrong(f"lossd knows no {arguments[0]}")
    try:
        command.make_context(name, list(rest), parent=context)
    except Exception as error:
        raise Wrong(f"{line!r}: {error}") from None


def _same(example: str, happened: str, language: str) -> None:
    if language == "json" and "…" not in example:
        if not alike(json.loads(example), json.loads(happened)):
            raise Wrong(f"it says\n{example}\nand the answer is\n{happened}")
        return
    expected, found = _lines(example), _lines(happened)
    if len(expected) != len(found) or not all(map(_alike_line, expected, found)):
        raise Wrong("it says\n{}\nand what happens is\n{}".format("\n".join(expected), "\n".join(found)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _alike_line(example: str, happened: str) -> bool:
    pattern = ".*".join(map(re.escape, _NUMBER.sub("0.0", example).split("…")))
    if not re.fullmatch(pattern, _NUMBER.sub("0.0", happened)):
        return False
    if "…" in example:
        return True
    return alike([float(n) for n in _NUMBER.findall(example)], [float(n) for n in _NUMBER.findall(happened)])


def alike(example: Any, happened: Any) -> bool:
    """Whether two documents are the same, their numbers to six digits: the last ones differ between processors."""
    if isinstance(example, dict) and isinstance(happened, dict):
        return example.keys() == happened.keys() and all(alike(example[name], happened[name]) for name in example)
    if isinstance(example, list) and isinstance(happened, list):
        return len(example) == len(happened) and all(map(alike, example, happened))
    if isinstance(example, float) and isinstance(happened, (int, float)):
        return abs(example - happened) <= 1e-6 * abs(example) + 1e-7
    return bool(example == happened)


def furnish(folder: Path) -> None:
    """Put files there that commands read: four predictions of three classes and 2 by 2 pixels, and folders of such."""
    random = np.random.default_rng(0)
    prediction, target = random.standard_normal((4, 3, 2, 2)), random.integers(0, 3, (4, 2, 2))
    np.save(folder / "prediction.npy", prediction)
    np.save(folder / "target.npy", target)
    tensors = {"prediction": Tensor.of(prediction), "target": Tensor.of(target)}
    (folder / "validation").mkdir()
    for name in ("batch", "validation/first", "validation/second"):
        (folder / f"{name}.safetensors").write_bytes(b"".join(safetensors.encode(tensors, {})))
    (folder / "label-maps").mkdir()
    np.savez(folder / "label-maps" / "first.npz", prediction=prediction.argmax(1).astype(np.uint8), target=target)


def excuses(pages: Iterable[Path]) -> Iterator[str]:
    """Why some blocks are not run."""
    for page in pages:
        yield from (block.mark for block in blocks(page.read_text()) if block.excused)
