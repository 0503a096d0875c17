"""Formulas a client writes: read into a flat list of steps, given shapes, evaluated on tensors.

Nothing of a formula is ever Python: its own grammar names every function there is. A formula becomes a list of steps,
each on the results of earlier ones, so neither inferring shapes nor evaluating recurses, and only the reading of nested
parentheses does, to a stated depth.

::

    formula    = { name "=" comparison ";" } comparison
    comparison = sum [ ( "<" | "<=" | ">" | ">=" | "==" | "!=" ) sum ]
    sum        = product { ( "+" | "-" ) product }
    product    = signed { ( "*" | "/" ) signed }
    signed     = "-" signed | power
    power      = value [ "**" signed ]
    value      = number | name | name "(" comparison { "," comparison } [ "," axis ] ")" | "(" comparison ")"
    axis       = [ "-" ] digits

A comparison is 1 where it holds and 0 elsewhere, so ``a * b`` says and, ``maximum(a, b)`` or, ``1 - a`` not.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from lossd.caches import memoized
from lossd.cost import Cost
from lossd.lazy_torch import Tensor, torch
from lossd.losses.operations import OPERATIONS, Operation, Value
from lossd_client.errors import InvalidValue

__all__ = ["Formula", "FormulaError", "parse"]

MAX_CHARACTERS = 4096
MAX_STEPS = 512
MAX_STATEMENTS = 64
MAX_DEPTH = 64
"""The deepest nesting of parentheses, calls, signs and right operands, each a few Python frames."""

MAX_GROWTH = 64
FREE_ELEMENTS = 1 << 20
"""A result may have this many elements, or ``MAX_GROWTH`` times those of the largest input: axes of length 1 make
tables, and a small request is not to become a large one."""

MAX_ELEMENTS = 1 << 29
"""The most elements of all results of a formula together; autograd keeps each result."""

STEP_NS = 500_000
"""As measured: what a step takes, however small, in nanoseconds of one core."""

Shape = tuple[int, ...]

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
PRECEDENCE = {**dict.fromkeys(COMPARISONS, 1), "+": 2, "-": 2, "*": 3, "/": 3, "**": 5}
SIGNED = 4
FUNCTIONS = tuple(name for name in OPERATIONS if name.isidentifier())

TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>\*\*|[<>=!]=|[-+*/<>=(),;])""",
    re.VERBOSE,
)


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
        """The names that are nothing but indices of ``gather``."""
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
                near = _near(name, self.names)
                raise FormulaError(f"the parameter {name!a:.40} does not appear in the formula{near}")
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
        return f"{_place(self.text, step.start)}: {text if len(text) <= 60 else text[:57] + '...'}"


