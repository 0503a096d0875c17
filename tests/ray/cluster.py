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
from load import Load, slow
from ray import serve
from ray.cluster_utils import Cluster
from reporting import cpu_s, ray_starts, report, say

from lossd.ray import app, url
from ray_nodes import small_agents

CONNECTIONS = 8
LONG_PAUSE_S = 0.03
"""While replicas start one after the other, which takes most of a minute: thousands of requests are enough."""
STORE = {"object_store_memory": 80 << 20}
ARGUMENTS: dict[str, Any] = {
    "replicas": 1, "max_replicas": 2, "cpus": 1, "per_node": 1, "compiled": False, "poll_us": 0
}  # fmt: skip


def main(folder: Path) -> None:
    """Run the scenarios one after the other."""
    with ray_starts():
        with small_agents():
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
        nodes = [cluster.add_node(num_cpus=1, **STORE)]  # its agent serves figures
    without_haproxy(cluster.address, folder / "layered")

    with ray_starts():
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        # Every node is on this machine, whose port 8000 one HAProxy can have.
        serve.start(proxy_location="HeadOnly", http_options={"host": "0.0.0.0", "port": 8000})
    serve_run(folder / "log", cluster.address)

    with ray_starts(), small_agents():
        nodes.append(cluster.add_node(num_cpus=1, **STORE))
    begin = time.monotonic()
    serve.run(app(ARGUMENTS))
    say("started", seconds=time.monotonic() - begin, url=url())

    with Load(url(), 4, slow) as load:
        begin = time.monotonic()
        while running() < 2 and time.monotonic() - begin < 120:
            time.sleep(0.2)
        scaled_s = time.monotonic() - begin
    report("scaled", load, scaled_s)
    say("replicas", running=running())

    with Load(url(), CONNECTIONS, pause_s=LONG_PAUSE_S) as load:
        load.wait_for(200)
        begin = time.monotonic()
        serve.run(app({**ARGUMENTS, "queue_requests": 4000}))
        updated_s = time.monotonic() - begin
        load.wait_for(200)
    report("updated", load, updated_s)

    with Load(url(), CONNECTIONS) as load:
        load.wait_for(200)
        begin = time.monotonic()
        os.kill(nodes[0].all_processes["raylet"][0].process.pid, signal.SIGKILL)
        load.wait_for(1000)
        killed_s = time.monotonic() - begin
    report("node killed", load, killed_s)
    say("cost", cpu_s=cpu_s())


def without_haproxy(cluster: str, output: Path) -> None:
    """Run that scenario in a process of its own, whose Serve reads other variables, and print what it reports."""
    environment = os.environ | WITHOUT_HAPROXY
    with output.open("w") as file:
        script = [sys.executable, str(Path(__file__).parent / "layered.py"), cluster, str(output)]
        done = subprocess.run(script, stdout=file, stderr=file, env=environment)
    print(output.read_text(), flush=True)
    done.check_returncode()


def running() -> int:
    """The number of running replicas."""
    return serve.status().applications["default"].deployments["lossd"].replica_states.get("RUNNING", 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # what is left ends with its namespace
