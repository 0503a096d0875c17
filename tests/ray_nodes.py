"""What lets Ray start on a busy machine: priority, patience, compiled modules, and nodes with fewer processes.

A raylet ends if the agents beside it have not started within 15 s, and no setting changes that. An agent takes 2 s of
CPU, and 6 s if its modules are to be compiled first, while the agents of other nodes compile them too.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

__all__ = ["FIRST", "PATIENT", "compiled", "no_dashboard", "small_agents"]

FIRST = ("nice", "-n", "-10")
"""Begins the command of a process that comes before those of other tests, if this user may have it so."""

PATIENT = dict.fromkeys(
    (
        "RAY_raylet_start_wait_time_s", "RAY_gcs_server_port_wait_time_s", "RAY_worker_register_timeout_seconds",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S",
    ),
    "300",
)  # fmt: skip
"""The variables of the limits that can be set, in seconds."""

MODULES = """
import ray.dashboard.agent, ray.dashboard.utils, ray.serve, ray.serve._private.controller
import ray._private.runtime_env.agent.runtime_env_agent
ray.dashboard.utils.get_all_modules(ray.dashboard.utils.DashboardAgentModule)
import ray._private.workers.default_worker
"""


@cache
def compiled() -> None:
    """Import what Ray's processes import, unless it was done before: each of them finds it compiled."""
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        return
    last = Path(ray.origin).parent / "_private/workers/default_worker.py"  # Ray runs it, and imports it nowhere
    if not Path(importlib.util.cache_from_source(str(last))).exists():
        subprocess.run([*FIRST, sys.executable, "-c", MODULES], capture_output=True, check=False)


@contextmanager
def no_dashboard() -> Iterator[None]:
    """Start no process of the dashboard in the block: without the dashboard it would report what is used of Ray."""
    import ray._private.services

    with patch.object(ray._private.services, "start_api_server", lambda *_, **__: (None, None)):
        yield


@contextmanager
def small_agents() -> Iterator[None]:
    """Start this process's nodes in the block with agents that serve no figures, which load a tenth of the modules."""
    import ray._private.utils

    with patch.object(ray._private.utils, "get_dashboard_dependency_error", lambda: ImportError("it is not needed")):
        yield
