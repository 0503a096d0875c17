"""Evaluate a batch on a device: validate, forward, backward, metrics, split.

This module knows no HTTP, queue or process. The requests of a batch share every tensor operation but do not affect each
other: sums are per request, a bad entry fails only its own request and is replaced before it can become an index, and a
request in a batch gets the same answer as alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

import lossd.metrics as metrics
from lossd.compiled.passes import Passes
from lossd.compiled.work import Outcome, Work
from lossd.evaluation import gradient
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import arrays_of
from lossd.evaluation.composition import compose
from lossd.evaluation.device_errors import is_broken_device, is_out_of_memory, release_memory, too_large
from lossd.evaluation.diagnostics import describe, passed_up, warning
from lossd.evaluation.row_values import RowValues
from lossd.evaluation.validation import INDICES, check, dropped_rows, without_dropped
from lossd.job import UNIVERSAL
from lossd.losses import REGISTRY, softmax
from lossd.losses.reduction import Reduction, Segments
from lossd.losses.registry import Loss, Unreduced
from lossd_client.errors import InternalError, Problem

__all__ = ["evaluate", "evaluate_rows", "isolated", "measure"]

log = logging.getLogger("lossd.evaluation")

T = TypeVar("T")

HALF = (torch.float16, torch.bfloat16)
SOFTMAX = ("multiclass", "segmentation")  # tasks of class scores, whose differences alone matter
SMALL, LARGE = 1e-30, 1e30
"""Float32 computes well with numbers in between. Beyond, a square or a product may have left its range."""


def evaluate(batch: TensorBatch, passes: Passes | None = None) -> list[dict[str, Any] | Problem]:
    """Return the answer of each request in order: a JSON-ready document, or the request's problem.

    Gradients and unreduced losses are written into ``batch.answers``.

    Args:
        batch: The batch.
        passes: The compiled passes to use on a CPU; None for the general way alone.

    Raises:
        RuntimeError: The device is broken; another device may evaluate the batch.
    """
    return isolated(batch, partial(_evaluated, passes=passes))


def isolated(batch: TensorBatch, answer: Callable[[TensorBatch], Sequence[T | Problem] | None]) -> list[T | Problem]:
    """Return the answer of each request in order, or the request's problem.

    If a failure names no request, each request is answered alone, so that one request cannot fail another. If memory
    runs out, the halves of the batch are answered.

    Args:
        batch: The batch.
        answer: Returns the answers of a batch; None for several requests that it leaves to be answered alone.

    Raises:
        RuntimeError: The device is broken; another device may evaluate the batch.
    """
    if batch.recipe.alone and len(batch.rows) > 1:
        return [found for i in range(len(batch.rows)) for found in isolated(batch.part(i, i + 1), answer)]
    exhausted = False
    try:
        answers = answer(batch)
        if answers is not None:
            return list(answers)
    except Problem as problem:
        if len(batch.rows) == 1:
            return [problem]
    except Exception as error:
        if is_broken_device(error):
            raise
        exhausted = is_out_of_memory(error)
        if len(batch.rows) == 1 and exhausted:
            nbytes = sum(tensor.nbytes for tensors in (batch.inputs, batch.answers) for tensor in tensors.values())
            return [too_large(error, batch.device, batch.recipe.model, nbytes)]
        if len(batch.rows) == 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()}
            log.exception("%s failed on inputs of shapes %s", batch.recipe.model, shapes)
            return [InternalError(f"{batch.recipe.model} failed on this request; the worker's log says why")]
    if exhausted:  # only here, because the failed attempt's tensors are freed by now
        release_memory(batch.device)
        half = len(batch.rows) // 2
        return isolated(batch.part(0, half), answer) + isolated(batch.part(half, len(batch.rows)), answer)
    return [found for i in range(len(batch.rows)) for found in isolated(batch.part(i, i + 1), answer)]


def _evaluated(batch: TensorBatch, passes: Passes | None) -> list[dict[str, Any] | Problem] | None:
    """Return the answers; None for several requests of which a compiled pass leaves one to the general way."""
    passed = _pass(batch, passes)
    if passed is None or True not in passed.outcome.doubtful.tolist():
        return _Evaluation(batch, passes, passed).run()
    return None


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
    for problem in evaluation._prepare().values():
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
        passed = _pass(batch, passes)
        if passed is None:
            return _Evaluation(batch, passes).run_rows()
        values = RowValues(*torch.from_numpy(passed.outcome.columns[:3]))
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


class _PassResult(NamedTuple):
    """A compiled pass's outcome for a batch, and the inputs as it read them: in float32 at least."""

    outcome: Outcome
    inputs: Mapping[str, Tensor]


