"""The two terms of the variational autoencoder, and how much of its latent is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.registry import Input
from lossd.metrics.cutoffs import slack
from lossd.metrics.entries import Entries, rowwise
from lossd.metrics.registry import Task, View, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, floats, given, numbers, prediction

__all__ = ["Autoencoder"]

# A unit of the latent that varies less than this from sample to sample carries nothing.
ACTIVE_VARIANCE = 0.01


@task("vae")
class Autoencoder(Task):
    """Reconstructions and the normal posterior of their latent."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self.entries = Entries(view)
        self.samples = self.entries.size(torch.Size((view.segments.total, 1)))

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: reconstructions, their targets, and the latent's posterior."""
        return (
            prediction(options, "N *"),
            given("target", "What was to be reconstructed, in [0, 1].", numbers("mask", "N *")),
            given("mean", "Mean of the latent's posterior.", floats("real", "N D")),
            given("log_variance", "Logarithm of its variance.", floats("real", "N D")),
            SAMPLE_WEIGHT,
        )


@metric("vae", default=True)
def reconstruction(task: Autoencoder) -> Sequence[Any]:
    """The reconstruction term: binary cross-entropy or squared error, summed over a sample, the mean over samples."""
    view = task.view

    def error(p: Tensor, t: Tensor) -> Tensor:
        if view.parameters.get("reconstruction") == "mse":
            value = (p.double() - t.double()).square()
        elif view.activation == "logits":
            value = functional.binary_cross_entropy_with_logits(p, t, reduction="none")
        else:
            # As torch clamps them; its own binary_cross_entropy takes three times as long on a CPU.
            yes, no = p.log().clamp_(min=-100), torch.log1p(-p).clamp_(min=-100)
            value = -(t * yes + (1 - t) * no)
        return value.sum(1, keepdim=True, dtype=torch.float64)

    rows = rowwise(error, *(view.tensors[name].reshape(view.segments.total, -1) for name in ("prediction", "target")))
    return task.quotients("reconstruction", task.entries.total_of_rows(rows)[:, 0], task.samples)


@metric("vae", default=True)
def kl(task: Autoencoder) -> Sequence[Any]:
    """The divergence of the posterior from the standard normal, summed over the latent, the mean over samples.

    Without the loss's weight beta.
    """
    mean, log_variance = (task.view.tensors[name].double() for name in ("mean", "log_variance"))
    rows = 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance).sum(1, keepdim=True)
    return task.quotients("kl", task.entries.total_of_rows(rows)[:, 0], task.samples)


@metric("vae", default=True)
def active_units(task: Autoencoder) -> Sequence[Any]:
    """How many units of the latent are in use: their mean varies by more than 0.01 (its variance) between samples.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2015, arXiv:1509.00519.
    """
    mean = task.view.tensors["mean"].double()
    samples = np.where(task.samples > 0, task.samples, 1)[:, None]
    centre = torch.from_numpy(task.entries.total_of_rows(mean) / samples).to(mean.device)
    variance = task.entries.total_of_rows((mean - centre[task.view.segments.index]).square()) / samples
    active = variance * (1 - slack(task.view.computed("mean"))) > ACTIVE_VARIANCE
    return task.numbers("active_units", active.sum(1), task.samples == 0)
