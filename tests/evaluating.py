"""Requests straight to the evaluation: plan, job, batch, answer; no server, no engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lossd.compiled.passes import Passes
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.evaluate import evaluate
from lossd.job import Column
from lossd.request.plan import Plan
from lossd.request.planning import make_plan
from lossd_client.errors import Problem

Tensors = Mapping[str, Tensor]

passes: Passes | None = None
"""The compiled passes to use; the fixtures ``compiled_passes`` and ``either_way`` set them."""

COMPILED = frozenset(
    {"cross_entropy", "focal", "mse", "mae", "huber", "smooth_l1", "log_cosh", "quantile", "bce_with_logits",
     "sigmoid_focal", "asymmetric_mse", "expectile", "pseudo_huber", "fair", "squared_log", "mape", "poisson_nll",
     "gamma_nll", "tweedie", "soft_margin", "hinge", "hinge_embedding", "bce", "gan_generator", "wgan_generator",
     "lsgan_generator", "hinge_gan_generator", "margin_ranking", "interval_score", "gaussian_nll", "laplace_nll",
     "crps_normal", "student_t_nll", "negative_binomial_nll", "dpo", "simpo", "bradley_terry", "contrastive",
     "cosine_embedding", "triplet", "iou", "giou", "diou", "ciou", "dice", "jaccard", "tversky", "focal_tversky",
     "info_nce", "nt_xent", "clip", "supcon", "mined_triplet", "distillation", "list_net", "ranknet", "kl_div",
     "quantiles", "crps_ensemble", "multi_margin", "multilabel_soft_margin", "gan_discriminator", "wgan_discriminator",
     "lsgan_discriminator", "hinge_gan_discriminator", "vae", "nll",
     "lovasz"}
)  # fmt: skip
"""The losses that have compiled passes."""


plans: dict[str, Plan] = {}
"""The latest plans, by their requests."""


@dataclass(frozen=True)
class Evaluated:
    """One request's answer: the document, and the tensors that travel next to it."""

    document: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def loss(self) -> Any:
        return self.document["loss"] if "loss" in self.document else self.tensors["loss"]

    @property
    def numerator(self) -> float:
        return self.document["reduction"]["numerator"]

    @property
    def denominator(self) -> float:
        return self.document["reduction"]["denominator"]

    @property
    def warnings(self) -> set[str]:
        return {warning["code"] for warning in self.document["diagnostics"]["warnings"]}

    def gradient(self, name: str = "prediction") -> Tensor:
        return self.tensors[f"gradient.{name}"]

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {n.removeprefix("gradient."): t for n, t in self.tensors.items() if n.startswith("gradient.")}


def layout(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}


def plan_of(request: Mapping[str, Any]) -> Plan:
    """Return the request's plan; plans are kept, as fronts do, and with them the recipes of known shapes."""
    text = repr(request)
    if text not in plans:
        if len(plans) >= 1024:
            plans.clear()
        plans[text] = make_plan(request)
    return plans[text]


def together(
    requests: Sequence[Mapping[str, Any]], inputs: Sequence[Tensors], device: str = "cpu"
) -> list[Evaluated | Problem]:
    """Requests that share a recipe, evaluated as one batch."""
    planned = [plan_of({"outputs": ["loss", "gradient"], **request}) for request in requests]
    jobs = [plan.job(layout(tensors)) for plan, tensors in zip(planned, inputs, strict=True)]
    recipe, rows = jobs[0].recipe, [job.rows for job in jobs]
    assert all(job.recipe.text == recipe.text for job in jobs), "requests of one batch share their recipe"

    def values_of(column: Column) -> Tensor:
        parts = [tensors[column.name] for tensors in inputs]
        return torch.cat(parts) if column.per_row else torch.stack(parts)

    answers = {column.name: _unwritten(column, sum(rows), len(jobs)) for column in recipe.answers}
    batch = TensorBatch(
        recipe,
        rows,
        [job.numbers for job in jobs],
        {column.name: values_of(column) for column in recipe.inputs},
        answers,
        torch.device(device),
    )
    evaluated: list[Evaluated | Problem] = []
    start = 0
    for position, document in enumerate(evaluate(batch, passes)):
        stop = start + rows[position]
        outputs = {
            column.name: answers[column.name][start:stop] if column.per_row else answers[column.name][position]
            for column in recipe.answers
        }
        evaluated.append(document if isinstance(document, Problem) else Evaluated(document, outputs))
        start = stop
    return evaluated


def generally(
    requests: Sequence[Mapping[str, Any]], inputs: Sequence[Tensors], device: str = "cpu"
) -> list[Evaluated | Problem]:
    """The same as :func:`together`, without compiled passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "passes", None)
        return together(requests, inputs, device)


def _unwritten(column: Column, rows: int, count: int) -> Tensor:
    """A number that no answer has: of NaN, a pass would doubt its answer, and the general way would correct it."""
    shape = (rows if column.per_row else count, *column.trailing)
    return torch.full(shape, -12345.0, dtype=getattr(torch, column.dtype))


def alone(request: Mapping[str, Any], tensors: Tensors, device: str = "cpu") -> Evaluated:
    """One request's answer; its problem is raised."""
    (answer,) = together([request], [tensors], device)
    if isinstance(answer, Problem):
        raise answer
    return answer
