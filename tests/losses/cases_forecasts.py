"""Rows of the probabilistic forecasts' scores. Reference: the definition, over all pairs or levels."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated
from losses.cases_likelihoods import not_positive, scaled
from losses.cases_regression import REFUSED

LEVELS = [0.1, 0.5, 0.9]


def several(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """A forecast of several numbers along axis 1 for each target."""
    count = len(parameters.get("levels", LEVELS))
    return {"prediction": rng.normal(0, 2, (n, count, 4)), "target": rng.normal(0, 2, (n, 4))}


def members(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return several(rng, n, {"levels": [0.0] * 5})


def bounds(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {name: rng.normal(middle, 1, (n, 3)) for name, middle in (("lower", -1), ("upper", 1), ("target", 0))}


def quantiles(
    prediction: Tensor, target: Tensor, *, levels: list[float] = LEVELS, crossing_penalty: float = 0.0
) -> Tensor:
    """Koenker and Bassett's loss of each level, and what each quantile exceeds the next by."""
    values = [
        torch.maximum(q * (target - p), (q - 1) * (target - p))
        for q, p in zip(levels, prediction.unbind(1), strict=True)
    ]
    crossings = [(p - above).clamp(min=0) for p, above in pairwise(prediction.unbind(1))]
    return (sum(values) + crossing_penalty * sum(crossings)) / len(levels)


def crps_ensemble(prediction: Tensor, target: Tensor, *, estimator: str = "biased") -> Tensor:
    """Gneiting and Raftery 2007, equation 21, with the mean over all pairs or over those of different members."""
    count = prediction.shape[1]
    pairs = count * (count - 1) if estimator == "fair" else count**2
    apart = (prediction.unsqueeze(1) - prediction.unsqueeze(2)).abs().sum((1, 2))
    return (prediction - target.unsqueeze(1)).abs().mean(1) - apart / (2 * pairs)


def crps_normal(prediction: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    z, normal = (target - prediction) / scale, Normal(0.0, 1.0)
    return scale * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi))


def interval_score(lower: Tensor, upper: Tensor, target: Tensor, *, alpha: float = 0.1) -> Tensor:
    below, above = (target < lower).double(), (target > upper).double()
    return (upper - lower) + 2 / alpha * ((lower - target) * below + (target - upper) * above)


FOUR = {"prediction": [[0.0, 1.0, 2.0, 4.0]], "target": [1.5]}
OF_AXIS_1 = (
    Refused(
        ShapeMismatch,
        r"target has shape \(5, 3\), expected \(5,\)",
        inputs={"prediction": np.zeros((5, 3)), "target": np.zeros((5, 3))},
    ),
    Refused(
        InvalidValue,
        r"found NaN at target\[0\]",
        inputs={"prediction": [[0.0, 1.0, 2.0]], "target": [float("nan")]},
    ),
)

