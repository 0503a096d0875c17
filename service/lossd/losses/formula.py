"""Formulas a client writes: a flat list of steps, given shapes, evaluated on tensors.

Nothing of a formula is ever Python: its own grammar names every function there is. A formula is a list of steps, each
on the results of earlier ones, so neither inferring shapes nor evaluating recurses. The module ``formula_parser`` reads
its text.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from lossd.cost import Cost
from lossd.lazy_torch import Tensor, torch
from lossd.losses.operations import Operation, Value
from lossd_client.errors import InvalidValue

__all__ = ["Apply", "Formula", "FormulaError", "Name", "Number", "Step", "near", "place"]

MAX_GROWTH = 64
FREE_ELEMENTS = 1 << 20
"""A result may have this many elements, or ``MAX_GROWTH`` times those of the largest input: axes of length 1 make
tables, which must not make a small request large."""

MAX_ELEMENTS = 1 << 29
"""The most elements of all results of a formula together; autograd keeps each result."""

STEP_NS = 500_000
"""As measured: what a step takes, however small, in nanoseconds of one core."""

Shape = tuple[int, ...]


class FormulaError(ValueError):
    """The formula is invalid, or its shapes do not fit; the message begins with the place."""

    pointer = "/formula"


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, float64."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """An input or a parameter."""

    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation on the results of earlier steps.

    Attributes:
        operation: What is computed.
        operands: The positions of the steps it takes.
        axis: The axis written in the formula; None where there is none.
        start: Where the expression begins in the text.
        stop: Where it ends.
    """

    operation: Operation
    operands: tuple[int, ...]
    axis: int | None
    start: int
    stop: int


Step = Number | Name | Apply


class _Dependence(Enum):
    """How each entry of a result depends on an input."""

    NONE = 0
    ENTRY = 1  # on one entry
    SUM = 2  # it is a sum of functions of one entry each
    MIXED = 3


LINEAR = ("+", "-", "-x")
SUMS = ("sum", "mean")


def _dependence(operation: Operation, operands: Sequence[_Dependence]) -> _Dependence:
    """Return how an operation's result depends on an input, given how its operands do."""
    most = max(operands, key=lambda kind: kind.value)
    if operation.name == "stop":
        return _Dependence.NONE
    if most in (_Dependence.NONE, _Dependence.MIXED):
        return most
    others = sorted(kind.value for kind in operands)[:-1]
    if operation.name in SUMS or (operation.name == "dot" and most is _Dependence.ENTRY):
        return _Dependence.SUM
    if operation.axis is not None or operation.shaped is not None:
        return _Dependence.MIXED
    if most is _Dependence.ENTRY or operation.name in LINEAR:
        return most
    # A sum times a constant, or over one, is a sum; any other function of a sum mixes its entries.
    scaled = operation.name == "*" or (operation.name == "/" and operands[0] is most)
    return most if scaled and not any(others) else _Dependence.MIXED


