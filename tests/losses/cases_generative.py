"""Rows of the losses of generative models. References: torch.nn.functional and the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch, UnknownInput
from losses.case import Array, Case, Parameters, Refused, Stated

NAN = float("nan")
Player = Callable[[Tensor], Tensor]


def players(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"real": rng.normal(0.3, 2, (n, 2)), "fake": rng.normal(-0.3, 2, (n, 2))}


def forgeries(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"fake": rng.normal(0, 2, (n, 2))}


def latents(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    prediction = rng.normal(0, 1, (n, 2, 3))
    target = rng.uniform(0, 1, (n, 2, 3))
    if parameters.get("reconstruction", "bce") == "bce":
        prediction = 1 / (1 + np.exp(-prediction))
    return {
        "prediction": prediction,
        "target": target,
        "mean": rng.normal(0, 1, (n, 4)),
        "log_variance": rng.normal(0, 1, (n, 4)),
    }


def discriminator(of_real: Player, of_fake: Player) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """As many real as fake samples: every value counts a half of a pair."""

    def reference(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.cat([of_real(real), of_fake(fake)])
        return value, torch.full_like(value, 0.5)

    return reference


def bce(target: float) -> Player:
    return lambda logits: functional.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, target), reduction="none"
    )


def squares(target: float) -> Player:
    return lambda scores: 0.5 * functional.mse_loss(scores, torch.full_like(scores, target), reduction="none")


def hinge(target: int) -> Player:
    """torch's hinge of a binary classification: max(0, 1 - y x)."""
    return lambda scores: functional.relu(1 - target * scores)


def generator(of_fake: Player) -> Callable[[Tensor], Tensor]:
    return lambda fake: of_fake(fake)


def gan_generator(fake: Tensor, *, form: str = "non_saturating") -> Tensor:
    return bce(1.0)(fake) if form == "non_saturating" else -bce(0.0)(fake)


def vae(
    prediction: Tensor,
    target: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    reconstruction: str = "bce",
    beta: float = 1.0,
) -> Tensor:
    """The divergence as torch.distributions has it."""
    error = functional.binary_cross_entropy if reconstruction == "bce" else functional.mse_loss
    posterior = Normal(mean, torch.exp(0.5 * log_variance))
    divergence = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    return error(prediction, target, reduction="none").sum((1, 2)) + beta * divergence.sum(1)


DISCRIMINATOR_REFUSED = (
    Refused(UnknownInput, "did you mean fake", inputs={"fakes": [1.0]}),
    Refused(
        ShapeMismatch,
        r"fake has shape \(5, 3\), expected \(M, 2\) since real is \(5, 2\)",
        inputs={"fake": np.zeros((5, 3))},
    ),
    Refused(ShapeMismatch, "empty", inputs={"real": np.zeros((0, 2))}),
)
GENERATOR_REFUSED = (
    Refused(UnknownInput, "'real'", inputs={"real": [1.0]}),
    Refused(ShapeMismatch, "empty", inputs={"fake": np.zeros((0, 2))}),
)
SURE = {"real": [1e4], "fake": [-1e4]}
FOOLED = {"real": [-1e4], "fake": [1e4]}
UNSURE = {"real": [0.0], "fake": [0.0]}
ONE_SAMPLE = {"prediction": [[0.5, 0.5]], "target": [[0, 1]], "mean": [[1.0, 0.0]], "log_variance": [[0.0, 0.0]]}
PERFECT = ONE_SAMPLE | {"prediction": [[0.0, 1.0]], "mean": [[0.0, 0.0]]}


def unequal(loss: float, real: list[float], fake: list[float]) -> Stated:
    """One real sample and three fake ones; each side's gradient is that of its own mean."""
    return Stated("one real, three fake", {"real": [0.0], "fake": [0.0, 2.0, -4.0]}, loss,
                  gradient={"real": real, "fake": fake})  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


