"""The vocabulary of a loss's signature: what its tensors are and which values its parameters take.

``prediction: Logits[Tensor, "N C *"]`` reads: a float tensor of unnormalised scores whose axes are N samples, C classes
and any further ones. Names bind across inputs: every N of one request is the same number, and ``*`` the same axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import FailFast

from lossd_client.wire import DTYPES

__all__ = [
    "FIRST_FAULT",
    "Boxes",
    "ClassIndex",
    "ClassSet",
    "Clip",
    "Distribution",
    "Domain",
    "Finite",
    "Fraction",
    "Indicator",
    "Integer",
    "LogProbability",
    "Logits",
    "Mask",
    "NonNegative",
    "NonNegativeTensor",
    "Number",
    "PerAxis",
    "PerClass",
    "PerLabel",
    "Positive",
    "Probability",
    "Real",
    "Sign",
    "TensorType",
]

Domain = Literal[
    "real",
    "finite",
    "logits",
    "log_probability",
    "probability",
    "mask",
    "class",
    "class_set",
    "integer",
    "nonnegative",
    "indicator",
    "sign",
    "box",
    "term",
]
Kind = Literal["float", "integer"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """What one input is, or the answer.

    Attributes:
        domain: What its entries mean, which is also what they are checked for: ``finite`` is neither NaN nor
            infinite, ``probability`` in [0, 1], ``mask`` in [0, 1] or the ignore index, ``nonnegative`` finite and
            at least 0, ``class`` an index into axis C or the ignore index, ``class_set`` such an index or -1,
            ``indicator`` 0, 1 or the ignore index, ``sign`` -1 or 1, ``box`` finite and not inverted in the parameter
            ``format``; ``term`` is checked by a composed loss's terms; ``real``, ``logits``, ``log_probability`` and
            ``integer`` may be anything.
        kinds: The kinds of dtype it is made for. Integers are welcome wherever floats are.
        pattern: Its axes: names, ``name-1``, numbers, and ``*`` for any further axes, which are the same wherever
            it stands; ``...`` are any axes. No axis is empty but S, the labels of a sequence.
    """

    domain: Domain
    kinds: tuple[Kind, ...]
    pattern: tuple[str, ...]

    def takes(self, dtype: str) -> bool:
        """Whether a tensor of this dtype is welcome; where floats are, integers are too."""
        return "float" in self.kinds or DTYPES[dtype].kind in self.kinds

    def __str__(self) -> str:
        """The shape as a reader writes it: ``(N, C, *)``."""
        axes = ", ".join(self.pattern)
        return f"({axes},)" if len(self.pattern) == 1 and axes != "*" else f"({axes})"


class _Family:
    """``Family[Tensor, "N C"]`` is ``Annotated[Tensor, TensorType(...)]``."""

    def __init__(self, domain: Domain, *kinds: Kind) -> None:
        self.domain: Domain = domain
        self.kinds = kinds

    def __getitem__(self, item: tuple[type, str]) -> Any:
        tensor, pattern = item
        return Annotated[tensor, TensorType(self.domain, self.kinds, tuple(pattern.split()))]


if TYPE_CHECKING:  # to a type checker they are what they build
    from typing import Annotated as Boxes
    from typing import Annotated as ClassIndex
    from typing import Annotated as ClassSet
    from typing import Annotated as Distribution
    from typing import Annotated as Finite
    from typing import Annotated as Indicator
    from typing import Annotated as Integer
    from typing import Annotated as LogProbability
    from typing import Annotated as Logits
    from typing import Annotated as Mask
    from typing import Annotated as NonNegativeTensor
    from typing import Annotated as Probability
    from typing import Annotated as Real
    from typing import Annotated as Sign
else:
    Real = _Family("real", "float")
    Finite = _Family("finite", "float")
    Logits = _Family("logits", "float")
    Probability = _Family("probability", "float")
    Distribution = _Family("probability", "float", "integer")
    Mask = _Family("mask", "float", "integer")
    LogProbability = _Family("log_probability", "float")
    NonNegativeTensor = _Family("nonnegative", "float", "integer")
    ClassIndex = _Family("class", "integer")
    ClassSet = _Family("class_set", "integer")
    Integer = _Family("integer", "integer")
    Indicator = _Family("indicator", "float", "integer")
    Sign = _Family("sign", "float", "integer")
    Boxes = _Family("box", "float")

# Parameters. A plain number may differ between the requests of one batch; it then reaches the function as a tensor
# that broadcasts against the function's value. Everything else is the same for the whole batch.
Number = float
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Clip = Annotated[float, Gt(0), Lt(0.5)]


@dataclass(frozen=True, slots=True)
class PerAxis:
    """Marks a list parameter that holds one entry for each step of an axis; L is axis 1 of a tensor ``N *``."""

    axis: str


class _FirstFault(FailFast):
    def __hash__(self) -> int:  # for typing, which compares what is in a union
        return hash(self.fail_fast)


FIRST_FAULT = _FirstFault()
"""Marks a list of which the first fault is told and the rest not looked at: a short request may hold half a million."""

PerClass = Annotated[list[NonNegative], FIRST_FAULT, PerAxis("C")]
PerLabel = Annotated[list[NonNegative], FIRST_FAULT, PerAxis("L")]
