"""Who may import whom: the architecture, as imports that are not there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "service", ROOT / "client")

FRAMEWORKS = {"fastapi", "starlette", "uvicorn", "click"}

# Room by room, in the order in which they build on each other: the rooms whose modules it may import, beside its own.
ROOMS: dict[str, set[str]] = {
    "lossd_client": set(),
    "lossd.configuration": set(),
    "lossd.logs": {"lossd.configuration"},
    "lossd.caches": set(),
    "lossd.lazy_torch": set(),
    "lossd.counting_kernels": set(),
    "lossd.cost": set(),
    "lossd.job": {"lossd.cost", "lossd.caches", "lossd_client"},
    "lossd.arrangement": {"lossd.cost", "lossd.job"},
    "lossd.losses": {"lossd.cost", "lossd.lazy_torch", "lossd.caches", "lossd_client"},
    "lossd.exact": {"lossd_client"},
    "lossd.metrics": {
        "lossd.cost", "lossd.counting_kernels", "lossd.exact", "lossd.lazy_torch", "lossd.losses", "lossd_client",
    },
    "lossd.request": {"lossd.cost", "lossd.job", "lossd.losses", "lossd.caches", "lossd.metrics", "lossd_client"},
    "lossd.compiled": {
        "lossd.caches", "lossd.configuration", "lossd.counting_kernels", "lossd.job", "lossd.lazy_torch",
        "lossd.metrics",
    },
    "lossd.evaluation": {"lossd.compiled", "lossd.job", "lossd.losses", "lossd.metrics", "lossd_client"},
    "lossd.local": {"lossd.arrangement", "lossd.evaluation", "lossd.request", "lossd_client"},
    "lossd.runs": {
        "lossd.arrangement", "lossd.caches", "lossd.counting_kernels", "lossd.evaluation", "lossd.exact", "lossd.job",
        "lossd.losses", "lossd.metrics", "lossd.request", "lossd_client",
    },
    "lossd.files": {"lossd_client"},
    "lossd.scoring": {"lossd.files", "lossd.request", "lossd.runs", "lossd_client"},
    "lossd.pictures": {"lossd.losses", "lossd.request", "lossd_client"},
    "lossd.engine": {
        "lossd.arrangement", "lossd.caches", "lossd.compiled", "lossd.configuration", "lossd.evaluation", "lossd.job",
        "lossd.logs", "lossd.runs", "lossd_client",
    },
    "lossd.recorder": {"lossd.configuration", "lossd.engine", "lossd.logs", "lossd.runs", "lossd_client"},
    "lossd.fronts": {"lossd.configuration", "lossd.engine", "lossd.logs", "lossd.recorder", "lossd_client"},
    "lossd.api": {
        "lossd.caches", "lossd.configuration", "lossd.engine", "lossd.fronts", "lossd.job", "lossd.logs",
        "lossd.losses", "lossd.metrics", "lossd.pictures", "lossd.recorder", "lossd.request", "lossd.runs",
        "lossd_client",
    },
    "lossd.cli": {
        "lossd.api", "lossd.compiled", "lossd.configuration", "lossd.engine", "lossd.files", "lossd.fronts",
        "lossd.losses", "lossd.metrics", "lossd.pictures", "lossd.recorder", "lossd.request", "lossd.scoring",
        "lossd_client",
    },
    "lossd.ray": {"lossd.api", "lossd.configuration", "lossd.engine", "lossd.logs"},
}  # fmt: skip

MOST_MODULES = 9
"""How many modules may stand at the top of the package, outside any folder."""


def modules() -> Iterator[tuple[str, Path]]:
    for source in SOURCES:
        for path in sorted(source.glob("lossd*/**/*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


@cache
def imports(path: Path, *, types: bool = True) -> frozenset[str]:
    """Every module a file imports, wherever in the file it does; ``types`` counts those for type checkers only."""
    found = set()
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [
            node for node in tree.body if "TYPE_CHECKING" not in ast.dump(node) or not isinstance(node, ast.If)
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
    return frozenset(found)


def packages(module: str) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(MODULES[module])}


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), None)


def loaded_after(*steps: str) -> Iterator[tuple[str, set[str]]]:
    """Yield each step with the packages, and lossd's rooms, that a fresh interpreter has loaded after it."""
    script = "import sys\nsys.stdout = open('/dev/null', 'w')\n"
    script += "".join(f"{step}\nprint(*sys.modules, file=sys.stderr)\n" for step in steps)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    for step, line in zip(steps, run.stderr.splitlines(), strict=True):
        names = line.split()
        yield step, {name.partition(".")[0] for name in names} | {room for name in names if (room := room_of(name))}


def test_every_module_is_in_a_room() -> None:
    outside = {module for module in MODULES if room_of(module) is None}
    assert outside == {"lossd"}, "give each module a room in ROOMS and in service/README.md"


def test_a_room_imports_only_the_rooms_it_may() -> None:
    empty, found = set(ROOMS), {}
    for module, path in MODULES.items():
        if room := room_of(module):
            empty.discard(room)
            own_code = {name for name in imports(path) if name.partition(".")[0] in ("lossd", "lossd_client")}
            rooms = {room_of(name) for name in own_code if name != "lossd"}  # which holds the version, and lends local
            found[module] = rooms - ROOMS[room] - {room}
    assert {module: others for module, others in found.items() if others} == {}
    assert not empty


