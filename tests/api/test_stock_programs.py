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

import pytest

from serving import Running, running

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "stock"
CLIENTS = Path(os.environ.get("STOCK_CLIENTS", ROOT / ".clients"))

# The generator knows JSON, bytes and text. Its settings say which of them other media types are.
SETTINGS = (
    "content_type_overrides: {application/vnd.safetensors: application/octet-stream, image/svg+xml: text/plain}\n"
)


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


@pytest.fixture(scope="module")
def schema(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "openapi.json"
    run(sys.executable, "-c", f"import httpx; print(httpx.get('{service.url}/openapi.json').text)", out=path)
    return path


def run(*command: str | Path, out: Path | None = None, cwd: Path | None = None, **environment: str) -> None:
    """Run a program; what it says is shown where it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, timeout=110, cwd=cwd)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if out is not None:
        out.write_text(done.stdout)


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
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it formats what it generates with ruff
    command = ("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning")
    run(sys.executable, *command, *where, PATH=path)
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
    run(tools / ".bin/openapi-typescript", schema, "-o", tmp_path / "schema.d.ts")
    options = ("--strict", "--target", "es2022", "--module", "nodenext", "--types", "node", "--skipLibCheck")
    run(tools / ".bin/tsc", *options, "program.ts", cwd=tmp_path)
    run(node, tmp_path / "program.js", service.url)
