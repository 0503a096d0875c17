"""Losses of losses: each term is evaluated as the request it would be on its own, then the values are combined.

A composed loss is a function of its terms' values. Its gradient is the chain rule over two levels: the derivative of
that small function by each value, times the term's own gradient, which comes from the term's own evaluation with all
its checks, closed forms and diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lossd.evaluation.batch import Batch
from lossd.job import Recipe
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import Problem

__all__ = ["Composed", "compose"]

Evaluate = Callable[[Batch], Sequence[dict[str, Any] | Problem]]


@dataclass(frozen=True, slots=True)
class Composed:
    """A composed loss of one request.

    Attributes:
        value: The loss, a scalar, before it is divided by its weight.
        weight: What it counts in the mean, a scalar.
        gradients: The value's gradient by the inputs asked for, in the shapes of the request's tensors.
        terms: Each term's loss, value and weight: the derivative of the whole by that value.
        metrics: The first term's metrics, if asked.
        answers: Each term's place, and its answers: one, or one of each row that counts.
    """

    value: Tensor
    weight: Tensor
    gradients: dict[str, Tensor]
    terms: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    answers: list[tuple[str, list[dict[str, Any]]]]


def compose(loss: Loss, batch: Batch, evaluate: Evaluate) -> Composed:
    """Evaluate a composed loss.

    Args:
        loss: Its definition: a function of ``losses`` and its own inputs.
        batch: One request, with the terms in its recipe.
        evaluate: The evaluation of a batch.

    Raises:
        Problem: That of the first term that has one, with the term's place.
    """
    recipe = batch.recipe
    evaluated = [_Term(record, batch) for record in recipe.terms]
    for term in evaluated:
        term.evaluate(evaluate, per_sample=loss.per_sample)
    values = [value for term in evaluated for value in term.values]
    losses = torch.tensor(values, dtype=torch.float64, device=batch.device).requires_grad_()
    own = {entry.name: batch.inputs[entry.name][0].to(batch.device) for entry in loss.request_inputs}
    # What has a gradient is computed with, in float64; what has none is compared, in the dtype it was sent in.
    for entry in loss.request_inputs:
        if entry.differentiable:
            own[entry.name] = own[entry.name].double().requires_grad_(entry.name in recipe.gradients)
    if loss.per_sample:
        own["weight"] = evaluated[0].weights
    with torch.enable_grad():
        unreduced = loss.function(losses, **own, **recipe.parameters)
    value, weight = (
        (unreduced.value, unreduced.weight)
        if isinstance(unreduced, Unreduced)
        else (unreduced, torch.ones_like(unreduced))
    )
    sources = [losses, *(own[name] for name in recipe.gradients if name in own)]
    shares, *of_own = torch.autograd.grad(value, sources, materialize_grads=True)
    if loss.per_sample and not (shares[evaluated[0].counted] != 0).any():
        weight = torch.zeros_like(weight)
    gradients = dict(zip((name for name in recipe.gradients if name in own), of_own, strict=True))
    for term, share in zip(evaluated, torch.split(shares, [len(term.values) for term in evaluated]), strict=True):
        for name, gradient in term.gradients(share):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    terms = [] if loss.per_sample else [
        {"loss": term.record["loss"], "value": term.answers[0]["loss"], "weight": share}
        for term, share in zip(evaluated, shares.tolist(), strict=True)
    ]  # fmt: skip
    answers = [(term.record["place"], term.answers) for term in evaluated]
    if loss.per_sample:
        ((place, of_rows),) = answers
        answers = [(place, [answer for answer, counts in zip(of_rows, shares != 0, strict=True) if counts])]
    return Composed(value.detach(), weight.detach(), gradients, terms, evaluated[0].metrics, answers)


class _Term:
    """One term of a request, or one term of each of its rows."""

    def __init__(self, record: Mapping[str, Any], batch: Batch) -> None:
        self.record = record
        self.whole = batch
        self.recipe = Recipe.parse(record["recipe"])
        self.answers: list[dict[str, Any]] = []
        self.buffers: dict[str, Tensor] = {}
        self.weights: Tensor

    def evaluate(self, evaluate: Evaluate, *, per_sample: bool) -> None:
        """Evaluate it: as one request, or as a batch in which each row is a request.

        Raises:
            Problem: With the term's place.
        """
        recipe, rows = self.recipe, self.record["rows"]
        inputs = {}
        for column in recipe.inputs:
            tensor = self.whole.inputs[self._source(column.name)]
            inputs[column.name] = tensor[0] if column.per_row else tensor
        self.weights = torch.ones(rows, dtype=torch.float64, device=self.whole.device)
        if per_sample and (weight := inputs.get("sample_weight")) is not None:
            # The mean over rows is the whole's, and so are its weights: in a row's own mean each would cancel out.
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
        for answer in evaluate(replace(self.whole, recipe=recipe, rows=requests, numbers=numbers, inputs=inputs,
                                       answers=self.buffers)):  # fmt: skip
            if isinstance(answer, Problem):
                raise type(answer)(f"{self.record['place']}: {answer.detail}", errors=answer.errors)
            self.answers.append(answer)

    @property
    def values(self) -> list[float]:
        """Its loss, or that of each row; "NaN" and "Infinity" are spelled out in answers."""
        return [float(answer["loss"]) for answer in self.answers]

    @property
    def counted(self) -> list[bool]:
        """Whether it, or each row, had anything to average."""
        return [float(answer["reduction"]["denominator"]) != 0 for answer in self.answers]

    @property
    def metrics(self) -> dict[str, Any] | None:
        """Its metrics, where it was asked for them."""
        return self.answers[0].get("metrics")

    def gradients(self, share: Tensor) -> Iterator[tuple[str, Tensor]]:
        """By the request's tensor: its gradient times its share, (1,) or (N,), in the tensor's shape."""
        for name, gradient in self.buffers.items():
            source = self._source(name.removeprefix("gradient."))
            factor = share.reshape(-1, *(1,) * (gradient.ndim - 1))
            yield source, (gradient.double() * factor).reshape(self.whole.inputs[source].shape[1:])

    def _source(self, name: str) -> str:
        mapped: str = self.record["inputs"].get(name, name)
        return mapped
