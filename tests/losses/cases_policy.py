"""Rows of the policy-gradient loss. Reference: token by token, as the papers write the forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated


def tokens(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    p = rng.uniform(-3, -0.1, (n, 4))
    return {
        "prediction": p,
        "advantage": rng.normal(0, 1, (n, 4)),
        "sampled": p + rng.normal(0, 0.4, (n, 4)),
        "reference": p + rng.normal(0, 0.4, (n, 4)),
    }


def per_sequence(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    drawn = tokens(rng, n, parameters)
    return {"prediction": drawn["prediction"], "advantage": rng.normal(0, 1, n), "sampled": drawn["sampled"]}


def policy_gradient(
    prediction: Tensor,
    advantage: Tensor,
    sampled: Tensor | None = None,
    reference: Tensor | None = None,
    *,
    form: str = "ppo",
    kl_weight: float = 0.0,
    kl: str = "k3",
    aggregation: str = "token_mean",
    length: float | None = None,
    mask: Tensor | None = None,
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """The unreduced loss and its weights."""
    rows, steps = prediction.shape
    keep = torch.ones(rows, steps, dtype=torch.bool) if mask is None else mask
    values = []
    for row in range(rows):
        counted = [t for t in range(steps) if keep[row, t]]
        ratios = {t: torch.exp(prediction[row, t] - (0 if sampled is None else sampled[row, t])) for t in counted}
        if form == "gspo" and counted:
            ratios = dict.fromkeys(counted, torch.exp(sum(torch.log(r) for r in ratios.values()) / len(counted)))
        of_row = []
        for t in counted:
            p, a = prediction[row, t], advantage[row] if advantage.ndim == 1 else advantage[row, t]
            q = None if sampled is None else sampled[row, t]
            value = token(form, p, q, a, ratios[t], parameters)
            if kl_weight and reference is not None:
                r = torch.exp(reference[row, t] - p)
                value = value + kl_weight * {
                    "k1": -torch.log(r), "k2": torch.log(r) ** 2 / 2, "k3": r - 1 - torch.log(r)
                }[kl]  # fmt: skip
            of_row.append(value)
        values.append(of_row)
    nothing = 0 * prediction.sum()
    lengths = keep.sum(1)
    if aggregation == "token_mean":
        whole = [[of_row.pop(0) if kept else nothing for kept in keep[row]] for row, of_row in enumerate(values)]
        return torch.stack([torch.stack(of_row) for of_row in whole]), keep.double()
    sums = torch.stack([sum(of_row, nothing) for of_row in values])
    if aggregation == "constant":
        return sums / length, torch.ones(rows, dtype=torch.float64)
    weight = (lengths > 0).double()
    return (sums / lengths.clamp(min=1) if aggregation == "sequence_mean" else sums), weight


def token(form: str, p: Tensor, q: Tensor | None, a: Tensor, r: Tensor, parameters: Parameters) -> Tensor:
    low, high = parameters.get("ratio_min"), parameters.get("ratio_max")
    if form in ("ppo", "gspo"):
        clipped = r.clamp(0.8 if low is None else low, 1.2 if high is None else high)
        value = -torch.minimum(r * a, clipped * a)
        worst = parameters.get("dual_clip")
        return torch.minimum(value, -worst * a) if worst is not None and a < 0 else value
    if form == "importance_sampling":
        return -r * a
    if form == "cispo":
        return -r.detach().clamp(0.0 if low is None else low, 4.0 if high is None else high) * a * p
    if form == "dro":
        return -(p * a - parameters["beta"] / 2 * (p - q) ** 2)
    if form == "sapo":
        positive, negative = parameters.get("positive_temperature"), parameters.get("negative_temperature")
        tau = (positive or 1.0) if a > 0 else (negative or 1.05)
        return -4 / tau / (1 + torch.exp(-tau * (r - 1))) * a
    return -p * a


SOME = {
    "prediction": [[-1.0, -2.0, -0.5]],
    "sampled": [[-1.5, -1.5, -0.5]],
    "advantage": [[1.0, -1.0, 1.0]],
    "mask": torch.tensor([[True, True, False]]),
}
ONE_EACH = SOME | {"advantage": [[1.0, 1.0, 1.0]]}
REFERENCE = {"prediction": [[-1.0, -2.0]], "advantage": [[0.0, 0.0]], "reference": [[-1.2, -1.8]]}
SEQUENCES = {
    "prediction": [[-1.0, -2.0, -3.0], [-4.0, -9.0, -9.0], [-9.0, -9.0, -9.0]],
    "advantage": [-1.0, -1.0, -1.0],
    "lengths": torch.tensor([3, 1, 0]),
}


def stated(title: str, loss: float, parameters: Parameters, inputs: Parameters = SOME, **more: Any) -> Stated:
    return Stated(title, inputs, loss, parameters, **{"within": 1e-6, "dtype": torch.float64} | more)


def slope(*entries: float) -> list[list[float]]:
    return [list(entries)]


def far(log_ratio: float, advantage: float) -> dict[str, Any]:
    return {"prediction": [[log_ratio - 300]], "sampled": [[-300.0]], "advantage": [[advantage]]}


AVERAGES: tuple[Parameters, ...] = (
    {"aggregation": "sequence_mean"},
    {"aggregation": "sequence_sum"},
    {"aggregation": "constant", "length": 8.0},
)
REFUSED = (
    Refused(InvalidRequest, 'form "ppo" has no beta; dro have', {"beta": 0.1}),
    Refused(InvalidRequest, 'form "dro" needs beta', {"form": "dro"}),
    Refused(InvalidRequest, 'form "sapo" has no ratio_max; ppo, gspo, cispo have', {"form": "sapo", "ratio_max": 2.0}),
    Refused(InvalidRequest, "less than ratio_max; found 1.5 and 1.2", {"ratio_min": 1.5}),
    Refused(InvalidRequest, "loss.dual_clip.*greater than 1", {"dual_clip": 1.0}),
    Refused(InvalidRequest, '"constant" needs length', {"aggregation": "constant"}),
    Refused(InvalidRequest, '"token_mean" has no length', {"length": 8.0}),
    Refused(MissingInput, "needs reference for a kl_weight", {"kl_weight": 0.1}, {"reference": None}),
    Refused(MissingInput, 'needs sampled for the form "gspo"', {"form": "gspo"}, {"sampled": None}),
    Refused(InvalidValue, r"found NaN at advantage\[0, 0\]", inputs={"advantage": np.full((5, 4), np.nan)}),
    Refused(ShapeMismatch, r"advantage has shape \(5, 3\)", inputs={"advantage": np.zeros((5, 3))}),
)

VARY = {"kl_weight": (0.0, 0.1, 0.5)}

CASES = (
    Case(
        "policy_gradient",
        tokens,
        policy_gradient,
        parameters=(
            {},
            {"ratio_min": 0.9, "ratio_max": 1.1, "dual_clip": 1.3, "kl_weight": 0.1},
            {"form": "importance_sampling", "kl_weight": 0.1, "kl": "k2"},
            {"form": "dro", "beta": 0.05, "kl_weight": 0.2, "kl": "k1"},
            {"form": "gspo"},
            {"form": "gspo", "dual_clip": 1.1, "ratio_max": 1.05, **AVERAGES[0]},
            {"form": "sapo"},
            {"form": "sapo", "positive_temperature": 2.0, "negative_temperature": 0.5},
            {"form": "reinforce"},
            *AVERAGES,
        ),
        vary=VARY,
        stated=(
            stated("ppo", -0.2, {}, gradient=slope(0, 0, 0)),
            stated(
                "importance sampling",
                -0.521095,
                {"form": "importance_sampling"},
                gradient=slope(-0.824361, 0.303265, 0),
            ),
            stated("dro", -0.49375, {"form": "dro", "beta": 0.05}, gradient=slope(-0.4875, 0.4875, 0)),
            stated("gspo", -1, {"form": "gspo"}, ONE_EACH, gradient=slope(-0.5, -0.5, 0)),
            stated("k1", 0, {"form": "reinforce", "kl_weight": 1.0, "kl": "k1"}, REFERENCE),
            stated("k2", 0.02, {"form": "reinforce", "kl_weight": 1.0, "kl": "k2"}, REFERENCE),
            stated("k3", 0.0200668, {"form": "reinforce", "kl_weight": 1.0, "kl": "k3"}, REFERENCE),
            # Three tokens of -1, -2, -3, one of -4, none.
            stated("token mean", -10 / 4, {"form": "reinforce"}, SEQUENCES),
            stated("sequence mean", -(2 + 4) / 2, {"form": "reinforce", **AVERAGES[0]}, SEQUENCES),
            stated("sequence sum", -(6 + 4) / 2, {"form": "reinforce", **AVERAGES[1]}, SEQUENCES),
            stated("constant", -(6 + 4) / (3 * 8), {"form": "reinforce", **AVERAGES[2]}, SEQUENCES),
            # e^199 fits in float64 and not in float32; clipped, it has no gradient.
            Stated("far above, good", far(199, 1.0), -1.2, gradient=slope(0)),
            Stated("far above, bad, clipped twice", far(199, -1.0), 3, {"dual_clip": 3.0}, gradient=slope(0)),
            stated("far above, bad", math.exp(199), {}, far(199, -1.0), gradient=slope(math.exp(199))),
            Stated("beyond float64, good", far(299, 1.0) | {"sampled": [[-900.0]]}, -1.2, gradient=slope(0)),
            Stated("far below, bad", far(-299, -1.0), 0.8, gradient=slope(0)),
            Stated("saturated", far(199, 1.0), -4, {"form": "sapo"}, gradient=slope(0)),
        ),
        refused=REFUSED,
    ),
    Case(
        "policy_gradient",
        tokens,
        policy_gradient,
        variant="cispo",
        parameters=({"form": "cispo"}, {"form": "cispo", "ratio_min": 0.8, "ratio_max": 1.2, "kl_weight": 0.1}),
        vary=VARY,
        stated=(
            stated("0 to 4", 0.21783, {"form": "cispo"}, gradient=slope(-0.824361, 0.303265, 0), within=1e-5),
            stated("1.2", -0.2, {"form": "cispo", "ratio_min": 0.8, "ratio_max": 1.2}, gradient=slope(-0.6, 0.4, 0)),
        ),
        refused=REFUSED[:1],
        held_constant=True,
    ),
    Case(
        "policy_gradient",
        per_sequence,
        policy_gradient,
        variant="per_sequence",
        parameters=({}, {"form": "gspo", **AVERAGES[0]}),
        vary={"kl_weight": (0.0,)},
        refused=(Refused(ShapeMismatch, r"advantage has shape \(4,\)", inputs={"advantage": np.zeros(4)}),),
    ),
)