CASES = (
    Case(
        "quantiles",
        several,
        quantiles,
        parameters=(
            {},
            {"levels": [0.25, 0.75]},
            {"crossing_penalty": 2.0},
            {"levels": [0.5], "crossing_penalty": 1.0},
        ),
        vary={"crossing_penalty": (0.0, 0.5, 2.0)},
        stated=(
            # A third of (0.1 · 1.5, 0.5 · 0.5, 0.9 · 0.5): the first is below the target, as is the last.
            Stated(
                "three levels",
                {"prediction": [[0.0, 2.0, 1.0]], "target": [1.5]},
                (0.15 + 0.25 + 0.45) / 3,
                gradient=[[-0.1 / 3, 0.5 / 3, -0.9 / 3]],
            ),
            Stated(
                "crossing",
                {"prediction": [[0.0, 2.0, 1.0]], "target": [1.5]},
                (0.15 + 0.25 + 0.45 + 5.0) / 3,
                {"crossing_penalty": 5.0},
                gradient=[[-0.1 / 3, 5.5 / 3, -5.9 / 3]],
            ),
            Stated("met", {"prediction": [[1.0, 1.0, 1.0]], "target": [1.0]}, 0.0, gradient=[[0.0] * 3]),
        ),
        refused=(
            *OF_AXIS_1,
            Refused(
                InvalidRequest,
                "levels has 3 entries, prediction has 2 along axis Q",
                {},
                {"prediction": [[0.0, 1.0]], "target": [1.0]},
            ),
            Refused(InvalidRequest, r"levels must ascend, found 0.1 after 0.5 at levels\[1\]", {"levels": [0.5, 0.1]}),
            Refused(InvalidRequest, r"levels.*less than 1", {"levels": [0.5, 1.0]}),
            Refused(InvalidRequest, r"levels.*at least 1 item", {"levels": []}),
        ),
    ),
    Case(
        "crps_ensemble",
        members,
        crps_ensemble,
        parameters=({}, {"estimator": "fair"}),
        stated=(
            Stated("four members", FOUR, 0.4375, gradient=[[-0.0625, -0.1875, 0.1875, 0.0625]]),
            Stated("four members, fair", FOUR, 1 / 6, {"estimator": "fair"}),
            # The mean of |x - t| is 1, half that of |x - x'| is 1/2 · 2 · 4 · 2/16.
            Stated(
                "equal members",
                {"prediction": [[0.0, 2.0, 0.0, 2.0]], "target": [1.0]},
                0.5,
                gradient=[[-0.125, 0.125, -0.125, 0.125]],
            ),
            Stated("one member", {"prediction": [[3.0]], "target": [1.0]}, 2.0, gradient=[[1.0]]),
            Stated("met", {"prediction": [[1.0, 1.0]], "target": [1.0]}, 0.0, gradient=[[0.0, 0.0]]),
            # In float32 the sum over pairs would cancel.
            Stated(
                "far from 0", {"prediction": [[1e6, 1e6 + 1]], "target": [1e6 + 0.5]}, 0.25, gradient=[[-0.25, 0.25]]
            ),
        ),
        refused=(
            *OF_AXIS_1,
            Refused(
                ShapeMismatch,
                "crps_ensemble: the fair estimator needs at least 2 members along axis 1 of prediction, found 1",
                {"estimator": "fair"},
                {"prediction": [[1.0]], "target": [1.0]},
            ),
            Refused(InvalidRequest, "estimator", {"estimator": "akr"}),
        ),
    ),
    Case(
        "crps_normal",
        scaled,
        crps_normal,
        stated=(
            Stated("half above", {"prediction": [1.0], "target": [1.5], "scale": [2.0]}, 0.517000),
            # 2 φ(0) - 1/√π, the least
            Stated(
                "met",
                {"prediction": [1.0], "target": [1.0], "scale": [2.0]},
                2 * (math.sqrt(2 / math.pi) - 1 / math.sqrt(math.pi)),
                gradient={"prediction": [0.0], "scale": [math.sqrt(2 / math.pi) - 1 / math.sqrt(math.pi)]},
            ),
            Stated(
                "all but certain, and wrong",
                {"prediction": [-3e30], "target": [0.0], "scale": [1e-30]},
                3e30,
                gradient={"prediction": [-1.0], "scale": [-1 / math.sqrt(math.pi)]},
            ),
        ),
        refused=(
            *REFUSED[1:2],
            not_positive("scale", ("prediction", "target")),
            Refused(MissingInput, "needs the input scale", inputs={"scale": None}),
        ),
    ),
    Case(
        "interval_score",
        bounds,
        interval_score,
        parameters=({}, {"alpha": 0.5}),
        vary={"alpha": (0.05, 0.1, 0.9)},
        stated=(
            Stated(
                "above",
                {"lower": [0.0], "upper": [1.0], "target": [1.5]},
                11.0,
                gradient={"lower": [-1.0], "upper": [-19.0]},
            ),
            Stated(
                "below, and at a bound",
                {"lower": [0.0, 0.0], "upper": [1.0, 1.0], "target": [-1.0, 0.0]},
                (5.0 + 1.0) / 2,
                {"alpha": 0.5},
                gradient={"lower": [1.5, -0.5], "upper": [0.5, 0.5]},
            ),
        ),
        refused=(
            Refused(InvalidRequest, "alpha.*greater than 0", {"alpha": 0.0}),
            Refused(
                InvalidValue,
                r"finite values expected, found NaN at target\[0\]",
                inputs={"lower": [0.0], "upper": [1.0], "target": [float("nan")]},
            ),
            Refused(ShapeMismatch, "upper has shape", inputs={"lower": [0.0], "upper": [1.0, 2.0], "target": [0.0]}),
        ),
    ),
)
