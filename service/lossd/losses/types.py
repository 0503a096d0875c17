"""The types of a loss's signature: its tensors' entries and axes, and its parameters' ranges.

``prediction: Logits[Tensor, "N C *"]`` means a float tensor of unnormalised scores with the axes N samples, C classes,
and any further ones. Names bind across inputs: every N of one request has the same length, and every ``*`` the same
axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import FailFast

from lossd_client.wire import DTYPES

__all__ = [
    "FIRST_FAULT",
    "AboveMinusOne",
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
    "Kept",
    "LogProbability",
    "Logits",
    "Mask",
    "NegativeTensor",
    "NonNegative",
    "NonNegativeTensor",
    "Number",
    "PerAxis",
    "PerClass",
    "PerLabel",
    "Positive",
    "PositivePerClass",
    "PositiveTensor",
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
    "predicted",
    "integer",
    "nonnegative",
    "positive",
    "nonzero",
    "above_minus_one",
    "negative",
    "indicator",
    "sign",
    "box",
    "term",
    "kept",
    "length",
    "weight",
]
Kind = Literal["float", "integer"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """The type of an input, or of the answer.

    Attributes:
        domain: What its entries mean, which is also what they are checked for: ``finite`` is neither NaN nor infinite,
            ``probability`` in [0, 1], ``mask`` in [0, 1] or the ignore index, ``nonnegative`` finite and at least 0,
            ``positive`` finite and more than 0, ``negative`` finite and less than 0, ``nonzero`` finite and other than
            0, ``above_minus_one`` finite and more than -1, ``class`` an index into axis C or the ignore index,
            ``class_set`` such an index or -1, ``predicted`` an index into axis C where the target counts, ``indicator``
            0, 1 or the ignore index, ``sign`` -1 or 1, ``box`` finite and not inverted in the parameter ``format``;
            ``kept`` 0 or 1, ``length`` from 0 to the length of the mask's axis 1, ``weight`` finite and at least 0;
            ``term`` is checked by a composed loss's terms; ``real``, ``logits``, ``log_probability`` and ``integer``
            may be anything.
        kinds: The kinds of dtype it is made for. Where floats are accepted, integers are too.
        pattern: Its axes: names, ``name-1``, numbers, and ``*`` for further axes, which are equal wherever ``*``
            occurs; ``...`` are any axes. Only S, the labels of a sequence, may be empty.
    """

    domain: Domain
    kinds: tuple[Kind, ...]
    pattern: tuple[str, ...]

    def takes(self, dtype: str) -> bool:
        """Return whether a tensor of this dtype is accepted; integers are accepted where floats are."""
        return "float" in self.kinds or DTYPES[dtype].kind in self.kinds

    def __str__(self) -> str:
        """Return the shape as text: ``(N, C, *)``."""
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


if TYPE_CHECKING:  # type checkers see the Annotated types that these build
    from typing import Annotated as AboveMinusOne
    from typing import Annotated as Boxes
    from typing import Annotated as ClassIndex
    from typing import Annotated as ClassSet
    from typing import Annotated as Distribution
    from typing import Annotated as Finite
    from typing import Annotated as Indicator
    from typing import Annotated as Integer
    from typing import Annotated as Kept
    from typing import Annotated as LogProbability
    from typing import Annotated as Logits
    from typing import Annotated as Mask
    from typing import Annotated as NegativeTensor
    from typing import Annotated as NonNegativeTensor
    from typing import Annotated as PositiveTensor
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
    PositiveTensor = _Family("positive", "float", "integer")
    AboveMinusOne = _Family("above_minus_one", "float", "integer")
    NegativeTensor = _Family("negative", "float")
    ClassIndex = _Family("class", "integer")
    ClassSet = _Family("class_set", "integer")
    Integer = _Family("integer", "integer")
    Kept = _Family("kept", "integer")
    Indicator = _Family("indicator", "float", "integer")
    Sign = _Family("sign", "float", "integer")
    Boxes = _Family("box", "float")

# Parameters. A plain number may differ between the requests of a batch; the function then gets a tensor that broadcasts
# against its value. All other parameters are equal in the whole batch.
Number = float
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Clip = Annotated[float, Gt(0), Lt(0.5)]


@dataclass(frozen=True, slots=True)
class PerAxis:
    """Marks a list parameter with one entry for each step of an axis; L is axis 1 of a tensor ``N *``."""

    axis: str


class _FirstFault(FailFast):
    def __hash__(self) -> int:  # typing hashes the members of a union
        return hash(self.fail_fast)


FIRST_FAULT = _FirstFault()
"""Marks a list that is checked up to its first fault only: a short request may hold half a million faults."""

PerClass = Annotated[list[NonNegative], FIRST_FAULT, PerAxis("C")]
PositivePerClass = Annotated[list[Positive], FIRST_FAULT, PerAxis("C")]
PerLabel = Annotated[list[NonNegative], FIRST_FAULT, PerAxis("L")]
