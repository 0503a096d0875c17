"""Rows of the losses of preferences. References: the papers' formulas, in probabilities where ours have logarithms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossd_client.errors import InvalidRequest, InvalidValue, MissingInput, ShapeMismatch
from losses.case import Array, Case, Parameters, Refused, Stated

FORMS = ("sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "sppo", "nca")


def pairs(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    """Log-probabilities of whole answers, those of the reference a few units away."""
    chosen, rejected = rng.uniform(-40, -10, (2, n))
    return {
        "chosen": chosen,
        "rejected": rejected,
        "reference_chosen": chosen + rng.normal(0, 2, n),
        "reference_rejected": rejected + rng.normal(0, 2, n),
    }


def counted(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    lengths = rng.integers(1, 9, (2, n))
    return pairs(rng, n, parameters) | {"chosen_length": lengths[0], "rejected_length": lengths[1]}


def means(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    chosen, rejected = rng.uniform(-3, -0.1, (2, n))
    return {"chosen": chosen, "rejected": rejected}


def rewards(rng: np.random.Generator, n: int, parameters: Parameters) -> dict[str, Array]:
    return means(rng, n, parameters) | {"reward_margin": rng.uniform(0, 1, n)}


def answers(rng: np.random.Generator, n: int, _: Parameters) -> dict[str, Array]:
    return {"log_ratio": rng.normal(0, 3, n), "desirable": rng.integers(0, 2, n).astype(float)}


def probability(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_length: Tensor | None = None,
    rejected_length: Tensor | None = None,
    *,
    beta: float = 0.1,
    form: str = "sigmoid",
    label_smoothing: float = 0.0,
    shift: float = 0.0,
) -> Tensor:
    a, b = chosen - reference_chosen, rejected - reference_rejected
    if chosen_length is not None and rejected_length is not None:
        a, b = a / chosen_length, b / rejected_length
    eps, better = label_smoothing, probability(beta * (a - b))
    forms = {
        "sigmoid": lambda: -torch.log(better),
        "hinge": lambda: torch.maximum(1 - beta * (a - b), torch.zeros_like(a)),
        "ipo": lambda: (a - b - 1 / (2 * beta)) ** 2,
        "conservative": lambda: -(1 - eps) * torch.log(better) - eps * torch.log(1 - better),
        "robust": lambda: (-(1 - eps) * torch.log(better) + eps * torch.log(1 - better)) / (1 - 2 * eps),
        # The divergence of the model's preference from the smoothed one.
        "exo": lambda: better * torch.log(better / (1 - eps)) + (1 - better) * torch.log((1 - better) / eps),
        "apo_zero": lambda: 1 - probability(beta * a) + probability(beta * b),
        "apo_down": lambda: probability(beta * a) + 1 - better,
        "sppo": lambda: (a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2,
        "nca": lambda: (
            -(
                torch.log(probability(beta * a))
                + (torch.log(1 - probability(beta * a)) + torch.log(1 - probability(beta * b))) / 2
            )
        ),
        "bco": lambda: -torch.log(probability(beta * a - shift) * (1 - probability(beta * b - shift))),
    }
    return forms[form]()


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    return torch.log(1 + torch.exp(gamma - beta * (chosen - rejected)))


def orpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    c, r = torch.exp(chosen), torch.exp(rejected)
    odds, others = c / (1 - c), r / (1 - r)
    return -beta * torch.log(odds / (odds + others))


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    *,
    kl: float = 0.0,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    value = probability(beta * (log_ratio - kl))
    return desirable * desirable_weight * (1 - value) + (1 - desirable) * undesirable_weight * value


def bradley_terry(
    chosen: Tensor, rejected: Tensor, reward_margin: Tensor | None = None, *, centering: float = 0.0
) -> Tensor:
    ahead = chosen - rejected - (0 if reward_margin is None else reward_margin)
    return -torch.log(probability(ahead)) + centering * (chosen + rejected) ** 2


ONE = {"chosen": [-10.0], "rejected": [-12.0], "reference_chosen": [-10.5], "reference_rejected": [-11.7]}
LENGTHS = {"chosen_length": [5], "rejected_length": [4]}
FAR = {"chosen": [-1e4], "rejected": [0.0], "reference_chosen": [0.0], "reference_rejected": [-1e4]}
MEANS = {"chosen": [-2.0], "rejected": [-3.0]}
EXACT = {"within": 5e-7, "dtype": torch.float64}


def stated(title: str, loss: float, parameters: Parameters, inputs: Parameters = ONE, **more: object) -> Stated:
    return Stated(title, inputs, loss, parameters, **EXACT | more)  # type: ignore[arg-type]


NO_LENGTHS = {"chosen_length": None, "rejected_length": None}

CASES = (
    Case(
        "dpo",
        pairs,
        dpo,
        parameters=(
            {},
            *({"form": form} for form in FORMS[1:]),
            {"form": "ipo", "beta": 0.5},
            {"label_smoothing": 0.0},
        ),
        vary={"beta": (0.05, 0.1, 0.5), "label_smoothing": (0.0,), "shift": (0.0,)},
        stated=(
            stated("sigmoid", 0.653947, {}, gradient={"chosen": [-0.048001], "rejected": [0.048001]}, within=1e-5),
            stated("hinge", 0.92, {"form": "hinge"}),
            stated("ipo of sums", 17.64, {"form": "ipo"}),
            stated("the model is the reference", 2 * 0.5, {"form": "apo_zero"}, {name: [-3.0] for name in ONE}),
            Stated("wrong beyond exp", FAR, 2e3, gradient={"chosen": [-0.1], "rejected": [0.1]}),
            Stated(
                "right beyond exp",
                {"chosen": [0.0], "rejected": [-1e4], "reference_chosen": [-1e4], "reference_rejected": [0.0]},
                0,
                gradient={"chosen": [0.0], "rejected": [0.0]},
                warnings={"zero_gradient"},
            ),
        ),
        refused=(
            Refused(InvalidRequest, "loss.beta.*greater than 0", {"beta": 0.0}),
            Refused(InvalidRequest, '"sigmoid" has no label_smoothing; the forms robust', {"label_smoothing": 0.1}),
            Refused(
                InvalidRequest, r'"robust" divides by .* must be < 0.5', {"form": "robust", "label_smoothing": 0.5}
            ),
            Refused(InvalidRequest, r'"exo" takes the logarithm.*in \(0, 1\)', {"form": "exo"}),
            Refused(InvalidRequest, '"ipo" has no shift', {"form": "ipo", "shift": 1.0}),
            Refused(InvalidRequest, "form", {"form": "aot"}),
            Refused(
                InvalidValue, r"found NaN at reference_chosen\[1\]", inputs={"reference_chosen": [0, np.nan, 0, 0, 0]}
            ),
            Refused(MissingInput, "reference_rejected", inputs={"reference_rejected": None}),
            Refused(ShapeMismatch, "rejected has shape", inputs={"rejected": [0.0]}),
        ),
    ),
    Case(
        "dpo",
        pairs,
        dpo,
        variant="smoothed",
        parameters=tuple({"form": form, "label_smoothing": 0.1} for form in ("conservative", "robust", "exo")),
        vary={"beta": (0.05, 0.1, 0.5), "label_smoothing": (0.1, 0.3, 0.4), "shift": (0.0,)},
        stated=(
            stated("robust", 0.643947, {"form": "robust", "label_smoothing": 0.1}),
            stated("conservative", 0.661947, {"form": "conservative", "label_smoothing": 0.1}),
            # The smoothed preference itself has no divergence.
            stated(
                "exo of what it wants",
                0,
                {"form": "exo", "label_smoothing": 0.1, "beta": 1.0},
                {**{name: [0.0] for name in ONE}, "chosen": [float(np.log(9))]},
                within=1e-12,
            ),
        ),
        refused=(Refused(InvalidRequest, "label_smoothing", {"form": "conservative", "label_smoothing": 1.5}),),
    ),
    Case(
        "dpo",
        pairs,
        dpo,
        variant="shifted",
        parameters=({"form": "bco", "shift": 0.3}, {"form": "bco"}),
        vary={"beta": (0.05, 0.1, 0.5), "label_smoothing": (0.0,), "shift": (-0.2, 0.0, 0.4)},
        refused=(Refused(InvalidRequest, "shift", {"form": "bco", "shift": "0"}),),
    ),
    Case(
        "dpo",
        counted,
        dpo,
        variant="per_token",
        parameters=({}, {"form": "ipo"}),
        vary={"beta": (0.05, 0.1, 0.5), "label_smoothing": (0.0,), "shift": (0.0,)},
        stated=(stated("ipo of means", 23.280625, {"form": "ipo"}, ONE | LENGTHS),),
        refused=(
            Refused(MissingInput, "both answers or of none; chosen_length is missing", inputs={"chosen_length": None}),
            Refused(
                InvalidValue,
                r"> 0 expected, found 0 at rejected_length\[1\]",
                inputs={"rejected_length": [1, 0, 1, 1, 1]},
            ),
        ),
    ),
    Case(
        "simpo",
        means,
        simpo,
        parameters=({}, {"beta": 10.0, "gamma": 5.0}),
        vary={"beta": (0.1, 2.0, 10.0), "gamma": (0.0, 0.5, 1.0)},
        stated=(
            stated("a margin of one", 0.313262, {}, MEANS),
            Stated(
                "far behind",
                {"chosen": [-1e4], "rejected": [0.0]},
                20001,
                gradient={"chosen": [-2.0], "rejected": [2.0]},
            ),
        ),
        refused=(Refused(InvalidRequest, "loss.beta.*greater than 0", {"beta": -1.0}),),
    ),
    Case(
        "orpo",
        means,
        orpo,
        parameters=({}, {"beta": 1.0}),
        vary={"beta": (0.1, 0.5, 1.0)},
        stated=(
            stated("the term", 0.028875, {}, MEANS),
            stated("the log-odds", float(np.log1p(np.exp(-1.094344))), {"beta": 1.0}, MEANS),
            # The odds of e^-1e4 are e^-1e4, those of 1 - 2^-40 are 2^40.
            stated(
                "next to nothing beside next to all",
                1e4 + 40 * float(np.log(2)),
                {"beta": 1.0},
                {"chosen": [-1e4], "rejected": [-(2.0**-40)]},
                gradient={"chosen": [-1.0], "rejected": [2.0**40]},
                within=1e-9,
            ),
        ),
        refused=(
            Refused(
                InvalidValue, r"finite values < 0 expected, found 0 at chosen\[0\]", inputs={"chosen": np.zeros(5)}
            ),
            Refused(InvalidValue, r"found 0.5 at rejected\[0\]", inputs={"rejected": np.full(5, 0.5)}),
            Refused(InvalidValue, r"< 0 expected, found 1 at chosen\[0\]", inputs={"chosen": np.ones(5, np.uint8)}),
        ),
    ),
    Case(
        "kto",
        answers,
        kto,
        parameters=({}, {"kl": 0.7, "beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.5}),
        vary={
            "kl": (0.0, 0.3, 1.0),
            "beta": (0.1, 0.5),
            "desirable_weight": (1.0, 2.0, 0.0),
            "undesirable_weight": (0.5, 1.0),
        },
        stated=(
            stated("desirable", 0.492501, {"kl": 0.2}, {"log_ratio": [0.5], "desirable": [1]}),
            stated("not desirable", 0.507499, {"kl": 0.2}, {"log_ratio": [0.5], "desirable": [0]}),
            Stated(
                "saturated",
                {"log_ratio": [1e5, -1e5], "desirable": [1, 1]},
                [0.0, 1.0],
                {"reduction": "none"},
                gradient={"log_ratio": [0.0, 0.0]},
            ),
        ),
        refused=(
            Refused(
                InvalidValue,
                r"1 \(yes\) or 0 \(no\) expected, found -1 at desirable\[0\]",
                inputs={"desirable": [-1] * 5},
            ),
            Refused(InvalidRequest, "loss.kl.*greater than or equal to 0", {"kl": -0.1}),
        ),
    ),
    Case(
        "bradley_terry",
        rewards,
        bradley_terry,
        parameters=({}, {"centering": 0.01}),
        vary={"centering": (0.0, 0.01, 0.1)},
        stated=(
            stated("even", float(np.log(2)), {}, {"chosen": [1.0], "rejected": [1.0]}),
            stated(
                "even but for a margin",
                float(np.log1p(np.e)),
                {},
                {"chosen": [1.0], "rejected": [1.0], "reward_margin": [1.0]},
            ),
            stated(
                "far from 0", float(np.log(2)) + 0.01 * 4, {"centering": 0.01}, {"chosen": [1.0], "rejected": [1.0]}
            ),
            Stated(
                "far behind", {"chosen": [-1e4], "rejected": [1e4]}, 2e4, gradient={"chosen": [-1.0], "rejected": [1.0]}
            ),
        ),
        refused=(
            Refused(InvalidValue, r"found NaN at reward_margin\[0\]", inputs={"reward_margin": np.full(5, np.nan)}),
            Refused(InvalidRequest, "loss.centering", {"centering": -1.0}),
        ),
    ),
    Case(
        "bradley_terry",
        means,
        bradley_terry,
        variant="without_margin",
        vary={"centering": (0.0, 0.01, 0.1)},
        refused=(Refused(ShapeMismatch, "reward_margin has shape", inputs={"reward_margin": [1.0]}),),
    ),
)
