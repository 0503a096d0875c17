"""The losses under the headings that a reader looks for."""

from __future__ import annotations

from lossd.losses import REGISTRY
from lossd.losses.registry import Loss

FAMILIES = {
    "regression": "Regression",
    "likelihoods": "Likelihoods",
    "forecasts": "Forecasts",
    "binary": "Binary",
    "classification": "Classification",
    "softmax": "Classification",
    "margin": "Margins",
    "segmentation": "Segmentation",
    "boxes": "Boxes",
    "embedding": "Embeddings",
    "queries": "Queries",
    "generative": "Generative models",
    "perceptual": "Features",
    "sequence": "Sequences",
    "distillation": "Distillation",
    "preference": "Preferences",
    "policy": "Policies",
    "combine": "Losses of losses",
    "expression": "Your own",
}
"""Headings of the losses' modules; a module without one has its name."""


def family(loss: Loss) -> str:
    """The heading a loss is found under."""
    module = loss.function.__module__.rpartition(".")[2]
    return FAMILIES.get(module, module.capitalize())


def by_family() -> dict[str, list[Loss]]:
    """Every loss, in the order of the headings."""
    found: dict[str, list[Loss]] = {heading: [] for heading in dict.fromkeys(FAMILIES.values())}
    for loss in REGISTRY.values():
        found.setdefault(family(loss), []).append(loss)
    return {heading: losses for heading, losses in found.items() if losses}