@memoized("formulas", lambda text, formula: 1024 + len(text) + 256 * len(formula.steps), 4 << 20)
def parse(text: str) -> Formula:
    """Return the parsed formula.

    Raises:
        FormulaError: The formula is invalid; the message names the column.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"a formula may have {MAX_CHARACTERS} characters, this one has {len(text)}")
    return _Reading(text).formula()


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    stop: int


class _Part(NamedTuple):
    """A step, and the range of its expression in the text, parentheses included."""

    step: int
    start: int
    stop: int


class _Reading:
    """The parsing of one formula, token by token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens()
        self.at = 0
        self.depth = 0
        self.steps: list[Step] = []
        self.named: dict[str, int] = {}
        self.locals: dict[str, int] = {}

    def formula(self) -> Formula:
        while self.token.kind == "name" and self.tokens[self.at + 1].text == "=":
            self._statement()
        value = self._expression()
        if self.token.kind != "end":
            raise self._unexpected("an operator" if self.token.text != ";" else "the end: only statements end with ';'")
        return Formula(self.text, tuple(self.steps), value.step, tuple(self.locals))

    def _statement(self) -> None:
        name = self._next()
        self._next()
        value = self._expression()
        if self.token.text != ";":
            raise self._unexpected("an operator, or ';' and the value after the statement")
        self._next()
        if name.text in FUNCTIONS or name.text in self.locals or name.text in self.named:
            raise self._error(name, f"{name.text:.40} has a meaning already; a statement gives a new name")
        if len(self.locals) == MAX_STATEMENTS:
            raise self._error(name, f"a formula may have {MAX_STATEMENTS} statements")
        self.locals[name.text] = value.step

    def _expression(self, lowest: int = 0) -> _Part:
        """Parse operands and the operators between them that bind at least as tightly as ``lowest``."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(self.token, f"nested more than {MAX_DEPTH} levels deep")
        left = self._operand()
        while PRECEDENCE.get(self.token.text, -1) >= lowest:
            operator = self._next()
            right = self._expression(SIGNED if operator.text == "**" else PRECEDENCE[operator.text] + 1)
            if operator.text in COMPARISONS and self.token.text in COMPARISONS:
                raise self._error(self.token, "comparisons do not chain; write (a < b) * (b < c)")
            left = self._apply(operator, OPERATIONS[operator.text], (left, right), None, left.start, right.stop)
        self.depth -= 1
        return left

    def _operand(self) -> _Part:
        token = self.token
        if token.kind == "number":
            return self._number()
        if token.kind == "name":
            return self._call() if self.tokens[self.at + 1].text == "(" else self._name()
        if token.text == "(":
            self._next()
            inner = self._expression()
            return _Part(inner.step, token.start, self._take(")").stop)
        if token.text == "-":
            self._next()
            inner = self._expression(SIGNED)
            return self._apply(token, OPERATIONS["-x"], (inner,), None, token.start, inner.stop)
        raise self._unexpected("a value")

    def _number(self) -> _Part:
        token = self._next()
        value = float(token.text)
        if math.isinf(value):
            raise self._error(token, f"{token.text[:40]} is beyond float64")
        return self._step(token, Number(value), token.start, token.stop)

    def _name(self) -> _Part:
        token = self._next()
        if token.text in FUNCTIONS:
            raise self._error(token, f"{token.text} is a function; write {token.text}(...)")
        if token.text in self.locals:
            return _Part(self.locals[token.text], token.start, token.stop)
        if token.text not in self.named:
            self.named[token.text] = self._step(token, Name(token.text), token.start, token.stop).step
        return _Part(self.named[token.text], token.start, token.stop)

    def _call(self) -> _Part:
        name = self._next()
        if name.text not in FUNCTIONS:
            raise self._error(name, f"there is no function {name.text:.40}{_near(name.text, FUNCTIONS)}")
        operation = OPERATIONS[name.text]
        self._take("(")
        operands: list[_Part] = []
        axis = None
        while len(operands) < operation.operands:
            if operands:
                self._take(",", f"{name.text} takes {operation.signature}")
            operands.append(self._expression())
        if self.token.text == "," and operation.axis is not None:
            self._next()
            axis = self._axis(name.text)
        stop = self._take(")", f"{name.text} takes {operation.signature}").stop
        return self._apply(name, operation, operands, axis, name.start, stop)

    def _axis(self, function: str) -> int:
        token = self._next()
        sign = ""
        if token.text == "-":
            sign, token = "-", self._next()
        if not token.text.isdigit() or len(token.text) > 2:
            remedy = f"; of two values, {function}imum is the {function}" if function in ("max", "min") else ""
            raise self._error(token, f"the axis of {function} is a small integer{remedy}")
        return int(sign + token.text)

    def _apply(
        self, token: _Token, operation: Operation, operands: Sequence[_Part], axis: int | None, start: int, stop: int
    ) -> _Part:
        return self._step(token, Apply(operation, tuple(o.step for o in operands), axis, start, stop), start, stop)

    def _step(self, token: _Token, step: Step, start: int, stop: int) -> _Part:
        if len(self.steps) == MAX_STEPS:
            raise self._error(token, f"a formula may have {MAX_STEPS} numbers, names and operations")
        self.steps.append(step)
        return _Part(len(self.steps) - 1, start, stop)

    # Tokens

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def _next(self) -> _Token:
        token = self.token
        self.at += token.kind != "end"
        return token

    def _take(self, text: str, reason: str = "") -> _Token:
        if self.token.text != text:
            raise self._unexpected(f"'{text}'", reason)
        return self._next()

    def _tokens(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self.text):
            found = TOKEN.match(self.text, at)
            if found is None:
                hint = "; powers are written **" if self.text[at] == "^" else ""
                raise FormulaError(f"{_place(self.text, at)}: {self.text[at]!a} has no meaning in a formula{hint}")
            at = found.end()
            if found.lastgroup != "space":
                tokens.append(_Token(str(found.lastgroup), found.group(), found.start(), at))
        return [*tokens, _Token("end", "", at, at)]

    def _unexpected(self, expected: str, reason: str = "") -> FormulaError:
        found = f"'{self.token.text[:40]}'" if self.token.text else "the end of the formula"
        return self._error(self.token, f"expected {expected}, found {found}" + (f"; {reason}" if reason else ""))

    def _error(self, token: _Token, detail: str) -> FormulaError:
        return FormulaError(f"{_place(self.text, token.start)}: {detail}")


def _place(text: str, at: int) -> str:
    """Return the column of a character, and its line if there are several; both count from 1."""
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return f"line {line}, column {column}" if "\n" in text else f"column {column}"


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)[:400]}"
