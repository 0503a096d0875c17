"""Finds a loss by its name, and proposes known names for an unknown one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType

from lossd.losses.names import folded, meaning
from lossd.losses.registry import REGISTRY, Loss
from lossd_client.errors import UnknownLoss
from lossd_client.wire.quoting import quoted

__all__ = ["advice", "closest", "closest_losses", "find_loss"]

MOST_NEAR = 3
"""The most names that an error proposes."""


def find_loss(name: str, *, listed_by: str = "GET /v1/losses") -> Loss:
    """Return the loss of that name.

    Args:
        name: The loss's name.
        listed_by: The command or route that lists all names, for the error.

    Raises:
        UnknownLoss: No loss has that name; the detail names the closest ones.
    """
    if name not in REGISTRY:
        raise UnknownLoss(f"there is no loss named {quoted(name)}; {advice(name, listed_by)}")
    return REGISTRY[name]


def advice(name: str, listed_by: str) -> str:
    """Return what to use instead of a name that no loss has, as the end of a sentence."""
    meant = meaning(name)
    if meant.note:
        return meant.note
    near = closest_losses(name)
    if meant.metric is not None and meant.loss is None and not (near and folded(near[0]) in meant.keys):
        return f"it is a metric, {meant.metric}: ask for it in metrics.names"
    return (f"did you mean {' or '.join(near)}? " if near else "") + f"{listed_by} lists them all"


def closest_losses(name: str) -> list[str]:
    """Return the losses that other libraries call by a name that none has, else up to three with a similar name."""
    meant = meaning(name)
    exact = [meant.loss] if meant.loss is not None else [ours for ours in REGISTRY if folded(ours) in meant.keys]
    return exact or closest(name, REGISTRY)


def closest(name: str, known: Collection[str], synonyms: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return up to three known names closest to an unknown one, a synonym's meaning first."""
    plain = name.lower().replace("-", "_").removesuffix("_loss")
    near = [synonyms[key] for key in (name.lower(), plain) if key in synonyms]
    if len(plain) <= 3 * max(map(len, known), default=0):  # a longer one is similar to none, and takes long to compare
        near += difflib.get_close_matches(plain, list(known), n=MOST_NEAR, cutoff=0.6)
    return list(dict.fromkeys(n for n in near if n in known))[:MOST_NEAR]
