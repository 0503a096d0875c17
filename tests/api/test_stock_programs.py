"""Stock clients, each a program of its own against the service: KServe's SDK, MLServer's codecs, generated clients.

``make clients`` installs them below ``.clients``, since what some of them need contradicts what lossd is tested with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import Running, running

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "stock"
CLIENTS = Path(os.environ.get("STOCK_CLIENTS", ROOT / ".clients"))

# The generator knows JSON, bytes and text. Its settings say which of them other media types are, and that it need not
# format what it generates.
SETTINGS = """
content_type_overrides: {application/vnd.safetensors: application/octet-stream, image/svg+xml: text/plain}
post_hooks: []
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


@pytest.fixture(scope="module")
def schema(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "openapi.json"
    path.write_bytes(httpx.get(f"{service.url}/openapi.json").raise_for_status().content)
    return path


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    """Run a program; what it says is shown where it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=110, cwd=cwd)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def installed(*parts: str) -> Path:
    path = CLIENTS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there: make clients installs it")
    return path


@pytest.mark.parametrize("client", ["kserve", "mlserver"])
def test_a_client_in_python(service: Running, client: str) -> None:
    run(installed(client, "bin", "python"), PROGRAMS / f"{client}_client.py", service.url)


def test_a_client_that_openapi_python_client_generates(service: Running, schema: Path, tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client")
    (tmp_path / "settings.yml").write_text(SETTINGS)
    where = ("--path", schema, "--output-path", tmp_path / "generated", "--config", tmp_path / "settings.yml")
    # A warning is an operation, or a part of one, that is left out.
    command = ("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning")
    run(sys.executable, *command, *where)
    run(sys.executable, PROGRAMS / "openapi_client.py", service.url, PYTHONPATH=str(tmp_path))


def test_a_program_with_the_types_that_openapi_typescript_generates(
    service: Running, schema: Path, tmp_path: Path
) -> None:
    tools = installed("node", "node_modules")
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not there")
    (tmp_path / "node_modules").symlink_to(tools)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(PROGRAMS / "program.ts", tmp_path)
    roomy = {"NODE_OPTIONS": "--max-semi-space-size=64"}  # MiB: it collects garbage less often
    run(tools / ".bin/openapi-typescript", schema, "-o", tmp_path / "schema.d.ts", **roomy)
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--skipLibCheck"]
    options += ["--lib", "es2022"]  # and not the browser's, the largest of all
    run(tools / ".bin/tsc", *options, "program.ts", cwd=tmp_path, **roomy)
    run(node, tmp_path / "program.js", service.url)
