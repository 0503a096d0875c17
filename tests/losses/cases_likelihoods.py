"""Rows of the negative log-likelihoods. Reference: torch.distributions, unless a comment says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Gamma, Laplace, NegativeBinomial, StudentT
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated
from losses.cases_regression import ELEMENTWISE_REFUSED, elementwise, pairs


def counts(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    prediction = rng.normal(0, 1, (n, 4)) if parameters.get("log_input", True) else rng.uniform(0.1, 5, (n, 4))
    return {"prediction": prediction, "target": rng.poisson(2, (n, 4)).astype(float)}


def normals(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return pairs(rng, n, parameters) | {"variance": rng.uniform(0.1, 3, (n, 3, 2))}


def amounts(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return counts(rng, n, parameters) | {"target": rng.gamma(2, 1, (n, 4))}


def claims(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Amounts of which a third is 0."""
    drawn = amounts(rng, n, parameters)
    return drawn | {"target": drawn["target"] * (rng.uniform(size=(n, 4)) > 0.33)}


def dispersed(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Counts, their means, and dispersions at which torch's functions are exact enough."""
    return counts(rng, n, {"log_input": False}) | {"dispersion": rng.uniform(0.1, 2, (n, 4))}


def scaled(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return pairs(rng, n, parameters) | {"scale": rng.uniform(0.2, 3, (n, 3, 2))}


def heavy_tailed(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    df = np.where(rng.uniform(size=(n, 3, 2)) < 0.3, 300.0, rng.uniform(0.5, 30, (n, 3, 2)))
    return scaled(rng, n, parameters) | {"df": df}


def gamma_nll(
    prediction: Tensor, target: Tensor, *, log_input: bool = True, full: bool = False, shape: float = 1.0
) -> Tensor:
    mean = prediction.exp() if log_input else prediction
    if not full:
        return shape * (mean.log() + target / mean)
    return -Gamma(torch.full_like(mean, shape), shape / mean).log_prob(target)


def tweedie(prediction: Tensor, target: Tensor, *, log_input: bool = True, power: float = 1.5) -> Tensor:
    mean = prediction.exp() if log_input else prediction
    return mean ** (2 - power) / (2 - power) - target * mean ** (1 - power) / (1 - power)


def negative_binomial_nll(prediction: Tensor, target: Tensor, dispersion: Tensor, *, full: bool = True) -> Tensor:
    whole = -NegativeBinomial(1 / dispersion, logits=(dispersion * prediction).log()).log_prob(target)
    return whole if full else whole - torch.lgamma(target + 1)


def beta_nll(
    prediction: Tensor, target: Tensor, variance: Tensor, *, beta: float = 0.0, full: bool = False, eps: float = 1e-6
) -> Tensor:
    """As in Seitzer et al. 2022, equation 5."""
    nll = functional.gaussian_nll_loss(prediction, target, variance, full=full, eps=eps, reduction="none")
    return variance.detach().clamp(min=eps) ** beta * nll


def not_positive(name: str, others: Sequence[str]) -> Refused:
    return Refused(
        InvalidValue,
        rf"finite values > 0 expected, found 0 at {name}\[1\]",
        inputs={**{other: [1.0, 1.0] for other in others}, name: [1.0, 0.0]},
    )


CASES = (
    Case(
        "poisson_nll",
        counts,
        elementwise(functional.poisson_nll_loss),
        parameters=({}, {"full": True}, {"log_input": False, "eps": 1e-3}, {"log_input": False, "full": True}),
        vary={"eps": (1e-8, 1e-3, 1.0)},
        stated=(
            Stated("integer counts", {"prediction": [0.0, 0.0], "target": [0, 3]}, 1.0, gradient=[0.5, -1.0]),
            Stated(
                "no rate, no count",
                {"prediction": [0.0], "target": [0.0]},
                0,
                {"log_input": False, "full": True},
                [1.0],
            ),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            Refused(
                InvalidValue,
                r"finite values >= 0 expected, found -1 at target\[0\]",
                inputs={"prediction": [0.0], "target": [-1.0]},
            ),
            Refused(
                InvalidValue,
                r"finite values >= 0 expected, found -0.5 at prediction\[0\]",
                {"log_input": False},
                inputs={"prediction": [-0.5], "target": [1.0]},
            ),
            Refused(InvalidRequest, "eps.*greater than 0", {"eps": 0.0}),
        ),
    ),
    Case(
        "gaussian_nll",
        normals,
        lambda prediction, target, variance, **parameters: functional.gaussian_nll_loss(
            prediction, target, variance, reduction="none", **parameters
        ),
        parameters=({}, {"full": True}, {"eps": 0.01}),
        vary={"eps": (1e-6, 1e-3, 1e-2), "beta": (0.0, 0.0)},
        stated=(
            Stated(
                "no variance",
                {"prediction": [1.0], "target": [1.0], "variance": [0.0]},
                0.5 * float(np.log(0.01)),
                {"eps": 0.01},
                gradient=[0.0],
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"finite values >= 0 expected, found -1 at variance\[1\]",
                inputs={"prediction": [0.0] * 2, "target": [0.0] * 2, "variance": [1.0, -1.0]},
            ),
            Refused(MissingInput, "needs the input variance", inputs={"variance": None}),
            Refused(
                ShapeMismatch,
                r"variance has shape \(2, 1\)",
                inputs={"prediction": np.zeros((2, 3)), "target": np.zeros((2, 3)), "variance": np.ones((2, 1))},
            ),
        ),
    ),
    Case(
        "gaussian_nll",
        normals,
        beta_nll,
        parameters=({"beta": 0.5}, {"beta": 1.0, "full": True}, {"beta": 0.3, "eps": 0.01}),
        vary={"eps": (1e-6, 1e-3, 1e-2), "beta": (0.0, 0.5, 1.0)},
        stated=(
            # Half the squared error's gradient, whatever the variance.
            Stated(
                "beta 1",
                {"prediction": [3.0], "target": [1.0], "variance": [4.0]},
                4 * 0.5 * (math.log(4) + 1),
                {"beta": 1.0},
                {"prediction": [2.0]},
            ),
        ),
        refused=(Refused(InvalidRequest, "loss.beta.*less than or equal to 1", {"beta": 1.5}),),
        held_constant=True,
        variant="beta",
    ),
    Case(
        "gamma_nll",
        amounts,
        gamma_nll,
        parameters=({}, {"full": True, "shape": 2.5}, {"log_input": False}, {"log_input": False, "shape": 0.5}),
        vary={"shape": (0.5, 1.0, 4.0)},
        stated=(
            Stated("three", {"prediction": [0.5], "target": [3.0]}, 2.319592, gradient=[-0.819592]),
            Stated("integers", {"prediction": [0.5], "target": [3]}, 2.319592),
            Stated("full", {"prediction": [0.5], "target": [3.0]}, 2.319592, {"full": True}),
            Stated(
                "of a mean", {"prediction": [2.0], "target": [3.0]}, math.log(2) + 1.5, {"log_input": False}, [-0.25]
            ),
            # e^100 is beyond float32.
            Stated("a tiny mean", {"prediction": [-100.0], "target": [1.0]}, math.exp(100) - 100),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            Refused(
                InvalidValue,
                r"finite values > 0 expected, found 0 at target\[1\]; a mask of 0 leaves an entry out",
                inputs={"prediction": [0.0, 0.0], "target": [1.0, 0.0]},
            ),
            Refused(
                InvalidValue,
                r"finite values > 0 expected, found -1 at prediction\[0\]",
                {"log_input": False},
                {"prediction": [-1.0], "target": [1.0]},
            ),
            Refused(InvalidRequest, "shape.*greater than 0", {"shape": 0.0}),
        ),
    ),
    Case(
        "tweedie",
        claims,
        tweedie,
        parameters=({}, {"power": 1.1}, {"log_input": False}, {"log_input": False, "power": 1.9}),
        vary={"power": (1.01, 1.5, 1.99)},
        stated=(
            Stated("three", {"prediction": [0.5], "target": [3.0]}, 7.240856, gradient=[-1.052377]),
            Stated("a tiny mean of nothing", {"prediction": [-1e4], "target": [0.0]}, 0.0, gradient=[0.0]),
            # e^100 is beyond float32.
            Stated("a huge mean", {"prediction": [200.0], "target": [0]}, 2 * math.exp(100)),
            Stated("of a mean", {"prediction": [4.0], "target": [3.0]}, 7.0, {"log_input": False}, [0.125]),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            Refused(
                InvalidValue,
                r"finite values >= 0 expected, found -1 at target\[0\]",
                inputs={"prediction": [0.0], "target": [-1.0]},
            ),
            Refused(
                InvalidValue,
                r"finite values > 0 expected, found 0 at prediction\[0\]",
                {"log_input": False},
                {"prediction": [0.0], "target": [1.0]},
            ),
            Refused(InvalidRequest, r"greater than 1 \(use poisson_nll for 1\), found 1", {"power": 1.0}),
            Refused(InvalidRequest, r"less than 2 \(use gamma_nll for 2\), found 2", {"power": 2}),
            Refused(InvalidRequest, "power.*less than 2, found 2.5", {"power": 2.5}),
        ),
    ),
    Case(
        "negative_binomial_nll",
        dispersed,
        negative_binomial_nll,
        parameters=({}, {"full": False}),
        stated=(
            Stated(
                "three",
                {"prediction": [2.0], "target": [3.0], "dispersion": [0.5]},
                3 * math.log(2),
                gradient={"prediction": [-0.25], "dispersion": [0.560745]},
            ),
            # The limit is Poisson's: μ − t log μ + log t!, and the derivative by α is ((t − μ)² − t) / −2.
            Stated(
                "no dispersion",
                {"prediction": [2.0], "target": [5.0], "dispersion": [1e-12]},
                2 - 5 * math.log(2) + math.log(120),
                gradient={"prediction": [-1.5], "dispersion": [-2.0]},
                dtype=torch.float64,
                within=1e-9,
            ),
            Stated(
                "nothing",
                {"prediction": [2.0], "target": [0], "dispersion": [0.5]},
                2 * math.log(2),
                gradient={"prediction": [0.5]},
            ),
            # log(1 + αμ)/α of αμ = 1e16
            Stated(
                "much dispersion",
                {"prediction": [1e8], "target": [0.0], "dispersion": [1e8]},
                math.log(1e16) / 1e8,
                gradient={"prediction": [1e-16]},
                dtype=torch.float64,
                within=1e-14,
            ),
        ),
        refused=(
            not_positive("prediction", ("target", "dispersion")),
            not_positive("dispersion", ("prediction", "target")),
            Refused(
                InvalidValue,
                r">= 0 expected, found -1 at target\[0\]",
                {},
                {"prediction": [1.0], "target": [-1.0], "dispersion": [1.0]},
            ),
            Refused(MissingInput, "needs the input dispersion", inputs={"dispersion": None}),
        ),
    ),
    Case(
        "student_t_nll",
        heavy_tailed,
        lambda prediction, target, scale, df: -StudentT(df, prediction, scale).log_prob(target),
        stated=(
            Stated("four", {"prediction": [2.0], "target": [3.0], "scale": [1.5], "df": [4.0]}, 1.649696),
            # The limit is the normal distribution.
            Stated(
                "all but normal",
                {"prediction": [3.0], "target": [1.0], "scale": [1.0], "df": [1e12]},
                2 + 0.5 * math.log(2 * math.pi),
                gradient={"prediction": [2.0], "scale": [-3.0], "df": [0.0]},
                dtype=torch.float64,
                within=1e-10,
            ),
            # (ν + 1) log|z| less a constant
            Stated(
                "far out",
                {"prediction": [1e30], "target": [0.0], "scale": [1.0], "df": [1.0]},
                2 * math.log(1e30) + math.log(math.pi),
                gradient={"prediction": [0.0], "scale": [-1.0]},
            ),
        ),
        refused=(
            not_positive("scale", ("prediction", "target", "df")),
            not_positive("df", ("prediction", "target", "scale")),
            Refused(MissingInput, "needs the input df", inputs={"df": None}),
        ),
    ),
    Case(
        "laplace_nll",
        scaled,
        lambda prediction, target, scale: -Laplace(prediction, scale).log_prob(target),
        stated=(
            Stated(
                "three",
                {"prediction": [2.0], "target": [3.0], "scale": [1.5]},
                1.765279,
                gradient={"prediction": [-2 / 3], "scale": [(1 - 2 / 3) / 1.5]},
            ),
            Stated("equal", {"prediction": [1.0], "target": [1.0], "scale": [0.5]}, 0.0, gradient=[0.0]),
        ),
        refused=(
            not_positive("scale", ("prediction", "target")),
            Refused(MissingInput, "needs the input scale", inputs={"scale": None}),
        ),
    ),
)
