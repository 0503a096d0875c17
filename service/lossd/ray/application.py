"""The application of Ray Serve: ``serve run lossd.ray:app replicas=4 device=cuda gpus=1 per_node=1``."""

from __future__ import annotations

from typing import Any

from ray import serve

from lossd.ray.arguments import Arguments
from lossd.ray.replica import HAPROXY, Replica
from lossd.ray.scaling import policy

__all__ = ["app"]

DRAIN_S = 90.0
"""A replica stays reachable for 30 s until every HAProxy has dropped it, and then finishes its requests, of which the
longest by default takes 60 s."""

UNLIMITED = 1_000_000
"""Serve's limit of requests in progress; lossd has limits of its own, by bytes."""

UP_S, DOWN_S, AVERAGED_S = 5.0, 300.0, 15.0


def app(arguments: dict[str, Any]) -> serve.Application:
    """Return the application.

    Args:
        arguments: ``replicas``, ``max_replicas``, ``cpus``, ``gpus`` and ``per_node``, see
            :class:`lossd.ray.arguments.ReplicaPlacement`; all others are lossd's settings.

    Raises:
        StartError: An argument is unknown or invalid.
    """
    chosen = Arguments.of(arguments)
    placement = chosen.placement
    options: dict[str, Any] = {"num_replicas": placement.replicas}
    if placement.max_replicas is not None:
        options = {
            "autoscaling_config": {
                "min_replicas": placement.replicas,
                "max_replicas": placement.max_replicas,
                "upscale_delay_s": UP_S,
                "downscale_delay_s": DOWN_S,
                "look_back_period_s": AVERAGED_S,
                "policy": {"policy_function": policy},
            }
        }
    if placement.per_node is not None:
        options["max_replicas_per_node"] = placement.per_node
    environment = {
        # A node that was started without it would have replicas that no HAProxy can reach.
        HAPROXY: "1",
        # One thread for Serve and for lossd: engine and connections share an event loop.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    }
    deployment = serve.deployment(
        name="lossd",
        max_ongoing_requests=UNLIMITED,
        graceful_shutdown_timeout_s=DRAIN_S,
        health_check_period_s=2,
        ray_actor_options={
            "num_cpus": placement.cpus,
            "num_gpus": placement.gpus,
            "runtime_env": {"env_vars": environment},
        },
        **options,
    )(serve.ingress()(Replica))
    return deployment.bind(chosen.settings, placement.cpus)
