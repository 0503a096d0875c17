"""The two terms of the variational autoencoder, and how much of its latent is in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.binary import entropy_of_logits
from lossd.losses.elementary import row_total
from lossd.losses.registry import Input
from lossd.metrics.contributions import Products, products
from lossd.metrics.cutoffs import slack
from lossd.metrics.entries import Entries, rowwise
from lossd.metrics.parts import Mean, Moments, Size
from lossd.metrics.registry import Floats, Task, metric, task
from lossd.metrics.signature import SAMPLE_WEIGHT, constant_input, floats, numbers, prediction

__all__ = ["Autoencoder"]

# A unit of the latent that varies less than this from sample to sample carries nothing.
ACTIVE_VARIANCE = 0.01


@task("vae")
class Autoencoder(Task):
    """Reconstructions and the normal posterior of their latent."""

    @cached_property
    def entries(self) -> Entries:
        """The samples that count."""
        return Entries(self.view)

    @Size
    def samples(self) -> torch.Size:
        """How many samples count, (B,)."""
        return torch.Size((self.view.segments.total, 1))

    @Mean
    def error(self) -> Tensor:
        """The reconstruction term of each sample."""
        view = self.view

        def error(p: Tensor, t: Tensor) -> Tensor:
            p, t = p.double(), t.double()
            if view.parameters.get("reconstruction") == "mse":
                value = (p - t).square()
            elif view.activation == "logits":
                value = entropy_of_logits(p, t)
            else:
                # As torch clamps them; its own binary_cross_entropy takes three times as long on a CPU.
                yes, no = p.log().clamp_(min=-100), torch.log1p(-p).clamp_(min=-100)
                value = -(t * yes + (1 - t) * no)
            return row_total(value, keepdim=True, dtype=torch.float64)

        return rowwise(error, *(view.tensors[n].reshape(view.segments.total, -1) for n in ("prediction", "target")))

    @Mean
    def divergence(self) -> Tensor:
        """The divergence of each sample's posterior from the standard normal."""
        mean, log_variance = (self.view.tensors[name].double() for name in ("mean", "log_variance"))
        return 0.5 * row_total(mean.square() + torch.expm1(log_variance) - log_variance, keepdim=True)

    @Moments
    def latent_means(self) -> Products:
        """The mean of each sample's posterior, by unit of the latent."""
        mean = self.view.tensors["mean"].double().numpy(force=True)
        return products(self.entries, *mean.T[..., None], pairs=tuple((unit, unit) for unit in range(mean.shape[1])))

    @cached_property
    def variance(self) -> Floats:
        """How much the mean of each unit varies between samples, (B, D)."""
        if self.latent_means is not None:
            return self.latent_means.variances()
        mean = self.view.tensors["mean"].double()
        samples = np.where(self.samples > 0, self.samples, 1)[:, None]
        kept = None if self.view.ignored is None else ~self.view.ignored
        mean = mean if kept is None else mean * kept
        centre = torch.from_numpy(self.entries.sums(mean) / samples).to(mean.device)
        squares = (mean - centre[self.view.segments.index]).square()
        return self.entries.sums(squares if kept is None else squares * kept) / samples

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: reconstructions, their targets, and the latent's posterior."""
        return (
            prediction(options, "N *"),
            constant_input("target", "What was to be reconstructed, in [0, 1].", numbers("mask", "N *")),
            constant_input("mean", "Mean of the latent's posterior.", floats("real", "N D")),
            constant_input("log_variance", "Logarithm of its variance.", floats("real", "N D")),
            SAMPLE_WEIGHT,
        )


@metric("vae", default=True, reads=("error",), better="lower", interval="positive")
def reconstruction(task: Autoencoder) -> Sequence[Any]:
    """The reconstruction term: binary cross-entropy or squared error, summed over a sample, the mean over samples."""
    return task.quotients("reconstruction", *task.error)


@metric("vae", default=True, reads=("divergence",), better="lower", interval="positive")
def kl(task: Autoencoder) -> Sequence[Any]:
    """The divergence of the posterior from the standard normal, summed over the latent, the mean over samples.

    Without the loss's weight beta.
    """
    return task.quotients("kl", *task.divergence)


@metric("vae", default=True, reads=("latent_means", "samples"), interval=None)
def active_units(task: Autoencoder) -> Sequence[Any]:
    """The number of latent units in use: those whose mean has a variance above 0.01 over the samples.

    References:
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2015, arXiv:1509.00519.
    """
    active = task.variance * (1 - slack(task.view.computed("mean"))) > ACTIVE_VARIANCE
    return task.numbers("active_units", active.sum(1), task.samples == 0)
