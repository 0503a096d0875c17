"""A service on a cluster whose requests come through Serve's Python proxy, because there is no HAProxy.

The arguments are the address of the cluster and the path of the output.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import ray
from load import mean_of_squares
from ray import serve
from reporting import request_ids, say

from lossd.ray import app, url
from lossd.ray.replica import OWN, PROXIED
from lossd_client import LossClient

LARGE = (1500, 2000)
WITHOUT_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
"""The variables of the controller and the proxy, which are else those that the cluster was started with."""


def main(cluster: str, output: Path) -> None:
    """Start the service, ask it, wait until its log says which way requests take, and end it."""
    ray.init(cluster, namespace="serve", runtime_env={"env_vars": WITHOUT_HAPROXY})
    serve.start(proxy_location="HeadOnly", http_options={"port": 8000})
    serve.run(app({"cpus": 1, "compiled": False, "log_format": "text"}))
    random = np.random.default_rng(0)
    with LossClient(url(), retries=0) as client:
        right = [mean_of_squares(client, random), mean_of_squares(client, random, LARGE)]
    end = time.monotonic() + 60
    while (text := output.read_text()) and PROXIED not in text and OWN not in text and time.monotonic() < end:
        time.sleep(0.2)
    say("layered", right=right, ids=request_ids(url()), warned=PROXIED in text, own=OWN in text)
    serve.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
