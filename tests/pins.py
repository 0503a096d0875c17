"""``make pins``: writes ``requirements.txt``: what the service needs, with the hashes of all files of each release.

torch is left out. Which build of torch is installed, for the CPU or for a GPU, and from where, is chosen where it is
installed, so no list of hashes fits every place. What torch needs whatever its build is listed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """\
# What the service needs, without torch, with the hashes of every file. Written by `make pins` from
# pyproject.toml and constraints.txt. Installs go through this file:
#   pip install --require-hashes --no-deps -r requirements.txt
"""
TORCH_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions"]
BUILD_NEEDS = ["hatchling", "editables", "pip"]


def needs() -> list[str]:
    """Return the requirements of the service with PostgreSQL, of torch and of the build, without torch itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]  # the image speaks to PostgreSQL too
    stated = [*project["dependencies"], *extras["service"], *extras["postgres"], *TORCH_NEEDS, *BUILD_NEEDS]
    return [line for line in stated if not line.startswith("torch")]


def main() -> None:
    """Write the file, with the packages that the pins name."""
    with tempfile.TemporaryDirectory() as folder:
        listed, hashed = Path(folder) / "needs.in", Path(folder) / "hashed.txt"
        listed.write_text("\n".join(needs()))
        command = [sys.executable, "-m", "uv", "pip", "compile", str(listed), "--constraint", "constraints.txt"]
        command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
        subprocess.run([*command, "--quiet", "--output-file", str(hashed)], cwd=ROOT, check=True)
        (ROOT / "requirements.txt").write_text(HEAD + hashed.read_text())


if __name__ == "__main__":
    main()
