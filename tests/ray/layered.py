"""A service whose requests come through Serve's Python proxy, because there is no HAProxy.

Run it in a network and a process namespace of its own, with the path of its output as argument.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import ray
from load import mean_of_squares
from ray import serve
from reporting import ray_starts, request_ids, say

from lossd.ray import app, url
from lossd.ray.replica import OWN, PROXIED
from lossd_client import LossClient
from ray_nodes import small_agents

LARGE = (1500, 2000)


def main(output: Path) -> None:
    """Start the service, ask it, and wait until its log says which way requests take."""
    with ray_starts(), small_agents():
        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, namespace="serve")
        serve.start(http_options={"port": 8000})
    serve.run(app({"cpus": 1, "compiled": False, "log_format": "text"}))
    random = np.random.default_rng(0)
    with LossClient(url(), retries=0) as client:
        right = [mean_of_squares(client, random), mean_of_squares(client, random, LARGE)]
    end = time.monotonic() + 60
    while (text := output.read_text()) and PROXIED not in text and OWN not in text and time.monotonic() < end:
        time.sleep(0.2)
    say("layered", right=right, ids=request_ids(url()), warned=PROXIED in text, own=OWN in text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # what is left ends with its namespace