@dataclass(frozen=True)
class Formula:
    """A parsed formula.

    Attributes:
        text: The client's text.
        steps: The computation, each step from earlier ones.
        value: The position of the step whose result is the formula's.
        locals: The names that its statements define.
    """

    text: str
    steps: tuple[Step, ...]
    value: int
    locals: tuple[str, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The inputs and parameters, in the order of their first appearance."""
        return tuple(step.name for step in self.steps if isinstance(step, Name))

    @cached_property
    def indices(self) -> frozenset[str]:
        """The names that are used only as indices of ``gather``."""
        found, others = set[str](), set[str]()
        for step in self.steps:
            if isinstance(step, Apply):
                for position, operand in enumerate(step.operands):
                    if isinstance(name := self.steps[operand], Name):
                        index = step.operation.name == "gather" and position == 1
                        (found if index else others).add(name.name)
        if isinstance(value := self.steps[self.value], Name):
            others.add(value.name)
        return frozenset(found - others)

    def inputs(self, parameters: Collection[str] = ()) -> tuple[str, ...]:
        """Return the names that are no parameters.

        Args:
            parameters: The parameters' names.

        Raises:
            FormulaError: A parameter does not appear in the formula, or there is no input.
        """
        for name in parameters:
            if name in self.locals:
                raise FormulaError(f"{name:.40} is a parameter, and the formula gives the name another meaning")
            if name not in self.names:
                proposed = near(name, self.names)
                raise FormulaError(f"the parameter {name!a:.40} does not appear in the formula{proposed}")
        inputs = tuple(name for name in self.names if name not in parameters)
        if not inputs:
            raise FormulaError("the formula names no input")
        return inputs

    def separates(self, name: str) -> bool:
        """Return whether the value is made of sums of functions of single entries of an input.

        The Hessian of such a value is diagonal. ``False`` may be wrong: ``x - x + sum(x) ** 2`` is not simplified.
        """
        kinds: list[_Dependence] = []
        for step in self.steps:
            if isinstance(step, Apply):
                kinds.append(_dependence(step.operation, [kinds[i] for i in step.operands]))
            else:
                mentioned = isinstance(step, Name) and step.name == name
                kinds.append(_Dependence.ENTRY if mentioned else _Dependence.NONE)
        return kinds[self.value] is not _Dependence.MIXED

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the value's shape.

        Args:
            shapes: Each input's shape; names it lacks are parameters, which are numbers.

        Raises:
            FormulaError: Shapes do not combine, an axis does not exist, or results grow too large.
        """
        return self._shapes(shapes)[self.value]

    def cost(self, shapes: Mapping[str, Shape]) -> Cost:
        """Return the cost of the evaluation, given each input's shape: autograd keeps all results.

        Raises:
            FormulaError: As :meth:`shape`.
        """
        found = self._shapes(shapes)
        costs = [
            step.operation.cost([found[i] for i in step.operands], shape)
            for step, shape in zip(self.steps, found, strict=True)
            if isinstance(step, Apply)
        ]
        return Cost(sum(c.scratch_bytes for c in costs), sum(c.work_ns for c in costs) + STEP_NS * len(self.steps))

    def keeps_rows(self, shapes: Mapping[str, Shape]) -> bool:
        """Return whether each row of the value depends on the same row of the inputs alone, to the last bit.

        Such requests are evaluated together, one after the other along axis 0. ``False`` may be wrong.

        Args:
            shapes: Each input's shape, which fits the formula.
        """
        first = {shapes[name][:1] for name in self.names if name in shapes}
        if len(first) != 1 or first == {()}:
            return False
        found = self._shapes(shapes)
        for step, shape in zip(self.steps, found, strict=True):
            if isinstance(step, Apply):
                operands = [found[i] for i in step.operands]
                if any(operands) and not step.operation.keeps_rows(operands, step.axis, shape):
                    return False
        return found[self.value] != ()

    def _shapes(self, shapes: Mapping[str, Shape]) -> list[Shape]:
        """Return the shape of each step's result."""
        largest = max((math.prod(shapes[name]) for name in self.names if name in shapes), default=1)
        limit = max(FREE_ELEMENTS, MAX_GROWTH * largest)
        total = 0
        found: list[Shape] = []
        for step in self.steps:
            if not isinstance(step, Apply):
                found.append(shapes.get(step.name, ()) if isinstance(step, Name) else ())
                continue
            operands = [found[i] for i in step.operands]
            try:
                shape = step.operation.shape(operands, step.axis)
            except ValueError as error:
                raise FormulaError(f"{self._quote(step)}: {error}") from None
            elements = math.prod(shape)
            total += elements
            if elements > limit:
                raise FormulaError(
                    f"{self._quote(step)} has shape {shape}, {elements} elements; of these inputs it may have {limit}"
                )
            if total > MAX_ELEMENTS:
                raise FormulaError(
                    f"{self._quote(step)} brings the results to {total} elements together, over the limit of "
                    f"{MAX_ELEMENTS}; send smaller batches"
                )
            found.append(shape)
        return found

    def evaluate(
        self, tensors: Mapping[str, Tensor], parameters: Mapping[str, float], *, checked: bool = False
    ) -> Tensor:
        """Return the value, differentiable by autograd.

        Args:
            tensors: The inputs, at least one: integers for ``indices``, the others of one floating dtype; all on one
                device.
            parameters: The parameters.
            checked: Whether the shapes of each request have been checked; those of a batch may be over the limits.

        Raises:
            FormulaError: As :meth:`shape`.
            InvalidValue: An index does not exist; the message begins with the place.
        """
        if not checked:
            self.shape({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        results: list[Value] = []
        for step in self.steps:
            match step:
                case Number():
                    results.append(step.value)
                case Name():
                    results.append(tensors[step.name] if step.name in tensors else float(parameters[step.name]))
                case Apply():
                    try:
                        results.append(step.operation([results[i] for i in step.operands], step.axis))
                    except IndexError as error:
                        raise InvalidValue(f"{self._quote(step)}: {error}") from None
        value = results[self.value]
        if isinstance(value, Tensor):
            return value
        like = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
        return torch.full((), value, dtype=like.dtype, device=like.device)

    def _quote(self, step: Apply) -> str:
        text = " ".join(self.text[step.start : step.stop].split())
        return f"{place(self.text, step.start)}: {text if len(text) <= 60 else text[:57] + '...'}"


def place(text: str, at: int) -> str:
    """Return the column of a character, and its line if there are several; both count from 1."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f"line {line}, column {column}" if "\n" in text else f"column {column}"


def near(name: str, known: Sequence[str]) -> str:
    """Return the known name that is closest to an unknown one, or all known names, as the end of a sentence."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)[:400]}"
