"""Composed losses: evaluate each term like a request of its own, then combine the terms' values.

A composed loss is a function of its terms' values. Its gradient follows from the chain rule over two levels: the
derivative of that function by each value, times the term's own gradient. The term's evaluation supplies that gradient,
with all checks, closed forms and diagnostics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossd.compiled.work import LEAST_NORM
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.diagnostics import describe, passed_up, warning
from lossd.evaluation.row_values import RowValues
from lossd.job import Recipe
from lossd.losses.autograd import vjp
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import Problem

__all__ = ["Composed", "DoubtfulError", "add_up", "compose"]

EvaluateBatch = Callable[[TensorBatch], Sequence[dict[str, Any] | Problem]]
EvaluateByPass = Callable[[TensorBatch], Sequence[dict[str, Any] | Problem] | None]
EvaluateRows = Callable[[TensorBatch], RowValues]


class DoubtfulError(Exception):
    """A compiled pass leaves one of several requests to the general way: each is to be answered alone."""


@dataclass(frozen=True, slots=True)
class Composed:
    """The composed loss of each of B requests.

    Attributes:
        value: The losses, (B,), before the division by their weights.
        weight: The requests' weights in the mean, (B,).
        gradients: The gradient of the value by each requested input, (B, ...).
        terms: For each request, each term's loss, value and weight, which is the derivative of the composed loss by
            that value.
        metrics: The first term's metrics for each request; empty if they are not requested.
        warnings: For each request, each term's place and its warnings. Those of rows state the number of rows that
            count and have them.
    """

    value: Tensor
    weight: Tensor
    gradients: dict[str, Tensor]
    terms: list[list[dict[str, Any]]]
    metrics: list[dict[str, Any]]
    warnings: list[list[tuple[str, list[dict[str, str]]]]]


def compose(loss: Loss, batch: TensorBatch, evaluate: EvaluateBatch, evaluate_rows: EvaluateRows) -> Composed:
    """Evaluate a composed loss.

    Args:
        loss: The loss's definition: a function of ``losses`` and its own inputs.
        batch: The requests, with the terms in their recipe; one request if the loss is one per sample.
        evaluate: The function that evaluates a batch.
        evaluate_rows: The function that evaluates a batch whose requests are single rows.

    Raises:
        Problem: A term of a request has a problem; the detail names the first such term's place.
    """
    recipe = batch.recipe
    evaluated = [_TermEvaluation(record, batch) for record in recipe.terms]
    for term in evaluated:
        if loss.per_sample:
            term.evaluate_rows(evaluate, evaluate_rows)
        else:
            term.evaluate(evaluate)
    of_terms = [term.values.losses for term in evaluated]
    losses = torch.cat(of_terms) if loss.per_sample else torch.stack(of_terms, 1)
    losses = losses.to(batch.device).requires_grad_()
    own_inputs = {
        entry.name: batch.inputs[entry.name][0 if loss.per_sample else slice(None)].to(batch.device)
        for entry in loss.request_inputs
    }
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
    shares, *input_gradients = vjp(value, sources, torch.ones_like(value))
    host_shares = shares.cpu()
    if loss.per_sample and not ((evaluated[0].values.denominators != 0) & (host_shares != 0)).any():
        weight = torch.zeros_like(weight)
    gradients = dict(zip((name for name in recipe.gradients if name in own_inputs), input_gradients, strict=True))
    for term, share in zip(evaluated, [shares] if loss.per_sample else shares.unbind(1), strict=True):
        for name, gradient in term.gradients(share):
            gradients[name] = gradients[name] + gradient if name in gradients else gradient
    terms: list[list[dict[str, Any]]] = []
    if loss.per_sample:
        counting = host_shares != 0
        warnings = [[(term.record["place"], term.warnings_of_rows(counting)) for term in evaluated]]
        value, weight = value.unsqueeze(0), weight.unsqueeze(0)
    else:
        terms = [
            [
                {"loss": term.record["loss"], "value": term.answers[request]["loss"], "weight": share}
                for term, share in zip(evaluated, of_request, strict=True)
            ]
            for request, of_request in enumerate(host_shares.tolist())
        ]
        warnings = [
            [(term.record["place"], term.answers[request]["diagnostics"]["warnings"]) for term in evaluated]
            for request in range(len(batch.rows))
        ]
    return Composed(value.detach(), weight.detach(), gradients, terms, evaluated[0].metrics, warnings)


def add_up(loss: Loss, batch: TensorBatch, evaluate: EvaluateByPass) -> list[dict[str, Any] | Problem] | None:
    """Return the answers of a linear loss whose terms have compiled passes; without tensor operations.

    Args:
        loss: The loss's definition.
        batch: The requests. Their gradients are written.
        evaluate: Evaluates a batch by a compiled pass; returns None if there is none, and may raise DoubtfulError.

    Returns:
        None if the general way must evaluate the requests: a term has no pass, an option changes the gradient, or a
        number of a single request is out of range.

    Raises:
        DoubtfulError: A number of one of several requests is out of range.
    """
    recipe, count, options = batch.recipe, len(batch.rows), batch.recipe.gradient_options
    changed = recipe.half or any(options.get(name) is not None for name in ("clip_norm", "clip_value"))
    if not loss.linear or changed or not recipe.evaluates_loss or "cotangent" in batch.inputs:
        return None
    values = loss.function(torch.eye(len(recipe.terms), dtype=torch.float64), **recipe.parameters)
    assert isinstance(values, Tensor)
    weights: list[float] = values.tolist()
    terms = [_TermEvaluation(record, batch) for record in recipe.terms]
    gradients: dict[str, npt.NDArray[np.float64]] = {}
    losses = np.zeros(count)
    for term, weight in zip(terms, weights, strict=True):
        answers = evaluate(term.batch())
        if answers is None:
            return None
        term.answers = cast("list[dict[str, Any]]", answers)  # a pass has no problems
        losses += [weight * answer["loss"] for answer in term.answers]
        for source, buffer in term.gradients_by_source():
            gradient = np.multiply(buffer.numpy().reshape(count, -1), weight, dtype=np.float64)
            gradients[source] = gradients[source] + gradient if source in gradients else gradient
    norms = [np.sqrt(np.einsum("ij,ij->i", gradient, gradient)) for gradient in gradients.values()]
    columns = np.array([losses, losses, np.ones(count), np.ones(count), *norms])
    if not np.isfinite(columns).all() or any(norm.min() < LEAST_NORM for norm in norms):
        if count > 1:
            raise DoubtfulError
        return None
    for name, gradient in gradients.items():
        answer = batch.answers[f"gradient.{name}"]
        answer.copy_(torch.from_numpy(gradient).reshape(answer.shape))
    described: list[dict[str, Any] | Problem] = []
    for position, fields in enumerate(describe(recipe, columns.tolist(), tuple(gradients))):
        of_terms = [term.answers[position] for term in terms]
        each = zip(terms, of_terms, weights, strict=True)
        diagnostics = fields.pop("diagnostics")
        fields["terms"] = [{"loss": t.record["loss"], "value": a["loss"], "weight": weight} for t, a, weight in each]
        found = [(t.record["place"], a["diagnostics"]["warnings"]) for t, a in zip(terms, of_terms, strict=True)]
        diagnostics["warnings"] += passed_up(found, per_sample=False)
        metrics = {"metrics": of_terms[0]["metrics"]} if "metrics" in of_terms[0] else {}
        described.append({**metrics, **fields, "diagnostics": diagnostics})
    return described


class _TermEvaluation:
    """The evaluation of one term of all requests, or of one term for each row of one request."""

    def __init__(self, record: Mapping[str, Any], batch: TensorBatch) -> None:
        self.record = record
        self.whole = batch
        self.recipe = Recipe.parse(record["recipe"])
        self.answers: list[dict[str, Any]] = []
        self.values: RowValues
        self.buffers: dict[str, Tensor] = {}
        self.weights: Tensor

    def evaluate(self, evaluate: EvaluateBatch) -> None:
        """Evaluate the term of all requests.

        Raises:
            Problem: The term has a problem; the detail names its place.
        """
        self._evaluate_whole(evaluate, self.batch())
        self.values = RowValues.of(self.answers)

    def batch(self) -> TensorBatch:
        """Return a batch of the term of all requests."""
        return self._batch(self._inputs(), [self.record["rows"]] * len(self.whole.rows))

    def evaluate_rows(self, evaluate: EvaluateBatch, evaluate_rows: EvaluateRows) -> None:
        """Evaluate the term with each row as a request, and its metrics over all rows.

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

    def _evaluate_whole(self, evaluate: EvaluateBatch, batch: TensorBatch) -> None:
        for answer in evaluate(batch):
            if isinstance(answer, Problem):
                raise self._named(answer)
            self.answers.append(answer)

    def _inputs(self) -> dict[str, Tensor]:
        inputs = {}
        for column in self.recipe.inputs:
            tensor = self.whole.inputs[self._source(column.name)]
            inputs[column.name] = tensor.flatten(0, 1) if column.per_row else tensor
        return inputs

    def _batch(self, inputs: Mapping[str, Tensor], rows: Sequence[int]) -> TensorBatch:
        """Return a batch of the term's rows, with new memory for its answers."""
        self.buffers = {
            column.name: torch.empty(
                (len(self.whole.rows) * (self.record["rows"] if column.per_row else 1), *column.trailing),
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
    def metrics(self) -> list[dict[str, Any]]:
        """The term's metrics for each request; empty if they were not requested."""
        return [answer["metrics"] for answer in self.answers if "metrics" in answer]

    def warnings_of_rows(self, counting: Tensor) -> list[dict[str, str]]:
        """Return the warnings of the term's rows that count, (N,) bool, and of its metrics."""
        found = [one for answer in self.answers for one in answer["diagnostics"]["warnings"]]
        samples = {code: int((rows & counting).sum()) for code, rows in self.values.warned.items()}
        return found + [warning(code, count) for code, count in samples.items() if count]

    def gradients(self, share: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield, for each tensor, the gradient times its share, (B,) of requests or (N,) of rows, (B, ...)."""
        for source, gradient in self.gradients_by_source():
            by_share = gradient.double().reshape(len(share), -1) * share.unsqueeze(1)
            yield source, by_share.reshape(self.whole.inputs[source].shape)

    def gradients_by_source(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each gradient with the name of the request's tensor that it is by."""
        for name, gradient in self.buffers.items():
            yield self._source(name.removeprefix("gradient.")), gradient

    def _source(self, name: str) -> str:
        mapped: str = self.record["inputs"].get(name, name)
        return mapped
