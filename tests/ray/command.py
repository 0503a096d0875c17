"""``serve run lossd.ray:app``: what it answers, and which way requests take."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from load import mean_of_squares
from reporting import Logs, request_ids, say

from lossd.ray import url
from lossd.ray.replica import OWN, PROXIED
from lossd_client import LossClient

__all__ = ["serve_run"]

LOCAL = "http://127.0.0.1:8000"
REPLICA = ("127.0.0.1", 30000)
LEVELS = ("ray_lossd_backlog_seconds", "ray_lossd_queue_requests", "ray_lossd_queue_bytes")
TIMES = ("ray_lossd_front_busy_seconds_total", "ray_lossd_worker_busy_seconds_total")
LINES = {"own": OWN, "proxied": PROXIED}
LARGE = (1500, 2000)  # 24 MB of tensors, and 12 MB of gradient


def serve_run(output: Path, cluster: str, arguments: dict[str, Any], logs: Logs) -> None:
    """Run the command on a cluster, print what it does, and kill it; what it has started stays."""
    words = [f"{name}={value}" for name, value in arguments.items()]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    with output.open("w") as file:
        process = subprocess.Popen(["serve", "run", "lossd.ray:app", *words], stdout=file, stderr=file, env=environment)
    begin, random = time.monotonic(), np.random.default_rng(0)
    with LossClient(LOCAL, retries=0) as client:
        right = False
        while not right and process.poll() is None and time.monotonic() - begin < 150:
            with suppress(Exception):
                right = mean_of_squares(client, random)
            time.sleep(0.1)
        say("answered", seconds=time.monotonic() - begin, right=right)
        found = logs.wait_for_one(*LINES.values())
        ways = [name for name, line in LINES.items() if line in found]
        say("way", ids=request_ids(LOCAL), refusal=refusal(), said=ways)
        say("large", right=[mean_of_squares(client, random, LARGE) for _ in range(3)])
    say("published", url=url(), figures=published())
    process.kill()
    process.wait()


def refusal() -> str:
    """Return what the replica's port answers to a request without a Host: uvicorn's own connections accept it."""
    with socket.create_connection(REPLICA) as connection:
        connection.sendall(b"GET /health/ready HTTP/1.1\r\n\r\n")
        return connection.recv(4096).decode()


def published() -> list[str]:
    """The names of lossd's figures among those of the replica's node."""
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Resources"].get("CPU"))
    end = time.monotonic() + 30
    names: set[str] = set()
    while not names >= {*LEVELS, *TIMES} and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            lines = page.read().decode().splitlines()
            names = {line.partition("{")[0] for line in lines if line.startswith("ray_lossd_")}
        time.sleep(0.2)
    return sorted(names)