def _pass(batch: TensorBatch, passes: Passes | None) -> _PassResult | None:
    """Run a compiled pass on a batch; return None if there is none, or if it leaves all requests to the general way."""
    recipe = batch.recipe
    if passes is None or batch.device.type != "cpu" or (run := passes.find(recipe)) is None:
        return None
    inputs, answers, rounded = batch.inputs, batch.answers, {}
    if recipe.half:
        inputs = {name: tensor.float() if tensor.dtype in HALF else tensor for name, tensor in inputs.items()}
        rounded = {name: torch.empty(a.shape) for name, a in answers.items() if a.dtype in HALF}
        answers = {**answers, **rounded}
    numbers = dict(zip(recipe.numbers, zip(*batch.numbers, strict=True), strict=True))
    outcome = run(Work(batch.rows, numbers, arrays_of(inputs), arrays_of(answers), passes.threads))
    if outcome is None or (len(batch.rows) == 1 and outcome.doubtful[0]):
        return None
    for name, exact in rounded.items():
        batch.answers[name].copy_(exact)
        _doubt_what_overflowed(outcome, batch.answers[name], batch.rows)
    return _PassResult(outcome, inputs)


def _doubt_what_overflowed(outcome: Outcome, rounded: Tensor, rows: Sequence[int]) -> None:
    """Mark the requests whose answers overflow half precision as doubtful: the general way describes them."""
    if not bool(rounded.isfinite().all()):
        for position, request_part in enumerate(torch.split(rounded, list(rows))):
            outcome.doubtful[position] |= not bool(request_part.isfinite().all())


