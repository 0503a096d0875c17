"""What a replica is made of, as JSON. Ray's modules give warnings that pytest would turn into errors."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

from lossd.configuration.preflight import StartError
from lossd.ray import app
from lossd.ray import replica as module
from lossd.ray.replica import Replica, settings_of


def options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what Serve is told of the deployment."""
    deployment = app(arguments)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    return {
        "name": deployment.name,
        "replicas": deployment.num_replicas,
        "per_node": deployment._replica_config.max_replicas_per_node,
        "actor": deployment.ray_actor_options,
        "scaling": scaling and [scaling.min_replicas, scaling.max_replicas],
    }


def settings(arguments: dict[str, Any], cpus: float, **environment: str) -> dict[str, Any] | str:
    """Return some of a replica's settings on a node with these variables, or why there are none."""
    os.environ.update(environment)
    try:
        found = settings_of(arguments, cpus)
    except StartError as error:
        return str(error)
    finally:
        for name in environment:
            del os.environ[name]
    runs = found.runs.get_secret_value() if found.runs else None
    return {"host": found.host, "threads": found.threads, "runs": runs, "access_log": found.access_log}


def health(*states: tuple[float, bool, str | None]) -> list[str]:
    """Return what a replica says of its health at some times, if a worker is ready or a fault is known."""
    replica = object.__new__(Replica)
    replica._unready_since_s = None
    messages = []
    for at_s, ready, fault in states:
        replica.engine = SimpleNamespace(ready=ready, draining=False, fault=fault, obstacle=fault or "no worker")
        module.time = SimpleNamespace(monotonic=lambda at_s=at_s: at_s)
        try:
            replica.check_health()
            messages.append("")
        except RuntimeError as error:
            messages.append(str(error))
    return messages


if __name__ == "__main__":
    facts = {
        "plain": options({"replicas": "3", "device": "cuda", "gpus": "1", "per_node": "1", "cpus": "4"}),
        "scaled": options({"replicas": 2, "max_replicas": 8}),
        "defaults": settings({}, 4),
        "of the node": settings({}, 4, LOSSD_THREADS="7", LOSSD_RUNS="postgresql:///runs", LOSSD_PORT="9000"),
        "given": settings({"threads": "2", "access_log": "all"}, 4, LOSSD_THREADS="7"),
        "misspelt": settings({}, 4, LOSSD_THREAD="7"),
        "no file": settings({"api_keys_file": "/absent"}, 4),
        "restart": health((0, True, None), (1, False, None), (20, False, None), (25, True, None), (50, False, None)),
        "hangs": health((0, False, None), (29, False, None), (31, False, None)),
        "fault": health((0, False, "no worker can be started")),
    }
    print(json.dumps(facts))
