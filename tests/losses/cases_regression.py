"""Rows of the regression losses. Reference: torch.nn.functional, unless a comment says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch, UnknownInput
from losses.case import Array, Case, Parameters, Refused, Stated

A = {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]}
B = {"prediction": [2.5, 0.0, 2.1, 10.0], "target": [3.0, -0.5, 2.0, 8.0]}


def pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Predictions and targets a few units apart."""
    return {"prediction": rng.normal(0, 2, (n, 3, 2)), "target": rng.normal(0, 2, (n, 3, 2))}


def counts(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    prediction = rng.normal(0, 1, (n, 4)) if parameters.get("log_input", True) else rng.uniform(0.1, 5, (n, 4))
    return {"prediction": prediction, "target": rng.poisson(2, (n, 4)).astype(float)}


def normals(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return pairs(rng, n, parameters) | {"variance": rng.uniform(0.1, 3, (n, 3, 2))}


def elementwise(function: Any, **fixed: Any) -> Any:
    """A function of torch.nn.functional, unreduced; what all of its parameters are called is the same."""
    return lambda prediction, target, **parameters: function(
        prediction, target, reduction="none", **fixed, **parameters
    )


ELEMENTWISE_REFUSED = (
    Refused(
        ShapeMismatch,
        r"target has shape \(5, 1\), expected \(5, 3\) since prediction is \(5, 3\).*nothing is broadcast",
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
        vary={"eps": (1e-6, 1e-3, 1e-2)},
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
)