class _Measured(NamedTuple):
    """The numbers of each request, before they are described.

    Attributes:
        columns: See :func:`lossd.evaluation.diagnostics.describe`; (K, B) float64, on the host.
        norms: The inputs whose gradients have a norm.
        flags: The codes of the flags.
        extras: Further fields of the answer.
        rounded: The answers that may be infinite only because their dtype is narrower.
    """

    columns: Tensor
    norms: tuple[str, ...]
    flags: tuple[str, ...]
    extras: Mapping[str, Any]
    rounded: frozenset[str]


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
        self, batch: TensorBatch, passes: Passes | None, passed: _PassResult | None = None, *, careful: bool = False
    ) -> None:
        self.passes = passes
        self.passed = passed
        self.careful = careful
        self.batch = batch
        self.recipe = batch.recipe
        self.count = len(batch.rows)
        self.rowwise = self.recipe.kind == "rows"
        self.segments = Segments(batch.rows if self.rowwise else [1] * self.count, batch.device)
        self.answers: list[dict[str, Any]] = []
        self.warnings_of_terms: list[dict[str, str]] = []

    def run(self) -> list[dict[str, Any] | Problem]:
        recipe = self.recipe
        problems: dict[int, Problem] = {}
        if self.passed is not None:
            self.tensors: Mapping[str, Tensor] = self.passed.inputs
            self.sample_weight: Tensor | None = None
            described = recipe.want_loss or recipe.gradients
            columns = self.passed.outcome.columns.tolist()
            self.answers = describe(recipe, columns, recipe.gradients) if described else self._empty_answers()
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
        return [problems.get(i, answer) for i, answer in enumerate(self.answers)]

    def run_rows(self) -> RowValues:
        """Compute loss and gradient, and return the values of requests of one row each.

        Raises:
            Problem: Of the first row that has one.
        """
        if problems := self._prepare():
            raise problems[min(problems)]
        return self._row_values()

    def values_of_rows(self) -> RowValues:
        """Return the values of the rows of prepared requests, each as a request of its own."""
        rows = self.segments.total
        numbers: list[Sequence[float]] = []
        for count, own in zip(self.batch.rows, self.batch.numbers, strict=False):  # a recipe without numbers has none
            numbers += [own] * count
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
            positions = self._rows_out_of_range(measured)
            if positions and (again := self._carefully(positions, _Evaluation.run_rows)) is not None:
                values.replace(positions, again)
        return values

    def _run_in_steps(self) -> dict[int, Problem]:
        """Compute loss and gradient, with a tensor operation for each step, and return the problems."""
        recipe = self.recipe
        self.answers = self._empty_answers()
        problems = self._prepare()
        if recipe.loss is not None and (recipe.want_loss or recipe.gradients):
            columns = self._evaluate_loss(REGISTRY[recipe.loss])
            if not self.careful and recipe.kind != "composed":  # its terms were already evaluated again
                self._evaluate_again([i for i in self._out_of_range(columns) if i not in problems])
        return problems

    def _empty_answers(self) -> list[dict[str, Any]]:
        return [{} for _ in range(self.count)]

    def _prepare(self) -> dict[int, Problem]:
        """Check the inputs, put them on the device, and return the problems."""
        recipe, device = self.recipe, self.batch.device
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in self.batch.inputs.items()}
        # A composed loss has no samples of its own; its terms use the sample weights.
        weight = on_device.get("sample_weight") if recipe.kind != "composed" else None
        self.dropped = dropped_rows(weight)
        safe, problems = check(recipe, without_dropped(recipe, on_device, self.dropped), self.segments)
        self.dtype = torch.float64 if recipe.wide or self.careful else torch.float32
        tensors = {
            name: tensor if recipe.domains[name] in INDICES else tensor.to(self.dtype)
            for name, tensor in safe.items()
            if name not in UNIVERSAL
        }
        if self.careful and recipe.task in SOFTMAX and recipe.domains.get("prediction") == "logits":
            axis = 1 if self.rowwise else 2
            tensors["prediction"] = softmax.settled(tensors["prediction"], axis)
        self.tensors = tensors
        self.cotangent = safe.get("cotangent")
        self.sample_weight = None if weight is None else safe["sample_weight"].to(torch.float64)
        return problems

    # What float32 cannot compute

    def _out_of_range(self, columns: Sequence[Sequence[float]]) -> Iterable[int]:
        """Yield the requests whose loss or gradient may have left float32's range."""
        for position, (loss, numerator, denominator, _, *norms) in enumerate(zip(*columns, strict=True)):
            if not all(map(math.isfinite, (loss, numerator, denominator, *norms))):
                if not any(bool(tensor.isnan().any()) for tensor in self._floats_of(position)):
                    yield position
            elif self.dtype == torch.float32:
                # All zero counts as exact, unless there is no gradient to confirm it.
                sizes = (abs(numerator), *norms)
                if not all(SMALL < size < LARGE for size in sizes) and (any(sizes) or not norms):
                    yield position

    def _rows_out_of_range(self, measured: _Measured) -> list[int]:
        """Return the same as :meth:`_out_of_range` for many requests; those with NaN are among them."""
        columns = measured.columns[: 4 + len(measured.norms)].numpy()  # on the host, where NumPy has less overhead
        loss, numerator, denominator, _, *norms = columns
        sizes = [np.abs(numerator), *norms]
        if np.isfinite(columns[:3]).all() and all(size.min() > SMALL and size.max() < LARGE for size in sizes):
            return []
        beyond = ~np.isfinite([loss, numerator, denominator, *norms]).all(0)
        if self.dtype == torch.float32:
            ordinary = np.all([(size > SMALL) & (size < LARGE) for size in sizes], 0)
            beyond |= ~ordinary & (np.any([size != 0 for size in sizes], 0) | (not norms))
        positions: list[int] = np.flatnonzero(beyond).tolist()
        return positions

    def _floats_of(self, position: int) -> Iterable[Tensor]:
        """Yield a request's floating-point inputs, in the dtype of the computation."""
        per_row = {column.name: column.per_row for column in self.recipe.inputs}
        for name, tensor in self.tensors.items():
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
        if self.warnings_of_terms:  # a composed loss is evaluated alone
            self.answers[0]["diagnostics"]["warnings"].extend(self.warnings_of_terms)
        return host[: 4 + len(norms)]

    def _measure(self, loss: Loss) -> _Measured:
        """Compute loss and gradient, write the tensors of the answers, and return the numbers."""
        recipe, segments = self.recipe, self.segments
        shape = (segments.total, *recipe.value)
        reduction = Reduction(
            recipe.reduction, segments, shape, self.dtype, self.sample_weight, self.cotangent, careful=self.careful
        )
        unreduced, gradients = self._differentiate(loss, reduction)
        value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
        total, numerator, denominator, value = reduction.reduce(value)
        if self.rowwise:
            gradients = {name: gradient.mask(g, value, weight, self.sample_weight) for name, g in gradients.items()}
        norms = {name: gradient.norms(g, segments) for name, g in gradients.items()}
        gradient.clip(gradients, norms, recipe.gradient_options, segments)
        for name, of_input in gradients.items():
            answer = self.batch.answers[f"gradient.{name}"]
            if answer.data_ptr() != of_input.data_ptr():
                answer.copy_(of_input.reshape(answer.shape))
        if "loss" in self.batch.answers:
            self.batch.answers["loss"].copy_(value.reshape(self.batch.answers["loss"].shape))
        extras = unreduced.extras if isinstance(unreduced, Unreduced) else {}
        flags = unreduced.flags if isinstance(unreduced, Unreduced) else {}
        raised = [self._times(flag) for flag in flags.values()]
        columns = [total, numerator, denominator, reduction.count(weight), *norms.values(), *raised]
        host = torch.stack(columns).cpu()  # the only synchronisation with the device
        dtypes = {"loss": value.dtype, **{f"gradient.{name}": g.dtype for name, g in gradients.items()}}
        rounded = frozenset(name for name, dtype in dtypes.items() if self._was_rounded(name, dtype))
        return _Measured(host, tuple(norms), tuple(flags), extras, rounded)

    def _was_rounded(self, name: str, dtype: torch.dtype) -> bool:
        """Return whether an answer may be infinite only because its dtype is narrower."""
        answer = self.batch.answers.get(name)
        return (
            answer is not None
            and torch.finfo(answer.dtype).max < torch.finfo(dtype).max
            and not bool(answer.isfinite().all())
        )

    def _count_non_finite(self, name: str, position: int) -> int:
        """Return the number of non-finite entries in a request's answer."""
        return int((~self.batch.part(position, position + 1).answers[name].isfinite()).sum())

    def _times(self, flag: Tensor) -> Tensor:
        """Return how often a flag was raised in each request's rows that count, (B,) float64."""
        row_counts = flag.long().reshape(self.segments.total, -1).sum(1)
        if self.dropped is not None:
            row_counts = row_counts.masked_fill(self.dropped, 0)
        return self.segments.sum(row_counts).double()

    def _differentiate(self, loss: Loss, reduction: Reduction) -> tuple[Tensor | Unreduced, dict[str, Tensor]]:
        """Return the unreduced loss, and the gradient of each request's answer by the requested inputs."""
        wanted = self.recipe.gradients
        if self.recipe.kind == "composed":
            return self._compose(loss, reduction)
        parameters = {**self.recipe.parameters, **self._numbers()}
        if loss.reads_reduction:
            parameters["reduction"] = self.recipe.reduction
        if not wanted:
            with torch.no_grad():
                unreduced = self._call(loss, self.tensors, parameters)
            reduction.upstream(unreduced.weight if isinstance(unreduced, Unreduced) else None)
            return unreduced, {}
        if loss.closed_forms and self.rowwise and set(wanted) == set(loss.differentiable):
            buffers = {name: self._buffer(name) for name in wanted}
            with torch.no_grad():
                unreduced = loss.closed_forms[0](reduction.upstream, buffers, **self.tensors, **parameters)
            return unreduced, buffers
        leaves = {name: self.tensors[name].detach().requires_grad_() for name in wanted}
        with torch.enable_grad():
            unreduced = self._call(loss, {**self.tensors, **leaves}, parameters)
        value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
        upstream = reduction.upstream(weight).expand(value.shape)
        gradients = (
            torch.autograd.grad(value, list(leaves.values()), upstream.to(value.dtype), materialize_grads=True)
            if value.requires_grad
            else [torch.zeros_like(leaf) for leaf in leaves.values()]
        )
        value = value.detach()
        detached = replace(unreduced, value=value) if isinstance(unreduced, Unreduced) else value
        return detached, dict(zip(leaves, gradients, strict=True))

    def _compose(self, loss: Loss, reduction: Reduction) -> tuple[Unreduced, dict[str, Tensor]]:
        composed = compose(
            loss, self.batch, partial(evaluate, passes=self.passes), partial(evaluate_rows, passes=self.passes)
        )
        if composed.metrics is not None:
            self.answers[0]["metrics"] = composed.metrics
        self.warnings_of_terms = passed_up(composed.warnings, per_sample=loss.per_sample)
        weight = composed.weight[None]
        upstream = reduction.upstream(weight)
        gradients = {name: gradient[None] * upstream for name, gradient in composed.gradients.items()}
        extras = {"terms": composed.terms} if composed.terms else {}
        return Unreduced(composed.value[None], weight, extras=extras), gradients

    def _call(self, loss: Loss, tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Tensor | Unreduced:
        """Return the loss of the batch: of all rows at once, of stacked requests, or of one request."""
        if self.rowwise:
            return loss.function(**tensors, **parameters)
        if self.count == 1:
            unreduced = loss.function(**{name: t[0] for name, t in tensors.items()}, **parameters)
            if not isinstance(unreduced, Unreduced):
                return unreduced[None]
            flags = {code: flag[None] for code, flag in unreduced.flags.items()}
            return replace(unreduced, value=unreduced.value[None], weight=unreduced.weight[None], flags=flags)
        varying = {name: p for name, p in parameters.items() if isinstance(p, Tensor)}
        fixed = {name: p for name, p in parameters.items() if name not in varying}

        def one(tensors: dict[str, Tensor], numbers: dict[str, Tensor]) -> tuple[Any, ...]:
            unreduced = loss.function(**tensors, **numbers, **fixed)
            if isinstance(unreduced, Unreduced):
                return unreduced.value, unreduced.weight, dict(unreduced.flags)
            return (unreduced,)

        stacked = torch.vmap(one)(dict(tensors), varying)
        return Unreduced(*stacked) if len(stacked) > 1 else stacked[0]

    def _values(self) -> dict[str, list[float]]:
        """Return each request's value of every parameter that may vary."""
        numbers, names = self.batch.numbers, self.recipe.numbers
        if len(numbers) > 1 and names and numbers.count(numbers[0]) == len(numbers):  # as those of a run's rows
            return {name: [value] * len(numbers) for name, value in zip(names, numbers[0], strict=True)}
        return {name: [own[position] for own in numbers] for position, name in enumerate(names)}

    def _numbers(self) -> dict[str, Any]:
        """Return these parameters as floats if all requests agree, else as tensors that broadcast against the value."""
        numbers: dict[str, Any] = {}
        for name, values in self._values().items():
            if values.count(values[0]) == len(values):
                numbers[name] = values[0]
            else:
                tensor = torch.tensor(values, dtype=torch.float64, device=self.batch.device).to(self.dtype)
                numbers[name] = self.segments.spread(tensor, 1 + len(self.recipe.value)) if self.rowwise else tensor
        return numbers

    def _buffer(self, name: str) -> Tensor:
        """Return the buffer for a closed form: the answer itself if dtype and device match."""
        answer = self.batch.answers[f"gradient.{name}"]
        fits = answer.dtype == self.dtype and answer.device == self.batch.device
        return answer if fits else torch.empty(answer.shape, dtype=self.dtype, device=self.batch.device)

    def view(self) -> metrics.View:
        """Return the batch as metrics read it: stacked requests become rows, one after the other."""
        recipe, segments, tensors = self.recipe, self.segments, self.tensors
        if not self.rowwise:
            segments = Segments(self.batch.rows, self.batch.device)
            tensors = {name: t.flatten(0, 1) if t.ndim > 1 else t for name, t in tensors.items()}
        return metrics.View(
            tensors=tensors,
            segments=segments,
            activation=recipe.domains.get("prediction", "real"),
            sample_weight=self.sample_weight,
            ignore_index=recipe.parameters.get("ignore_index"),
            parameters=recipe.parameters,
            numbers=self._values(),
            alone=recipe.loss is None,
            options=recipe.metric_options,
            counted={} if self.passed is None else self.passed.outcome.counted,
            rates=None if self.passes is None else self.passes.rates,
            dtypes=recipe.dtypes,
        )
