"""Composed losses: evaluate each term like a request of its own, then combine the terms' values.

A composed loss is a function of its terms' values. Its gradient follows from the chain rule over two levels: the
derivative of that function by each value, times the term's own gradient. The term's evaluation supplies that gradient,
with all checks, closed forms and diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossd.evaluation.batch import TensorBatch
from lossd.job import Recipe
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import Problem

__all__ = ["Composed", "compose"]

Evaluate = Callable[[TensorBatch], Sequence[dict[str, Any] | Problem]]


@dataclass(frozen=True, slots=True)
class Composed:
    """The composed loss of one request.

    Attributes:
        value: The loss, a scalar, before the division by its weight.
        weight: The request's weight in the mean, a scalar.
        gradients: The gradient of the value by each requested input, in the shapes of the request's tensors.
        terms: Each term's loss, value and weight, which is the derivative of the composed loss by that value.
        metrics: The first term's metrics; None if they are not requested.
        answers: Each term's place and its answers: one, or one for each row that counts.
    """

    value: Tensor
    weight: Tensor
    gradients: dict[str, Tensor]
    terms: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    answers: list[tuple[str, list[dict[str, Any]]]]


def compose(loss: Loss, batch: TensorBatch, evaluate: Evaluate) -> Composed:
    """Evaluate a composed loss.

    Args:
        loss: The loss's definition: a function of ``losses`` and its own inputs.
        batch: One request, with the terms in its recipe.
        evaluate: The function that evaluates a batch.

    Raises:
        Problem: A term has a problem; the detail names the first such term's place.
    """
    recipe = batch.recipe
    evaluated = [_TermEvaluation(record, batch) for record in recipe.terms]
    for term in evaluated:
        term.evaluate(evaluate, per_sample=loss.per_sample)
    values = [value for term in evaluated for value in term.values]
    losses = torch.tensor(values, dtype=torch.float64, device=batch.device).requires_grad_()
    own_inputs = {entry.name: batch.inputs[entry.name][0].to(batch.device) for entry in loss.request_inputs}
    # Differentiable inputs are computed with, in float64. Others are only compared, so they keep their dtype.
    for entry in loss.request_inputs:
        if entry.differentiable:
            own_inputs[entry.name] = own_inputs[entry.name].double().requires_grad_(entry.name in recipe.gradients)
    if loss.per_sample:
        own_inputs["weight"] = evaluated[0].weights
    with torch.enable_grad():
        unreduced = loss.function(losses, **own_inputs, **recipe.parameters)
    value, weight = (
        (unreduced.value, unreduced.weight)
        if isinstance(unreduced, Unreduced)
        else (unreduced, torch.ones_like(unreduced))
    )
    sources = [losses, *(own_inputs[name] for name in recipe.gradients if name in own_inputs)]
    shares, *input_gradients = torch.autograd.grad(value, sources, materialize_grads=True)
    if loss.per_sample and not (shares[evaluated[0].counted] != 0).any():
        weight = torch.zeros_like(weight)
    gradients = dict(zip((name for name in recipe.gradients if name in own_inputs), input_gradients, strict=True))
    for term, share in zip(evaluated, torch.split(shares, [len(term.values) for term in evaluated]), strict=True):
        for name, gradient in term.gradients(share):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    terms = [] if loss.per_sample else [
        {"loss": term.record["loss"], "value": term.answers[0]["loss"], "weight": share}
        for term, share in zip(evaluated, shares.tolist(), strict=True)
    ]  # fmt: skip
    answers = [(term.record["place"], term.answers) for term in evaluated]
    if loss.per_sample:
        ((place, row_answers),) = answers
        answers = [(place, [answer for answer, counts in zip(row_answers, shares != 0, strict=True) if counts])]
    return Composed(value.detach(), weight.detach(), gradients, terms, evaluated[0].metrics, answers)


class _TermEvaluation:
    """The evaluation of one term of a request, or of one term for each of its rows."""

    def __init__(self, record: Mapping[str, Any], batch: TensorBatch) -> None:
        self.record = record
        self.whole = batch
        self.recipe = Recipe.parse(record["recipe"])
        self.answers: list[dict[str, Any]] = []
        self.buffers: dict[str, Tensor] = {}
        self.weights: Tensor

    def evaluate(self, evaluate: Evaluate, *, per_sample: bool) -> None:
        """Evaluate the term as one request, or as a batch in which each row is a request.

        Raises:
            Problem: The term has a problem; the detail names its place.
        """
        recipe, rows = self.recipe, self.record["rows"]
        inputs = {}
        for column in recipe.inputs:
            tensor = self.whole.inputs[self._source(column.name)]
            inputs[column.name] = tensor[0] if column.per_row else tensor
        self.weights = torch.ones(rows, dtype=torch.float64, device=self.whole.device)
        if per_sample and (weight := inputs.get("sample_weight")) is not None:
            # The composed loss takes the mean over rows, so it applies the weights: each cancels in a row's own mean.
            self.weights = weight.to(self.weights)
            inputs["sample_weight"] = torch.where((weight > 0) & weight.isfinite(), torch.ones_like(weight), weight)
        self.buffers = {
            c.name: torch.empty(
                (rows if c.per_row else 1, *c.trailing), dtype=getattr(torch, c.dtype), device=self.whole.device
            )
            for c in recipe.answers
        }
        requests = [1] * rows if per_sample else [rows]
        numbers = [self.record["numbers"]] * len(requests)
        for answer in evaluate(self.whole._replace(recipe=recipe, rows=requests, numbers=numbers, inputs=inputs,
                                       answers=self.buffers)):  # fmt: skip
            if isinstance(answer, Problem):
                raise type(answer)(f"{self.record['place']}: {answer.detail}", errors=answer.errors)
            self.answers.append(answer)

    @property
    def values(self) -> list[float]:
        """The term's loss, or its loss for each row; answers spell NaN and infinity as strings."""
        return [float(answer["loss"]) for answer in self.answers]

    @property
    def counted(self) -> list[bool]:
        """Whether the term, or each row, had an entry to average."""
        return [float(answer["reduction"]["denominator"]) != 0 for answer in self.answers]

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The term's metrics; None if they were not requested."""
        return self.answers[0].get("metrics")

    def gradients(self, share: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield, for each tensor of the request, the gradient times its share, (1,) or (N,), in the tensor's shape."""
        for name, gradient in self.buffers.items():
            source = self._source(name.removeprefix("gradient."))
            factor = share.reshape(-1, *(1,) * (gradient.ndim - 1))
            yield source, (gradient.double() * factor).reshape(self.whole.inputs[source].shape[1:])

    def _source(self, name: str) -> str:
        mapped: str = self.record["inputs"].get(name, name)
        return mapped
