"""``View``: the tensors of a batch in the form that metrics read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy.typing as npt

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.lazy_torch import Tensor, torch
from lossd.losses.reduction import Segments
from lossd.metrics.combinations import Combinations

__all__ = ["COARSE", "View"]

Array = npt.NDArray[Any]

COARSE = ("bfloat16", "float16", "float32")
"""Float dtypes coarser than float64, the coarsest first."""


class View(NamedTuple):
    """The tensors of a batch in the form that metrics read, checked and on the device.

    Attributes:
        tensors: The requests' inputs by name, concatenated along their rows, (R, ...); floats in the compute dtype,
            integers in their own dtype. Without ``sample_weight`` and ``cotangent``.
        segments: The rows of each request.
        activation: The domain of ``prediction``: real, logits, log_probability, probability or predicted.
        sample_weight: (R,) float64, or None.
        left_out: Returns the entries that a mask leaves out, see ``ignored``; None if there is no mask.
        ignore_index: The class that does not count, or None.
        parameters: The loss's parameters that are equal in the whole batch.
        options: The request's ``metrics`` object with its defaults.
        numbers: The other parameters: each request's value, B of them.
        counted: The parts that a compiled pass or a run has already counted, by the task's name for them.
        alone: Whether no loss is evaluated, so that only the options say what predictions are.
        kernels: Compiled functions that count in one call what takes many tensor operations, by name; those at hand.
        dtypes: The dtypes in which tensors were sent, by name; a missing name has the tensor's own dtype.
        classes: The number of classes of a run, because a run has no tensors.
        exponent: Sums of weights in a run's ``counted`` are divided by two to this; None if no sample is weighted.
        combinations: Which rows a run counts together; None of an evaluation.
    """

    tensors: Mapping[str, Tensor]
    segments: Segments
    activation: str
    sample_weight: Tensor | None
    ignore_index: int | None
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]
    numbers: Mapping[str, Sequence[float]] = MappingProxyType({})
    counted: Mapping[str, Array] = MappingProxyType({})
    alone: bool = False
    kernels: CountingKernels = NO_KERNELS
    dtypes: Mapping[str, str] = MappingProxyType({})
    classes: int | None = None
    exponent: int | None = None
    combinations: Combinations | None = None
    left_out: Callable[[], Tensor] | None = None

    @property
    def ignored(self) -> Tensor | None:
        """The entries that do not count by a mask, (R, I) or (R, 1) bool, or None.

        Computed at first use, because a compiled pass has counted all that most requests ask for.
        """
        return None if self.left_out is None else self.left_out()

    @property
    def placed(self) -> Combinations:
        """Which rows a run counts together."""
        assert self.combinations is not None, "a run says what it counts together"
        return self.combinations

    @property
    def merged(self) -> bool:
        """Whether this is a run: parts without tensors."""
        return not self.tensors

    def sent(self, *names: str) -> str:
        """Return the dtype in which these tensors were sent, the coarsest of several; float64 for integers."""
        found = {self.dtypes.get(name) or str(self.tensors[name].dtype).removeprefix("torch.") for name in names}
        return next((dtype for dtype in COARSE if dtype in found), "float64")

    def computed(self, *names: str) -> str:
        """Return the dtype whose rounding affects results of these tensors: float64 if all are, else float32."""
        return "float64" if self.sent(*names) == "float64" else "float32"

    def number(self, name: str, default: float, ndim: int) -> Tensor | float:
        """Return a numeric parameter of the loss: a number, or (R, 1, ...) with ``ndim`` axes if requests differ."""
        values_by_request = self.numbers.get(name) or [self.parameters.get(name, default)]
        if values_by_request.count(values_by_request[0]) == len(values_by_request):
            return float(values_by_request[0])
        values = torch.tensor(values_by_request, dtype=torch.float64, device=self.segments.device)
        return self.segments.spread(values, ndim)
