"""What an installation brings is pinned, and nothing names where it comes from."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import audit

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


LINES = re.findall(
    r"^([a-z0-9-]+)==(\S+)(?: ; (.*?))? \\\n((?:    --hash=.*\n?)+)", (ROOT / "requirements.txt").read_text(), re.M
)


def test_what_the_service_needs_is_installed_by_hash() -> None:
    """Each file that may be installed has its hash; torch, whose build depends on the place, is the exception."""
    hashed = {name: version for name, version, _, _ in LINES}
    text = (ROOT / "requirements.txt").read_text()
    assert len(LINES) == len(re.findall("==", text)), "a line has no hash"
    assert {pin for pin in hashed.items() if PINS[pin[0]] != pin[1]} == set(), "make pins"
    for *_, hashes in LINES:
        assert re.fullmatch(r"(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+", hashes)
    needed = {name.partition("[")[0] for name in brought_by("lossd", frozenset({"service"}), set())}
    torch_builds = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name in ("torch", "triton")}
    assert needed - torch_builds - hashed.keys() == set(), "make pins"
    assert {"hatchling", "editables", "numpy", "uvicorn"} <= hashed.keys()


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_every_install_of_the_service_checks_hashes_first(name: str) -> None:
    text = (ROOT / name).read_text().rpartition(".venv/service:")[2]
    installs = re.findall(r"pip install (?:\$\{PIP_ARGS\} |--no-compile )?(.*?)(?= \\\n| &&|\n)", text)
    assert installs[0] == "--require-hashes --no-deps -r requirements.txt"
    assert "torch" in installs[1].lower()


def test_each_environment_has_the_pip_that_is_pinned_by_its_hash() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^\s.*-m venv.*$", makefile, re.M) == [], "call venv"
    (script,) = re.findall(r"^venv = .*?sed -n '(.*?)'", makefile, re.M)
    command = ["sed", "-n", script.replace("$$", "$"), "requirements.txt"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [line.split()[0] for line in lines.splitlines() if "==" in line] == [f"pip=={PINS['pip']}"]
    assert lines in (ROOT / "requirements.txt").read_text()
    assert re.fullmatch(r"pip==\S+ \\\n(    --hash=\S+ \\\n)*    --hash=\S+\n", lines)


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_a_build_that_is_not_isolated_has_no_constraints_of_its_own(name: str) -> None:
    """As pip 26 demands."""
    (line,) = [line for line in (ROOT / name).read_text().splitlines() if "--no-build-isolation" in line]
    assert re.search(r"\sPIP_BUILD_CONSTRAINT= \S+/pip install ", line)


def test_images_of_others_are_named_by_digest() -> None:
    images = re.findall(r"image: (\S+)", (ROOT / "docker-compose.yml").read_text())
    proxy = re.findall(r"image: (\S+)", (ROOT / "deploy/haproxy/deployment.yaml").read_text())
    assert set(proxy) <= set(images)
    others = [image for image in images if image != "lossd"]
    assert len(others) == 4
    assert [image for image in others if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image)] == []


@pytest.mark.parametrize(
    ("found", "text", "status"),
    [
        (None, "Nothing is audited", 0),
        ([{"name": "pyyaml", "version": "5.3.1", "vulns": []}], "Nothing is audited", 0),
        ([{"name": "pyyaml", "skip_reason": "not found"}], "Nothing is audited", 0),
        ([{"name": "pyyaml", "version": "5.3.1", "vulns": [{"id": "A", "fix_versions": ["5.4"]}]},
          {"name": "numpy", "version": "2.4.6", "vulns": []}], "1 packages have no known", 0),
        ([{"name": "pyyaml", "version": "5.3.1", "vulns": [{"id": "A", "fix_versions": ["5.4"]}]},
          {"name": "numpy", "version": "2.4.6", "vulns": [{"id": "B", "fix_versions": []}]}], "numpy==2.4.6: B", 1),
    ],
    ids=["no report", "silent database", "no database", "clean", "vulnerable"],
)  # fmt: skip
def test_an_audit_says_whether_it_could_audit(found: audit.Report | None, text: str, status: int) -> None:
    answer = audit.verdict(found)
    assert answer[0].startswith(text)
    assert answer[1] == status


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


def _without_examples(text: str) -> str:
    return text.replace("http://127.0.0.1", "").replace("postgresql://lossd@postgres", "")


def test_no_file_names_a_package_index() -> None:
    files = [ROOT / name for name in ("Dockerfile", "Makefile", "constraints.txt", "docker-compose.yml", ".ci/run")]
    files.append(ROOT / "requirements.txt")
    assert [str(path) for path in files if "://" in _without_examples(path.read_text())] == []
