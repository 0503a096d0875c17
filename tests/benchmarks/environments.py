"""A virtual environment for each peer, made on first use under .bench and made anew when what it holds has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).with_name("peers")
CACHE = ROOT / ".bench"


class NotInstalledError(Exception):
    """Why a peer cannot be measured here."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment; of this one where the name is empty.

    Raises:
        NotInstalledError: What pip said, or that it found no CPU build of torch.
    """
    if not name:
        return Path(sys.executable)
    requirements = PEERS / f"requirements-{name}.txt"
    directory = CACHE / name
    python = directory / "bin" / "python"
    installed = directory / "installed"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not installed.exists() or installed.read_text() != digest:
        shutil.rmtree(directory, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(directory)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])
        if _run([str(python), "-c", "import torch; print(torch.version.cuda)"]) != "None":
            shutil.rmtree(directory)
            raise NotInstalledError("pip found a CUDA build of torch; the benchmark is of CPUs")
        site = PEERS / f"site_{name}"
        if site.exists():
            (packages,) = directory.glob("lib/python3*/site-packages")
            (packages / "benchmarks.pth").write_text(f"{site}\n")
        installed.write_text(digest)
    return python


def versions(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """What is installed of some packages."""
    program = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:] if any(True for _ in m.distributions(name=n))}))"
    )
    found: dict[str, str] = json.loads(_run([str(python), "-c", program, *packages]))
    return found


def outer() -> dict[str, str]:
    """The variables of this process, less those that are about its own packages.

    make constrains its installs by a file; a peer's requirements name their own.
    """
    names = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in names}


def _run(command: list[str]) -> str:
    run = subprocess.run(command, env=outer(), cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        complaints = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or run.stderr.splitlines()
        raise NotInstalledError(complaints[-1] if complaints else f"{command[0]} exited with {run.returncode}")
    return run.stdout.strip()
