"""One replica: lossd's front in Ray's process, with its worker as a child.

Serve's layers take requests from uvicorn, and answer through several tasks and queues: for small requests that is more
than twice the work of lossd. The port of a replica is therefore lossd's own: Serve starts uvicorn without saying which
connections to use, and uvicorn's default is replaced by lossd's. If a release of Ray starts its server in another way,
requests come through Serve's layers instead: slower, and answered alike.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import time
from typing import Any

from pydantic import ValidationError
from ray.serve.metrics import Counter, Gauge

from lossd.api import create_app
from lossd.api.embedded import Embedded
from lossd.api.http.uvicorn_internals import replace_default_protocol
from lossd.api.server import within_files
from lossd.configuration.machine import tune_allocator
from lossd.configuration.preflight import StartError, check_needs, check_variables, sentence, variable
from lossd.configuration.settings import Settings
from lossd.engine import Engine, create_engine
from lossd.logs import handler
from lossd.ray.scaling import Meter

__all__ = ["HAPROXY", "OWN", "OWN_PATHS", "PROXIED", "Replica", "settings_of"]

log = logging.getLogger("lossd.ray")

HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"

OWN_PATHS = "/-/"
"""Serve's own paths: HAProxy asks ``/-/healthz`` whether a replica is healthy."""

UNREADY_S = 30.0
"""How long a replica may be without a worker. A worker that ended is restarted within seconds, and its requests wait;
Serve would end the replica and lose them."""

LISTED_S = 15.0
"""HAProxy asks each replica for its health every 5 s at most; after this time without a connection there is none."""

PUBLISH_S = 5.0

OWN = "HAProxy reaches lossd's own connections at this replica"
PROXIED = (
    "HAProxy has not reached lossd's own connections at this replica. Without it, Ray Serve's Python proxy carries the "
    "requests, for 40 to 75 times the CPU of a small one, 16 times of 377 KB and 6 times of 24 MB: set "
    f"{HAPROXY}=1 for every ray start, and for serve run. If it is set, this release of Ray starts its servers in "
    "another way, and small requests take 2 to 3 times the CPU"
)


class Replica:
    """What Serve runs in each replica.

    Args:
        settings: lossd's settings that differ from the node's environment.
        cpus: The cores that Ray gave the replica.
    """

    def __init__(self, settings: dict[str, Any], cpus: float) -> None:
        tune_allocator()
        self._settings = settings_of(settings, cpus)
        _log_to_ray(self._settings)
        self._settings = within_files(self._settings)
        self.engine: Engine = create_engine(self._settings)
        self._unready_since_s: float | None = None

    def __serve_build_asgi_app__(self) -> Embedded:
        """Return the application; Serve calls this before it starts the server."""
        service = create_app(self._settings, self.engine, wait_ready=True)
        self.embedded = Embedded(service, self._settings, OWN_PATHS)
        replace_default_protocol(self.embedded.connection)
        if not self._settings.has_keys:
            log.warning("the cluster's network reaches this replica, and no API keys are set: anybody may ask")
        self._meter: Meter | None = None
        self._tasks = [asyncio.create_task(work) for work in (self._say_which_path(), self._publish())]
        return self.embedded

    def check_health(self) -> None:
        """Raise RuntimeError if the replica should be replaced."""
        if self.engine.ready or self.engine.draining:
            self._unready_since_s = None
            return
        now_s = time.monotonic()
        if self._unready_since_s is None:
            self._unready_since_s = now_s
        if self.engine.fault is not None or now_s - self._unready_since_s > UNREADY_S:
            raise RuntimeError(self.engine.obstacle)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load since the last call, for :func:`lossd.ray.scaling.policy`."""
        if self._meter is None:
            self._meter = Meter(self.engine)
        return self._meter.read()

    async def _say_which_path(self) -> None:
        """Log whether requests come to lossd's own connections, and what it costs if they do not."""
        await self.engine.settled.wait()
        for _ in range(math.ceil(LISTED_S / 0.1)):
            await asyncio.sleep(0.1)
            if self.embedded.passed_on:
                log.info(OWN)
                return
        log.warning(PROXIED)

    async def _publish(self) -> None:
        """Publish the load by ``ray.util.metrics``, for dashboards of the cluster; ``/metrics`` is of one replica."""
        backlog = Gauge("lossd_backlog_seconds", "Time that the worker takes for the requests that wait.")
        requests = Gauge("lossd_queue_requests", "Requests in progress.")
        nbytes = Gauge("lossd_queue_bytes", "Bytes that requests in progress hold.")
        front = _Growing("lossd_front_busy_seconds", "Time that the front was busy.")
        workers = _Growing("lossd_worker_busy_seconds", "Time that the workers were busy.")
        while True:
            load = self.engine.load
            backlog.set(load.backlog_s)
            requests.set(self.engine.in_progress)
            nbytes.set(self.engine.budget.held_bytes)
            front.reach(load.front_busy_s)
            workers.reach(sum(load.worker_busy_s.values()))
            await asyncio.sleep(PUBLISH_S)


class _Growing:
    """A counter of Ray, which takes differences, set to values that grow."""

    def __init__(self, name: str, description: str) -> None:
        self._counter = Counter(name, description)
        self._reached = 0.0

    def reach(self, value: float) -> None:
        """Raise the counter to this value."""
        if value > self._reached:
            self._counter.inc(value - self._reached)
            self._reached = value


def _log_to_ray(settings: Settings) -> None:
    """Write lossd's log to the process's standard error, which Ray shows; Serve replaces ``sys.stderr`` by its log."""
    writer = handler(settings.log_format)
    if sys.__stderr__ is not None:
        writer.setStream(sys.__stderr__)
    lossd = logging.getLogger("lossd")
    lossd.handlers, lossd.propagate = [writer], False
    lossd.setLevel(settings.log_level.upper())


def settings_of(values: dict[str, Any], cpus: float) -> Settings:
    """Return a replica's settings, checked on its node.

    Args:
        values: The settings among the application's arguments. Three defaults differ from ``lossd serve``: a worker has
            a thread for each core of its replica, less one; there are no runs, because replicas share no file; and
            only problems are logged, because Ray copies every line of the log to the driver.
        cpus: The cores of the replica.

    Raises:
        StartError: A setting or a file is invalid on this node.
    """
    check_variables(os.environ)
    defaults: dict[str, Any] = {"threads": max(1, math.ceil(cpus) - 1), "runs": "off", "access_log": "problems"}
    chosen = {name: value for name, value in defaults.items() if variable(name) not in os.environ}
    fixed = {"host": "0.0.0.0", "port": 0, "fronts": 1}
    try:
        settings = Settings(**{**chosen, **values, **fixed})
    except ValidationError as error:
        raise StartError("; ".join(sentence(fault, str) for fault in error.errors())) from None
    check_needs(settings)
    return settings
