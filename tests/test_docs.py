"""What the documentation says is run, generated, or looked up."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import readme
from lossd import cli
from lossd.api import create_app
from lossd.settings import Settings
from lossd_client.wire import Tensor, safetensors
from serving import Running, running

ROOT = readme.README.parent
TEXT = readme.README.read_text()
ADDRESS = "http://127.0.0.1:8000"
DOCUMENTS = [path for path in (*ROOT.glob("*.md"), ROOT / "service/README.md") if path.exists()]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running() as service:
        yield service


def approximately(expected: Any) -> Any:
    """The same document, its numbers to seven digits: the last ones differ between processors."""
    if isinstance(expected, dict):
        return {name: approximately(value) for name, value in expected.items()}
    if isinstance(expected, list):
        return [approximately(value) for value in expected]
    return pytest.approx(expected, rel=1e-6, abs=1e-7) if isinstance(expected, float) else expected


def test_the_readme_s_curl_prints_the_readme_s_answer(service: Running) -> None:
    (command,) = (block for block in blocks("sh") if block.startswith("curl"))
    (answer,) = blocks("json")
    run = subprocess.run(["bash", "-c", command.replace(ADDRESS, service.url)], capture_output=True, check=True)
    assert json.loads(run.stdout) == approximately(json.loads(answer))


@pytest.mark.parametrize("block", blocks("python"))
def test_the_readme_s_python_prints_what_its_comments_say(block: str, service: Running) -> None:
    expected = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert len(expected) == block.count("print(")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.replace(ADDRESS, service.url), "README.md", "exec"), {})
    assert printed.getvalue().splitlines() == expected


def test_the_readme_s_commands_are_the_command_line_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (commands,) = (block for block in blocks("sh") if "lossd evaluate" in block)
    random = np.random.default_rng(0)
    prediction, target = random.standard_normal((4, 3, 2, 2)), random.integers(0, 3, (4, 2, 2))
    np.save(tmp_path / "prediction.npy", prediction)
    np.save(tmp_path / "target.npy", target)
    tensors = {"prediction": Tensor.of(prediction), "target": Tensor.of(target)}
    (tmp_path / "batch.safetensors").write_bytes(b"".join(safetensors.encode(tensors, {})))
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        name, *arguments = shlex.split(line, comments=True)
        assert name == "lossd"
        if arguments[0] == "serve":  # would not return
            cli.main.commands["serve"].make_context("serve", arguments[1:])
        else:
            result = CliRunner().invoke(cli.main, arguments)
            assert result.exit_code == 0, result.output


def test_the_readme_s_tables_are_written_from_the_code() -> None:
    assert readme.filled(TEXT) == TEXT, "README.md is behind the code; run: make docs"


def test_every_setting_is_documented() -> None:
    for name in Settings.model_fields:
        assert f"`LOSSD_{name.upper()}`" in TEXT


def test_every_route_is_documented() -> None:
    paths = {path.partition("{")[0].rstrip("/") for path in create_app(Settings(engine="inline")).openapi()["paths"]}
    assert "/v1/evaluate" in paths
    assert {path for path in paths if f"{path}`" not in TEXT and f"{path} " not in TEXT} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_make_targets_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("#"):
            anchors = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings(text)}
            assert link[1:] in anchors
        elif not link.startswith("https://"):
            assert (document.parent / link).exists(), link


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def test_the_readme_s_build_arguments_are_the_image_s() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    named = set(re.findall(r"--build-arg (\w+)=", TEXT))
    assert named
    assert named <= set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))


def test_the_map_names_every_module() -> None:
    text = (ROOT / "service/README.md").read_text()
    for source in (ROOT / "service/lossd", ROOT / "client/lossd_client"):
        modules = {path.relative_to(source) for path in source.rglob("*.py") if path.name != "__init__.py"}
        families = {path for path in modules if path.parts[0] in ("losses", "metrics")}
        assert {str(path) for path in modules - families if f"{path.name}`" not in text} == set()
