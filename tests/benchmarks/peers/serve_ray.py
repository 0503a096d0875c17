"""lossd under Ray Serve, one replica behind HAProxy on the port of the command line: serve_ray.py PORT."""

import sys

import ray
from ray import serve

from lossd.ray import app

if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False, namespace="serve")
    serve.start(http_options={"host": "0.0.0.0", "port": int(sys.argv[1])})
    serve.run(app({"cpus": 1}), blocking=True)
