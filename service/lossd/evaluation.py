"""A batch of jobs on a device to their results: validate, forward, backward, metrics, split.

Nothing here knows HTTP, queues or processes. A batch's requests share every tensor operation and nothing else: sums go
by request, a bad entry is replaced before it can reach an index and turns only its own request into an error, and a
request evaluated among strangers equals itself evaluated alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lossd import gradient, metrics
from lossd.composition import compose
from lossd.job import Recipe
from lossd.losses import REGISTRY
from lossd.losses.reduction import Reduction, Segments
from lossd.losses.registry import Loss, Unreduced
from lossd.validation import check
from lossd_client.errors import InternalError, Problem
from lossd_client.wire.json import finite

__all__ = ["Batch", "evaluate"]

UNIVERSAL = ("sample_weight", "cotangent")
SCORES = ("logits", "log_probability", "probability")

# What a loss may flag, row by row or for a request: the warnings' codes and their sentences.
FLAGS = {
    "zero_vector": "a vector of length 0 has no direction; its gradient is 0",
    "no_positives": "there is no positive pair",
    "no_negatives": "there is no negative pair",
    "tiny_smooth": "smooth is so small that rounding decides the loss of a region without a target",
}


@dataclass(frozen=True)
class Batch:
    """Requests of one recipe, their tensors one after the other.

    Attributes:
        recipe: What they share.
        rows: The rows of each request.
        numbers: Each request's values of ``recipe.numbers``.
        inputs: Per input, (R, ...) where its column counts rows, else (B, ...).
        answers: Buffers for the answer's columns, shaped likewise; gradients and unreduced losses are written here.
        device: Where to compute.
    """

    recipe: Recipe
    rows: Sequence[int]
    numbers: Sequence[Sequence[float]]
    inputs: Mapping[str, Tensor]
    answers: Mapping[str, Tensor]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def single(self, position: int) -> Batch:
        """The batch of one of its requests alone, over the same memory."""
        start = sum(self.rows[:position])
        stop = start + self.rows[position]

        def part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                c.name: tensors[c.name][start:stop] if c.per_row else tensors[c.name][position : position + 1]
                for c in self.recipe.columns
                if c.name in tensors
            }

        return replace(
            self,
            rows=[self.rows[position]],
            numbers=[self.numbers[position]] if self.recipe.numbers else [],
            inputs=part(self.inputs),
            answers=part(self.answers),
        )


def evaluate(batch: Batch) -> list[dict[str, Any] | Problem]:
    """The answer of each request, in order: a JSON-ready document, or the problem with that request.

    Gradients and unreduced losses are written into ``batch.answers``. A failure that names no request is narrowed
    down by evaluating each alone, so that one request never takes another's answer away.
    """
    if batch.recipe.alone and len(batch.rows) > 1:
        return [answer for i in range(len(batch.rows)) for answer in evaluate(batch.single(i))]
    try:
        return _Evaluation(batch).run()
    except Problem as problem:
        if len(batch.rows) == 1:
            return [problem]
    except Exception as error:
        if len(batch.rows) == 1:
            return [InternalError(f"{batch.recipe.loss or batch.recipe.task} failed: {type(error).__name__}: {error}")]
    return [answer for i in range(len(batch.rows)) for answer in evaluate(batch.single(i))]


class _Evaluation:
    """One batch on its way through."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.recipe = batch.recipe
        self.count = len(batch.rows)
        self.rowwise = self.recipe.kind == "rows"
        self.segments = Segments(batch.rows if self.rowwise else [1] * self.count, batch.device)
        self.answers: list[dict[str, Any]] = [{} for _ in range(self.count)]
        self.warnings: list[list[dict[str, str]]] = [[] for _ in range(self.count)]

    def run(self) -> list[dict[str, Any] | Problem]:
        recipe, device = self.recipe, self.batch.device
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in self.batch.inputs.items()}
        safe, problems = check(recipe, on_device, self.segments)
        wide = any(safe[name].dtype == torch.float64 for name in safe if name not in UNIVERSAL)
        self.dtype = torch.float64 if wide else torch.float32
        self.tensors = {
            name: tensor if recipe.domains[name] in ("class", "integer", "term") else tensor.to(self.dtype)
            for name, tensor in safe.items()
            if name not in UNIVERSAL
        }
        # A composed loss has no samples of its own: sample weights are for its terms.
        weight = safe.get("sample_weight") if recipe.kind != "composed" else None
        self.cotangent = safe.get("cotangent")
        self.sample_weight = None if weight is None else weight.to(torch.float64)
        if recipe.loss is not None and (recipe.want_loss or recipe.gradients):
            self._evaluate_loss(REGISTRY[recipe.loss])
        if recipe.metrics:
            assert recipe.task is not None
            measured = metrics.breakdown(recipe.task, recipe.metrics, self._view())
            for answer, of_request in zip(self.answers, measured, strict=True):
                answer["metrics"] = of_request
        for answer, warnings in zip(self.answers, self.warnings, strict=True):
            answer.setdefault("diagnostics", {})["warnings"] = warnings
        return [problems.get(i, answer) for i, answer in enumerate(self.answers)]

    # The loss and its gradient

    def _evaluate_loss(self, loss: Loss) -> None:
        recipe, segments = self.recipe, self.segments
        shape = (segments.total, *recipe.value)
        reduction = Reduction(recipe.reduction, segments, shape, self.dtype, self.sample_weight, self.cotangent)
        unreduced, gradients = self._differentiate(loss, reduction)
        value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
        total, numerator, denominator, value = reduction.reduce(value)
        columns = {"loss": total, "numerator": numerator, "denominator": denominator}
        columns["valid"] = self._valid(weight, math.prod(recipe.value))
        if self.rowwise:
            gradients = {name: gradient.mask(g, value, weight, self.sample_weight) for name, g in gradients.items()}
        norms = {name: gradient.norms(g, segments) for name, g in gradients.items()}
        columns |= {f"norm.{name}": norm for name, norm in norms.items()}
        gradient.clip(gradients, norms, recipe.gradient_options, segments)
        for name, of_input in gradients.items():
            answer = self.batch.answers[f"gradient.{name}"]
            if answer.data_ptr() != of_input.data_ptr():
                answer.copy_(of_input.reshape(answer.shape))
        if "loss" in self.batch.answers:
            self.batch.answers["loss"].copy_(value.reshape(self.batch.answers["loss"].shape))
        extras = unreduced.extras if isinstance(unreduced, Unreduced) else {}
        flags = unreduced.flags if isinstance(unreduced, Unreduced) else {}
        columns |= {
            f"flag.{code}": segments.sum(flag.long().flatten(1).sum(1) if flag.ndim > 1 else flag.long()).double()
            for code, flag in flags.items()
        }
        host = dict(zip(columns, torch.stack(list(columns.values())).tolist(), strict=True))
        for position in range(self.count):
            self._report(position, {name: values[position] for name, values in host.items()}, gradients, extras)

    def _differentiate(
        self, loss: Loss, reduction: Reduction
    ) -> tuple[Tensor | Unreduced, dict[str, Tensor]]:
        """The unreduced loss and the gradient of each request's answer with respect to the inputs asked for."""
        wanted = self.recipe.gradients
        if self.recipe.kind == "composed":
            return self._compose(loss, reduction)
        parameters = {**self.recipe.parameters, **self._numbers()}
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
        composed = compose(loss, self.batch, evaluate)
        if composed.metrics is not None:
            self.answers[0]["metrics"] = composed.metrics
        weight = composed.weight[None]
        upstream = reduction.upstream(weight)
        gradients = {name: gradient[None] * upstream for name, gradient in composed.gradients.items()}
        extras = {"terms": composed.terms} if composed.terms else {}
        return Unreduced(composed.value[None], weight, extras=extras), gradients

    def _call(self, loss: Loss, tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Tensor | Unreduced:
        """The loss function on the batch: on all rows at once, or on the requests stacked, one on its own unstacked."""
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

    def _numbers(self) -> dict[str, Any]:
        """The parameters that may vary: floats where they do not, else tensors that broadcast against the value."""
        numbers: dict[str, Any] = {}
        for position, name in enumerate(self.recipe.numbers):
            values = [of_request[position] for of_request in self.batch.numbers]
            if values.count(values[0]) == len(values):
                numbers[name] = values[0]
            else:
                tensor = torch.tensor(values, dtype=torch.float64, device=self.batch.device).to(self.dtype)
                numbers[name] = self.segments.spread(tensor, 1 + len(self.recipe.value)) if self.rowwise else tensor
        return numbers

    def _buffer(self, name: str) -> Tensor:
        """Where a closed form writes: the answer itself where dtype and device allow."""
        answer = self.batch.answers[f"gradient.{name}"]
        fits = answer.dtype == self.dtype and answer.device == self.batch.device
        return answer if fits else torch.empty(answer.shape, dtype=self.dtype, device=self.batch.device)

    def _valid(self, weight: Tensor | None, entries: int) -> Tensor:
        """How many entries count, (B,) float64."""
        if weight is None:
            kept = self.sample_weight != 0 if self.sample_weight is not None else None
            rows = self.segments.lengths if kept is None else self.segments.sum(kept.long())
            return rows.double() * entries
        counted = weight != 0
        if self.sample_weight is not None:
            counted = counted & (self.sample_weight != 0).reshape(-1, *(1,) * (weight.ndim - 1))
        return self.segments.sum(counted.reshape(counted.shape[0], -1).sum(1)).double()

    # What the caller reads

    def _report(
        self,
        position: int,
        numbers: Mapping[str, float],
        gradients: Mapping[str, Tensor],
        extras: Mapping[str, Any],
    ) -> None:
        recipe, answer, warnings = self.recipe, self.answers[position], self.warnings[position]
        diagnostics: dict[str, Any] = {"finite": math.isfinite(numbers["loss"]), "valid_count": int(numbers["valid"])}
        if recipe.want_loss:
            if recipe.reduction != "none":
                answer["loss"] = numbers["loss"]
            answer["reduction"] = {"numerator": numbers["numerator"], "denominator": numbers["denominator"]}
        answer.update(extras)
        norms = {name: numbers[f"norm.{name}"] for name in gradients}
        if norms:
            diagnostics["gradient_norm"] = norms
            diagnostics["non_finite_gradient_entries"] = {
                name: 0 if math.isfinite(norm) else self._strange(gradients[name], position)
                for name, norm in norms.items()
            }
        if (level := self._chance_level()) is not None:
            diagnostics["chance_level"] = level
        if numbers["denominator"] == 0:
            warnings.append(_warning("nothing_to_average", "every entry is ignored or has weight 0: the loss is 0"))
        elif norms and not any(norms.values()):
            warnings.append(_warning("zero_gradient", "every entry of the gradient is 0"))
        if not math.isfinite(numbers["loss"]) or not all(map(math.isfinite, norms.values())):
            warnings.append(_warning("non_finite", "the loss or its gradient is not finite"))
            answer |= finite(answer)
            diagnostics = finite(diagnostics)
        for name, hits in numbers.items():
            if name.startswith("flag.") and hits:
                code = name.removeprefix("flag.")
                warnings.append(_warning(code, f"{FLAGS[code]} ({int(hits)} times)"))
        answer["diagnostics"] = diagnostics

    def _strange(self, gradient: Tensor, position: int) -> int:
        own = self.segments.split(gradient)[position] if self.rowwise else gradient[position]
        return int((~own.isfinite()).sum())

    def _chance_level(self) -> float | None:
        if not self.rowwise or self.recipe.domains.get("prediction") not in SCORES:
            return None
        return math.log(self.recipe.classes or 2)

    def _view(self) -> metrics.View:
        """The batch as the metrics see it: stacked requests become rows, one after the other."""
        recipe, segments, tensors = self.recipe, self.segments, self.tensors
        if not self.rowwise:
            segments = Segments(self.batch.rows, self.batch.device)
            tensors = {name: t.flatten(0, 1) if t.ndim > 1 else t for name, t in tensors.items()}
        varying = {
            name: torch.tensor([n[i] for n in self.batch.numbers], dtype=torch.float64, device=self.batch.device)
            for i, name in enumerate(recipe.numbers)
        }
        return metrics.View(
            tensors=tensors,
            segments=segments,
            activation=recipe.domains.get("prediction", "real"),
            sample_weight=self.sample_weight,
            ignore_index=recipe.parameters.get("ignore_index"),
            parameters={**recipe.parameters, **varying},
            options=recipe.metric_options,
        )


def _warning(code: str, detail: str) -> dict[str, str]:
    return {"code": code, "detail": detail}
