"""Composed losses: evaluate each term like a request of its own, then combine the terms' values.

A composed loss is a function of its terms' values. Its gradient follows from the chain rule over two levels: the
derivative of that function by each value, times the term's own gradient. The term's evaluation supplies that gradient,
with all checks, closed forms and diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.diagnostics import warning
from lossd.evaluation.row_values import RowValues
from lossd.job import Recipe
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import Problem

__all__ = ["Composed", "compose"]

Evaluate = Callable[[TensorBatch], Sequence[dict[str, Any] | Problem]]
EvaluateRows = Callable[[TensorBatch], RowValues]


@dataclass(frozen=True, slots=True)
class Composed:
    """The composed loss of one request.

    Attributes:
        value: The loss, a scalar, before the division by its weight.
        weight: The request's weight in the mean, a scalar.
        gradients: The gradient of the value by each requested input, in the shapes of the request's tensors.
        terms: Each term's loss, value and weight, which is the derivative of the composed loss by that value.
        metrics: The first term's metrics; None if they are not requested.
        warnings: Each term's place and its warnings. Those of rows state the number of rows that count and have them.
    """

    value: Tensor
    weight: Tensor
    gradients: dict[str, Tensor]
    terms: list[dict[str, Any]]
    metrics: dict[str, Any] | None
    warnings: list[tuple[str, list[dict[str, str]]]]


def compose(loss: Loss, batch: TensorBatch, evaluate: Evaluate, evaluate_rows: EvaluateRows) -> Composed:
    """Evaluate a composed loss.

    Args:
        loss: The loss's definition: a function of ``losses`` and its own inputs.
        batch: One request, with the terms in its recipe.
        evaluate: The function that evaluates a batch.
        evaluate_rows: The function that evaluates a batch whose requests are single rows.

    Raises:
        Problem: A term has a problem; the detail names the first such term's place.
    """
    recipe = batch.recipe
    evaluated = [_TermEvaluation(record, batch) for record in recipe.terms]
    for term in evaluated:
        if loss.per_sample:
            term.evaluate_rows(evaluate, evaluate_rows)
        else:
            term.evaluate(evaluate)
    losses = torch.cat([term.values.losses for term in evaluated]).to(batch.device).requires_grad_()
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
    host_shares = shares.cpu()
    if loss.per_sample and not ((evaluated[0].values.denominators != 0) & (host_shares != 0)).any():
        weight = torch.zeros_like(weight)
    gradients = dict(zip((name for name in recipe.gradients if name in own_inputs), input_gradients, strict=True))
    for term, share in zip(
        evaluated, torch.split(shares, [len(term.values.losses) for term in evaluated]), strict=True
    ):
        for name, gradient in term.gradients(share):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    terms = [] if loss.per_sample else [
        {"loss": term.record["loss"], "value": term.answers[0]["loss"], "weight": share}
        for term, share in zip(evaluated, host_shares.tolist(), strict=True)
    ]  # fmt: skip
    counting = host_shares != 0 if loss.per_sample else None
    warnings = [(term.record["place"], term.warnings(counting)) for term in evaluated]
    return Composed(value.detach(), weight.detach(), gradients, terms, evaluated[0].metrics, warnings)


class _TermEvaluation:
    """The evaluation of one term of a request, or of one term for each of its rows."""

    def __init__(self, record: Mapping[str, Any], batch: TensorBatch) -> None:
        self.record = record
        self.whole = batch
        self.recipe = Recipe.parse(record["recipe"])
        self.answers: list[dict[str, Any]] = []
        self.values: RowValues
        self.buffers: dict[str, Tensor] = {}
        self.weights: Tensor

    def evaluate(self, evaluate: Evaluate) -> None:
        """Evaluate the term as one request.

        Raises:
            Problem: The term has a problem; the detail names its place.
        """
        self._evaluate_whole(evaluate, self._batch(self._inputs(), [self.record["rows"]]))
        self.values = RowValues.of(self.answers)

    def evaluate_rows(self, evaluate: Evaluate, evaluate_rows: EvaluateRows) -> None:
        """Evaluate the term as a batch in which each row is a request, and its metrics over all rows.

        Raises:
            Problem: The term has a problem; the detail names its place.
        """
        rows, inputs = self.record["rows"], self._inputs()
        self.weights = torch.ones(rows, dtype=torch.float64, device=self.whole.device)
        recipe, weight = self.recipe, inputs.get("sample_weight")
        if recipe.metrics:
            only_metrics = replace(recipe, want_loss=False, gradients=())
            self._evaluate_whole(evaluate, self._batch(inputs, [rows])._replace(recipe=only_metrics, answers={}))
        if weight is not None:
            # The composed loss takes the mean over rows, so it applies the weights: each cancels in a row's own mean.
            self.weights = weight.to(self.weights)
            inputs["sample_weight"] = torch.where((weight > 0) & weight.isfinite(), torch.ones_like(weight), weight)
        loss_alone = replace(recipe, metrics=()) if recipe.metrics else recipe
        try:
            self.values = evaluate_rows(self._batch(inputs, [1] * rows)._replace(recipe=loss_alone))
        except Problem as problem:
            raise self._named(problem) from None

    def _evaluate_whole(self, evaluate: Evaluate, batch: TensorBatch) -> None:
        for answer in evaluate(batch):
            if isinstance(answer, Problem):
                raise self._named(answer)
            self.answers.append(answer)

    def _inputs(self) -> dict[str, Tensor]:
        inputs = {}
        for column in self.recipe.inputs:
            tensor = self.whole.inputs[self._source(column.name)]
            inputs[column.name] = tensor[0] if column.per_row else tensor
        return inputs

    def _batch(self, inputs: Mapping[str, Tensor], rows: Sequence[int]) -> TensorBatch:
        """Return a batch of the term's rows, with new memory for its answers."""
        self.buffers = {
            column.name: torch.empty(
                (self.record["rows"] if column.per_row else 1, *column.trailing),
                dtype=getattr(torch, column.dtype),
                device=self.whole.device,
            )
            for column in self.recipe.answers
        }
        numbers = [self.record["numbers"]] * len(rows)
        return self.whole._replace(recipe=self.recipe, rows=rows, numbers=numbers, inputs=inputs, answers=self.buffers)

    def _named(self, problem: Problem) -> Problem:
        return type(problem)(f"{self.record['place']}: {problem.detail}", errors=problem.errors)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The term's metrics; None if they were not requested."""
        return self.answers[0].get("metrics") if self.answers else None

    def warnings(self, counting: Tensor | None) -> list[dict[str, str]]:
        """Return the term's warnings.

        Args:
            counting: The rows that count, (N,) bool; None if the term was evaluated as one request.
        """
        found = [one for answer in self.answers for one in answer["diagnostics"]["warnings"]]
        if counting is not None:
            samples = {code: int((rows & counting).sum()) for code, rows in self.values.warned.items()}
            found += [warning(code, count) for code, count in samples.items() if count]
        return found

    def gradients(self, share: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield, for each tensor of the request, the gradient times its share, (1,) or (N,), in the tensor's shape."""
        for name, gradient in self.buffers.items():
            source = self._source(name.removeprefix("gradient."))
            factor = share.reshape(-1, *(1,) * (gradient.ndim - 1))
            yield source, (gradient.double() * factor).reshape(self.whole.inputs[source].shape[1:])

    def _source(self, name: str) -> str:
        mapped: str = self.record["inputs"].get(name, name)
        return mapped
