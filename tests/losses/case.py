"""What the table says of a loss: how to draw inputs, an independent reference, and what has to come out as stated."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lossd_client.errors import Problem

Array = npt.NDArray[Any]
Parameters = Mapping[str, Any]
Draw = Callable[[np.random.Generator, int, Parameters], dict[str, Array]]
"""``draw(rng, n, parameters)``: valid inputs of n samples, floats in float64, away from kinks."""

Tensors = dict[str, Tensor]
Reference = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""``reference(*inputs, **parameters)``: the unreduced loss, differentiable; and its weights where they are not 1."""


@dataclass(frozen=True)
class Stated:
    """Inputs, as nested lists, whose answer is known.

    Attributes:
        title: What is special about them.
        inputs: Name to nested list; floats become ``dtype``, integers int64.
        loss: The answer (a list where the reduction is none); None where only the gradient is stated.
        parameters: Of the loss, ``reduction`` among them.
        gradient: Of ``prediction``, or by name; None where only the loss is stated.
        warnings: The codes expected, exactly; None where they do not matter.
        within: Absolute and relative tolerance.
        dtype: Of the float inputs.
    """

    title: str
    inputs: Mapping[str, Any]
    loss: float | list[Any] | None
    parameters: Parameters = field(default_factory=dict)
    gradient: Any = None
    warnings: set[str] | None = None
    within: float = 1e-6
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Refused:
    """Inputs and parameters that are answered with an error."""

    error: type[Problem]
    message: str
    parameters: Parameters = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What replaces the drawn inputs: nested lists or arrays, None for an input that is not sent."""


@dataclass(frozen=True)
class Case:
    """One loss's row.

    Attributes:
        name: The loss.
        draw: Valid random inputs.
        reference: An independent implementation.
        parameters: Sets that together name every parameter.
        vary: For each parameter that may differ within a batch, other values.
        stated: Extreme inputs and numbers to reproduce.
        refused: What is an error.
        sample_axis: The axis of the samples, of inputs where it is not the first.
        held_constant: Whether the gradient, by definition, holds a part of the value constant: it is the reference's,
            not what finite differences find.
        variant: What this row is about, where a loss has several since it takes inputs of several kinds.
    """

    name: str
    draw: Draw
    reference: Reference
    parameters: Sequence[Parameters] = ({},)
    vary: Mapping[str, Sequence[float]] = field(default_factory=dict)
    stated: Sequence[Stated] = ()
    refused: Sequence[Refused] = ()
    sample_axis: Mapping[str, int] = field(default_factory=dict)
    held_constant: bool = False
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def arrays(self, parameters: Parameters, n: int = 5, seed: int = 0) -> dict[str, Array]:
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return self.draw(rng, n, parameters)

    def inputs(
        self, parameters: Parameters, n: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> dict[str, Tensor]:
        return tensors(self.arrays(parameters, n, seed), dtype)


@dataclass(frozen=True)
class Composition:
    """One request whose parameters name its inputs.

    Attributes:
        title: What is special about it.
        loss: The request's loss object.
        draw: Its inputs, in float64.
        reference: The loss as one differentiable number of these inputs.
        gradients: The inputs whose gradients are compared.
    """

    title: str
    loss: Mapping[str, Any]
    draw: Callable[[torch.Generator], Tensors]
    reference: Callable[[Tensors], Tensor]
    gradients: tuple[str, ...] = ("prediction",)

    @property
    def name(self) -> str:
        return str(self.loss["name"])


def tensors(values: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Arrays or nested lists as tensors: floats of ``dtype``, integers as they are."""
    converted = {name: torch.as_tensor(value) for name, value in values.items() if value is not None}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in converted.items()}