CASES = (
    Case(
        "gan_discriminator",
        players,
        discriminator(bce(1.0), bce(0.0)),
        stated=(
            Stated("unsure", UNSURE, 2 * math.log(2), gradient={"real": [-0.5], "fake": [0.5]}),
            Stated("sure and right", SURE, 0, gradient={"real": [0.0], "fake": [0.0]}, warnings={"zero_gradient"}),
            Stated("fooled", FOOLED, 2e4, gradient={"real": [-1.0], "fake": [1.0]}, warnings=set()),
            unequal(math.log(2) + (softplus(0) + softplus(2) + softplus(-4)) / 3,
                    [-0.5], [sigmoid(0) / 3, sigmoid(2) / 3, sigmoid(-4) / 3]),
            Stated("summed", {"real": [0.0, 0.0], "fake": [0.0, 0.0]}, 4 * math.log(2), {"reduction": "sum"}),
        ),
        refused=DISCRIMINATOR_REFUSED,
    ),
    Case(
        "gan_generator",
        forgeries,
        gan_generator,
        ({}, {"form": "saturating"}),
        stated=(
            Stated("found out", {"fake": [-1e4]}, 1e4, gradient={"fake": [-1.0]}),
            Stated("found out, saturating", {"fake": [-1e4]}, 0, {"form": "saturating"}, {"fake": [0.0]},
                   {"zero_gradient"}),
            Stated("fooling", {"fake": [1e4]}, -1e4, {"form": "saturating"}, {"fake": [-1.0]}),
            Stated("weighted", {"fake": [0.0, 9.0], "sample_weight": [1, 0]}, math.log(2),
                   gradient={"fake": [-0.5, 0.0]}),
        ),
        refused=(*GENERATOR_REFUSED, Refused(InvalidRequest, "form", {"form": "minimax"})),
    ),
    Case(
        "wgan_discriminator",
        players,
        discriminator(torch.neg, lambda fake: 1 * fake),
        stated=(
            Stated("far apart", {"real": [3.0], "fake": [-4.0]}, -7, gradient={"real": [-1.0], "fake": [1.0]}),
            unequal(-2 / 3, [-1.0], [1 / 3] * 3),
        ),
        refused=DISCRIMINATOR_REFUSED,
    ),
    Case(
        "wgan_generator",
        forgeries,
        generator(torch.neg),
        stated=(Stated("huge", {"fake": [1e30]}, -1e30),),
        refused=GENERATOR_REFUSED,
    ),
    Case(
        "lsgan_discriminator",
        players,
        discriminator(squares(1.0), squares(0.0)),
        stated=(
            Stated("right", {"real": [1.0], "fake": [0.0]}, 0, warnings={"zero_gradient"}),
            Stated("wrong", {"real": [0.0], "fake": [1.0]}, 1, gradient={"real": [-1.0], "fake": [1.0]}),
            unequal(0.5 + 0.5 * (4 + 16) / 3, [-1.0], [0.0, 2 / 3, -4 / 3]),
        ),
        refused=DISCRIMINATOR_REFUSED,
    ),
    Case(
        "lsgan_generator",
        forgeries,
        generator(squares(1.0)),
        stated=(Stated("found out", {"fake": [0.0]}, 0.5, gradient={"fake": [-1.0]}),),
        refused=GENERATOR_REFUSED,
    ),
    Case(
        "hinge_gan_discriminator",
        players,
        discriminator(hinge(1), hinge(-1)),
        stated=(
            Stated("beyond the margin", SURE, 0, gradient={"real": [0.0], "fake": [0.0]}, warnings={"zero_gradient"}),
            Stated("at the margin", {"real": [1.0], "fake": [-1.0]}, 0, gradient={"real": [0.0], "fake": [0.0]}),
            Stated("unsure", UNSURE, 2, gradient={"real": [-1.0], "fake": [1.0]}),
            unequal(1 + (1 + 3) / 3, [-1.0], [1 / 3, 1 / 3, 0.0]),
        ),
        refused=DISCRIMINATOR_REFUSED,
    ),
    Case(
        "hinge_gan_generator",
        forgeries,
        generator(torch.neg),
        stated=(Stated("one", {"fake": [2.0]}, -2, gradient={"fake": [-1.0]}),),
        refused=GENERATOR_REFUSED,
    ),
    Case(
        "vae",
        latents,
        vae,
        ({}, {"reduction": "mean"}, {"beta": 4.0}, {"reconstruction": "mse", "beta": 0.0}, {"reconstruction": "mse"}),
        {"beta": (0.0, 0.5, 4.0)},
        (
            Stated("one sample", ONE_SAMPLE, 2 * math.log(2) + 0.5, warnings=set()),
            Stated("two samples summed", {name: rows * 2 for name, rows in ONE_SAMPLE.items()}, 4 * math.log(2) + 1,
                   {"reduction": "sum"}),
            Stated("at the prior", PERFECT, 0, warnings={"zero_gradient"}),
            Stated("nearly at the prior", PERFECT | {"log_variance": [[1e-4, 0.0]]}, 2.5e-9, within=1e-12),
            # Beyond float32: the loss is known all the same.
            Stated("large variance", ONE_SAMPLE | {"log_variance": [[100.0, 0.0]]}, 0.5 * math.exp(100)),
            Stated("variance overflows", ONE_SAMPLE | {"log_variance": [[1e3, 0.0]]}, "Infinity",
                   warnings={"non_finite"}),
        ),
        (
            Refused(InvalidValue, r"probabilities expected in \[0, 1\], found 2 at prediction\[0, 1\]",
                    inputs=ONE_SAMPLE | {"prediction": [[0.0, 2.0]]}),
            Refused(InvalidValue, r"values in \[0, 1\] expected, found 7 at target\[0, 0\]",
                    inputs=ONE_SAMPLE | {"target": [[7, 0]]}),
            Refused(InvalidValue, r"finite values expected, found NaN at target", {"reconstruction": "mse"},
                    ONE_SAMPLE | {"target": [[0.5, NAN]]}),
            Refused(ShapeMismatch, r"log_variance has shape \(5, 3\), expected \(5, 4\)",
                    inputs={"log_variance": np.zeros((5, 3))}),
            Refused(ShapeMismatch, r"mean has shape \(4, 4\), expected \(5, D\)", inputs={"mean": np.zeros((4, 4))}),
            Refused(InvalidRequest, "beta.*greater than or equal to 0", {"beta": -1.0}),
        ),
    ),
)  # fmt: skip
