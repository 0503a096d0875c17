"""Losses of generative models: discriminator and generator of adversarial training, the variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lossd.lazy_torch import Tensor, functional, torch
from lossd.losses.elementary import row_total
from lossd.losses.registry import Refinement, Unreduced, loss
from lossd.losses.types import Finite, Logits, Mask, NonNegative, Probability, Real, TensorType

Form = Literal["non_saturating", "saturating"]
Reconstruction = Literal["bce", "mse"]


def _one_after_the_other(_: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    real, fake = shapes["real"], shapes["fake"]
    return (real[0] + fake[0], *real[1:])


@loss(task="gan", kind="stack", differentiable=("real", "fake"), shape=_one_after_the_other)
def gan_discriminator(real: Logits[Tensor, "N *"], fake: Logits[Tensor, "M *"]) -> Real[Tensor, "N *"] | Unreduced:
    r"""Binary cross-entropy of a discriminator: real samples are 1, fake ones 0.

    .. math:: -\operatorname{mean}\log\sigma(r) - \operatorname{mean}\log(1 - \sigma(f))

    Args:
        real: The discriminator's logits r of real samples.
        fake: Its logits f of generated samples; there may be more or fewer.

    Returns:
        One value per logit, the real ones first, so weighted that their mean is the sum of the two means: by 1 each
        where there are as many real as fake samples, which is also the mean's denominator; else the fewer weigh more.

    Gradient:
        With respect to ``real`` and ``fake``.

    References:
        I. Goodfellow et al., Generative Adversarial Networks, 2014, arXiv:1406.2661.
    """
    return _two_means(-functional.logsigmoid(real), -functional.logsigmoid(-fake))


@loss(task="gan_generator", kind="rows", differentiable=("fake",), elementwise=True)
def gan_generator(fake: Logits[Tensor, "N *"], *, form: Form = "non_saturating") -> Real[Tensor, "N *"]:
    r"""The loss of a generator against a discriminator trained with gan_discriminator.

    .. math:: -\log\sigma(f) \;\text{(non-saturating)}, \quad \log(1 - \sigma(f)) \;\text{(saturating)}

    Args:
        fake: The discriminator's logits f of generated samples.
        form: "non_saturating" keeps its gradient where the discriminator is sure; "saturating" is the minimax game's
            own, <= 0.

    Returns:
        One value per logit, unreduced.

    Gradient:
        With respect to ``fake``.

    References:
        I. Goodfellow et al., Generative Adversarial Networks, 2014, arXiv:1406.2661.
    """
    return -functional.logsigmoid(fake) if form == "non_saturating" else functional.logsigmoid(-fake)


@loss(task="gan", kind="stack", differentiable=("real", "fake"), shape=_one_after_the_other)
def wgan_discriminator(real: Real[Tensor, "N *"], fake: Real[Tensor, "M *"]) -> Real[Tensor, "N *"] | Unreduced:
    r"""The loss of a Wasserstein critic: the mean score of the fake samples minus that of the real ones.

    .. math:: -(\operatorname{mean} r - \operatorname{mean} f)

    Args:
        real: The critic's scores r of real samples, any real.
        fake: Its scores f of generated samples; there may be more or fewer.

    Returns:
        One value per score, the real ones first, weighted as in ``gan_discriminator``.

    Gradient:
        With respect to ``real`` and ``fake``: constants. The critic's own constraint is for the client to keep.

    References:
        M. Arjovsky, S. Chintala, L. Bottou, Wasserstein GAN, 2017, arXiv:1701.07875.
    """
    return _two_means(-real, fake)


@loss(task="gan_generator", kind="rows", differentiable=("fake",), elementwise=True)
def wgan_generator(fake: Real[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""The loss of a generator against a Wasserstein critic.

    .. math:: -f

    Args:
        fake: The critic's scores f of generated samples, any real.

    Returns:
        One value per score, unreduced.

    Gradient:
        With respect to ``fake``: a constant.

    References:
        M. Arjovsky, S. Chintala, L. Bottou, Wasserstein GAN, 2017, arXiv:1701.07875.
    """
    return -fake


@loss(task="lsgan", kind="stack", differentiable=("real", "fake"), shape=_one_after_the_other)
def lsgan_discriminator(real: Real[Tensor, "N *"], fake: Real[Tensor, "M *"]) -> Real[Tensor, "N *"] | Unreduced:
    r"""Least squares of a discriminator: real samples are 1, fake ones 0.

    .. math:: \tfrac12\operatorname{mean}(r - 1)^2 + \tfrac12\operatorname{mean} f^2

    Args:
        real: The discriminator's scores r of real samples, any real.
        fake: Its scores f of generated samples; there may be more or fewer.

    Returns:
        One value per score, the real ones first, weighted as in ``gan_discriminator``.

    Gradient:
        With respect to ``real`` and ``fake``.

    References:
        X. Mao et al., Least Squares Generative Adversarial Networks, 2017, arXiv:1611.04076.
    """
    return _two_means(0.5 * (real - 1).square(), 0.5 * fake.square())


