"""The value of a loss on a batch, and its first and second derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lossd.evaluation import gradient, hessian
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.inputs import DeviceInputs
from lossd.losses.autograd import vjp
from lossd.losses.reduction import Reducer, Segments
from lossd.losses.registry import Loss, Unreduced

__all__ = ["LossOfBatch", "varying_numbers"]


class LossOfBatch:
    """A loss that is no composition, on one batch.

    Args:
        loss: The loss.
        batch: The batch.
        inputs: Its inputs on the device.
        segments: The rows of each request; one row each if requests are stacked.
    """

    def __init__(self, loss: Loss, batch: TensorBatch, inputs: DeviceInputs, segments: Segments) -> None:
        self.loss = loss
        self.batch = batch
        self.inputs = inputs
        self.segments = segments
        self.rowwise = batch.recipe.kind == "rows"

    def differentiate(self, reduction: Reducer) -> tuple[Tensor | Unreduced, dict[str, Tensor]]:
        """Return the unreduced loss, and the gradient of each request's answer by the requested inputs."""
        names = self.batch.recipe.gradients
        parameters = self._parameters()
        tensors = self._arguments()
        if not names:
            with torch.no_grad():
                unreduced = self._call(tensors, parameters)
            reduction.upstream(unreduced.weight if isinstance(unreduced, Unreduced) else None)
            return unreduced, {}
        if self.loss.closed_forms and self.rowwise and set(names) == set(self.loss.differentiable):
            buffers = {name: self._buffer(name) for name in names}
            with torch.no_grad():
                unreduced = self.loss.closed_forms[0](reduction.upstream, buffers, **tensors, **parameters)
            return unreduced, buffers
        leaves = {name: self.inputs.tensors[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            unreduced = self._call({**tensors, **leaves}, parameters)
        value, weight = (unreduced.value, unreduced.weight) if isinstance(unreduced, Unreduced) else (unreduced, None)
        upstream = reduction.upstream(weight).expand(value.shape)
        gradients = vjp(value, list(leaves.values()), upstream.to(value.dtype))
        value = value.detach()
        detached = replace(unreduced, value=value) if isinstance(unreduced, Unreduced) else value
        # Autograd may return one number for a whole row, which nothing could write into.
        return detached, {name: g.contiguous() for name, g in zip(leaves, gradients, strict=True)}

    def differentiate_twice(self, reduction: Reducer, value: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
        """Return Hessians and products by the names of their columns, in the columns' dtypes.

        Args:
            reduction: The reduction, which knows the factor of each entry of the value.
            value: The unreduced loss with all weights.
            weight: What each entry adds to the mean's denominator; None for 1.
        """
        recipe, inputs, upstream = self.batch.recipe, self.inputs, reduction.factor
        if not recipe.hessians and recipe.product is None:
            return {}
        tensors, parameters = hessian.wide(self._arguments()), self._parameters()

        def value_of(tensors: Mapping[str, Tensor]) -> Tensor | Unreduced:
            return self._call(tensors, parameters)

        floor, seconds = recipe.hessian_options.get("floor"), {}
        for name in recipe.hessians:
            within = None if self.rowwise else upstream  # axes of a formula's value and input may differ in any way
            second = hessian.diagonal(
                self.loss, name, recipe.hessian_options["form"], value_of, tensors, parameters, within
            )
            if floor is not None:
                second.clamp_(min=floor if within is None else floor * float(upstream.max()))
            seconds[f"hessian.{name}"] = second if within is upstream else hessian.scale(second, upstream, value.ndim)
        if recipe.product is not None:
            assert inputs.direction is not None
            name, direction = recipe.product, inputs.direction
            if inputs.masking is not None:
                direction = inputs.masking.cleared(name, direction.clone())
            seconds[f"hvp.{name}"] = hessian.product(value_of, tensors, name, direction, upstream)
        if self.rowwise:
            seconds = {name: gradient.mask(s, value, weight, inputs.sample_weight) for name, s in seconds.items()}
        if inputs.masking is not None:
            seconds = {column: inputs.masking.cleared(column.partition(".")[2], s) for column, s in seconds.items()}
        return {name: second.to(self.batch.answers[name].dtype) for name, second in seconds.items()}

    def _arguments(self) -> Mapping[str, Tensor]:
        """Return the tensors that the loss function takes."""
        if self.loss.reads_masks and self.inputs.masking is not None:
            return {**self.inputs.tensors, **self.inputs.masking.arguments(self.loss.reads_masks, self.inputs.dtype)}
        return self.inputs.tensors

    def _parameters(self) -> dict[str, Any]:
        """Return the loss's parameters, with those that may differ between requests."""
        parameters = {**self.batch.recipe.parameters, **self._numbers()}
        if self.loss.reads_reduction:
            parameters["reduction"] = self.batch.recipe.reduction
        return parameters

    def _call(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Tensor | Unreduced:
        """Return the loss of the batch: of all rows at once, of stacked requests, or of one request."""
        if self.rowwise:
            return self.loss.function(**tensors, **parameters)
        if len(self.batch.rows) == 1:
            unreduced = self.loss.function(**{name: t[0] for name, t in tensors.items()}, **parameters)
            if not isinstance(unreduced, Unreduced):
                return unreduced[None]
            flags = {code: flag[None] for code, flag in unreduced.flags.items()}
            return replace(unreduced, value=unreduced.value[None], weight=unreduced.weight[None], flags=flags)
        varying = {name: p for name, p in parameters.items() if isinstance(p, Tensor)}
        fixed = {name: p for name, p in parameters.items() if name not in varying}

        def one(tensors: dict[str, Tensor], numbers: dict[str, Tensor]) -> tuple[Any, ...]:
            unreduced = self.loss.function(**tensors, **numbers, **fixed)
            if isinstance(unreduced, Unreduced):
                return unreduced.value, unreduced.weight, dict(unreduced.flags)
            return (unreduced,)

        stacked = torch.vmap(one)(dict(tensors), varying)
        return Unreduced(*stacked) if len(stacked) > 1 else stacked[0]

    def _numbers(self) -> dict[str, Any]:
        """Return these parameters as floats if all requests agree, else as tensors that broadcast against the value."""
        numbers: dict[str, Any] = {}
        for name, values in varying_numbers(self.batch).items():
            if values.count(values[0]) == len(values):
                numbers[name] = values[0]
            else:
                tensor = torch.tensor(values, dtype=torch.float64, device=self.batch.device).to(self.inputs.dtype)
                numbers[name] = (
                    self.segments.spread(tensor, 1 + len(self.batch.recipe.value)) if self.rowwise else tensor
                )
        return numbers

    def _buffer(self, name: str) -> Tensor:
        """Return the buffer for a closed form: the answer itself if dtype and device match."""
        answer = self.batch.answers[f"gradient.{name}"]
        fits = answer.dtype == self.inputs.dtype and answer.device == self.batch.device
        return answer if fits else torch.empty(answer.shape, dtype=self.inputs.dtype, device=self.batch.device)


def varying_numbers(batch: TensorBatch) -> dict[str, list[float]]:
    """Return each request's value of every parameter that may differ between them."""
    numbers, names = batch.numbers, batch.recipe.numbers
    if len(numbers) > 1 and names and numbers.count(numbers[0]) == len(numbers):  # as those of a run's rows
        return {name: [value] * len(numbers) for name, value in zip(names, numbers[0], strict=True)}
    return {name: [values[position] for values in numbers] for position, name in enumerate(names)}
