"""Rows of distillation. Reference: torch.nn.functional.kl_div and cross_entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

CLASSES = 4
INF = float("inf")


def scores(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {name: rng.normal(0, 2, (n, CLASSES, 3)) for name in ("prediction", "teacher")}


def labelled(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    target = rng.integers(0, CLASSES, (n, 3))
    if parameters.get("ignore_index") is not None:
        target[:, 1] = parameters["ignore_index"]
    return scores(rng, n, parameters) | {"target": target}


def distillation(
    prediction: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    divergence: str = "forward",
    beta: float | None = None,
    scale: str = "temperature",
    ignore_index: int | None = -100,
) -> tuple[Tensor, Tensor]:
    s, t = (torch.log_softmax(z / temperature, 1) for z in (prediction, teacher))

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return functional.kl_div(q, p, log_target=True, reduction="none").sum(1)

    b = 0.5 if beta is None else beta
    mixture = torch.logsumexp(torch.stack([t + np.log(b), s + np.log(1 - b)]), 0)
    value = {"forward": kl(t, s), "reverse": kl(s, t), "jsd": b * kl(t, mixture) + (1 - b) * kl(s, mixture)}[divergence]
    value = value * (temperature**2 if scale == "temperature" else 1)
    if target is None:
        return value, torch.ones_like(value)
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
    nll = functional.cross_entropy(prediction, target.masked_fill(ignored, 0), reduction="none")
    return (alpha * value + (1 - alpha) * nll).masked_fill(ignored, 0), (~ignored).double()


TWO = {"prediction": [[1.0, 0.0, -1.0]], "teacher": [[0.5, 0.5, -1.0]]}


def stated(title: str, loss: float, parameters: Parameters, inputs: Parameters = TWO, **more: Any) -> Stated:
    return Stated(title, inputs, loss, parameters, **{"within": 1e-5, "dtype": torch.float64} | more)


VARY = {"temperature": (0.5, 1.0, 4.0), "alpha": (1.0,)}

CASES = (
    Case(
        "distillation",
        scores,
        distillation,
        parameters=(
            {},
            {"temperature": 2.0},
            {"temperature": 2.0, "scale": "none"},
            {"divergence": "reverse", "temperature": 0.5},
            {"divergence": "jsd"},
            {"divergence": "jsd", "beta": 0.9, "temperature": 3.0},
        ),
        vary=VARY,
        stated=(
            stated("T 2", 0.100375, {"temperature": 2.0}, gradient=[[0.204019, -0.194550, -0.009469]], within=1e-4),
            stated("jsd", 0.025979, {"divergence": "jsd"}),
            stated("jsd 0.9", 0.009169, {"divergence": "jsd", "beta": 0.9}),
            *(
                stated(
                    f"a class that neither has, {divergence}",
                    0.0,
                    {"divergence": divergence},
                    {"prediction": [[1.0, 0.0, -INF]], "teacher": [[1.0, 0.0, -INF]]},
                    gradient=[[0.0, 0.0, 0.0]],
                    within=1e-12,
                )
                for divergence in ("forward", "reverse", "jsd")
            ),
            Stated(
                "a class that the student cannot have",
                {"prediction": [[0.0, -INF]], "teacher": [[0.0, 0.0]]},
                "Infinity",
            ),
            stated(
                "a class that the teacher cannot have",
                float(np.log(2)),
                {},
                {"prediction": [[0.0, 0.0]], "teacher": [[0.0, -INF]]},
                gradient=[[-0.5, 0.5]],
            ),
            stated(
                "saturated and right",
                0,
                {},
                {"prediction": [[1e4, -1e4]], "teacher": [[1e4, -1e4]]},
                gradient=[[0.0, 0.0]],
                warnings={"zero_gradient"},
            ),
        ),
        refused=(
            Refused(InvalidRequest, "loss.temperature.*greater than 0", {"temperature": 0.0}),
            Refused(InvalidRequest, '"forward" has no beta', {"beta": 0.5}),
            Refused(InvalidRequest, "loss.beta.*less than 1", {"divergence": "jsd", "beta": 1.0}),
            Refused(MissingInput, "needs target for an alpha", {"alpha": 0.5}),
            Refused(ShapeMismatch, "teacher has shape", inputs={"teacher": np.zeros((5, 3, 3))}),
        ),
    ),
    Case(
        "distillation",
        labelled,
        distillation,
        variant="labelled",
        parameters=({"alpha": 0.3}, {"alpha": 0.5, "temperature": 2.0, "ignore_index": 2}, {"ignore_index": None}),
        vary=VARY | {"alpha": (0.0, 0.5, 1.0)},
        stated=(
            stated("cross-entropy alone", 0.407606, {"alpha": 0.0}, TWO | {"target": [0]}),
            stated("divergence alone", 0.10869, {}, TWO | {"target": [0]}),
            # Each is infinite, and counts for nothing.
            stated(
                "a target that the student cannot have",
                0,
                {},
                {"prediction": [[0.0, -INF]], "teacher": [[0.0, -INF]], "target": [1]},
                gradient=[[0.0, 0.0]],
                warnings={"zero_gradient"},
            ),
            *(
                stated(
                    f"a class that one cannot have, {divergence}",
                    float(np.log(2)),
                    {"alpha": 0.0, "divergence": divergence},
                    {"prediction": [[0.0, 0.0]], "teacher": [[0.0, -INF]], "target": [0]},
                    gradient=[[-0.5, 0.5]],
                )
                for divergence in ("forward", "reverse", "jsd")
            ),
            stated("all ignored", 0, {"alpha": 0.5}, TWO | {"target": [-100]}, warnings={"nothing_to_average"}),
        ),
        refused=(
            Refused(InvalidValue, "class 4 at target", inputs={"target": np.full((5, 3), 4)}),
            Refused(InvalidRequest, "loss.alpha", {"alpha": 1.5}),
        ),
    ),
)
