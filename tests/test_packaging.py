"""What an installation brings is pinned, and nothing names where it comes from."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def brought_by(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """The names of everything that a distribution with these extras requires here, and what that requires."""
    for requirement in map(Requirement, distribution(name).requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            required = f"{canonicalize_name(requirement.name)}{sorted(requirement.extras)}"
            if required not in found:
                found.add(required)
                brought_by(requirement.name, frozenset(requirement.extras), found)
    return found


def test_everything_an_installation_brings_is_pinned() -> None:
    names = {name.partition("[")[0] for name in brought_by("lossd", frozenset({"dev"}), set())} - {"lossd"}
    assert {"torch", "numpy", "pytest", "mypy"} <= names
    assert names - PINS.keys() == set()
    assert {"hatchling", "editables"} <= PINS.keys(), "what the build needs is pinned too"


def test_what_is_installed_is_what_is_pinned() -> None:
    names = {name.partition("[")[0] for name in brought_by("lossd", frozenset({"dev"}), set())} - {"lossd"}
    installed = {name: distribution(name).version.partition("+")[0] for name in names}
    assert {name: version for name, version in installed.items() if PINS.get(name) != version} == {}


def test_what_is_subclassed_beyond_its_documented_interface_has_an_upper_bound() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["service"]
    stated = {r.name: r for r in map(Requirement, pyproject)}
    for name in ("uvicorn", "httptools"):
        assert stated[name].specifier.contains(PINS[name])
        assert not stated[name].specifier.contains("99"), f"a later {name} may have changed what is subclassed"


def test_a_demo_needs_the_service_and_its_data_and_no_more() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [Requirement(text).name for text in extras["demo"]] == ["lossd", "scikit-learn"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo: service$", makefile, re.MULTILINE)
    assert re.search(r"^serve: service$", makefile, re.MULTILINE)
    assert "--quiet -c constraints.txt -e '.[demo]'" not in makefile, "minutes of silence look like a standstill"


def test_no_file_names_a_package_index() -> None:
    files = [ROOT / name for name in ("Dockerfile", "Makefile", "constraints.txt", "docker-compose.yml", ".ci/run")]
    assert [str(path) for path in files if "://" in path.read_text().replace("http://127.0.0.1", "")] == []