@loss(task="lsgan_generator", kind="rows", differentiable=("fake",), elementwise=True)
def lsgan_generator(fake: Real[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""The loss of a generator against a least-squares discriminator.

    .. math:: \tfrac12 (f - 1)^2

    Args:
        fake: The discriminator's scores f of generated samples, any real.

    Returns:
        One value per score, >= 0, unreduced.

    Gradient:
        With respect to ``fake``.

    References:
        X. Mao et al., Least Squares Generative Adversarial Networks, 2017, arXiv:1611.04076.
    """
    return 0.5 * (fake - 1).square()


@loss(task="gan", kind="stack", differentiable=("real", "fake"), shape=_one_after_the_other)
def hinge_gan_discriminator(real: Real[Tensor, "N *"], fake: Real[Tensor, "M *"]) -> Real[Tensor, "N *"] | Unreduced:
    r"""Hinge loss of a discriminator: real samples above 1, fake ones below -1.

    .. math:: \operatorname{mean}\max(0, 1 - r) + \operatorname{mean}\max(0, 1 + f)

    Args:
        real: The discriminator's scores r of real samples, any real.
        fake: Its scores f of generated samples; there may be more or fewer.

    Returns:
        One value per score, the real ones first, weighted as in ``gan_discriminator``.

    Gradient:
        With respect to ``real`` and ``fake``; 0 beyond the margin.

    References:
        J. H. Lim, J. C. Ye, Geometric GAN, 2017, arXiv:1705.02894.
    """
    return _two_means(torch.relu(1 - real), torch.relu(1 + fake))


@loss(task="gan_generator", kind="rows", differentiable=("fake",), elementwise=True)
def hinge_gan_generator(fake: Real[Tensor, "N *"]) -> Real[Tensor, "N *"]:
    r"""The loss of a generator against a discriminator with the hinge loss.

    .. math:: -f

    Args:
        fake: The discriminator's scores f of generated samples, any real.

    Returns:
        One value per score, unreduced.

    Gradient:
        With respect to ``fake``: a constant.

    References:
        J. H. Lim, J. C. Ye, Geometric GAN, 2017, arXiv:1705.02894.
    """
    return -fake


def _two_means(real: Tensor, fake: Tensor) -> Unreduced:
    """The values of both, so weighted that their mean is the sum of the two means."""
    n, m = real.shape[0], fake.shape[0]
    of_real, of_fake = (n + m) / (2 * n), (n + m) / (2 * m)
    value = torch.cat([real * of_real, fake * of_fake])
    weight = torch.cat([torch.full_like(real, of_real / 2), torch.full_like(fake, of_fake / 2)])
    return Unreduced(value, weight)


def _vae_inputs(parameters: Mapping[str, Any]) -> Refinement:
    if parameters["reconstruction"] == "bce":
        return Refinement()
    return Refinement(
        inputs={
            "prediction": TensorType("real", ("float",), ("N", "*")),
            "target": TensorType("finite", ("float",), ("N", "*")),
        }
    )


@loss(
    task="vae",
    kind="rows",
    differentiable=("prediction", "mean", "log_variance"),
    reductions=("batchmean", "mean", "sum", "none"),
    refine=_vae_inputs,
    elementwise=True,
)
def vae(
    prediction: Probability[Tensor, "N *"],
    target: Mask[Tensor, "N *"] | Finite[Tensor, "N *"],
    mean: Real[Tensor, "N D"],
    log_variance: Real[Tensor, "N D"],
    *,
    reconstruction: Reconstruction = "bce",
    beta: NonNegative = 1.0,
) -> Real[Tensor, "N"]:
    r"""The negative evidence lower bound of a variational autoencoder with a normal latent.

    .. math:: \sum \operatorname{rec}(x', x) + \tfrac{\beta}{2} \sum_d \left(\mu_d^2 + e^{s_d} - 1 - s_d\right)

    Args:
        prediction: The reconstruction x': probabilities, or any real where ``reconstruction`` is "mse".
        target: What was to be reconstructed, x, in the same shape; in [0, 1] for "bce".
        mean: Mean μ of the latent's posterior.
        log_variance: Logarithm s of its variance. Where e^s overflows the loss is infinite, and the answer says so.
        reconstruction: "bce", the sum of the elements' binary cross-entropies (their logarithms clamped at -100), or
            "mse", the sum of squared differences.
        beta: Weight β of the divergence from the standard normal.

    Returns:
        One value per sample, summed over its elements and its latent, unreduced; the mean is over the samples.

    Gradient:
        With respect to ``prediction``, ``mean`` and ``log_variance``.

    References:
        D. P. Kingma, M. Welling, Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114.
        I. Higgins et al., beta-VAE, 2017.
    """
    if reconstruction == "bce":
        error = functional.binary_cross_entropy(prediction, target, reduction="none")
    else:
        error = (prediction.double() - target.double()).square()
    mean, log_variance = mean.double(), log_variance.double()
    divergence = 0.5 * row_total(mean.square() + _beyond_one(log_variance))
    return row_total(error.reshape(error.shape[0], -1), dtype=torch.float64) + beta * divergence


def _beyond_one(s: Tensor) -> Tensor:
    """e^s - 1 - s; near 0, where that would cancel, by its series."""
    near = s.clamp(-0.05, 0.05)
    series = torch.ones_like(near)
    for n in range(9, 2, -1):
        series = 1 + series * near / n
    return torch.where(s.abs() < 0.05, series * near * near / 2, torch.expm1(s) - s)
