"""A service on a cluster whose requests come through Serve's Python proxy, because there is no HAProxy.

The arguments are the address of the cluster and the folder of its logs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import ray
from load import mean_of_squares
from ray import serve
from reporting import Logs, request_ids, say

from lossd.ray import app, url
from lossd.ray.replica import OWN, PROXIED
from lossd_client import LossClient

LARGE = (1500, 2000)
WITHOUT_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
"""The variables of the controller and the proxy, which are else those that the cluster was started with."""


def main(cluster: str, folder: Path) -> None:
    """Start the service, ask it, wait until its log says which way requests take, and end it."""
    logs = Logs(folder)
    ray.init(cluster, namespace="serve", runtime_env={"env_vars": WITHOUT_HAPROXY}, log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"port": 8000})
    serve.run(app({"cpus": 1, "compiled": False, "log_format": "text"}))
    random = np.random.default_rng(0)
    with LossClient(url(), retries=0) as client:
        right = [mean_of_squares(client, random), mean_of_squares(client, random, LARGE)]
    lines = logs.wait_for_one(PROXIED, OWN)
    say("layered", right=right, ids=request_ids(url()), warned=PROXIED in lines, own=OWN in lines)
    serve.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
