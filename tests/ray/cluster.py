"""Nodes of Ray on this machine: Serve without HAProxy, ``serve run``, scaling, an update, and the death of a node.

Run it in a network and a process namespace of its own, with a folder for logs as argument: Ray takes ports, and leaves
processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray
from command import serve_run
from layered import WITHOUT_HAPROXY
from load import Load, mean_of_squares, slow
from ray import serve
from ray.cluster_utils import Cluster
from reporting import Logs, cpu_s, ray_starts, report, say

from lossd.ray import app, url
from ray_nodes import no_dashboard, small_agents

CONNECTIONS = 8
LONG_PAUSE_S = 0.25
"""While replicas start one after the other, which takes most of a minute: hundreds of requests are enough."""
SHORT_PAUSE_S = 0.05
"""Around the death of a node, which takes a second."""
STORE = {"object_store_memory": 80 << 20}
HEAD = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True, **STORE}
ARGUMENTS: dict[str, Any] = {
    "replicas": 1, "max_replicas": 2, "cpus": 1, "per_node": 1, "compiled": False, "poll_us": 0, "log_format": "text"
}  # fmt: skip


def main(folder: Path) -> None:
    """Run the scenarios one after the other."""
    with ray_starts(), no_dashboard():
        cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    logs = Path(cluster.head_node.get_logs_dir_path())
    without_haproxy(cluster.address, folder / "layered", logs)

    with ray_starts():
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        # Every node is on this machine, whose port 8000 one HAProxy can have.
        serve.start(proxy_location="HeadOnly", http_options={"host": "0.0.0.0", "port": 8000})
    serve_run(folder / "log", cluster.address, ARGUMENTS, Logs(logs))

    with ray_starts(), small_agents():
        node = cluster.add_node(num_cpus=1, **STORE)
    with Load(url(), 4, slow) as load:  # their backlog asks for a second replica
        begin = time.monotonic()
        while replicas("RUNNING") < 2 and time.monotonic() - begin < 120:
            if replicas("STARTING"):
                load.ask, load.pause_s = mean_of_squares, LONG_PAUSE_S  # the start needs the processor
            time.sleep(0.5)
        scaled_s = time.monotonic() - begin
    report("scaled", load, scaled_s)
    say("replicas", running=replicas("RUNNING"))

    with Load(url(), CONNECTIONS, pause_s=LONG_PAUSE_S) as load:
        load.wait_for(50)
        begin = time.monotonic()
        serve.run(app({**ARGUMENTS, "queue_requests": 4000}))
        updated_s = time.monotonic() - begin
        load.wait_for(50)
    report("updated", load, updated_s)

    with Load(url(), CONNECTIONS, pause_s=SHORT_PAUSE_S) as load:
        load.wait_for(100)
        begin = time.monotonic()
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        load.wait_for(300)
        killed_s = time.monotonic() - begin
    report("node killed", load, killed_s)
    say("cost", cpu_s=cpu_s())


def without_haproxy(cluster: str, output: Path, logs: Path) -> None:
    """Run that scenario in a process of its own, whose Serve reads other variables, and print what it reports."""
    environment = os.environ | WITHOUT_HAPROXY
    with output.open("w") as file:
        script = [sys.executable, str(Path(__file__).parent / "layered.py"), cluster, str(logs)]
        done = subprocess.run(script, stdout=file, stderr=file, env=environment)
    print(output.read_text(), flush=True)
    done.check_returncode()


def replicas(state: str) -> int:
    """The number of replicas in a state."""
    return serve.status().applications["default"].deployments["lossd"].replica_states.get(state, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # what is left ends with its namespace
