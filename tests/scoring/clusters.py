"""A cluster of two workers in a process of its own: ``python -m scoring.clusters ray`` or ``dask``.

The process prints the address. At each line of standard input it kills a worker, as a machine that fails, and prints
a line. It ends the cluster when standard input ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ray_nodes import no_dashboard, small_agents
from waiting import eventually

__all__ = ["dask_cluster", "ray_cluster"]

NEEDED = ["lossd.scoring.work", "lossd.runs.run", "lossd.runs.measuring", "torch"]
"""What the evaluation of a chunk imports."""

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
HEAD = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True, **NODE}

WORKS = b"ray::_run"
"""What Ray calls a process while it evaluates a chunk."""


def ray_cluster() -> None:
    """Two nodes of one core. A process that works is killed, and then the node that is not the head with all of its."""
    from ray.cluster_utils import Cluster

    with no_dashboard(), small_agents():
        cluster: Any = Cluster(initialize_head=True, head_node_args=HEAD)
        node = cluster.add_node(**NODE)
    _say(address=cluster.address)
    for _ in sys.stdin:
        _kill_a_worker()
        cluster.remove_node(node, allow_graceful=False)
        _say(killed=True)
    cluster.shutdown()


def _kill_a_worker() -> None:
    """Kill a process that evaluates a chunk; wait for one, because between two chunks there may be none."""
    eventually(lambda: any(map(_is_killed, Path("/proc").glob("[0-9]*"))))


def _is_killed(process: Path) -> bool:
    """Kill a process of this session if it evaluates a chunk, and return whether it does."""
    try:
        works = (process / "cmdline").read_bytes().startswith(WORKS)
        if not works or os.getsid(int(process.name)) != os.getsid(0):
            return False
        os.kill(int(process.name), signal.SIGKILL)
    except OSError:
        return False
    return True


def dask_cluster() -> None:
    """A scheduler and two workers; a worker is killed, and its nanny starts another.

    They are forked from a process that has imported what they need.
    """
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    get_mp_context().set_forkserver_preload(["distributed", "lossd.scoring.dask_tasks", *NEEDED])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        _say(address=cluster.scheduler_address)
        for _ in sys.stdin:
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
            _say(killed=True)


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    {"ray": ray_cluster, "dask": dask_cluster}[sys.argv[1]]()
