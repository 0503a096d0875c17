"""Rows of the regression losses. Reference: torch.nn.functional, unless a comment says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.nn import functional

from lossd_client.errors import DtypeMismatch, InvalidRequest, InvalidValue, ShapeMismatch, UnknownInput
from losses.case import Array, Case, Parameters, Refused, Stated

A = {"prediction": [2.5, 0.0, 2.1, 7.8], "target": [3.0, -0.5, 2.0, 8.0]}
B = {"prediction": [2.5, 0.0, 2.1, 10.0], "target": [3.0, -0.5, 2.0, 8.0]}


def pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Predictions and targets a few units apart."""
    return {"prediction": rng.normal(0, 2, (n, 3, 2)), "target": rng.normal(0, 2, (n, 3, 2))}


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
    Refused(DtypeMismatch, "prediction of .* must be a tensor of floats, found int64", inputs={"prediction": [1, 2]}),
    Refused(UnknownInput, "did you mean target", inputs={"targets": [1.0]}),
    Refused(InvalidRequest, "reduction", parameters={"reduction": "median"}),
)
FINITE_TARGET = (
    Refused(
        InvalidValue,
        r"finite values expected, found nan at target\[1, 0\]",
        inputs={"prediction": [[0.0], [0.0]], "target": [[0.0], [float("nan")]]},
    ),
    Refused(InvalidValue, r"found inf at target\[0\]", inputs={"prediction": [0.0], "target": [float("inf")]}),
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
)
