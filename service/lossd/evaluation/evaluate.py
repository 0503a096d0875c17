"""Evaluate a batch on a device: validate, forward, backward, metrics, split.

This module knows no HTTP, queue or process. The requests of a batch share every tensor operation but do not affect each
other: sums are per request, a bad entry fails only its own request and is replaced before it can become an index, and a
request in a batch gets the same answer as alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import lossd.metrics as metrics
from lossd.compiled.passes import Passes
from lossd.evaluation import gradient, hessian
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.compiled_pass import PassResult, run_pass
from lossd.evaluation.composition import DoubtfulError, add_up, compose
from lossd.evaluation.device_errors import is_out_of_memory, release_memory
from lossd.evaluation.diagnostics import describe, passed_up, warning
from lossd.evaluation.differentiation import LossOfBatch, varying_numbers
from lossd.evaluation.inputs import SOFTMAX, DeviceInputs, prepared
from lossd.evaluation.isolation import isolated
from lossd.evaluation.masking import masking_of
from lossd.evaluation.misread import probabilities_as_logits, reads_logits
from lossd.evaluation.ranges import out_of_range, rows_out_of_range
from lossd.evaluation.row_values import RowValues
from lossd.losses import REGISTRY
from lossd.losses.reduction import Reducer, Segments
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import Problem

__all__ = ["evaluate", "evaluate_rows", "measure"]

T = TypeVar("T")


def evaluate(batch: TensorBatch, passes: Passes | None = None) -> list[dict[str, Any] | Problem]:
    """Return the answer of each request in order: a JSON-ready document, or the request's problem.

    Gradients and unreduced losses are written into ``batch.answers``.

    Args:
        batch: The batch.
        passes: The compiled passes to use on a CPU; None for the general way alone.

    Raises:
        RuntimeError: The device is broken; another device may evaluate the batch.
    """
    answers = isolated(batch, partial(_evaluated, passes=passes))
    if batch.recipe.gradient_options.get("layout") == "class_first":
        gradient.put_classes_first(batch)
    return answers


def _evaluated(batch: TensorBatch, passes: Passes | None) -> list[dict[str, Any] | Problem] | None:
    """Return the answers; None if there are several requests and a compiled pass cannot evaluate one of them."""
    passed = run_pass(batch, passes)
    if passed is not None:
        return None if True in passed.outcome.doubtful.tolist() else _Evaluation(batch, passes, passed).run()
    if batch.recipe.kind == "composed" and passes is not None and batch.device.type == "cpu":
        assert batch.recipe.loss is not None
        try:
            sums = add_up(REGISTRY[batch.recipe.loss], batch, partial(_passed, passes=passes))
        except DoubtfulError:
            return None
        if sums is not None:
            return sums
    return _Evaluation(batch, passes).run()


def _passed(batch: TensorBatch, passes: Passes) -> list[dict[str, Any] | Problem] | None:
    """Return the answers by a compiled pass; None if there is none, or if it does not take the only request.

    Raises:
        DoubtfulError: It leaves one of several requests to the general way.
    """
    passed = run_pass(batch, passes)
    if passed is None:
        return None
    if True in passed.outcome.doubtful.tolist():
        raise DoubtfulError
    return _Evaluation(batch, passes, passed).run()


def measure(batch: TensorBatch) -> tuple[metrics.View | None, RowValues | None]:
    """Return the batch as metrics read it, and the values of all rows.

    Each row is evaluated as a request of its own, so that its loss does not depend on the other rows.

    Args:
        batch: The batch; one request unless its recipe is of the kind rows. The view is None without metrics, the
            values are None if the loss is not requested, or if it is no mean over rows.

    Raises:
        Problem: A request is wrong.
        RuntimeError: The device is broken.
    """
    recipe = batch.recipe
    evaluation = _Evaluation(batch, None)
    for problem in evaluation.prepare().values():
        raise problem
    view = evaluation.view() if recipe.metrics and recipe.task is not None else None
    if recipe.loss is None or not recipe.want_loss or not evaluation.rowwise:
        return view, None
    return view, evaluation.values_of_rows()


def evaluate_rows(batch: TensorBatch, passes: Passes | None = None) -> RowValues:
    """Evaluate requests of one row each, for which no documents are needed, and return their values.

    Gradients are written into ``batch.answers``.

    Args:
        batch: The batch.
        passes: As for :func:`evaluate`.

    Raises:
        Problem: Of the first row that has one.
    """
    count = len(batch.rows)
    try:
        passed = run_pass(batch, passes)
        if passed is None:
            return _Evaluation(batch, passes).run_rows()
        columns, flags = torch.from_numpy(passed.outcome.columns), passed.outcome.flags
        values = RowValues(*columns[:3])
        for code, times in zip(flags, columns[len(columns) - len(flags) :], strict=True):
            values.warned[code] = times != 0
        if passed.outcome.doubtful.any():
            positions = np.flatnonzero(passed.outcome.doubtful).tolist()
            part = batch.picked(positions)
            values.replace(positions, evaluate_rows(part))
            batch.take(positions, part)
        return values
    except Exception as error:
        if count == 1 or not is_out_of_memory(error):
            raise
    release_memory(batch.device)  # only here, because the failed attempt's tensors are freed by now
    half = count // 2
    return evaluate_rows(batch.part(0, half), passes) + evaluate_rows(batch.part(half, count), passes)


class _Measured(NamedTuple):
    """The numbers of each request, before they are described.

    Attributes:
        columns: See :func:`lossd.evaluation.diagnostics.describe`; (K, B) float64, on the host.
        norms: The inputs whose gradients have a norm.
        flags: The codes of the flags.
        extras: Further fields of each request's answer; empty if there are none.
        rounded: The answers that may be infinite only because their dtype is narrower.
    """

    columns: Tensor
    norms: tuple[str, ...]
    flags: tuple[str, ...]
    extras: Sequence[Mapping[str, Any]]
    rounded: frozenset[str]

    def up_to_norms(self) -> Tensor:
        """Return the columns without those of the flags."""
        return self.columns[: 4 + len(self.norms)]


class _Evaluation:
    """The evaluation of one batch.

    Args:
        batch: The batch.
        passes: The compiled passes, for its metrics and its terms; None for none.
        passed: The result of a compiled pass, without doubtful requests; None if none ran.
        careful: Whether to compute in float64, to avoid sums that overflow although their mean does not, and to take a
            sample's single infinite score as certain.
    """

    def __init__(
        self, batch: TensorBatch, passes: Passes | None, passed: PassResult | None = None, *, careful: bool = False
    ) -> None:
        self.passes = passes
        self.passed = passed
        self.careful = careful
        self.batch = batch
        self.recipe = batch.recipe
        self.count = len(batch.rows)
        self.rowwise = self.recipe.kind == "rows"
        # A loss of another kind that has rows is a formula, no bit of whose answer depends on the batch.
        alike = self.rowwise and self.recipe.loss is not None and REGISTRY[self.recipe.loss].kind != "rows"
        self.segments = Segments(batch.rows if self.rowwise else [1] * self.count, batch.device, alike=alike)
        self.inputs: DeviceInputs  # after prepare(); a compiled pass has its own
        self.answers: list[dict[str, Any]] = []
        self.terms: Sequence[Mapping[str, Any]] = ()
        self.warnings_of_terms: Sequence[list[dict[str, str]]] = ()

    def run(self) -> list[dict[str, Any] | Problem]:
        recipe = self.recipe
        problems: dict[int, Problem] = {}
        if self.passed is not None:
            described = recipe.evaluates_loss
            columns = self.passed.outcome.columns.tolist()
            flags = self.passed.outcome.flags
            if flags and not recipe.gradients:
                del columns[4]  # the norm of a gradient that is not requested
            self.answers = describe(recipe, columns, recipe.gradients, flags) if described else self._empty_answers()
        else:
            problems = self._run_in_steps()
        if recipe.metrics:
            assert recipe.task is not None
            measured, doubts = metrics.breakdown(recipe.task, recipe.metrics, self.view())
            for answer, request_metrics, codes in zip(self.answers, measured, doubts, strict=True):
                answer["metrics"] = request_metrics
                if codes:
                    answer.setdefault("diagnostics", {"warnings": []})["warnings"].extend(map(warning, codes))
        for answer in self.answers:
            if "diagnostics" not in answer:
                answer["diagnostics"] = {"warnings": []}
        if reads_logits(recipe):
            for position in probabilities_as_logits(self.batch, self.segments, self.view):
                diagnostics = self.answers[position]["diagnostics"]
                if position not in problems and diagnostics["valid_count"]:
                    diagnostics["warnings"].append(warning("probabilities_as_logits"))
        return [problems.get(i, answer) for i, answer in enumerate(self.answers)]

    def run_rows(self) -> RowValues:
        """Compute loss and gradient, and return the values of requests of one row each.

        Raises:
            Problem: Of the first row that has one.
        """
        if problems := self.prepare():
            raise problems[min(problems)]
        return self._row_values()

    def values_of_rows(self) -> RowValues:
        """Return the values of the rows of prepared requests, each as a request of its own."""
        rows = self.segments.total
        numbers: list[Sequence[float]] = []
        for count, values in zip(self.batch.rows, self.batch.numbers, strict=False):  # there may be no numbers
            numbers += [values] * count
        self.batch = self.batch._replace(rows=[1] * rows, numbers=numbers)
        self.segments, self.count = Segments(self.batch.rows, self.batch.device), rows
        return self._row_values()

    def _row_values(self) -> RowValues:
        assert self.recipe.loss is not None
        measured = self._measure(REGISTRY[self.recipe.loss])
        values = RowValues(*measured.columns[:3])
        for code, times in zip(measured.flags, measured.columns[4 + len(measured.norms) :], strict=True):
            values.warned[code] = times != 0
        if not self.careful:
            positions = rows_out_of_range(measured.up_to_norms().numpy(), self.inputs.dtype)
            if positions and (again := self._carefully(positions, _Evaluation.run_rows)) is not None:
                values.replace(positions, again)
        return values

    def _run_in_steps(self) -> dict[int, Problem]:
        """Compute loss and gradient, with a tensor operation for each step, and return the problems."""
        recipe = self.recipe
        self.answers = self._empty_answers()
        problems = self.prepare()
        if recipe.loss is not None and recipe.evaluates_loss:
            columns = self._evaluate_loss(REGISTRY[recipe.loss])
            if not self.careful and recipe.kind != "composed":  # its terms were already evaluated again
                again = out_of_range(columns, self.inputs.dtype, self._floats_of)
                self._evaluate_again([i for i in again if i not in problems])
        return problems

    def _empty_answers(self) -> list[dict[str, Any]]:
        return [{} for _ in range(self.count)]

    def prepare(self) -> dict[int, Problem]:
        """Check the inputs, put them on the device, and return the problems."""
        self.inputs, problems = prepared(self.batch, self.segments, careful=self.careful)
        return problems

    # What float32 cannot compute

    def _floats_of(self, position: int) -> Iterable[Tensor]:
        """Yield a request's floating-point inputs, in the dtype of the computation."""
        per_row = {column.name: column.per_row for column in self.recipe.inputs}
        for name, tensor in self.inputs.tensors.items():
            if tensor.is_floating_point():
                yield self.segments.split(tensor)[position] if per_row[name] else tensor[position]

    def _evaluate_again(self, positions: Sequence[int]) -> None:
        """Evaluate these requests carefully, and replace their answers."""

        def answers(again: _Evaluation) -> list[dict[str, Any]]:
            again._run_in_steps()
            return again.answers

        if positions and (again := self._carefully(positions, answers)) is not None:
            for position, answer in zip(positions, again, strict=True):
                self.answers[position] = answer

    def _carefully(self, positions: Sequence[int], run: Callable[[_Evaluation], T]) -> T | None:
        """Run a careful evaluation of these requests, separately, so that the others' digits do not change.

        Returns:
            Its result. None if there is no memory for it, as float64 takes twice as much: the first answer then stays,
            with its warning.
        """
        try:
            part = self.batch.picked(positions)
            result = run(_Evaluation(part, self.passes, careful=True))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None
        self.batch.take(positions, part)
        return result

    # The loss and its gradient

    def _evaluate_loss(self, loss: Loss) -> list[list[float]]:
        """Fill the answers except for metrics, and return the columns up to the norms.

        See :func:`lossd.evaluation.diagnostics.describe` for the columns.
        """
        measured = self._measure(loss)
        host, norms, rounded = measured.columns.tolist(), measured.norms, measured.rounded
        if "loss" in rounded:
            host[0] = [math.inf if self._count_non_finite("loss", i) else loss for i, loss in enumerate(host[0])]

        def count_non_finite(name: str, position: int, norm: float) -> int:
            return (
                0
                if math.isfinite(norm) and f"gradient.{name}" not in rounded
                else self._count_non_finite(f"gradient.{name}", position)
            )

        described = describe(self.recipe, host, norms, measured.flags, count_non_finite, measured.extras)
        for position, fields in enumerate(described):
            self.answers[position].update(fields)
        for answer, warnings in zip(self.answers, self.warnings_of_terms, strict=False):
            answer["diagnostics"]["warnings"].extend(warnings)
        return host[: 4 + len(norms)]

    def _measure(self, loss: Loss) -> _Measured:
        """Compute loss and gradient, write the tensors of the answers, and return the numbers."""
        recipe, segments = self.recipe, self.segments
        shape = (segments.total, *recipe.value)
        inputs = self.inputs
        masking, sample_weight = inputs.masking, inputs.sample_weight
        entry_weight = (
            None if masking is None or loss.mask is not None or not self.rowwise else masking.factor(inputs.dtype)
        )
        reduction = Reducer(
            recipe.reduction,
            segments,
            shape,
            inputs.dtype,
            sample_weight,
            inputs.cotangent,
            entry_weight,
            careful=self.careful,
        )
        of_batch = LossOfBatch(loss, self.batch, inputs, segments)
        unreduced, gradients = (
            self._compose(loss, reduction) if recipe.kind == "composed" else of_batch.differentiate(reduction)
        )
        value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
        total, numerator, denominator, value = reduction.reduce(value)
        if self.rowwise:
            gradients = {name: gradient.mask(g, value, weight, sample_weight) for name, g in gradients.items()}
        if masking is not None:
            gradients = {name: masking.cleared(name, g) for name, g in gradients.items()}
        seconds = of_batch.differentiate_twice(reduction, value, weight)
        norms = {name: gradient.norms(g, segments) for name, g in gradients.items()}
        gradient.clip(gradients, norms, recipe.gradient_options, segments)
        for name, of_input in {**{f"gradient.{name}": g for name, g in gradients.items()}, **seconds}.items():
            answer = self.batch.answers[name]
            if answer.data_ptr() != of_input.data_ptr():
                answer.copy_(of_input.reshape(answer.shape))
        if "loss" in self.batch.answers:
            self.batch.answers["loss"].copy_(value.reshape(self.batch.answers["loss"].shape))
        extras = self.terms or ([unreduced.extras] if isinstance(unreduced, Unreduced) and unreduced.extras else [])
        flags = unreduced.flags if isinstance(unreduced, Unreduced) else {}
        raised = {code: self._times(flag) for code, flag in flags.items()}
        if seconds:
            raised |= hessian.count(seconds, segments)
        columns = [total, numerator, denominator, reduction.count(weight), *norms.values(), *raised.values()]
        host = torch.stack(columns).cpu()  # the only synchronisation with the device
        dtypes = {"loss": value.dtype, **{f"gradient.{name}": g.dtype for name, g in gradients.items()}}
        rounded = frozenset(name for name, dtype in dtypes.items() if self._was_rounded(name, dtype))
        return _Measured(host, tuple(norms), tuple(raised), extras, rounded)

    def _was_rounded(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether an answer may be infinite only because its dtype is narrower."""
        answer = self.batch.answers.get(name)
        return (
            answer is not None
            and answer.dtype != dtype
            and torch.finfo(answer.dtype).max < torch.finfo(dtype).max
            and not bool(answer.isfinite().all())
        )

    def _count_non_finite(self, name: str, position: int) -> int:
        """Return the number of non-finite entries in a request's answer."""
        return int((~self.batch.part(position, position + 1).answers[name].isfinite()).sum())

    def _times(self, flag: Tensor) -> Tensor:
        """Return how often a flag was raised in each request's rows that count, (B,) float64."""
        masking, dropped = self.inputs.masking, self.inputs.dropped
        if masking is not None and self.rowwise:
            flag = masking.counted(flag)
        row_counts = flag.long().reshape(self.segments.total, -1).sum(1)
        if dropped is not None:
            row_counts = row_counts.masked_fill(dropped, 0)
        return self.segments.sum(row_counts).double()

    def _compose(self, loss: Loss, reduction: Reducer) -> tuple[Unreduced, dict[str, Tensor]]:
        composed = compose(
            loss, self.batch, partial(evaluate, passes=self.passes), partial(evaluate_rows, passes=self.passes)
        )
        for answer, of_request in zip(self.answers, composed.metrics, strict=False):
            answer["metrics"] = of_request
        self.warnings_of_terms = [passed_up(found, per_sample=loss.per_sample) for found in composed.warnings]
        upstream = reduction.upstream(composed.weight)
        gradients = {name: g * upstream.reshape(-1, *(1,) * (g.ndim - 1)) for name, g in composed.gradients.items()}
        self.terms = [{"terms": of_request} for of_request in composed.terms]
        return Unreduced(composed.value, composed.weight), gradients

    def _left_out(self) -> Tensor:
        """Return the entries that metrics leave out."""
        if self.passed is None:
            masking = self.inputs.masking
            assert masking is not None
        else:
            masking, _ = masking_of(self.recipe, self.passed.inputs, self.segments)
        axes = self.recipe.axes.get("prediction", ())
        return masking.ignored(positions=self.recipe.task in SOFTMAX and 1 in axes and -1 not in axes)

    def view(self) -> metrics.View:
        """Return the batch as metrics read it: stacked requests become rows, one after the other."""
        recipe, segments = self.recipe, self.segments
        tensors = self.inputs.tensors if self.passed is None else self.passed.inputs
        if not self.rowwise:
            segments = Segments(self.batch.rows, self.batch.device)
            tensors = {name: t.flatten(0, 1) if t.ndim > 1 else t for name, t in tensors.items()}
        return metrics.View(
            tensors=tensors,
            segments=segments,
            activation=recipe.domains.get("prediction", "real"),
            sample_weight=self.inputs.sample_weight if self.passed is None else None,
            left_out=cache(self._left_out) if recipe.axes else None,
            ignore_index=recipe.parameters.get("ignore_index"),
            parameters=recipe.parameters,
            numbers=varying_numbers(self.batch),
            alone=recipe.loss is None,
            options=recipe.metric_options,
            counted={} if self.passed is None else self.passed.outcome.counted,
            kernels={} if self.passes is None or self.batch.device.type != "cpu" else self.passes.counting,
            dtypes=recipe.dtypes,
        )
