"""Reads a formula that a client writes into its steps.

Only the reading of nested parentheses recurses, to a stated depth.

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

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from lossd.caches import memoized
from lossd.losses.formula import Apply, Formula, FormulaError, Name, Number, Step, near, place
from lossd.losses.operations import OPERATIONS, Operation

__all__ = ["parse"]

MAX_CHARACTERS = 4096
MAX_STEPS = 512
MAX_STATEMENTS = 64
MAX_DEPTH = 64
"""The deepest nesting of parentheses, calls, signs and right operands, each a few Python frames."""

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
            raise self._error(name, f"there is no function {name.text:.40}{near(name.text, FUNCTIONS)}")
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
                raise FormulaError(f"{place(self.text, at)}: {self.text[at]!a} has no meaning in a formula{hint}")
            at = found.end()
            if found.lastgroup != "space":
                tokens.append(_Token(str(found.lastgroup), found.group(), found.start(), at))
        return [*tokens, _Token("end", "", at, at)]

    def _unexpected(self, expected: str, reason: str = "") -> FormulaError:
        found = f"'{self.token.text[:40]}'" if self.token.text else "the end of the formula"
        return self._error(self.token, f"expected {expected}, found {found}" + (f"; {reason}" if reason else ""))

    def _error(self, token: _Token, detail: str) -> FormulaError:
        return FormulaError(f"{place(self.text, token.start)}: {detail}")
