"""The address of the service, for programs in the cluster."""

from __future__ import annotations

import ray
from ray import serve

__all__ = ["url"]

PORT = 8000
"""Serve's default."""


def url(port: int = PORT, prefix: str = "") -> str:
    """Return the addresses of the service, for ``LossClient`` in any program of the cluster.

    There is one address for each node that has a proxy of Serve. A client with several addresses survives the end of
    a node.

    Args:
        port: The port of Serve's proxies, if ``http_options`` sets another.
        prefix: The application's ``route_prefix``, if it has one.

    Returns:
        Addresses with commas between them, such as ``http://10.0.0.1:8000,http://10.0.0.2:8000``.

    Raises:
        RuntimeError: The program is not in a Ray cluster, or no proxy of Serve is healthy.
    """
    if not ray.is_initialized():
        raise RuntimeError("this program is in no Ray cluster: call ray.init(address='auto') first")
    healthy = {node for node, status in serve.status().proxies.items() if status.value == "HEALTHY"}
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    hosts = [node["NodeManagerAddress"] for node in nodes if node["NodeID"] in healthy]
    if not hosts:
        raise RuntimeError("no proxy of Ray Serve is healthy: start the service, serve run lossd.ray:app")
    return ",".join(f"http://{_bracketed(host)}:{port}{prefix.rstrip('/')}" for host in sorted(set(hosts)))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
