"""What Serve is told, a replica's settings on its node, and its health."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lossd.ray.arguments import Arguments

ROOT = Path(__file__).parents[2]
RAY = find_spec("ray")

needs_ray = pytest.mark.skipif(RAY is None, reason="needs Ray: pip install 'lossd[ray]'")


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "replica.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@needs_ray
def test_serve_is_told_where_replicas_go(facts: dict[str, Any]) -> None:
    plain = facts["plain"]
    assert (plain["name"], plain["replicas"], plain["per_node"], plain["scaling"]) == ("lossd", 3, 1, None)
    assert (plain["actor"]["num_cpus"], plain["actor"]["num_gpus"]) == (4, 1)
    variables = plain["actor"]["runtime_env"]["env_vars"]
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1", "else a node that lacks it has replicas without requests"
    assert facts["scaled"]["scaling"] == [2, 8]


@needs_ray
def test_settings_come_from_the_arguments_then_from_the_node(facts: dict[str, Any]) -> None:
    assert facts["defaults"] == {"host": "0.0.0.0", "threads": 3, "runs": "off", "access_log": "problems"}
    assert facts["of the node"]["threads"] == 7
    assert facts["of the node"]["runs"] == "postgresql:///runs"
    assert (facts["given"]["threads"], facts["given"]["access_log"]) == (2, "all")


@needs_ray
def test_a_wrong_setting_of_a_node_is_refused(facts: dict[str, Any]) -> None:
    assert "LOSSD_THREAD is not a setting, did you mean LOSSD_THREADS?" in facts["misspelt"]
    assert facts["no file"].startswith("api_keys_file: ")


@needs_ray
def test_a_replica_is_replaced_if_it_stays_without_a_worker(facts: dict[str, Any]) -> None:
    """A worker's restart takes seconds, and its requests wait; ending the replica would lose them."""
    assert facts["restart"] == ["", "", "", "", ""]
    assert facts["hangs"] == ["", "", "no worker"]
    assert facts["fault"] == ["no worker can be started"]


def test_without_ray_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['ray'] = None; import lossd.ray; lossd.ray.url"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1].startswith("ImportError: lossd.ray needs Ray Serve")
    assert "pip install 'lossd[ray]'" in run.stderr


def applications() -> list[dict[str, Any]]:
    service = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())
    configurations = [(ROOT / "deploy/ray/serve.yaml").read_text(), service["spec"]["serveConfigV2"]]
    return [application for text in configurations for application in yaml.safe_load(text)["applications"]]


@pytest.mark.parametrize("application", applications())
def test_the_arguments_of_the_manifests_are_right(application: dict[str, Any]) -> None:
    assert application["import_path"] == "lossd.ray:app"
    assert Arguments.of(application["args"]).placement.max_replicas == 8


@needs_ray
def test_every_variable_of_ray_is_one_that_ray_reads() -> None:
    assert RAY is not None
    assert RAY.submodule_search_locations is not None
    read = (Path(RAY.submodule_search_locations[0]) / "serve/_private/constants.py").read_text()
    documented = dict(exported())
    assert len(documented) >= 5
    assert [name for name in documented if f'"{name}"' not in read] == []
    service = yaml.safe_load((ROOT / "deploy/ray/rayservice.yaml").read_text())
    groups = service["spec"]["rayClusterConfig"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {variable["name"]: variable["value"] for variable in container["env"]} == documented


def exported() -> list[tuple[str, str]]:
    """The variables of Serve that docs/scaling.md exports, with their values."""
    lines = (ROOT / "docs/scaling.md").read_text().splitlines()
    pairs = [line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export RAY_SERVE_")]
    return [(name, value.strip('"')) for name, value in pairs]