def test_rooms_build_on_earlier_ones() -> None:
    """The table has no circle: each room imports only rooms that stand above it."""
    for position, (room, others) in enumerate(ROOMS.items()):
        assert others <= set(list(ROOMS)[:position]), room


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports anywhere in a file count, those for type checkers too; ``from package import module`` imports both."""
    graph = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle


def test_few_modules_stand_outside_a_folder() -> None:
    loose = [path for path in (ROOT / "service/lossd").glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= MOST_MODULES, "a new module goes into the folder of its like"


def test_web_frameworks_are_imported_by_the_api_alone() -> None:
    users = {(room_of(module), name) for module in MODULES for name in packages(module) & FRAMEWORKS}
    assert users == {("lossd.api", name) for name in ("fastapi", "starlette", "uvicorn")} | {("lossd.cli", "click")}


def test_the_database_is_used_by_the_store_alone() -> None:
    users = {module for module in MODULES if packages(module) & {"alembic", "psycopg", "sqlalchemy", "sqlite3"}}
    store = ("copying", "counting", "database", "listing", "migrations", "schema", "statements", "states", "store")
    assert users
    assert {module for module in users if not module.startswith(tuple(f"lossd.recorder.{n}" for n in store))} == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m == "lossd.engine.batcher" or ".wire" in m])
def test_the_batcher_and_the_codecs_do_no_io(module: str) -> None:
    doors = {"asyncio", "io", "mmap", "multiprocessing", "os", "pathlib", "select", "selectors", "socket", "subprocess"}
    clocks = {"datetime", "time", "threading"}
    assert not {name.partition(".")[0] for name in imports(MODULES[module], types=False)} & (doors | clocks)


def test_the_client_loads_no_framework() -> None:
    client = [module for module in MODULES if room_of(module) == "lossd_client" and module != "lossd_client.torch"]
    for step, loaded in loaded_after(*(f"import {module}" for module in client)):
        loaded -= {"click"}  # httpx loads it, where it is, for a command of its own
        assert not loaded & {*FRAMEWORKS, "torch", "pydantic", "prometheus_client", "lossd"}, step


def test_losses_metrics_and_an_evaluation_load_no_server() -> None:
    server = {*FRAMEWORKS, "lossd.engine", "lossd.api", "lossd.logs"}
    *parts, (_, loaded), (_, loaded_by_autograd) = loaded_after(
        "import lossd.losses",
        "import lossd.metrics",
        "import lossd; lossd.evaluate('mse', [1.0], [2.0])",
        "lossd.evaluate('ciou', [[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 2.0, 2.0]])",
    )
    for step, loaded_before in parts:
        assert not loaded_before & {*server, "httpx", "lossd.configuration"}, step
    loaded -= {"click"}  # httpx loads it, where it is, for a command of its own
    assert not loaded & server
    assert "sympy" not in loaded_by_autograd, "it takes half a second, and 38 MiB of each worker"


def test_states_of_runs_are_merged_without_torch() -> None:
    """The process that merges states evaluates nothing, and stays small."""
    evaluating = {*FRAMEWORKS, "torch", "numba", "lossd.evaluation", "lossd.engine", "lossd.api"}
    for step, loaded in loaded_after(*(f"from lossd.runs.{m} import *" for m in ("state", "counting", "definition"))):
        assert not loaded & evaluating, step


def test_the_front_loads_no_more_than_it_needs() -> None:
    """It checks and forwards requests; workers compute, and a process that ends draws.

    A list of runs is read from the store by the application inside the command, whose engine has nothing to evaluate.
    """
    elsewhere = {"torch", "numba", "llvmlite", "ray", "matplotlib", "PIL"}
    for step, loaded in loaded_after(
        "from lossd.api import create_app; from lossd.api.server import serve; create_app()",
        "from lossd.configuration.settings import Settings; create_app(Settings()).openapi()",
        "import lossd.cli, lossd.ray, lossd.ray.arguments, lossd.ray.scaling",
        "lossd.cli.main(['runs', '--json'], standalone_mode=False)",
    ):
        assert not loaded & elsewhere, step


def test_ray_is_imported_by_what_runs_in_its_clusters() -> None:
    assert {room_of(module) for module in MODULES if "ray" in packages(module)} == {"lossd.ray", "lossd.scoring"}


def test_the_engine_loads_no_web_framework() -> None:
    for step, loaded in loaded_after("import lossd.engine.process", "import lossd.engine.inline"):
        assert not loaded & {*FRAMEWORKS, "httpx", "lossd.api"}, step


def test_the_package_loads_nothing_until_it_is_used_and_help_loads_no_torch() -> None:
    helps = ("--help", "--version", *(f"{command} --help" for command in HELPED))
    (_, at_first), *of_help = loaded_after(
        "import lossd",
        *(f"from lossd.cli import main; main({arguments.split()}, standalone_mode=False)" for arguments in helps),
    )
    assert not at_first & {*FRAMEWORKS, "torch", "pydantic", "numpy", "httpx"}
    for step, loaded in of_help:
        assert not loaded & {"torch", "fastapi", "numpy"}, step


HELPED = ("serve", "evaluate", "score", "curve", "runs", "runs show")
