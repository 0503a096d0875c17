"""Rows of the regression losses. Reference: torch.nn.functional, unless a comment says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, ShapeMismatch, UnknownInput
from losses.case import Array, Case, Parameters, Refused, Stated

A = {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]}
B = {"prediction": [2.5, 0.0, 2.1, 10.0], "target": [3.0, -0.5, 2.0, 8.0]}


def pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Predictions and targets a few units apart."""
    return {"prediction": rng.normal(0, 2, (n, 3, 2)), "target": rng.normal(0, 2, (n, 3, 2))}


def near_pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Predictions and targets above -1."""
    return {name: rng.uniform(-0.9, 4, (n, 3, 2)) for name in ("prediction", "target")}


def apart_from_zero(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    """Targets of at least 0.2, of both signs."""
    drawn = pairs(rng, n, parameters)
    return drawn | {"target": drawn["target"] + np.where(drawn["target"] > 0, 0.2, -0.2)}


def elementwise(function: Any, **fixed: Any) -> Any:
    """A function of torch.nn.functional, unreduced; what all of its parameters are called is the same."""
    return lambda prediction, target, **parameters: function(
        prediction, target, reduction="none", **fixed, **parameters
    )


ELEMENTWISE_REFUSED = (
    Refused(
        ShapeMismatch,
        r"target has shape \(5, 1\), expected \(5, 3\) since prediction is \(5, 3\).*without broadcasting",
        inputs={"prediction": np.zeros((5, 3)), "target": np.zeros((5, 1))},
    ),
    Refused(ShapeMismatch, "expected", inputs={"prediction": np.zeros((5, 3)), "target": np.zeros(5)}),
    Refused(ShapeMismatch, "empty", inputs={"prediction": np.zeros((0, 2)), "target": np.zeros((0, 2))}),
    Refused(UnknownInput, "did you mean target", inputs={"targets": [1.0]}),
    Refused(InvalidRequest, "reduction", parameters={"reduction": "median"}),
)
FINITE_TARGET = (
    Refused(
        InvalidValue,
        r"finite values expected, found NaN at target\[1, 0\]",
        inputs={"prediction": [[0.0], [0.0]], "target": [[0.0], [float("nan")]]},
    ),
    Refused(InvalidValue, r"found Infinity at target\[0\]", inputs={"prediction": [0.0], "target": [float("inf")]}),
)
REFUSED = ELEMENTWISE_REFUSED + FINITE_TARGET

CASES = (
    Case(
        "mse",
        pairs,
        elementwise(functional.mse_loss),
        stated=(
            Stated("a tutorial's numbers", A, 0.1375),
            Stated("equal", {"prediction": [1.0], "target": [1.0]}, 0, gradient=[0.0], warnings={"zero_gradient"}),
            Stated(
                "weights 0", A | {"sample_weight": [0.0] * 4}, 0, gradient=[0.0] * 4, warnings={"nothing_to_average"}
            ),
        ),
        refused=REFUSED,
    ),
    Case(
        "mae",
        pairs,
        elementwise(functional.l1_loss),
        stated=(
            Stated("a tutorial's numbers", A, 0.3250),
            Stated("kink", {"prediction": [1.0, 2.0], "target": [1.0, 1.0]}, 0.5, gradient=[0.0, 0.5]),
        ),
        refused=REFUSED,
    ),
    Case(
        "huber",
        pairs,
        elementwise(functional.huber_loss),
        parameters=({}, {"delta": 0.5}, {"delta": 3.0}),
        vary={"delta": (0.1, 1.0, 10.0)},
        stated=(
            Stated("a tutorial's numbers", B, 0.43875),
            Stated("half the delta", B, 0.2825, {"delta": 0.5}),
            Stated("at delta", {"prediction": [1.0], "target": [0.0]}, 0.5, gradient=[1.0]),
            Stated("far beyond", {"prediction": [-1e30], "target": [0.0]}, 1e30, gradient=[-1.0]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "loss.delta.*greater than 0", parameters={"delta": 0.0})),
    ),
    Case(
        "smooth_l1",
        pairs,
        elementwise(functional.smooth_l1_loss),
        parameters=({}, {"beta": 0.5}, {"beta": 0.0}),
        vary={"beta": (0.0, 0.5, 2.0)},
        stated=(
            Stated("a tutorial's numbers", B, 0.5650, {"beta": 0.5}),
            Stated("kink", {"prediction": [1.0], "target": [1.0]}, 0, {"beta": 0.0}, gradient=[0.0]),
            Stated("far beyond", {"prediction": [-1e30], "target": [0.0]}, 1e30, gradient=[-1.0]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "beta.*greater than or equal to 0", {"beta": -1.0})),
    ),
    Case(
        "log_cosh",
        pairs,
        lambda prediction, target: torch.log(torch.cosh(prediction - target)),  # fine where cosh does not overflow
        stated=(
            Stated("a tutorial's numbers", B, 0.39256, within=1e-5),
            Stated(
                "large",
                {"prediction": [100.0, -100.0], "target": [0.0, 0.0]},
                99.30685,
                {"reduction": "mean"},
                [0.5, -0.5],
            ),
            Stated("small", {"prediction": [1e-4], "target": [0.0]}, 5e-9, gradient=[1e-4], within=1e-12),
            Stated("at the seam", {"prediction": [1.0, -1.0], "target": [0.0, 0.0]}, float(np.log(np.cosh(1.0)))),
        ),
        refused=REFUSED,
    ),
    Case(
        "asymmetric_mse",
        pairs,
        lambda prediction, target, over_penalty=2.0: (
            torch.relu(prediction - target) ** 2 * over_penalty + torch.relu(target - prediction) ** 2
        ),
        parameters=({}, {"over_penalty": 0.0}, {"over_penalty": 7.5}),
        vary={"over_penalty": (0.5, 2.0, 3.0)},
        stated=(Stated("a tutorial's numbers", {"prediction": [2.5, 1.0, 3.0], "target": [2.0] * 3}, 3.5 / 3),),
        refused=(*REFUSED, Refused(InvalidRequest, "over_penalty", {"over_penalty": -1.0})),
    ),
    Case(
        "quantile",
        pairs,
        # Koenker and Bassett 1978, as the scikit-learn guide writes it.
        lambda prediction, target, q=0.5: torch.maximum(q * (target - prediction), (q - 1) * (target - prediction)),
        parameters=({}, {"q": 0.0}, {"q": 0.9}),
        vary={"q": (0.1, 0.5, 1.0)},
        stated=(
            Stated("kink", {"prediction": [1.0, 3.0], "target": [1.0, 1.0]}, 0.1, {"q": 0.9}, gradient=[0.0, 0.05]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "loss.q.*less than or equal to 1", {"q": 1.1})),
    ),
    Case(
        "expectile",
        pairs,
        lambda prediction, target, q=0.5: (q - (prediction > target).double()).abs() * (prediction - target) ** 2,
        parameters=({}, {"q": 0.0}, {"q": 0.9}),
        vary={"q": (0.1, 0.5, 1.0)},
        stated=(
            # A factor of what is predicted too high is an expectile, times the factor and 1 more.
            Stated("asymmetric_mse / 5", {"prediction": [2.5, 1.0, 3.0], "target": [2.0] * 3}, 6 / 15, {"q": 0.2}),
            Stated("equal", {"prediction": [1.0], "target": [1.0]}, 0, {"q": 0.9}, gradient=[0.0]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "loss.q.*less than or equal to 1", {"q": 1.1})),
    ),
    Case(
        "pseudo_huber",
        pairs,
        lambda prediction, target, delta=1.0: delta**2 * ((1 + ((prediction - target) / delta) ** 2).sqrt() - 1),
        parameters=({}, {"delta": 0.5}, {"delta": 3.0}),
        vary={"delta": (0.1, 1.0, 10.0)},
        stated=(
            Stated("two", {"prediction": [2.0], "target": [0.0]}, 1.236068, gradient=[0.894427]),
            Stated("small", {"prediction": [1e-4], "target": [0.0]}, 5e-9, gradient=[1e-4], within=1e-12),
            Stated("far beyond", {"prediction": [-1e30], "target": [0.0]}, 1e30, gradient=[-1.0]),
            Stated("at delta", {"prediction": [2.0], "target": [0.0]}, 4 * (2**0.5 - 1), {"delta": 2.0}, [2**0.5]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "loss.delta.*greater than 0", parameters={"delta": 0.0})),
    ),
    Case(
        "fair",
        pairs,
        lambda prediction, target, c=1.0: (
            c**2 * ((prediction - target).abs() / c - torch.log1p((prediction - target).abs() / c))
        ),
        parameters=({}, {"c": 0.5}, {"c": 30.0}),
        vary={"c": (0.1, 1.0, 10.0)},
        stated=(
            Stated("two", {"prediction": [2.0], "target": [0.0]}, 0.901388, gradient=[2 / 3]),
            # x - log(1 + x) = x²/2 - x³/3 + ...
            Stated("small", {"prediction": [1e-4], "target": [0.0]}, 5e-9 - 1e-12 / 3, gradient=[1e-4], within=1e-8),
            Stated("equal", {"prediction": [1.0], "target": [1.0]}, 0, gradient=[0.0], warnings={"zero_gradient"}),
            Stated("far beyond", {"prediction": [-1e30], "target": [0.0]}, 1e30, gradient=[-1.0]),
        ),
        refused=(*REFUSED, Refused(InvalidRequest, "loss.c.*greater than 0", parameters={"c": 0.0})),
    ),
    Case(
        "squared_log",
        near_pairs,
        lambda prediction, target: 0.5 * ((1 + prediction).log() - (1 + target).log()) ** 2,
        stated=(
            Stated("three and none", {"prediction": [3.0], "target": [0.0]}, 0.960906, gradient=[0.346574]),
            Stated("integers", {"prediction": [3.0], "target": [0]}, 0.960906),
            Stated("large", {"prediction": [1e30], "target": [1e30]}, 0.0, gradient=[0.0]),
        ),
        refused=(
            *ELEMENTWISE_REFUSED[:3],
            Refused(
                InvalidValue,
                r"finite values > -1 expected, found -1 at target\[1\]; a mask of 0 leaves",
                inputs={"prediction": [0.0, 0.0], "target": [0.0, -1.0]},
            ),
            Refused(
                InvalidValue,
                r"finite values > -1 expected, found -1.5 at prediction\[0\]",
                inputs={"prediction": [-1.5], "target": [1.0]},
            ),
            Refused(
                InvalidValue,
                r'found NaN at target\[0\]; set nan_targets to "ignore"',
                inputs={"prediction": [0.0], "target": [float("nan")]},
            ),
        ),
    ),
    Case(
        "mape",
        apart_from_zero,
        lambda prediction, target, eps=None: (
            (prediction - target).abs() / torch.maximum(target.abs(), torch.tensor(eps or 0.0))
        ),
        parameters=({}, {"eps": 1.0}, {"eps": 1e-6}),
        stated=(
            Stated("half", {"prediction": [2.0], "target": [-4.0]}, 1.5, gradient=[0.25]),
            Stated("least size", {"prediction": [2.0], "target": [0.0]}, 4.0, {"eps": 0.5}, gradient=[2.0]),
        ),
        refused=(
            *ELEMENTWISE_REFUSED,
            Refused(
                InvalidValue,
                r"values other than 0 expected, found 0 at target\[1\]; set eps to the least size",
                inputs={"prediction": [0.0, 0.0], "target": [1.0, 0.0]},
            ),
            Refused(
                InvalidValue,
                r'finite values expected, found NaN at target\[1\]; set nan_targets to "ignore"',
                inputs={"prediction": [0.0, 0.0], "target": [1.0, float("nan")]},
            ),
            Refused(InvalidRequest, "eps.*greater than 0", {"eps": 0.0}),
        ),
    ),
)
